"""RNA and protein: a training step, and complete trainings beside scvi-tools on the same held-out cells."""

from __future__ import annotations

import tempfile
import warnings
from functools import partial
from typing import Any

import anndata
import datasets
import numpy as np
from measure import Comparison, Settings, alternate, quiet_lightning, seconds
from scipy.stats import rankdata

BATCH = 256
N_PROTEINS = 100
DATA = "citeseq"
# Lengths that are tried before the default, shortest first, for the time to the ELBO that the peer ends at.
_SHORT_RUNS = (5, 10, 20, 40)
_MARKERS = {"CD3": ("CD4 T", "CD8 T"), "CD19": ("B",), "CD14": ("CD14 Mono",)}
"""Proteins that are on the cells of some types, as told by their RNA, and not on others."""


def step(settings: Settings) -> list[Comparison]:
    """Wall time of a training step, as a user gets it from ``train``."""
    n_cells, n_genes, n_proteins = settings.pick((5_120, 4_000, N_PROTEINS), (512, 100, 10))
    adata = datasets.simulate(n_cells, n_genes, density=0.1)
    rng = np.random.default_rng(0)
    adata.obsm["protein"] = rng.poisson(rng.gamma(1.0, 30.0, (n_cells, n_proteins))).astype(np.float32)
    everything, nothing = np.arange(n_cells), np.empty(0, dtype=np.int64)
    epochs = settings.pick(3, 1)
    models = [build(adata.copy(), 0) for build in (build_ours, build_theirs)]

    def milliseconds(i: int) -> float:
        train = (train_ours, train_theirs)[i]
        return 1e3 * seconds(lambda: train(models[i], everything, nothing, epochs)) / (epochs * -(-n_cells // BATCH))

    row = Comparison(f"training step of TOTALVI, {n_genes:,} genes, {n_proteins} proteins, batch {BATCH}", "ms")
    return [alternate(row, settings.repeats, lambda: milliseconds(0), lambda: milliseconds(1))]


def quality(settings: Settings) -> list[Comparison]:
    """Complete default trainings, and how well each predicts cells that it has not seen."""
    if DATA not in datasets.available():
        return []
    adata = load(settings)
    row = Comparison("default training of TOTALVI, CITE-seq", "s", notes=f"{adata.n_obs:,} x {adata.n_vars:,}")
    short = Comparison("time to the held-out ELBO that scvi-tools ends at, TOTALVI, CITE-seq", "s")
    lengths = settings.pick(_SHORT_RUNS, (1,))
    for seed in settings.seeds or settings.pick((0, 1, 2), (0,)):
        train, held_out = datasets.halves(adata.n_obs, seed)
        sides = (
            (build_ours, train_ours, row.ours, row.scores_ours, row.elbo_ours),
            (build_theirs, train_theirs, row.theirs, row.scores_theirs, row.elbo_theirs),
        )
        for build, fit, times, scores, elbos in sides:
            hidden, _ = hide(adata, seed)
            model = build(hidden, seed)
            times.append(seconds(partial(fit, model, train, held_out, settings.pick(None, 2))))
            elbos.append(_elbo(model, hidden, held_out))
            for name, value in _scores(model, hidden, held_out).items():
                scores.setdefault(name, []).append(value)
        _add_shortest(short, row, hide(adata, seed)[0], seed, lengths)
    short.notes = f"the shortest of complete runs of {', '.join(map(str, lengths))} epochs and of the default"
    return [row, short]


def _add_shortest(
    short: Comparison, row: Comparison, hidden: anndata.AnnData, seed: int, lengths: tuple[int, ...]
) -> None:
    """Add our shortest run whose held-out ELBO is at least that of the other side's last one."""
    train, held_out = datasets.halves(hidden.n_obs, seed)
    target = row.elbo_theirs[-1]
    for epochs in lengths:
        model = build_ours(hidden.copy(), seed)
        took = seconds(partial(train_ours, model, train, held_out, epochs))
        elbo = _elbo(model, hidden, held_out)
        if elbo >= target:
            break
    else:
        took, elbo = row.ours[-1], row.elbo_ours[-1]
    if elbo < target:
        short.missed += 1
        return
    short.ours.append(took)
    short.theirs.append(row.theirs[-1])
    short.elbo_ours.append(elbo)
    short.elbo_theirs.append(target)


def _elbo(model: Any, adata: anndata.AnnData, rows: np.ndarray) -> float:
    """Evidence lower bound per cell, mean of five draws. The terms are those of countvi, which reads their weights."""
    import countvi

    if not isinstance(model, countvi.TOTALVI):
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.save(f"{folder}/model")
            model = countvi.io.load_scvi_tools(f"{folder}/model", adata)
    return float(np.mean([model.get_elbo(indices=rows, seed=draw) for draw in range(5)]))


def load(settings: Settings) -> anndata.AnnData:
    """Cells whose proteins were measured."""
    adata = datasets.load(DATA, settings.pick(4_000, 200))
    adata = adata[adata.obs["protein_observed"].to_numpy(dtype=bool)].copy()
    adata.obsm["protein"] = adata.obsm["protein_expression"].astype(np.float32)
    return adata[:: settings.pick(1, max(1, adata.n_obs // 400))].copy()


def hide(adata: anndata.AnnData, seed: int) -> tuple[anndata.AnnData, dict[str, np.ndarray]]:
    """Hide three proteins in the smaller batch: zeros, which both sides take for not measured."""
    hidden = adata.copy()
    batch = hidden.obs["batch"].astype(str)
    smaller = (batch == batch.value_counts().idxmin()).to_numpy()
    names = hidden.obsm["protein"].columns
    chosen = np.random.default_rng(seed).choice(names, 3, replace=False)
    truth = {name: adata.obsm["protein"][name].to_numpy()[smaller] for name in chosen}
    hidden.obsm["protein"].loc[smaller, chosen] = 0.0
    return hidden, {"rows": np.flatnonzero(smaller), **truth}


def build_ours(adata: anndata.AnnData, seed: int, **options: Any) -> Any:
    """Our model, set up."""
    import countvi

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", countvi.errors.DataWarning)
        countvi.TOTALVI.setup_anndata(adata, "protein", batch_key="batch")
        return countvi.TOTALVI(adata, seed=seed, **options)


def build_theirs(adata: anndata.AnnData, seed: int) -> Any:
    """Theirs, set up."""
    import scvi

    scvi.settings.seed, scvi.settings.verbosity = seed, 40
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scvi.model.TOTALVI.setup_anndata(adata, protein_expression_obsm_key="protein", batch_key="batch")
        return scvi.model.TOTALVI(adata)


def train_ours(model: Any, train: np.ndarray, held_out: np.ndarray, max_epochs: int | None) -> None:
    """Train ours; all epochs where ``None``."""
    model.train(max_epochs, external_indexing=[train, held_out], enable_progress_bar=False)


def train_theirs(
    model: Any, train: np.ndarray, held_out: np.ndarray, max_epochs: int | None, *, accelerator: str = "cpu"
) -> None:
    """Train theirs, with the early stopping that it is meant to have where there are held-out cells."""
    quiet_lightning()
    rest = np.setdiff1d(np.arange(model.adata.n_obs), np.concatenate([train, held_out]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.train(
            max_epochs,
            accelerator=accelerator,
            external_indexing=[train, held_out, rest],
            early_stopping=len(held_out) > 0,
            reduce_lr_on_plateau=len(held_out) > 0,
            enable_progress_bar=False,
        )


def _scores(model: Any, adata: anndata.AnnData, held_out: np.ndarray) -> dict[str, float]:
    """What is asked of both sides in the same way: foreground, and calibration of predictive samples."""
    found: dict[str, float] = {}
    foreground = model.get_protein_foreground_probability(n_samples=5)
    types = adata.obs["cell_type"].astype(str)
    clear = (~types.isin(["ambiguous", "other myeloid"])).to_numpy()
    for name, kinds in _MARKERS.items():
        found[f"AUROC of {name}"] = _auroc(foreground[name].to_numpy()[clear], types.isin(kinds).to_numpy()[clear])
    drawn = model.posterior_predictive_sample(indices=held_out, n_samples=25)
    errors = model.get_reconstruction_error(indices=held_out)
    for kind, names in {"RNA": ("rna", "reconst_loss_gene"), "protein": ("protein", "reconst_loss_protein")}.items():
        value = next(errors[name] for name in names if name in errors)
        found[f"held-out log-likelihood of {kind}"] = -float(value)
    found["coverage of 90 % intervals of proteins"] = _coverage(drawn, adata.obsm["protein"].to_numpy()[held_out])
    return found


def _auroc(score: np.ndarray, positive: np.ndarray) -> float:
    ranks, n = rankdata(score), int(positive.sum())
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * (len(score) - n)))


def _coverage(drawn: dict[str, Any], observed: np.ndarray) -> float:
    """Share of held-out counts that lie between the 5th and the 95th hundredth of the draws."""
    protein = drawn["protein"]
    samples = np.stack(protein) if isinstance(protein, list) else np.moveaxis(np.asarray(protein), -1, 0)
    low, high = np.quantile(samples, (0.05, 0.95), axis=0)
    return float(((observed >= low) & (observed <= high)).mean())
