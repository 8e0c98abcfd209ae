"""What other ways to train give: the default with one thing changed, on the same held-out cells."""

from __future__ import annotations

import math
import warnings
from typing import Any

import anndata
import datasets
import numpy as np
import separation
from measure import METHODS, Comparison, Settings, seconds

_DATA = ("pbmc3k", "kang", "pbmc4k", "citeseq")
_DEFAULT, _BATCH = "default", 64


def _changes(epochs: int) -> dict[str, dict[str, Any]]:
    """Arguments of ``train`` by what is changed."""

    def plan(**kwargs: Any) -> dict[str, Any]:
        return {"plan_kwargs": kwargs}

    def scaled(batch_size: int) -> dict[str, Any]:
        # As many steps as by default.
        return {"batch_size": batch_size, "max_epochs": max(1, round(epochs * batch_size / _BATCH))}

    return {
        _DEFAULT: {},
        "half as many epochs": {"max_epochs": math.ceil(epochs / 2)},
        "twice as many epochs": {"max_epochs": 2 * epochs},
        "peak rate 0.02": plan(lr=0.02),
        "peak rate 0.08": plan(lr=0.08),
        "constant rate 0.001": plan(schedule="constant", lr=0.001),
        "constant rate 0.005": plan(schedule="constant", lr=0.005),
        "KL warm-up over 5% of the run": plan(kl_warmup_fraction=0.05),
        "KL warm-up over 60% of the run": plan(kl_warmup_fraction=0.6),
        "eps 1e-8": plan(eps=1e-8),
        "eps 1e-4": plan(eps=1e-4),
        "no weight decay": plan(weight_decay=0.0),
        "AdamW, decay 0.01": plan(optimizer="AdamW", weight_decay=0.01),
        "minibatches of 32, as many steps": scaled(32),
        "minibatches of 128, as many steps": scaled(128),
        "minibatches of 128, as many steps, peak rate 0.02": {**scaled(128), **plan(lr=0.02)},
        "minibatches of 256, as many steps": scaled(256),
        "early stopping, four times as many epochs": {"max_epochs": 4 * epochs, "early_stopping": True},
    }


def measure(settings: Settings) -> list[Comparison]:
    """Held-out ELBO, time and separation of types for each change; one seed unless told otherwise."""
    rows = []
    for name in (name for name in settings.pick(_DATA, _DATA[:1]) if name in datasets.available()):
        adata = datasets.load(name, settings.pick(2_000, 100))
        seeds = settings.seeds or (0,)
        epochs = _train(adata, seeds[0], {})[2] if not settings.smoke else 2
        methods = {
            change: Comparison(name, "s", other=METHODS, method=change, notes=f"{adata.n_obs:,} x {adata.n_vars:,}")
            for change in _changes(epochs)
        }
        for seed in seeds:
            for change, arguments in _changes(epochs).items():
                if settings.smoke:
                    arguments = {**arguments, "max_epochs": 2}
                took, elbo, n_epochs, scores = _train(adata, seed, arguments)
                row = methods[change]
                row.ours.append(took)
                row.elbo_ours.append(elbo)
                row.scores_ours.setdefault("epochs", []).append(float(n_epochs))
                for score, value in scores.items():
                    row.scores_ours.setdefault(score, []).append(value)
                print(name, change, round(took, 1), round(elbo, 2), flush=True)
        rows += methods.values()
    return rows


def _train(adata: anndata.AnnData, seed: int, arguments: dict[str, Any]) -> tuple[float, float, int, dict[str, float]]:
    """Seconds, held-out ELBO, epochs and scores of the latent space of a training."""
    import countvi

    train, held_out = datasets.halves(adata.n_obs, seed)
    adata = adata.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batch = "batch" if "batch" in adata.obs and adata.obs["batch"].nunique() > 1 else None
        countvi.SCVI.setup_anndata(adata, batch_key=batch)
        model = countvi.SCVI(adata, seed=seed)
        quiet = {"external_indexing": [train, held_out], "enable_progress_bar": False, "accelerator": "cpu"}
        took = seconds(lambda: model.train(**quiet, **arguments))
    elbo = float(np.mean([model.get_elbo(indices=held_out, seed=draw) for draw in range(5)]))
    return took, elbo, len(model.history), separation.scores(model.get_latent_representation(), adata.obs)
