"""Signatures and docstrings of countvi's functions, read from the sources without importing them.

Importing an estimator imports torch, which takes seconds; help and misspelt options should not. A function read here
has its signature and its docstring, and no body.
"""

from __future__ import annotations

import ast
import copy
import sys
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from countvi.estimators.signatures import passes_on_to

_ROOT = Path(__file__).parents[1]
_Found = tuple["_Source", ast.stmt | ast.expr]


def function(name: str) -> Callable[..., Any]:
    """Return a public function of countvi, or a method of a public class, without its body.

    Parameters
    ----------
    name
        ``"deconvolve"``, ``"SCVI.train"``; the docstring of a constructor is that of its class.

    Returns
    -------
    callable
        Its attribute ``passed_on_to`` is the function that ``**arguments`` go to, or ``None``.
    """
    owner, _, method = name.partition(".")
    if not method:
        return _source("countvi")[owner]
    source, node = cast(_Found, _source("countvi").find(owner, method))
    if isinstance(node, ast.Call):  # classmethod(...)
        node = node.args[0]
    read = source.function(node) if isinstance(node, ast.FunctionDef) else source.value(node)
    if method == "__init__":
        _, class_node = cast(_Found, _source("countvi").find(owner))
        read.__doc__ = ast.get_docstring(cast(ast.ClassDef, class_node))
    return read


def has(owner: str, method: str) -> bool:
    """Whether a public class has a method."""
    return _source("countvi").find(owner, method) is not None


def default_batch_size(owner: str) -> int:
    """Return the cells per step of a model's ``train``, which stand in ``defaults`` of its class."""
    source, node = cast(_Found, _source("countvi").find(owner, "defaults"))
    return source.value(node).batch_size


class _Source(Mapping[str, Any]):
    """A module of countvi as a mapping from its names to their values, each worked out when it is asked for."""

    def __init__(self, module: str) -> None:
        path = cast(Path, _file(module))
        self._nodes = dict(_named(ast.parse(path.read_text(encoding="utf-8")).body))

    def __getitem__(self, name: str) -> Any:
        node = self._nodes[name]
        if isinstance(node, tuple):
            return _imported(*node)
        if isinstance(node, ast.ClassDef):  # one with its fields, which is all that annotations and defaults need
            fields = {field: value.value for field, value in _named(node.body) if isinstance(value, ast.Constant)}
            return type(name, (SimpleNamespace,), fields)
        return self.function(node) if isinstance(node, ast.FunctionDef) else self.value(node)

    def __getattr__(self, name: str) -> Any:
        return self[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._nodes)

    def __len__(self) -> int:
        return len(self._nodes)

    def value(self, node: ast.AST) -> Any:
        return eval(ast.unparse(node), {}, self)

    def function(self, node: ast.FunctionDef) -> Callable[..., Any]:
        bare = copy.deepcopy(node)
        bare.body = [ast.Expr(ast.Constant(ast.get_docstring(node)))]
        bare.decorator_list, bare.returns = [], None
        for argument in bare.args.args[:1]:
            argument.annotation = None if argument.arg in ("self", "cls") else argument.annotation
        made: dict[str, Any] = {}
        tree = ast.fix_missing_locations(ast.Module([bare], []))
        exec(compile(tree, "", "exec", dont_inherit=True), {}, ChainMap(made, cast(Any, self)))
        target = None
        for decorator in node.decorator_list:
            if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == passes_on_to.__name__:
                target, *without = map(self.value, [*decorator.args, *(word.value for word in decorator.keywords)])
                made[node.name] = passes_on_to(target, *without)(made[node.name])
        made[node.name].passed_on_to = target
        return made[node.name]

    def find(self, owner: str, name: str = "") -> _Found | None:
        """What defines a class, or an attribute of it or of its bases, and where; ``None`` if nothing does."""
        node = self._nodes.get(owner)
        if isinstance(node, tuple):
            return _source(node[0]).find(node[1], name) if _file(node[0]) else None
        if not name or not isinstance(node, ast.ClassDef):
            return None if node is None else (self, node)
        own = dict(_named(node.body)).get(name)
        bases = (ast.unparse(base.value if isinstance(base, ast.Subscript) else base) for base in node.bases)
        return (self, own) if own else next((found for base in bases if (found := self.find(base, name))), None)


_source = cache(_Source)


def _named(body: list[ast.stmt]) -> Iterator[tuple[str, Any]]:
    """The names that statements define: by a definition, an expression, or the module and name of an import."""
    for node in body:
        if isinstance(node, ast.If):
            yield from _named(node.body)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, node
        elif isinstance(node, ast.ImportFrom):
            yield from ((alias.asname or alias.name, (node.module, alias.name)) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.asname or alias.name, (alias.name, "")) for alias in node.names)
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value:
            yield ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target), node.value


def _imported(module: str, name: str) -> Any:
    if _file(module):
        return _source(f"{module}.{name}") if _file(f"{module}.{name}") else _source(module)[name]
    if module.split(".")[0] in sys.stdlib_module_names:
        return getattr(import_module(module), name) if name else import_module(module)
    return Any if name else _Elsewhere()


class _Elsewhere:
    """A module of another library."""

    def __getattr__(self, name: str) -> Any:
        return Any


def _file(module: str) -> Path | None:
    path = _ROOT.joinpath(*module.split(".")[1:])
    files = (path.with_suffix(".py"), path / "__init__.py") if module.split(".")[0] == "countvi" else ()
    return next((file for file in files if file.is_file()), None)
