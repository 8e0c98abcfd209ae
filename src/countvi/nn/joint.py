"""Encoders of several modalities: from their counts to the posterior of one cell state.

Where a modality was not measured, it adds nothing: its slice of the state keeps the prior, and it has no weight in a
mean. With one modality the three ways are the same.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from countvi.batch import Batch, CountBlock
from countvi.nn.encoder import GaussianEncoder
from countvi.nn.latent import Gaussian, side_by_side


class JointEncoder(nn.Module, ABC):
    """Amortised posterior of the cell state given all modalities.

    Parameters
    ----------
    n_latent
        Dimensions of the cell state.
    """

    def __init__(self, n_latent: int) -> None:
        super().__init__()
        self.n_latent = n_latent

    @abstractmethod
    def forward(self, batch: Batch, features: Tensor | None) -> Gaussian:
        """Return the posterior, ``(cells, n_latent)``."""

    def of_modalities(self, batch: Batch, features: Tensor | None) -> dict[str, Gaussian]:
        """Return what each modality alone says, ``(cells, dimensions)`` each; the prior in cells without it."""
        return {}


class Concatenated(JointEncoder):
    """Each modality has a slice of the cell state, which its counts alone determine.

    Parameters
    ----------
    encoders
        By modality; the slices are in this order.
    """

    def __init__(self, encoders: Mapping[str, GaussianEncoder]) -> None:
        super().__init__(sum(encoder.loc.out_features for encoder in encoders.values()))
        self.names = tuple(encoders)
        self.encoders = nn.ModuleList(encoders.values())

    def forward(self, batch: Batch, features: Tensor | None) -> Gaussian:
        """Return the slices side by side, ``(cells, n_latent)``."""
        return side_by_side(list(self.of_modalities(batch, features).values()))

    def of_modalities(self, batch: Batch, features: Tensor | None) -> dict[str, Gaussian]:
        """Return each modality's slice; the prior in cells without the modality."""
        return _encode(self.names, self.encoders, batch, features)

    def slices(self) -> dict[str, slice]:
        """Dimensions of the cell state that belong to each modality."""
        stops = (
            torch.tensor([0, *(encoder.loc.out_features for encoder in _encoders(self.encoders))]).cumsum(0).tolist()
        )
        return {name: slice(a, b) for name, a, b in zip(self.names, stops, stops[1:], strict=False)}


class WeightedMean(JointEncoder):
    r"""The cell state is a weighted mean of what the modalities say.

    With :math:`z^m \sim \mathrm{Normal}(m_m, s_m)` independent and weights that sum to one over the modalities that
    were measured, :math:`z = \sum_m a_m z^m` is normal with mean :math:`\sum_m a_m m_m` and variance
    :math:`\sum_m a_m^2 s_m^2`: the posterior whose divergence from the prior the evidence lower bound has.

    Parameters
    ----------
    encoders
        By modality, all of the same number of dimensions.
    weigh
        Where the weights come from.
    """

    def __init__(self, encoders: Mapping[str, GaussianEncoder], weigh: Weights) -> None:
        n_latent = {encoder.loc.out_features for encoder in encoders.values()}
        assert len(n_latent) == 1, "a mean needs vectors of the same length"
        super().__init__(n_latent.pop())
        self.names = tuple(encoders)
        self.encoders = nn.ModuleList(encoders.values())
        self.weigh = weigh

    def forward(self, batch: Batch, features: Tensor | None) -> Gaussian:
        """Return the distribution of the mean, ``(cells, n_latent)``."""
        parts = list(self.of_modalities(batch, features).values())
        loc, variance = (torch.stack(t, dim=1) for t in zip(*((q.loc, q.scale.square()) for q in parts), strict=True))
        weight = self.weights(batch, loc)
        mean = Gaussian((weight * loc).sum(1), (weight.square() * variance).sum(1).sqrt())
        return mean.where(_measured(self.names, batch, loc).any(1), Gaussian.standard(len(loc), self.n_latent, loc))

    def weights(self, batch: Batch, loc: Tensor) -> Tensor:
        """Return the weight of each modality, ``(cells, modalities, 1)``; equal in cells without any."""
        logits = self.weigh(loc).expand(loc.shape[:2])
        measured = _measured(self.names, batch, loc)
        measured = measured | ~measured.any(1, keepdim=True)
        return logits.masked_fill(~measured, -torch.inf).softmax(1).unsqueeze(-1)

    def of_modalities(self, batch: Batch, features: Tensor | None) -> dict[str, Gaussian]:
        """Return what each modality says; the prior in cells without it."""
        return _encode(self.names, self.encoders, batch, features)


class SingleEncoder(JointEncoder):
    """One network sees the counts of all modalities.

    Parameters
    ----------
    names
        Modalities in the order of the encoder's input.
    encode
        Its input has the features of all modalities.
    """

    def __init__(self, names: tuple[str, ...], encode: GaussianEncoder) -> None:
        super().__init__(encode.loc.out_features)
        self.names = names
        self.encode = encode

    def forward(self, batch: Batch, features: Tensor | None) -> Gaussian:
        """Return the posterior, ``(cells, n_latent)``; the prior in cells without any modality."""
        counts = CountBlock.side_by_side([batch.counts[name] for name in self.names])
        q = self.encode(counts, features, batch.design)
        return q.where(_measured(self.names, batch, q.loc).any(1), Gaussian.standard(len(q.loc), self.n_latent, q.loc))


class EqualWeights(nn.Module):
    """Every modality counts alike."""

    def forward(self, loc: Tensor) -> Tensor:
        """Return logits of the weights, ``(1, modalities)``."""
        return loc.new_zeros(1, loc.shape[1])


class UniversalWeights(nn.Module):
    """One learned weight per modality, the same in all cells."""

    def __init__(self, n_modalities: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(n_modalities))

    def forward(self, loc: Tensor) -> Tensor:
        """Return logits of the weights, ``(1, modalities)``."""
        return self.logits.unsqueeze(0)


class CellWeights(nn.Module):
    """Weights of each cell, a linear function of what its modalities say."""

    def __init__(self, n_modalities: int, n_latent: int) -> None:
        super().__init__()
        self.logits = nn.Linear(n_modalities * n_latent, n_modalities)

    def forward(self, loc: Tensor) -> Tensor:
        """Return logits of the weights from posterior means ``(cells, modalities, n_latent)``."""
        return self.logits(loc.flatten(1))


Weights = EqualWeights | UniversalWeights | CellWeights
"""Any of the three."""


def _encoders(modules: nn.ModuleList) -> list[GaussianEncoder]:
    return cast("list[GaussianEncoder]", list(modules))


def _encode(
    names: tuple[str, ...], encoders: nn.ModuleList, batch: Batch, features: Tensor | None
) -> dict[str, Gaussian]:
    design, out = batch.design, {}
    for name, encode in zip(names, _encoders(encoders), strict=True):
        q = encode(batch.counts[name], features, design)
        out[name] = q.where(design.measured(name), Gaussian.standard(len(q.loc), encode.loc.out_features, q.loc))
    return out


def _measured(names: tuple[str, ...], batch: Batch, like: Tensor) -> Tensor:
    """Which modalities each cell has, ``(cells, modalities)``."""
    everywhere = torch.ones(batch.n_cells, dtype=torch.bool, device=like.device)
    columns = [batch.design.measured(name) for name in names]
    return torch.stack([everywhere if column is None else column for column in columns], dim=1)
