"""A command of typer made of options, and what runs when it is given."""

from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from countvi.cli.commands import Option, merged, own
from countvi.cli.layout import Listed
from countvi.cli.values import GivenOptions, hyphened, read
from countvi.errors import OptionError, did_you_mean

_CONFIG = Option("config", Path | None, None, "YAML file with options; the command line beats it.", "Files")
_MODULES = {"train": "train", "de": "differential", "map": "mapping", "deconvolve": "deconvolve"}
_EPILOG = (
    "What ends in ... can be given more than once: several values or, where it says NAME=, a value for each name. "
    "Lists and dictionaries can also be written in JSON."
)


def options_of(name: str) -> list[Option]:
    """Return all options of a command, ``"train scvi"``, those of the command itself first."""
    module = _module(name)
    return [*own(module.run), _CONFIG, *merged(module.options(name))]


def command(name: str, what: str) -> typer.Typer:
    """Build a command; ``what`` says what it does, for its help."""
    options = options_of(name)

    def call(context: typer.Context, **written: Any) -> None:
        taken = [str(written[option.name]) for option in options if option.group == "Arguments"]
        _refuse([*(word for word in taken if word.startswith("-")), *context.args], options)
        config = written["config"]
        given = GivenOptions(name, options, read(options, {**written, "config": None}, config and Path(config)))
        # Imported when it runs: help needs no torch.
        from countvi.ops import quietly

        own = given.of()
        with quietly(bool(own.get("quiet"))):
            _module(name).run(**own, given=given)

    hints = {"context": typer.Context, **{option.name: _annotation(option) for option in options}}
    kind = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter(n, kind, default=None, annotation=hint) for n, hint in hints.items()]
    call.__annotations__, signature = hints, inspect.Signature(parameters)
    call.__signature__ = signature  # type: ignore[attr-defined]
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    others = {"allow_extra_args": True, "ignore_unknown_options": True}  # which are refused in our words
    app.command(help=what, epilog=_EPILOG, cls=Listed, context_settings=others)(call)
    return app


def _refuse(words: list[str], options: list[Option]) -> None:
    """Refuse what is no option, or one argument too many.

    Raises
    ------
    OptionError
        If there is anything of the kind.
    """
    known = [f"--{hyphened(name)}" for option in options for name in option.spellings]
    known += [word for option in options for word in option.written.split() if word.startswith("--no-")]
    for word in sorted(words, key=lambda word: not word.startswith("-")):
        wrong = f"There is no option {word}." if word.startswith("-") else f"{word} is one argument too many."
        message = f"{wrong}{did_you_mean(word.split('=')[0], known, limit=1)}"
        raise OptionError(message)


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
