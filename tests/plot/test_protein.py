"""The picture of a protein's background."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from countvi import plot
from countvi.errors import OptionError

mpl.use("agg")


class Model:
    """What the picture asks of a model."""

    raw = np.array([[0.0], [5.0], [np.nan], [200.0]])

    def get_protein_background_mean(self, **arguments):
        self.arguments = arguments
        return np.array([[1.0], [2.0], [2.0], [3.0]])

    def get_normalized_expression(self, **arguments):
        return None, np.array([[0.1], [4.0], [1.0], [190.0]])

    def get_raw_proteins(self, **arguments):
        return pd.DataFrame(self.raw, columns=["CD3"])


def test_densities_are_those_of_the_values():
    import matplotlib.pyplot as plt

    model = Model()
    ax = plot.protein_background(model, "CD3", indices=[0, 1, 2, 3], transform_batch="a")
    assert model.arguments["protein_list"] == ["CD3"] and model.arguments["transform_batch"] == "a"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["raw counts", "background", "denoised"]
    raw = ax.patches[0].get_xy()
    # The outline's area is one, and it has mass at the three raw counts that were measured, not at NaN.
    edges = np.unique(raw[:, 0])
    assert edges[0] == 0.0 and np.isclose(edges[-1], np.log1p(200.0))
    assert ax.get_xlabel() == "log(1 + CD3)"
    plt.close("all")


def test_other_models_are_refused():
    with pytest.raises(OptionError, match="with proteins"):
        plot.protein_background(object(), "CD3")
