"""Volcano plots from what was drawn on the Axes."""

from __future__ import annotations

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from countvi.errors import OptionError, UnknownNameError
from countvi.plot import volcano

matplotlib.use("Agg")


def make_table(**more):
    n = 30
    lfc = np.linspace(-3, 3, n)
    probability = np.minimum(np.abs(lfc) / 2, 1)
    return pd.DataFrame(
        {"lfc_median": lfc, "proba_de": probability, "is_de_fdr_0.05": probability > 0.95, **more},
        index=[f"g{i}" for i in range(n)],
    )


def draw(table, *arguments, **options):
    return volcano(table, *arguments, ax=Figure().add_subplot(), **options)


def test_points_are_where_the_table_says():
    table = make_table()
    ax = draw(table, n_labels=4)
    nothing, up, down = (np.asarray(points.get_offsets()) for points in ax.collections)
    found = table["is_de_fdr_0.05"]
    np.testing.assert_allclose(up, table[found & (table["lfc_median"] > 0)][["lfc_median", "proba_de"]])
    np.testing.assert_allclose(down, table[found & (table["lfc_median"] < 0)][["lfc_median", "proba_de"]])
    assert len(nothing) == (~found).sum()
    assert {text.get_text() for text in ax.texts} == {"g0", "g1", "g28", "g29"}
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == [f"{len(up)} up", f"{len(down)} down"]


def test_samples():
    p = np.geomspace(1e-6, 1, 30)
    columns = {"replicate_lfc": np.ones(30), "replicate_pvalue": p, "is_de_replicates_fdr_0.1": p < 0.01}
    ax = draw(make_table(**columns), replicates=True)
    up = np.asarray(ax.collections[1].get_offsets())
    np.testing.assert_allclose(up[:, 1], -np.log10(p[p < 0.01]))


def test_one_comparison_of_several():
    table = make_table(comparison=["a vs Rest"] * 10 + ["b vs Rest"] * 20)
    ax = draw(table, "b vs Rest")
    assert sum(len(points.get_offsets()) for points in ax.collections) == 20
    assert ax.get_title(loc="left") == "b vs Rest"
    with pytest.raises(OptionError, match="2 comparisons; name one"):
        draw(table)
    with pytest.raises(UnknownNameError, match="'c'"):
        draw(table, "c")


@pytest.mark.parametrize("options", [{"replicates": True}, {"comparison": "a"}])
def test_missing_columns(options):
    with pytest.raises(OptionError):
        draw(make_table(), **options)


def test_a_figure_of_its_own():
    import matplotlib.pyplot as plt

    ax = volcano(make_table())
    assert ax.figure is plt.gcf()
    plt.close(ax.figure)
