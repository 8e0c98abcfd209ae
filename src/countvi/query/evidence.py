"""Evidence of each cell: evidence lower bound, reconstruction, marginal likelihood."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from countvi import seeding
from countvi.batch import Batch
from countvi.models.count_model import CountModel
from countvi.query.cells import Cells, map_cells
from countvi.query.draws import Stream, draw_runs, generator, sample_chunks
from countvi.query.importance import log_importance, wide


def elbo(model: CountModel, cells: Cells, seed: int = seeding.DEFAULT_SEED) -> np.ndarray:
    """Evidence lower bound of each cell from one posterior draw.

    Parameters
    ----------
    model
        The model.
    cells
        Cells to score.
    seed
        Seed of the draw.

    Returns
    -------
    ndarray
        Shape ``(cells,)``, float64, in nats, larger is better. The KL terms count in full (no warm-up weight); terms
        of global variables are not part of it.
    """
    source = generator(seed, Stream.EVIDENCE, cells.device)

    def bound(batch: Batch) -> tuple[Tensor]:
        return (wide(model.elbo(batch, source).per_cell),)

    return map_cells(model, cells, bound)[0]


def reconstruction(model: CountModel, cells: Cells, seed: int = seeding.DEFAULT_SEED) -> dict[str, np.ndarray]:
    """Reconstruction error of each cell from one posterior draw, the same draw as :func:`elbo` makes with that seed.

    Returns
    -------
    dict
        By modality, the negative log-likelihood given the latent variables: shape ``(cells,)``, float64, in nats,
        smaller is better.
    """
    source = generator(seed, Stream.EVIDENCE, cells.device)
    names: list[str] = []

    def errors(batch: Batch) -> list[Tensor]:
        log_lik = model.elbo(batch, source).log_lik
        names[:] = log_lik
        return [-wide(value) for value in log_lik.values()]

    values = map_cells(model, cells, errors)
    return dict(zip(names, values, strict=True))


def marginal_log_likelihood(
    model: CountModel,
    cells: Cells,
    *,
    n_samples: int = 1000,
    samples_per_pass: int | None = None,
    seed: int = seeding.DEFAULT_SEED,
) -> np.ndarray:
    r"""Log-probability of each cell's counts with the latent variables integrated out, by importance sampling.

    .. math::

        \log p(x) \approx \log \frac1S \sum_{s=1}^S \frac{p(x \mid u_s)\, p(u_s)}{q(u_s \mid x)},
        \qquad u_s \sim q(u \mid x)

    over all latent variables u that are inferred (z, and the library size if it is). Densities are those of z itself,
    also if the cell state is a transformed z. The estimate is a lower bound on average, and tightens with the number
    of samples.

    Parameters
    ----------
    model
        The model.
    cells
        Cells to score.
    n_samples
        Number of draws per cell.
    samples_per_pass
        How many of them are decoded together; it bounds the memory and does not change the result. ``None`` lets the
        chunk of ``cells`` decide.
    seed
        Seed of the draws.

    Returns
    -------
    ndarray
        Shape ``(cells,)``, float64, in nats, larger is better.
    """
    source = generator(seed, Stream.MARGINAL, cells.device)

    def evidence(batch: Batch) -> tuple[Tensor]:
        q, p = model.guide(batch), model.prior(batch.design)
        total = torch.full((batch.n_cells,), -math.inf, dtype=torch.float64)
        bound = (batch.n_cells, cells.chunk) if samples_per_pass is None else (1, samples_per_pass)
        for _, latents in draw_runs(model, q, source, sample_chunks(n_samples, *bound)):
            log_weight = log_importance(model, q, p, latents, batch)
            total = torch.logaddexp(total, log_weight.logsumexp(0))
        return (total - math.log(n_samples),)

    return map_cells(model, cells, evidence)[0]
