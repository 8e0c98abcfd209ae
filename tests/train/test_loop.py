"""The loop: what a step does, what a run records, and when it ends."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from lightning_fabric.loggers import Logger

from countvi import seeding
from countvi.errors import OptionError, TrainingWarning
from countvi.estimators.loader import DatasetLoader
from countvi.train import Callback, Progress, scvi_tools_plan

ONE_BATCH = {"batch_size": 200}
CONSTANT = {"schedule": "constant", "lr": 1e-3, "kl_warmup_fraction": 0.0}


def held_out_elbo(model, seed: int = 0) -> float:
    """Negative held-out ELBO per cell, with the noise of a run's validation."""
    noise, total = seeding.generator(seed, 3, 0), 0.0
    with torch.no_grad():
        for batch in DatasetLoader(model.dataset, model.split, 32, seed).validation():
            total -= model.module.elbo(batch, noise).per_cell.sum().item()
    return total / len(model.validation_indices)


def spy_on_gradients(model) -> dict[str, list[torch.Tensor]]:
    seen: dict[str, list[torch.Tensor]] = {}
    for name, parameter in model.module.named_parameters():
        parameter.register_hook(lambda grad, name=name: seen.setdefault(name, []).append(grad.double().clone()))
    return seen


def adam(p, gradients, *, lr, eps, l2=0.0, decoupled=0.0):
    """Kingma and Ba, algorithm 1, in double precision."""
    m = v = torch.zeros_like(p)
    for t, g in enumerate(gradients, start=1):
        p = p * (1 - lr * decoupled)
        g = g + l2 * p
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        p = p - lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + eps)
    return p


@pytest.mark.filterwarnings("ignore:The KL warm-up:countvi.errors.TrainingWarning")
@pytest.mark.parametrize("weight_decay", [1e-6, 0.5])
def test_the_optimiser_of_scvi_tools_by_hand(tiny, weight_decay):
    model = tiny.make()
    start, seen = tiny.weights(model), spy_on_gradients(model)
    tiny.train(model, 3, plan_kwargs=scvi_tools_plan() | {"weight_decay": weight_decay}, **ONE_BATCH)
    for name, parameter in model.module.named_parameters():
        assert len(seen[name]) == 3
        expected = adam(start[name].double(), seen[name], lr=1e-3, eps=0.01, l2=weight_decay)
        torch.testing.assert_close(parameter.detach().double(), expected, rtol=1e-5, atol=2e-7, msg=name)


def test_decoupled_weight_decay_by_hand(tiny):
    model = tiny.make()
    start, seen = tiny.weights(model), spy_on_gradients(model)
    plan = CONSTANT | {"optimizer": "AdamW", "weight_decay": 0.5, "eps": 1e-4}
    tiny.train(model, 3, plan_kwargs=plan, **ONE_BATCH)
    for name, parameter in model.module.named_parameters():
        expected = adam(start[name].double(), seen[name], lr=1e-3, eps=1e-4, decoupled=0.5)
        torch.testing.assert_close(parameter.detach().double(), expected, rtol=1e-5, atol=2e-7, msg=name)


def test_gradient_clipping_by_hand(tiny):
    model = tiny.make()
    start, seen = tiny.weights(model), spy_on_gradients(model)
    tiny.train(model, 1, plan_kwargs=CONSTANT | {"gradient_clip_val": 0.05, "weight_decay": 0.0}, **ONE_BATCH)
    norm = sum(grads[0].square().sum() for grads in seen.values()).sqrt()
    assert norm > 0.05
    for name, parameter in model.module.named_parameters():
        clipped = [seen[name][0] * 0.05 / (norm + 1e-6)]
        expected = adam(start[name].double(), clipped, lr=1e-3, eps=0.01)
        torch.testing.assert_close(parameter.detach().double(), expected, rtol=1e-5, atol=2e-7, msg=name)


def test_the_history_of_the_default_plan(tiny):
    model = tiny.train(tiny.make(), 10)
    history, n_steps = model.history, 3
    assert list(history.index) == list(range(10)) and history.index.name == "epoch"
    last = np.arange(1, 11) * n_steps - 1
    np.testing.assert_allclose(history["kl_weight"], np.minimum(last / 9, 1.0))
    assert history["kl_weight"].iloc[-1] == 1.0
    x = last / 29
    up = 0.04 + (0.0016 - 0.04) * (1 + np.cos(np.pi * x / 0.25)) / 2
    down = 4e-5 + (0.04 - 4e-5) * (1 + np.cos(np.pi * (x - 0.25) / 0.75)) / 2
    np.testing.assert_allclose(history["lr"], np.where(x < 0.25, up, down))
    for part in ("train", "validation"):
        total = history[f"reconstruction_loss_{part}"] + history[f"kl_local_{part}"]
        np.testing.assert_allclose(history[f"elbo_{part}"], total, rtol=1e-6)
        np.testing.assert_allclose(history[f"kl_z_{part}"], history[f"kl_local_{part}"])
    assert np.isfinite(history.to_numpy()).all() and (history["n_rollbacks"] == 0).all()


def test_the_history_of_scvi_tools(tiny):
    with pytest.warns(TrainingWarning, match=r"KL warm-up.*longer than this run"):
        model = tiny.train(tiny.make(), 4, plan_kwargs=scvi_tools_plan())
    np.testing.assert_allclose(model.history["kl_weight"], np.arange(4) / 400)
    assert (model.history["lr"] == 1e-3).all()
    expected = model.history["reconstruction_loss_train"] + model.history["kl_weight"] * model.history["kl_local_train"]
    np.testing.assert_allclose(model.history["train_loss"], expected, rtol=1e-6)


def test_a_warm_up_longer_than_the_run_is_told(tiny):
    with pytest.warns(TrainingWarning, match=r"KL warm-up of 1,000 steps is longer than this run of 6"):
        tiny.train(tiny.make(), 2, plan_kwargs={"n_steps_kl_warmup": 1000})


def test_the_whole_schedule_of_scvi_tools_is_no_warning(tiny):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny.train(tiny.make(12, 6), 400, plan_kwargs=scvi_tools_plan(), **ONE_BATCH)


def test_the_validation_row_is_the_elbo_of_the_weights(tiny):
    model = tiny.train(tiny.make(), 4)
    assert held_out_elbo(model) == pytest.approx(model.history["elbo_validation"].iloc[-1], rel=1e-6)


def test_training_lowers_the_loss(tiny):
    history = tiny.train(tiny.make(), 30).history
    assert history["elbo_validation"].iloc[-1] < history["elbo_validation"].iloc[0] - 5


OVERFIT = {"schedule": "constant", "lr": 0.2, "kl_warmup_fraction": 0.1}


def test_early_stopping_goes_back_to_the_best_weights(tiny):
    model = tiny.make()
    tiny.train(model, 80, plan_kwargs=OVERFIT, early_stopping=True, early_stopping_patience=5)
    validation = model.history["elbo_validation"]
    assert len(validation) < 80
    counted = validation[model.history["kl_weight"] == 1.0]
    assert counted.idxmin() == validation.index[-1] - 6
    assert held_out_elbo(model) == pytest.approx(counted.min(), rel=1e-6)
    assert held_out_elbo(model) < validation.iloc[-1]


def test_a_run_that_was_not_stopped_goes_back_too(tiny):
    model = tiny.make()
    tiny.train(model, 20, plan_kwargs=OVERFIT, early_stopping=True, early_stopping_patience=1000)
    counted = model.history["elbo_validation"][model.history["kl_weight"] == 1.0]
    assert len(model.history) == 20 and counted.idxmin() < 19
    assert held_out_elbo(model) == pytest.approx(counted.min(), rel=1e-6)


def test_early_stopping_counts_only_after_the_warm_up(tiny):
    """Improvement is out of reach here, so counting starts and ends at once."""
    arguments = {"early_stopping": True, "early_stopping_patience": 1, "early_stopping_min_delta": 1e9}
    model = tiny.train(tiny.make(), 20, plan_kwargs={"kl_warmup_fraction": 0.5}, **arguments)
    # 60 steps, warm-up over 30: epoch 9 ends with step 29 < 30; 10 is the first best; 11 and 12 exhaust patience 1.
    assert len(model.history) == 13
    later = tiny.train(
        tiny.make(), 20, plan_kwargs={"kl_warmup_fraction": 0.0}, early_stopping_warmup_epochs=4, **arguments
    )
    assert len(later.history) == 4 + 3


def test_early_stopping_on_another_column(tiny):
    model = tiny.make()
    monitor = "reconstruction_loss_validation"
    tiny.train(
        model, 60, plan_kwargs=OVERFIT, early_stopping=True, early_stopping_monitor=monitor, early_stopping_patience=3
    )
    counted = model.history[model.history["kl_weight"] == 1.0][monitor]
    assert counted.idxmin() == counted.index[-1] - 4


def test_a_monitor_that_does_not_exist_is_named(tiny):
    with pytest.raises(OptionError, match=r"early_stopping_monitor.*'elbo_val'.*'elbo_validation'"):
        tiny.train(tiny.make(), 3, early_stopping=True, early_stopping_monitor="elbo_val", plan_kwargs=CONSTANT)
    with pytest.raises(OptionError, match=r"lr_scheduler_metric.*'elbo_val'.*'elbo_validation'"):
        tiny.train(tiny.make(), 3, plan_kwargs={"reduce_lr_on_plateau": True, "lr_scheduler_metric": "elbo_val"})


def test_early_stopping_needs_held_out_cells(tiny):
    with pytest.raises(OptionError, match="held-out"):
        tiny.train(tiny.make(), 3, early_stopping=True, train_size=1.0)


def test_reduce_lr_on_plateau_against_pytorch(tiny):
    plan = OVERFIT | {
        "reduce_lr_on_plateau": True,
        "lr_patience": 1,
        "lr_threshold": 0.1,
        "lr_factor": 0.5,
        "lr_min": 0.03,
    }
    model = tiny.train(tiny.make(), 25, plan_kwargs=plan)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.2)
    peer = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=1, threshold=0.1, threshold_mode="abs", min_lr=0.03, eps=0.0
    )
    expected = []
    for metric in model.history["elbo_validation"]:
        expected.append(optimizer.param_groups[0]["lr"])
        peer.step(metric)
    np.testing.assert_allclose(model.history["lr"], expected)
    assert min(expected) < 0.2


def test_check_val_every_n_epoch(tiny):
    history = tiny.train(tiny.make(), 8, check_val_every_n_epoch=3).history
    assert list(history.index[history["elbo_validation"].notna()]) == [2, 5, 7]
    with pytest.raises(OptionError, match="check_val_every_n_epoch"):
        tiny.train(tiny.make(), 8, check_val_every_n_epoch=0)


def test_without_held_out_cells(tiny):
    history = tiny.train(tiny.make(), 3, train_size=1.0).history
    assert "elbo_validation" not in history and history["elbo_train"].notna().all()


class Witness(Callback):
    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at, self.calls = stop_at, []

    def on_train_start(self, progress: Progress) -> None:
        self.calls.append(("start", progress.epochs_done, progress.row))

    def on_epoch_end(self, progress: Progress) -> None:
        self.calls.append(("epoch", progress.epoch, progress.row["elbo_validation"]))
        progress.stop = progress.epochs_done == self.stop_at

    def on_train_end(self, progress: Progress) -> None:
        self.calls.append(("end", progress.epochs_done, None))


def test_callbacks(tiny):
    witness, model = Witness(), tiny.make()
    tiny.train(model, 3, callbacks=[witness])
    validation = model.history["elbo_validation"].tolist()
    epochs = [("epoch", epoch, value) for epoch, value in enumerate(validation)]
    assert witness.calls == [("start", 0, None), *epochs, ("end", 3, None)]


def test_a_callback_ends_the_run(tiny):
    witness, model = Witness(stop_at=2), tiny.make()
    tiny.train(model, 9, callbacks=[witness])
    assert len(model.history) == 2 and model.is_trained and witness.calls[-1] == ("end", 2, None)


def test_callbacks_hear_of_the_end_after_an_error(tiny):
    witness = Witness()
    with pytest.raises(tiny.Killed):
        tiny.train(tiny.make(), 9, callbacks=[tiny.kill(2), witness])
    assert witness.calls[-1] == ("end", 2, None)


class ListLogger(Logger):
    def __init__(self) -> None:
        self.rows = []

    @property
    def name(self) -> str:
        return "list"

    @property
    def version(self) -> int:
        return 0

    def log_hyperparams(self, *args, **kwargs) -> None:
        pass

    def log_metrics(self, metrics, step=None) -> None:
        self.rows.append((step, dict(metrics)))


def test_a_fabric_logger_gets_the_history(tiny):
    logger, model = ListLogger(), tiny.make()
    tiny.train(model, 3, logger=logger)
    tiny.train(model, 2, logger=[logger])
    assert [step for step, _ in logger.rows] == [0, 1, 2, 3, 4]
    for (_, metrics), row in zip(logger.rows, model.history.to_dict("records"), strict=True):
        assert metrics == row


def test_training_again_continues(tiny):
    model = tiny.train(tiny.make(), 6)
    split = model.train_indices.copy(), model.validation_indices.copy()
    before, elbo = tiny.weights(model), held_out_elbo(model)
    tiny.train(model, 1, seed=77, plan_kwargs={"schedule": "constant", "lr": 1e-9})
    np.testing.assert_array_equal(model.train_indices, split[0])
    np.testing.assert_array_equal(model.validation_indices, split[1])
    assert list(model.history.index) == list(range(7)) and model.history["kl_weight"].iloc[-1] == 1.0
    for name, parameter in model.module.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name], rtol=0, atol=1e-6)
    assert abs(held_out_elbo(model) - elbo) < 5
    with pytest.raises(OptionError, match="split"):
        tiny.train(model, 1, train_size=0.5)


class Dtypes(Callback):
    """What a layer computes with in training."""

    def on_train_start(self, progress: Progress) -> None:
        self.parameters = {p.dtype for p in progress.model.parameters()}
        self.outputs = set()
        progress.model.rho.register_forward_hook(self.note)

    def note(self, module, inputs, out) -> None:
        self.outputs.add((module.training, out.dtype))


@pytest.mark.parametrize(
    ("precision", "parameters", "outputs"),
    [
        ("32-true", torch.float32, torch.float32),
        ("64-true", torch.float64, torch.float64),
        ("bf16-mixed", torch.float32, torch.bfloat16),
    ],
)
def test_precisions(tiny, precision, parameters, outputs):
    dtypes, model = Dtypes(), tiny.make(use_observed_lib_size=False)
    tiny.train(model, 15, precision=precision, callbacks=[dtypes])
    assert dtypes.parameters == {parameters} and (True, outputs) in dtypes.outputs
    assert {dtype for training, dtype in dtypes.outputs if training} == {outputs}
    history = model.history
    assert np.isfinite(history.to_numpy()).all() and (history["n_rollbacks"] == 0).all()
    assert history["elbo_validation"].iloc[-1] < history["elbo_validation"].iloc[0] - 5
    assert all(p.dtype == torch.float32 and torch.isfinite(p).all() for p in model.module.parameters())
    assert np.isfinite(model.get_latent_representation()).all()


def test_half_precision_is_close_to_single(tiny):
    """One step, so that both start from the same weights: what differs is rounding to eight bits."""
    runs = [tiny.train(tiny.make(), 1, precision=p, **ONE_BATCH) for p in ("bf16-mixed", "32-true")]
    half, single = (run.history["elbo_train"].iloc[0] for run in runs)
    assert half == pytest.approx(single, rel=2**-8)
    assert half != single


def test_double_precision_leaves_a_usable_model_when_a_run_is_killed(tiny):
    model = tiny.train(tiny.make(), 1)
    with pytest.raises(tiny.Killed):
        tiny.train(model, 3, precision="64-true", callbacks=[tiny.kill(1)])
    assert np.isfinite(model.get_latent_representation()).all()


@pytest.mark.parametrize(
    "arguments", [{"max_epochs": 0}, {"batch_size": 0}, {"batch_size": 1.5}, {"seed": -1}, {"seed": 0.5}]
)
def test_arguments_outside_what_they_may_be(tiny, arguments):
    (name,) = arguments
    with pytest.raises(OptionError, match=name):
        tiny.train(tiny.make(), **{"max_epochs": 1, **arguments})
