"""Options of a command: the arguments of the functions it calls, with their types, defaults and descriptions."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from countvi.cli import source

LEFT_OUT = {
    "adata": "the cells, which the command reads from a file",
    "mdata": "the cells, which the command reads from a file",
    "reference_model": "a folder, an argument of the command",
    "query": "the new cells, an argument of the command",
    "key": "--labels-key of the command",
    "reference": "--reference of the command, a file",
    "slide": "--spatial of the command, a file",
    "callbacks": "Python objects",
    "logger": "a Python object",
    "external_indexing": "arrays of rows",
    "datasplitter_kwargs": "holds external_indexing and nothing else",
    "m1_domain_fn": "a Python function",
    "checkpoint_dir": "a folder within --out",
    "enable_progress_bar": "--quiet of the command",
    "resume": "--resume of the command, which looks at --out too",
    "train.seed": "that of the model",
}
"""Arguments that are no options, and why; with a function before the dot, of that function only."""

OLDER = {"additive_background_modalities": "background_modality", "feature_scaling_modalities": "scaling_modality"}
"""Spellings that options had before they were those of the arguments."""

_GROUPS = {"__init__": "Model", "setup_anndata": "Data", "setup_mudata": "Data", "train": "Training"}
_LOOKS = {int: "INT", float: "NUMBER", Path: "PATH", bool: "true|false", Any: "VALUE"}
_REFERENCE = re.compile(r"(?:See|As of|As for) :\w+:`(?:countvi\.)?(?:(\w+)\.)?(\w+)`")


@dataclass(frozen=True)
class Option:
    """An option of the command line.

    Parameters
    ----------
    name
        Of the argument in Python.
    type
        Of the argument, as annotated.
    default
        Of the argument; ``inspect.Parameter.empty`` where it must be given.
    help
        What it does.
    group
        Heading that it stands under; what stands under "Arguments" is given without its name.
    calls
        Names of the functions that it is an argument of; none if it is the command's own.
    """

    name: str
    type: Any
    default: Any
    help: str
    group: str
    calls: tuple[str, ...] = ()

    @property
    def kinds(self) -> tuple[Any, ...]:
        """The types that a value may have; see :func:`kinds_of`."""
        return kinds_of(self.type)

    @property
    def takes_none(self) -> bool:
        """Whether ``none`` says something else than leaving the option out."""
        return self.default is not None and NoneType in get_args(self.type)

    @property
    def repeats(self) -> bool:
        """Whether it can be given more than once."""
        return any(get_origin(kind) in (Sequence, Mapping) or kind is Any for kind in self.kinds)

    @property
    def spellings(self) -> list[str]:
        """Its name; that of one of several, ``batch_key`` of ``batch_keys``; and an older one."""
        one = re.sub("keys$", "key", self.name.replace("modalities", "modality")) if self.repeats else self.name
        return list(dict.fromkeys([self.name, one, OLDER.get(self.name, self.name)]))

    @property
    def written(self) -> str:
        """How it is written, as the help shows it."""
        name = f"--{self.name.replace('_', '-')}"
        if self.group == "Arguments":
            return self.name.upper()
        if self.kinds == (bool,):  # a switch of the command itself only turns on
            return f"{name} / --no-{name[2:]}" if self.calls else name
        return f"{name} {'|'.join(dict.fromkeys(map(_looks, self.kinds)))}{'...' * self.repeats}"


def kinds_of(annotation: Any) -> tuple[Any, ...]:
    """Return the types of a union that can be written down: no ``None``, function or mask, ``Any`` only if alone."""
    union = get_origin(annotation) in (Union, UnionType)
    parts = [part for part in (get_args(annotation) if union else (annotation,)) if part is not NoneType]
    left_out = (Any, Sequence[bool], slice)
    return tuple(part for part in parts if get_origin(part) is not Callable and part not in left_out) or (Any,)


def signature_of(name: str, group: str | None = None) -> list[Option]:
    """Return the options that set the arguments of a function of countvi.

    Parameters
    ----------
    name
        ``"deconvolve"``, ``"SCVI.train"``, ``"SCVI.setup_anndata"``, ``"SCVI.__init__"``.
    group
        Heading of the options, where the name of the function does not tell.
    """
    owner, _, call = name.rpartition(".")
    function, options = source.function(name), []
    for argument, parameter in inspect.signature(function).parameters.items():
        if argument in ("self", "cls") or {argument, f"{call}.{argument}"} & LEFT_OUT.keys():
            continue
        default = parameter.default
        if call == "train" and argument == "batch_size":  # None stands for what the class says
            default = source.default_batch_size(owner)
        text = _help(description(function, owner, argument), default)
        options.append(Option(argument, parameter.annotation, default, text, group or _GROUPS[call], (call,)))
    return options


def own(run: Callable[..., Any]) -> list[Option]:
    """Return the options of a command itself: the arguments of the function that runs it, but for ``given``."""
    hints, options = get_type_hints(run), []
    for name, parameter in inspect.signature(run).parameters.items():
        if name != "given":
            group = "Files" if parameter.kind is parameter.KEYWORD_ONLY else "Arguments"
            text = _help(description(run, "", name), parameter.default or None)
            options.append(Option(name, hints[name], parameter.default, text, group))
    return options


def merged(options: Iterable[Option]) -> list[Option]:
    """Put options of one name together, as arguments of several functions, which may have defaults of their own."""
    found: dict[str, Option] = {}
    for option in options:
        first = found.get(option.name, option)
        found[option.name] = dataclasses.replace(
            first,
            default=option.default if first.default is None else first.default,
            help=first.help if first.default == option.default else re.sub(r" \(default: .*\)", "", first.help),
            calls=tuple(dict.fromkeys((*first.calls, *option.calls))),
        )
    return list(found.values())


def description(function: Callable[..., Any], owner: str, name: str) -> str:
    """Return what the docstrings say of an argument, those of other functions too where one refers to them."""
    text = _section(function.__doc__ or "").get(name, "")
    refers = _REFERENCE.match(text)
    places = [(refers[1] or owner, refers[2]), (refers[2], "__init__")] if refers else []
    candidates = [(source.function(".".join(place)), place[0]) for place in places if source.has(*place)]
    target = getattr(function, "passed_on_to", None)
    if target is not None and (refers or not text):
        candidates.append((target, owner))
    return next((found for place in candidates if (found := description(*place, name))), text)


def shown(default: Any) -> str:
    """Return a default in words; nothing for ``None``."""
    if isinstance(default, bool):
        return "yes" if default else "no"
    return "" if default is None else f"{default:.4g}" if isinstance(default, float) else str(default)


def _section(docstring: str) -> dict[str, str]:
    """Descriptions under the heading "Parameters" of a numpydoc docstring, by name."""
    _, _, text = inspect.cleandoc(docstring).partition("Parameters\n----------\n")
    text = re.split(r"\n\n\w+\n-+\n", text)[0]
    entries = re.findall(r"^(\w[\w, ]*)\n((?:(?: .*)?\n?)+)", text, re.MULTILINE)
    return {name: " ".join(words.split()) for names, words in entries for name in names.split(", ")}


def _help(text: str, default: Any) -> str:
    """The first sentence of a description, what else it says of the default, and the default."""
    first, *rest = re.split(r"(?<=[\w)`\"][.])\s+", text)
    if rest and len(first) < 30:  # as "As in Lightning Fabric."
        first = f"{first} {rest.pop(0)}"
    words = "" if default is inspect.Parameter.empty else shown(default)
    if words:
        first = re.sub(r"; by default .*(?=\.$)", "", first)
    else:
        first = " ".join([first, *(sentence for sentence in rest if sentence.startswith("By default"))])
    plain = re.sub(r":\w+:`~?(?:countvi\.(?=[A-Z]))?([^`]+)`|``([^`]*)``", lambda found: found[1] or found[2], first)
    plain = plain.replace("None", "none")  # as it is written on the command line
    return f"{plain.removesuffix('.')} (default: {words}).".lstrip() if words else plain


def _looks(kind: Any) -> str:
    """What a value of a type looks like."""
    parts = get_args(kind)
    if get_origin(kind) is Literal:
        return "|".join(str(part).lower() if isinstance(part, bool) else part for part in parts)
    if get_origin(kind) is Sequence:
        return _looks(parts[0])
    return f"NAME={_looks(kinds_of(parts[1])[0])}" if get_origin(kind) is Mapping else _LOOKS.get(kind, "TEXT")
