"""Expected expression: counts without the noise of sampling, at a depth and in a batch of choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from countvi.batch import RNA, Design
from countvi.models.count_model import CountModel
from countvi.query.cells import Cells, select
from countvi.query.draws import Counterfactual, summed


@dataclass(frozen=True, eq=False)
class DecodedExpression:
    """Expected expression as a function of latent variables; see :func:`countvi.query.expectation`.

    Parameters
    ----------
    model
        The model.
    modality
        Which of the model's modalities.
    genes
        Columns of the counts to return, in this order; ``None`` for all.
    counterfactuals
        Covariate levels to decode under, ``(column, code)`` each; the results are averaged. ``None`` in it stands for
        the cells' own levels.
    library_size
        Multiplies the expected frequencies. They sum to one over all genes of a cell, unless the model has size
        factors: its decoder then ends in a softplus, and the numbers are relative to the size factor. ``None``
        decodes at the cell's own library size or size factor, which gives the expected counts of the negative
        binomial, before dropout.
    background
        Add the ambient background of a model that has one.
    """

    model: CountModel
    modality: str = RNA
    genes: np.ndarray | None = None
    counterfactuals: Sequence[Counterfactual] = (None,)
    library_size: float | None = 1.0
    background: bool = False

    def n_features(self, cells: Cells) -> int:
        """Number of genes."""
        return cells.n_features(self.modality, self.genes)

    def __call__(self, latents: Any, design: Design) -> Tensor:
        """Return expression averaged over counterfactuals, ``(*samples, cells, genes)``."""

        def decode(design: Design) -> Tensor:
            rate = self.model.generate(latents, design)[self.modality].rate
            return select(rate.expression(library=self.library_size is None, background=self.background), self.genes)

        total = summed(decode, design, self.counterfactuals)
        # Scaled once, after the sum: a factor inside the loop would be easy to apply again and again.
        factor = (1.0 if self.library_size is None else self.library_size) / len(self.counterfactuals)
        return total if factor == 1.0 else total * factor
