"""The same seed gives the same bytes, and nobody else's random numbers change."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch


def test_same_seed_same_bytes(tiny, saved):
    first, second = tiny.train(tiny.make(seed=4)), tiny.train(tiny.make(seed=4))
    assert saved(first) == saved(second)
    assert first.history.drop(columns="seconds").equals(second.history.drop(columns="seconds"))


def test_whatever_the_users_random_state(tiny, saved):
    first = saved(tiny.train(tiny.make()))
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(99)
        torch.rand(13)
        assert saved(tiny.train(tiny.make())) == first


def test_other_seeds_other_bytes(tiny, saved):
    plain = saved(tiny.train(tiny.make()))
    assert saved(tiny.train(tiny.make(seed=1))) != plain
    same_start = tiny.make()
    assert saved(tiny.train(same_start, seed=1)) != plain


def test_the_seed_of_the_model_is_the_default_of_the_run(tiny, saved):
    assert saved(tiny.train(tiny.make(seed=6))) == saved(tiny.train(tiny.make(seed=6), seed=6))


def test_every_epoch_draws_its_own_dropout(tiny):
    """One cell, one minibatch per epoch: which units are off must not repeat."""
    model, masks = tiny.make(dropout_rate=0.5, n_hidden=32), []
    model.module.encode_z.loc.register_forward_pre_hook(
        lambda module, inputs: masks.append(inputs[0] == 0) if module.training else None
    )
    # A step of this rate moves no weight, so only dropout differs between epochs.
    plan = {"schedule": "constant", "lr": 1e-30, "kl_warmup_fraction": 0.0}
    rows = np.arange(100)
    tiny.train(model, 3, batch_size=200, plan_kwargs=plan, external_indexing=[rows[:1], rows[1:2]])
    assert len(masks) == 3
    assert not torch.equal(masks[0], masks[1]) and not torch.equal(masks[1], masks[2])


def state() -> tuple:
    numpy = np.random.get_state()  # noqa: NPY002 - the state of the user
    return torch.get_rng_state().tolist(), numpy[1].tolist(), numpy[2], random.getstate(), torch.initial_seed()


@pytest.mark.parametrize("fails", [False, True])
def test_global_streams_are_the_users(tiny, tmp_path, fails):
    before = state()
    model = tiny.make(use_observed_lib_size=False)
    assert state() == before
    if fails:
        with pytest.raises(tiny.Killed):
            tiny.train(model, callbacks=[tiny.kill(2)])
        assert state() == before
        return
    tiny.train(model)
    assert state() == before
    model.get_latent_representation(give_mean=False)
    model.get_normalized_expression(n_samples=2)
    model.get_elbo()
    model.posterior_predictive_sample(n_samples=1)
    model.save(tmp_path / "model")
    assert state() == before


def test_global_settings_are_the_users(tiny):
    before = torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(), np.geterr()
    deterministic = torch.are_deterministic_algorithms_enabled()
    tiny.train(tiny.make(), 1, precision="64-true")
    assert before == (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(), np.geterr())
    assert deterministic == torch.are_deterministic_algorithms_enabled()
