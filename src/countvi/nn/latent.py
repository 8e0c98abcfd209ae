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
    """

    loc: Tensor
    scale: Tensor
    event_dims: int = 1

    @classmethod
    def standard(cls, n_cells: int, n_dimensions: int, like: Tensor) -> Gaussian:
        """Return unit normals, ``(n_cells, n_dimensions)``, in the precision and on the device of a tensor."""
        loc = like.new_zeros(n_cells, n_dimensions)
        return cls(loc=loc, scale=torch.ones_like(loc))

    def where(self, mask: Tensor | None, other: Gaussian) -> Gaussian:
        """Return this distribution for cells in a mask ``(cells,)``, another one elsewhere; no mask is all cells."""
        if mask is None:
            return self
        mask = mask.unsqueeze(-1) if self.event_dims else mask
        loc, scale = torch.where(mask, self.loc, other.loc), torch.where(mask, self.scale, other.scale)
        return Gaussian(loc, scale, self.event_dims)

    def rsample(self, generator: torch.Generator | None = None, n_samples: int | None = None) -> Tensor:
        """Draw with gradients to ``loc`` and ``scale``.

        Returns
        -------
        Tensor
            The shape of ``loc``, with a leading axis of ``n_samples`` if that is given.
        """
        shape = self.loc.shape if n_samples is None else (n_samples, *self.loc.shape)
        noise = torch.randn(shape, generator=generator, dtype=self.loc.dtype, device=self.loc.device)
        return self.loc + self.scale * noise

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of ``(*samples, cells[, dimensions])``, shape ``(*samples, cells)``."""
        standard = (value - self.loc) / self.scale
        return self._sum(-0.5 * standard.square() - self.scale.log() - _HALF_LOG_2PI)

    def kl(self, prior: Gaussian) -> Tensor:
        """Kullback-Leibler divergence KL(self || prior) per cell, in nats, shape ``(cells,)``."""
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

    def rsample(self, generator: torch.Generator | None = None, n_samples: int | None = None) -> Tensor:
        """Return the value; it broadcasts over samples."""
        assert self.value is not None, "a prior without a value cannot be drawn from"
        return self.value

    def log_prob(self, value: Tensor) -> Tensor:
        """Zero: the value is conditioned on."""
        return torch.zeros_like(value)


Latent = Gaussian | Given
"""What a guide or prior may return for one latent variable."""
