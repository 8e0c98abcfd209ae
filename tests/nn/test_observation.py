"""Observation models: dispersions of the right shape, and only the heads that are used."""

from __future__ import annotations

import pytest
import torch

from countvi import seeding
from countvi.batch import Design, Factor
from countvi.likelihoods.negative_binomial import NegativeBinomial
from countvi.likelihoods.normal import Normal
from countvi.likelihoods.poisson import Poisson
from countvi.likelihoods.rate import Rate
from countvi.likelihoods.zero_inflated import ZeroInflatedNegativeBinomial
from countvi.nn import observation
from countvi.nn.linear import head
from countvi.ops import Link

G, H, CELLS = 6, 4, 5
DESIGN = Design(torch.tensor([[0], [2], [1], [2], [0]]), torch.zeros(CELLS, 0))
SPREADS = {
    "gene": lambda: observation.PerGene(G),
    "level": lambda: observation.PerGeneLevel(G, Factor(0, 3)),
    "cell": lambda: observation.PerGeneCell(H, G),
}


def inputs(*samples: int) -> tuple[Rate, torch.Tensor]:
    g = seeding.generator(1)
    logits = torch.randn(*samples, CELLS, G, generator=g)
    return Rate(logits, torch.full((CELLS,), 3.0), Link.SOFTMAX), torch.randn(*samples, CELLS, H, generator=g)


def expected_log(spread, hidden: torch.Tensor) -> torch.Tensor:
    if isinstance(spread, observation.PerGene):
        return spread.value.expand(CELLS, G)
    if isinstance(spread, observation.PerGeneLevel):
        return torch.stack([spread.value[code] for code in DESIGN.codes[:, 0].tolist()])
    return hidden @ spread.head.weight.T + spread.head.bias


@pytest.mark.parametrize("samples", [(), (3,)])
@pytest.mark.parametrize("make", SPREADS.values(), ids=SPREADS)
def test_theta_and_dropout(make, samples):
    rate, hidden = inputs(*samples)
    spread = make()
    model = observation.Observation(ZeroInflatedNegativeBinomial, log_theta=spread, pi_logits=head(H, G))
    likelihood = model(rate, hidden, DESIGN)
    assert isinstance(likelihood, ZeroInflatedNegativeBinomial)
    theta = likelihood.theta.expand(*samples, CELLS, G)
    torch.testing.assert_close(theta, expected_log(spread, hidden).exp().expand(*samples, CELLS, G))
    pi = torch.sigmoid(hidden @ model.pi_logits.weight.T + model.pi_logits.bias)
    torch.testing.assert_close(likelihood.dropout_probability, pi)
    torch.testing.assert_close(model(rate, hidden, DESIGN).rate.mean, rate.mean)
    plain = observation.Observation(NegativeBinomial, log_theta=spread)(rate, hidden, DESIGN)
    assert isinstance(plain, NegativeBinomial) and plain.dropout_probability is None
    torch.testing.assert_close(plain.theta.expand(*samples, CELLS, G), theta)


@pytest.mark.parametrize("make", SPREADS.values(), ids=SPREADS)
def test_normal_has_the_standard_deviation(make):
    rate, hidden = inputs()
    spread = make()
    likelihood = observation.Observation(Normal, log_scale=spread)(rate, hidden, DESIGN)
    assert isinstance(likelihood, Normal)
    torch.testing.assert_close(likelihood.variance, expected_log(spread, hidden).exp().square())


def test_poisson_has_no_parameters():
    model = observation.Observation(Poisson)
    assert isinstance(model(*inputs(), DESIGN), Poisson)
    assert not list(model.parameters())
