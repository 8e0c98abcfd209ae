"""What Stirling's formula leaves."""

from __future__ import annotations

import mpmath as mp
import numpy as np
import torch

from countvi.ops.reference.gamma import binet, binet_slope

ARGUMENTS = [1e-30, 1e-4, 0.3, 1.0, 2.0, 15.9, 15.999999, 16.0, 16.5, 40.0, 1e3, 1e6, 1e8, 1e20]


def remainder(a: mp.mpf) -> mp.mpf:
    return mp.loggamma(a) - (a - mp.mpf(1) / 2) * mp.log(a) + a - mp.log(2 * mp.pi) / 2


def test_against_mpmath() -> None:
    with mp.workdps(80):
        expected = [float(remainder(mp.mpf(a))) for a in ARGUMENTS]
    np.testing.assert_allclose(binet(torch.tensor(ARGUMENTS, dtype=torch.float64)), expected, rtol=2e-15, atol=2e-14)


def test_slope_against_mpmath() -> None:
    with mp.workdps(80):
        expected = [float(mp.digamma(a) - mp.log(a) + 1 / (2 * mp.mpf(a))) for a in ARGUMENTS]
    actual = binet_slope(torch.tensor(ARGUMENTS, dtype=torch.float64))
    np.testing.assert_allclose(actual, expected, rtol=1e-14, atol=1e-14)
