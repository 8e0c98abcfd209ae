"""Read-outs of a trained model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import datasets
import numpy as np
from measure import Comparison, Settings, alternate, seconds
from sides import SIDES, Side

_N_TYPES = 10


def measure(settings: Settings) -> list[Comparison]:
    """Time the read-outs of both sides on the same simulated cells."""
    n_cells, n_genes = settings.pick((100_000, 2_000), (1_000, 100))
    adata = datasets.simulate(n_cells, n_genes, density=0.1, n_types=_N_TYPES)
    train, held_out = np.arange(n_cells // 10), np.arange(n_cells // 10, n_cells // 10 + n_cells // 50)
    models = [side.build(adata.copy(), 0) for side in SIDES]
    for side, model in zip(SIDES, models, strict=True):
        side.train(model, train, held_out, 1)
    some = np.arange(n_cells // 5)
    types = adata.obs["cell_type"].to_numpy()[some]
    groups = [np.flatnonzero(types == name) for name in np.unique(types)]
    calls: dict[str, Callable[[Side, Any], object]] = {
        f"encode {n_cells:,} cells": lambda side, model: side.latent(model),
        f"normalised expression of {len(some):,} cells": lambda side, model: side.expression(model, some),
        f"one-vs-rest means of {_N_TYPES} cell types, {len(some):,} cells": lambda side, model: side.one_vs_rest(
            model, groups
        ),
        f"ELBO of {len(held_out):,} cells, 5 draws": lambda side, model: side.elbo(model, held_out),
    }
    return [
        alternate(
            Comparison(work, "s", notes=f"{n_genes:,} genes, ZINB"),
            settings.repeats,
            lambda call=call: seconds(lambda: call(SIDES[0], models[0])),
            lambda call=call: seconds(lambda: call(SIDES[1], models[1])),
        )
        for work, call in calls.items()
    ]
