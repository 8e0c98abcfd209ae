"""The multilayer perceptron of encoders and decoders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from countvi import ops
from countvi.batch import Design, Factor
from countvi.nn.linear import CountInput, Linear

# Running statistics forget with 1 / momentum steps; see BatchNorm.
_MOMENTUM = 0.05
_EPS = 1e-3
_LAYER_NORM_EPS = 1e-5


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation that survives a batch of one cell, and accepts a leading samples axis.

    The spread of a single cell is not defined; such a batch is normalised with the running statistics.

    The running statistics follow the last ``1 / 0.05 = 20`` batches. (scvi-tools: 100, tuned to hundreds of epochs. In
    a short run with a falling learning rate the older batches stem from another network.)
    """

    def __init__(self, n_units: int) -> None:
        super().__init__(n_units, eps=_EPS, momentum=_MOMENTUM)
        self.frozen = False
        """Whether training, too, uses the running statistics and leaves them as they are."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise ``(*samples, cells, units)`` over everything but the units."""
        flat = input if input.ndim == 2 else input.reshape(-1, input.shape[-1])
        by_batch = self.training and not self.frozen and flat.shape[0] > 1
        if by_batch and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        normed = functional.batch_norm(
            flat,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            training=by_batch,
            momentum=_MOMENTUM,
            eps=self.eps,
        )
        return normed.view(input.shape)

    def rectified(self, input: Tensor, dropout: float) -> Tensor:
        """Normalise ``(cells, units)``, rectify and drop units, as one operation where that is the same."""
        if not self.training or self.frozen or len(input) < 2 or self.running_mean is None or self.running_var is None:
            return ops.rectify(self(input), dropout)
        self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        running = (self.running_mean, self.running_var)
        return ops.batch_norm_rectify(input, self.weight, self.bias, running, _MOMENTUM, self.eps, dropout)


@dataclass(frozen=True)
class MlpConfig:
    """What the layers of one network look like.

    Parameters
    ----------
    n_hidden
        Units per layer.
    n_layers
        Number of layers.
    dropout
        Share of units switched off in training: behind each rectifier, or before each linear map.
    batch_norm, layer_norm
        Which normalisation follows each linear map.
    inject_all
        Give the categorical covariates to every layer, not only to the first.
    drop_input
        Dropout before the linear maps: of the input's features, covariates excepted, not of the last layer's units.
    """

    n_hidden: int = 128
    n_layers: int = 1
    dropout: float = 0.0
    batch_norm: bool = True
    layer_norm: bool = False
    inject_all: bool = True
    drop_input: bool = False


class Block(nn.Module):
    """Linear map, normalisation, rectifier, dropout: one layer.

    Parameters
    ----------
    linear
        The map.
    config
        What follows it.
    n_groups
        In how many groups of neighbours units are layer-normalised.
    """

    def __init__(self, linear: Linear, config: MlpConfig, n_groups: int = 1) -> None:
        super().__init__()
        self.n_groups = n_groups
        self.linear = linear
        self.batch_norm = BatchNorm(config.n_hidden) if config.batch_norm else None
        self.layer_norm = config.layer_norm
        self.dropout, self.drop_input = (0.0, config.dropout) if config.drop_input else (config.dropout, 0.0)

    def forward(self, x: Tensor | CountInput, features: Tensor | None, design: Design) -> Tensor:
        """Map ``(*samples, cells, n_in)``, or sparse counts ``(cells, n_in)``, to ``(*samples, cells, n_hidden)``."""
        if self.drop_input and self.training:
            x = x.dropped(self.drop_input) if isinstance(x, CountInput) else ops.drop(x, self.drop_input)
        return self.activate(self.linear(x, features, design))

    def slopes(
        self, x: Tensor, slopes: Tensor | None, features: Tensor | None, design: Design
    ) -> tuple[Tensor, Tensor]:
        """Return the units in evaluation mode, and their slopes from those of the input; see :meth:`Mlp.slopes`."""
        assert self.n_groups == 1, "slopes are those of one network"
        h, weight = self.linear(x, features, design), self.linear.weight.T
        slopes = weight.unsqueeze(1).expand(-1, len(x), -1) if slopes is None else slopes @ weight
        if self.batch_norm is not None:
            assert self.batch_norm.running_var is not None
            h = self.batch_norm(h)
            slopes = slopes * (self.batch_norm.weight * (self.batch_norm.running_var + _EPS).rsqrt())
        if self.layer_norm:
            variance, mean = torch.var_mean(h, -1, correction=0, keepdim=True)
            inverse = (variance + _LAYER_NORM_EPS).rsqrt()
            h = (h - mean) * inverse
            along = (slopes * h).mean(-1, keepdim=True)
            slopes = (slopes - slopes.mean(-1, keepdim=True) - h * along) * inverse
        return functional.relu(h), slopes * (h > 0)

    def activate(self, h: Tensor) -> Tensor:
        """Everything after the linear map."""
        dropout = self.dropout if self.training else 0.0
        if self.batch_norm is not None:
            if h.ndim == 2 and not self.layer_norm:
                return self.batch_norm.rectified(h, dropout)
            h = self.batch_norm(h)
        if self.layer_norm:
            groups = h.unflatten(-1, (self.n_groups, -1))
            h = functional.layer_norm(groups, groups.shape[-1:], eps=_LAYER_NORM_EPS).flatten(-2)
        return ops.rectify(h, dropout)


class Mlp(nn.Module):
    """Layers over an input and covariates.

    Parameters
    ----------
    n_in
        Size of the input: genes for an encoder, latent dimensions for a decoder.
    config
        Shape of the layers.
    n_features
        Continuous covariate features; they enter the first layer.
    factors
        Categorical covariates; they enter the first layer, and all others with ``config.inject_all``.
    others
        Sizes of further inputs of the first layer: counts of other modalities.
    """

    def __init__(
        self,
        n_in: int,
        config: MlpConfig,
        n_features: int = 0,
        factors: Sequence[Factor] = (),
        others: Sequence[int] = (),
    ) -> None:
        super().__init__()
        first = Linear(n_in, config.n_hidden, n_features, factors, others)
        deep = factors if config.inject_all else ()
        rest = [Linear(config.n_hidden, config.n_hidden, 0, deep) for _ in range(config.n_layers - 1)]
        self.layers = nn.ModuleList(Block(linear, config) for linear in (first, *rest))

    def _blocks(self) -> list[Block]:
        return cast("list[Block]", list(self.layers))

    def forward(self, x: Tensor | CountInput, features: Tensor | None, design: Design) -> Tensor:
        """Map ``(*samples, cells, n_in)``, or sparse counts ``(cells, n_in)``, to ``(*samples, cells, n_hidden)``."""
        first, *rest = self._blocks()
        h = first(x, features, design)
        for block in rest:
            h = block(h, features, design)
        return h

    def slopes(self, x: Tensor, features: Tensor | None, design: Design) -> Tensor:
        """Derivatives of the last layer's units by each number of the input.

        Parameters
        ----------
        x
            Shape ``(cells, n_in)``. The module is in evaluation mode.
        features, design
            As in :meth:`forward`.

        Returns
        -------
        Tensor
            Shape ``(n_in, cells, n_hidden)``. Made of products of the weights, so that no graph is needed.
        """
        assert not self.training, "slopes are those of evaluation mode, without dropout"
        slopes = None
        for block in self._blocks():
            x, slopes = block.slopes(x, slopes, features, design)
        assert slopes is not None
        return slopes
