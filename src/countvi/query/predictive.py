"""What the model says about counts not yet seen: draws of counts, and the parameters of their distribution."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from countvi import seeding
from countvi.batch import RNA, Batch, CountBlock
from countvi.likelihoods import Normal
from countvi.models._base import CountModel
from countvi.nn.latent import Given
from countvi.query.cells import Cells, OutputWriter, evaluation, map_cells
from countvi.query.draws import (
    Counterfactual,
    RunningMean,
    Stream,
    at_counterfactual,
    draw,
    generator,
    log_natural_mean,
    posterior,
    sample_chunks,
)


def posterior_predictive(
    model: CountModel,
    cells: Cells,
    *,
    modality: str = RNA,
    genes: np.ndarray | None = None,
    counterfactual: Counterfactual = None,
    n_samples: int = 1,
    seed: int = seeding.DEFAULT_SEED,
) -> list[sp.csr_array] | list[np.ndarray]:
    """Draw new counts for each cell: latent variables from the posterior, then counts given them.

    Parameters
    ----------
    model
        The model.
    cells
        Cells to draw for.
    modality
        Which of the model's modalities.
    genes
        Columns of the counts to return, in this order; ``None`` for all.
    counterfactual
        Covariate level to draw under, ``(column, code)``; ``None`` for the cells' own.
    n_samples
        Number of draws per cell.
    seed
        Seed of the draws.

    Returns
    -------
    list
        For each sample a sparse array of integer-valued floats, shape ``(cells, genes)``. With the normal likelihood,
        whose draws are not counts and never zero, a dense ndarray.
    """
    drawn = joint_predictive(
        model, cells, {modality: genes}, counterfactual=counterfactual, n_samples=n_samples, seed=seed
    )
    return drawn[modality]


def joint_predictive(
    model: CountModel,
    cells: Cells,
    features: Mapping[str, np.ndarray | None],
    *,
    counterfactual: Counterfactual = None,
    n_samples: int = 1,
    seed: int = seeding.DEFAULT_SEED,
) -> dict[str, list[Any]]:
    """Draw new counts of several modalities for each cell, from the same draws of the latent variables.

    Parameters
    ----------
    features
        Columns to return of each modality that is drawn; ``None`` for all.
    model, cells, counterfactual, n_samples, seed
        As in :func:`posterior_predictive`.

    Returns
    -------
    dict
        By modality, as :func:`posterior_predictive` returns them.
    """
    columns = {
        name: None if wanted is None else torch.as_tensor(np.asarray(wanted), dtype=torch.int64, device=cells.device)
        for name, wanted in features.items()
    }
    source = generator(seed, Stream.PREDICTIVE, cells.device)
    blocks: dict[str, list[list[Any]]] = {name: [[] for _ in range(n_samples)] for name in features}
    dense: set[str] = set()
    with evaluation(model):
        for _, batch in cells:
            q = posterior(model, batch)
            design = at_counterfactual(batch.design, counterfactual)
            for run in sample_chunks(n_samples, batch.n_cells, cells.chunk):
                likelihoods = model.generate(draw(model, q, source, run.stop - run.start), design)
                for name, wanted in columns.items():
                    counts = likelihoods[name].sample(generator=source)
                    counts = counts if wanted is None else counts.index_select(-1, wanted)
                    if isinstance(likelihoods[name], Normal):
                        dense.add(name)
                    for sample, drawn in zip(range(run.start, run.stop), counts, strict=True):
                        blocks[name][sample].append(drawn.cpu().numpy() if name in dense else _to_csr(drawn))
    return {
        name: [np.concatenate(p) if name in dense else sp.csr_array(sp.vstack(p, format="csr")) for p in parts]
        for name, parts in blocks.items()
    }


def likelihood_parameters(
    model: CountModel,
    cells: Cells,
    *,
    modality: str = RNA,
    n_samples: int = 1,
    give_mean: bool = False,
    seed: int = seeding.DEFAULT_SEED,
) -> dict[str, np.ndarray]:
    """Parameters of the distribution of each count, from posterior draws.

    Parameters
    ----------
    model
        The model.
    cells
        Cells to decode.
    modality
        Which of the model's modalities.
    n_samples
        Number of posterior draws per cell.
    give_mean
        Average over the draws.
    seed
        Seed of the draws.

    Returns
    -------
    dict
        Float32 arrays of shape ``(cells, genes)``, or ``(samples, cells, genes)`` if more than one sample is drawn
        and not averaged. ``"mean"``: expected counts (before dropout). ``"dispersions"``: inverse dispersion theta,
        where counts are negative binomial. ``"dropout"``: probability of dropout, with zero inflation.
        ``"standard_deviation"``: of the normal likelihood. Of proteins also ``"background_mean"``,
        ``"foreground_mean"`` and ``"background_probability"``.
    """
    source = generator(seed, Stream.PARAMETERS, cells.device)
    averaged = give_mean or n_samples == 1
    writers: dict[str, OutputWriter] = {}

    def write(name: str, block: Tensor, *index: slice) -> None:
        if name not in writers:
            shape = (len(cells), block.shape[-1])
            writers[name] = OutputWriter(shape if averaged else (n_samples, *shape))
        writers[name].write(block, *index)

    with evaluation(model):
        for block, batch in cells:
            q = posterior(model, batch)
            means: dict[str, RunningMean] = {}
            for run in sample_chunks(n_samples, batch.n_cells, cells.chunk):
                latents = draw(model, q, source, run.stop - run.start)
                for name, value in model.generate(latents, batch.design)[modality].parameters().items():
                    if averaged:
                        means.setdefault(name, RunningMean()).add(value)
                    else:
                        write(name, value, run, block)
            for name, mean in means.items():
                write(name, mean.result(), block)
    return {name: writer.out for name, writer in writers.items()}


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


def _to_csr(counts: Tensor) -> sp.csr_array:
    # On the device, so that only what is not zero travels.
    block = CountBlock.from_dense(counts)
    parts = (block.values.cpu().numpy(), block.columns.cpu().numpy(), block.offsets.cpu().numpy())
    return sp.csr_array(parts, shape=tuple(counts.shape))
