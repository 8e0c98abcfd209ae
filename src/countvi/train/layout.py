"""Parameters of a model in the form in which the optimiser gets them: contiguous, and only what may move."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn


class _View(NamedTuple):
    own: nn.Parameter
    seen: nn.Parameter
    view: Callable[[Tensor], Tensor] | None


class ContiguousParameters:
    """The parameters of a model, each contiguous and free to move.

    Some weights are stored as the transpose of a contiguous matrix. torch's fused optimisers copy such a parameter, its
    gradient and its averages back and forth in every step, which takes longer than the step. So the optimiser gets the
    transpose, which shares the memory of the parameter and, from :meth:`share_gradients` on, of its gradient.

    Of other parameters some rows may move and the others may not. The optimiser then gets the rows that may: a row with
    gradient zero that it saw would still be moved by weight decay and by momentum.

    Parameters
    ----------
    parameters
        By name. Where they are they stay: moving them to another device later would part them from what the optimiser
        sees.
    moving_rows
        Runs of rows that may move, for parameters that may not move as a whole.
    """

    def __init__(
        self, parameters: Iterable[tuple[str, nn.Parameter]], moving_rows: Mapping[str, tuple[slice, ...]] | None = None
    ) -> None:
        self._views: list[_View] = []
        for name, own in parameters:
            if moving_rows and name in moving_rows:
                views = [partial(_rows, rows=rows) for rows in moving_rows[name]]
            elif own.ndim == 2 and not own.is_contiguous():
                views = [Tensor.t]
            else:
                self._views.append(_View(own, own, None))
                continue
            self._views += [_View(own, nn.Parameter(view(own.detach())), view) for view in views]
        self.seen = [view.seen for view in self._views]
        """What to give to the optimiser."""

    def clear_gradients(self) -> None:
        """Forget the gradients of the last step."""
        for own, _, _ in self._views:
            own.grad = None

    def share_gradients(self) -> None:
        """Show the optimiser the gradients that the last backward pass has left."""
        for own, seen, view in self._views:
            if view is not None:
                seen.grad = None if own.grad is None else view(own.grad)


def _rows(tensor: Tensor, rows: slice) -> Tensor:
    return tensor[rows]
