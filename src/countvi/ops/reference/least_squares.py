"""Non-negative least squares for many right-hand sides: block principal pivoting (Kim and Park 2011), in batches."""

from __future__ import annotations

import torch
from torch import Tensor

# Relative to a unit diagonal: columns that are copies of each other share what they explain, and no system is singular.
_RIDGE = 1e-11
# A sign is wrong if it is so by more than rounding can make it.
_TOLERANCE = 1e-12
# Full exchanges that may fail to improve before single exchanges, which always end.
_PATIENCE = 3
# Systems that are solved at once.
_BYTES = 64 * 2**20


def non_negative_least_squares(gram: Tensor, cross: Tensor) -> Tensor:
    """Minimise ``x G x / 2 - b x`` over non-negative x, for each row b."""
    size = gram.diagonal().double().clamp(min=0).sqrt()
    used = size > 0
    unit = torch.where(used, size, 1.0)
    scaled = gram.double() / (unit.unsqueeze(-1) * unit)
    scaled = torch.where(used & used.unsqueeze(-1), scaled, 0.0)
    scaled.diagonal().copy_(torch.where(used, 1.0 + _RIDGE, 1.0))
    target = torch.where(used, cross.double() / unit, -1.0)  # a column of zeros explains nothing
    step = max(1, _BYTES // (8 * max(1, gram.shape[-1]) ** 2))
    parts = [_pivot(scaled, rows) for rows in target.split(step)]
    return (torch.cat(parts) / unit).to(cross.dtype)


def _pivot(gram: Tensor, target: Tensor) -> Tensor:
    n_rows, n_columns = target.shape
    solution = torch.zeros_like(target)
    active = torch.arange(n_rows, device=target.device)
    passive = torch.zeros_like(target, dtype=torch.bool)
    fewest = torch.full((n_rows,), n_columns + 1, device=target.device)
    patience = torch.full((n_rows,), _PATIENCE, device=target.device)
    tolerance = _TOLERANCE * target.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(target.dtype).tiny)
    columns = torch.arange(n_columns, device=target.device)
    while active.numel():
        wanted, inside = target[active], passive[active]
        x = _solve(gram, wanted, inside)
        slope = x @ gram - wanted
        wrong = torch.where(inside, x < -tolerance[active], slope < -tolerance[active])
        n_wrong = wrong.sum(-1)
        better = n_wrong < fewest[active]
        left = torch.where(better, _PATIENCE, patience[active] - 1)
        # Only the last of the wrong ones: Murty's rule, which cannot run in circles.
        last = (wrong * (columns + 1)).argmax(-1, keepdim=True) == columns
        exchange = torch.where((better | (left >= 0)).unsqueeze(-1), wrong, wrong & last)
        solution[active] = torch.where(inside, x, 0.0).clamp(min=0)
        fewest[active], patience[active] = torch.minimum(fewest[active], n_wrong), left
        passive[active] = inside ^ exchange
        active = active[n_wrong > 0]
    return solution


def _solve(gram: Tensor, target: Tensor, inside: Tensor) -> Tensor:
    """Solve for the columns that are inside, ``(rows, columns)``; the others are zero."""
    both = inside.unsqueeze(-1) & inside.unsqueeze(-2)
    system = torch.where(both, gram, torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device))
    factor = torch.linalg.cholesky(system)
    return torch.cholesky_solve(torch.where(inside, target, 0.0).unsqueeze(-1), factor).squeeze(-1)
