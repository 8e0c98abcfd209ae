"""What every distribution of counts, and every mean of counts, can be asked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Protocol

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from countvi.batch import CountBlock
from countvi.errors import MismatchError, OptionError
from countvi.typing import CellsGenes, PerCell


class CountRate(Protocol):
    """The mean of the counts before any dropout: how it is made from what the decoder gives."""

    @property
    @abstractmethod
    def batch_shape(self) -> torch.Size:
        """``(*samples, cells)``."""

    @property
    @abstractmethod
    def n_genes(self) -> int:
        """Number of genes."""

    @property
    @abstractmethod
    def scale(self) -> CellsGenes:
        """Expected frequencies, shape ``(*samples, cells, genes)``."""

    @property
    @abstractmethod
    def log_mean(self) -> CellsGenes:
        """Logarithm of mu, shape ``(*samples, cells, genes)``."""

    @property
    def mean(self) -> CellsGenes:
        """mu, in counts, shape ``(*samples, cells, genes)``."""
        return self.log_mean.exp()

    def expression(self, *, library: bool, background: bool) -> CellsGenes:
        """Expected expression, shape ``(*samples, cells, genes)``.

        Parameters
        ----------
        library
            In counts at the library size of the cell; else in frequencies.
        background
            With the ambient background, if the mean has one.
        """
        return self.mean if library else self.scale

    @abstractmethod
    def decoded(self) -> dict[str, Tensor]:
        """What the decoder gave, by name, ``(..., genes)`` each: where to look for what is not finite."""


class CountLikelihood(Distribution, ABC):
    """Distribution over the genes of a cell, independent given its parameters.

    ``batch_shape`` is ``(*samples, cells)`` and ``event_shape`` is ``(genes,)``.

    Parameters
    ----------
    rate
        The mean before any dropout.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(self, rate: CountRate) -> None:
        self.rate = rate
        super().__init__(rate.batch_shape, torch.Size([rate.n_genes]), validate_args=False)

    def log_prob(self, counts: CountBlock) -> PerCell:
        """Log-likelihood of each cell in nats, summed over genes.

        Parameters
        ----------
        counts
            Shape ``(cells, genes)``, shared by all samples.

        Returns
        -------
        Tensor
            Shape ``(*samples, cells)``.

        Raises
        ------
        OptionError
            If ``counts`` is not a :class:`~countvi.batch.CountBlock`.
        MismatchError
            If it has other numbers of cells or genes than the distribution.
        """
        self._check(counts)
        return self._log_prob(counts)

    @abstractmethod
    def _log_prob(self, counts: CountBlock) -> PerCell:
        """Evaluate :meth:`log_prob` for counts of the right shape."""

    @property
    @abstractmethod
    def mean(self) -> CellsGenes:
        """Expected counts, shape ``(*samples, cells, genes)``."""

    @property
    @abstractmethod
    def variance(self) -> CellsGenes:
        """Variance of the counts, shape ``(*samples, cells, genes)``."""

    @abstractmethod
    def sample(self, sample_shape: Sequence[int] = (), generator: torch.Generator | None = None) -> CellsGenes:
        """Draw counts, without gradient.

        Parameters
        ----------
        sample_shape
            Leading axes of independent draws.
        generator
            Source of randomness, on the device of the parameters; torch's default stream if ``None``.

        Returns
        -------
        Tensor
            Shape ``(*sample_shape, *samples, cells, genes)``.
        """

    @property
    def theta(self) -> Tensor | None:
        """Inverse dispersion, in the shape it was given in; ``None`` where the distribution has none."""
        return None

    @property
    def dropout_probability(self) -> CellsGenes | None:
        """Probability that a count was replaced by zero; ``None`` where the distribution has none."""
        return None

    def parameters(self) -> dict[str, Tensor]:
        """Parameters of each count's distribution by the names of the read-out, ``(*samples, cells, genes)`` each."""
        mean = self.rate.mean
        values = {"mean": mean, "dispersions": self.theta, "dropout": self.dropout_probability}
        return {name: value.expand_as(mean) for name, value in values.items() if value is not None}

    def decoded(self) -> dict[str, Tensor]:
        """What the decoder gave, by name, ``(..., genes)`` each: where to look for what is not finite."""
        parameters = {"theta": self.theta, "pi": self.dropout_probability}
        return self.rate.decoded() | {letter: value for letter, value in parameters.items() if value is not None}

    def _check(self, counts: CountBlock) -> None:
        name = type(self).__name__
        if not isinstance(counts, CountBlock):
            message = (
                f"{name}.log_prob expects a CountBlock; got {type(counts).__name__}. Pass "
                "CountBlock.from_dense(counts) for a dense tensor of shape (cells, genes)."
            )
            raise OptionError(message)
        # One cell's parameters do not stand for several: that would hide a batch that was cut wrongly.
        expected = (self.batch_shape[-1], self.event_shape[0])
        if (counts.n_cells, counts.n_features) != expected:
            message = (
                f"{name}.log_prob expects counts of {expected[0]:,} cells x {expected[1]:,} genes;"
                f" got {counts.n_cells:,} x {counts.n_features:,}. Pass the cells that the parameters were decoded for."
            )
            raise MismatchError(message)
