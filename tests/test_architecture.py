"""The rules of docs/architecture.md, counted.

A rule is a function from the sources to complaints. Each is also shown a small violation, so that it cannot
pass by looking at nothing.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

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
        is_kernel = source.path.startswith(("ops/cpu/", "ops/cuda/"))
        limit = MODEL_LINES if source.path.startswith("models/") else KERNEL_LINES if is_kernel else FILE_LINES
        lines = len(source.text.splitlines())
        if lines > limit:
            yield f"{source.path}: {lines} lines, at most {limit}"


def small_functions(sources: Sequence[Source]) -> Iterator[str]:
    """Signature and code count; the docstring does not, or the rule would cost documentation."""
    for source in sources:
        for name, node in functions(source):
            assert node.end_lineno is not None
            lines = node.end_lineno - node.lineno + 1
            if ast.get_docstring(node) is not None:
                docstring = node.body[0]
                assert docstring.end_lineno is not None
                lines -= docstring.end_lineno - docstring.lineno + 1
            if lines > FUNCTION_LINES:
                yield f"{source.path}: {name} has {lines} lines, at most {FUNCTION_LINES}"


def few_arguments(sources: Sequence[Source]) -> Iterator[str]:
    for source in sources:
        for name, node in functions(source):
            short = node.name
            # Public constructors, read-outs and commands: their arguments are the field's convention.
            is_constructor = short == "__init__" and is_public(name.removesuffix(".__init__"))
            is_front = source.path.startswith(("estimators/", "cli/", "query/")) and is_public(name)
            if is_constructor or is_front or short.startswith("setup_") or re.fullmatch(r"train(_.*)?", short):
                continue
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            count = sum(a.arg not in ("self", "cls") for a in arguments)
            if count > ARGUMENTS:
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


def abstract_or_final(sources: Sequence[Source]) -> Iterator[str]:
    """What is inherited from is abstract. Exceptions are apart: their tree is what ``except`` selects from."""
    found: dict[str, ast.ClassDef] = {}
    for source in sources:
        found |= {node.name: node for _, node in classes(source) if source.path != "errors.py"}
    for source in sources:
        names = own_names(source)
        for name, node in classes(source):
            for base in own_bases(node, names):
                if base in found and not is_abstract(found[base]):
                    yield f"{source.path}: {name} inherits from {base}, which is not abstract"


def is_abstract(node: ast.ClassDef) -> bool:
    bases = {last_name(base) for base in node.bases} | {last_name(keyword.value) for keyword in node.keywords}
    methods = (child for child in node.body if isinstance(child, Function))
    return bool(bases & {"ABC", "ABCMeta", "Protocol"}) or any("abstractmethod" in decorators(m) for m in methods)


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
        is_private = any(part.startswith("_") for part in source.module.split("."))
        for name, node in walk(source.tree):
            # An override, an overload and a setter are documented where the name is first defined.
            if is_private or not is_public(name) or decorators(node) & {"override", "overload", "setter"}:
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


PLANTED = {
    "model file": (small_files, "models/a.py", "#\n" * 251),
    "file": (small_files, "nn/a.py", "#\n" * 401),
    "kernel": (small_files, "ops/cpu/a.py", "#\n" * 601),
    "function": (small_functions, "nn/a.py", "def f():\n" + body(60)),
    "function after its docstring": (small_functions, "nn/a.py", "def f():\n    '''Doc.\n\n    More.'''\n" + body(60)),
    "method": (small_functions, "nn/a.py", "class A:\n    async def f(self):\n" + "        x = 1\n" * 60),
    "arguments": (few_arguments, "nn/a.py", f"def f({NINE}): ..."),
    "keyword-only arguments": (few_arguments, "nn/a.py", f"class A:\n    def f(self, *, {NINE}): ..."),
    "constructor of a private class": (few_arguments, "nn/a.py", f"class _A:\n    def __init__(self, {NINE}): ..."),
    "private function of an estimator": (few_arguments, "estimators/a.py", f"def _f({NINE}): ..."),
    "a name that starts like train": (few_arguments, "nn/a.py", f"def trainable({NINE}): ..."),
    "mixin": (no_mixins, "nn/a.py", "class AMixin: ..."),
    "two bases, imported": (no_mixins, "nn/a.py", "from countvi.nn import B, C\nclass A(B, C): ..."),
    "two bases, local and dotted": (
        no_mixins,
        "nn/a.py",
        "import countvi.x\nclass B: ...\nclass A(B, countvi.x.C): ...",
    ),
    "two bases, generic": (no_mixins, "nn/a.py", "from countvi.nn import B, C\nclass A(B[int], C): ..."),
    "concrete base": (abstract_or_final, "nn/a.py", "class B: ...\nclass A(B): ..."),
    "unwritten": (nothing_unfinished, "nn/a.py", "def f():\n    raise NotImplementedError"),
    "remark": (nothing_unfinished, "nn/a.py", "x = 1  # TODO: two"),
    "module": (documented, "nn/a.py", "x = 1"),
    "class": (documented, "nn/a.py", DOC + "class A: ..."),
    "public method": (documented, "nn/a.py", DOC + f"class A:\n    {DOC}    def f(self): ..."),
    "public function": (documented, "nn/a.py", DOC + "if True:\n    def f(): ..."),
}

ALLOWED = {
    "model file": (small_files, "models/a.py", "#\n" * 250),
    "file": (small_files, "nn/a.py", "#\n" * 400),
    "kernel": (small_files, "ops/cuda/a.py", "#\n" * 600),
    "function": (small_functions, "nn/a.py", "def f():\n" + body(59)),
    "long docstring": (
        small_functions,
        "nn/a.py",
        "def f():\n    '''Doc.\n" + "    more\n" * 99 + "    '''\n" + body(9),
    ),
    "eight and self": (few_arguments, "nn/a.py", "class A:\n    def f(self, a, b, c, d, e, f, g, h): ..."),
    "constructor": (few_arguments, "estimators/a.py", f"class A:\n    def __init__(self, {NINE}): ..."),
    "read-out": (few_arguments, "estimators/a.py", f"class A:\n    def get_elbo(self, {NINE}): ..."),
    "set-up": (few_arguments, "data/a.py", f"def setup_anndata({NINE}): ..."),
    "command": (few_arguments, "cli/a.py", f"def run({NINE}): ..."),
    "one base of ours": (no_mixins, "nn/a.py", "from torch import nn\nclass B: ...\nclass A(B, nn.Module): ..."),
    "abstract base": (abstract_or_final, "nn/a.py", "class B(nn.Module, ABC): ...\nclass A(B): ..."),
    "abstract method": (
        abstract_or_final,
        "nn/a.py",
        "class B:\n    @abstractmethod\n    def f(self): ...\nclass A(B): ...",
    ),
    "protocol": (abstract_or_final, "nn/a.py", "class B(Protocol[T]): ...\nclass A(B[int]): ..."),
    "exceptions": (abstract_or_final, "errors.py", "class B(Exception): ...\nclass A(B): ..."),
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
    assert list(abstract_or_final(sources)) == ["nn/b.py: A inherits from B, which is not abstract"]


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
