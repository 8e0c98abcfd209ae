"""Fresh interpreters, for what a process can find out only once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import countvi

SRC = Path(countvi.__file__).resolve().parents[1]

EVERYTHING = """
import torch
from countvi import ops
from countvi.batch import CountBlock
from countvi.ops import Link

def everything(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(*shape, generator=generator).to(dtype).requires_grad_()
    counts = CountBlock.from_dense(torch.poisson(torch.full((5, 40), 0.2), generator=generator).to(dtype))
    logits, library, theta, pi, weight, bias = (normal(*s) for s in ((5, 40), (5,), (40,), (5, 40), (3, 40), (3,)))
    results = []
    for link in Link:
        results.append(ops.negative_binomial(logits, library, theta, counts, link))
        results.append(ops.zero_inflated_negative_binomial(logits, library, theta, pi, counts, link))
        results.append(ops.poisson(logits, library, counts, link))
    results.append(ops.sparse_linear(counts, weight, bias, True))
    total = torch.cat([r.flatten() for r in results])
    gradients = torch.autograd.grad(total.sum(), [logits, library, theta, pi, weight, bias])
    return torch.cat([t.detach().flatten() for t in (total, *gradients)])
"""
"""Defines ``everything(dtype)``: all values and gradients in one vector, on the backend in force."""


def run_fresh(code: str, folder: Path | None = None, **environment: str) -> list[str]:
    """Run code in a fresh interpreter and return the words that it prints.

    Parameters
    ----------
    code
        Python.
    folder
        What stands first in the search path; the sources under test come next.
    environment
        Variables to set.
    """
    path = [str(SRC)] if folder is None else [str(folder), str(SRC)]
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONDONTWRITEBYTECODE": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.split()
