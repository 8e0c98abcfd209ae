"""Distributions of latent variables: what a guide or a prior returns.

Small on purpose. ``torch.distributions`` draws from the global stream, validates its arguments with a reduction per
object, and finds divergences in a registry; a Gaussian needs none of it.
"""

from __future__ import annotations

import math
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
