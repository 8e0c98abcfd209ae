"""Which features were measured where."""

from __future__ import annotations

import numpy as np
import torch

from countvi.data.measured import Patterns


def test_what_no_cell_of_a_level_has():
    measured = np.array([[1, 0, 1], [0, 0, 1], [0, 1, 1], [1, 1, 0]], dtype=bool)
    patterns = Patterns.from_mask(measured)
    lacking = patterns.lacking(torch.tensor([0, 0, 2, 2]), 4).numpy()
    level = np.array([0, 0, 2, 2])
    assert np.array_equal(lacking, [~measured[level == i].any(0) for i in range(4)])
    assert lacking[[1, 3]].all(), "levels without cells"
