"""What runs on the kernels, and what is left to the reference."""

from __future__ import annotations

import gc
import importlib.util
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.ops.cpu.agreement import COUNT_CASES, draw, run
from tests.ops.cpu.fresh import EVERYTHING, SRC, run_fresh
from tests.reference.cases import Case
from torch import Tensor

from countvi import ops
from countvi.batch import CountBlock
from countvi.errors import OptionError
from countvi.ops import Link

needs_numba = pytest.mark.skipif(
    importlib.util.find_spec("numba") is None, reason="the kernels need numba, which some platforms lack"
)

STAGES = f"""
import sys
loaded = lambda: "numba" in sys.modules
import countvi, countvi.ops
print(loaded())
{EVERYTHING}
everything(torch.float64)
print(loaded())
with ops.backend("reference"):
    everything()
    print(loaded())
    with ops.backend("auto"):
        everything()
    print(loaded())
"""


@needs_numba
def test_numba_is_loaded_for_the_kernels_alone() -> None:
    assert run_fresh(STAGES) == ["False", "False", "False", "True"]


@needs_numba
def test_what_has_no_kernel_runs_on_the_reference() -> None:
    inputs = draw(3, 5)
    for link in Link:
        for function in (
            lambda link: ops.log_scale(inputs.logits, link),
            lambda link: ops.log_rate(inputs.logits, inputs.log_library, link),
            lambda link: ops.normal(inputs.logits, torch.ones(3), inputs.extras["log_theta"], inputs.counts, link),
        ):
            with ops.backend("reference"):
                expected = function(link)
            for name in ("auto", "cpu"):
                with ops.backend(name):
                    assert torch.equal(function(link), expected)


def value(name: str, dtype: torch.dtype, case: Case) -> Tensor:
    inputs = draw(11, 70, seed=1)
    inputs = inputs.double() if dtype == torch.float64 else inputs
    with ops.backend(name):
        return run(inputs, case, Link.SOFTMAX)[0]


@needs_numba
@pytest.mark.parametrize("case", COUNT_CASES, ids=str)
def test_auto_is_the_kernels_in_float32_and_the_reference_in_float64(case: Case) -> None:
    kernels, reference = value("cpu", torch.float32, case), value("reference", torch.float32, case)
    assert not torch.equal(kernels, reference), "the two cannot be told apart"
    assert torch.equal(value("auto", torch.float32, case), kernels)
    assert torch.equal(value("auto", torch.float64, case), value("reference", torch.float64, case))


@needs_numba
def test_blocks_nest() -> None:
    case = COUNT_CASES[0]
    kernels, reference = value("cpu", torch.float32, case), value("reference", torch.float32, case)
    inputs = draw(11, 70, seed=1)
    with ops.backend("reference"):
        with ops.backend("cpu"):
            inner, _ = run(inputs, case, Link.SOFTMAX)
        outer, _ = run(inputs, case, Link.SOFTMAX)
    with ops.backend("cpu"), ops.backend("reference"):
        innermost, _ = run(inputs, case, Link.SOFTMAX)
    assert torch.equal(inner, kernels)
    assert torch.equal(outer, reference)
    assert torch.equal(innermost, reference)


@needs_numba
def test_the_backward_pass_is_that_of_the_forward_pass() -> None:
    """Whatever backend is in force when the gradient is asked for."""
    case, inputs = COUNT_CASES[0], draw(11, 70, seed=2)
    with ops.backend("cpu"):
        _, expected = run(inputs, case, Link.SOFTMAX)
        tensors = [t.clone().requires_grad_() for t in inputs.tensors(case)]
        value = inputs.evaluate(case, Link.SOFTMAX, tensors)
    with ops.backend("reference"):
        value.sum().backward()
    for tensor, gradient in zip(tensors, expected, strict=True):
        assert torch.equal(tensor.grad, gradient)


OTHER = {
    "float64": lambda t: t.double(),
    "another device": lambda t: t.to("meta"),
}


@pytest.mark.parametrize(
    ("case", "position"), [(case, i) for case in COUNT_CASES for i in range(2 + len(case.extras))], ids=str
)
def test_double_precision_is_as_in_the_reference(case: Case, position: int) -> None:
    """One tensor that is float64 is enough."""
    inputs = draw(3, 5, seed=3)
    tensors = inputs.tensors(case)
    assert len(tensors) == 2 + len(case.extras), "each of them is varied"
    tensors[position] = tensors[position].double()
    results = []
    for name in ("auto", "reference"):
        with ops.backend(name):
            results.append(inputs.evaluate(case, Link.SOFTMAX, tensors))
    assert results[0].dtype == results[1].dtype
    assert torch.equal(*results)


@pytest.mark.parametrize("case", COUNT_CASES, ids=str)
@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened(case: Case, narrow: torch.dtype) -> None:
    """The likelihood is that of the narrow numbers, computed in float32."""
    inputs = draw(3, 5, seed=3)
    tensors = [t.to(narrow) for t in inputs.tensors(case)]
    wide = inputs.evaluate(case, Link.SOFTMAX, [t.float() for t in tensors])
    assert wide.dtype == torch.float32
    assert torch.equal(inputs.evaluate(case, Link.SOFTMAX, tensors), wide)


def test_another_device_is_left_to_the_reference() -> None:
    inputs = draw(3, 5, seed=4)
    counts = inputs.counts.to("meta")
    for case in COUNT_CASES:
        tensors = [t.to("meta") for t in inputs.tensors(case)]
        logits, library, *rest = tensors
        out = case(logits, library, dict(zip(case.extras, rest, strict=True)), counts, Link.SOFTMAX)
        assert out.device.type == "meta"
    weight = torch.zeros(2, 5, device="meta")
    assert ops.sparse_linear(counts, weight, None, True).device.type == "meta"


@needs_numba
@pytest.mark.parametrize("other", OTHER)
def test_cpu_refuses_what_is_not_float32_on_the_cpu(other: str) -> None:
    inputs = draw(3, 5, seed=5)
    make = OTHER[other]
    found = {"float64": "float64", "another device": "meta"}[other]
    for case in COUNT_CASES:
        tensors = [make(t) for t in inputs.tensors(case)]
        with ops.backend("cpu"), pytest.raises(OptionError, match=rf"float32 .*{found}"):
            inputs.evaluate(case, Link.SOFTMAX, tensors)
    with ops.backend("cpu"), pytest.raises(OptionError, match=rf"float32 .*{found}"):
        ops.sparse_linear(inputs.counts, make(torch.zeros(2, 5)), None, True)


def test_without_numba_everything_runs_on_the_reference() -> None:
    code = f"""
import sys
sys.modules["numba"] = None
{EVERYTHING}
from countvi.errors import OptionError
automatic = everything()
with ops.backend("reference"):
    print(torch.equal(automatic, everything()), automatic.isfinite().all().item())
try:
    with ops.backend("cpu"):
        everything()
except OptionError as error:
    print("numba" in str(error), ops.active_backend())
"""
    assert run_fresh(code) == ["True", "True", "True", "auto"]


def test_a_numba_that_cannot_be_imported_is_no_numba(tmp_path: Path) -> None:
    """As when it is older than numpy, which it says by an ``ImportError``."""
    (tmp_path / "numba").mkdir()
    (tmp_path / "numba" / "__init__.py").write_text("raise ImportError('Numba needs another NumPy')", encoding="utf-8")
    code = f"""{EVERYTHING}
automatic = everything()
with ops.backend("reference"):
    print(torch.equal(automatic, everything()))
"""
    assert run_fresh(code, tmp_path) == ["True"]


@needs_numba
@pytest.mark.parametrize("case", COUNT_CASES, ids=str)
@pytest.mark.parametrize("keep_value", [False, True])
def test_nothing_is_kept_after_the_backward_pass(case: Case, keep_value: bool) -> None:
    inputs = draw(5, 40, seed=6)
    arrays: list[weakref.ref[np.ndarray]] = []

    def watched(tensor: Tensor) -> Tensor:
        """Copy a tensor into an array that lives as long as the tensor's storage."""
        array = tensor.numpy().copy()
        arrays.append(weakref.ref(array))
        return torch.from_numpy(array)

    def forward(logits: Tensor) -> Tensor:
        block = inputs.counts
        counts = CountBlock(watched(block.values), watched(block.columns), watched(block.offsets), block.n_features)
        extras = {name: watched(value) for name, value in inputs.extras.items()}
        return case(logits, watched(inputs.log_library), extras, counts, Link.SOFTMAX)

    logits = inputs.logits.clone().requires_grad_()
    with ops.backend("cpu"):
        value = forward(logits)
    value.sum().backward()
    if not keep_value:
        del value
    gc.collect()
    assert sum(array() is not None for array in arrays) == 0


@needs_numba
def test_the_first_layer_keeps_nothing_after_the_backward_pass() -> None:
    array = draw(5, 40, seed=7).counts.to_dense().numpy().copy()
    weight = np.ones((3, 40), np.float32)
    alive = [weakref.ref(weight), weakref.ref(array)]
    with ops.backend("cpu"):
        counts = CountBlock(
            torch.from_numpy(array).view(-1), torch.arange(40).repeat(5), torch.arange(0, 201, 40), n_features=40
        )
        leaf = torch.from_numpy(weight).requires_grad_()
        out = ops.sparse_linear(counts, leaf, None, True)
        out.sum().backward()
    del array, weight, counts, leaf, out
    gc.collect()
    assert [ref() for ref in alive] == [None, None]


@needs_numba
@pytest.mark.parametrize("case", COUNT_CASES, ids=str)
@pytest.mark.parametrize("weights", [("ones", "ones"), ("ones", "random"), ("random", "ones"), ("half", "half")])
def test_a_second_backward_pass_adds_the_same_again(case: Case, weights: tuple[str, str]) -> None:
    inputs = draw(9, 40, seed=8)
    generator = torch.Generator().manual_seed(0)
    drawn = {"ones": torch.ones(9), "half": torch.full((9,), 0.5), "random": torch.randn(9, generator=generator)}
    chosen = [drawn[name] for name in weights]
    with ops.backend("cpu"):
        parts = [run(inputs, case, Link.SOFTMAX, weight)[1] for weight in chosen]
        tensors = [t.clone().requires_grad_() for t in inputs.tensors(case)]
        value = inputs.evaluate(case, Link.SOFTMAX, tensors)
        value.backward(chosen[0], retain_graph=True)
        value.backward(chosen[1])
    for tensor, first, second in zip(tensors, *parts, strict=True):
        torch.testing.assert_close(tensor.grad, first + second, rtol=1e-6, atol=1e-5 * first.abs().max().item())


SPAWN = f"""{EVERYTHING}
import multiprocessing

def child(number):
    torch.set_num_threads(2)
    return everything().tolist()

if __name__ == "__main__":
    torch.set_num_threads(2)
    mine = everything().tolist()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.map(child, [0]) == [mine])
"""


@needs_numba
def test_a_spawned_child_computes_the_same(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SPAWN, encoding="utf-8")
    result = subprocess.run(
        [sys.executable, str(script)],
        env={"PYTHONPATH": str(SRC), "PATH": "", "HOME": str(Path.home())},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["True"]


# ``assert`` is for what only countvi itself can get wrong. A kernel that took it would go beyond its arrays.
refused = pytest.raises((AssertionError, RuntimeError, ValueError, IndexError))


@needs_numba
@pytest.mark.parametrize("case", COUNT_CASES, ids=str)
@pytest.mark.parametrize("size", [(4, 5), (4, 7), (3, 6), (5, 6)])
def test_counts_of_another_size_are_refused(case: Case, size: tuple[int, int]) -> None:
    inputs, other = draw(4, 6, seed=9), CountBlock.from_dense(torch.ones(size))
    with ops.backend("cpu"), refused:
        case(inputs.logits, inputs.log_library, inputs.extras, other, Link.SOFTMAX)


@needs_numba
@pytest.mark.parametrize("name", ["log_library", "log_theta", "pi_logits"])
@pytest.mark.parametrize("size", [(3,), (5,), (12,), (4, 5), (5, 6), (3, 6)])
def test_parameters_of_another_size_are_refused(name: str, size: tuple[int, ...]) -> None:
    inputs = draw(4, 6, seed=9)
    arguments = {"log_library": inputs.log_library, **inputs.extras} | {name: torch.zeros(size)}
    with ops.backend("cpu"), refused:
        ops.zero_inflated_negative_binomial(inputs.logits, **arguments, counts=inputs.counts, link=Link.SOFTMAX)


@needs_numba
@pytest.mark.parametrize(
    ("weight", "bias"),
    [
        (torch.ones(3, 5), torch.ones(3)),
        (torch.ones(3, 7), torch.ones(3)),
        (torch.ones(3, 6), torch.ones(2)),
        (torch.ones(3, 6), torch.ones(4)),
        (torch.ones(3, 6), torch.ones(3, dtype=torch.float64)),
    ],
)
def test_a_first_layer_that_does_not_fit_is_refused(weight: Tensor, bias: Tensor) -> None:
    counts = CountBlock(torch.ones(1), torch.tensor([5]), torch.tensor([0, 1, 1, 1, 1]), n_features=6)
    with ops.backend("reference"), refused:
        ops.sparse_linear(counts, weight, bias, True)
    with ops.backend("cpu"), refused:
        ops.sparse_linear(counts, weight, bias, True)


@pytest.mark.parametrize("name", ["reference", pytest.param("cpu", marks=needs_numba)])
def test_no_cells(name: str) -> None:
    inputs = draw(4, 6, seed=10).cells(slice(0, 0))
    with ops.backend(name):
        for case in COUNT_CASES:
            value, gradients = run(inputs, case, Link.SOFTMAX)
            assert value.shape == (0,)
            assert [g.shape for g in gradients] == [t.shape for t in inputs.tensors(case)]
            assert not any(g.any() for g in gradients)
        weight = torch.ones(3, 6, requires_grad=True)
        out = ops.sparse_linear(inputs.counts, weight, None, True)
        out.sum().backward()
        assert out.shape == (0, 3)
        assert weight.grad is not None
        assert not weight.grad.any()
