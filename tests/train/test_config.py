"""Plans and defaults."""

from __future__ import annotations

import math

import pytest

from countvi.errors import OptionError
from countvi.train import TrainingPlan, default_max_epochs, scvi_tools_plan
from countvi.train.config import with_peak


def test_the_plan_of_scvi_tools():
    plan = TrainingPlan.from_kwargs(scvi_tools_plan())
    assert (plan.peak_lr, plan.eps, plan.weight_decay, plan.optimizer) == (1e-3, 0.01, 1e-6, "Adam")
    rate, weight = plan.learning_rate(5000), plan.kl_weight(5000, 7, restarted=False)
    assert {rate(step) for step in range(0, 5000, 13)} == {1e-3}
    assert all(weight(step) == pytest.approx(min(step // 7 / 400, 1)) for step in range(5000))


@pytest.mark.parametrize("n_steps", [1, 2, 3, 10, 600, 10_001])
def test_warm_up_ends_within_the_run(n_steps):
    weight = TrainingPlan().kl_weight(n_steps, 1, restarted=False)
    assert weight(0) == 0.0
    end = math.ceil(0.3 * n_steps)
    assert weight(end) == 1.0 and weight(end - 1) < 1.0
    assert n_steps == 1 or weight(n_steps - 1) == 1.0


def test_warm_up_in_steps_and_in_epochs():
    in_steps = TrainingPlan(n_steps_kl_warmup=10).kl_weight(100, 5, restarted=False)
    assert [in_steps(s) for s in (0, 5, 10, 99)] == [0.0, 0.5, 1.0, 1.0]
    in_epochs = TrainingPlan(n_epochs_kl_warmup=4).kl_weight(100, 5, restarted=False)
    assert [in_epochs(s) for s in (0, 4, 5, 19, 20)] == [0.0, 0.0, 0.25, 0.75, 1.0]
    ends = TrainingPlan(n_steps_kl_warmup=10, min_kl_weight=0.1, max_kl_weight=0.5).kl_weight(100, 5, restarted=False)
    assert [ends(s) for s in (0, 5, 10)] == pytest.approx([0.1, 0.3, 0.5])


def test_another_peak_rate_is_for_one_cycle_alone():
    assert with_peak({"eps": 0.1}, 0.3) == {"lr": 0.3, "eps": 0.1}
    assert with_peak({"lr": 0.2}, 0.3) == {"lr": 0.2}
    assert TrainingPlan.from_kwargs(with_peak({"schedule": "constant"}, 0.3)).peak_lr == 0.001


def test_a_restarted_run_has_no_second_warm_up():
    assert TrainingPlan().kl_weight(100, 5, restarted=True)(0) == 1.0
    assert TrainingPlan(n_steps_kl_warmup=10).kl_weight(100, 5, restarted=True)(0) == 0.0


@pytest.mark.parametrize(("n_cells", "expected"), [(100, 400), (20_000, 400), (40_000, 200), (10**6, 8), (10**9, 1)])
def test_epochs_of_scvi_tools(n_cells, expected):
    assert default_max_epochs(n_cells, 3, TrainingPlan.from_kwargs(scvi_tools_plan())) == expected


@pytest.mark.parametrize(
    ("n_cells", "n_steps", "expected"),
    [
        (2000, 15, 48),
        (2000, 6, 100),
        (2000, 5, 100),
        (2000, 1000, 3),
        (64_000, 500, 12),
        (2 * 10**6, 15_000, 4),
        (1, 1, 8),
    ],
)
def test_default_epochs(n_cells, n_steps, expected):
    """720 steps for 2,000 cells, and eight times as many for 32 times as many cells: 32 ** 0.6 is 8."""
    assert default_max_epochs(n_cells, n_steps, TrainingPlan()) == expected


@pytest.mark.parametrize(
    "kwargs",
    [
        {"schedule": "cosine"},
        {"optimizer": "SGD"},
        {"lr": 0.0},
        {"lr": math.nan},
        {"lr": -1e-3},
        {"eps": 0.0},
        {"gradient_clip_val": -1.0},
        {"lr_factor": math.inf},
        {"kl_warmup_fraction": 1.5},
    ],
    ids=str,
)
def test_a_value_that_cannot_be(kwargs):
    (name,) = kwargs
    with pytest.raises(OptionError, match=name):
        TrainingPlan.from_kwargs(kwargs)


def test_an_entry_that_does_not_exist():
    with pytest.raises(OptionError, match=r"'weight_dekay'.*Did you mean 'weight_decay'"):
        TrainingPlan.from_kwargs({"weight_dekay": 0.1})
