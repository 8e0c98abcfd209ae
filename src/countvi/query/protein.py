"""Proteins: foreground, background, and how likely each is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from countvi import seeding
from countvi.batch import PROTEIN, RNA, Design
from countvi.errors import OptionError
from countvi.likelihoods import MixtureRate
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


@dataclass(frozen=True, eq=False)
class Denoised:
    r"""Expression of proteins as a function of latent variables, :math:`(1 - \pi) \beta \alpha`.

    Parameters
    ----------
    background
        Add :math:`\pi \beta`.
    normalise
        Divide by the sum over all proteins of a cell.
    mixing
        Draw whether each count is background from this stream, instead of weighting by the probability; ``None`` for
        the probability.
    exact
        Average over the background :math:`\beta` given z, rather than take its draw.
    """

    background: bool = False
    normalise: bool = False
    mixing: torch.Generator | None = None
    exact: bool = True

    def __call__(self, rate: MixtureRate) -> Tensor:
        """Return expression, ``(*samples, cells, proteins)``."""
        log_low = rate.log_expected_background if self.exact else rate.log_background
        pi = rate.pi_logits.sigmoid()
        if self.mixing is not None:
            uniform = torch.rand(pi.shape, dtype=pi.dtype, device=pi.device, generator=self.mixing)
            pi = (uniform < pi).to(pi.dtype)
            own = 1.0 - pi
        else:
            own = rate.foreground_probability
        values = own * (log_low + rate.log_alpha).exp()
        if self.background:
            values = values + pi * log_low.exp()
        return functional.normalize(values, p=1.0, dim=-1) if self.normalise else values


def foreground(rate: MixtureRate) -> Tensor:
    """Return the probability of foreground, ``(*samples, cells, proteins)``."""
    return rate.foreground_probability


def expected_background(rate: MixtureRate) -> Tensor:
    """Return expected background counts, ``(*samples, cells, proteins)``."""
    return rate.log_expected_background.exp()


@dataclass(frozen=True, eq=False)
class _Averaged:
    """Something of proteins under counterfactuals, as a function of latent variables."""

    model: CountModel
    compute: Callable[[MixtureRate], Tensor]
    proteins: Tensor | None
    counterfactuals: Sequence[Counterfactual]

    def __call__(self, latents: Any, design: Design) -> Tensor:
        """Return its mean over counterfactuals, ``(*samples, cells, proteins)``."""
        total: Tensor | None = None
        for counterfactual in self.counterfactuals:
            rate = self.model.generate(latents, at_counterfactual(design, counterfactual))[PROTEIN].rate
            assert isinstance(rate, MixtureRate)
            values = self.compute(rate)
            total = values if total is None else total + values
        assert total is not None, "an average over no counterfactual"
        total = total / len(self.counterfactuals)
        return total if self.proteins is None else total.index_select(-1, self.proteins)


def protein_readout(
    model: CountModel,
    cells: Cells,
    compute: Callable[[MixtureRate], Tensor],
    *,
    proteins: np.ndarray | None = None,
    counterfactuals: Sequence[Counterfactual] = (None,),
    n_samples: int = 1,
    return_mean: bool = True,
    use_z_mean: bool = False,
    seed: int = seeding.DEFAULT_SEED,
    out: Writable | None = None,
) -> Any:
    """Something of the proteins of each cell, over the same posterior draws as the expression of RNA.

    Parameters
    ----------
    model
        A model with proteins.
    cells
        Cells to decode.
    compute
        What: a function of the decoded means.
    proteins
        Columns to return, in this order; ``None`` for all.
    counterfactuals, n_samples, return_mean, use_z_mean, seed, out
        As in :func:`countvi.query.expression.normalized_expression`.

    Returns
    -------
    array
        ``out``, or a float32 ndarray: ``(cells, proteins)``, or ``(samples, cells, proteins)`` if more than one sample
        is drawn and not averaged.
    """
    columns = (
        None if proteins is None else torch.as_tensor(np.asarray(proteins), dtype=torch.int64, device=cells.device)
    )
    n_proteins = cells.n_features(PROTEIN) if columns is None else columns.shape[0]
    averaged = return_mean or use_z_mean or n_samples == 1
    writer = OutputWriter((len(cells), n_proteins) if averaged else (n_samples, len(cells), n_proteins), out)
    what = _Averaged(model, compute, columns, counterfactuals)
    source = generator(seed, Stream.EXPRESSION, cells.device)
    with evaluation(model):
        for block, batch in cells:
            q = posterior(model, batch)
            if use_z_mean:
                writer.write(what(posterior_mean(q), batch.design), block)
                continue
            mean = RunningMean()
            for run in sample_chunks(n_samples, batch.n_cells, cells.chunk):
                values = what(draw(model, q, source, run.stop - run.start), batch.design)
                if averaged:
                    mean.add(values)
                else:
                    writer.write(values, run, block)
            if averaged:
                writer.write(mean.result(), block)
    return writer.out


def protein_expression(
    model: CountModel,
    cells: Cells,
    *,
    background: bool = False,
    normalise: bool = False,
    sample_mixing: bool = False,
    n_samples: int = 1,
    n_samples_overall: int | None = None,
    return_mean: bool = True,
    seed: int = seeding.DEFAULT_SEED,
    **arguments: Any,
) -> Any:
    r"""Denoised expression of proteins, the posterior mean (or draws) of :math:`(1 - \pi) \beta \alpha`.

    Parameters
    ----------
    model, cells, n_samples, return_mean, seed
        As in :func:`protein_readout`, and so are further arguments. Means are exact over the background given z;
        separate draws have drawn backgrounds.
    background, normalise
        See :class:`Denoised`.
    sample_mixing
        Draw whether each count is background, instead of weighting by the probability.
    n_samples_overall
        Draw so many cells with replacement, the same as :func:`countvi.query.expression.sampled_expression` draws with
        that seed.

    Returns
    -------
    array
        As of :func:`protein_readout`, or ``(n_samples_overall, proteins)``.

    Raises
    ------
    OptionError
        If there are no cells to draw from, or ``out`` does not fit.
    """
    if n_samples_overall is not None:
        cells, n_samples = resampled(cells, n_samples_overall, seed), 1
    drawn = n_samples_overall is not None or not (return_mean or n_samples == 1)
    mixing = mixing_stream(seed, cells.device) if sample_mixing else None
    compute = Denoised(background, normalise, mixing, exact=not drawn)
    return protein_readout(model, cells, compute, n_samples=n_samples, return_mean=return_mean, seed=seed, **arguments)


def foreground_probability(model: CountModel, cells: Cells, **arguments: Any) -> Any:
    """Probability that a count of each protein is foreground; arguments as of :func:`protein_readout`."""
    return protein_readout(model, cells, foreground, **arguments)


def background_mean(model: CountModel, cells: Cells, **arguments: Any) -> Any:
    """Expected background counts of each protein; arguments as of :func:`protein_readout`."""
    return protein_readout(model, cells, expected_background, **arguments)


def resampled(cells: Cells, n: int, seed: int) -> Cells:
    """Draw cells with replacement.

    Raises
    ------
    OptionError
        If there are none to draw from.
    """
    if not len(cells):
        message = f"Drawing {n:,} cells needs at least one cell to draw from; none is selected."
        raise OptionError(message)
    chosen = torch.randint(len(cells), (n,), generator=generator(seed, Stream.RESAMPLED_CELLS)).numpy()
    return dataclasses.replace(cells, rows=cells.rows[chosen])


@dataclass(frozen=True, eq=False)
class SideBySide:
    """Expected frequencies of genes, expression of proteins, or both, as a function of latent variables.

    Parameters
    ----------
    model
        A model with proteins.
    rna
        Take the genes.
    protein
        How to take the proteins; ``None`` leaves them out.
    """

    model: CountModel
    rna: bool = True
    protein: Denoised | None = None

    def __call__(self, latents: Any, design: Design) -> Tensor:
        """Return expression, ``(*samples, cells, features)``, genes first."""
        likelihoods = self.model.generate(latents, design)
        parts = [likelihoods[RNA].rate.scale] if self.rna else []
        if self.protein is not None:
            rate = likelihoods[PROTEIN].rate
            assert isinstance(rate, MixtureRate)
            parts.append(self.protein(rate))
        return torch.cat(parts, dim=-1)


def mixing_stream(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return the stream that decides which counts of proteins are background."""
    return generator(seed, Stream.PROTEIN_MIXING, device)
