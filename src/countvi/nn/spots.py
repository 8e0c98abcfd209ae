"""Parameters of spots, from a table or by a network, and their priors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from countvi.batch import CountBlock, Design
from countvi.nn.latent import MixtureOfGaussians
from countvi.nn.linear import CountInput
from countvi.nn.mlp import Mlp, MlpConfig

# Small enough that spots start alike, and large enough that they can part.
_WEIGHT_SCALE = 0.1
LEAST_ABUNDANCE = 1e-3
"""In shares of the library: below it a type may as well be absent."""


class PerSpot(nn.Module):
    """Parameters of each spot by themselves: a row of a table.

    Parameters
    ----------
    start
        Starting values, shape ``(spots, ...)``.
    """

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.shape = start.shape[1:]
        self.table = nn.Parameter(start.detach().clone().reshape(len(start), -1))

    def forward(self, counts: CountBlock, design: Design) -> Tensor:
        """Return the parameters of some spots, shape ``(spots, ...)``."""
        assert design.position is not None, "a model with a table of spots got spots without a place in it"
        rows = functional.embedding(design.position, self.table)
        return rows.view(-1, *self.shape)


class Amortised(nn.Module):
    """Parameters of a spot from its counts, by a network.

    Parameters
    ----------
    n_genes
        Number of genes.
    shape
        Shape of the parameters of a spot.
    config
        Shape of the layers.
    """

    def __init__(self, n_genes: int, shape: tuple[int, ...], config: MlpConfig) -> None:
        super().__init__()
        self.shape = shape
        self.mlp = Mlp(n_genes, config)
        self.out = nn.Linear(config.n_hidden, math.prod(shape))

    @torch.no_grad()
    def start_at(self, values: Tensor) -> None:
        """Let all spots start near the same parameters, of the shape of those of a spot."""
        self.out.weight.mul_(_WEIGHT_SCALE)
        self.out.bias.copy_(values.flatten())

    def forward(self, counts: CountBlock, design: Design) -> Tensor:
        """Return the parameters of some spots, shape ``(spots, ...)``."""
        return self.out(self.mlp(CountInput((counts,), log1p=True), None, design)).view(-1, *self.shape)


SpotParameter = PerSpot | Amortised
"""Either of the two."""


class VampPrior(nn.Module):
    r"""Prior of the states of each type: a mixture of the posteriors of reference cells of the type.

    .. math:: \gamma^c \sim \sum_k \pi_{ck}\, \mathrm{Normal}(m_{ck}, s_{ck})

    Parameters
    ----------
    loc, scale
        m and s, shape ``(types, components, latent)``.
    weights
        pi, shape ``(types, components)``; zero for components that a type does not use.
    power
        What the density is raised to: the weight of its logarithm in the penalised likelihood.
    """

    loc: Tensor
    scale: Tensor
    weights: Tensor

    def __init__(self, loc: Tensor, scale: Tensor, weights: Tensor, power: float = 1.0) -> None:
        super().__init__()
        self.power = power
        self.register_buffer("loc", loc)
        self.register_buffer("scale", scale)
        self.register_buffer("weights", weights)

    def forward(self) -> MixtureOfGaussians:
        """Return the prior of the states of a spot, one vector per type."""
        return MixtureOfGaussians(self.loc, self.scale, self.weights.log(), n_vectors=1, power=self.power)

    def mean(self) -> Tensor:
        """Mean state of each type, shape ``(types, latent)``."""
        return (self.weights.unsqueeze(-1) * self.loc).sum(-2)


@dataclass(frozen=True)
class AbundancePrior:
    """What is believed of the abundances of a spot.

    Parameters
    ----------
    l1
        Nats per unit of the mean abundance, noise included.
    entropy
        Nats per nat of the entropy of the proportions: above zero, few types per spot are preferred.
    sparsity
        k of a heavy-tailed (Lomax) density proportional to ``(1 + value / LEAST_ABUNDANCE) ** -k`` for each type: it
        takes about k counts from each, so that small ones vanish and large ones are left alone.
    """

    l1: float = 0.0
    entropy: float = 0.0
    sparsity: float = 0.0

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density up to a constant of abundances ``(*samples, spots, types + 1)``, shape ``(*samples, spots)``."""
        density = value.new_zeros(value.shape[:-1])
        if self.l1:
            density = density - self.l1 * value.mean(-1)
        if self.entropy:
            types = value[..., :-1]
            proportions = types / types.sum(-1, keepdim=True)
            # A type that is absent has no slope here, rather than an infinite one.
            proportions = proportions.clamp(min=torch.finfo(value.dtype).tiny)
            density = density - self.entropy * torch.special.entr(proportions).sum(-1)
        if self.sparsity:
            density = density - self.sparsity * torch.log1p(value[..., :-1] / LEAST_ABUNDANCE).sum(-1)
        return density
