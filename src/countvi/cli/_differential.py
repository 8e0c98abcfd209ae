"""Differential expression of a saved model, as a table in a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from countvi.cli._notes import notes
from countvi.errors import OptionError
from countvi.files import read_model


def run(folder: Path, counts: Path, out: Path, *, overwrite: bool, options: Mapping[str, Any]) -> str:
    """Compare groups of cells and write the table.

    Parameters
    ----------
    folder
        The model.
    counts
        The cells.
    out
        The table.
    overwrite
        Whether it may be replaced.
    options
        Arguments of ``differential_expression``.

    Returns
    -------
    str
        What was found, in words.

    Raises
    ------
    CountviError
        If something is not as it must be; the message says what to do.
    """
    _check(counts, out, overwrite)
    with notes():
        model_class = _class_of(folder)
        table = model_class.load(folder, _read(counts)).differential_expression(**options)
    if isinstance(table, dict):
        table = pd.concat(table, names=["modality", "feature"])
    out.parent.mkdir(parents=True, exist_ok=True)
    table.rename_axis(table.index.names if table.index.nlevels > 1 else "feature").to_csv(out)
    found = next((name for name in table.columns if str(name).startswith("is_de_fdr")), None)
    lines = [f"{out}: {len(table):,} rows"]
    for comparison, part in table.groupby("comparison", sort=False):
        best = ", ".join(str(name[-1] if isinstance(name, tuple) else name) for name in part.index[:5])
        n = "" if found is None else f"{int(part[found].sum()):,} differ; "
        lines.append(f"  {comparison}: {n}first {best}")
    return "\n".join(lines)


def _check(counts: Path, out: Path, overwrite: bool) -> None:
    if not counts.exists():
        message = f"There is no file {counts}."
        raise OptionError(message)
    if not str(out).endswith((".csv", ".csv.gz")):
        message = f"--out takes a .csv or .csv.gz; got {out}."
        raise OptionError(message)
    if out.exists() and not overwrite:
        message = f"{out} exists. Pass --overwrite to replace it, or name another file."
        raise OptionError(message)


def _class_of(folder: Path) -> Any:
    import countvi

    name = read_model(folder)[0].model_class
    model_class = getattr(countvi, name)
    if not hasattr(model_class, "differential_expression"):
        message = f"{name} has no differential expression: it has no expression of single cells."
        raise OptionError(message)
    return model_class


def _read(counts: Path) -> Any:
    from countvi.io import read_counts, read_mudata

    return read_mudata(counts) if counts.suffix == ".h5mu" else read_counts(counts)
