"""Posterior predictive checks: ``get_predictive_checks``."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from countvi import query, seeding
from countvi.errors import OptionError
from countvi.estimators.names import Indices
from countvi.estimators.options import WHOLE
from countvi.estimators.readouts.features import feature_names

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

    from countvi.estimators.state import Fitted, View


def get_predictive_checks(
    self: Fitted,
    adata: AnnData | MuData | None = None,
    indices: Indices = None,
    *,
    modality: str | None = None,
    n_samples: int = 10,
    batch_size: int | None = None,
    seed: int = seeding.DEFAULT_SEED,
) -> Any:
    """Compare the counts with counts drawn from the model, to see whether it describes these data.

    Use cells that were not trained on, ``indices=model.validation_indices``. ``countvi.pl.predictive_check`` draws
    the result.

    Parameters
    ----------
    adata, indices, batch_size
        Which cells; see :meth:`get_latent_representation`.
    modality
        Which modality.
    n_samples
        Draws per cell.
    seed
        Of the draws.

    Returns
    -------
    PredictiveChecks
        ``genes`` and ``cells``, two data frames. ``cv`` is the standard deviation over the mean, ``zero_fraction``
        the share of zeros; beside them the same of drawn counts, ``cv_predicted`` and ``zero_fraction_predicted``.
        ``calibration_error`` is 0 if observed counts are as often below a drawn one as a further draw is, and 0.5
        at most: the mean distance of the distribution of their ranks from the uniform one (with random ranks for
        ties; a gene in n cells has about ``0.3 / sqrt(n)`` by chance). Of several modalities, a dictionary by name
        unless one is named.
    """
    view = self.view(adata, indices, batch_size)
    names = [m.name for m in self.registry.modalities]
    if modality is not None:
        names = [self.registry.modality(modality).name]
    found = {name: _check(self, name, view, n_samples=n_samples, seed=seed) for name in names}
    return found[names[0]] if len(names) == 1 else found


class PredictiveChecks(NamedTuple):
    """Observed counts beside counts drawn from the model.

    The columns of both tables are ``mean``, ``cv`` (standard deviation over mean) and ``zero_fraction`` of the observed
    counts; the same with ``_predicted`` of drawn ones; and ``calibration_error``.
    """

    genes: pd.DataFrame
    """A row for each gene, over cells."""
    cells: pd.DataFrame
    """A row for each cell, over genes."""


def _check(model: Fitted, modality: str, view: View, *, n_samples: int, seed: int) -> PredictiveChecks:
    """Check one modality."""
    WHOLE("n_samples", n_samples)
    cells, names, measured = view.cells, view.names, view.measured.get(modality)
    if measured is not None:
        cells, names = dataclasses.replace(cells, rows=cells.rows[measured]), names[measured]
    if not len(cells):
        message = f"Checks need at least one cell with {modality}; indices selects none."
        raise OptionError(message)
    by_gene, by_cell = query.predictive_check(model.module, cells, modality=modality, n_samples=n_samples, seed=seed)
    return PredictiveChecks(_frame(by_gene, feature_names(model, modality)), _frame(by_cell, names))


def _frame(check: query.Check, index: pd.Index | np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(check._asdict(), index=index)
