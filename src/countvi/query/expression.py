"""Expected expression: counts without the noise of sampling, at a depth and in a batch of choice."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from countvi import seeding
from countvi.batch import RNA, Batch, Design
from countvi.errors import OptionError
from countvi.likelihoods import AmbientRate, CountRate
from countvi.models._base import CountModel
from countvi.query.cells import Cells, OutputWriter, Writable, evaluation
from countvi.query.draws import (
    Counterfactual,
    RunningMean,
    Stream,
    at_counterfactual,
    draw,
    generator,
    posterior,
    posterior_mean,
    sample_chunks,
)
from countvi.query.importance import Importance, Proposals


@dataclass(frozen=True, eq=False)
class DecodedExpression:
    """Expression as a function of latent variables; for the fields see :func:`normalized_expression`."""

    model: CountModel
    modality: str
    genes: Tensor | None = None
    counterfactuals: Sequence[Counterfactual] = (None,)
    library_size: float | None = 1.0
    background: bool = False

    def __call__(self, latents: Any, design: Design) -> Tensor:
        """Return expression averaged over counterfactuals, ``(*samples, cells, genes)``."""
        total: Tensor | None = None
        for counterfactual in self.counterfactuals:
            rate = self.model.generate(latents, at_counterfactual(design, counterfactual))[self.modality].rate
            values = self._mean(rate) if self.library_size is None else self._scale(rate)
            values = values if self.genes is None else values.index_select(-1, self.genes)
            total = values if total is None else total + values
        assert total is not None, "an average over no counterfactual"
        # Scaled once, after the sum: a factor inside the loop would be easy to apply again and again.
        factor = (1.0 if self.library_size is None else self.library_size) / len(self.counterfactuals)
        return total if factor == 1.0 else total * factor

    def _mean(self, rate: CountRate) -> Tensor:
        if isinstance(rate, AmbientRate) and not self.background:
            return rate.mean * rate.own_share
        return rate.mean

    def _scale(self, rate: CountRate) -> Tensor:
        if isinstance(rate, AmbientRate) and self.background:
            return rate.scale_with_background
        return rate.scale


def normalized_expression(
    model: CountModel,
    cells: Cells,
    *,
    modality: str = RNA,
    genes: np.ndarray | None = None,
    counterfactuals: Sequence[Counterfactual] = (None,),
    library_size: float | None = 1.0,
    n_samples: int = 1,
    return_mean: bool = True,
    use_z_mean: bool = False,
    background: bool = False,
    importance: Importance | None = None,
    seed: int = seeding.DEFAULT_SEED,
    out: Writable | None = None,
) -> Any:
    """Expected expression of each cell.

    Cells are encoded as they are and decoded under each counterfactual; the same draws serve all counterfactuals.

    Parameters
    ----------
    model
        The model.
    cells
        Cells to decode.
    modality
        Which of the model's modalities.
    genes
        Columns of the counts to return, in this order; ``None`` for all.
    counterfactuals
        Covariate levels to decode under, ``(column, code)`` each; the results are averaged. ``None`` in it stands for
        the cells' own levels.
    library_size
        Multiplies the expected frequencies. They sum to one over all genes of a cell, unless the model has size
        factors: its decoder then ends in a softplus, and the numbers are relative to the size factor. ``None``
        decodes at the cell's own library size or size factor, which gives the expected counts of the negative
        binomial, before dropout.
    n_samples
        Number of posterior draws per cell.
    return_mean
        Average over the draws.
    use_z_mean
        Decode the posterior mean of z instead of draws of it, at the posterior mean of the library size. Deterministic;
        ``n_samples`` and ``seed`` play no part.
    background
        Add the ambient background of a model that has one.
    importance
        Take the posterior itself, by importance sampling, rather than the guide: a mean over several draws weighs
        them, and draws are drawn again by their weights. There are at least as many proposals as draws.
    seed
        Seed of the draws.
    out
        Array to write into, of the shape of the result, instead of a new one.

    Returns
    -------
    array
        ``out``, or a float32 ndarray: ``(cells, genes)``, or ``(samples, cells, genes)`` if more than one sample is
        drawn and not averaged.

    Raises
    ------
    OptionError
        If ``out`` does not have that shape or cannot hold fractions. Raised before anything is computed.
    """
    columns = None if genes is None else torch.as_tensor(np.asarray(genes), dtype=torch.int64, device=cells.device)
    n_genes = cells.n_features(modality) if columns is None else columns.shape[0]
    averaged = return_mean or use_z_mean or n_samples == 1
    writer = OutputWriter((len(cells), n_genes) if averaged else (n_samples, len(cells), n_genes), out)
    expression = DecodedExpression(model, modality, columns, counterfactuals, library_size, background)
    source = generator(seed, Stream.EXPRESSION, cells.device)
    with evaluation(model):
        for block, batch in cells:
            if use_z_mean:
                writer.write(expression(posterior_mean(posterior(model, batch)), batch.design), block)
                continue
            weighted = None if importance is None else _proposals(model, batch, importance, n_samples, cells, source)
            if weighted is not None and averaged and n_samples > 1:
                writer.write(_weighted_mean(expression, batch, weighted, cells.chunk), block)
            elif weighted is None and averaged:
                writer.write(_mean_over_draws(expression, batch, n_samples, cells.chunk, source), block)
            else:
                q = posterior(model, batch)
                for run in sample_chunks(n_samples, batch.n_cells, cells.chunk):
                    n = run.stop - run.start
                    latents = draw(model, q, source, n) if weighted is None else weighted.drawn(n, source)
                    values = expression(latents, batch.design)
                    writer.write(values[0] if averaged else values, *(() if averaged else (run,)), block)
    return writer.out


def sampled_expression(
    model: CountModel,
    cells: Cells,
    *,
    n_samples_overall: int,
    modality: str = RNA,
    genes: np.ndarray | None = None,
    counterfactuals: Sequence[Counterfactual] = (None,),
    library_size: float | None = 1.0,
    background: bool = False,
    importance: Importance | None = None,
    seed: int = seeding.DEFAULT_SEED,
    out: Writable | None = None,
) -> Any:
    """Expected expression of a population: cells drawn with replacement, one posterior draw for each.

    Only the cells that were drawn are encoded and decoded.

    Parameters
    ----------
    model, cells, modality, genes, counterfactuals, library_size, background, importance, seed, out
        As in :func:`normalized_expression`.
    n_samples_overall
        Number of draws.

    Returns
    -------
    array
        ``out``, or a float32 ndarray, shape ``(n_samples_overall, genes)``. Rows are independent draws in no order.

    Raises
    ------
    OptionError
        If there are no cells to draw from, or ``out`` does not fit.
    """
    if not len(cells):
        message = f"Drawing {n_samples_overall:,} cells needs at least one cell to draw from; none is selected."
        raise OptionError(message)
    source = generator(seed, Stream.RESAMPLED_CELLS)
    chosen = torch.randint(len(cells), (n_samples_overall,), generator=source).numpy()
    return normalized_expression(
        model,
        dataclasses.replace(cells, rows=cells.rows[chosen]),
        modality=modality,
        genes=genes,
        counterfactuals=counterfactuals,
        library_size=library_size,
        background=background,
        importance=importance,
        seed=seed,
        out=out,
    )


def _mean_over_draws(
    expression: DecodedExpression, batch: Batch, n_samples: int, chunk: int, source: torch.Generator
) -> Tensor:
    q = posterior(expression.model, batch)
    mean = RunningMean()
    for run in sample_chunks(n_samples, batch.n_cells, chunk):
        mean.add(expression(draw(expression.model, q, source, run.stop - run.start), batch.design))
    return mean.result()


def _proposals(
    model: CountModel, batch: Batch, importance: Importance, n_samples: int, cells: Cells, source: torch.Generator
) -> Proposals:
    enough = dataclasses.replace(importance, n_proposals=max(n_samples, importance.n_proposals))
    return Proposals.of(model, batch, enough, cells.chunk, source)


def _weighted_mean(expression: DecodedExpression, batch: Batch, proposals: Proposals, chunk: int) -> Tensor:
    total: Tensor | None = None
    for run in sample_chunks(proposals.weights.shape[0], batch.n_cells, chunk):
        values = expression(proposals.at(run), batch.design)
        part = (values * proposals.weights[run].unsqueeze(-1)).sum(0)
        total = part if total is None else total + part
    assert total is not None, "no proposals"
    return total
