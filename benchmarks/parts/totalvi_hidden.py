"""How well proteins that a batch lacks are predicted there, by TOTALVI of both sides.

Both ways to decode are scored: in the batch of the cells themselves, and in the one where the proteins were measured.
scvi-tools always learns an efficiency of each protein in each batch; that is an option here, so ours stands there
without and with it. COUNTVI_SCVI_TOOLS_ON says where scvi-tools trains: "cpu" if not given, or "cuda".
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import datasets
import numpy as np
from measure import METHODS, Comparison, Settings, seconds

from parts import totalvi

_PEER_ON = "COUNTVI_SCVI_TOOLS_ON"


def measure(settings: Settings) -> list[Comparison]:
    """Hide three proteins in the smaller batch, train, and correlate what is predicted with what was counted."""
    if totalvi.DATA not in datasets.available():
        return []
    adata, where = totalvi.load(settings), os.environ.get(_PEER_ON, "cpu")
    sides: dict[str, tuple[Callable[..., Any], Callable[..., None]]] = {
        "countvi": (totalvi.build_ours, totalvi.train_ours),
        "countvi, with efficiencies": (
            partial(totalvi.build_ours, protein_batch_efficiency=True),
            totalvi.train_ours,
        ),
        f"scvi-tools on {where}": (totalvi.build_theirs, partial(totalvi.train_theirs, accelerator=where)),
    }
    notes = f"{adata.n_obs:,} x {adata.n_vars:,}; three proteins hidden in the smaller batch"
    rows = []
    for method, (build, train) in sides.items():
        row = Comparison(f"{totalvi.DATA}, hidden proteins", "s", notes=notes, other=METHODS, method=method)
        for seed in settings.seeds or settings.pick((0, 1, 2), (0,)):
            split = datasets.halves(adata.n_obs, seed)
            hidden, truth = totalvi.hide(adata, seed)
            model = build(hidden, seed)
            row.ours.append(seconds(partial(train, model, *split, settings.pick(None, 2))))
            for score, value in scores(model, hidden, truth).items():
                row.scores_ours.setdefault(score, []).append(value)
            print(method, seed, {score: values[-1] for score, values in row.scores_ours.items()}, flush=True)
        rows.append(row)
    return rows


def scores(model: Any, adata: Any, truth: dict[str, np.ndarray]) -> dict[str, float]:
    """Pearson over cells of log(1 + counts), mean over the hidden proteins, by the batch in which they are decoded."""
    rows, proteins = truth["rows"], [name for name in truth if name != "rows"]
    other = str(adata.obs["batch"].astype(str).value_counts().idxmax())
    found = {}
    for where, batch in (("their own batch", None), ("the other batch", other)):
        arguments: dict[str, Any] = {"indices": rows, "transform_batch": batch, "n_samples": 5}
        _, imputed = model.get_normalized_expression(**arguments, include_protein_background=True)
        correlations = [_log_correlation(imputed[name].to_numpy(), truth[name]) for name in proteins]
        found[f"Pearson, decoded in {where}"] = float(np.mean(correlations))
    return found


def _log_correlation(predicted: np.ndarray, truth: np.ndarray) -> float:
    return float(np.corrcoef(np.log1p(predicted), np.log1p(truth))[0, 1])
