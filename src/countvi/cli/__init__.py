"""The command line: ``countvi train scvi counts.h5ad --out run``, ``countvi info run/model``."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

from countvi import __version__
from countvi.errors import CountviError

app = typer.Typer(
    help="Deep generative models of single-cell counts.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
train = typer.Typer(help="Train a model and write it, its latent space and its training curves.", no_args_is_help=True)
app.add_typer(train, name="train")

_DATA, _MODEL, _TRAINING, _OUTPUT = "Data", "Model", "Training", "Files"


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"countvi {__version__}")
        raise typer.Exit


@app.callback()
def common(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=_say_version, is_eager=True)] = False,
    debug: Annotated[bool, typer.Option(help="Show the traceback of an error.")] = False,
) -> None:
    """Deep generative models of single-cell counts."""
    context.obj = {"debug": debug}


@train.command("scvi")
def train_scvi(
    counts: Annotated[Path | None, typer.Argument(help=".h5ad, or .h5 of Cell Ranger.", show_default=False)] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write to.", rich_help_panel=_OUTPUT)] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with options.", rich_help_panel=_OUTPUT)] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --out.", rich_help_panel=_OUTPUT)] = False,
    write_h5ad: Annotated[
        Path | None,
        typer.Option(help="Also write the input with obsm['X_scVI'] to this file.", rich_help_panel=_OUTPUT),
    ] = None,
    layer: Annotated[str | None, typer.Option(help="Layer with raw counts.", rich_help_panel=_DATA)] = None,
    batch_key: Annotated[str | None, typer.Option(help="obs column.", rich_help_panel=_DATA)] = None,
    labels_key: Annotated[str | None, typer.Option(help="obs column.", rich_help_panel=_DATA)] = None,
    size_factor_key: Annotated[str | None, typer.Option(help="obs column.", rich_help_panel=_DATA)] = None,
    categorical_covariate_key: Annotated[
        list[str] | None, typer.Option(help="obs column; may be repeated.", rich_help_panel=_DATA)
    ] = None,
    continuous_covariate_key: Annotated[
        list[str] | None, typer.Option(help="obs column; may be repeated.", rich_help_panel=_DATA)
    ] = None,
    n_latent: Annotated[int | None, typer.Option(rich_help_panel=_MODEL)] = None,
    n_hidden: Annotated[int | None, typer.Option(rich_help_panel=_MODEL)] = None,
    n_layers: Annotated[int | None, typer.Option(rich_help_panel=_MODEL)] = None,
    dropout_rate: Annotated[float | None, typer.Option(rich_help_panel=_MODEL)] = None,
    gene_likelihood: Annotated[
        str | None, typer.Option(help="zinb, nb, poisson or normal.", rich_help_panel=_MODEL)
    ] = None,
    dispersion: Annotated[
        str | None, typer.Option(help="gene, gene-batch, gene-label or gene-cell.", rich_help_panel=_MODEL)
    ] = None,
    latent_distribution: Annotated[str | None, typer.Option(help="normal or ln.", rich_help_panel=_MODEL)] = None,
    encode_covariates: Annotated[
        bool | None, typer.Option("--encode-covariates/--no-encode-covariates", rich_help_panel=_MODEL)
    ] = None,
    max_epochs: Annotated[int | None, typer.Option(rich_help_panel=_TRAINING)] = None,
    batch_size: Annotated[int | None, typer.Option(rich_help_panel=_TRAINING)] = None,
    train_size: Annotated[float | None, typer.Option(help="Share of the cells.", rich_help_panel=_TRAINING)] = None,
    early_stopping: Annotated[
        bool | None, typer.Option("--early-stopping/--no-early-stopping", rich_help_panel=_TRAINING)
    ] = None,
    seed: Annotated[int | None, typer.Option(rich_help_panel=_TRAINING)] = None,
    accelerator: Annotated[str | None, typer.Option(help="auto, cpu or cuda.", rich_help_panel=_TRAINING)] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue a run that was cut off.", rich_help_panel=_TRAINING)
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.", rich_help_panel=_TRAINING)] = False,
) -> None:
    """Train scVI (Lopez et al. 2018). Options given here beat those of --config; others have their defaults."""
    options = dict(locals())
    from countvi.cli import _train

    switches = _train.Switches(
        config=options.pop("config"),
        overwrite=options.pop("overwrite"),
        resume=options.pop("resume"),
        quiet=options.pop("quiet"),
    )
    _train.run("SCVI", "X_scVI", options, switches)


@app.command("info")
def info(folder: Annotated[Path, typer.Argument(help="Folder of a saved model.")]) -> None:
    """Say what is in a saved model."""
    from countvi.cli import _info

    typer.echo(_info.describe(folder))


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; what a user can mend is said in one sentence, with exit code 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        app(args=arguments, prog_name="countvi")
    except (CountviError, OSError) as error:
        if "--debug" in arguments:
            traceback.print_exc()
        typer.echo(f"countvi: {_sentence(error)}", err=True)
        raise SystemExit(2) from None


def _sentence(error: Any) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}."
    return str(error)
