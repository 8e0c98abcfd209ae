"""Maps of a pancreatic tumour, for ``docs/spatial.md``: two regions of one slide, by the types found in its spots.

The data are those of Moncada et al. (2020), patient PDAC-A: ``pdac_indrop_reference.h5ad`` (single cells, with
``obs["cell_type"]``) and ``pdac_st_spots.h5ad`` (spots, with ``obsm["spatial"]``), both with raw counts, in the folder
that COUNTVI_TEST_DATA names. Takes some minutes.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "images" / "pdac.png"
FILES = ("pdac_indrop_reference.h5ad", "pdac_st_spots.h5ad")


def regions(proportions: pd.DataFrame) -> dict[str, pd.Series]:
    """Sum the types of each part of the tissue."""
    names = proportions.columns
    groups = {
        "acinar cells": names[names == "Acinar cells"],
        "normal ducts": names[names.str.startswith("Ductal")],
        "cancer": names[names.str.startswith("Cancer")],
    }
    return {title: proportions[list(types)].sum(axis=1) for title, types in groups.items()}


def draw(proportions: pd.DataFrame, places: np.ndarray) -> None:
    """Write the picture, and say how the parts go together."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    import countvi

    panels = regions(proportions)
    figure = Figure(figsize=(3.4 * len(panels), 3.0), layout="constrained")
    FigureCanvasAgg(figure)
    for ax, (title, values) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        countvi.pl.spatial(values, places, ax, title=title)
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=100)
    print("Correlations of the proportions over the spots:")
    print(proportions.assign(**panels)[list(panels)].corr().round(2).to_string())
    print(f"Written: {PICTURE}")


def main() -> None:
    """Train on the data, if they are there, and draw."""
    folder = Path(os.environ.get("COUNTVI_TEST_DATA", ""))
    if "COUNTVI_TEST_DATA" not in os.environ or not all((folder / name).exists() for name in FILES):
        sys.exit(f"COUNTVI_TEST_DATA must name a folder with {' and '.join(FILES)}; {PICTURE} is left as it is.")
    import anndata

    import countvi

    cells, slide = (anndata.read_h5ad(folder / name) for name in FILES)
    found = countvi.deconvolve(cells, slide, labels_key="cell_type")
    draw(found.proportions, slide.obsm["spatial"])


if __name__ == "__main__":
    main()
