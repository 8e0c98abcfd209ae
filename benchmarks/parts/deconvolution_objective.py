"""Time until the penalised likelihood of a slide is what scvi-tools 1.4.0 ends at, on the same function.

The function is the other side's: its decoder, its prior of the states and its penalties, as
:func:`countvi.io.load_scvi_tools` reads them. Without the interpreter of :mod:`parts.deconvolution` there is nothing to
do. Expect an hour on two cores, nearly all of it the default epochs of scvi-tools.
"""

from __future__ import annotations

import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import spots
from measure import Comparison, Settings, seconds

from parts.deconvolution import PEER, Epochs, run_peer, scores, simulated

_DATA = "kang"
# Complete runs, shortest first. The last is the default.
_LENGTHS = (5, 10, 20, 30)


def measure(settings: Settings) -> list[Comparison]:
    """Our shortest run that ends above the other side's default run, and default runs of both."""
    if PEER not in os.environ:
        return []
    n_genes, n_spots = settings.pick((2_000, 2_000), (100, 60))
    lengths, epochs = settings.pick(_LENGTHS, (2,)), settings.pick(Epochs(), Epochs(2, 2))
    short, whole = (
        Comparison(work, "s", other="scvi-tools 1.4.0")
        for work in ("time to the penalised likelihood that scvi-tools ends at", "default training of the same slide")
    )
    for seed in settings.seeds or (0,):
        slide = _slide(n_genes, n_spots, seed)
        short.notes = (
            f"{n_spots:,} spots, {len(set(slide.reference.obs['cell_type']))} types, {n_genes:,} genes; start "
        )
        short.notes += f"included; the shortest of complete runs of {', '.join(map(str, lengths))} epochs"
        whole.notes = "with the preference for few types, which the other side does not have"
        with tempfile.TemporaryDirectory() as folder:
            took, _ = run_peer(Path(folder), slide, epochs, seed, keep=True)
            _add_ours(short, whole, slide, Path(folder), took[1], seed, lengths)
    return [short, whole]


def _slide(n_genes: int, n_spots: int, seed: int) -> spots.Slide:
    if _DATA in datasets.available():
        return spots.mixed(_DATA, n_genes=n_genes, n_spots=n_spots, seed=seed)
    return simulated(n_spots, n_genes, 12)


def _add_ours(
    short: Comparison,
    whole: Comparison,
    slide: spots.Slide,
    folder: Path,
    took: float,
    seed: int,
    lengths: tuple[int, ...],
) -> None:
    """Add our runs, and what is known of the other side's, whose models are in a folder."""
    import countvi

    reference = countvi.io.load_scvi_tools(folder / "reference", slide.reference)
    theirs = countvi.io.load_scvi_tools(folder / "slide", slide.spots)
    countvi.DestVI.setup_anndata(slide.spots)
    known = _scores(theirs, theirs, slide)

    def fit(epochs: int, found: list[Any], **options: float) -> None:
        model = countvi.DestVI.from_rna_model(slide.spots, reference, seed=seed, **options)
        if options:
            model.module.prior_of_gamma.load_state_dict(theirs.module.prior_of_gamma.state_dict())
        model.train(epochs, enable_progress_bar=False)
        found.append(model)

    for epochs in lengths:
        found: list[countvi.DestVI] = []
        ours_took = seconds(partial(fit, epochs, found, sparsity_reg=0.0))
        print(
            f"{epochs} epochs: {ours_took:.3g} s, {penalised(found[0]):.6g} against {penalised(theirs):.6g}", flush=True
        )
        if reached := penalised(found[0]) >= penalised(theirs):
            break
    if reached:
        _add(short, ours_took, took, _scores(found[0], theirs, slide), known)
    else:
        short.missed += 1
    default: list[countvi.DestVI] = []
    ours_took = seconds(partial(fit, lengths[-1], default))
    _add(whole, ours_took, took, _scores(default[0], theirs, slide), known)


def _add(row: Comparison, ours: float, theirs: float, ours_scores: dict[str, float], known: dict[str, float]) -> None:
    row.ours.append(ours)
    row.theirs.append(theirs)
    for kept, values in ((row.scores_ours, ours_scores), (row.scores_theirs, known)):
        for name, value in values.items():
            kept.setdefault(name, []).append(value)


def penalised(model: Any, function: Any = None) -> float:
    """Log-likelihood less penalties, per spot, of the parameters of a model, by its own function or that of another."""
    import torch

    module = model.module
    own = module.prior_of_gamma, module.prior_of_beta
    try:
        if function is not None:
            module.prior_of_gamma, module.prior_of_beta = function.module.prior_of_gamma, function.module.prior_of_beta
        with torch.no_grad():
            return float(model.get_elbo()) - sum(float(part) for part in module.penalty().values())
    finally:
        module.prior_of_gamma, module.prior_of_beta = own


def _scores(model: Any, function: Any, slide: spots.Slide) -> dict[str, float]:
    told = {"penalised log-likelihood per spot": penalised(model, function)}
    return told | (scores(model.get_proportions(), slide.truth) if len(slide.truth.rna) else {})
