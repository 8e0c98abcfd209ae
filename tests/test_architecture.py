"""The rules of docs/architecture.md, counted.

A rule is a function from the sources to complaints. Each is also shown a small violation, so that it cannot
pass by looking at nothing.
"""

from __future__ import annotations

import ast
import inspect
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

import countvi

ROOT = Path(__file__).resolve().parents[1]
SRC = ROOT / "src"

MODEL_LINES, FILE_LINES, KERNEL_LINES = 250, 400, 600
FUNCTION_LINES = 60
ARGUMENTS = 8

Function = ast.FunctionDef | ast.AsyncFunctionDef
Documented = Function | ast.ClassDef


@dataclass(frozen=True)
class Source:
    """One file: its path below ``src/countvi``, and its text."""

    path: str
    text: str

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.path)

    @property
    def module(self) -> str:
        return ".".join(["countvi", *Path(self.path).with_suffix("").parts]).removesuffix(".__init__")


def read_sources() -> list[Source]:
    package = SRC / "countvi"
    files = sorted(package.rglob("*.py"))
    return [Source(f.relative_to(package).as_posix(), f.read_text(encoding="utf-8")) for f in files]


def walk(node: ast.AST, owner: str = "") -> Iterator[tuple[str, Documented]]:
    """Every class and function with its dotted name; those inside functions too, marked by ``<locals>``."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Documented):
            name = f"{owner}{child.name}"
            yield name, child
            yield from walk(child, f"{name}." if isinstance(child, ast.ClassDef) else f"{name}.<locals>.")
        else:
            yield from walk(child, owner)


def functions(source: Source) -> Iterator[tuple[str, Function]]:
    return ((name, node) for name, node in walk(source.tree) if isinstance(node, Function))


def classes(source: Source) -> Iterator[tuple[str, ast.ClassDef]]:
    return ((name, node) for name, node in walk(source.tree) if isinstance(node, ast.ClassDef))


def lines_of(node: ast.AST) -> int:
    """Lines of a piece of source without its docstrings, which shall cost nothing."""
    first, last = getattr(node, "lineno", 1), getattr(node, "end_lineno", None)
    if last is None:
        last = max((child.end_lineno or 0 for child in ast.walk(node) if hasattr(child, "end_lineno")), default=0)
    return last - first + 1 - sum(docstring_lines(child) for child in ast.walk(node))


def docstring_lines(node: ast.AST) -> int:
    """Lines of the docstring of a module, class, function or attribute."""
    body = getattr(node, "body", [])
    texts = (
        [s for s in body if isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant)]
        if isinstance(body, list)
        else []
    )
    return sum((text.end_lineno or 0) - text.lineno + 1 for text in texts if isinstance(text.value.value, str))


def is_public(dotted: str) -> bool:
    return not any(part.startswith(("_", "<")) for part in dotted.split("."))


def last_name(node: ast.expr) -> str:
    """``C`` of ``C``, ``a.b.C``, ``C[int]`` and ``C(...)``."""
    if isinstance(node, ast.Subscript):
        return last_name(node.value)
    if isinstance(node, ast.Call):
        return last_name(node.func)
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def decorators(node: Documented) -> set[str]:
    return {last_name(decorator) for decorator in node.decorator_list}


# --- sizes


def small_files(sources: Sequence[Source]) -> Iterator[str]:
    for source in sources:
        kernel, model = source.path.startswith("ops/cpu/"), source.path.startswith("models/")
        limit = MODEL_LINES if model else KERNEL_LINES if kernel else FILE_LINES
        lines = len(source.text.splitlines()) - sum(docstring_lines(node) for node in ast.walk(source.tree))
        if lines > limit:
            yield f"{source.path}: {lines} lines, at most {limit}"


def small_functions(sources: Sequence[Source]) -> Iterator[str]:
    for source in sources:
        for name, node in functions(source):
            lines = lines_of(node)
            if lines > FUNCTION_LINES:
                yield f"{source.path}: {name} has {lines} lines, at most {FUNCTION_LINES}"


# What takes more arguments than other functions: names that users know from scvi-tools, and the parts of a model.
MANY_ARGUMENTS = {
    "estimators/": {
        "__init__",
        "setup_anndata",
        "setup_mudata",
        "from_rna_model",
        "load_query_data",
        "train",
        "deconvolve",
        "differential_expression",
        "get_normalized_expression",
        "get_feature_correlation_matrix",
        "get_protein_foreground_probability",
    },
    "models/": {"__init__"},
}


def few_arguments(sources: Sequence[Source]) -> Iterator[str]:
    for source in sources:
        conventions = next((names for start, names in MANY_ARGUMENTS.items() if source.path.startswith(start)), set())
        for name, node in functions(source):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            count = sum(a.arg not in ("self", "cls") for a in arguments)
            if count > ARGUMENTS and node.name not in conventions:
                yield f"{source.path}: {name} takes {count} arguments, at most {ARGUMENTS}"


# --- classes


def own_names(source: Source) -> set[str]:
    """Names in a file that stand for something of countvi's: defined there, or imported from countvi."""
    names = {name for name, _ in classes(source)}
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").split(".")[0] == "countvi"):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {(alias.asname or "countvi") for alias in node.names if alias.name.split(".")[0] == "countvi"}
    return names


def own_bases(node: ast.ClassDef, names: set[str]) -> list[str]:
    """Bases of a class that are countvi's, generic or dotted ones too."""
    bases = []
    for base in node.bases:
        root = base.value if isinstance(base, ast.Subscript) else base
        while isinstance(root, ast.Attribute):
            root = root.value
        if isinstance(root, ast.Name) and root.id in names:
            bases.append(last_name(base))
    return bases


def no_mixins(sources: Sequence[Source]) -> Iterator[str]:
    for source in sources:
        names = own_names(source)
        for name, node in classes(source):
            if node.name.endswith("Mixin"):
                yield f"{source.path}: {name} is a mixin; write functions, or pass an object"
            bases = own_bases(node, names)
            if len(bases) > 1:
                yield f"{source.path}: {name} inherits from {' and '.join(bases)}; one countvi class at most"


# Bases of which nothing must be filled in: the hooks of a user, of which each may be left out, and what marks the parts
# of a model that have a row for each level of a covariate.
OPEN_BASES = {"Callback", "ByLevel"}


def abstract_or_final(sources: Sequence[Source]) -> Iterator[str]:
    """What is inherited from leaves something open. Exceptions are apart: ``except`` selects from their tree."""
    found: dict[str, ast.ClassDef] = {}
    for source in sources:
        found |= {node.name: node for _, node in classes(source) if source.path != "errors.py"}
    for source in sources:
        names = own_names(source)
        for name, node in classes(source):
            for base in own_bases(node, names):
                if (
                    base in found
                    and base not in OPEN_BASES
                    and not is_protocol(found[base])
                    and not left_open(found[base], found)
                ):
                    yield f"{source.path}: {name} inherits from {base}, which leaves nothing open"


def is_protocol(node: ast.ClassDef) -> bool:
    return "Protocol" in {last_name(base) for base in node.bases}


def left_open(node: ast.ClassDef, found: Mapping[str, ast.ClassDef]) -> set[str]:
    """Abstract methods of a class, its own and those of its bases that it does not define."""
    defined: set[str] = set()
    abstract: set[str] = set()
    for child in node.body:
        if isinstance(child, Function):
            (abstract if "abstractmethod" in decorators(child) else defined).add(child.name)
        elif isinstance(child, ast.Assign):
            defined |= {target.id for target in child.targets if isinstance(target, ast.Name)}
    bases = [found[name] for name in map(last_name, node.bases) if name in found and found[name] is not node]
    return abstract | (set().union(*(left_open(base, found) for base in bases)) - defined)


# A model as its equations and as its estimator; what each model calls its latent variables.
SAME_NAME = {"SCVI", "TOTALVI", "CondSCVI", "DestVI", "Latents"}


def one_class_per_name(sources: Sequence[Source]) -> Iterator[str]:
    found: dict[str, str] = {}
    for source in sources:
        for _, node in classes(source):
            if node.name in found and node.name not in SAME_NAME and not is_private_name(node.name):
                yield f"{source.path}: class {node.name} is in {found[node.name]}, too"
            found[node.name] = source.path


def no_private_names_of_others(sources: Sequence[Source]) -> Iterator[str]:
    """A name with an underscore belongs to its file, or to its class and the heirs of that."""
    ours = {name for source in sources for name in private_names(source)}
    for source in sources:
        local = private_names(source)
        for node in ast.walk(source.tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("countvi"):
                for alias in node.names:
                    if is_private_name(alias.name):
                        yield f"{source.path}:{node.lineno}: imports {alias.name} from {node.module}"
            elif isinstance(node, ast.Attribute) and node.attr in ours - local and not is_own(node.value):
                yield f"{source.path}:{node.lineno}: uses {ast.unparse(node)}"


def private_names(source: Source) -> set[str]:
    """Private functions, classes, methods, attributes and constants that a file defines."""
    names = {node.name for _, node in walk(source.tree)}
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_own(node.value):
            names.add(node.attr)
    return set(filter(is_private_name, names))


def is_own(owner: ast.expr) -> bool:
    called = isinstance(owner, ast.Call) and last_name(owner) == "super"
    return called or (isinstance(owner, ast.Name) and owner.id in ("self", "cls"))


def is_private_name(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


# --- words


def nothing_unfinished(sources: Sequence[Source]) -> Iterator[str]:
    for source in sources:
        for number, line in enumerate(source.text.splitlines(), start=1):
            for mark in re.findall(r"\b(?:NotImplementedError|TODO|FIXME|XXX)\b", line):
                yield f"{source.path}:{number}: {mark}"


def documented(sources: Sequence[Source]) -> Iterator[str]:
    for source in sources:
        if ast.get_docstring(source.tree) is None:
            yield f"{source.path}: the module has no docstring"
        for name, node in walk(source.tree):
            # An override, an overload and a setter are documented where the name is first defined.
            if not is_public(name) or decorators(node) & {"override", "overload", "setter"}:
                continue
            if ast.get_docstring(node) is None:
                yield f"{source.path}: {name} has no docstring"


Rule = Callable[[Sequence[Source]], Iterator[str]]
RULES: list[Rule] = [
    small_files,
    small_functions,
    few_arguments,
    no_mixins,
    abstract_or_final,
    one_class_per_name,
    no_private_names_of_others,
    nothing_unfinished,
    documented,
]


def name_of(value: object) -> str | None:
    return getattr(value, "__name__", None)


@pytest.mark.parametrize("rule", RULES, ids=name_of)
def test_the_sources_keep_the_rule(rule: Rule) -> None:
    complaints = list(rule(read_sources()))
    assert not complaints, "\n".join(complaints)


def test_the_sources_are_found() -> None:
    modules = {source.module for source in read_sources()}
    assert {"countvi", "countvi.batch", "countvi.models.count_model", "countvi.ops"} <= modules


DOC = '"""Doc."""\n'
NINE = ", ".join("abcdefghi")


def body(lines: int) -> str:
    return "    x = 1\n" * lines


OPEN = "class B:\n    @abstractmethod\n    def f(self): ...\n"

PLANTED = {
    "model file": (small_files, "models/a.py", "#\n" * 251),
    "file": (small_files, "nn/a.py", "#\n" * 401),
    "kernel": (small_files, "ops/cpu/a.py", "#\n" * 601),
    "function": (small_functions, "nn/a.py", "def f():\n" + body(60)),
    "function after its docstring": (small_functions, "nn/a.py", "def f():\n    '''Doc.\n\n    More.'''\n" + body(60)),
    "method": (small_functions, "nn/a.py", "class A:\n    async def f(self):\n" + "        x = 1\n" * 60),
    "arguments": (few_arguments, "nn/a.py", f"def f({NINE}): ..."),
    "keyword-only arguments": (few_arguments, "nn/a.py", f"class A:\n    def f(self, *, {NINE}): ..."),
    "arguments of a query": (few_arguments, "query/a.py", f"def differential_expression({NINE}): ..."),
    "arguments of a command": (few_arguments, "cli/a.py", f"def train({NINE}): ..."),
    "mixin": (no_mixins, "nn/a.py", "class AMixin: ..."),
    "two bases, imported": (no_mixins, "nn/a.py", "from countvi.nn import B, C\nclass A(B, C): ..."),
    "two bases, dotted": (no_mixins, "nn/a.py", "import countvi.x\nclass B: ...\nclass A(B, countvi.x.C): ..."),
    "two bases, generic": (no_mixins, "nn/a.py", "from countvi.nn import B, C\nclass A(B[int], C): ..."),
    "concrete base": (abstract_or_final, "nn/a.py", "class B: ...\nclass A(B): ..."),
    "abstract in name only": (abstract_or_final, "nn/a.py", "class B(ABC): ...\nclass A(B): ..."),
    "heir of an heir": (
        abstract_or_final,
        "nn/a.py",
        OPEN + "class C(B):\n    def f(self): ...\nclass D(C): ...",
    ),
    "a name twice": (one_class_per_name, "nn/a.py", "class A: ...\nclass A: ..."),
    "a private import": (no_private_names_of_others, "nn/a.py", "from countvi.ops import _x"),
    "unwritten": (nothing_unfinished, "nn/a.py", "def f():\n    raise NotImplementedError"),
    "remark": (nothing_unfinished, "nn/a.py", "x = 1  # TODO: two"),
    "module": (documented, "nn/_a.py", "x = 1"),
    "class": (documented, "nn/a.py", DOC + "class A: ..."),
    "public method": (documented, "nn/_a.py", DOC + f"class A:\n    {DOC}    def f(self): ..."),
    "public function": (documented, "nn/a.py", DOC + "if True:\n    def f(): ..."),
}

ALLOWED = {
    "model file": (small_files, "models/a.py", "#\n" * 250),
    "kernel": (small_files, "ops/cpu/a.py", "#\n" * 600),
    "long docstrings": (
        small_files,
        "nn/a.py",
        "'''Doc.\n" + "more\n" * 99 + "'''\n" + "def f():\n    '''Doc.\n" + "    more\n" * 400 + "    '''\n",
    ),
    "function": (small_functions, "nn/a.py", "def f():\n" + body(59)),
    "long docstring": (
        small_functions,
        "nn/a.py",
        "def f():\n    '''Doc.\n" + "    more\n" * 99 + "    '''\n" + body(9),
    ),
    "eight and self": (few_arguments, "nn/a.py", "class A:\n    def f(self, a, b, c, d, e, f, g, h): ..."),
    "constructor": (few_arguments, "estimators/a.py", f"class A:\n    def __init__(self, {NINE}): ..."),
    "read-out": (few_arguments, "estimators/readouts/a.py", f"def differential_expression(self, {NINE}): ..."),
    "one base of ours": (no_mixins, "nn/a.py", "from torch import nn\nclass B: ...\nclass A(B, nn.Module): ..."),
    "abstract method": (abstract_or_final, "nn/a.py", OPEN + "class A(B): ..."),
    "abstract heir": (abstract_or_final, "nn/a.py", OPEN + "class C(B): ...\nclass D(C): ..."),
    "protocol": (abstract_or_final, "nn/a.py", "class B(Protocol[T]): ...\nclass A(B[int]): ..."),
    "exceptions": (abstract_or_final, "errors.py", "class B(Exception): ...\nclass A(B): ..."),
    "a private name of the file": (no_private_names_of_others, "nn/a.py", "class A:\n    def _f(self): ...\nA()._f()"),
    "a private name of a base": (no_private_names_of_others, "nn/a.py", "class A(B):\n    def f(self): self._g()"),
    "a word inside a word": (nothing_unfinished, "nn/a.py", "TODOS = 1"),
    "private": (documented, "nn/a.py", DOC + f"def _f(): ...\nclass A:\n    {DOC}    def __len__(self): ..."),
    "inside a function": (documented, "nn/a.py", DOC + f"def f():\n    {DOC}    def g(): ..."),
    "override": (documented, "nn/a.py", DOC + f"class A:\n    {DOC}    @override\n    def f(self): ..."),
}


@pytest.mark.parametrize(("rule", "path", "text"), PLANTED.values(), ids=PLANTED)
def test_a_violation_is_seen(rule: Rule, path: str, text: str) -> None:
    assert len(list(rule([Source(path, text)]))) == 1


@pytest.mark.parametrize(("rule", "path", "text"), ALLOWED.values(), ids=ALLOWED)
def test_what_is_allowed_is_not_seen(rule: Rule, path: str, text: str) -> None:
    assert not list(rule([Source(path, text)]))


def test_a_concrete_base_in_another_file_is_seen() -> None:
    sources = [Source("nn/a.py", "class B: ..."), Source("nn/b.py", "from countvi.nn.a import B\nclass A(B): ...")]
    assert list(abstract_or_final(sources)) == ["nn/b.py: A inherits from B, which leaves nothing open"]


def test_a_private_name_of_another_file_is_seen() -> None:
    sources = [Source("nn/a.py", "class A:\n    def _f(self): ..."), Source("nn/b.py", "def f(a): return a._f()")]
    assert list(no_private_names_of_others(sources)) == ["nn/b.py:1: uses a._f"]


def test_what_users_call_says_something_of_each_argument() -> None:
    called = {}
    for name in countvi.__all__:
        owner = getattr(countvi, name)
        if inspect.isclass(owner):
            called |= {f"{name}.{short}": getattr(owner, short) for short in dir(owner) if not short.startswith("_")}
        elif inspect.isfunction(owner):
            called[name] = owner
    silent = []
    for name, function in called.items():
        text = inspect.getdoc(function) or ""
        for argument in inspect.signature(function).parameters if callable(function) else ():
            # "arguments" has a line of its own where a method passes on what it does not name.
            said = re.search(rf"^[\w, ]*\b({argument}|arguments)\b[\w, ]*$", text, re.MULTILINE)
            if argument not in ("self", "cls") and not said:
                silent.append(f"{name}: {argument}")
    assert "deconvolve" in called and len(called) > 150
    assert not silent, "\n".join(silent)


# --- layers


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    """Check the contracts of ``root/pyproject.toml`` on ``root/src``."""
    pytest.importorskip("importlinter", reason="needs import-linter: pip install 'countvi[check]'")
    code = "from importlinter.cli import lint_imports_command as run; run()"
    return subprocess.run(
        [sys.executable, "-c", code, "--no-cache"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root / "src"), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_imports_point_down_only() -> None:
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


PLANTED_IMPORTS = {
    "upwards": ("ops/planted.py", "import countvi.nn", "countvi.ops is not allowed to import countvi.nn"),
    "upwards inside a function": (
        "nn/planted.py",
        "def f():\n    import countvi.data",
        "countvi.nn is not allowed to import countvi.data",
    ),
    "sideways": ("train/planted.py", "import countvi.data", "countvi.train is not allowed to import countvi.data"),
    "likelihoods know no networks": (
        "likelihoods/planted.py",
        "import countvi.nn",
        "countvi.likelihoods is not allowed to import countvi.nn",
    ),
    "only nn.observation knows likelihoods": (
        "nn/planted.py",
        "import countvi.likelihoods",
        "countvi.nn is not allowed to import countvi.likelihoods",
    ),
    "pandas in a model": ("models/planted.py", "import pandas", "countvi.models is not allowed to import pandas"),
    "anndata in an op": ("ops/planted.py", "import anndata", "countvi.ops is not allowed to import anndata"),
    "a model in a model": (
        "models/planted.py",
        "import countvi.models.scvi",
        "countvi.models.planted is not allowed to import countvi.models.scvi",
    ),
    "a package without a layer": ("planted.py", "", "planted"),
}


@pytest.mark.parametrize(("path", "text", "complaint"), PLANTED_IMPORTS.values(), ids=PLANTED_IMPORTS)
def test_a_forbidden_import_is_seen(path: str, text: str, complaint: str, tmp_path: Path) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(SRC, tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "src" / "countvi" / path).write_text(text, encoding="utf-8")
    result = lint_imports(tmp_path)
    assert result.returncode != 0
    assert complaint in result.stdout + result.stderr
