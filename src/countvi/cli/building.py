"""A command of typer made of options, and what runs when it is given."""

from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from countvi.cli.commands import Option, merged, own
from countvi.cli.values import Given, hyphened, read

_CONFIG = Option("config", Path | None, None, "YAML file with options; the command line beats it.", "Files")
_MODULES = {"train": "train", "de": "differential", "map": "mapping", "deconvolve": "deconvolve"}
_EPILOG = (
    "What ends in ... can be given more than once: several values or, where it says NAME=, a value for each name. "
    "Lists and dictionaries can also be written in JSON."
)


class Listed(TyperCommand):
    """A command whose help lists its options under headings, in lines that are never cut."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            look: Any = parameter
            groups.setdefault(look.rich_help_panel or "Files", []).append((look.metavar or look.opts[0], look.help))
        for heading, rows in groups.items():
            with formatter.section(heading):
                formatter.write_dl(rows)


def options_of(name: str) -> list[Option]:
    """Return all options of a command, ``"train scvi"``, those of the command itself first."""
    module = _module(name)
    return [*own(module.run), _CONFIG, *merged(module.options(name))]


def command(name: str, what: str) -> typer.Typer:
    """Build a command; ``what`` says what it does, for its help."""
    options = options_of(name)

    def call(**written: Any) -> None:
        config = written["config"]
        given = Given(name, options, read(options, {**written, "config": None}, config and Path(config)))
        _module(name).run(**given.of(), given=given)

    hints = {option.name: _annotation(option) for option in options}
    call.__annotations__ = hints
    call.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=h) for n, h in hints.items()]
    )
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command(help=what, epilog=_EPILOG, cls=Listed)(call)
    return app


def _module(name: str) -> Any:
    return import_module(f"countvi.cli.{_MODULES[name.split()[0]]}")


def _annotation(option: Option) -> Any:
    look: dict[str, Any] = {"help": option.help, "metavar": option.written, "rich_help_panel": option.group}
    if option.group == "Arguments":
        return Annotated[str | None, typer.Argument(**look, show_default=False)]
    names = [f"--{hyphened(name)}" for name in option.spellings]
    if option.kinds != (bool,):
        return Annotated[(list[str] if option.repeats else str) | None, typer.Option(*names, **look)]
    return Annotated[bool | None, typer.Option(option.written, **look)]
