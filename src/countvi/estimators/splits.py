"""Which cells a user wants held out, and that a model keeps to its first split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from countvi.data import Split, make_split, split_from_indices
from countvi.errors import OptionError, shorten
from countvi.estimators.names import resolve_rows


@dataclass(frozen=True)
class SplitRequest:
    """Which cells a user wants held out.

    Parameters
    ----------
    train_size, validation_size
        Shares of the cells; ``None`` for 0.9 and for what is left.
    shuffle
        Draw the split at random rather than by position.
    external_indexing
        Rows of the training, validation and test cells, instead of shares.
    """

    train_size: float | None = None
    validation_size: float | None = None
    shuffle: bool = True
    external_indexing: Sequence[np.ndarray] | None = None

    @classmethod
    def from_arguments(
        cls,
        train_size: float | None,
        validation_size: float | None,
        shuffle: bool,
        external_indexing: Sequence[np.ndarray] | None,
        datasplitter_kwargs: Mapping[str, Any] | None,
    ) -> SplitRequest:
        """Build from the arguments of ``train``.

        Raises
        ------
        OptionError
            If ``datasplitter_kwargs`` holds anything but ``external_indexing``.
        """
        extra = dict(datasplitter_kwargs or {})
        external_indexing = extra.pop("external_indexing", external_indexing)
        if extra:
            message = f"datasplitter_kwargs takes 'external_indexing' only; got {shorten(list(extra))}."
            raise OptionError(message)
        return cls(train_size, validation_size, shuffle, external_indexing)

    @property
    def unspecific(self) -> bool:
        """Whether any split would do."""
        return self == SplitRequest()

    @property
    def holds_out(self) -> bool:
        """Whether cells are asked to be held out."""
        shares = (self.train_size is not None and self.train_size < 1) or bool(self.validation_size)
        return shares or self.external_indexing is not None

    def make(self, n_cells: int, seed: int) -> Split:
        """Draw the split."""
        if self.external_indexing is not None:
            n_parts = len(self.external_indexing)
            if n_parts not in (1, 2, 3):
                message = (
                    "external_indexing takes [train], [train, validation] or [train, validation, test]; got "
                    f"{n_parts} parts."
                )
                raise OptionError(message)
            parts = [resolve_rows(part, pd.RangeIndex(n_cells)) for part in self.external_indexing]
            empty = np.empty(0, dtype=np.int64)
            train, validation, test = (*parts, empty, empty)[:3]
            return split_from_indices(n_cells, train, validation, test)
        return make_split(
            n_cells,
            train_size=0.9 if self.train_size is None else self.train_size,
            validation_size=self.validation_size,
            shuffle=self.shuffle,
            seed=seed,
        )


def same_split(a: Split, b: Split) -> bool:
    """Whether two splits hold the same cells."""
    pairs = ((a.train, b.train), (a.validation, b.validation), (a.test, b.test))
    return all(np.array_equal(x, y) for x, y in pairs)


def settle_split(current: Split | None, request: SplitRequest, n_cells: int, seed: int) -> Split:
    """The split of this run: drawn on the first, kept ever after.

    Raises
    ------
    OptionError
        If another split is asked for than the model was trained on: its held-out cells would leak into training.
    """
    if current is None:
        return request.make(n_cells, seed)
    if request.unspecific or same_split(current, request.make(n_cells, seed)):
        return current
    message = (
        f"This model was trained on {len(current.train):,} cells with {len(current.validation):,} held out, and the "
        "split asked for now is another one: cells held out before would be trained on. Leave train_size, "
        "validation_size and external_indexing out, or start from a new model."
    )
    raise OptionError(message)
