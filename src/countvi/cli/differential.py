"""Differential expression of a saved model, as a table in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from countvi.cli.commands import Option, signature_of
from countvi.cli.notes import notes
from countvi.cli.values import GivenOptions
from countvi.errors import OptionError


def options(name: str) -> list[Option]:
    """Return the options of ``"de"``: the arguments of every model's ``differential_expression``."""
    proteins = signature_of("TOTALVI.differential_expression", "Of TOTALVI")
    return signature_of("SCVI.differential_expression", "Comparison") + proteins


def run(folder: Path, counts: Path, *, out: Path, overwrite: bool = False, given: GivenOptions) -> None:
    """Compare groups of cells, write the table, and say what was found.

    Parameters
    ----------
    folder
        Folder of a saved model.
    counts
        The cells, as the model reads them.
    out
        Table to write, .csv (or .csv.gz).
    overwrite
        Replace the table.
    given
        What the command was given: these, and the arguments of ``differential_expression``.

    Raises
    ------
    CountviError
        If something is not as it must be; the message says what to do.
    """
    import pandas as pd

    _check(counts, out, overwrite)
    arguments = given.of("differential_expression")
    with notes():
        model_class = _class_of(folder)
        given.check(
            model_class.differential_expression,
            ("differential_expression",),
            f"a model of class {model_class.__name__}",
        )
        table = model_class.load(folder, _read(counts)).differential_expression(**arguments)
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
    typer.echo("\n".join(lines))


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
    from countvi.files import read_model

    name = read_model(folder)[0].model_class
    model_class = getattr(countvi, name)
    if not hasattr(model_class, "differential_expression"):
        message = f"{name} has no differential expression: it has no expression of single cells."
        raise OptionError(message)
    return model_class


def _read(counts: Path) -> Any:
    from countvi.io import read_counts, read_mudata

    return read_mudata(counts) if counts.suffix == ".h5mu" else read_counts(counts)
