"""From options to a trained model in a folder, for every model that has a ``train`` command."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import typer

from countvi.cli._folder import RunFolder
from countvi.cli._notes import notes
from countvi.cli._options import Options, Switches
from countvi.errors import OptionError

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from mudata import MuData

    from countvi.estimators.base import Estimator
    from countvi.train import Callback

_DECONTAMINATED = "decontaminated"


@dataclass(frozen=True)
class Command:
    """What tells one ``train`` command from another.

    Parameters
    ----------
    name
        Of the command.
    model
        Class of the model in ``countvi``.
    obsm_key
        Where its latent space goes.
    reader
        Function of ``countvi.io`` that reads the input.
    setup
        Method of the class that takes it.
    ambient
        Whether the model knows which counts are ambient.
    result
        Names of what ``get_normalized_expression`` returns.
    """

    name: str
    model: str
    obsm_key: str
    reader: str = "read_counts"
    setup: str = "setup_anndata"
    ambient: bool = False
    result: str = "expression"


COMMANDS = {
    command.name: command
    for command in (
        Command("scvi", "SCVI", "X_scVI"),
        Command("totalvi", "TOTALVI", "X_totalVI", result="rna, protein"),
        Command("ambient", "AmbientRegularizedSCVI", "X_ambient", ambient=True),
        Command(
            "multimodal",
            "RegularizedMultimodalVI",
            "X_multimodal",
            reader="read_mudata",
            setup="setup_mudata",
            ambient=True,
        ),
    )
}


def run(command: Command, options: Options, switches: Switches) -> None:
    """Train a model and write everything a user needs.

    Parameters
    ----------
    command
        Which model.
    options
        What to run.
    switches
        How to run.

    Raises
    ------
    CountviError
        If something is not as it must be; the message says what to do.
    """
    folder = RunFolder(options.out, overwrite=switches.overwrite, resume=switches.resume)
    folder.check(options.counts, options.write_h5ad)
    with notes():
        import countvi
        from countvi import io

        adata = getattr(io, command.reader)(options.counts)
        model_class = getattr(countvi, command.model)
        _check_setup(getattr(model_class, command.setup), options.setup)
        getattr(model_class, command.setup)(adata, **options.setup)
        model = model_class(adata, **options.model)
        try:
            model.train(
                **options.train,
                checkpoint_dir=folder.checkpoint,
                resume=switches.resume,
                callbacks=[_beginning(folder, options)],
                enable_progress_bar=not switches.quiet,
            )
        except KeyboardInterrupt:
            typer.echo("\nStopped. The same command with --resume goes on after the last whole epoch.", err=True)
            raise typer.Exit(130) from None
        _write(command, model, adata, options)
    folder.end()
    typer.echo(_report(command, model, options))


def _check_setup(setup: Callable[..., None], given: Mapping[str, Any]) -> None:
    """Ask for what a set-up cannot do without.

    Raises
    ------
    OptionError
        If it was not given.
    """
    _, *parameters = inspect.signature(setup).parameters.values()  # the first one is the data
    for parameter in parameters:
        if parameter.default is parameter.empty and parameter.name not in given:
            name = parameter.name.replace("_", "-")
            message = f"Give --{name}, on the command line or in --config."
            raise OptionError(message)


def _beginning(folder: RunFolder, options: Options) -> Callback:
    """Start writing when training does, and not before: a mistake in the options must not cost the last results."""
    from countvi.train import Callback, Progress

    @final
    class Beginning(Callback):
        def on_train_start(self, progress: Progress) -> None:
            folder.begin(options.to_yaml(), options.write_h5ad)

    return Beginning()


def draw_training(model: Estimator, file: Path) -> None:
    """Write a picture of the training curves."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from countvi import plot

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    FigureCanvasAgg(figure)  # no window system, so that it works on a server
    plot.training_curves(model, ax=figure.add_subplot())
    figure.savefig(file, dpi=150)


def _write(command: Command, model: Estimator, data: AnnData | MuData, options: Options) -> None:
    import anndata

    out = options.out
    latent: Any = model.get_latent_representation()  # type: ignore[attr-defined]
    model.save(out / "model", overwrite=True)
    model.history.to_csv(out / "history.csv")
    obs: Any = data.obs.copy()
    for name, share in _shares(command, model).items():
        obs[name] = share
    small = anndata.AnnData(obs=obs, obsm={command.obsm_key: latent})
    small.write_h5ad(out / "latent.h5ad")
    draw_training(model, out / "training.png")
    if options.write_h5ad is not None:
        assert isinstance(data, anndata.AnnData), "a command with --write-h5ad reads an AnnData"
        data.obs, data.obsm[command.obsm_key] = obs, latent
        if command.ambient and _shares(command, model):
            data.layers[_DECONTAMINATED] = model.get_decontaminated_counts()  # type: ignore[attr-defined]
        data.write_h5ad(options.write_h5ad)


def _shares(command: Command, model: Any) -> dict[str, Any]:
    """Columns with the share of each cell's counts that is ambient, of a model that knows it."""
    if not command.ambient or not any(part.background is not None for part in model.module.modalities.values()):
        return {}
    shares = model.get_ambient_fraction()
    return (
        {f"ambient_fraction_{n}": s for n, s in shares.items()}
        if isinstance(shares, dict)
        else {"ambient_fraction": shares}
    )


def _report(command: Command, model: Estimator, options: Options) -> str:
    out = options.out
    elbo, cells = kept_elbo(model.history, early_stopping=options.train.get("early_stopping", False))
    beside = " and the ambient fractions" if _shares(command, model) else ""
    files: list[tuple[Path, str]] = [
        (out / "model", "the model"),
        (out / "latent.h5ad", f"obs of the input{beside} and obsm['{command.obsm_key}']"),
        (out / "history.csv", "one row per epoch"),
        (out / "training.png", "the training curves"),
        (out / "run.yaml", f"the options; countvi train {command.name} --config repeats the run"),
    ]
    if options.write_h5ad is not None:
        layer = f" and layers['{_DECONTAMINATED}']" if beside else ""
        files.append((options.write_h5ad, f"the input with obsm['{command.obsm_key}']{layer}"))
    width = max(len(str(path)) for path, _ in files)
    modality = model.registry.modalities[0]
    which = f", modality={modality.name!r}" if command.setup == "setup_mudata" else ""
    genes = list(modality.feature_names[:2])
    read = f"countvi.io.{command.reader}({str(options.counts)!r})"
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
