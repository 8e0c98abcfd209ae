"""What holds for every distribution of counts."""

from __future__ import annotations

import pytest
import torch
from tests.reference.cases import CASES, NB, Case, Problem, problem
from torch.distributions import Distribution

from countvi.batch import CountBlock
from countvi.errors import MismatchError, OptionError
from countvi.likelihoods.base import CountLikelihood
from countvi.likelihoods.rate import Rate
from countvi.ops import Link

every = pytest.mark.parametrize("case", CASES, ids=str)


def build(case: Case, data: Problem, link: Link = Link.SOFTMAX) -> CountLikelihood:
    return case.likelihood(Rate(data.logits, data.log_library, link), *(data.extras[name] for name in case.extras))


@every
@pytest.mark.parametrize("samples", [(), (2,), (2, 3)])
@pytest.mark.parametrize("per", ["gene", "cell", "sample"])
def test_shapes(case: Case, samples: tuple[int, ...], per: str) -> None:
    data = problem(4, 5, samples, per=per)
    likelihood = build(case, data)
    assert isinstance(likelihood, Distribution)
    assert likelihood.batch_shape == (*samples, 4)
    assert likelihood.event_shape == (5,)
    assert likelihood.log_prob(data.counts).shape == (*samples, 4)
    assert likelihood.mean.shape == (*samples, 4, 5)
    assert likelihood.variance.shape == (*samples, 4, 5)
    generator = torch.Generator().manual_seed(0)
    assert likelihood.sample(generator=generator).shape == (*samples, 4, 5)
    assert likelihood.sample((6, 7), generator).shape == (6, 7, *samples, 4, 5)


@every
@pytest.mark.parametrize("link", list(Link))
def test_log_prob_is_the_operation(case: Case, link: Link) -> None:
    data = problem(4, 5, seed=1)
    expected = case(data.logits, data.log_library, data.extras, data.counts, link)
    assert torch.equal(build(case, data, link).log_prob(data.counts), expected)


@every
def test_parameters_receive_gradients(case: Case) -> None:
    data = problem(4, 5, seed=2)
    tensors = data.tensors(case)
    for t in tensors:
        t.requires_grad_()
    build(case, data).log_prob(data.counts).sum().backward()
    assert all(t.grad is not None and t.grad.abs().sum() > 0 for t in tensors)


@every
def test_optional_parameters(case: Case) -> None:
    data = problem(4, 5)
    likelihood = build(case, data)
    if "log_theta" in case.extras:
        torch.testing.assert_close(likelihood.theta, data.extras["log_theta"].exp())
    else:
        assert likelihood.theta is None
    if "pi_logits" in case.extras:
        torch.testing.assert_close(likelihood.dropout_probability, 1 / (1 + (-data.extras["pi_logits"]).exp()))
    else:
        assert likelihood.dropout_probability is None


@every
def test_dense_counts_are_refused(case: Case) -> None:
    data = problem(4, 5)
    with pytest.raises(OptionError, match=r"log_prob expects a CountBlock; got Tensor\. Pass CountBlock\.from_dense"):
        build(case, data).log_prob(data.counts.to_dense())  # type: ignore[arg-type]


@every
@pytest.mark.parametrize("shape", [(3, 5), (4, 6), (1, 5), (4, 1)])
def test_counts_of_another_shape_are_refused(case: Case, shape: tuple[int, int]) -> None:
    message = rf"expects counts of 4 cells x 5 genes; got {shape[0]} x {shape[1]}\. "
    with pytest.raises(MismatchError, match=message):
        build(case, problem(4, 5)).log_prob(CountBlock.from_dense(torch.zeros(shape)))


@every
def test_samples_repeat_with_the_generator_and_leave_torchs_stream_alone(case: Case) -> None:
    likelihood = build(case, problem(4, 5))
    before = torch.random.get_rng_state()
    first, second = (likelihood.sample((3,), torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, likelihood.sample((3,), torch.Generator().manual_seed(6)))
    assert torch.equal(torch.random.get_rng_state(), before)


@every
def test_samples_have_no_gradient(case: Case) -> None:
    data = problem(4, 5)
    data.logits.requires_grad_()
    assert not build(case, data).sample(generator=torch.Generator().manual_seed(0)).requires_grad


def test_torchs_own_distributions_still_validate() -> None:
    build(NB, problem(2, 2))
    with pytest.raises(ValueError, match="constraint"):
        torch.distributions.Poisson(torch.tensor(-1.0))


def test_base_is_abstract() -> None:
    with pytest.raises(TypeError, match="abstract"):
        CountLikelihood(Rate(torch.zeros(1, 1), torch.zeros(1), Link.SOFTMAX))  # type: ignore[abstract]
