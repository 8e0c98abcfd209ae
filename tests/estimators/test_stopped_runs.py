"""Runs that stop, fail or diverge, and runs beside others: what a model holds afterwards."""

from __future__ import annotations

import signal
import threading
from typing import Any

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
import torch

import countvi
from countvi.errors import NonFiniteError, TrainingWarning
from countvi.train import Callback, Progress

QUIET: dict[str, Any] = {"enable_progress_bar": False}


def build(model_class: Any = countvi.SCVI, seed: int = 0) -> Any:
    rng = np.random.default_rng(1)
    adata = ad.AnnData(sp.csr_matrix(rng.poisson(rng.gamma(1.0, 2.0, (3, 30))[np.arange(150) % 3]).astype(np.float32)))
    adata.obs["batch"] = ["a", "b"] * 75
    model_class.setup_anndata(adata, batch_key="batch")
    return model_class(adata, n_hidden=8, n_latent=3, seed=seed)


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.module.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


class After(Callback):
    """Does something at the end of an epoch of the run."""

    def __init__(self, epochs: int, action: Any) -> None:
        self.epochs, self.action = epochs, action

    def on_epoch_end(self, progress: Progress) -> None:
        if progress.epochs_done == self.epochs:
            self.action()


def interrupt() -> None:
    raise KeyboardInterrupt


def test_an_interrupted_run_keeps_its_whole_epochs() -> None:
    whole, cut = build(), build()
    with pytest.warns(TrainingWarning, match="interrupted after 3 of 9 epochs"):
        cut.train(9, callbacks=[After(3, interrupt)], **QUIET)
    assert cut.is_trained and len(cut.history) == 3

    kept: list[dict[str, torch.Tensor]] = []
    whole.train(9, callbacks=[After(3, lambda: kept.append(weights(whole)))], **QUIET)
    assert same(kept[0], weights(cut))


@pytest.mark.parametrize("seconds", [0.001, 0.01, 0.03])
def test_a_signal_in_the_middle_of_an_epoch_ends_the_run_after_the_last_one(seconds: float) -> None:
    model, kept = build(), []

    def press() -> None:
        timer = threading.Timer(seconds, lambda: signal.raise_signal(signal.SIGINT))
        timer.start()

    class Keep(Callback):
        def on_epoch_end(self, progress: Progress) -> None:
            kept.append(weights(model))
            if progress.epochs_done == 2:
                press()

    with pytest.warns(TrainingWarning, match="interrupted after"):
        model.train(100_000, callbacks=[Keep()], **QUIET)
    assert len(model.history) >= 2
    assert same(kept[len(model.history) - 1], weights(model))


def test_a_run_that_is_interrupted_at_once_leaves_the_model_as_it_was() -> None:
    model = build()
    before = weights(model)

    class AtOnce(Callback):
        def on_train_start(self, progress: Progress) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.train(5, callbacks=[AtOnce()], **QUIET)
    assert not model.is_trained and same(before, weights(model)) and len(model.history) == 0


def test_an_error_in_a_second_run_leaves_the_first() -> None:
    model = build()
    model.train(2, **QUIET)
    before, z = weights(model), model.get_latent_representation()

    def fail() -> None:
        message = "the disk is full"
        raise OSError(message)

    with pytest.raises(OSError, match="the disk is full"):
        model.train(9, callbacks=[After(2, fail)], **QUIET)
    assert same(before, weights(model)) and len(model.history) == 2
    np.testing.assert_array_equal(model.get_latent_representation(), z)

    # The next run is that of a model that had not failed.
    other = build()
    for run in (model, other):
        if run is other:
            run.train(2, **QUIET)
        run.train(2, **QUIET)
    assert same(weights(model), weights(other))


def test_a_run_that_makes_the_model_worse_is_said() -> None:
    with pytest.warns(TrainingWarning, match=r"Training diverged: .* plan_kwargs=\{'lr': 1\}"):
        build().train(8, plan_kwargs={"lr": 10.0}, **QUIET)


def test_a_run_that_ends_at_nothing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from countvi.estimators import training

    model = build()
    before = weights(model)
    launch = training.launch

    def broken(*arguments: Any) -> Any:
        result = launch(*arguments)
        result.weights["rho.weight"].fill_(float("nan"))
        return result

    monkeypatch.setattr(training, "launch", broken)
    with pytest.raises(NonFiniteError, match="Training diverged: the evidence lower bound of the cells is nan"):
        model.train(2, **QUIET)
    assert not model.is_trained and same(before, weights(model))


@pytest.mark.parametrize("model_class", [countvi.SCVI, countvi.AmbientRegularizedSCVI])
def test_runs_in_several_threads_are_those_of_one(model_class: Any) -> None:
    alone = build(model_class)
    alone.train(4, **QUIET)
    models: list[Any] = []

    def work() -> None:
        model = build(model_class)
        model.train(4, **QUIET)
        models.append(model)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(models) == 3
    assert all(same(weights(alone), weights(model)) for model in models)


def test_training_leaves_the_random_numbers_of_the_user_alone() -> None:
    before = torch.random.get_rng_state()

    class Look(Callback):
        def on_epoch_end(self, progress: Progress) -> None:
            assert torch.equal(torch.random.get_rng_state(), before)

    build(countvi.AmbientRegularizedSCVI).train(2, callbacks=[Look()], **QUIET)
    assert torch.equal(torch.random.get_rng_state(), before)
