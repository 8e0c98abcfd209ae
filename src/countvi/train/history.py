"""The history of a run, one row per epoch, and the sums over cells that it is made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from countvi.models.objective import Elbo

_LOG_LIK, _KL, _LOG_PRIOR, _PENALTY = "log_lik_", "kl_", "log_prior", "penalty"


def sums_of(elbo: Elbo) -> tuple[tuple[str, ...], torch.Tensor]:
    """Sum the terms of a minibatch over its cells, without gradients.

    This runs in every step. What follows from these sums is left to :meth:`EpochSums.means`.

    Returns
    -------
    names
        Of the log-likelihoods by modality, of the divergences by latent variable, of all global log-priors and of all
        penalties.
    sums
        Shape ``(names,)``; what is global counts once per cell.
    """
    names = (*(_LOG_LIK + name for name in elbo.log_lik), *(_KL + name for name in elbo.kl))
    cells = torch.stack([term.detach() for term in (*elbo.log_lik.values(), *elbo.kl.values())])
    sums = cells.sum(-1)
    once = {_LOG_PRIOR: elbo.log_prior, _PENALTY: elbo.penalty}
    once = {name: torch.stack([value.detach() for value in terms.values()]) for name, terms in once.items() if terms}
    if once:
        totals = torch.stack([values.sum() for values in once.values()]) * cells.shape[-1]
        names, sums = (*names, *once), torch.cat([sums, totals])
    return names, sums


@dataclass
class EpochSums:
    """Sums over the cells of an epoch, kept on the device until its end so that no step waits for them."""

    names: tuple[str, ...] = ()
    totals: torch.Tensor | None = None
    n_cells: int = 0
    loss: float = 0.0

    def add(self, terms: tuple[tuple[str, ...], torch.Tensor], n_cells: int, loss: float = 0.0) -> None:
        """Take in one minibatch: what :func:`sums_of` gives for it, and its mean loss."""
        self.names, sums = terms
        self.totals = sums if self.totals is None else self.totals + sums
        self.n_cells += n_cells
        self.loss += loss * n_cells

    def means(self, n_training: int) -> dict[str, float]:
        """Mean of each term over cells, in nats; lower is better for each.

        Parameters
        ----------
        n_training
            Number of training cells, over which the loss spreads what belongs to no cell.
        """
        assert self.totals is not None, "a mean over no cells"
        means = dict(zip(self.names, (self.totals.double() / self.n_cells).tolist(), strict=True))
        errors = {name.removeprefix(_LOG_LIK): -v for name, v in means.items() if name.startswith(_LOG_LIK)}
        kl = {name: value for name, value in means.items() if name.startswith(_KL)}
        reconstruction, divergence = sum(errors.values()), sum(kl.values())
        out = {"elbo": reconstruction + divergence, "reconstruction_loss": reconstruction, "kl_local": divergence, **kl}
        if len(errors) > 1:
            out |= {f"reconstruction_loss_{name}": value for name, value in errors.items()}
        if _LOG_PRIOR in means:
            out["kl_global"] = -means[_LOG_PRIOR] / n_training
        if _PENALTY in means:
            out["penalty"] = means[_PENALTY]
        return out | {"loss": self.loss / self.n_cells}


Row = dict[str, float]
"""One epoch: column name to value."""


def row_of(train: Mapping[str, float], validation: Mapping[str, float] | None, extra: Mapping[str, float]) -> Row:
    """Name the terms of an epoch as scvi-tools names them.

    ``elbo_*`` is the *negative* evidence lower bound per cell in nats, lower is better, with the KL term at full
    weight, as in scvi-tools. ``train_loss`` is what was descended: with the KL weight of the moment.
    """
    row: Row = {"train_loss": train["loss"]}
    row |= {f"{name}_train": value for name, value in train.items() if name != "loss"}
    if validation is not None:
        row |= {f"{name}_validation": value for name, value in validation.items() if name != "loss"}
    return row | dict(extra)
