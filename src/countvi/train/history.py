"""What a run recorded, one row per epoch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from countvi.models.objective import Elbo


@dataclass
class Tally:
    """Sums of ELBO terms over cells, kept on the device until the end of an epoch so that no step waits for them."""

    sums: dict[str, torch.Tensor] = field(default_factory=dict)
    n_cells: int = 0

    def add(self, elbo: Elbo, kl_weight: float | None = None, loss: torch.Tensor | None = None) -> None:
        """Take in one minibatch."""
        n = elbo.reconstruction.shape[-1]
        terms = {
            "elbo": -elbo.per_cell.detach().sum(),
            "reconstruction_loss": elbo.reconstruction.detach().sum(),
            "kl_local": elbo.divergence.detach().sum(),
            **{f"kl_{name}": kl.detach().sum() for name, kl in elbo.kl.items()},
        }
        if len(elbo.log_lik) > 1:
            terms |= {f"reconstruction_loss_{name}": -value.detach().sum() for name, value in elbo.log_lik.items()}
        if elbo.log_prior:
            terms["kl_global"] = -torch.stack([value.detach() for value in elbo.log_prior.values()]).sum() * n
        if loss is not None:
            terms["loss"] = loss.detach() * n
        for name, term in terms.items():
            self.sums[name] = self.sums[name] + term if name in self.sums else term
        self.n_cells += n

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
