from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from countvi.data import epoch_batches, epoch_pools, even_batches
from countvi.errors import OptionError


@given(n_rows=st.integers(0, 400), batch_size=st.integers(1, 150))
def test_even_batches(n_rows: int, batch_size: int) -> None:
    rows = np.arange(n_rows)[::-1] * 3
    batches = even_batches(rows, batch_size)
    assert [int(row) for batch in batches for row in batch] == rows.tolist()
    if n_rows == 0:
        assert batches == []
        return
    sizes = [len(batch) for batch in batches]
    pairs = batch_size == 2 and n_rows % 2 == 1 and n_rows > 1
    assert max(sizes) <= batch_size + pairs
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 2 or batch_size == 1 or n_rows == 1
    if not pairs:
        assert len(batches) == math.ceil(n_rows / batch_size)


@pytest.mark.parametrize(
    ("n_rows", "batch_size", "sizes"),
    [(129, 128, [65, 64]), (256, 128, [128, 128]), (2, 128, [2]), (1, 128, [1]), (5, 2, [3, 2]), (3, 1, [1, 1, 1])],
)
def test_sizes(n_rows: int, batch_size: int, sizes: list[int]) -> None:
    assert [len(batch) for batch in even_batches(np.arange(n_rows), batch_size)] == sizes


@pytest.mark.parametrize("batch_size", [0, -3])
def test_batch_size_out_of_range(batch_size: int) -> None:
    with pytest.raises(OptionError, match=f"batch_size must be at least 1; got {batch_size}"):
        even_batches(np.arange(4), batch_size)


def flat(batches: list[np.ndarray]) -> list[int]:
    return [int(row) for batch in batches for row in batch]


def test_an_epoch_is_a_function_of_seed_and_number() -> None:
    rows = np.arange(0, 300, 3)
    one = flat(epoch_batches(rows, 32, seed=1, epoch=0))
    assert sorted(one) == rows.tolist()
    assert one != rows.tolist()
    assert flat(epoch_batches(rows, 32, seed=1, epoch=0)) == one
    orders = {tuple(flat(epoch_batches(rows, 32, seed=seed, epoch=epoch))) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25
    np.testing.assert_array_equal(rows, np.arange(0, 300, 3))


def test_the_first_epoch_does_not_repeat_the_draw_of_the_split() -> None:
    assert flat(epoch_batches(np.arange(50), 50, seed=7, epoch=0)) != np.random.default_rng(7).permutation(50).tolist()


def test_every_order_is_as_likely() -> None:
    times = np.zeros((4, 4))
    for epoch in range(4000):
        times[np.arange(4), flat(epoch_batches(np.arange(4), 4, seed=0, epoch=epoch))] += 1
    # Each count is Binomial(4000, 1/4): mean 1000, standard deviation 27.4.
    assert np.abs(times - 1000).max() < 5 * 27.4


@given(st.integers(0, 400), st.integers(1, 100), st.integers(1, 50), st.integers(0, 3))
def test_pools_hold_every_row_once_in_file_order(n_rows: int, pool_size: int, run_length: int, epoch: int) -> None:
    rows = np.arange(n_rows) * 3
    pools = epoch_pools(rows, pool_size, run_length, 7, epoch)
    assert all(len(pool) and (np.diff(pool) > 0).all() for pool in pools)
    np.testing.assert_array_equal(np.sort(np.concatenate([*pools, np.empty(0, np.int64)])), rows)
    again = epoch_pools(rows, pool_size, run_length, 7, epoch)
    assert all(np.array_equal(a, b) for a, b in zip(pools, again, strict=True))


def test_pools_are_near_the_size_asked_for_and_mix_the_file() -> None:
    pools = epoch_pools(np.arange(10_000), 1_000, 50, 0, 0)
    assert len(pools) == 10
    assert all(900 <= len(pool) <= 1_100 and np.ptp(pool) > 5_000 for pool in pools)
    assert not np.array_equal(pools[0], epoch_pools(np.arange(10_000), 1_000, 50, 0, 1)[0])
