"""Correlations between genes in what the model says about a population of cells.

The observations are posterior draws of all cells, cells times samples of them. Pearson correlations stream over them;
ranks need all observations of a gene at once, so they are kept, on disk when they are many.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from countvi import seeding
from countvi.batch import RNA
from countvi.errors import choose
from countvi.likelihoods import CountLikelihood, NegativeBinomialMixture
from countvi.models._base import CountModel
from countvi.query.cells import Cells, evaluation
from countvi.query.draws import Counterfactual, Stream, at_counterfactual, draw, generator, posterior, sample_chunks
from countvi.query.temporary import temporary_array

# What ranking and multiplying hold at once.
_WORK_BYTES = 64 * 2**20
# Between these, Gamma(theta) / theta neither overflows nor underflows; beyond the upper one it is 1 to float32's last
# digit.
_THETA_RANGE = (1e-30, 1e15)

CorrelationType = Literal["spearman", "pearson"]


def feature_correlation(
    model: CountModel,
    cells: Cells,
    *,
    modality: str = RNA,
    genes: np.ndarray | None = None,
    rna_size_factor: float = 1000.0,
    counterfactuals: Sequence[Counterfactual] = (None,),
    n_samples: int = 10,
    correlation: CorrelationType = "spearman",
    seed: int = seeding.DEFAULT_SEED,
) -> np.ndarray:
    """Correlations between genes of draws of denoised expression.

    With negative binomial counts (zero-inflated or not), denoised expression is the rate of the Poisson from which a
    count is drawn: a Gamma variable of shape theta and mean ``rna_size_factor`` times the expected frequency. So it
    has the biological overdispersion, and neither counting noise nor dropout. With Poisson and normal likelihoods,
    which have no such variable, it is ``rna_size_factor`` times the expected frequency itself.

    Parameters
    ----------
    model
        The model.
    cells
        Cells of the population.
    modality
        Which of the model's modalities.
    genes
        Columns of the counts to correlate, in this order; ``None`` for all.
    rna_size_factor
        Library size at which cells are decoded.
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
        Symmetric, shape ``(genes, genes)``, float64. The diagonal is 1; a gene that does not vary has correlation 0
        with others.

    Raises
    ------
    OptionError
        If ``correlation`` is neither of the two, or ranking needs more disk than there is.
    """
    return joint_correlation(
        model,
        cells,
        {modality: genes},
        rna_size_factor=rna_size_factor,
        counterfactuals=counterfactuals,
        n_samples=n_samples,
        correlation=correlation,
        seed=seed,
    )


def joint_correlation(
    model: CountModel,
    cells: Cells,
    features: Mapping[str, np.ndarray | None],
    *,
    rna_size_factor: float = 1000.0,
    counterfactuals: Sequence[Counterfactual] = (None,),
    n_samples: int = 10,
    correlation: CorrelationType = "spearman",
    log_transform: bool = False,
    seed: int = seeding.DEFAULT_SEED,
) -> np.ndarray:
    """Correlations between features of several modalities; see :func:`feature_correlation`.

    Of proteins the foreground is taken, without the background: zero where a draw says that the counts are background,
    else a Gamma variable around the foreground mean.

    Parameters
    ----------
    features
        Columns of each modality, in this order; ``None`` for all.
    log_transform
        Correlate log(1 + x).
    model, cells, rna_size_factor, counterfactuals, n_samples, correlation, seed
        As in :func:`feature_correlation`.
    """
    correlate = choose("correlation_type", correlation, {"spearman": _spearman, "pearson": _pearson})
    columns = {
        name: None if wanted is None else torch.as_tensor(np.asarray(wanted), dtype=torch.int64, device=cells.device)
        for name, wanted in features.items()
    }
    sizes = (cells.n_features(name) if wanted is None else len(wanted) for name, wanted in columns.items())
    n_features = sum(sizes)
    total = np.zeros((n_features, n_features))
    for counterfactual in counterfactuals:
        draws = _DenoisedDraws(model, cells, columns, rna_size_factor, counterfactual, n_samples, seed, log_transform)
        total += correlate(draws, n_features)
    return total / len(counterfactuals)


@dataclass(frozen=True, eq=False)
class _DenoisedDraws:
    """Denoised draws of all cells; iterating yields float32 blocks ``(observations, genes)``, the same in each pass."""

    model: CountModel
    cells: Cells
    columns: Mapping[str, Tensor | None]
    size: float
    counterfactual: Counterfactual
    n_samples: int
    seed: int
    log_transform: bool = False

    def __len__(self) -> int:
        return len(self.cells) * self.n_samples

    def __iter__(self) -> Iterator[np.ndarray]:
        source = generator(self.seed, Stream.CORRELATION, self.cells.device)
        # Of its own: how many numbers a Gamma draw takes depends on theta, which a counterfactual may change.
        noise = generator(self.seed, Stream.CORRELATION_NOISE, self.cells.device)
        for _, batch in self.cells:
            # Entered for each block: a generator that is left suspended must not keep the model in evaluation mode.
            with evaluation(self.model):
                q = posterior(self.model, batch)
            design = at_counterfactual(batch.design, self.counterfactual)
            for run in sample_chunks(self.n_samples, batch.n_cells, self.cells.chunk):
                with evaluation(self.model):
                    latents = draw(self.model, q, source, run.stop - run.start)
                    likelihoods = self.model.generate(latents, design)
                    parts = [self._denoised(likelihoods[name], at, noise) for name, at in self.columns.items()]
                    values = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
                    values = values.log1p() if self.log_transform else values
                yield values.reshape(-1, values.shape[-1]).cpu().numpy()

    def _denoised(self, likelihood: CountLikelihood, columns: Tensor | None, noise: torch.Generator) -> Tensor:
        def select(values: Tensor) -> Tensor:
            return values if columns is None else values.index_select(-1, columns)

        if isinstance(likelihood, NegativeBinomialMixture):
            rate = likelihood.rate
            foreground = select(rate.foreground_probability)
            drawn = torch.rand(foreground.shape, dtype=foreground.dtype, device=foreground.device, generator=noise)
            mean = torch.where(drawn < foreground, select(rate.log_foreground.exp()), 0.0)
        else:
            mean = select(likelihood.rate.scale) * self.size
        if likelihood.theta is None:
            return mean
        theta = select(likelihood.theta).clamp(*_THETA_RANGE).expand_as(mean)
        gamma = torch._standard_gamma(theta, generator=noise)  # pyright: ignore[reportPrivateImportUsage]
        return gamma / theta * mean


def _pearson(draws: _DenoisedDraws, n_genes: int) -> np.ndarray:
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


def _spearman(draws: _DenoisedDraws, n_genes: int) -> np.ndarray:
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
