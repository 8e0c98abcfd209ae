"""From options to a trained model in a folder, for every model that has a ``train`` command."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import typer

from countvi.cli import source
from countvi.cli.commands import Option, signature_of
from countvi.cli.folder import RunFolder
from countvi.cli.notes import notes
from countvi.cli.values import GivenOptions
from countvi.errors import OptionError

if TYPE_CHECKING:
    import pandas as pd

    from countvi.train import Callback

_DECONTAMINATED = "decontaminated"


@dataclass(frozen=True)
class Command:
    """What tells one ``train`` command from another.

    Parameters
    ----------
    model
        Class of the model in ``countvi``.
    obsm_key
        Where its latent space goes.
    ambient
        Whether the model knows which counts are ambient.
    result
        Names of what ``get_normalized_expression`` returns.
    """

    model: str
    obsm_key: str
    ambient: bool = False
    result: str = "expression"

    def setup(self, cells: Path) -> str:
        """Name of the method that takes what is in a file: a MuData or an AnnData, where the model takes both."""
        both = [name for name in _READERS if source.has(self.model, name)]
        return both[-1 if cells.suffix == ".h5mu" else 0]

    def read(self, cells: Path) -> Any:
        """Return what is in a file."""
        from countvi import io

        return getattr(io, _READERS[self.setup(cells)])(cells)


_READERS = {"setup_anndata": "read_counts", "setup_mudata": "read_mudata"}

COMMANDS = {
    "scvi": Command("SCVI", "X_scVI"),
    "totalvi": Command("TOTALVI", "X_totalVI", result="rna, protein"),
    "condscvi": Command("CondSCVI", "X_CondSCVI"),
    "ambient": Command("AmbientRegularizedSCVI", "X_ambient", ambient=True),
    "multimodal": Command("RegularizedMultimodalVI", "X_multimodal", ambient=True),
}


def options(name: str) -> list[Option]:
    """Return the options of ``"train scvi"`` and so on: all arguments of set-up, constructor and ``train``."""
    model = COMMANDS[name.split()[1]].model
    setups = [setup for setup in _READERS if source.has(model, setup)]
    return [option for call in (*setups, "__init__", "train") for option in signature_of(f"{model}.{call}")]


def run(
    counts: Path,
    *,
    out: Path,
    write_h5ad: Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    quiet: bool = False,
    given: GivenOptions,
) -> None:
    """Train a model and write everything a user needs.

    Parameters
    ----------
    counts
        The cells: .h5ad, or .h5 of Cell Ranger 3 and later; of models of several modalities a MuData, .h5mu.
    out
        Folder to write to.
    write_h5ad
        Also write the input, with the latent space in obsm, to this file.
    overwrite
        Replace what a run wrote before.
    resume
        Continue a run that was cut off.
    quiet
        Show no progress.
    given
        What the command was given: these, and the arguments of the model.

    Raises
    ------
    CountviError
        If something is not as it must be; the message says what to do.
    """
    command = COMMANDS[given.command.split()[1]]
    folder = RunFolder(out, overwrite=overwrite, resume=resume)
    folder.check(counts, write_h5ad)
    setup = command.setup(counts)
    what = f"{counts}, which is {'an AnnData' if setup == 'setup_anndata' else 'a MuData'}"
    given.check(source.function(f"{command.model}.{setup}"), _READERS, what)
    if write_h5ad is not None and setup == "setup_mudata":
        message = f"--write-h5ad does not go with {what}; leave it out."
        raise OptionError(message)
    described = given.of(setup)
    with notes():
        import countvi

        adata = command.read(counts)
        model_class = getattr(countvi, command.model)
        getattr(model_class, setup)(adata, **described)
        model = model_class(adata, **given.of("__init__"))
        try:
            model.train(
                **given.of("train"),
                checkpoint_dir=folder.checkpoint,
                resume=resume,
                callbacks=[_beginning(folder, given, write_h5ad)],
                enable_progress_bar=not quiet,
            )
        except KeyboardInterrupt:
            typer.echo("\nStopped. The same command with --resume goes on after the last whole epoch.", err=True)
            raise typer.Exit(130) from None
        files = _write(command, model, adata, given)
    folder.end()
    typer.echo(_report(command, model, given, files))


def _beginning(folder: RunFolder, given: GivenOptions, written: Path | None) -> Callback:
    """Start writing when training does, and not before: a mistake in the options must not cost the last results."""
    from countvi.train import Callback, Progress

    @final
    class Beginning(Callback):
        def on_train_start(self, progress: Progress) -> None:
            folder.begin(given.to_yaml(), written)

        def on_train_end(self, progress: Progress) -> None:
            if progress.interrupted:  # in a notebook the model goes on as it is; a command ends, to be resumed
                raise KeyboardInterrupt

    return Beginning()


def write_results(out: Path, model: Any, obs: pd.DataFrame, obsm_key: str) -> Any:
    """Write a model, its history and curves, and ``obs`` with the latent space; return the latter."""
    import anndata
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from countvi import plot

    latent = model.get_latent_representation()
    model.save(out / "model", overwrite=True)
    model.history.to_csv(out / "history.csv")
    anndata.AnnData(obs=obs, obsm={obsm_key: latent}).write_h5ad(out / "latent.h5ad")
    if len(model.history):  # there is none where there was nothing to learn
        figure = Figure(figsize=(6.4, 4.2), layout="constrained")
        FigureCanvasAgg(figure)  # no window system, so that it works on a server
        plot.training_curves(model, ax=figure.add_subplot())
        figure.savefig(out / "training.png", dpi=150)
    return latent


def _write(command: Command, model: Any, data: Any, given: GivenOptions) -> list[tuple[Path, str]]:
    """Write the results, and say what is in which file."""
    out, written = given.values["out"], given.values.get("write_h5ad")
    shares = _shares(command, model)
    obs = data.obs.assign(**shares)
    latent = write_results(out, model, obs, command.obsm_key)
    beside = " and the ambient fractions" if shares else ""
    files = [
        (out / "model", "the model"),
        (out / "latent.h5ad", f"obs of the input{beside} and obsm['{command.obsm_key}']"),
        (out / "history.csv", "one row per epoch"),
        (out / "training.png", "the training curves"),
        (out / "run.yaml", f"the options; countvi {given.command} --config repeats the run"),
    ]
    if written is not None:
        data.obs, data.obsm[command.obsm_key] = obs, latent
        if shares:
            data.layers[_DECONTAMINATED] = model.get_decontaminated_counts()
        data.write_h5ad(written)
        layer = f" and layers['{_DECONTAMINATED}']" if shares else ""
        files.append((written, f"the input with obsm['{command.obsm_key}']{layer}"))
    return files


def _shares(command: Command, model: Any) -> dict[str, Any]:
    """Columns with the share of each cell's counts that is ambient, of a model that knows it."""
    if not command.ambient or not any(part.background is not None for part in model.module.modalities.values()):
        return {}
    shares = model.get_ambient_fraction()
    if not isinstance(shares, dict):
        return {"ambient_fraction": shares}
    return {f"ambient_fraction_{name}": share for name, share in shares.items()}


def _report(command: Command, model: Any, given: GivenOptions, files: list[tuple[Path, str]]) -> str:
    out, counts = given.values["out"], given.values["counts"]
    elbo, cells = kept_elbo(model.history, early_stopping=given.values.get("early_stopping", False))
    width = max(len(str(path)) for path, _ in files)
    modality = model.registry.modalities[0]
    which = f", modality={modality.name!r}" if model.several_modalities else ""
    genes = list(modality.feature_names[:2])
    read = f"countvi.io.{_READERS[command.setup(counts)]}({str(counts)!r})"
    lines = [
        "",
        f"Trained {len(model.history)} epochs; ELBO {elbo:,.1f} nats per cell on {cells} (higher is better).",
        *(f"  {path!s:{width}}  {what}" for path, what in files),
        "",
        "Next, in Python:",
        "  import countvi, scanpy as sc",
        f"  adata = sc.read_h5ad({str(out / 'latent.h5ad')!r})",
        f"  sc.pp.neighbors(adata, use_rep={command.obsm_key!r})  # then sc.tl.umap, sc.tl.leiden as usual",
        f"  model = countvi.{command.model}.load({str(out / 'model')!r}, {read})",
        f"  {command.result} = model.get_normalized_expression(library_size=10_000, gene_list={genes!r}{which})",
    ]
    return "\n".join(lines)


def kept_elbo(history: pd.DataFrame, *, early_stopping: bool) -> tuple[float, str]:
    """ELBO of the weights that training kept.

    Parameters
    ----------
    history
        Of one run.
    early_stopping
        Whether the best weights after the KL warm-up were kept, rather than the last.

    Returns
    -------
    tuple
        The ELBO in nats per cell, higher is better, and the cells it is of.
    """
    seen = history.dropna(subset=["elbo_validation"]) if "elbo_validation" in history else history.iloc[:0]
    if not len(seen):
        return -float(history["elbo_train"].iloc[-1]), "training cells"
    after_warmup = seen[seen["kl_weight"] >= 1.0]
    best = early_stopping and len(after_warmup) > 0
    elbo = after_warmup["elbo_validation"].min() if best else seen["elbo_validation"].iloc[-1]
    return -float(elbo), "held-out cells"
