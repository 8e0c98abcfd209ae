"""The evidence lower bound, and the only place that averages over cells or divides by their number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Elbo:
    """The terms of the evidence lower bound of a minibatch, in nats, larger is better.

    Parameters
    ----------
    log_lik
        Log-likelihood of each cell, summed over features, per modality; shape ``(cells,)`` each.
    kl
        KL(q || p) of each cell per latent variable, named by the paper's letter; shape ``(cells,)`` each.
    log_prior
        Log-prior of each global variable; one number each, for the whole data set.
    penalty
        Penalty of each global variable, smaller is better; one number each, for every cell.
    weight
        What each cell counts in the objective, shape ``(cells,)``; ``None`` for one each. It is no part of the bound.
    latents
        The draw of the latent variables that the terms were computed from, as the model names them.
    """

    log_lik: Mapping[str, Tensor]
    kl: Mapping[str, Tensor]
    log_prior: Mapping[str, Tensor] = field(default_factory=dict)
    penalty: Mapping[str, Tensor] = field(default_factory=dict)
    weight: Tensor | None = None
    latents: Any = None

    @property
    def reconstruction(self) -> Tensor:
        """Negative log-likelihood per cell, all modalities, shape ``(cells,)``."""
        return -_total(self.log_lik)

    @property
    def divergence(self) -> Tensor:
        """KL divergence per cell, all latent variables, shape ``(cells,)``."""
        return _total(self.kl)

    @property
    def per_cell(self) -> Tensor:
        """Evidence lower bound per cell without global terms, shape ``(cells,)``."""
        return -(self.reconstruction + self.divergence)


@dataclass(frozen=True)
class Objective:
    """The loss that training descends.

    Parameters
    ----------
    n_cells
        Number of training cells, by which global terms are divided: each counts once per pass over the data.
    annealed
        Latent variables whose KL the warm-up weights; the others always count in full.
    """

    n_cells: int
    annealed: frozenset[str]

    def loss(self, elbo: Elbo, kl_weight: float | Tensor) -> Tensor:
        """Negative (annealed) evidence lower bound per cell, a scalar."""

        def mean(values: Tensor) -> Tensor:
            return values.mean() if elbo.weight is None else (elbo.weight * values).mean()

        loss = mean(elbo.reconstruction)
        for name, kl in elbo.kl.items():
            loss = loss + (kl_weight if name in self.annealed else 1.0) * mean(kl)
        for log_prior in elbo.log_prior.values():
            loss = loss - log_prior / self.n_cells
        for penalty in elbo.penalty.values():
            loss = loss + penalty
        return loss


def _total(terms: Mapping[str, Tensor]) -> Tensor:
    return torch.stack(list(terms.values())).sum(0) if len(terms) > 1 else next(iter(terms.values()))
