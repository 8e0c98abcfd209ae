"""Who is told that kernels are being compiled, and who is not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
from countvi import ops
from countvi.ops import _notice
_notice._PATIENCE = 0.0
with ops.quietly({quiet}):
    from countvi.ops.cpu.first_layer import sparse_linear
"""


def _said(cache: Path, quiet: bool) -> str:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache)}
    command = [sys.executable, "-c", CODE.format(quiet=quiet)]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stderr


@pytest.mark.slow
def test_only_compiling_is_told_of(tmp_path) -> None:
    first, second = _said(tmp_path / "kernels", False), _said(tmp_path / "kernels", False)
    assert first.count("compiling its kernels") == 1
    assert second == ""


@pytest.mark.slow
def test_silence_on_request(tmp_path) -> None:
    assert _said(tmp_path / "kernels", True) == ""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no os.fork")
def test_a_forked_child_does_not_wait_for_threads_it_has_not() -> None:
    code = """
import os, sys, torch
torch.set_num_threads(2)
from countvi.ops.cpu import threads
import numpy as np, ctypes
calls = []
kernel = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(calls.append)
address = ctypes.cast(kernel, ctypes.c_void_p).value
threads._runner = lambda: lambda *arguments: os._exit(3)
child = os.fork()
if child == 0:
    threads.run(address, np.zeros(4, np.int64), 10**9)
    os._exit(0 if len(calls) == 1 else 4)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=120)
