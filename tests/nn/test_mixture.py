"""Abundances by least squares: scipy on the dense problem, and mixtures whose shares are known."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import nnls

from countvi.batch import CountBlock
from countvi.nn.mixture import least_squares_abundances


def test_same_as_scipy_on_weighted_rows() -> None:
    rng = np.random.default_rng(0)
    profiles = rng.gamma(0.3, 1.0, (5, 60))
    counts = rng.poisson(rng.gamma(0.5, 20.0, (30, 5)) @ profiles).astype(float)
    got = least_squares_abundances(CountBlock.from_dense(torch.from_numpy(counts)), torch.from_numpy(profiles))
    weight = 1 / np.sqrt(profiles.mean(0))
    expected = np.stack([nnls(profiles.T * weight[:, None], spot * weight)[0] for spot in counts])
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-7, atol=1e-7)


def test_exact_mixtures_are_found_and_genes_of_no_type_are_ignored() -> None:
    rng = np.random.default_rng(1)
    profiles = rng.gamma(0.3, 1.0, (4, 50))
    profiles[:, 7] = 0.0
    truth = rng.gamma(1.0, 5.0, (10, 4)) * (rng.random((10, 4)) < 0.6)
    spots = truth @ profiles
    spots[:, 7] = 100.0
    got = least_squares_abundances(
        CountBlock.from_dense(torch.from_numpy(spots).float()), torch.from_numpy(profiles).float()
    )
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.numpy(), truth, rtol=1e-4, atol=1e-4)
