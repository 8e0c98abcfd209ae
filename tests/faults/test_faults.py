"""A few tries of each part of ``make faults``: none ends in a foreign error, a hang, or a silent difference."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "faults.py"
TRIES = 12

pytestmark = [
    pytest.mark.skipif(os.name == "nt" or sys.platform == "darwin", reason="limits of a process are those of Linux"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of fork in a process with threads
]


@pytest.fixture(scope="module")
def faults():
    spec = importlib.util.spec_from_file_location("faults", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Training in a forked child needs a parent without threads, which only the script can promise.
@pytest.mark.parametrize("part", ["model folders", "scvi-tools archives", "data files"])
def test_a_few_tries(faults, part, tmp_path):
    tries = list(faults.PARTS[part](tmp_path, 0.05))
    for what, attempt in tries[:: max(1, len(tries) // TRIES)]:
        if what.startswith(("pipe", "/dev/zero")):
            continue
        outcome, detail = faults.outcome_of(attempt)
        assert outcome not in faults.FAULTS, f"{what}: {detail}"
