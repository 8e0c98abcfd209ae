"""Compiled kernels on disk: made once, read afterwards, and not needed."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest
from tests.ops.cpu.fresh import EVERYTHING, SRC, run_fresh

pytest.importorskip("numba", reason="the kernels need numba, which some platforms lack")

pytestmark = pytest.mark.slow

COMPUTE = f"""{EVERYTHING}
with ops.backend("cpu"):
    print(*everything().tolist())
"""


def files(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file, with its size and the time it was written."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            state = path.stat()
            found[str(path.relative_to(folder))] = (state.st_size, state.st_mtime_ns)
    return found


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A folder that one process has filled, and what it computed."""
    folder = tmp_path_factory.mktemp("cache")
    return folder, run_fresh(COMPUTE, NUMBA_CACHE_DIR=str(folder))


def test_a_second_process_compiles_nothing(cache: tuple[Path, list[str]]) -> None:
    folder, expected = cache
    before = files(folder)
    assert any(name.endswith(".nbc") for name in before)
    assert run_fresh(COMPUTE, NUMBA_CACHE_DIR=str(folder)) == expected
    assert files(folder) == before


def test_a_cache_that_cannot_be_written_is_read(cache: tuple[Path, list[str]]) -> None:
    folder, expected = cache
    before = files(folder)
    folders = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    for path in folders:
        path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        assert run_fresh(COMPUTE, NUMBA_CACHE_DIR=str(folder)) == expected
    finally:
        for path in folders:
            path.chmod(stat.S_IRWXU)
    assert files(folder) == before


def test_a_damaged_cache_is_made_anew(cache: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, expected = cache
    copy = tmp_path / "cache"
    shutil.copytree(folder, copy)
    for path in copy.rglob("*.nb?"):
        path.write_bytes(path.read_bytes()[:100])
    assert run_fresh(COMPUTE, NUMBA_CACHE_DIR=str(copy)) == expected


def copy_package(folder: Path) -> Path:
    """Copy the sources, and return the folder of the kernels."""
    shutil.copytree(SRC / "countvi", folder / "countvi", ignore=shutil.ignore_patterns("__pycache__"))
    return folder / "countvi" / "ops" / "cpu"


def test_without_a_place_for_a_cache(cache: tuple[Path, list[str]], tmp_path: Path) -> None:
    """Every folder that numba could use is a file: the one it is told, the one of the sources, the user's."""
    blocked = tmp_path / "file"
    blocked.write_text("", encoding="utf-8")
    kernels = copy_package(tmp_path)
    (kernels / "__pycache__").write_text("", encoding="utf-8")
    places = dict.fromkeys(("NUMBA_CACHE_DIR", "HOME", "XDG_CACHE_HOME"), str(blocked / "below"))
    before = files(kernels)
    assert run_fresh(COMPUTE, tmp_path, **places) == cache[1]
    assert files(kernels) == before


def test_a_change_of_any_source_is_seen(cache: tuple[Path, list[str]], tmp_path: Path) -> None:
    """The kernels are in other files than the functions that they are made of."""
    kernels, folder = copy_package(tmp_path), tmp_path / "cache"
    assert run_fresh(COMPUTE, tmp_path, NUMBA_CACHE_DIR=str(folder)) == cache[1]
    source = kernels / "elementary.py"
    text = source.read_text(encoding="utf-8")
    # What the exponential of each rate begins with.
    changed = text.replace("np.float32(0.693359375)", "np.float32(0.6875)", 1)
    assert changed != text
    source.write_text(changed, encoding="utf-8")
    os.utime(source, ns=(0, 0))
    assert run_fresh(COMPUTE, tmp_path, NUMBA_CACHE_DIR=str(folder)) != cache[1]
