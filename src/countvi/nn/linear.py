"""Linear layers with covariates.

A one-hot covariate multiplied into a weight matrix picks one of its columns. So a categorical covariate is a table with
one row per level, gathered by code, and no one-hot matrix is ever built; the result is the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from countvi import ops
from countvi.batch import CountBlock, Design, Factor
from countvi.nn.levels import ByLevel
from countvi.typing import PerCell


class LevelTable(ByLevel):
    """A vector per level of each categorical covariate, summed over covariates.

    Parameters
    ----------
    factors
        The covariates. One with a single level carries no information and gets no row.
    n_out
        Length of the vectors.
    """

    tables = ("weight",)
    single_level_has_row = False
    offsets: Tensor
    columns: Tensor

    def __init__(self, factors: Sequence[Factor], n_out: int) -> None:
        super().__init__()
        self.factors = tuple(factor for factor in factors if factor.n_levels > 1)
        sizes = [factor.n_levels for factor in self.factors]
        self.weight = nn.Parameter(torch.zeros(sum(sizes), n_out))
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        self.register_buffer("offsets", torch.tensor(starts, dtype=torch.int64), persistent=False)
        columns = torch.tensor([factor.column for factor in self.factors], dtype=torch.int64)
        self.register_buffer("columns", columns, persistent=False)

    def forward(self, design: Design) -> Tensor:
        """Return the summed vectors, shape ``(cells, n_out)``."""
        if len(self.factors) == 1:
            return functional.embedding(design.levels(self.factors[0]), self.weight)
        rows = design.codes.index_select(1, self.columns) + self.offsets
        return functional.embedding(rows, self.weight).sum(1)


@dataclass(frozen=True, eq=False)
class CountInput:
    """Sparse counts as the input of a network.

    Parameters
    ----------
    blocks
        Of one modality, or of each.
    log1p
        Take log(1 + x) of them.
    divisors
        What those of each modality are divided by before that, ``(cells,)`` or ``None``.
    """

    blocks: Sequence[CountBlock]
    log1p: bool
    divisors: Sequence[PerCell | None] = (None,)

    def dropped(self, share: float) -> CountInput:
        """Return them with a share of the entries dropped; what is zero stays zero, dropped or not."""
        blocks = []
        for block, divisor in zip(self.blocks, self.divisors, strict=True):
            block = block if divisor is None else block.divide_rows(divisor)
            block = block.map(torch.log1p) if self.log1p else block
            blocks.append(block.map(lambda x: ops.drop(x, share)))
        return CountInput(blocks, log1p=False, divisors=[None] * len(blocks))


class Linear(nn.Module):
    """Affine map of an input, of continuous covariates and of categorical ones.

    Equal to one linear layer on ``[input, features, one-hot levels]``, and initialised as PyTorch would initialise
    that.

    Parameters
    ----------
    n_in, n_out
        Sizes of the input and of the output.
    n_features
        Number of continuous covariate features.
    factors
        Categorical covariates.
    others
        Sizes of further inputs: counts of other modalities.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        n_features: int = 0,
        factors: Sequence[Factor] = (),
        others: Sequence[int] = (),
    ) -> None:
        super().__init__()
        # Stored by input: a gene's weights lie together, which is how sparse counts read them.
        self.weight = nn.Parameter(torch.empty(n_in, n_out).t())
        self.others = nn.ParameterList(nn.Parameter(torch.empty(n, n_out).t()) for n in others)
        self.bias = nn.Parameter(torch.empty(n_out))
        self.features = nn.Parameter(torch.empty(n_out, n_features)) if n_features else None
        levels = LevelTable(factors, n_out)
        self.levels = levels if levels.factors else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw uniformly within one over the root of the number of inputs, covariates included."""
        n_inputs = self.weight.shape[1] + sum(other.shape[1] for other in self.others)
        n_inputs += self.features.shape[1] if self.features is not None else 0
        n_inputs += self.levels.weight.shape[0] if self.levels is not None else 0
        bound = 1.0 / math.sqrt(max(n_inputs, 1))
        with torch.no_grad():
            for parameter in self.parameters():
                # Drawn row by row, however it is stored.
                parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound))

    def forward(self, x: Tensor | CountInput, features: Tensor | None, design: Design) -> Tensor:
        """Map ``(*samples, cells, n_in)``, or sparse counts ``(cells, n_in)``, to ``(*samples, cells, n_out)``."""
        if isinstance(x, CountInput):
            first, *others = zip(x.blocks, x.divisors, strict=True)
            out = ops.sparse_linear(first[0], self.weight, self.bias, x.log1p, first[1])
            for (block, divisor), weight in zip(others, self.others, strict=True):
                out = out + ops.sparse_linear(block, weight, None, x.log1p, divisor)
        else:
            out = functional.linear(x, self.weight, self.bias)
        if self.features is not None:
            assert features is not None, "a layer with covariate features got none"
            out = out + functional.linear(features, self.features)
        if self.levels is not None:
            out = out + self.levels(design)
        return out


class Head(nn.Linear):
    """Affine map from hidden units to genes: the last layer of a decoder, and most of its work.

    Parameters
    ----------
    n_hidden, n_genes
        Sizes of the input and of the output.
    """

    def __init__(self, n_hidden: int, n_genes: int) -> None:
        super().__init__(n_hidden, n_genes)
        # Stored by input, which is how its gradient is made.
        self.weight = nn.Parameter(self.weight.detach().t().contiguous().t())

    def forward(self, input: Tensor) -> Tensor:
        """Map ``(*samples, cells, n_hidden)`` to ``(*samples, cells, n_genes)``."""
        return ops.linear(input, self.weight, self.bias)


class LevelHead(nn.Module):
    """A :class:`Head` whose input ends in the one-hot levels of covariates.

    Parameters
    ----------
    n_in, n_genes
        Sizes of the input without the levels, and of the output.
    factors
        The covariates.
    """

    def __init__(self, n_in: int, n_genes: int, factors: Sequence[Factor]) -> None:
        super().__init__()
        self.levels = LevelTable(factors, n_genes)
        # One matrix by input, of which the levels have the last rows: it is put together for every use.
        self.inputs = nn.Parameter(torch.empty(n_in, n_genes))
        self.bias = nn.Parameter(torch.empty(n_genes))
        bound = 1.0 / math.sqrt(n_in + self.levels.weight.shape[0])
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.uniform_(-bound, bound)

    @property
    def weight(self) -> Tensor:
        """The linear map, shape ``(genes, n_in + levels)``."""
        return torch.cat([self.inputs, self.levels.weight]).t()

    @property
    def out_features(self) -> int:
        """Number of genes."""
        return self.bias.shape[0]

    def forward(self, input: Tensor) -> Tensor:
        """Map ``(*samples, cells, n_in + levels)`` to ``(*samples, cells, n_genes)``."""
        return ops.linear(input, self.weight, self.bias)


LastLayer = Head | LevelHead
"""Either of them."""


def head(n_in: int, n_genes: int, factors: Sequence[Factor] = ()) -> LastLayer:
    """Return a last layer whose input ends in the one-hot levels of covariates, if there are any."""
    informative = any(factor.n_levels > 1 for factor in factors)
    return LevelHead(n_in, n_genes, factors) if informative else Head(n_in, n_genes)


class Appended(nn.Module):
    """Cell state and covariates side by side, which the last layers of a decoder see beside the hidden units.

    Parameters
    ----------
    factors
        Categorical covariates, as one-hot columns at the end; one with a single level gets none.
    """

    offsets: Tensor
    columns: Tensor

    def __init__(self, factors: Sequence[Factor]) -> None:
        super().__init__()
        factors = [factor for factor in factors if factor.n_levels > 1]
        self.n_levels = sum(factor.n_levels for factor in factors)
        starts = [sum(factor.n_levels for factor in factors[:i]) for i in range(len(factors))]
        self.register_buffer("offsets", torch.tensor(starts, dtype=torch.int64), persistent=False)
        columns = torch.tensor([factor.column for factor in factors], dtype=torch.int64)
        self.register_buffer("columns", columns, persistent=False)

    def forward(self, state: Tensor, features: Tensor | None, design: Design) -> Tensor:
        """Return ``(*samples, cells, state + features + levels)`` from a state ``(*samples, cells, state)``."""
        parts = [] if features is None else [features]
        if self.n_levels:
            at = design.codes.index_select(1, self.columns) + self.offsets
            parts.append(state.new_zeros(at.shape[0], self.n_levels).scatter_(1, at, 1.0))
        if not parts:
            return state
        return torch.cat([state, *(part.expand(*state.shape[:-1], part.shape[-1]) for part in parts)], dim=-1)


class CovariateFeatures(ByLevel):
    """Continuous covariates and, where asked, a learned vector per batch, side by side.

    Parameters
    ----------
    n_continuous
        Number of continuous covariates.
    embedded
        A covariate to represent by learned vectors instead of by one-hot columns.
    n_embedding
        Length of those vectors.
    """

    tables = ("embedding.weight",)

    def __init__(self, n_continuous: int, embedded: Factor | None = None, n_embedding: int = 5) -> None:
        super().__init__()
        self.n_continuous = n_continuous
        self.embedded = embedded
        self.factors = () if embedded is None else (embedded,)
        self.embedding = nn.Embedding(embedded.n_levels, n_embedding) if embedded is not None else None

    @property
    def n_features(self) -> int:
        """Number of columns."""
        return self.n_continuous + (self.embedding.embedding_dim if self.embedding is not None else 0)

    def forward(self, design: Design) -> Tensor | None:
        """Return ``(cells, n_features)``, or ``None`` when there are no such covariates."""
        parts = [design.continuous] if self.n_continuous else []
        if self.embedding is not None:
            assert self.embedded is not None
            parts.append(self.embedding(design.levels(self.embedded)))
        return torch.cat(parts, dim=-1) if parts else None
