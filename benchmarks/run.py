"""countvi beside scvi-tools: both sides in one run, on the same data and sizes.

``make bench`` runs everything and rewrites ``docs/benchmarks.md``; ``python benchmarks/run.py step import`` runs a
part. Quality needs the real data sets in the folder COUNTVI_TEST_DATA and takes most of the time: scvi-tools trains for
its own default epochs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial

import datasets
import numpy as np
import report
from measure import Comparison, alternate, in_subprocess, seconds, spread, write
from sides import SIDES

OURS, THEIRS = SIDES
REPEATS = 5
SEEDS = (0, 1, 2)
N_VARIABLE = 2_000
BATCH = 128


def halves(n_cells: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on, and a tenth held out."""
    order = np.random.default_rng(seed).permutation(n_cells)
    held_out = n_cells // 10
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def step() -> list[Comparison]:
    """Wall time of a training step, as a user gets it from ``train``."""
    rows = []
    for n_cells, n_genes, density in ((6_400, 2_000, 0.13), (2_560, 20_000, 0.04)):
        adata = datasets.simulate(n_cells, n_genes, density=density)
        everything, nothing = np.arange(n_cells), np.empty(0, dtype=np.int64)
        for likelihood in ("nb", "zinb"):
            models = [side.build(adata.copy(), 0, gene_likelihood=likelihood) for side in SIDES]
            epochs = 3 if n_genes < 10_000 else 2
            n_steps = epochs * -(-n_cells // BATCH)

            def milliseconds(i: int, models=models, epochs=epochs, n_steps=n_steps) -> float:
                return 1e3 / n_steps * seconds(lambda: SIDES[i].train(models[i], everything, nothing, epochs))  # noqa: B023

            work = f"training step, {likelihood.upper()}, {n_genes:,} genes, batch {BATCH}"
            nonzero = adata.X.nnz / np.prod(adata.shape)
            row = Comparison(work, "ms", notes=f"{n_cells:,} simulated cells, {nonzero:.1%} nonzero")
            rows.append(alternate(row, REPEATS, lambda f=milliseconds: f(0), lambda f=milliseconds: f(1)))
    return rows


def quality(name: str) -> list[Comparison]:
    """Full default runs on the same split of a real data set: seconds and held-out ELBO."""
    adata = datasets.load(name, N_VARIABLE)
    row = Comparison(f"default training, ZINB, {name}", "s", data=name, n_genes=N_VARIABLE)
    epochs = {}
    for seed in SEEDS:
        train, held_out = halves(adata.n_obs, seed)
        for side, times, elbos in ((OURS, row.ours, row.elbo_ours), (THEIRS, row.theirs, row.elbo_theirs)):
            model = side.build(adata.copy(), seed, gene_likelihood="zinb")
            times.append(seconds(partial(side.train, model, train, held_out, None)))
            elbos.append(side.elbo(model, held_out))
            epochs[side.name] = side.epochs(model)
    runs = ", ".join(f"{side} {n} epochs" for side, n in epochs.items())
    row.notes = f"{adata.n_obs:,} x {adata.n_vars:,}, seeds {', '.join(map(str, SEEDS))}; {runs}"
    return [row]


def queries() -> list[Comparison]:
    """Read-outs of a trained model."""
    adata = datasets.simulate(20_000, 2_000, density=0.1)
    train, held_out = halves(adata.n_obs)
    models = [side.build(adata.copy(), 0) for side in SIDES]
    for side, model in zip(SIDES, models, strict=True):
        side.train(model, train, held_out, 1)
    some = np.arange(5_000)
    calls: dict[str, list[Callable[[], object]]] = {
        "latent representation of 20,000 cells": [
            lambda s=s, m=m: s.latent(m) for s, m in zip(SIDES, models, strict=True)
        ],
        "normalised expression of 5,000 cells": [
            lambda s=s, m=m: s.expression(m, some) for s, m in zip(SIDES, models, strict=True)
        ],
        "ELBO of 2,000 cells, 5 draws": [
            lambda s=s, m=m: s.elbo(m, held_out) for s, m in zip(SIDES, models, strict=True)
        ],
    }
    return [
        alternate(Comparison(work, "s", notes="2,000 genes"), REPEATS, lambda c=a: seconds(c), lambda c=b: seconds(c))
        for work, (a, b) in calls.items()
    ]


def imports() -> list[Comparison]:
    """Import of the library, and import until a model class is at hand, in fresh interpreters."""
    timed = "import time; t = time.perf_counter(); {}; print(time.perf_counter() - t)"
    pairs = {
        "import": ("import countvi", "import scvi"),
        "import and reach SCVI": ("import countvi; countvi.SCVI", "import scvi; scvi.model.SCVI"),
    }
    return [
        alternate(
            Comparison(work, "s"),
            REPEATS,
            lambda code=a: float(in_subprocess(timed.format(code))),
            lambda code=b: float(in_subprocess(timed.format(code))),
        )
        for work, (a, b) in pairs.items()
    ]


_MEMORY = """
import resource, sys
sys.path.insert(0, {folder!r})
import numpy as np, datasets, sides
adata = datasets.simulate(20_000, 2_000, density=0.1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
side = sides.SIDES[{index}]
model = side.build(adata, 0)
side.train(model, np.arange(18_000), np.arange(18_000, 20_000), 1)
side.latent(model)
side.expression(model, np.arange(5_000))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 / 1024)
"""


def memory() -> list[Comparison]:
    """Peak memory of a whole process."""
    from pathlib import Path

    folder = str(Path(__file__).parent)
    row = Comparison(
        "peak memory: import, 1 epoch, latent, expression of 5,000 cells",
        "GiB",
        notes="20,000 x 2,000, 80 MB of counts",
    )
    for _ in range(3):
        row.ours.append(float(in_subprocess(_MEMORY.format(folder=folder, index=0))))
        row.theirs.append(float(in_subprocess(_MEMORY.format(folder=folder, index=1))))
    return [row]


PARTS: dict[str, Callable[[], list[Comparison]]] = {
    "step": step,
    "queries": queries,
    "import": imports,
    "memory": memory,
    **{f"quality-{name}": partial(quality, name) for name in datasets.available()},
}


def main() -> None:
    """Run the parts named on the command line, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[], help="which parts; default all")
    for name in parser.parse_args().parts or PARTS:
        comparisons = PARTS[name]()
        path = write(name, comparisons)
        for row in comparisons:
            print(
                json.dumps(
                    {"work": row.work, "unit": row.unit, "ours": spread(row.ours), "theirs": spread(row.theirs)}
                ),
                f"ratio {spread(row.ratios)}",
                f"ELBO {spread(row.elbo_ours, 6)} against {spread(row.elbo_theirs, 6)}" if row.elbo_ours else "",
                flush=True,
            )
        print(f"written to {path}", flush=True)
    report.rewrite()


if __name__ == "__main__":
    main()
