"""What a whole process costs: import and memory."""

from __future__ import annotations

import datasets
import numpy as np
from measure import Comparison, Settings, alternate, in_subprocess, peak_memory
from sides import SIDES


def imports(settings: Settings) -> list[Comparison]:
    """Import of the library, and import until a model class is at hand, in fresh interpreters."""
    timed = "import time; t = time.perf_counter(); {}; print(time.perf_counter() - t)"
    pairs = {
        "import": ("import countvi", "import scvi"),
        "import and reach SCVI": ("import countvi; countvi.SCVI", "import scvi; scvi.model.SCVI"),
    }
    return [
        alternate(
            Comparison(work, "s"),
            settings.repeats,
            lambda code=a: float(in_subprocess(timed.format(code))),
            lambda code=b: float(in_subprocess(timed.format(code))),
        )
        for work, (a, b) in pairs.items()
    ]


def memory(settings: Settings) -> list[Comparison]:
    """Peak memory of a process from import to read-outs."""
    n_cells, n_genes = settings.pick((20_000, 2_000), (512, 100))
    code = "from parts.process import use; print(use({}, {}, {}))"
    row = Comparison(
        f"peak memory: import, 1 epoch, latent, expression of {n_cells // 4:,} cells",
        "GB",
        notes=f"{n_cells:,} simulated cells x {n_genes:,} genes, 10% nonzero",
    )
    for _ in range(settings.pick(3, 1)):
        for i, figures in enumerate((row.ours, row.theirs)):
            figures.append(float(in_subprocess(code.format(i, n_cells, n_genes))))
    return [row]


def use(index: int, n_cells: int, n_genes: int) -> float:
    """Use one side as a user would, and return the peak memory in GB."""
    adata = datasets.simulate(n_cells, n_genes, density=0.1)
    side = SIDES[index]
    model = side.build(adata, 0)
    side.train(model, *datasets.halves(n_cells), 1)
    side.latent(model)
    side.expression(model, np.arange(n_cells // 4))
    return peak_memory()
