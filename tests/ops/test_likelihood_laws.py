"""What holds for every likelihood operation: gradients, shapes, samples, empty cells, stored zeros, extremes."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.reference.cases import CASES, NB, POISSON, ZINB, Case, entrywise, problem

from countvi.batch import CountBlock
from countvi.ops import Link

LINKS = tuple(Link)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize(
    ("samples", "per"), [((), "gene"), ((), "cell"), ((2,), "gene"), ((2,), "cell"), ((2,), "sample")]
)
def test_gradients(case: Case, link: Link, samples: tuple[int, ...], per: str) -> None:
    data = problem(3, 4, samples, seed=1, per=per)
    tensors = [t.requires_grad_() for t in data.tensors(case)]
    assert torch.autograd.gradcheck(lambda *t: data.evaluate(case, link, *t), tensors)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_gradient_is_given_only_where_it_is_asked_for(case: Case) -> None:
    data = problem(3, 4, seed=2)
    everything = [t.clone().requires_grad_() for t in data.tensors(case)]
    full = torch.autograd.grad(data.evaluate(case, Link.SOFTMAX, *everything).sum(), everything)
    for i, expected in enumerate(full):
        alone = data.tensors(case)
        alone[i] = alone[i].clone().requires_grad_()
        (actual,) = torch.autograd.grad(data.evaluate(case, Link.SOFTMAX, *alone).sum(), [alone[i]])
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (41, 401)])
def test_samples_are_a_loop(case: Case, link: Link, shape: tuple[int, int]) -> None:
    data = problem(*shape, samples=(2, 3), seed=3, per="sample")
    together = data.evaluate(case, link, *data.tensors(case))
    assert together.shape == (2, 3, shape[0])
    for s in ((0, 0), (1, 2)):
        one = [t[s] if t.ndim > 2 else t for t in data.tensors(case)]
        torch.testing.assert_close(together[s], data.evaluate(case, link, *one))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_library_may_have_samples_of_its_own(case: Case) -> None:
    data = problem(4, 5, samples=(3,), seed=4)
    library = data.log_library + torch.arange(3.0, dtype=torch.float64)[:, None]
    _, _, *rest = data.tensors(case)
    together = data.evaluate(case, Link.SOFTMAX, data.logits, library, *rest)
    for s in range(3):
        one = data.evaluate(case, Link.SOFTMAX, data.logits[s], library[s], *(t[s] if t.ndim > 2 else t for t in rest))
        torch.testing.assert_close(together[s], one)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("link", LINKS)
def test_cells_do_not_see_each_other(case: Case, link: Link) -> None:
    data = problem(5, 6, seed=6, per="cell")
    together = data.evaluate(case, link, *data.tensors(case))
    dense = data.counts.to_dense()
    for i in range(5):
        cell = dataclasses.replace(data, counts=CountBlock.from_dense(dense[i : i + 1]))
        alone = cell.evaluate(case, link, *(t[i : i + 1] for t in data.tensors(case)))
        torch.testing.assert_close(together[i : i + 1], alone)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_stored_zeros_change_nothing(case: Case, dtype: torch.dtype) -> None:
    data = problem(4, 6, seed=7)
    plain = dataclasses.replace(data, counts=data.counts.to(dtype=dtype))
    everything = torch.arange(6).repeat(4), torch.arange(0, 25, 6)
    full = CountBlock(plain.counts.to_dense().flatten(), *everything, n_features=6)
    padded = dataclasses.replace(data, counts=full)
    results = []
    for version in (plain, padded):
        tensors = [t.to(dtype).requires_grad_() for t in data.tensors(case)]
        value = version.evaluate(case, Link.SOFTMAX, *tensors)
        results.append((value, *torch.autograd.grad(value.sum(), tensors)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("store_zero", [False, True])
def test_empty_cell_without_a_library(case: Case, link: Link, store_zero: bool) -> None:
    """Its counts are certain for a count likelihood: log-likelihood 0, no gradient, no NaN."""
    dense = torch.tensor([[0.0, 0.0, 0.0], [2.0, 0.0, 1.0]])
    counts = CountBlock.from_dense(dense)
    if store_zero:
        values, columns = torch.tensor([0.0, 2.0, 1.0]), torch.tensor([1, 0, 2])
        counts = CountBlock(values, columns, torch.tensor([0, 1, 3]), n_features=3)
    data = dataclasses.replace(problem(2, 3, seed=8), counts=counts)
    tensors = [t.float() for t in data.tensors(case)]
    tensors[1] = counts.totals().log()
    tensors = [t.clone().requires_grad_() for t in tensors]
    value = data.evaluate(case, link, *tensors)
    gradients = torch.autograd.grad(value.sum(), tensors)
    assert value.isfinite().all()
    assert all(g.isfinite().all() for g in gradients)
    assert not gradients[0][0].any()
    assert gradients[1][0] == 0
    if case in (NB, ZINB, POISSON):
        assert value[0] == 0


@pytest.mark.parametrize("case", [NB, ZINB, POISSON], ids=str)
def test_counts_without_a_library_are_impossible(case: Case) -> None:
    data = problem(2, 3, seed=9, density=1.0)
    tensors = data.tensors(case)
    tensors[1] = torch.full_like(tensors[1], -torch.inf)
    assert (data.evaluate(case, Link.SOFTMAX, *tensors) == -torch.inf).all()


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("link", LINKS)
def test_no_counts_at_all(case: Case, link: Link) -> None:
    data = problem(3, 4, seed=10, density=0.0)
    assert data.counts.values.numel() == 0
    tensors = [t.requires_grad_() for t in data.tensors(case)]
    value = data.evaluate(case, link, *tensors)
    assert value.shape == (3,)
    assert all(g.isfinite().all() for g in torch.autograd.grad(value.sum(), tensors))


extreme = st.floats(-1e4, 1e4, width=32)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    case=st.sampled_from([NB, ZINB, POISSON]),
    link=st.sampled_from(LINKS),
    logits=st.lists(extreme, min_size=1, max_size=5),
    log_library=st.one_of(st.just(-torch.inf), st.floats(-50, 60, width=32)),
    log_theta=st.floats(-60, 60, width=32),
    pi_logit=extreme,
    count=st.floats(0, 1e6, width=32),
)
def test_nothing_is_nan(case, link, logits, log_library, log_theta, pi_logit, count) -> None:
    n = len(logits)
    dense = torch.zeros(2, n)
    if log_library > -torch.inf:
        dense[0, 0] = count
    tensors = [torch.tensor([logits, logits]), torch.full((2,), log_library)]
    tensors += [
        {"log_theta": torch.full((n,), log_theta), "pi_logits": torch.full((2, n), pi_logit)}[e] for e in case.extras
    ]
    data = dataclasses.replace(problem(2, n), counts=CountBlock.from_dense(dense))
    tensors = [t.requires_grad_() for t in tensors]
    value = data.evaluate(case, link, *tensors)
    assert value.isfinite().all()
    assert (value <= 1e-3).all()
    assert all(g.isfinite().all() for g in torch.autograd.grad(value.sum(), tensors))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    case=st.sampled_from(CASES),
    link=st.sampled_from(LINKS),
    cells=st.integers(1, 6),
    genes=st.integers(1, 6),
    samples=st.sampled_from([(), (1,), (2,), (2, 3)]),
    per=st.sampled_from(["gene", "cell", "sample"]),
    density=st.sampled_from([0.0, 0.2, 1.0]),
    seed=st.integers(0, 1000),
)
def test_shapes(case, link, cells, genes, samples, per, density, seed) -> None:
    data = problem(cells, genes, samples, seed, density, per)
    tensors = [t.requires_grad_() for t in data.tensors(case)]
    value = data.evaluate(case, link, *tensors)
    assert value.shape == (*samples, cells)
    for t, g in zip(tensors, torch.autograd.grad(value.sum(), tensors), strict=True):
        assert g.shape == t.shape


@pytest.mark.parametrize("case", [NB, ZINB], ids=str)
def test_theta_to_infinity_is_poisson(case: Case) -> None:
    x = torch.tensor([0.0, 1.0, 3.0, 50.0])
    log_mu = torch.tensor([-2.0, 0.0, 1.0, 4.0])
    poisson = entrywise(POISSON, x, log_mu)
    extras = [torch.full_like(x, 18.5)] + [torch.full_like(x, -40.0)] * (case is ZINB)
    # What is left is of order mu^2 / theta = 3e-5 at most, and far less than it near the mode.
    torch.testing.assert_close(entrywise(case, x, log_mu, *extras), poisson, rtol=2e-6, atol=0)
    extras[0] = torch.full_like(x, 60.0)
    torch.testing.assert_close(entrywise(case, x, log_mu, *extras), poisson, rtol=2e-6, atol=0)


def test_no_dropout_is_negative_binomial() -> None:
    data = problem(5, 7, seed=11)
    nb = data.evaluate(NB, Link.SOFTMAX, *data.tensors(NB))
    for logit in (-40.0, -200.0, -1e4):
        data.extras["pi_logits"].fill_(logit)
        torch.testing.assert_close(data.evaluate(ZINB, Link.SOFTMAX, *data.tensors(ZINB)), nb, rtol=1e-12, atol=0)


def test_certain_dropout_makes_zeros_certain() -> None:
    x, log_mu, log_theta = torch.zeros(3), torch.tensor([-3.0, 2.0, 9.0]), torch.tensor([-2.0, 0.0, 3.0])
    value = entrywise(ZINB, x, log_mu, log_theta, torch.full((3,), 40.0))
    assert (value.abs() < 1e-17).all()
