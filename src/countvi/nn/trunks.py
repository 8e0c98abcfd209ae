"""Several small networks over the same input."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from countvi.batch import Design, Factor
from countvi.nn.levels import ModalityTables, level_tables
from countvi.nn.linear import Linear
from countvi.nn.mlp import Block, Mlp, MlpConfig


class Trunks(nn.Module):
    """Networks of one shape over the same input, with weights of their own.

    Their first layers are computed as one: a few large operations rather than many small ones.

    Parameters
    ----------
    n_trunks
        How many.
    n_in
        Size of the input.
    config
        Shape of each.
    n_features, factors
        Covariates, as in :class:`countvi.nn.mlp.Mlp`.
    """

    def __init__(
        self, n_trunks: int, n_in: int, config: MlpConfig, n_features: int = 0, factors: Sequence[Factor] = ()
    ) -> None:
        super().__init__()
        self.n_trunks = n_trunks
        wide = dataclasses.replace(config, n_hidden=n_trunks * config.n_hidden)
        self.first = Block(Linear(n_in, wide.n_hidden, n_features, factors), wide, n_trunks)
        rest = dataclasses.replace(config, n_layers=config.n_layers - 1)
        deep = factors if config.inject_all else ()
        n_rest = n_trunks if rest.n_layers else 0
        self.rest = nn.ModuleList(Mlp(config.n_hidden, rest, 0, deep) for _ in range(n_rest))

    def level_tables(self, trunks: range) -> list[ModalityTables]:
        """Return the tables of neighbouring trunks, which are learned from the counts of one modality alone."""
        width = self.first.linear.bias.shape[0] // self.n_trunks
        columns = slice(trunks.start * width, trunks.stop * width)
        first = [tables._replace(columns=columns) for tables in level_tables(self.first)]
        return first + [tables for i in trunks if self.rest for tables in level_tables(self.rest[i])]

    def forward(self, x: Tensor, features: Tensor | None, design: Design) -> Sequence[Tensor]:
        """Map ``(*samples, cells, n_in)`` to as many tensors ``(*samples, cells, n_hidden)`` as there are trunks."""
        parts = self.first(x, features, design).chunk(self.n_trunks, dim=-1)
        if not self.rest:
            return parts
        networks = cast("list[Mlp]", list(self.rest))
        return [network(part, None, design) for network, part in zip(networks, parts, strict=True)]
