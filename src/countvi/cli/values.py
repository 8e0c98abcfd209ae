"""Values of options: those of the command line over those of a file, as the types of the arguments ask for."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml

from countvi.cli.commands import Option, kinds_of
from countvi.errors import OptionError, UnknownNameError, choose, did_you_mean

_WORDS = {bool: "true or false", int: "a whole number", float: "a number", Path: "a path"}
_NONE = "none"


@dataclass(frozen=True)
class GivenOptions:
    """What a command was given.

    Parameters
    ----------
    command
        Its name, ``"train scvi"``.
    options
        The options that it has.
    values
        What was given, by name of the argument, as its type asks for.
    """

    command: str
    options: Sequence[Option]
    values: Mapping[str, Any]

    def of(self, call: str = "") -> dict[str, Any]:
        """Return the arguments of a function, ``"train"`` say; without a name, those of the command itself.

        Raises
        ------
        OptionError
            If one that it cannot do without was not given.
        """
        owned = [option for option in self.options if (call in option.calls if call else not option.calls)]
        for option in owned:
            if option.default is inspect.Parameter.empty and option.name not in self.values:
                name = f"the {option.name}" if option.group == "Arguments" else f"--{hyphened(option.name)}"
                message = f"Give {name}, on the command line or in --config."
                raise OptionError(message)
        return {option.name: self.values[option.name] for option in owned if option.name in self.values}

    def check(self, function: Callable[..., Any], calls: Collection[str], what: str) -> None:
        """Refuse arguments of ``calls`` that the function to be called does not have; ``what`` is its, in words.

        Raises
        ------
        OptionError
            If an argument was given that the function does not have.
        """
        asked = (option.name for option in self.options if set(calls) & set(option.calls))
        foreign = sorted((set(asked) & self.values.keys()) - inspect.signature(function).parameters.keys())
        if foreign:
            message = f"--{hyphened(foreign[0])} does not go with {what}; leave it out."
            raise OptionError(message)

    def to_yaml(self) -> str:
        """Return the text that ``--config`` reads back as these values; without switches of the command itself."""
        run = {option.name for option in self.options if option.calls or option.kinds != (bool,)}
        values = {name: _plain(value) for name, value in self.values.items() if name in run}
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def hyphened(name: object) -> str:
    """Return the name of an argument as that of an option."""
    return str(name).replace("_", "-")


def read(options: Sequence[Option], written: Mapping[str, Any], config: Path | None) -> dict[str, Any]:
    """Put the values of the command line over those of a file.

    Parameters
    ----------
    options
        The options there are.
    written
        Values of the command line: text, a list of texts where an option repeats, or true or false of a switch;
        ``None`` where an option was not given.
    config
        YAML file with values, by the same names.

    Raises
    ------
    UnknownNameError
        If the file has an option that does not exist.
    OptionError
        If the file does not hold options, or a value is not of its type.
    """
    values = {} if config is None else _read(config, options)
    for option in options:
        value = written[option.name]
        if value is not None and value != []:
            value = _structured(value, option.kinds) if isinstance(value, list) else value
            values[option.name] = converted(option, value, f"--{hyphened(option.name)}")
    return values


def converted(option: Option, value: Any, name: str) -> Any:
    """Return a value, text or what YAML reads, as the type of its argument asks for; ``name`` is for the message.

    Raises
    ------
    OptionError
        If it is of another type.
    """
    kinds = list(option.kinds)
    if value == _NONE and option.takes_none:
        return None
    if len(kinds) == 1 and get_origin(kinds[0]) is Literal:
        return choose(option.name, value, {choice: choice for choice in get_args(kinds[0])})
    if bool in kinds and len(kinds) > 1 and isinstance(value, str):  # a switch takes no text
        value = _scalar(value)
    with suppress(ValueError):
        return _as_any(kinds, value)
    quote = " Put it in quotes." if kinds[0] in (str, Path) and not isinstance(value, list | dict) else ""
    message = f"{name} must be {' or '.join(dict.fromkeys(map(_words, kinds)))}; got {value!r}.{quote}"
    raise OptionError(message)


def _read(config: Path, options: Sequence[Option]) -> dict[str, Any]:
    try:
        content = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        message = f"{config} is not readable YAML: {error}"
        raise OptionError(message) from error
    if content is not None and not isinstance(content, dict):
        message = f"{config} must hold options, such as 'batch-key: donor'; it holds {type(content).__name__}."
        raise OptionError(message)
    known = {name: o for o in options if o.calls or o.kinds != (bool,) for name in o.spellings}
    values: dict[str, Any] = {}
    for written, value in (content or {}).items():  # nothing: an empty file, or one of comments
        option = known.get(str(written).replace("-", "_"))
        if option is None:
            hint = did_you_mean(hyphened(written), map(hyphened, known))
            message = f"{config} has an unknown option {written!r}.{hint}"
            raise UnknownNameError(message)
        if option.name in values:
            message = f"{config} gives {hyphened(option.name)!r} twice, in two spellings. Remove one."
            raise OptionError(message)
        if value is not None:
            values[option.name] = converted(option, value, f"{config}: {written}")
    return values


def _as_any(kinds: Sequence[Any], value: Any) -> Any:
    """The value as the first of some types that it can be; ``ValueError`` if it can be none."""
    for kind in kinds[:-1]:
        with suppress(ValueError):
            return _as(kind, value)
    return _as(kinds[-1], value)


def _as(kind: Any, value: Any) -> Any:
    """The value as a type; YAML alone would let text through as a number, and numbers as text."""
    parts: tuple[Any, ...] = get_args(kind)
    kind, is_number = get_origin(kind) or kind, isinstance(value, int | float) and not isinstance(value, bool)
    if kind is Sequence:
        return [_as(parts[0], part) for part in (value if isinstance(value, list) else [value])]
    if kind is Mapping and isinstance(value, dict):
        kinds = kinds_of(parts[1])
        return {str(name): None if part is None else _as_any(kinds, part) for name, part in value.items()}
    if kind is Any or (kind is bool and isinstance(value, bool)) or (kind is Literal and value in parts):
        return value
    if kind in (str, Path) and (is_number or isinstance(value, str)):
        return kind(str(value))
    if (
        kind in (int, float)
        and (is_number or isinstance(value, str))
        and not (kind is int and isinstance(value, float))
    ):
        return kind(value)  # of text too: YAML 1.1 reads 1e-3 as text
    raise ValueError(value)


def _structured(texts: list[str], kinds: Sequence[Any]) -> Any:
    """What repeated texts stand for: a list or a dictionary in JSON, pairs ``NAME=VALUE``, or texts."""
    origins = {get_origin(kind) for kind in kinds}
    if len(texts) == 1 and texts[0][:1] in ("[", "{"):
        with suppress(json.JSONDecodeError):
            return json.loads(texts[0])
    pairs = [text.partition("=") for text in texts]
    if Mapping in origins and all(separator for _, separator, _ in pairs):
        return {name: _scalar(value) for name, _, value in pairs}
    return texts[0] if len(texts) == 1 and (Sequence not in origins or str in kinds or texts[0] == _NONE) else texts


def _scalar(text: str) -> Any:
    """What one text stands for where any type may: a number, true, false, nothing, or text."""
    with suppress(json.JSONDecodeError):
        return json.loads(text)
    return {"True": True, "False": False, "None": None, _NONE: None}.get(text, text)


def _words(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(repr, get_args(kind)))}"
    return {Sequence: "a list", Mapping: "pairs NAME=VALUE"}.get(get_origin(kind), _WORDS.get(kind, "text"))


def _plain(value: Any) -> Any:
    """A value as YAML: whole paths, so that the file means the same read from another folder."""
    return str(value.resolve()) if isinstance(value, Path) else _NONE if value is None else value
