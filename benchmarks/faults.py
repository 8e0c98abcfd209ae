"""Damaged and hostile inputs, and runs that are killed: what countvi makes of them. ``make faults``.

Every try runs in a process of its own with bounded memory and time, so that a crash or a hang is a result. It may end
in a :class:`countvi.CountviError`, or open what it should; anything else is counted: an error of another kind ("raw"),
a hang or a crash, and a model or data that differ without a word ("silent"). Prints a table; exit status 1 if any count
is not 0. The seeds are fixed.

    python benchmarks/faults.py [--share 1.0] [names of parts]
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import os
import pickle
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

import countvi
from countvi.errors import CountviError
from countvi.files import DIGEST

MEMORY = 2 * 2**30
"""Bytes that a try may take beyond what the process has."""
SECONDS = 10
"""CPU time of a try; ten times that by the clock."""
SAME, REFUSED, OPENED, SILENT, RAW, HANG = "same", "refused", "opened", "silent", "raw", "hang or crash"
FAULTS = (SILENT, RAW, HANG)

Try = tuple[str, Callable[[], str]]
"""What is tried in words, and a function that returns an outcome."""


def isolated(attempt: Callable[[], str]) -> tuple[str, str]:
    """Run in a child process; return the outcome and what is to be said of it."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _limit()
        os.write(writing, json.dumps(outcome_of(attempt)).encode()[:4000])
        os._exit(0)
    os.close(writing)
    deadline, ended = time.monotonic() + 10 * SECONDS, 0
    while not ended and time.monotonic() < deadline:
        ended, _ = os.waitpid(child, os.WNOHANG)
        time.sleep(0.002)
    if not ended:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    with os.fdopen(reading, "rb") as stream:
        said = stream.read()
    if not said:
        return HANG, ""
    outcome, detail = json.loads(said)
    return outcome, detail


def _limit() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    spent = int(time.process_time()) + SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (spent, spent))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def outcome_of(attempt: Callable[[], str]) -> tuple[str, str]:
    """Run here; return the outcome and what is to be said of it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return attempt(), ""
    except CountviError as error:
        return REFUSED, str(error)[:200]
    except BaseException as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "countvi" in f.filename]
        where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
        return RAW, f"{type(error).__name__}: {str(error)[:150]} at {where}"


def cells(n: int = 60, genes: int = 20) -> anndata.AnnData:
    """Counts with a batch."""
    rng = np.random.default_rng(1)
    counts = sp.csr_matrix(rng.poisson(rng.gamma(1, 2, (n, genes))).astype(np.float32))
    obs = pd.DataFrame({"batch": [f"b{i % 2}" for i in range(n)]}, index=[f"c{i}" for i in range(n)])
    return anndata.AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(genes)]))


def model_of(adata: anndata.AnnData, **options: Any) -> countvi.SCVI:
    """A small model, not trained."""
    countvi.SCVI.setup_anndata(adata, batch_key="batch")
    return countvi.SCVI(adata, n_hidden=8, n_latent=3, **options)


def weights_of(model: countvi.SCVI) -> bytes:
    """All weights in order of their names."""
    return b"".join(tensor.numpy().tobytes() for _, tensor in sorted(model.module.state_dict().items()))


# ---------------------------------------------------------------- model folders


def _positions(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from _positions(value[key], (*path, key))


STRANGE = (
    None,
    True,
    -1,
    0,
    3,
    2**31,
    10**12,
    10**300,
    1e308,
    0.5,
    "",
    "x",
    "\0",
    "../x",
    [],
    [None],
    {},
    {"x": 1},
    [[1]],
)


def _edit(values: dict[str, Any], rng: np.random.Generator) -> str:
    """Change a value, take an entry away, or add one; return what was done."""
    paths = [path for path in _positions(values) if path]
    path = paths[rng.integers(len(paths))]
    holder = values
    for key in path[:-1]:
        holder = holder[key]
    kind = rng.integers(4)
    if kind == 0:
        del holder[path[-1]]
    elif kind == 1 and isinstance(holder, dict):
        holder[f"{path[-1]}_"] = holder.pop(path[-1])
    elif kind == 1:
        holder.append(copy.deepcopy(holder[path[-1]]))
    else:
        holder[path[-1]] = copy.deepcopy(STRANGE[rng.integers(len(STRANGE))])
    return f"edit {kind} of {'/'.join(map(str, path))}"


def folders(at: Path, share: float) -> Iterator[Try]:
    """Edited manifests with a digest of the old content, or without one; flipped and cut files; pipes and devices."""
    adata = cells()
    whole = at / "whole"
    model = model_of(adata)
    model.train(2, enable_progress_bar=False)
    model.save(whole)
    text, tensors = (whole / "manifest.json").read_bytes(), (whole / "model.safetensors").read_bytes()
    expected = weights_of(model)
    tried = at / "tried"

    def opens(manifest: bytes, payload: bytes, damaged: bool, data: Any) -> Callable[[], str]:
        def attempt() -> str:
            shutil.rmtree(tried, ignore_errors=True)
            tried.mkdir()
            (tried / "manifest.json").write_bytes(manifest)
            (tried / "model.safetensors").write_bytes(payload)
            opened = countvi.SCVI.load(tried, data)
            if opened.is_trained and data is not False:
                opened.get_latent_representation()
            same = weights_of(opened) == expected and opened.registry == model.registry
            same = same and opened.arguments == model.arguments and opened.history.equals(model.history)
            return SAME if same else SILENT if damaged else OPENED

        return attempt

    rng = np.random.default_rng(1)
    for i in range(round(1000 * share)):
        values = json.loads(text)
        del values[DIGEST]
        what = " and ".join(_edit(values, rng) for _ in range(rng.integers(1, 3)))
        yield f"hostile {what}", opens(json.dumps(values).encode(), tensors, False, adata if i % 2 else False)
    for _ in range(round(300 * share)):
        flipped = bytearray(text)
        flipped[rng.integers(len(flipped))] ^= 1 << rng.integers(8)
        yield "flipped manifest", opens(bytes(flipped), tensors, True, adata)
    for i in range(round(200 * share)):
        flipped = bytearray(tensors)
        flipped[rng.integers(len(flipped))] ^= 1 << rng.integers(8)
        cut = tensors[: rng.integers(len(tensors))]
        yield "flipped or cut weights", opens(text, bytes(flipped) if i % 2 else cut, True, False)
    for name in ("manifest.json", "model.safetensors", "adata.h5ad"):
        for kind in ("pipe", "/dev/zero", "folder"):
            yield f"{kind} for {name}", _odd_file(whole, at / "odd", name, kind)


def _odd_file(whole: Path, tried: Path, name: str, kind: str) -> Callable[[], str]:
    def attempt() -> str:
        shutil.rmtree(tried, ignore_errors=True)
        shutil.copytree(whole, tried)
        file = tried / name
        file.unlink(missing_ok=True)
        if kind == "pipe":
            os.mkfifo(file)
        elif kind == "folder":
            file.mkdir()
        else:
            file.symlink_to(kind)
        countvi.SCVI.load(tried)
        return SILENT

    return attempt


# ---------------------------------------------------------------- archives of scvi-tools


def _text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def _laughs(depth: int = 9) -> bytes:
    """A list of ten lists of ten lists."""
    program = b"(" + b"N" * 10 + b"lq\x010"
    for i in range(1, depth + 1):
        program += b"(" + b"".join(b"h" + bytes([i]) for _ in range(10)) + b"lq" + bytes([i + 1])
        program += b"0" if i < depth else b""
    return program


def _dictionary(**entries: bytes) -> bytes:
    return b"}(" + b"".join(_text(name) + value for name, value in entries.items()) + b"u"


def _program(state: bytes = b"}", names: bytes = b"]", attributes: bytes = b"}") -> bytes:
    return b"\x80\x02" + _dictionary(model_state_dict=state, var_names=names, attr_dict=attributes) + b"."


def _programs() -> Iterator[tuple[str, bytes]]:
    gene = b"]" + _text("g") + b"a"
    for model in ("SCVI", "TOTALVI", "CondSCVI", "DestVI"):
        registry = {"model_name": _text(model), "field_registries": b"}", "setup_args": b"}"}

        def of(init: bytes = b"}", registry: dict[str, bytes] = registry, **other: bytes) -> bytes:
            return _dictionary(registry_=_dictionary(**{**registry, **other}), init_params_=init)

        yield f"{model} of nothing", _program(names=gene, attributes=of())
        for name in ("field_registries", "setup_args"):
            for what, value in {"a list": b"]", "None": b"N", "nested": _laughs(), "text": _text("x")}.items():
                yield f"{model} with {name} {what}", _program(names=gene, attributes=of(**{name: value}))
        for option in ("n_latent", "n_layers", "n_hidden", "foo"):
            for number in (2**31 - 1, 10**8, -1):
                flat = _dictionary(**{option: b"J" + struct.pack("<i", number)})
                init = _dictionary(non_kwargs=flat, kwargs=b"}")
                yield f"{model} with {option}={number}", _program(names=gene, attributes=of(init))
            init = _dictionary(non_kwargs=_dictionary(**{option: _laughs()}), kwargs=b"}")
            yield f"{model} with nested {option}", _program(names=gene, attributes=of(init))
    yield "nested names", _program(names=_laughs())
    yield "nested state", _program(state=_dictionary(a=_laughs()))
    yield "nested attributes", _program(attributes=_laughs())
    yield "nested model name", _program(attributes=_dictionary(registry_=_dictionary(model_name=_laughs())))
    for module, name in (("os", "system"), ("builtins", "eval"), ("torch", "load"), ("numpy", "load")):
        yield (
            f"a call of {module}.{name}",
            b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"(" + _text("true") + b"tR.",
        )
    big = b"".join(b"\x8a\x0b" + (i * (2**61 - 1)).to_bytes(11, "little") + b"N" for i in range(1, 50_000))
    yield "colliding keys", _program(attributes=b"}(" + big + b"u")


def archives(at: Path, share: float) -> Iterator[Try]:
    """Pickles that ask for memory, for time or for something to be run; flipped and cut archives."""
    file = at / "model.pt"

    def reads(payload: bytes) -> Callable[[], str]:
        def attempt() -> str:
            file.write_bytes(payload)
            countvi.io.load_scvi_tools(file)
            return OPENED

        return attempt

    def zipped(program: bytes) -> bytes:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr("archive/data.pkl", program)
            archive.writestr("archive/data/0", b"\0" * 64)
        return stream.getvalue()

    for what, program in _programs():
        yield what, reads(zipped(program))
    rng = np.random.default_rng(2)
    attributes = {"registry_": {"model_name": "SCVI", "field_registries": {}, "setup_args": {}}}
    content = {"model_state_dict": {"w": [1.0]}, "var_names": ["a", "b"], "attr_dict": attributes}
    program = pickle.dumps(content, 2)
    stream = io.BytesIO()
    torch.save({**content, "model_state_dict": {"w": torch.zeros(3)}, "var_names": np.array(["a"], object)}, stream)
    for i in range(round(200 * share)):
        payload = bytearray(stream.getvalue() if i % 2 else zipped(program))
        for _ in range(rng.integers(1, 4)):
            payload[rng.integers(len(payload))] = rng.integers(256)
        yield "flipped archive", reads(bytes(payload) if i % 5 else bytes(payload[: rng.integers(len(payload))]))


# ---------------------------------------------------------------- data files


def data_files(at: Path, share: float) -> Iterator[Try]:
    """Damaged .h5ad and Cell Ranger .h5, read, set up and made a model of."""
    adata = cells()
    adata.write_h5ad(at / "whole.h5ad")
    write_cell_ranger(at / "whole.h5", adata)
    rng = np.random.default_rng(3)
    for i in range(round(150 * share)):
        suffix = (".h5ad", ".h5")[i % 2]
        payload = bytearray((at / f"whole{suffix}").read_bytes())
        for _ in range(rng.integers(1, 30)):
            payload[rng.integers(len(payload))] = rng.integers(256)
        yield f"random bytes in {suffix}", _uses(at / f"tried{suffix}", bytes(payload))
        yield f"cut {suffix}", _uses(at / f"tried{suffix}", bytes(payload[: rng.integers(len(payload))]))
    for suffix, group in ((".h5ad", "X"), (".h5", "matrix")):
        for name in ("indices", "indptr", "data"):
            for value in (-1, 2**31 - 5, 10**6):
                shutil.copy(at / f"whole{suffix}", at / "edited")
                with h5py.File(at / "edited", "r+") as file:
                    file[group][name][7] = value
                yield f"{value} in {name} of {suffix}", _uses(at / f"tried{suffix}", (at / "edited").read_bytes())


def write_cell_ranger(path: Path, adata: anndata.AnnData) -> None:
    """Write counts as Cell Ranger does."""
    counts = adata.X
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        for name in ("data", "indices", "indptr"):
            group[name] = getattr(counts, name).astype("i8" if name == "indptr" else "i4")
        group["shape"] = np.array(counts.shape[::-1])
        group["barcodes"] = np.array(adata.obs_names, dtype="S")
        features = group.create_group("features")
        features["id"] = features["name"] = np.array(adata.var_names, dtype="S")
        features["feature_type"] = np.array(["Gene Expression"] * adata.n_vars, dtype="S")


def _uses(path: Path, payload: bytes) -> Callable[[], str]:
    def attempt() -> str:
        path.write_bytes(payload)
        for backed in (False, True) if path.suffix == ".h5ad" else (False,):
            adata = countvi.io.read_counts(path, backed=backed)
            countvi.SCVI.setup_anndata(adata)
            countvi.SCVI(adata, n_hidden=8, n_latent=3)
        return OPENED

    return attempt


# ---------------------------------------------------------------- kill -9


def _killed(work: Callable[[], None], after: float) -> None:
    child = os.fork()
    if child == 0:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                work()
        finally:
            os._exit(0)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def kills_while_saving(at: Path, share: float) -> Iterator[Try]:
    """``save(overwrite=True)`` in a loop, killed: the folder holds the old or the new model, and can be saved to."""
    models = [model_of(cells(), seed=seed) for seed in (1, 2)]
    states = [weights_of(model) for model in models]
    folder = at / "model"
    models[0].save(folder)
    rng = np.random.default_rng(4)

    def work() -> None:
        for i in range(10**6):
            models[i % 2].save(folder, overwrite=True)

    def attempt(after: float) -> str:
        _killed(work, after)
        opened = weights_of(countvi.SCVI.load(folder))
        models[0].save(folder, overwrite=True)
        return SAME if opened in states and weights_of(countvi.SCVI.load(folder)) == states[0] else SILENT

    for _ in range(round(40 * share)):
        after = float(rng.uniform(0.01, 0.3))
        yield f"save killed after {after:.3f} s", lambda after=after: attempt(after)


def kills_while_training(at: Path, share: float) -> Iterator[Try]:
    """Training with checkpoints, killed: what ``resume=True`` ends at has the bits of a run that was not killed."""
    whole = model_of(cells())
    whole.train(12, enable_progress_bar=False)
    expected, folder = weights_of(whole), at / "run"
    rng = np.random.default_rng(5)

    def work() -> None:
        model_of(cells()).train(12, enable_progress_bar=False, checkpoint_dir=folder)

    def attempt(after: float) -> str:
        shutil.rmtree(folder, ignore_errors=True)
        _killed(work, after)
        resumed = model_of(cells())
        resumed.train(12, enable_progress_bar=False, checkpoint_dir=folder, resume=True)
        return SAME if weights_of(resumed) == expected else SILENT

    for _ in range(round(20 * share)):
        after = float(rng.uniform(0.05, 0.6))
        yield f"training killed after {after:.3f} s", lambda after=after: attempt(after)


def checkpoints(at: Path, share: float) -> Iterator[Try]:
    """Flipped and cut checkpoints."""
    folder, tried = at / "run", at / "tried"
    whole = model_of(cells())
    whole.train(3, enable_progress_bar=False, checkpoint_dir=folder)
    payload, expected = (folder / "checkpoint.safetensors").read_bytes(), weights_of(whole)
    rng = np.random.default_rng(6)

    def resumes(changed: bytes) -> Callable[[], str]:
        def attempt() -> str:
            tried.mkdir(exist_ok=True)
            (tried / "checkpoint.safetensors").write_bytes(changed)
            model = model_of(cells())
            model.train(3, enable_progress_bar=False, checkpoint_dir=tried, resume=True)
            return SAME if weights_of(model) == expected else SILENT

        return attempt

    for i in range(round(100 * share)):
        flipped = bytearray(payload)
        flipped[rng.integers(len(flipped))] ^= 1 << rng.integers(8)
        yield "flipped or cut checkpoint", resumes(bytes(flipped) if i % 4 else payload[: rng.integers(len(payload))])


PARTS: dict[str, Callable[[Path, float], Iterator[Try]]] = {
    "model folders": folders,
    "scvi-tools archives": archives,
    "data files": data_files,
    "checkpoints": checkpoints,
    "kill -9 while saving": kills_while_saving,
    "kill -9 while training": kills_while_training,
}


def run(part: str, share: float) -> Counter[str]:
    """Try all of a part; print what is at fault."""
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for what, attempt in PARTS[part](Path(folder), share):
            outcome, detail = isolated(attempt)
            counts[outcome] += 1
            if outcome in FAULTS:
                print(f"{outcome}: {part}: {what}: {detail}", file=sys.stderr, flush=True)
    return counts


def main(arguments: list[str] | None = None) -> int:
    """Print the table; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"some of: {', '.join(PARTS)}")
    parser.add_argument("--share", type=float, default=1.0, help="share of the tries")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)  # a process that has started threads cannot be forked
    columns = (SAME, REFUSED, OPENED, *FAULTS)
    print(f"| {'part':<22} | tried | {' | '.join(columns)} |\n|---|{'--:|' * (len(columns) + 1)}")
    n_faults = 0
    for part in given.parts or PARTS:
        counts = run(part, given.share)
        n_faults += sum(counts[fault] for fault in FAULTS)
        print(f"| {part:<22} | {counts.total():,} | {' | '.join(f'{counts[c]:,}' for c in columns)} |", flush=True)
    return int(n_faults > 0)


if __name__ == "__main__":
    sys.exit(main())
