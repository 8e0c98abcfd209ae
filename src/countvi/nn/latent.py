"""Distributions of latent variables: what a guide or a prior returns.

Small on purpose. ``torch.distributions`` draws from the global stream, validates its arguments with a reduction per
object, and finds divergences in a registry; a Gaussian needs none of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from countvi import ops

_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


@dataclass(frozen=True, eq=False)
class Gaussian:
    """Independent normals.

    Parameters
    ----------
    loc, scale
        Mean and standard deviation, ``(cells, dimensions)``, or ``(cells,)`` for a single number per cell.
    event_dims
        How many trailing axes belong to one draw: 1 for a vector per cell, 0 for a number per cell.
    is_standard
        Whether these are unit normals, which a divergence from them need not find out.
    """

    loc: Tensor
    scale: Tensor
    event_dims: int = 1
    is_standard: bool = False

    @classmethod
    def standard(cls, n_cells: int, n_dimensions: int, like: Tensor) -> Gaussian:
        """Return unit normals, ``(n_cells, n_dimensions)``, in the precision and on the device of a tensor."""
        shape = (n_cells, n_dimensions)
        return cls(loc=like.new_zeros(()).expand(shape), scale=like.new_ones(()).expand(shape), is_standard=True)

    def where(self, mask: Tensor | None, other: Gaussian) -> Gaussian:
        """Return this distribution for cells in a mask ``(cells,)``, another one elsewhere; no mask is all cells."""
        if mask is None:
            return self
        mask = mask.unsqueeze(-1) if self.event_dims else mask
        loc, scale = torch.where(mask, self.loc, other.loc), torch.where(mask, self.scale, other.scale)
        return Gaussian(loc, scale, self.event_dims)

    def cells(self, index: Tensor) -> Gaussian:
        """Return the distribution of some of the cells, at positions ``index``, repeats allowed."""
        return Gaussian(self.loc.index_select(0, index), self.scale.index_select(0, index), self.event_dims)

    def rsample(self, generator: torch.Generator | None = None, n_samples: int | None = None) -> Tensor:
        """Draw with gradients to ``loc`` and ``scale``.

        Returns
        -------
        Tensor
            The shape of ``loc``, with a leading axis of ``n_samples`` if that is given.
        """
        shape = self.loc.shape if n_samples is None else (n_samples, *self.loc.shape)
        noise = torch.randn(shape, generator=generator, dtype=self.loc.dtype, device=self.loc.device)
        return torch.addcmul(self.loc, self.scale, noise)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of ``(*samples, cells[, dimensions])``, shape ``(*samples, cells)``."""
        standard = (value - self.loc) / self.scale
        return self._sum(-0.5 * standard.square() - self.scale.log() - _HALF_LOG_2PI)

    def kl(self, prior: Gaussian) -> Tensor:
        """Kullback-Leibler divergence KL(self || prior) per cell, in nats, shape ``(cells,)``."""
        if prior.is_standard and self.event_dims:
            return ops.standard_divergence(self.loc, self.scale)
        ratio = self.scale / prior.scale
        shift = (self.loc - prior.loc) / prior.scale
        return self._sum(0.5 * (ratio.square() + shift.square() - 1.0) - ratio.log())

    def _sum(self, terms: Tensor) -> Tensor:
        return terms.sum(-1) if self.event_dims else terms


def side_by_side(parts: Sequence[Gaussian]) -> Gaussian:
    """Return the joint distribution of independent vectors, or numbers, of each cell: ``(cells, dimensions)``."""
    columns = [(p.loc, p.scale) if p.event_dims else (p.loc.unsqueeze(-1), p.scale.unsqueeze(-1)) for p in parts]
    loc, scale = (torch.cat(tensors, dim=-1) for tensors in zip(*columns, strict=True))
    return Gaussian(loc, scale)


@dataclass(frozen=True, eq=False)
class Given:
    """A quantity that is known, not inferred: an observed library size, a size factor.

    It has no divergence from a prior, and as a prior it carries no value: what is given has no distribution.
    """

    value: Tensor | None = None

    def cells(self, index: Tensor) -> Given:
        """Return the values of some of the cells, at positions ``index``, repeats allowed."""
        return Given(None if self.value is None else self.value.index_select(0, index))

    def rsample(self, generator: torch.Generator | None = None, n_samples: int | None = None) -> Tensor:
        """Return the value; it broadcasts over samples."""
        assert self.value is not None, "a prior without a value cannot be drawn from"
        return self.value

    def log_prob(self, value: Tensor) -> Tensor:
        """Zero: the value is conditioned on."""
        return torch.zeros_like(value)


@dataclass(frozen=True, eq=False)
class Point:
    """A point estimate: all mass at one value.

    Its divergence from a prior is taken as minus the log-density there, which is that of a penalised likelihood.

    Parameters
    ----------
    value
        Shape ``(cells, ...)``.
    """

    value: Tensor

    @property
    def loc(self) -> Tensor:
        """Its mean, which is the value."""
        return self.value

    def cells(self, index: Tensor) -> Point:
        """Return the values of some of the cells, at positions ``index``, repeats allowed."""
        return Point(self.value.index_select(0, index))

    def rsample(self, generator: torch.Generator | None = None, n_samples: int | None = None) -> Tensor:
        """Return the value; every draw is the same."""
        return self.value if n_samples is None else self.value.expand(n_samples, *self.value.shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Zero: a point has no entropy to speak of."""
        return _zeros_per_cell(self.value)


@dataclass(frozen=True, eq=False)
class Flat:
    """No preference: a prior of density one everywhere, proper or not."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Zero for each cell."""
        return _zeros_per_cell(value)


@dataclass(frozen=True, eq=False)
class MixtureOfGaussians:
    """A mixture for each cell, or for each of several vectors of a cell; what is observed is their joint density.

    Parameters
    ----------
    loc, scale
        Means and standard deviations of the components, ``(..., components, dimensions)``, where ``...`` is
        ``(cells,)``, ``(cells, vectors)`` or what broadcasts to it.
    log_weights
        Logarithms of the weights, ``-inf`` allowed, ``(..., components)``.
    n_vectors
        How many axes of vectors a draw has: 0 for one vector per cell, 1 for several.
    power
        What the density is raised to.
    """

    loc: Tensor
    scale: Tensor
    log_weights: Tensor
    n_vectors: int = 0
    power: float = 1.0

    def rsample(self, generator: torch.Generator | None = None, n_samples: int | None = None) -> Tensor:
        """Draw (without gradients through the choice of a component), the shape of ``loc`` without components."""
        shape = self.loc.shape[:-2] if n_samples is None else (n_samples, *self.loc.shape[:-2])
        weights = self.log_weights.exp().expand(*shape, -1).reshape(-1, self.log_weights.shape[-1])
        chosen = torch.multinomial(weights, 1, generator=generator).view(*shape, 1, 1)
        where = chosen.expand(*shape, 1, self.loc.shape[-1])
        loc = self.loc.expand(*shape, -1, -1).gather(-2, where).squeeze(-2)
        scale = self.scale.expand(*shape, -1, -1).gather(-2, where).squeeze(-2)
        return loc + scale * torch.randn(loc.shape, generator=generator, dtype=loc.dtype, device=loc.device)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of ``(*samples, cells[, vectors], dimensions)``, shape ``(*samples, cells)``."""
        standard = (value.unsqueeze(-2) - self.loc) / self.scale
        terms = (-0.5 * standard.square() - self.scale.log() - _HALF_LOG_2PI).sum(-1) + self.log_weights
        density = terms.logsumexp(-1)
        density = density.sum(-1) if self.n_vectors else density
        return density if self.power == 1.0 else self.power * density


Latent = Gaussian | Given | Point
"""What a guide may return for one latent variable."""
Prior = Gaussian | Given | Flat | MixtureOfGaussians
"""What a prior may return for one latent variable."""


def divergence(q: Latent, p: Prior, value: Tensor) -> Tensor:
    """KL(q || p) per cell, in nats, shape ``(cells,)``.

    Parameters
    ----------
    q, p
        Of the guide and of the prior.
    value
        A draw from q. The divergence of two Gaussians is a formula; any other is estimated from the draw.
    """
    if isinstance(q, Gaussian) and isinstance(p, Gaussian):
        return q.kl(p)
    return q.log_prob(value) - p.log_prob(value)


def _zeros_per_cell(value: Tensor) -> Tensor:
    return value.new_zeros(value.shape[:1])
