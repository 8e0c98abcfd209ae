"""Observation models, from a decoded cell to the distribution of its counts; inverse dispersions; protein counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from countvi.batch import Design, Factor
from countvi.likelihoods.base import CountLikelihood
from countvi.likelihoods.mixture_rate import MixtureRate
from countvi.likelihoods.negative_binomial import NegativeBinomial
from countvi.likelihoods.rate import Rate, ShapeRate
from countvi.likelihoods.rate_shape import RateShapeNegativeBinomial
from countvi.nn.levels import ByLevel
from countvi.nn.linear import Head, LastLayer, head
from countvi.nn.protein import BackgroundPrior, Efficiency
from countvi.ops import Link
from countvi.typing import PerCell

# Keeps the posterior of a background from collapsing onto a point.
_MIN_SCALE = 1e-8


class PerGene(nn.Module):
    """One dispersion per gene, shape ``(genes,)``."""

    def __init__(self, n_genes: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.randn(n_genes))

    def forward(self, hidden: Tensor, design: Design) -> Tensor:
        """Return the log-dispersion, shape ``(genes,)``."""
        return self.value


class PerGeneLevel(ByLevel):
    """One dispersion per gene and level of a covariate (batch or label)."""

    tables = ("value",)

    def __init__(self, n_genes: int, factor: Factor) -> None:
        super().__init__()
        self.factor = factor
        self.factors = (factor,)
        self.value = nn.Parameter(torch.randn(factor.n_levels, n_genes))

    def forward(self, hidden: Tensor, design: Design) -> Tensor:
        """Return the log-dispersion of each cell's level, shape ``(cells, genes)``."""
        return functional.embedding(design.levels(self.factor), self.value)


class PerGeneCell(nn.Module):
    """A dispersion per gene and cell, decoded; hidden units may end in the one-hot levels of covariates."""

    def __init__(self, n_hidden: int, n_genes: int, factors: Sequence[Factor] = ()) -> None:
        super().__init__()
        self.head = head(n_hidden, n_genes, factors)

    def forward(self, hidden: Tensor, design: Design) -> Tensor:
        """Return the log-dispersion, shape ``(*samples, cells, genes)``."""
        return self.head(hidden)


Dispersion = PerGene | PerGeneLevel | PerGeneCell
"""Any of the three."""


class Observation(nn.Module):
    """From a decoded cell to the distribution of its counts.

    Parameters
    ----------
    likelihood
        The distribution, which is made of a rate and of its parameters.
    parameters
        Where those come from, by name: a :data:`Dispersion`, or a last layer. What a last layer gives is passed on as a
        function, which costs nothing until it is called.
    """

    def __init__(self, likelihood: Callable[..., CountLikelihood], **parameters: Dispersion | LastLayer) -> None:
        super().__init__()
        self.likelihood = likelihood
        for name, part in parameters.items():
            self.add_module(name, part)

    def forward(self, rate: Rate, hidden: Tensor, design: Design) -> CountLikelihood:
        """Return the distribution of the counts; hidden units may end in the one-hot levels of covariates."""
        parameters = {
            name: partial(part, hidden) if isinstance(part, LastLayer) else part(hidden, design)
            for name, part in self.named_children()
        }
        return self.likelihood(rate, **parameters)


class ObserveRateShape(nn.Module):
    r"""Counts with shape :math:`\ell\,\mathrm{softplus}(w h + b)` and a probability p of each gene.

    Parameters
    ----------
    n_hidden, n_genes
        Sizes of the decoder's last layer.
    """

    def __init__(self, n_hidden: int, n_genes: int) -> None:
        super().__init__()
        self.f = Head(n_hidden, n_genes)
        self.p_logits = nn.Parameter(torch.randn(n_genes))

    def forward(self, hidden: Tensor, log_library: PerCell, design: Design) -> CountLikelihood:
        """Return the distribution of the counts."""
        return RateShapeNegativeBinomial(ShapeRate(self.f(hidden), log_library, self.p_logits))


class ObserveMeanDispersion(nn.Module):
    r"""Counts with mean :math:`\ell\,\mathrm{softmax}(w h + b + b_c)` and an inverse dispersion of each gene.

    In place of :class:`ObserveRateShape` in files of scvi-tools from 1.4.1 on.

    Parameters
    ----------
    n_hidden, n_genes
        Sizes of the decoder's last layer.
    labels
        The covariate whose levels have a bias :math:`b_c`.
    """

    def __init__(self, n_hidden: int, n_genes: int, labels: Factor) -> None:
        super().__init__()
        self.f = Head(n_hidden, n_genes)
        self.log_theta = nn.Parameter(torch.randn(n_genes))
        self.label_bias = nn.Parameter(torch.zeros(labels.n_levels, n_genes))
        self.labels = labels

    def forward(self, hidden: Tensor, log_library: PerCell, design: Design) -> CountLikelihood:
        """Return the distribution of the counts."""
        logits = self.f(hidden) + functional.embedding(design.levels(self.labels), self.label_bias)
        return NegativeBinomial(Rate(logits, log_library, Link.SOFTMAX), self.log_theta)


CountsGivenState = ObserveRateShape | ObserveMeanDispersion
"""How a decoded state within a type makes counts."""


class ProteinDecoder(nn.Module):
    r"""How a decoded cell becomes the counts of its proteins.

    Parameters
    ----------
    loc, scale
        Last layers of :math:`q(\log\beta \mid z, s)`: its mean, and its standard deviation without the link.
    alpha
        Last layer of :math:`g_\alpha`, without the link.
    pi
        Last layer of :math:`h_\pi`, without the link.
    log_phi
        :math:`\log\phi`.
    prior
        :math:`c` and :math:`d`.
    exponential
        Whether the link of the standard deviation is the exponential; otherwise it is the softplus.
    efficiency
        :math:`e`; ``None`` for one.
    """

    def __init__(
        self,
        *,
        loc: LastLayer,
        scale: LastLayer,
        alpha: LastLayer,
        pi: LastLayer,
        log_phi: Dispersion,
        prior: BackgroundPrior,
        exponential: bool = False,
        efficiency: Efficiency | None = None,
    ) -> None:
        super().__init__()
        self.loc = loc
        self.scale = scale
        self.alpha = alpha
        self.pi = pi
        self.log_phi = log_phi
        self.prior = prior
        self.exponential = exponential
        self.efficiency = efficiency

    def rate(
        self, background: Tensor, foreground: Tensor, mixing: Tensor, epsilon: Tensor, design: Design
    ) -> MixtureRate:
        """Return both means from the hidden units of three trunks and from epsilon ``(*samples, cells, proteins)``."""
        loc, scale = self.loc(background), self.scale(background)
        scale = scale.exp() if self.exponential else functional.softplus(scale) + _MIN_SCALE
        return MixtureRate(
            log_beta=loc + scale * epsilon,
            loc=loc,
            scale_of_log=scale,
            log_alpha=functional.relu(self.alpha(foreground)).log1p(),
            pi_logits=self.pi(mixing),
            log_efficiency=None if self.efficiency is None else self.efficiency(design),
        )
