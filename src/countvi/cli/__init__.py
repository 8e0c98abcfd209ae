"""The command line: ``countvi train scvi counts.h5ad --out run``, ``countvi info run/model``."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

from countvi import __version__
from countvi.cli.layout import Commands, Listed
from countvi.errors import CountviError

# Plain help: the tables of rich cut names where a terminal is narrow.
_LOOK: dict[str, Any] = {"cls": Commands, "no_args_is_help": True, "rich_markup_mode": None}
app = typer.Typer(
    help="Deep generative models of single-cell counts.", add_completion=False, pretty_exceptions_enable=False, **_LOOK
)
models = typer.Typer(help="Train a model and write it, its latent space and its training curves.", **_LOOK)
app.add_typer(models, name="train")

_TRAIN = {
    "scvi": "Train SCVI (Lopez et al. 2018).",
    "ambient": "Train AmbientRegularizedSCVI: scVI with ambient counts.",
    "multimodal": "Train RegularizedMultimodalVI: one state of several modalities.",
    "totalvi": "Train TOTALVI (Gayoso, Steier et al. 2021): RNA and protein.",
    "condscvi": "Train CondSCVI (Lopez et al. 2022): states within cell types, the reference of DestVI.",
}
_OTHERS = {
    "de": "Compare groups of cells: differential expression of a saved model.",
    "map": "Map new cells onto a trained model, and label them by its cells.",
    "deconvolve": "Find the cell types of the spots of a slide: DestVI (Lopez et al. 2022), its tables and maps.",
}


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"countvi {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_say_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Deep generative models of single-cell counts."""


def _hand_over(context: typer.Context) -> None:
    """Make the options of the command that was asked for, and of no other, and give it what was written."""
    from countvi.cli import building

    names = context.command_path.split()[1:]
    building.command(" ".join(names), context.command.help or "")(args=context.args, prog_name=context.command_path)


def _add(group: typer.Typer, commands: dict[str, str]) -> None:
    everything = {"allow_extra_args": True, "ignore_unknown_options": True}
    for name, what in commands.items():
        group.command(name, help=what, add_help_option=False, context_settings=everything)(_hand_over)


_add(models, _TRAIN)
_add(app, _OTHERS)


@app.command("info", cls=Listed)
def info(
    folder: Annotated[
        Path, typer.Argument(help="Folder of a saved model.", metavar="FOLDER", rich_help_panel="Arguments")
    ],
) -> None:
    """Say what is in a saved model."""
    from countvi.cli.info import describe

    typer.echo(describe(folder))


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


def _sentence(error: CountviError | OSError) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}."
    return str(error)
