"""Covariates that cannot be told apart: ``get_confounding``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from countvi import data as data_layer

if TYPE_CHECKING:
    import pandas as pd

    from countvi.estimators.state import Fitted


def get_confounding(self: Fitted) -> pd.DataFrame:
    """Compare every categorical covariate of the model's cells with every other and with the labels.

    What one covariate determines of another cannot be told apart by any model. Look at the rows with a ``meaning``,
    before training.

    Returns
    -------
    DataFrame
        A row for each ordered pair; for the columns see :func:`countvi.data.confounding_table`.

    Raises
    ------
    UnknownNameError
        If the data of the model are not those it was set up with, and lack the labels.
    """
    return data_layer.confounding_table(data_layer.covariate_codes(self.container(None), self.registry), self.registry)
