"""Differential expression of genes and proteins, side by side."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from countvi import query
from countvi.batch import PROTEIN, RNA
from countvi.errors import OptionError
from countvi.estimators._compared import ComparedEstimator
from countvi.estimators._differential import Feature, differential, number
from countvi.estimators._passing import passes_on_to

if TYPE_CHECKING:
    import pandas as pd


class ComparedProteins(ComparedEstimator, ABC):
    """Base of the estimators with RNA and protein: both are compared in one table."""

    @passes_on_to(ComparedEstimator.differential_expression, without=("modality",))
    def differential_expression(
        self,
        *arguments: Any,
        protein_prior_count: float = 0.1,
        scale_protein: bool = False,
        sample_protein_mixing: bool = False,
        include_protein_background: bool = False,
        use_field: Sequence[Literal["rna", "protein"]] | None = None,
        pseudocounts: float | None = 1e-5,
        **named: Any,
    ) -> pd.DataFrame:
        """Compare genes and proteins of populations of cells, side by side.

        Parameters
        ----------
        arguments, named
            All other arguments of :meth:`countvi.SCVI.differential_expression`; without ``modality``.
        protein_prior_count
            Added to the expression of proteins before logarithms.
        scale_protein, sample_protein_mixing, include_protein_background
            See :meth:`get_normalized_expression`. With ``scale_protein``, the added count is a share of the proteins.
        use_field
            ``"rna"`` or ``"protein"`` alone; by default both.
        pseudocounts
            Added to the frequencies of genes before logarithms; ``None`` estimates it.

        Returns
        -------
        DataFrame
            As of :meth:`countvi.SCVI.differential_expression`; the rows of proteins are named ``{protein}_protein``.
            ``scale1`` and ``scale2`` of a protein are in counts (shares with ``scale_protein``), and it has no counts
            per 10,000. Observed means of proteins are over the cells that they were measured in; the model's part is
            over all cells.
        """
        given, groups, request = self._asked(arguments, named)
        fields = ("rna", "protein")
        wanted = fields if use_field is None else (use_field,) if isinstance(use_field, str) else tuple(use_field)
        if not wanted or set(wanted) - set(fields) or given["modality"] is not None:
            message = f"use_field takes 'rna' and 'protein' (and takes the place of modality); got {wanted!r}."
            raise OptionError(message)
        mixing = query.mixing_stream(request.seed, self.device) if sample_protein_mixing else None
        denoised = query.Denoised(include_protein_background, scale_protein, mixing, exact=False)
        expression = query.SideBySide(self.module, "rna" in wanted, denoised if "protein" in wanted else None)
        counts = [name for name, field in ((RNA, "rna"), (PROTEIN, "protein")) if field in wanted]
        names, added = [], []
        for name in counts:
            features = self.registry.modality(name).feature_names
            names += [f"{feature}_protein" for feature in features] if name == PROTEIN else features
            prior = number("protein_prior_count", protein_prior_count)
            genes = np.nan if pseudocounts is None else number("pseudocounts", pseudocounts)
            added += [prior if name == PROTEIN else genes] * len(features)
        feature = Feature(
            np.array(names, dtype=object), expression, counts, np.array(added), [name == RNA for name in counts]
        )
        data = self._container(given["adata"])
        return differential(self, data, feature, groups, request, given["batch_size"])
