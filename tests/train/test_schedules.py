"""Schedules against their formulas, and against PyTorch's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from countvi.train.schedules import Constant, KlWarmup, OneCycle, Plateau, Stopper


@pytest.mark.parametrize("n_steps", [41, 401, 1001])
def test_one_cycle_against_pytorch(n_steps):
    """A quarter of the run up from 4% of the peak, the rest down to a thousandth of it, both along half a cosine."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    peer = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=0.02,
        total_steps=n_steps,
        # PyTorch puts the peak at step pct_start * total_steps - 1.
        pct_start=((n_steps - 1) / 4 + 1) / n_steps,
        div_factor=25,
        final_div_factor=40,
        cycle_momentum=False,
    )
    ours, expected = OneCycle(0.02, n_steps), []
    for _ in range(n_steps):
        expected.append(peer.get_last_lr()[0])
        optimizer.step()
        if len(expected) < n_steps:
            peer.step()
    np.testing.assert_allclose([ours(step) for step in range(n_steps)], expected, rtol=1e-9)


def test_one_cycle_landmarks():
    cycle = OneCycle(0.02, 401)
    assert cycle(0) == pytest.approx(0.0008)
    assert cycle(100) == pytest.approx(0.02)
    assert cycle(50) == pytest.approx((0.02 + 0.0008) / 2)
    assert cycle(250) == pytest.approx((0.02 + 0.00002) / 2)
    assert cycle(400) == cycle(10_000) == pytest.approx(0.00002)


@pytest.mark.parametrize("n_steps", [1, 2, 3])
def test_one_cycle_of_few_steps_is_positive(n_steps):
    assert all(0 < OneCycle(0.02, n_steps)(step) <= 0.02 for step in range(n_steps))


def test_constant():
    assert {Constant(0.3, 10)(step) for step in range(20)} == {0.3}


def test_warm_up_is_linear():
    weight = KlWarmup(0.2, 0.8, 10)
    np.testing.assert_allclose([weight(s) for s in range(13)], [*np.linspace(0.2, 0.8, 11), 0.8, 0.8])


def test_warm_up_that_changes_once_per_epoch():
    weight = KlWarmup(0.0, 1.0, 400 * 7, every=7)
    assert [weight(step) for step in range(7 * 402)] == pytest.approx(
        [min(step // 7 / 400, 1) for step in range(7 * 402)]
    )


def test_no_warm_up():
    assert KlWarmup(0.0, 1.0, 0)(0) == 1.0


@pytest.mark.parametrize("threshold", [0.0, 0.3])
@pytest.mark.parametrize("patience", [0, 1, 4])
def test_plateau_against_pytorch(patience, threshold):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    peer = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.6, patience=patience, threshold=threshold, threshold_mode="abs", eps=0.0
    )
    ours = Plateau(0.6, patience, threshold)
    rng = np.random.default_rng(0)
    for metric in 10 * np.exp(-np.arange(60) / 10) + rng.normal(size=60):
        peer.step(metric)
        ours.update(float(metric))
        assert ours.scale == pytest.approx(optimizer.param_groups[0]["lr"])
    assert ours.scale < 1.0


def test_stopper():
    stopper = Stopper(patience=2, min_delta=0.5)
    taken = [(stopper.improved(m), stopper.exhausted) for m in (10.0, 9.7, 9.4, 9.2, 9.1, 9.0)]
    # The best weights are kept however little better they are; patience asks for more.
    assert taken == [(True, False)] * 5 + [(True, True)]
    assert [stopper.improved(m) for m in (9.05, 8.9, math.nan)] == [False, True, False]


def test_a_metric_that_is_not_a_number_never_improves():
    stopper = Stopper(patience=0, min_delta=0.0)
    assert not stopper.improved(math.nan) and stopper.exhausted
