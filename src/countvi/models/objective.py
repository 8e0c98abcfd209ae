"""The evidence lower bound, and the only place that averages over cells or divides by their number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

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
    """

    log_lik: Mapping[str, Tensor]
    kl: Mapping[str, Tensor]
    log_prior: Mapping[str, Tensor] = field(default_factory=dict)

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

    def loss(self, elbo: Elbo, kl_weight: float) -> Tensor:
        """Negative (annealed) evidence lower bound per cell, a scalar."""
        loss = elbo.reconstruction.mean()
        for name, kl in elbo.kl.items():
            loss = loss + (kl_weight if name in self.annealed else 1.0) * kl.mean()
        for log_prior in elbo.log_prior.values():
            loss = loss - log_prior / self.n_cells
        return loss


def _total(terms: Mapping[str, Tensor]) -> Tensor:
    return torch.stack(list(terms.values())).sum(0) if len(terms) > 1 else next(iter(terms.values()))
