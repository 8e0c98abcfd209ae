"""The spatial model of Lopez et al. (2022), stLVM."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from countvi.batch import RNA, Batch, Design
from countvi.likelihoods.mixed_rate import MixedRate
from countvi.likelihoods.rate_shape import RateShapeNegativeBinomial
from countvi.models.count_model import CountModel
from countvi.nn.latent import Point
from countvi.nn.library import ObservedLibrary
from countvi.nn.linear import Head
from countvi.nn.mlp import Mlp
from countvi.nn.spots import AbundancePrior, SpotParameter, VampPrior
from countvi.typing import CellsGenes, CellsLatent

T = TypeVar("T")


class Latents(NamedTuple, Generic[T]):
    """The latent variables of a spot: their distributions, or their values."""

    gamma: T
    beta: T
    log_library: T


class DestVI(CountModel):
    r"""Counts of a spot as the sum of its cell types, each in a state of its own.

    .. math::

        \gamma_s^c &\sim \textstyle\sum_k \pi_{ck}\, q_\Phi(\gamma^c \mid u_{kc}, c) && \text{state of type c} \\
        \eta_g &\sim \mathrm{Normal}(0, 1), \quad \epsilon_g = \mathrm{softplus}(\eta_g) && \text{noise, a type more} \\
        x_{sg} &\sim \mathrm{NegativeBinomial}\Big(\ell_s \Big[\alpha_g \textstyle\sum_c \beta_{sc}
            f^g(c, \gamma_s^c) + \beta_{s,C+1}\, \epsilon_g\Big],\ p_g\Big)

    f and p are those of the single-cell model and stay as they are. All else is estimated as points, by the penalised
    likelihood

    .. math::

        L = -\log p(X) - \log p(\gamma) + \text{l1\_reg}\,|\beta| + N \big( \text{beta\_reg}\,
            \mathrm{Var}(\log\alpha) - \text{eta\_reg} \log p(\eta) \big)

    of which this class knows the parts for each of N spots.

    Parameters
    ----------
    infer_gamma
        Where the states of a spot come from, ``(spots, types, latent)``.
    infer_beta
        Where its abundances come from, before the softplus, ``(spots, types + 1)``.
    decode, f, p_logits
        Of the single-cell model: layers, last layer, and logits of p, shape ``(genes,)``.
    prior_of_gamma
        The mixture of posteriors.
    prior_of_beta
        Sparsity of the abundances.
    log_alpha, eta
        Starting values of the factors of genes and of the noise, shape ``(genes,)``.
    beta_reg, eta_reg
        Strength of the two penalties, per spot.

    References
    ----------
    Lopez, Li, Keren-Shaul, Boyeau, Kedmi, Pilzer, Jelinski, et al. DestVI identifies continuums of cell types in
    spatial transcriptomics data. Nature Biotechnology 40, 1360-1369 (2022), Methods.
    """

    annealed: ClassVar[frozenset[str]] = frozenset({"gamma", "beta"})
    state: ClassVar[str] = "gamma"
    p_logits: Tensor
    types: Tensor

    def __init__(
        self,
        *,
        infer_gamma: SpotParameter,
        infer_beta: SpotParameter,
        decode: Mlp,
        f: Head,
        p_logits: Tensor,
        prior_of_gamma: VampPrior,
        prior_of_beta: AbundancePrior,
        log_alpha: Tensor,
        eta: Tensor,
        beta_reg: float,
        eta_reg: float,
    ) -> None:
        super().__init__()
        self.infer_gamma = infer_gamma
        self.infer_beta = infer_beta
        self.library = ObservedLibrary()
        self.decode = decode.requires_grad_(False)
        self.f = f.requires_grad_(False)
        self.prior_of_gamma = prior_of_gamma
        self.prior_of_beta = prior_of_beta
        self.log_alpha = nn.Parameter(log_alpha.clone())
        self.eta = nn.Parameter(eta.clone())
        self.beta_reg = beta_reg
        self.eta_reg = eta_reg
        self.register_buffer("p_logits", p_logits)
        self.register_buffer("types", torch.arange(len(prior_of_gamma.loc)).unsqueeze(-1), persistent=False)

    def guide(self, batch: Batch) -> Latents[Any]:
        """Point estimates of gamma and beta; the library size is the total count."""
        x, design = batch.counts[RNA], batch.design
        return Latents(
            gamma=Point(self.infer_gamma(x, design)),
            beta=Point(functional.softplus(self.infer_beta(x, design))),
            log_library=self.library.guide(x, None, design),
        )

    def prior(self, design: Design) -> Latents[Any]:
        """p(gamma) and p(beta)."""
        return Latents(gamma=self.prior_of_gamma(), beta=self.prior_of_beta, log_library=self.library.prior(design))

    def generate(self, latents: Latents[Tensor], design: Design) -> Mapping[str, RateShapeNegativeBinomial]:
        """p(x | gamma, beta, l)."""
        return {RNA: RateShapeNegativeBinomial(self.rate(latents))}

    def rate(self, latents: Latents[Tensor]) -> MixedRate:
        """Expected counts: the sum over types and noise."""
        return MixedRate(
            hidden=self.decode(latents.gamma, None, self._each_type()),
            weight=self.f.weight,
            bias=self.f.bias,
            log_alpha=self.log_alpha,
            abundance=latents.beta,
            noise=functional.softplus(self.eta),
            log_library=latents.log_library,
            p_logits=self.p_logits,
        )

    def penalty(self) -> Mapping[str, Tensor]:
        """The variance of log alpha and minus the log-density of eta, in nats per spot."""
        log_density = -0.5 * (self.eta.square() + math.log(2.0 * math.pi)).sum()
        # A single gene has no variance.
        spread = self.log_alpha.var(correction=min(1, len(self.log_alpha) - 1))
        return {"alpha": self.beta_reg * spread, "eta": -self.eta_reg * log_density}

    def cell_state(self, latents: Latents[Tensor]) -> CellsLatent:
        """Return gamma, ``(*samples, spots, types, latent)``."""
        return latents.gamma

    def expression(self, gamma: Tensor, type_index: int) -> CellsGenes:
        """Expected counts of a pure spot of one type, per count of library.

        Parameters
        ----------
        gamma
            States of all types, shape ``(spots, types, latent)``.
        type_index
            Which type.
        """
        one = Design(self.types[type_index : type_index + 1], gamma.new_zeros(1, 0))
        hidden = self.decode(gamma[..., type_index, :], None, one)
        return functional.softplus(self.f(hidden)) * (self.log_alpha + self.p_logits).exp()

    def _each_type(self) -> Design:
        """The types in place of cells: what the decoder sees besides the states."""
        return Design(self.types, self.eta.new_zeros(len(self.types), 0))
