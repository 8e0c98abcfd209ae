"""Behind ``countvi map``: new cells on a saved model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from countvi.cli._folder import RunFolder
from countvi.cli._notes import notes
from countvi.cli._train import COMMANDS, draw_training
from countvi.errors import OptionError

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from mudata import MuData

    from countvi.estimators.base import Estimator


@dataclass(frozen=True)
class MapRequest:
    """What ``countvi map`` was asked for; the fields are its arguments."""

    reference: Path
    cells: Path
    out: Path
    labels_key: str | None
    reference_cells: Path | None
    max_epochs: int | None
    overwrite: bool
    quiet: bool


def run(asked: MapRequest) -> None:
    """Map cells onto a model, and write where they lie and what they are.

    Raises
    ------
    CountviError
        If something is not as it must be; the message says what to do.
    """
    folder = RunFolder(asked.out, overwrite=asked.overwrite, resume=False)
    folder.check(asked.cells, None)
    with notes():
        import countvi
        from countvi import files, io

        model_class = getattr(countvi, files.read_model(asked.reference)[0].model_class)
        command = next((c for c in COMMANDS.values() if c.model == model_class.__name__), None)
        read = getattr(io, "read_counts" if command is None else command.reader)
        known = None if asked.reference_cells is None else read(asked.reference_cells)
        reference = model_class.load(asked.reference, known if asked.labels_key else False)
        if asked.labels_key and reference.adata is None:
            message = (
                f"--labels-key needs the cells of the reference, and {asked.reference} was saved without. Name their "
                "file with --reference-cells."
            )
            raise OptionError(message)
        cells = _prepared(reference, read(asked.cells))
        model = model_class.load_query_data(cells, reference)
        if not model.is_trained:
            model.train(asked.max_epochs, enable_progress_bar=not asked.quiet)
        labels = None if asked.labels_key is None else reference.transfer_labels(model, asked.labels_key)
        folder.begin(_text(asked), None)
        key = f"X_{model_class.__name__}" if command is None else command.obsm_key
        _write(asked.out, model, cells, key, labels)
    typer.echo(_report(asked.out, model, key, labels))


def _prepared(reference: Estimator, cells: AnnData | MuData) -> AnnData | MuData:
    """The cells with the features of the reference."""
    maker: Any = getattr(reference, reference.set_up_by.replace("setup", "prepare_query"))
    return maker(cells, reference)


def _text(asked: MapRequest) -> str:
    import yaml

    values = {name: value for name, value in vars(asked).items() if name not in ("overwrite", "quiet")}
    return yaml.safe_dump(
        {name: str(value.resolve()) if isinstance(value, Path) else value for name, value in values.items()},
        sort_keys=False,
    )


def _write(out: Path, model: Estimator, cells: AnnData | MuData, key: str, labels: pd.DataFrame | None) -> None:
    import anndata

    from countvi.estimators.readouts.latent import get_latent_representation

    model.save(out / "model", overwrite=True)
    model.history.to_csv(out / "history.csv")
    obs: Any = cells.obs.copy()
    if labels is not None:
        obs = obs.assign(**{f"transferred_{name}": labels[name] for name in labels})
    latent: Any = get_latent_representation(model)
    anndata.AnnData(obs=obs, obsm={key: latent}).write_h5ad(out / "latent.h5ad")
    if len(model.history):
        draw_training(model, out / "training.png")


def _report(out: Path, model: Estimator, key: str, labels: pd.DataFrame | None) -> str:
    n_cells = model.dataset.n_cells
    lines = [f"{n_cells:,} cells mapped onto the reference."]
    if labels is not None:
        unknown = int((labels["label"] == "unknown").sum())
        lines.append(f"  {n_cells - unknown:,} have a label, {unknown:,} are unknown.")
    lines += [
        f"  {out / 'model'}: the model of these cells",
        f"  {out / 'latent.h5ad'}: obs, with transferred_label, and obsm[{key!r}]"
        if labels is not None
        else f"  {out / 'latent.h5ad'}: obs and obsm[{key!r}]",
        f"  {out / 'history.csv'}: one row per epoch",
    ]
    return "\n".join(lines)
