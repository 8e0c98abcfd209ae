"""What the model says about counts not yet seen: draws of counts, and the parameters of their distribution."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from countvi import seeding
from countvi.batch import RNA, Batch, CountBlock, Design
from countvi.errors import NonFiniteError
from countvi.likelihoods.base import CountLikelihood
from countvi.likelihoods.normal import Normal
from countvi.models.count_model import CountModel
from countvi.nn.latent import Given
from countvi.query.cells import Cells, evaluation, map_cells, select, stacked, to_csr
from countvi.query.draws import (
    Counterfactual,
    Stream,
    at_counterfactual,
    draw_runs,
    generator,
    log_natural_mean,
    posterior,
    sample_chunks,
)
from countvi.query.posterior import Draws, expectations


def posterior_predictive(
    model: CountModel,
    cells: Cells,
    features: Mapping[str, np.ndarray | None],
    *,
    counterfactual: Counterfactual = None,
    n_samples: int = 1,
    seed: int = seeding.DEFAULT_SEED,
) -> dict[str, list[Any]]:
    """Draw new counts for each cell: latent variables from the posterior, then counts given them.

    Parameters
    ----------
    model
        The model.
    cells
        Cells to draw for.
    features
        Columns of the counts to return, in this order, of each modality that is drawn; ``None`` for all. Modalities
        have the same draws of the latent variables.
    counterfactual
        Covariate level to draw under, ``(column, code)``; ``None`` for the cells' own.
    n_samples
        Number of draws per cell.
    seed
        Seed of the draws.

    Returns
    -------
    dict
        By modality, for each sample a sparse array of integer-valued floats, shape ``(cells, genes)``. With the normal
        likelihood, whose draws are not counts and never zero, a dense ndarray.
    """
    source = generator(seed, Stream.PREDICTIVE, cells.device)
    blocks: dict[str, list[list[Any]]] = {name: [[] for _ in range(n_samples)] for name in features}
    dense: set[str] = set()
    with evaluation(model):
        for _, batch in cells:
            q, runs = posterior(model, batch), sample_chunks(n_samples, batch.n_cells, cells.chunk)
            design = at_counterfactual(batch.design, counterfactual)
            for run, latents in draw_runs(model, q, source, runs):
                likelihoods = model.generate(latents, design)
                for name, columns in features.items():
                    counts = select(drawn_counts(likelihoods[name], source, name), columns)
                    if isinstance(likelihoods[name], Normal):
                        dense.add(name)
                    for sample, drawn in zip(range(run.start, run.stop), counts, strict=True):
                        # Made sparse on the device, so that only what is not zero travels.
                        kept = drawn.cpu().numpy() if name in dense else to_csr(CountBlock.from_dense(drawn))
                        blocks[name][sample].append(kept)
    return {
        name: [np.concatenate(parts) if name in dense else stacked(parts) for parts in samples]
        for name, samples in blocks.items()
    }


def drawn_counts(likelihood: CountLikelihood, source: torch.Generator, modality: str) -> Tensor:
    """Draw counts, or say which feature has a distribution that nothing can be drawn from.

    Raises
    ------
    NonFiniteError
        If a mean or dispersion is not finite, as after a training that diverged.
    """
    try:
        return likelihood.sample(generator=source)
    except RuntimeError as error:
        for name, values in likelihood.parameters().items():
            bad = (~torch.isfinite(values)).reshape(-1, values.shape[-1]).any(0).nonzero()
            if len(bad):
                message = (
                    f"No counts can be drawn: the {name} of {len(bad):,} features of {modality!r} is not finite, first "
                    f"in column {int(bad[0])} (from 0). Training diverged; train anew with a lower learning rate."
                )
                raise NonFiniteError(message) from error
        raise


def likelihood_parameters(
    model: CountModel, cells: Cells, draws: Draws, *, modality: str = RNA
) -> dict[str, np.ndarray]:
    """Parameters of the distribution of each count, from posterior draws.

    Parameters
    ----------
    model
        The model.
    cells
        Cells to decode.
    draws
        How to draw.
    modality
        Which of the model's modalities.

    Returns
    -------
    dict
        Float32 arrays of shape ``(cells, genes)``, or ``(samples, cells, genes)`` if more than one sample is drawn
        and not averaged. ``"mean"``: expected counts (before dropout). ``"dispersions"``: inverse dispersion theta,
        where counts are negative binomial. ``"dropout"``: probability of dropout, with zero inflation.
        ``"standard_deviation"``: of the normal likelihood. Of proteins also ``"background_mean"``,
        ``"foreground_mean"`` and ``"background_probability"``.
    """

    def parameters(latents: Any, design: Design) -> dict[str, Tensor]:
        return model.generate(latents, design)[modality].parameters()

    return expectations(model, cells, parameters, draws, Stream.PARAMETERS)


def library_size(
    model: CountModel, cells: Cells, *, give_mean: bool = True, seed: int = seeding.DEFAULT_SEED
) -> np.ndarray:
    """Library size of each cell in counts: inferred where the model infers it, otherwise what was observed or given.

    Parameters
    ----------
    model
        A model with a latent variable ``log_library``.
    cells
        Cells to encode.
    give_mean
        Return the posterior mean (of the library size, not the exponential of the mean of its log); otherwise one draw.
    seed
        Seed of the draw.

    Returns
    -------
    ndarray
        Shape ``(cells, 1)``, or ``(cells, modalities)``. Zero for an empty cell whose library size is observed.
    """
    source = generator(seed, Stream.LIBRARY, cells.device)

    def library(batch: Batch) -> tuple[Tensor]:
        q = posterior(model, batch).log_library
        exact = give_mean or isinstance(q, Given)
        log_library = log_natural_mean(q) if exact else q.rsample(source)
        sizes = log_library.exp()
        return (sizes if sizes.dim() == 2 else sizes.unsqueeze(-1),)

    return map_cells(model, cells, library)[0]
