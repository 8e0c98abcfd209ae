"""Behind ``get_predictive_checks``: labels on what the checks return."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from countvi import query
from countvi.errors import OptionError
from countvi.estimators import _modality, _training

if TYPE_CHECKING:
    from countvi.estimators._trainable import Trainable


class PredictiveChecks(NamedTuple):
    """Observed counts beside counts drawn from the model.

    The columns of both tables are ``mean``, ``cv`` (standard deviation over mean) and ``zero_fraction`` of the observed
    counts; the same with ``_predicted`` of drawn ones; and ``calibration_error``.
    """

    genes: pd.DataFrame
    """A row for each gene, over cells."""
    cells: pd.DataFrame
    """A row for each cell, over genes."""


def predictive_checks(
    model: Trainable, modality: str, cells: query.Cells, obs_names: pd.Index, *, n_samples: int, seed: int
) -> PredictiveChecks:
    """Check one modality; ``obs_names`` are those of all cells of the data."""
    _training.check_size("n_samples", n_samples)
    measured = model._measured(cells).get(modality)
    if measured is not None:
        cells = dataclasses.replace(cells, rows=cells.rows[measured])
    if not len(cells):
        message = f"Checks need at least one cell with {modality}; indices selects none."
        raise OptionError(message)
    by_gene, by_cell = query.predictive_check(model.module, cells, modality=modality, n_samples=n_samples, seed=seed)
    names = _modality.feature_names(model, modality)
    return PredictiveChecks(_frame(by_gene, names), _frame(by_cell, obs_names[cells.rows]))


def _frame(check: query.Check, index: pd.Index | np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(check._asdict(), index=index)
