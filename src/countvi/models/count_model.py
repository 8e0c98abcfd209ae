"""The base of all models: what a model of counts declares, and the evidence lower bound that follows from it.

A model declares three things: its guide q(latents | data), its prior p(latents | design), and how latents generate
data, p(data | latents, design). The evidence lower bound follows and is written here once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, final

import torch
from torch import Tensor, nn

from countvi.batch import Batch, Design
from countvi.likelihoods.base import CountLikelihood
from countvi.models.objective import Elbo
from countvi.nn.latent import Gaussian, Given, divergence
from countvi.nn.levels import ModalityTables
from countvi.typing import CellsLatent


class Conditional(NamedTuple):
    """A latent variable whose guide depends on others: known only once they are drawn and decoded."""

    posterior: Gaussian
    """Its guide given the others, ``(*samples, cells, ...)``."""
    prior: Gaussian
    """Its prior."""
    value: Tensor
    """Its draw."""


class CountModel(nn.Module, ABC):
    """A generative model of counts with an amortised guide.

    A subclass defines a NamedTuple of its latent variables, named by the paper's letters. ``guide`` and ``prior``
    return it filled with distributions, ``generate`` takes it filled with tensors.
    """

    annealed: ClassVar[frozenset[str]] = frozenset({"z"})
    """Latent variables whose KL term is weighted during warm-up."""
    state: ClassVar[str] = "z"
    """The latent variable that the cell state is made of."""
    noise: ClassVar[frozenset[str]] = frozenset()
    """Standard normal numbers among the latent variables from which :meth:`conditional` ones are made; their own guide
    is their prior."""

    @abstractmethod
    def guide(self, batch: Batch) -> Any:
        """Approximate posterior of the latent variables of each cell."""

    @abstractmethod
    def prior(self, design: Design) -> Any:
        """Prior of the latent variables of each cell."""

    @abstractmethod
    def generate(self, latents: Any, design: Design) -> Mapping[str, CountLikelihood]:
        """Distribution of the counts of each modality given latent variables ``(*samples, cells, ...)``."""

    @abstractmethod
    def cell_state(self, latents: Any) -> CellsLatent:
        """The cell state a user sees, from latent variables: ``(*samples, cells, latent)``."""

    def conditional(self, likelihoods: Mapping[str, CountLikelihood], design: Design) -> Mapping[str, Conditional]:
        """Latent variables whose guide depends on others, by letter, from what :meth:`generate` returned."""
        return {}

    def log_prior(self) -> Mapping[str, Tensor]:
        """Log-priors of global variables, each a scalar for the whole data set."""
        return {}

    def penalty(self) -> Mapping[str, Tensor]:
        """Penalties of global variables in nats per cell, a scalar each, however many cells there are."""
        return {}

    def weight(self, design: Design) -> Tensor | None:
        """What each cell counts in training, shape ``(cells,)``; ``None`` for one each."""
        return None

    def level_tables(self, modality: str) -> Sequence[ModalityTables]:
        """Tables with a row per level that are learned from the counts of this modality alone."""
        return ()

    @final
    def sample(self, q: Any, generator: torch.Generator | None = None, n_samples: int | None = None) -> Any:
        """Draw every latent variable of a guide or prior.

        Returns
        -------
        NamedTuple
            The latent variables, ``(cells, ...)``, or ``(n_samples, cells, ...)`` if ``n_samples`` is given.
        """
        return type(q)(*(latent.rsample(generator, n_samples) for latent in q))

    @final
    def elbo(self, batch: Batch, generator: torch.Generator | None = None) -> Elbo:
        """Evidence lower bound of each cell from one draw of the latent variables.

        Parameters
        ----------
        batch
            Cells.
        generator
            Source of the draw.
        """
        q, p = self.guide(batch), self.prior(batch.design)
        latents = self.sample(q, generator)
        likelihoods = self.generate(latents, batch.design)
        drawn = zip(q._fields, q, p, latents, strict=True)
        kl = {
            name: divergence(a, b, value)
            for name, a, b, value in drawn
            if name not in self.noise and not isinstance(a, Given)
        }
        kl |= {name: c.posterior.kl(c.prior) for name, c in self.conditional(likelihoods, batch.design).items()}
        return Elbo(
            log_lik={name: likelihood.log_prob(batch.counts[name]) for name, likelihood in likelihoods.items()},
            kl=kl,
            log_prior=self.log_prior(),
            penalty=self.penalty(),
            weight=self.weight(batch.design),
            latents=latents,
        )

    @final
    def forward(self, batch: Batch, generator: torch.Generator | None = None) -> Elbo:
        """Same as :meth:`elbo`; what a distributed wrapper calls."""
        return self.elbo(batch, generator)
