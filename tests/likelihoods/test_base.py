"""What holds for every distribution of counts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.reference.cases import Problem, problem
from torch import Tensor
from torch.distributions import Distribution

from countvi import ops
from countvi.batch import CountBlock
from countvi.errors import MismatchError, OptionError
from countvi.likelihoods.base import CountLikelihood
from countvi.likelihoods.negative_binomial import NegativeBinomial
from countvi.likelihoods.normal import Normal
from countvi.likelihoods.poisson import Poisson
from countvi.likelihoods.rate import Rate
from countvi.likelihoods.zero_inflated import ZeroInflatedNegativeBinomial
from countvi.ops import Link

Build = Callable[[Rate, dict[str, Tensor]], CountLikelihood]
BUILD: dict[str, Build] = {
    "nb": lambda rate, e: NegativeBinomial(rate, e["log_theta"]),
    "zinb": lambda rate, e: ZeroInflatedNegativeBinomial(rate, e["log_theta"], e["pi_logits"]),
    "poisson": lambda rate, e: Poisson(rate),
    "normal": lambda rate, e: Normal(rate, e["log_scale"]),
}
every = pytest.mark.parametrize("name", list(BUILD))


def build(name: str, data: Problem, link: Link = Link.SOFTMAX) -> CountLikelihood:
    return BUILD[name](Rate(data.logits, data.log_library, link), data.extras)


@every
@pytest.mark.parametrize("samples", [(), (2,), (2, 3)])
@pytest.mark.parametrize("per", ["gene", "cell", "sample"])
def test_shapes(name: str, samples: tuple[int, ...], per: str) -> None:
    data = problem(4, 5, samples, per=per)
    likelihood = build(name, data)
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
def test_log_prob_is_the_operation(name: str, link: Link) -> None:
    data = problem(4, 5, seed=1)
    a, b, counts = data.logits, data.log_library, data.counts
    theta, pi, sigma = (data.extras[e] for e in ("log_theta", "pi_logits", "log_scale"))
    expected = {
        "nb": lambda: ops.negative_binomial(a, b, theta, counts, link),
        "zinb": lambda: ops.zero_inflated_negative_binomial(a, b, theta, pi, counts, link),
        "poisson": lambda: ops.poisson(a, b, counts, link),
        "normal": lambda: ops.normal(a, b, sigma, counts, link),
    }[name]()
    assert torch.equal(build(name, data, link).log_prob(counts), expected)


@every
def test_parameters_receive_gradients(name: str) -> None:
    data = problem(4, 5, seed=2)
    used = {"nb": ["log_theta"], "zinb": ["log_theta", "pi_logits"], "poisson": [], "normal": ["log_scale"]}[name]
    tensors = [data.logits, data.log_library, *(data.extras[e] for e in used)]
    for t in tensors:
        t.requires_grad_()
    build(name, data).log_prob(data.counts).sum().backward()
    assert all(t.grad is not None and t.grad.abs().sum() > 0 for t in tensors)


@every
def test_optional_parameters(name: str) -> None:
    data = problem(4, 5)
    likelihood = build(name, data)
    if name in {"nb", "zinb"}:
        torch.testing.assert_close(likelihood.theta, data.extras["log_theta"].exp())
    else:
        assert likelihood.theta is None
    if name == "zinb":
        torch.testing.assert_close(likelihood.dropout_probability, 1 / (1 + (-data.extras["pi_logits"]).exp()))
    else:
        assert likelihood.dropout_probability is None


@every
def test_dense_counts_are_refused(name: str) -> None:
    data = problem(4, 5)
    with pytest.raises(OptionError, match=r"log_prob expects a CountBlock; got Tensor\. Pass CountBlock\.from_dense"):
        build(name, data).log_prob(data.counts.to_dense())  # type: ignore[arg-type]


@every
@pytest.mark.parametrize("shape", [(3, 5), (4, 6), (1, 5), (4, 1)])
def test_counts_of_another_shape_are_refused(name: str, shape: tuple[int, int]) -> None:
    message = rf"expects counts of 4 cells x 5 genes; got {shape[0]} x {shape[1]}\. "
    with pytest.raises(MismatchError, match=message):
        build(name, problem(4, 5)).log_prob(CountBlock.from_dense(torch.zeros(shape)))


@every
def test_samples_repeat_with_the_generator_and_leave_torchs_stream_alone(name: str) -> None:
    likelihood = build(name, problem(4, 5))
    before = torch.random.get_rng_state()
    first, second = (likelihood.sample((3,), torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, likelihood.sample((3,), torch.Generator().manual_seed(6)))
    assert torch.equal(torch.random.get_rng_state(), before)


@every
def test_samples_have_no_gradient(name: str) -> None:
    data = problem(4, 5)
    data.logits.requires_grad_()
    assert not build(name, data).sample(generator=torch.Generator().manual_seed(0)).requires_grad


def test_torchs_own_distributions_still_validate() -> None:
    build("nb", problem(2, 2))
    with pytest.raises(ValueError, match="constraint"):
        torch.distributions.Poisson(torch.tensor(-1.0))


def test_base_is_abstract() -> None:
    with pytest.raises(TypeError, match="abstract"):
        CountLikelihood(Rate(torch.zeros(1, 1), torch.zeros(1), Link.SOFTMAX))  # type: ignore[abstract]
