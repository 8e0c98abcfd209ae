"""The choice of an implementation."""

from __future__ import annotations

import threading

import pytest
import torch

from countvi import ops
from countvi.batch import CountBlock
from countvi.errors import OptionError
from countvi.ops import Affine, Indexed, Link, _backend, cpu
from countvi.ops.cpu import launch


def test_auto_unless_told_otherwise() -> None:
    assert ops.active_backend() == "auto"
    with ops.backend("reference"):
        assert ops.active_backend() == "reference"
        with ops.backend("auto"):
            assert ops.active_backend() == "auto"
        assert ops.active_backend() == "reference"
    assert ops.active_backend() == "auto"


def test_an_error_inside_the_block_ends_the_choice() -> None:
    with pytest.raises(ZeroDivisionError), ops.backend("reference"):
        _ = 1 / 0
    assert ops.active_backend() == "auto"


def test_the_choice_is_the_threads_own() -> None:
    seen = []
    with ops.backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(ops.active_backend()))
        thread.start()
        thread.join()
    assert seen == ["auto"]


def test_unknown_backend_names_those_that_exist() -> None:
    with (
        pytest.raises(OptionError, match=r"'auto', 'cpu', 'reference'; got 'refrence'. Did you mean 'reference'"),
        ops.backend("refrence"),
    ):
        pass


def test_every_operation_with_a_kernel_runs_on_the_backend_in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []

    class Recorder:
        def __getattr__(self, name: str):
            return lambda *arguments: called.append((name, len(arguments)))

    monkeypatch.setattr(_backend, "reference", Recorder())
    a, counts, link = torch.zeros(1, 1), CountBlock.from_dense(torch.zeros(1, 1)), Link.SOFTMAX
    with ops.backend("reference"):
        ops.negative_binomial(a, a[0], a, counts, link)
        ops.zero_inflated_negative_binomial(a, a[0], a, a, counts, link)
        ops.poisson(a, a[0], counts, link)
        ops.gamma_poisson(a, a[0], Indexed(a, None), None, None, counts)
        ops.gamma_poisson_head(a, a, a[0], a[0], (Indexed(a, None), None, None), counts, 1, 1)
        ops.negative_binomial_mixture(a, a, a, a, counts)
        ops.rate_shape_negative_binomial(a, a[0], a[0], counts)
        ops.mixed_types_negative_binomial(a[None], Affine(a, a[0]), a[0], a, a[0], a[0], a[0], counts)
        ops.sparse_linear(counts, a, None, False)
        ops.linear(a, a, a[0])
        ops.fold_changes(a, a, a[0], 0.25)
    assert {name for name, _ in called} == set(cpu.__all__)


def test_only_operations_are_imported_when_asked_for() -> None:
    assert all(callable(getattr(cpu, name)) for name in cpu.__all__)
    with pytest.raises(AttributeError, match="no attribute 'gamma_poison'"):
        _ = cpu.gamma_poison


def test_a_field_that_a_job_does_not_have_is_refused() -> None:
    """A kernel would read zero, the address of what is absent."""
    with pytest.raises(ValueError, match="bias"):
        launch.launch(None, launch.job_type("weight"), 1, bias=1)
