"""countvi beside scvi-tools: both sides in one run, on the same data and sizes.

``make bench`` runs everything and rewrites ``docs/benchmarks.md``; ``python benchmarks/run.py step import`` runs some
parts, ``quality`` all whose names begin so. Real data sets are read from the folder COUNTVI_TEST_DATA. Quality takes
hours, as scvi-tools trains for its own default epochs; ``--continue`` goes on with an interrupted run.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import datasets
import report
from measure import Comparison, Settings, spread, write
from parts import (
    ambient,
    breakdown,
    cuda,
    deconvolution,
    deconvolution_objective,
    differential,
    kernels,
    mapping,
    million,
    multimodal,
    process,
    quality,
    readouts,
    regularized,
    regularized_step,
    schedules,
    step,
    totalvi,
    totalvi_hidden,
)

PARTS: dict[str, Callable[[Settings], list[Comparison]]] = {
    "step": step.measure,
    "breakdown": breakdown.measure,
    "cuda": cuda.measure,
    "kernels": kernels.measure,
    "readouts": readouts.measure,
    "differential": differential.measure,
    **{f"mapping-{name}": partial(mapping.measure, name) for name in mapping.REFERENCES},
    "import": process.imports,
    "memory": process.memory,
    "million": million.measure,
    "regularized-step": regularized_step.step,
    "regularized-memory": regularized_step.memory,
    "ambient": ambient.measure,
    "multimodal": multimodal.measure,
    "regularized": regularized.measure,
    "deconvolution-step": deconvolution.step,
    "deconvolution-step-today": deconvolution.step_of_today,
    "deconvolution-whole": deconvolution.whole,
    "deconvolution-paper": deconvolution.paper,
    "deconvolution-quality": deconvolution.quality,
    "deconvolution-objective": deconvolution_objective.measure,
    "schedules": schedules.measure,
    "totalvi-step": totalvi.step,
    "totalvi-quality": totalvi.quality,
    "totalvi-hidden": totalvi_hidden.measure,
    **{case.name: partial(quality.measure, case) for case in quality.cases()},
}
"""In the order in which all of them are run: the longest last."""


def main() -> None:
    """Run the parts named on the command line, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"which parts, or how their names begin: {', '.join(PARTS)}")
    parser.add_argument("--continue", dest="reuse", action="store_true", help="take up trainings of the last 24 hours")
    parser.add_argument("--seeds", type=int, nargs="+", default=[], help="for quality, instead of each data set's own")
    parser.add_argument("--results", type=Path, help="folder of the results; the page then is written there too")
    parser.add_argument("--scratch", type=Path, default=Settings.scratch, help="folder for a file of 2 GB")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, results in a temporary folder")
    given = parser.parse_args()
    wanted = {part: [part] if part in PARTS else _named(part) for part in given.parts or PARTS}
    for part, names in wanted.items():
        if not names:
            parser.error(f"no part is called {part}; there are {', '.join(PARTS)}")
    if not datasets.available():
        print("Without quality on real data: COUNTVI_TEST_DATA does not name a folder that has them.", flush=True)
    if given.smoke and given.results is None:
        given.results = Path(tempfile.mkdtemp(prefix="countvi-benchmarks-"))
    settings = Settings(
        results=given.results or Settings.results,
        scratch=given.scratch,
        smoke=given.smoke,
        reuse=given.reuse,
        seeds=tuple(given.seeds),
    )
    for name in [name for names in wanted.values() for name in names]:
        print(f"== {name}", flush=True)
        rows = PARTS[name](settings)
        if not rows:
            print("nothing to do without its data", flush=True)
            continue
        for row in rows:
            print(_line(row), flush=True)
        print(f"written to {write(settings.results, name, rows)}", flush=True)
        report.rewrite(settings.results, report.PAGE if given.results is None else given.results / "benchmarks.md")


def _named(prefix: str) -> list[str]:
    return [name for name in PARTS if name.startswith(prefix)]


def _line(row: Comparison) -> str:
    line = f"{', '.join(filter(None, (row.work, row.method)))}: {spread(row.ours)} {row.unit}"
    if row.theirs:
        line += f", {row.other} {spread(row.theirs)} {row.unit}, ratio {spread(row.ratios)}"
    if row.elbo_ours:
        line += f", ELBO {spread(row.elbo_ours, 6)}"
    return line + (f" against {spread(row.elbo_theirs, 6)}" if row.elbo_theirs else "")


if __name__ == "__main__":
    main()
