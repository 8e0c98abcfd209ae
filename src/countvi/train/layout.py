"""Parameters as the optimiser sees them."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn


class InOnePiece:
    """The parameters of a model, each contiguous.

    Some weights are stored as the transpose of a contiguous matrix. torch's fused optimisers copy such a parameter, its
    gradient and its averages back and forth in every step, which takes longer than the step. So the optimiser gets the
    transpose, which shares the memory of the parameter and, from :meth:`share_gradients` on, of its gradient.

    Parameters
    ----------
    parameters
        Where they stay: moving them to another device later would part them from what the optimiser sees.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._own = list(parameters)
        self.seen = [
            nn.Parameter(own.detach().t()) if own.ndim == 2 and not own.is_contiguous() else own for own in self._own
        ]
        """What to give to the optimiser."""

    def clear_gradients(self) -> None:
        """Forget the gradients of the last step."""
        for own in self._own:
            own.grad = None

    def share_gradients(self) -> None:
        """Show the optimiser the gradients that the last backward pass has left."""
        for own, seen in zip(self._own, self.seen, strict=True):
            if seen is not own:
                seen.grad = None if own.grad is None else own.grad.t()
