"""Behind ``countvi map``: new cells on a saved model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from countvi.cli.commands import Option, signature_of
from countvi.cli.folder import RunFolder
from countvi.cli.notes import notes
from countvi.cli.train import COMMANDS, write_results
from countvi.cli.values import GivenOptions
from countvi.errors import OptionError

if TYPE_CHECKING:
    import pandas as pd


def options(name: str) -> list[Option]:
    """Return the options of ``"map"``: the arguments of mapping, of training and of the transfer of labels."""
    trained = [option for command in COMMANDS.values() for option in signature_of(f"{command.model}.train")]
    mapped = [*signature_of("SCVI.load_query_data", "Mapping"), *signature_of("SCVI.transfer_labels", "Labels")]
    return mapped + trained


def run(
    reference: Path,
    cells: Path,
    *,
    out: Path,
    labels_key: str | None = None,
    reference_cells: Path | None = None,
    overwrite: bool = False,
    quiet: bool = False,
    given: GivenOptions,
) -> None:
    """Map cells onto a model, and write where they lie and what they are.

    Parameters
    ----------
    reference
        Folder of a saved model.
    cells
        The new cells, as for countvi train.
    out
        Folder to write to.
    labels_key
        Column of obs of the reference's cells: labels to transfer.
    reference_cells
        The reference's cells, if the model was saved without.
    overwrite
        Replace what a run wrote before.
    quiet
        Show no progress.
    given
        What the command was given: these, and the arguments of the model.

    Raises
    ------
    CountviError
        If something is not as it must be; the message says what to do.
    """
    folder = RunFolder(out, overwrite=overwrite, resume=False)
    folder.check(cells, None)
    with notes():
        import countvi
        from countvi import files

        model_class = getattr(countvi, files.read_model(reference)[0].model_class)
        command = next((c for c in COMMANDS.values() if c.model == model_class.__name__), None)
        if command is None or not hasattr(model_class, "load_query_data"):
            message = f"No cells are mapped onto a {model_class.__name__}."
            raise OptionError(message)
        given.check(model_class.train, ("train",), f"a model of class {command.model}")
        known = None if reference_cells is None else command.read(reference_cells)
        model = model_class.load(reference, known if labels_key else False)
        if labels_key and model.adata is None:
            message = (
                f"--labels-key needs the cells of the reference, and {reference} was saved without. Name their file "
                "with --reference-cells."
            )
            raise OptionError(message)
        prepare = getattr(model, command.setup(cells).replace("setup", "prepare_query"))
        new = prepare(command.read(cells), model)
        mapped = model_class.load_query_data(new, model, **given.of("load_query_data"))
        if not mapped.is_trained:
            mapped.train(**given.of("train"), enable_progress_bar=not quiet)
        transfer = given.of("transfer_labels")
        labels = None if labels_key is None else model.transfer_labels(mapped, labels_key, **transfer)
        folder.begin(given.to_yaml(), None)
        transferred = {} if labels is None else {f"transferred_{name}": labels[name] for name in labels}
        write_results(out, mapped, new.obs.assign(**transferred), command.obsm_key)
    typer.echo(_report(out, mapped, command.obsm_key, labels, given.values.get("unknown", "unknown")))


def _report(out: Path, model: Any, key: str, labels: pd.DataFrame | None, unknown: str) -> str:
    n_cells = model.dataset.n_cells
    lines, beside = [f"{n_cells:,} cells mapped onto the reference."], ""
    if labels is not None:
        n_unknown, beside = int((labels["label"] == unknown).sum()), ", with transferred_label,"
        lines.append(f"  {n_cells - n_unknown:,} have a label, {n_unknown:,} are {unknown}.")
    lines += [
        f"  {out / 'model'}: the model of these cells",
        f"  {out / 'latent.h5ad'}: obs{beside} and obsm[{key!r}]",
        f"  {out / 'history.csv'}: one row per epoch",
    ]
    return "\n".join(lines)
