"""Scores of fixed cells, against numbers that scib-metrics 0.5.10 computed (``make_fixed.py``)."""

from __future__ import annotations

import numpy as np
import pytest

from countvi.metrics import clisi, ilisi, lisi, silhouette_batch, silhouette_label

LISI = [
    2.6301581859588623,
    2.0810747146606445,
    1.714532732963562,
    1.6010385751724243,
    1.921521782875061,
    1.537338137626648,
]


@pytest.fixture(scope="module")
def cells() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """States, labels and batches, drawn as in ``make_fixed.py``."""
    rng = np.random.default_rng(20)
    labels = rng.choice(4, 240, p=[0.4, 0.3, 0.2, 0.1])
    batch = np.where(labels == 3, 1, rng.choice(3, 240, p=[0.5, 0.3, 0.2]))
    centres = rng.normal(0, 2.0, (4, 5))
    shifts = rng.normal(0, 0.8, (3, 5))
    return centres[labels] + shifts[batch] + rng.normal(0, 1.0, (240, 5)), labels, batch


@pytest.mark.parity
def test_numbers_of_scib_metrics(cells: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    # They are computed in single precision, and perplexities to 1e-5 there.
    states, labels, batch = cells
    np.testing.assert_allclose(lisi(states, batch, 20)[:6], LISI, rtol=1e-4)
    assert ilisi(states, batch, 20) == pytest.approx(0.4285382032394409, rel=1e-4)
    assert clisi(states, labels, 20) == pytest.approx(0.9877178072929382, rel=1e-4)
    assert silhouette_label(states, labels) == pytest.approx(0.6622670292854309, rel=1e-5)
    assert silhouette_batch(states, labels, batch) == pytest.approx(0.8360913395881653, rel=1e-5)
