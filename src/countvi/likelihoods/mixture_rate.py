"""The two means of protein counts, background and foreground, kept as what the decoder gives."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from countvi.likelihoods.base import CountRate
from countvi.typing import CellsGenes


@dataclass(frozen=True, eq=False)
class MixtureRate(CountRate):
    """Background beta with probability pi, else foreground beta * alpha.

    Parameters
    ----------
    log_beta
        Logarithm of the background, as it was drawn, shape ``(*samples, cells, proteins)``.
    loc, scale_of_log
        Mean and standard deviation of the normal distribution that it was drawn from, in the same shape.
    log_alpha
        Logarithm of the factor of the foreground, at least zero, in the same shape.
    pi_logits
        Log-odds of background, in the same shape.
    log_efficiency
        Logarithm of what both means are multiplied by, shape ``(cells, proteins)``; ``None`` for one.
    """

    log_beta: CellsGenes
    loc: CellsGenes
    scale_of_log: CellsGenes
    log_alpha: CellsGenes
    pi_logits: CellsGenes
    log_efficiency: Tensor | None = None

    @property
    def batch_shape(self) -> torch.Size:
        """``(*samples, cells)``."""
        return self.log_beta.shape[:-1]

    @property
    def n_genes(self) -> int:
        """Number of proteins."""
        return self.log_beta.shape[-1]

    @property
    def log_background(self) -> CellsGenes:
        """Logarithm of the background mean in counts, shape ``(*samples, cells, proteins)``."""
        return self.log_beta if self.log_efficiency is None else self.log_beta + self.log_efficiency

    @property
    def log_foreground(self) -> CellsGenes:
        """Logarithm of the foreground mean in counts, in the same shape."""
        return self.log_background + self.log_alpha

    @property
    def log_median_background(self) -> CellsGenes:
        """Mean over the distribution of beta of the logarithm of the background mean."""
        return self.loc if self.log_efficiency is None else self.loc + self.log_efficiency

    @property
    def log_expected_background(self) -> CellsGenes:
        """Logarithm of the background mean, averaged over the distribution of beta rather than at its draw."""
        log_mean = self.loc + 0.5 * self.scale_of_log.square()
        return log_mean if self.log_efficiency is None else log_mean + self.log_efficiency

    @property
    def foreground_probability(self) -> CellsGenes:
        """1 - pi, shape ``(*samples, cells, proteins)``."""
        return (-self.pi_logits).sigmoid()

    @property
    def log_mean(self) -> CellsGenes:
        """Logarithm of the expected counts at the drawn background, shape ``(*samples, cells, proteins)``."""
        log_pi, log_not_pi = functional.logsigmoid(self.pi_logits), functional.logsigmoid(-self.pi_logits)
        return self.log_background + torch.logaddexp(log_pi, log_not_pi + self.log_alpha)

    @property
    def foreground(self) -> CellsGenes:
        """Expected counts of the foreground, (1 - pi) * beta * alpha, at the drawn background."""
        return (functional.logsigmoid(-self.pi_logits) + self.log_foreground).exp()

    @property
    def scale(self) -> CellsGenes:
        """Share of each protein in the foreground of a cell; they sum to one."""
        return (functional.logsigmoid(-self.pi_logits) + self.log_foreground).softmax(-1)

    def decoded(self) -> dict[str, Tensor]:
        """See :meth:`CountRate.decoded`."""
        return {"log_beta": self.log_beta, "log_alpha": self.log_alpha, "pi_logits": self.pi_logits}
