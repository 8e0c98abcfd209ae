"""The kernels of counts whose shape is the rate, of cells and of spots, against the reference in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
from tests.ops.cpu.agreement import threads
from torch import Tensor

from countvi import ops
from countvi.batch import CountBlock
from countvi.ops import Affine

pytest.importorskip("numba", reason="the kernels need numba, which some platforms lack")

# Relative to the largest entry of each result: some roundings in float32 on the way to a slope.
TOLERANCE = 1e-6


def counts_of(cells: int, genes: int, generator: torch.Generator) -> CountBlock:
    """Counts of every kind: an empty cell, fractions, a large one, stored zeros."""
    dense = torch.poisson(torch.rand(cells, genes, generator=generator) * 3, generator=generator)
    dense[torch.rand(cells, genes, generator=generator) < 0.7] = 0
    dense[0] = 0
    dense[-1, : genes // 3] = 12.5
    dense[-1, -1] = 3e5
    if cells % 2:
        return CountBlock.from_dense(dense)
    return CountBlock(
        dense.flatten(), torch.arange(genes).repeat(cells), torch.arange(0, dense.numel() + 1, genes), genes
    )


def assert_agrees(found: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.float32
        assert a.shape == b.shape
        assert ((a.double() - b).abs() <= TOLERANCE * b.abs().max() + 1e-9).all()


def cells_problem(cells: int, genes: int, samples: tuple[int, ...] = ()) -> tuple[list[Tensor], CountBlock]:
    generator = torch.Generator().manual_seed(cells * genes)
    tensors = [
        3 * torch.randn(*samples, cells, genes, generator=generator),
        torch.randn(*samples[:1], *[1] * len(samples[1:]), cells, generator=generator),
        torch.randn(genes, generator=generator),
    ]
    return tensors, counts_of(cells, genes, generator)


def spots_problem(spots: int, genes: int, types: int = 3, units: int = 7) -> tuple[list[Tensor], CountBlock, Affine]:
    generator = torch.Generator().manual_seed(spots * genes + types)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    tensors = [
        normal(spots, types, units),
        0.3 * normal(genes),
        normal(spots, types + 1).exp(),
        normal(genes).exp(),
        normal(spots),
        normal(genes),
    ]
    layer = Affine(2 * normal(genes, units) / units**0.5, normal(genes) - 1)
    return tensors, counts_of(spots, genes, generator), layer


def evaluate(
    backend: str,
    dtype: torch.dtype,
    tensors: list[Tensor],
    counts: CountBlock,
    weight: Tensor | None = None,
    layer: Affine | None = None,
) -> list[Tensor]:
    """Value and gradients, of spots where there is a layer."""
    leaves = [t.to(dtype).clone().requires_grad_() for t in tensors]
    with ops.backend(backend):
        if layer is None:
            out = ops.rate_shape_negative_binomial(*leaves, counts)
        else:
            layer = Affine(*(t.to(dtype) for t in layer))
            out = ops.mixed_types_negative_binomial(leaves[0], layer, *leaves[1:], counts)
    loss = -out.mean() if weight is None else (out * weight.to(dtype)).sum()
    return [out.detach(), *torch.autograd.grad(loss, leaves)]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("samples", [(), (3,), (2, 2)], ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (2, 50), (50, 1), (41, 401)], ids=str)
def test_cells(shape, samples, weighted) -> None:
    tensors, counts = cells_problem(*shape, samples)
    weight = torch.rand(*samples, shape[0], generator=torch.Generator().manual_seed(9)) if weighted else None
    found = evaluate("cpu", torch.float32, tensors, counts, weight)
    assert_agrees(found, evaluate("reference", torch.float64, tensors, counts, weight))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("types", [1, 3])
@pytest.mark.parametrize("shape", [(1, 1), (2, 50), (50, 1), (41, 401)], ids=str)
def test_spots(shape, types, weighted) -> None:
    tensors, counts, layer = spots_problem(*shape, types)
    weight = torch.randn(shape[0], generator=torch.Generator().manual_seed(9)) if weighted else None
    found = evaluate("cpu", torch.float32, tensors, counts, weight, layer)
    assert_agrees(found, evaluate("reference", torch.float64, tensors, counts, weight, layer))


@pytest.mark.parametrize("space", [1, 1 << 22])
def test_types_that_a_spot_does_not_hold(space: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """They change nothing, have no slope, and no product is made for them."""
    from countvi.ops.cpu import mixed_types

    monkeypatch.setattr(mixed_types, "_SPACE", space)
    rows, plain = [], mixed_types.product

    def noted(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows.append(len(x))
        return plain(x, weight, bias)

    monkeypatch.setattr(mixed_types, "product", noted)
    tensors, counts, layer = spots_problem(23, 50, types=4)
    held = torch.rand(23, 4, generator=torch.Generator().manual_seed(3)) < 0.4
    held[5], held[6], held[7:, 2] = False, True, False
    tensors[2][:, :-1] *= held
    weight = torch.rand(23, generator=torch.Generator().manual_seed(9))
    found = evaluate("cpu", torch.float32, tensors, counts, weight, layer)
    assert sum(rows) == 2 * held.sum()
    assert_agrees(found, evaluate("reference", torch.float64, tensors, counts, weight, layer))
    by_hidden, by_abundance = found[1], found[3]
    assert ((by_hidden != 0).any(-1) == held).all()
    assert ((by_abundance[:, :-1] != 0) == held).all()
    # Those that are held are as if the others were not in the list of types.
    alone = [tensors[0][:1, held[0]], tensors[1], tensors[2][:1, [*held[0].tolist(), True]], tensors[3]]
    first = CountBlock.from_dense(counts.to_dense()[:1])
    one = evaluate("reference", torch.float64, [*alone, tensors[4][:1], tensors[5]], first, weight[:1], layer)
    torch.testing.assert_close(found[0][:1].double(), one[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(by_abundance[0, :-1][held[0]].double(), one[3][0, :-1], rtol=1e-4, atol=1e-5)


def test_spots_in_several_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with products large enough for oneDNN; the parts do not change a bit of what a spot gives."""
    from countvi.ops.cpu import mixed_types

    tensors, counts, layer = spots_problem(37, 900, types=5, units=64)
    weight = torch.rand(37, generator=torch.Generator().manual_seed(9))
    expected = evaluate("reference", torch.float64, tensors, counts, weight, layer)
    for space in (1, 16 * 4 * 5 * 900, 1 << 30):
        monkeypatch.setattr(mixed_types, "_SPACE", space)
        assert_agrees(evaluate("cpu", torch.float32, tensors, counts, weight, layer), expected)


@pytest.mark.parametrize("of_spots", [False, True])
def test_each_subset_of_gradients(of_spots: bool) -> None:
    tensors, counts, layer = spots_problem(9, 30) if of_spots else (*cells_problem(9, 30), None)
    full = evaluate("cpu", torch.float32, tensors, counts, None, layer)
    for asked in itertools.product((True, False), repeat=len(tensors)):
        leaves = [t.clone().requires_grad_(a) for t, a in zip(tensors, asked, strict=True)]
        with ops.backend("cpu"):
            if layer is None:
                out = ops.rate_shape_negative_binomial(*leaves, counts)
            else:
                out = ops.mixed_types_negative_binomial(leaves[0], layer, *leaves[1:], counts)
        assert torch.equal(out.detach(), full[0])
        if any(asked):
            (-out.mean()).backward()
        for leaf, is_asked, expected in zip(leaves, asked, full[1:], strict=True):
            assert torch.equal(leaf.grad, expected) if is_asked else leaf.grad is None


@pytest.mark.parametrize("of_spots", [False, True])
def test_asked_for_twice(of_spots: bool) -> None:
    tensors, counts, layer = spots_problem(9, 30) if of_spots else (*cells_problem(9, 30), None)
    leaf = tensors[0].clone().requires_grad_()
    with ops.backend("cpu"):
        if layer is None:
            loss = -ops.rate_shape_negative_binomial(leaf, *tensors[1:], counts).mean()
        else:
            loss = -ops.mixed_types_negative_binomial(leaf, layer, *tensors[1:], counts).mean()
    once, twice = (torch.autograd.grad(loss, leaf, retain_graph=True)[0].clone() for _ in range(2))
    assert torch.equal(once, twice)


@pytest.mark.parametrize("of_spots", [False, True])
def test_any_number_of_threads_gives_the_same_bits(of_spots: bool) -> None:
    """With products small enough for torch, which are not the kernel's."""
    tensors, counts, layer = spots_problem(60, 600, units=2) if of_spots else (*cells_problem(100, 800), None)
    one, two = [], []
    for number, results in ((1, one), (2, two)):
        with threads(number):
            results += evaluate("cpu", torch.float32, tensors, counts, None, layer)
    kept = slice(0, 1) if of_spots else slice(None)
    assert all(torch.equal(a, b) for a, b in zip(one[kept], two[kept], strict=True))


@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened(narrow: torch.dtype) -> None:
    tensors, counts, layer = spots_problem(5, 7)
    found = evaluate("cpu", torch.float32, [t.to(narrow).float() for t in tensors], counts, None, layer)
    hidden, *rest = (t.to(narrow) for t in tensors)
    with ops.backend("cpu"):
        assert torch.equal(ops.mixed_types_negative_binomial(hidden, layer, *rest, counts), found[0])
    tensors, counts = cells_problem(5, 7)
    narrowed = [t.to(narrow) for t in tensors]
    with ops.backend("cpu"):
        out = ops.rate_shape_negative_binomial(*narrowed, counts)
        assert torch.equal(out, ops.rate_shape_negative_binomial(*(t.float() for t in narrowed), counts))


def test_extremes_of_cells_are_finite() -> None:
    """Logits at which the softplus underflows, certain and impossible genes, an empty cell without a library."""
    logits = torch.tensor([[-200.0, 80.0, 0.0], [-1e4, -30.0, 40.0], [0.0, 0.0, 0.0]])
    library, p = torch.tensor([0.0, -3.0, -torch.inf]), torch.tensor([-60.0, 30.0, 0.0])
    counts = CountBlock.from_dense(torch.tensor([[1.0, 0.0, 0.0], [3.0, 9.0, 5.0], [0.0, 0.0, 0.0]]))
    found = evaluate("cpu", torch.float32, [logits, library, p], counts)
    assert all(t.isfinite().all() for t in found)
    assert found[0][2] == 0
    assert_agrees(found, evaluate("reference", torch.float64, [logits, library, p], counts))


def test_extremes_of_spots_are_finite() -> None:
    """No abundance at all, nothing but noise, no library, logits from -80 to 300."""
    tensors, counts, _ = spots_problem(5, 6, types=2, units=1)
    dense = counts.to_dense()
    tensors[2][:2], dense[:2] = 0.0, 0.0
    tensors[2][2, :-1] = 0.0
    tensors[4][3], dense[3] = -torch.inf, 0.0
    tensors[0][4, 0] = 1.0
    layer = Affine(torch.tensor([[-80.0], [300.0], [0.0], [-30.0], [20.0], [5.0]]), torch.zeros(6))
    counts = CountBlock.from_dense(dense)
    found = evaluate("cpu", torch.float32, tensors, counts, None, layer)
    assert all(t.isfinite().all() for t in found)
    assert found[0][[0, 1, 3]].tolist() == [0.0, 0.0, 0.0]
    assert_agrees(found, evaluate("reference", torch.float64, tensors, counts, None, layer))
    dense[0, 1] = 2.0
    with ops.backend("cpu"):
        out = ops.mixed_types_negative_binomial(tensors[0], layer, *tensors[1:], CountBlock.from_dense(dense))
    assert out[0] == -torch.inf


def test_nan_stays_in_its_cell_or_spot() -> None:
    for place in range(2):
        tensors, counts, layer = spots_problem(6, 20)
        tensors[2 * place][3, 1] = torch.nan
        with ops.backend("cpu"):
            out = ops.mixed_types_negative_binomial(tensors[0], layer, *tensors[1:], counts)
        assert out.isnan().tolist() == [spot == 3 for spot in range(6)]
    tensors, counts = cells_problem(6, 20)
    for gene in range(20):
        spoilt = tensors[0].clone()
        spoilt[3, gene] = torch.nan
        with ops.backend("cpu"):
            out = ops.rate_shape_negative_binomial(spoilt, *tensors[1:], counts)
        assert out.isnan().tolist() == [cell == 3 for cell in range(6)]


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_under_autocast_all_is_float32(backend: str) -> None:
    tensors, counts, layer = spots_problem(6, 20)
    leaf, *rest = (t.clone().requires_grad_() for t in tensors)
    found, expected = [], []
    for results, enabled in ((found, True), (expected, False)):
        with ops.backend(backend), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = ops.mixed_types_negative_binomial(leaf, layer, *rest, counts)
        results += [out, *torch.autograd.grad(out.sum(), [leaf, *rest])]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_what_does_not_fit_is_refused() -> None:
    tensors, counts = cells_problem(6, 20)
    with ops.backend("cpu"):
        with pytest.raises(AssertionError, match="fit"):
            ops.rate_shape_negative_binomial(*tensors, CountBlock.from_dense(torch.ones(6, 21)))
        with pytest.raises(AssertionError, match="log-odds"):
            ops.rate_shape_negative_binomial(*tensors[:2], torch.zeros(19), counts)
    tensors, counts, layer = spots_problem(6, 20)
    for position in range(6):
        wrong = [*tensors]
        wrong[position] = wrong[position][..., :-1]
        with ops.backend("cpu"), pytest.raises(AssertionError, match="fit"):
            ops.mixed_types_negative_binomial(wrong[0], layer, *wrong[1:], counts)
    with ops.backend("cpu"), pytest.raises(AssertionError, match="fit"):
        ops.mixed_types_negative_binomial(tensors[0], layer, *tensors[1:], CountBlock.from_dense(torch.ones(5, 20)))
