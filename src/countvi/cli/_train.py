"""From options to a trained model in a folder, for every model that has a ``train`` command."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
import yaml

from countvi.errors import DataWarning, OptionError, TrainingWarning, UnknownNameError, did_you_mean

if TYPE_CHECKING:
    from anndata import AnnData

    from countvi.estimators._trainable import Trainable

# Options by the call they are arguments of. Repeated options are singular on the command line, plural in Python.
_SETUP = {
    "layer": "layer",
    "batch_key": "batch_key",
    "labels_key": "labels_key",
    "size_factor_key": "size_factor_key",
    "categorical_covariate_key": "categorical_covariate_keys",
    "continuous_covariate_key": "continuous_covariate_keys",
}
_TRAIN = ("max_epochs", "batch_size", "train_size", "early_stopping", "accelerator")
_FILES = ("counts", "out", "write_h5ad")
_OUTPUTS = ("model", "latent.h5ad", "history.csv", "training.png", "run.yaml", "checkpoint")


@dataclass(frozen=True)
class Switches:
    """What belongs to one call and not to the run: it is not kept in ``run.yaml``."""

    config: Path | None
    overwrite: bool
    resume: bool
    quiet: bool


def run(model_name: str, obsm_key: str, given: Mapping[str, Any], switches: Switches) -> None:
    """Train a model and write everything a user needs.

    Parameters
    ----------
    model_name
        Class of the model in ``countvi``.
    obsm_key
        Where its latent space goes.
    given
        Options of the command line; ``None`` where one was not given.
    switches
        How to run.

    Raises
    ------
    CountviError
        If something is not as it must be; the message says what to do.
    """
    options = resolve(given, switches.config)
    counts, out = _required(options, "counts", "the file with the counts"), _required(options, "out", "--out, a folder")
    written = options.get("write_h5ad")
    _make_room(Path(out), Path(counts), None if written is None else Path(written), switches)
    import countvi
    from countvi.io import read_counts

    with _notes():
        adata = read_counts(counts)
        model_class = getattr(countvi, model_name)
        model_class.setup_anndata(adata, **{_SETUP[name]: options[name] for name in _SETUP if name in options})
        model = model_class(adata, **_model_options(options))
        (Path(out) / "run.yaml").write_text(yaml.safe_dump(options, sort_keys=False))
        model.train(
            **{name: options[name] for name in _TRAIN if name in options},
            checkpoint_dir=Path(out) / "checkpoint",
            resume=switches.resume,
            enable_progress_bar=not switches.quiet,
        )
    _write(model, adata, obsm_key, Path(out), None if written is None else Path(written))
    typer.echo(_report(model, model_name, obsm_key, options))


def resolve(given: Mapping[str, Any], config: Path | None) -> dict[str, Any]:
    """Options of the command line over those of a file, as plain YAML values.

    Raises
    ------
    UnknownNameError
        If the file has an option that does not exist.
    OptionError
        If the file does not hold options.
    """
    options: dict[str, Any] = {}
    if config is not None:
        try:
            content = yaml.safe_load(config.read_text())
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            message = f"{config} is not readable YAML: {error}"
            raise OptionError(message) from error
        if not isinstance(content, dict):
            message = f"{config} must hold options, such as 'batch-key: donor'; it holds {type(content).__name__}."
            raise OptionError(message)
        for name, value in content.items():
            key = str(name).replace("-", "_")
            if key not in given:
                known = [known.replace("_", "-") for known in given]
                message = f"{config} has an unknown option {name!r}.{did_you_mean(str(name).replace('_', '-'), known)}"
                raise UnknownNameError(message)
            options[key] = value
    options |= {name: value for name, value in given.items() if value is not None and value != []}
    return {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}


def _model_options(options: Mapping[str, Any]) -> dict[str, Any]:
    others = {*_SETUP, *_TRAIN, *_FILES}
    return {name: value for name, value in options.items() if name not in others}


def _required(options: Mapping[str, Any], name: str, what: str) -> str:
    if options.get(name) is None:
        message = f"Name {what}, on the command line or in --config."
        raise OptionError(message)
    return str(options[name])


def _make_room(out: Path, counts: Path, written: Path | None, switches: Switches) -> None:
    if written is not None and written.resolve() == counts.resolve():
        message = f"--write-h5ad would replace the input {counts}; name another file."
        raise OptionError(message)
    if written is not None and written.exists() and not switches.overwrite:
        message = f"{written} exists. Pass --overwrite to replace it, or name another file."
        raise OptionError(message)
    if not counts.exists():
        message = f"There is no file {counts}."
        raise OptionError(message)
    if out.exists() and not out.is_dir():
        message = f"{out} is a file; --out takes a folder."
        raise OptionError(message)
    if out.exists() and any(out.iterdir()) and not switches.resume:
        if not switches.overwrite:
            message = f"{out} exists and is not empty. Pass --overwrite to replace what a run wrote there."
            raise OptionError(message)
        _clear(out)
    out.mkdir(parents=True, exist_ok=True)


def _clear(out: Path) -> None:
    """Remove what a run writes, and nothing else."""
    for name in _OUTPUTS:
        path = out / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def _notes() -> Iterator[None]:
    """Show our warnings as notes, and silence those of other libraries, which a user of a command cannot act on."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", DataWarning)
        warnings.simplefilter("always", TrainingWarning)

        def show(message: Warning | str, *_: Any, **__: Any) -> None:
            text = str(message)
            if text not in said:
                said.add(text)
                typer.echo(f"note: {text}", err=True)

        said: set[str] = set()
        warnings.showwarning = show  # type: ignore[assignment]  # catch_warnings restores it
        yield
    del caught


def _write(model: Trainable, adata: AnnData, obsm_key: str, out: Path, written: Path | None) -> None:
    import anndata
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from countvi import plot

    latent: Any = model.get_latent_representation()  # type: ignore[attr-defined]
    model.save(out / "model", overwrite=True)
    model.history.to_csv(out / "history.csv")
    obs: Any = adata.obs.copy()
    small = anndata.AnnData(obs=obs, obsm={obsm_key: latent})
    small.write_h5ad(out / "latent.h5ad")
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    plot.training_curves(model, ax=figure.add_subplot())
    figure.savefig(out / "training.png", dpi=150)
    shutil.rmtree(out / "checkpoint", ignore_errors=True)
    if written is not None:
        adata.obsm[obsm_key] = latent
        adata.write_h5ad(written)


def _report(model: Trainable, model_name: str, obsm_key: str, options: Mapping[str, Any]) -> str:
    out = Path(options["out"])
    history = model.history
    held_out = history["elbo_validation"].dropna() if "elbo_validation" in history else history["elbo_train"]
    kind = "held-out cells" if "elbo_validation" in history else "training cells"
    lines = [
        "",
        f"Trained {len(history)} epochs; ELBO {-held_out.iloc[-1]:,.1f} nats per cell on {kind} (higher is better).",
        f"  {out / 'model'}/        the model",
        f"  {out / 'latent.h5ad'}   obs and obsm['{obsm_key}']",
        f"  {out / 'history.csv'}   one row per epoch",
        f"  {out / 'training.png'}  training curves",
        f"  {out / 'run.yaml'}      the options: countvi train {model_name.lower()} --config repeats the run",
        *([f"  {options['write_h5ad']}  the input with obsm['{obsm_key}']"] if options.get("write_h5ad") else []),
        "",
        "Next, in Python:",
        f"  adata = countvi.io.read_counts({options['counts']!r})",
        f"  model = countvi.{model_name}.load({str(out / 'model')!r}, adata)",
        f"  adata.obsm[{obsm_key!r}] = model.get_latent_representation(); "
        f"sc.pp.neighbors(adata, use_rep={obsm_key!r}); sc.tl.umap(adata)",
    ]
    return "\n".join(lines)
