"""Seeds leave no trace, and streams are apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from countvi import seeding


def draw(n: int = 5) -> list[float]:
    return torch.rand(n).tolist()


def test_forked_gives_the_same_numbers_for_the_same_seed():
    with seeding.forked(3):
        first = draw()
    draw(17)
    with seeding.forked(3):
        assert draw() == first
    with seeding.forked(4):
        assert draw() != first


def test_forked_is_what_seeding_torch_would_give():
    with seeding.forked(11):
        ours = draw()
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(11)
        assert draw() == ours


def test_forked_restores_the_default_stream():
    before = torch.get_rng_state()
    with seeding.forked(3):
        draw()
    assert torch.equal(torch.get_rng_state(), before)


def test_forked_restores_the_default_stream_after_an_error():
    before = torch.get_rng_state()
    with pytest.raises(KeyError), seeding.forked(3):
        draw()
        raise KeyError
    assert torch.equal(torch.get_rng_state(), before)


def test_forked_leaves_numpy_alone():
    before = np.random.get_state()[1].copy()  # noqa: NPY002 - the state of the user
    with seeding.forked(3):
        draw()
    seeding.generator(3, 1)
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


def first(generator: torch.Generator) -> tuple[float, ...]:
    return tuple(torch.rand(4, generator=generator).tolist())


def test_generator_is_a_function_of_seed_and_stream():
    assert first(seeding.generator(5, 1, 2)) == first(seeding.generator(5, 1, 2))


def test_streams_differ_pairwise():
    names = [(s, *stream) for s in range(4) for stream in [(), *((a,) for a in range(4)), (0, 0), (0, 1), (1, 0)]]
    assert len({first(seeding.generator(*name)) for name in names}) == len(names)


def test_streams_are_uncorrelated():
    draws = torch.stack([torch.randn(4000, generator=seeding.generator(0, epoch)) for epoch in range(12)])
    correlation = torch.corrcoef(draws) - torch.eye(12)
    assert correlation.abs().max() < 5 / 4000**0.5


def test_generator_does_not_touch_the_default_stream():
    before = torch.get_rng_state()
    first(seeding.generator(1, 2))
    assert torch.equal(torch.get_rng_state(), before)
