"""What a run recorded, one row per epoch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from countvi.models.objective import Elbo


def sums_of(elbo: Elbo) -> dict[str, torch.Tensor]:
    """Sums of ELBO terms over the cells of a minibatch, without gradients; lower is better for each."""
    reconstruction, divergence = elbo.reconstruction.detach(), elbo.divergence.detach()
    terms = {"elbo": reconstruction + divergence, "reconstruction_loss": reconstruction, "kl_local": divergence}
    terms |= {f"kl_{name}": kl.detach() for name, kl in elbo.kl.items()}
    if len(elbo.log_lik) > 1:
        terms |= {f"reconstruction_loss_{name}": -value.detach() for name, value in elbo.log_lik.items()}
    # One sum for all of them: this runs in every step.
    sums = dict(zip(terms, torch.stack(list(terms.values())).sum(-1).unbind(), strict=True))
    if elbo.log_prior:
        log_prior = torch.stack([value.detach() for value in elbo.log_prior.values()])
        sums["kl_global"] = -log_prior.sum() * reconstruction.shape[-1]
    if elbo.penalty:
        penalty = torch.stack([value.detach() for value in elbo.penalty.values()])
        sums["penalty"] = penalty.sum() * reconstruction.shape[-1]
    return sums


@dataclass
class Tally:
    """Sums over the cells of an epoch, kept on the device until its end so that no step waits for them."""

    sums: dict[str, torch.Tensor] = field(default_factory=dict)
    n_cells: int = 0

    def add(self, sums: Mapping[str, torch.Tensor], n_cells: int) -> None:
        """Take in one minibatch."""
        for name, value in sums.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.n_cells += n_cells

    def means(self) -> dict[str, float]:
        """Mean of each term over cells, in nats."""
        return {name: float(total) / max(self.n_cells, 1) for name, total in self.sums.items()}


Row = dict[str, float]
"""One epoch: column name to value."""


def row_of(train: Mapping[str, float], validation: Mapping[str, float] | None, extra: Mapping[str, float]) -> Row:
    """Name the terms of an epoch as scvi-tools names them.

    ``elbo_*`` is the *negative* evidence lower bound per cell in nats, lower is better, with the KL term at full
    weight, as in scvi-tools. ``train_loss`` is what was descended: with the KL weight of the moment.
    """
    row: Row = {"train_loss": train["loss"]} if "loss" in train else {}
    row |= {f"{name}_train": value for name, value in train.items() if name != "loss"}
    if validation is not None:
        row |= {f"{name}_validation": value for name, value in validation.items()}
    return row | dict(extra)
