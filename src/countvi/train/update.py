"""The step of the fused Adam optimiser on the CPU as a single call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class FusedUpdate:
    """The step of torch's fused Adam on the CPU, with the preparations made once.

    torch looks up every parameter's averages, and counts its steps, one by one in every step. For a small network that
    takes about as long as the arithmetic. Here the lists are kept, and the counters lie in one vector. The optimiser
    stays what holds the state: it can be saved, copied and loaded at any time.

    Parameters
    ----------
    optimizer
        ``torch.optim.Adam`` or ``AdamW`` with ``fused=True`` and one group of parameters.
    """

    def __init__(self, optimizer: torch.optim.Adam) -> None:
        self._optimizer = optimizer
        # What torch's own step calls.
        name = "_fused_adamw_" if isinstance(optimizer, torch.optim.AdamW) else "_fused_adam_"
        self._kernel: Any = getattr(torch, name)
        self._state: object = None

    @torch.no_grad()
    def __call__(self) -> None:
        """Update the parameters that have gradients."""
        group, state = self._optimizer.param_groups[0], self._optimizer.state
        parameters: list[Tensor] = group["params"]
        gradients = [parameter.grad for parameter in parameters]
        if any(gradient is None for gradient in gradients):
            # Whatever has no gradient in this step is not counted; torch keeps book of it.
            self._state = None
            self._optimizer.step()
            return
        if self._state is not state:  # the first time, and after a load
            if len(state) < len(parameters):
                self._optimizer.step()
                return
            self._keep(parameters, state)
        self._counts.add_(1.0)
        self._kernel(
            parameters,
            gradients,
            self._averages,
            self._squares,
            [],
            self._steps,
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )

    def _keep(self, parameters: list[Tensor], state: Any) -> None:
        """Make the lists, and put the counters into one vector."""
        slots = [state[parameter] for parameter in parameters]
        self._averages = [slot["exp_avg"] for slot in slots]
        self._squares = [slot["exp_avg_sq"] for slot in slots]
        self._counts = torch.stack([slot["step"] for slot in slots])
        self._steps = list(self._counts.unbind())
        for slot, step in zip(slots, self._steps, strict=True):
            slot["step"] = step
        self._state = state
