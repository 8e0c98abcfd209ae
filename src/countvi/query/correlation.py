"""Correlations between genes in what the model says about a population of cells.

The observations are posterior draws of all cells, cells times samples of them. Pearson correlations stream over them;
ranks need all observations of a gene at once, so they are kept, on disk when they are many.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from countvi import seeding
from countvi.batch import Design
from countvi.errors import choose
from countvi.likelihoods.base import CountLikelihood
from countvi.likelihoods.negative_binomial_mixture import NegativeBinomialMixture
from countvi.models.count_model import CountModel
from countvi.query.cells import Cells, evaluation, select
from countvi.query.draws import (
    Counterfactual,
    Stream,
    at_counterfactual,
    draw_runs,
    generator,
    posterior,
    sample_chunks,
)
from countvi.query.temporary import temporary_array

# What ranking and multiplying hold at once.
_WORK_BYTES = 64 * 2**20
# Between these, Gamma(theta) / theta neither overflows nor underflows; beyond the upper one it is 1 to float32's last
# digit.
_THETA_RANGE = (1e-30, 1e15)

CorrelationType = Literal["spearman", "pearson"]


@dataclass(frozen=True, eq=False)
class DenoisedFeatures:
    """Draws of denoised expression of genes, and of proteins.

    With negative binomial counts (zero-inflated or not), denoised expression is the rate of the Poisson from which a
    count is drawn: a Gamma variable of shape theta and mean ``rna_size_factor`` times the expected frequency. So it
    has the biological overdispersion, and neither counting noise nor dropout. With Poisson and normal likelihoods,
    which have no such variable, it is ``rna_size_factor`` times the expected frequency itself. Of proteins the
    foreground is taken, without the background: zero where a draw says that the counts are background, else a Gamma
    variable around the foreground mean.

    Parameters
    ----------
    model
        The model.
    features
        Columns of the counts of each modality, in this order; ``None`` for all.
    rna_size_factor
        Library size at which cells are decoded.
    log_transform
        Take log(1 + x).
    """

    model: CountModel
    features: Mapping[str, np.ndarray | None]
    rna_size_factor: float = 1000.0
    log_transform: bool = False

    def n_features(self, cells: Cells) -> int:
        """Number of features."""
        return sum(cells.n_features(name, columns) for name, columns in self.features.items())

    def draw(self, latents: Any, design: Design, noise: torch.Generator) -> Tensor:
        """Return one draw for each of the latent variables, ``(*samples, cells, features)``."""
        likelihoods = self.model.generate(latents, design)
        parts = [self._of(likelihoods[name], columns, noise) for name, columns in self.features.items()]
        values = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        return values.log1p() if self.log_transform else values

    def _of(self, likelihood: CountLikelihood, columns: np.ndarray | None, noise: torch.Generator) -> Tensor:
        if isinstance(likelihood, NegativeBinomialMixture):
            rate = likelihood.rate
            foreground = select(rate.foreground_probability, columns)
            drawn = torch.rand(foreground.shape, dtype=foreground.dtype, device=foreground.device, generator=noise)
            mean = torch.where(drawn < foreground, select(rate.log_foreground.exp(), columns), 0.0)
        else:
            mean = select(likelihood.rate.scale, columns) * self.rna_size_factor
        if likelihood.theta is None:
            return mean
        theta = select(likelihood.theta, columns).clamp(*_THETA_RANGE).expand_as(mean)
        gamma = torch._standard_gamma(theta, generator=noise)  # pyright: ignore[reportPrivateImportUsage]
        return gamma / theta * mean


def feature_correlation(
    denoised: DenoisedFeatures,
    cells: Cells,
    *,
    counterfactuals: Sequence[Counterfactual] = (None,),
    n_samples: int = 10,
    correlation: CorrelationType = "spearman",
    seed: int = seeding.DEFAULT_SEED,
) -> np.ndarray:
    """Correlations between features of draws of denoised expression.

    Parameters
    ----------
    denoised
        What is drawn.
    cells
        Cells of the population.
    counterfactuals
        Covariate levels to decode under, ``(column, code)`` each; a correlation matrix is computed under each, and
        the matrices are averaged. ``None`` in it stands for the cells' own levels.
    n_samples
        Number of posterior draws per cell.
    correlation
        ``"spearman"`` (of ranks, ties averaged) or ``"pearson"``.
    seed
        Seed of the draws; the same draws serve all counterfactuals.

    Returns
    -------
    ndarray
        Symmetric, shape ``(features, features)``, float64. The diagonal is 1; a feature that does not vary has
        correlation 0 with others.

    Raises
    ------
    OptionError
        If ``correlation`` is neither of the two, or ranking needs more disk than there is.
    """
    correlate = choose("correlation_type", correlation, {"spearman": _spearman, "pearson": _pearson})
    n_features = denoised.n_features(cells)
    total = np.zeros((n_features, n_features))
    with evaluation(denoised.model):
        for counterfactual in counterfactuals:
            total += correlate(_Observations(denoised, cells, counterfactual, n_samples, seed), n_features)
    return total / len(counterfactuals)


@dataclass(frozen=True, eq=False)
class _Observations:
    """Draws of all cells; iterating yields float32 blocks ``(observations, features)``, the same each time."""

    denoised: DenoisedFeatures
    cells: Cells
    counterfactual: Counterfactual
    n_samples: int
    seed: int

    def __len__(self) -> int:
        return len(self.cells) * self.n_samples

    def __iter__(self) -> Iterator[np.ndarray]:
        model, cells = self.denoised.model, self.cells
        source = generator(self.seed, Stream.CORRELATION, cells.device)
        # Of its own: how many numbers a Gamma draw takes depends on theta, which a counterfactual may change.
        noise = generator(self.seed, Stream.CORRELATION_NOISE, cells.device)
        for _, batch in cells:
            q, runs = posterior(model, batch), sample_chunks(self.n_samples, batch.n_cells, cells.chunk)
            design = at_counterfactual(batch.design, self.counterfactual)
            for _, latents in draw_runs(model, q, source, runs):
                values = self.denoised.draw(latents, design, noise)
                yield values.reshape(-1, values.shape[-1]).cpu().numpy()


def _pearson(draws: _Observations, n_genes: int) -> np.ndarray:
    """Correlation from sums of products of deviations, merged block by block (Chan, Golub, LeVeque 1983)."""
    count = 0
    origin: np.ndarray | None = None
    mean, products = np.zeros(n_genes), np.zeros((n_genes, n_genes))
    for block in draws:
        if not len(block):
            continue
        # Measured from the first observation, a gene that does not vary is exactly zero throughout.
        if origin is None:
            origin = block[0].astype(np.float64)
        values = block - origin
        block_mean = values.mean(0)
        delta = block_mean - mean
        values -= block_mean
        products += values.T @ values
        # Both factors alike keeps the matrix symmetric to the last bit.
        shift = delta * math.sqrt(count * len(block) / (count + len(block)))
        products += np.outer(shift, shift)
        count += len(block)
        mean += delta * (len(block) / count)
    return _normalise(products)


def _spearman(draws: _Observations, n_genes: int) -> np.ndarray:
    """Pearson correlation of ranks."""
    from scipy.stats import rankdata  # slow to import, and only needed here

    n = len(draws)
    what = f"Ranking {n:,} draws of {n_genes:,} genes"
    with temporary_array((n_genes, n), what, "Use fewer genes or n_samples, correlation_type='pearson'") as values:
        start = 0
        for block in draws:
            values[:, start : start + len(block)] = block.T
            start += len(block)
        for rows in _steps(n_genes, 32 * n):
            # Centred by their known mean: multiples of one half, and sums of their products lose nothing.
            values[rows] = rankdata(values[rows], axis=1) - (n + 1) / 2
        products = np.zeros((n_genes, n_genes))
        for observations in _steps(n, 16 * n_genes):
            ranks = values[:, observations].astype(np.float64)
            products += ranks @ ranks.T
    return _normalise(products)


def _normalise(products: np.ndarray) -> np.ndarray:
    norms = np.sqrt(np.diagonal(products))
    inverse = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)
    products *= np.outer(inverse, inverse)
    np.clip(products, -1.0, 1.0, out=products)
    np.fill_diagonal(products, 1.0)
    return products


def _steps(n: int, bytes_each: int) -> Iterator[slice]:
    step = max(1, _WORK_BYTES // max(bytes_each, 1))
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))
