"""Proteins as functions of latent variables: foreground, background, and how likely each is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from countvi.batch import PROTEIN, RNA, Design
from countvi.likelihoods.mixture_rate import MixtureRate
from countvi.models.count_model import CountModel
from countvi.query.cells import Cells, select
from countvi.query.draws import Counterfactual, Stream, generator, summed
from countvi.query.shares import expected_shares


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
        Average over the background :math:`\beta` given z, rather than take its draw. With ``normalise``, the average is
        that of the quotient.
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
        if self.exact and self.normalise:
            factor = own * rate.log_alpha.exp() + (pi if self.background else 0.0)
            # An efficiency is the same for all draws of the background, so it belongs to the mean of the logarithm.
            return expected_shares(rate.log_median_background + factor.log(), rate.scale_of_log)
        values = own * (log_low + rate.log_alpha).exp()
        if self.background:
            values = values + pi * log_low.exp()
        return functional.normalize(values, p=1.0, dim=-1) if self.normalise else values


def foreground_probability(rate: MixtureRate) -> Tensor:
    """Return the probability of foreground, ``(*samples, cells, proteins)``."""
    return rate.foreground_probability


def expected_background(rate: MixtureRate) -> Tensor:
    """Return expected background counts, ``(*samples, cells, proteins)``."""
    return rate.log_expected_background.exp()


@dataclass(frozen=True, eq=False)
class DecodedProteins:
    """Something of proteins as a function of latent variables; see :func:`countvi.query.expectation`.

    Parameters
    ----------
    model
        A model with proteins.
    compute
        What, from the decoded means: :class:`Denoised`, :func:`foreground_probability`, :func:`expected_background`.
    proteins
        Columns to return, in this order; ``None`` for all.
    counterfactuals
        Covariate levels to decode under, ``(column, code)`` each; the results are averaged. ``None`` in it stands for
        the cells' own levels.
    """

    model: CountModel
    compute: Callable[[MixtureRate], Tensor]
    proteins: np.ndarray | None = None
    counterfactuals: Sequence[Counterfactual] = (None,)

    def n_features(self, cells: Cells) -> int:
        """Number of proteins."""
        return cells.n_features(PROTEIN, self.proteins)

    def __call__(self, latents: Any, design: Design) -> Tensor:
        """Return its mean over counterfactuals, ``(*samples, cells, proteins)``."""

        def decode(design: Design) -> Tensor:
            rate = self.model.generate(latents, design)[PROTEIN].rate
            assert isinstance(rate, MixtureRate)
            return self.compute(rate)

        return select(summed(decode, design, self.counterfactuals) / len(self.counterfactuals), self.proteins)


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
