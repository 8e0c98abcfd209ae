"""Where the proteins of :class:`countvi.TOTALVI` start: background and foreground as their counts show them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from countvi.batch import PROTEIN
from countvi.data import Dataset
from countvi.nn.protein import WITHOUT_DATA, two_components

_SAMPLED_CELLS = 1_000
"""Cells of a panel that are looked at."""
_FEWEST_CELLS = 10
"""With fewer cells than this a protein does not show two heaps of counts."""
_LEAST_COUNT = 0.05
"""Of background: a heap of zeros has some, too."""
_SCALES = (0.1, 1.0)
"""Smallest and largest standard deviation of the log background to start from."""
_ONE_HEAP = (2.0, 0.9)
"""Factor of the foreground, and share of background, where a protein has one heap of counts."""
_LARGEST_SHARE = 0.99
"""Of background or foreground; what starts surer than this is slow to learn otherwise."""


@dataclass(frozen=True)
class ProteinStart:
    """Background and foreground of proteins, shape ``(proteins,)`` or ``(panels, proteins)`` each.

    Parameters
    ----------
    log_background, scale
        Mean and standard deviation of the log background.
    alpha
        Factor of the foreground; ``None`` if unknown.
    pi_logits
        Log-odds of background; ``None`` if unknown.
    """

    log_background: Tensor
    scale: Tensor
    alpha: Tensor | None = None
    pi_logits: Tensor | None = None

    @classmethod
    def of_panels(cls, dataset: Dataset, seed: int) -> ProteinStart:
        """Fit two components to the log counts of each protein in each panel.

        Parameters
        ----------
        dataset
            Cells, of which up to 1,000 per panel are used.
        seed
            Of their choice.

        Returns
        -------
        ProteinStart
            By panel. NaN in ``alpha`` and ``pi_logits`` where a panel has too few cells with a protein; its background
            is then that of the other panels.
        """
        panel, n_proteins = dataset.registry.panel, dataset.registry.modality(PROTEIN).n_features
        found = torch.full((4, panel.n_levels, n_proteins), torch.nan)
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_SAMPLED_CELLS,)))
        level = dataset.codes[:, panel.column].numpy()
        for code in range(panel.n_levels):
            rows = np.flatnonzero(level == code)
            if len(rows) >= _FEWEST_CELLS:
                rows = np.sort(rng.choice(rows, min(len(rows), _SAMPLED_CELLS), replace=False))
                found[:, code] = _fit(dataset, rows)
        loc, scale, alpha, pi_logits = found
        for values, unknown in zip((loc, scale), WITHOUT_DATA, strict=True):
            others = values.nanmean(0).nan_to_num(unknown).expand_as(values)
            values.copy_(torch.where(values.isnan(), others, values))
        return cls(loc, scale, alpha, pi_logits)

    def averaged(self) -> ProteinStart:
        """Average over panels; foregrounds of proteins that no panel shows are taken for those of one heap."""
        assert self.alpha is not None and self.pi_logits is not None
        alpha, share = _ONE_HEAP
        return ProteinStart(
            self.log_background.mean(0),
            self.scale.mean(0),
            self.alpha.nanmean(0).nan_to_num(alpha),
            self.pi_logits.nanmean(0).nan_to_num(float(np.log(share / (1.0 - share)))),
        )


def _fit(dataset: Dataset, rows: np.ndarray) -> Tensor:
    """Mean and standard deviation of the log background, alpha and log-odds of background, ``(4, proteins)``."""
    batch = dataset.batch(rows)
    values = batch.counts[PROTEIN].to_dense().log1p().t()
    measured = batch.design.measured_entries(PROTEIN)
    measured = torch.ones_like(values, dtype=torch.bool) if measured is None else measured.t()
    out = torch.full((4, len(values)), torch.nan)
    # Proteins of one panel as a rule were measured in the same cells, so that all are fitted at once.
    for pattern in measured.unique(dim=0):
        if int(pattern.sum()) >= _FEWEST_CELLS:
            proteins = (measured == pattern).all(1)
            out[:, proteins] = _start_of(values[proteins][:, pattern]).float()
    return out


def _start_of(values: Tensor) -> Tensor:
    """From log(1 + counts), ``(proteins, cells)``, of proteins measured in all of these cells."""
    values = values.double()
    fitted = two_components(values)
    two = fitted.are_apart
    alpha, share = _ONE_HEAP
    low = torch.where(two, fitted.low, values.mean(1)).expm1().clamp(min=_LEAST_COUNT)
    scale = torch.where(two, fitted.low_scale, values.std(1)).clamp(*_SCALES)
    alpha = torch.where(two, fitted.high.expm1() / low, alpha).clamp(min=alpha)
    share = torch.where(two, 1.0 - fitted.high_share, share).clamp(1.0 - _LARGEST_SHARE, _LARGEST_SHARE)
    return torch.stack([low.log(), scale, alpha, share.logit()])
