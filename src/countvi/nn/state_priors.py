"""Priors of the states within cell types."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from countvi.batch import Design, Factor
from countvi.nn.latent import Gaussian, MixtureOfGaussians

# What scvi-tools adds to the standard deviations of the components.
_LEAST_SCALE = 1e-4


class UnitPrior(nn.Module):
    """States are unit normal.

    Parameters
    ----------
    n_latent
        Dimensions of a state.
    """

    zero: Tensor

    def __init__(self, n_latent: int) -> None:
        super().__init__()
        self.register_buffer("zero", torch.zeros(n_latent), persistent=False)

    def forward(self, design: Design) -> Gaussian:
        """Return the prior of the state of each cell."""
        return Gaussian.standard(design.n_cells, self.zero.shape[0], like=self.zero)


class LearnedPrior(nn.Module):
    """States of each type are a mixture of normals that is learned, as in files of scvi-tools from 1.4.1 on.

    Parameters
    ----------
    labels
        The type.
    n_components, n_latent
        Components per type, and dimensions of a state.
    """

    def __init__(self, labels: Factor, n_components: int, n_latent: int) -> None:
        super().__init__()
        self.labels = labels
        self.loc = nn.Parameter(torch.randn(labels.n_levels, n_components, n_latent))
        self.log_scale = nn.Parameter(torch.full((labels.n_levels, n_components, n_latent), -2.0))
        self.logits = nn.Parameter(torch.zeros(labels.n_levels, n_components))

    def forward(self, design: Design) -> MixtureOfGaussians:
        """Return the prior of the state of each cell."""
        level = design.levels(self.labels)
        scale = self.log_scale.exp() + _LEAST_SCALE
        return MixtureOfGaussians(self.loc[level], scale[level], self.logits.log_softmax(-1)[level])


StatePrior = UnitPrior | LearnedPrior
"""Either of the two."""
