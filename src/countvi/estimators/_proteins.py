"""Read-outs of models of RNA and protein."""

from __future__ import annotations

import warnings
from abc import ABC
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from countvi import data as data_layer
from countvi import query, seeding
from countvi.batch import PROTEIN, RNA
from countvi.errors import DataWarning, OptionError, shorten
from countvi.estimators import _modality, _training
from countvi.estimators._compared_proteins import ComparedProteins
from countvi.estimators._indices import Indices, resolve_batches, resolve_genes

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData
    from scipy.sparse import csr_array

    from countvi.models.totalvi import TOTALVI as TOTALVIModel


class ProteinEstimator(ComparedProteins, ABC):
    """Base of the estimators with RNA and protein: their read-outs."""

    module: TOTALVIModel

    def get_normalized_expression(
        self,
        adata: AnnData | MuData | None = None,
        indices: Indices = None,
        n_samples_overall: int | None = None,
        transform_batch: Any = None,
        gene_list: Sequence[str] | None = None,
        protein_list: Sequence[str] | None = None,
        library_size: float | Literal["latent"] = 1.0,
        n_samples: int = 1,
        sample_protein_mixing: bool = False,
        scale_protein: bool = False,
        include_protein_background: bool = False,
        batch_size: int | None = None,
        return_mean: bool = True,
        return_numpy: bool | None = None,
        *,
        sampling_protein_mixing: bool | None = None,
        use_z_mean: bool = False,
        seed: int = seeding.DEFAULT_SEED,
    ) -> tuple[Any, Any]:
        r"""Return denoised expression of RNA, :math:`\ell' \rho`, and of protein, :math:`(1 - \pi) \beta \alpha`.

        Parameters
        ----------
        adata, indices, batch_size
            Which cells; see :meth:`get_latent_representation`.
        n_samples_overall
            Draw so many cells with replacement, one posterior draw each.
        transform_batch
            Decode every cell as if it came from this batch, or had these covariates (``{"donor": "d1"}``); a list
            averages over batches, ``"average"`` over all of them; ``None`` leaves each in its own, so the result then
            still carries batch effects.
        gene_list, protein_list
            Genes and proteins to return, in this order.
        library_size
            Total that the RNA of a cell is scaled to, or ``"latent"`` for the cell's own.
        n_samples
            Posterior draws per cell.
        sample_protein_mixing
            Draw whether each count is background, rather than weight by the probability.
        scale_protein
            Divide proteins by their sum over all proteins of the cell.
        include_protein_background
            Add the background, :math:`\pi \beta`.
        return_mean
            Average over draws, or keep them. The mean of proteins is exact over the background given z.
        return_numpy
            Return arrays rather than data frames; forced by ``return_mean=False`` with several samples.
        sampling_protein_mixing
            Another name of ``sample_protein_mixing``.
        use_z_mean
            Decode the posterior mean of z instead of draws: fast, without noise, slightly biased.
        seed
            Of the draws; genes and proteins come from the same ones.

        Returns
        -------
        tuple
            Of RNA and of protein: data frames or arrays ``(cells, features)``; ``(n_samples, cells, features)`` with
            ``return_mean=False`` and several samples; ``(n_samples_overall, features)`` with that argument.
        """
        cells, obs_names = self._cells(adata, indices, batch_size), self._obs_names(adata)
        common: dict[str, Any] = {
            "n_samples": n_samples,
            "n_samples_overall": n_samples_overall,
            "return_mean": return_mean,
            "use_z_mean": use_z_mean and n_samples_overall is None,
            "seed": seed,
        }
        rna = _modality.expression(
            self,
            RNA,
            cells,
            obs_names,
            transform_batch=transform_batch,
            features=gene_list,
            library_size=library_size,
            return_numpy=return_numpy,
            out=None,
            **common,
        )
        columns, names = self._proteins(protein_list)
        values = query.protein_expression(
            self.module,
            cells,
            proteins=columns,
            counterfactuals=resolve_batches(transform_batch, self.registry),
            background=include_protein_background,
            normalise=scale_protein,
            sample_mixing=sample_protein_mixing if sampling_protein_mixing is None else sampling_protein_mixing,
            **common,
        )
        index = None if n_samples_overall is not None else obs_names[cells.rows]
        return rna, _labelled(values, index, names, return_numpy)

    def get_protein_foreground_probability(
        self,
        adata: AnnData | MuData | None = None,
        indices: Indices = None,
        transform_batch: Any = None,
        protein_list: Sequence[str] | None = None,
        n_samples: int = 1,
        batch_size: int | None = None,
        return_mean: bool = True,
        return_numpy: bool | None = None,
        *,
        use_z_mean: bool = False,
        seed: int = seeding.DEFAULT_SEED,
    ) -> pd.DataFrame | np.ndarray:
        r"""Return the probability that the counts of a protein are foreground, :math:`1 - \pi`.

        Parameters
        ----------
        adata, indices, transform_batch, protein_list, n_samples, batch_size
            See :meth:`get_normalized_expression`.
        return_mean, return_numpy, use_z_mean, seed
            See :meth:`get_normalized_expression`.

        Returns
        -------
        DataFrame or numpy.ndarray
            ``(cells, proteins)``; ``(n_samples, cells, proteins)`` with ``return_mean=False`` and several samples.
        """
        cells, obs_names = self._cells(adata, indices, batch_size), self._obs_names(adata)
        _training.check_size("n_samples", n_samples)
        columns, names = self._proteins(protein_list)
        values = query.foreground_probability(
            self.module,
            cells,
            proteins=columns,
            counterfactuals=resolve_batches(transform_batch, self.registry),
            n_samples=n_samples,
            return_mean=return_mean,
            use_z_mean=use_z_mean,
            seed=seed,
        )
        return _labelled(values, obs_names[cells.rows], names, return_numpy)

    def get_protein_background_mean(
        self,
        adata: AnnData | MuData | None = None,
        indices: Indices = None,
        batch_size: int | None = None,
        *,
        transform_batch: Any = None,
        protein_list: Sequence[str] | None = None,
        n_samples: int = 1,
        seed: int = seeding.DEFAULT_SEED,
    ) -> np.ndarray:
        r"""Return the expected background of each protein in counts, the posterior mean of :math:`\beta`.

        Parameters
        ----------
        adata, indices, batch_size, transform_batch, protein_list, n_samples, seed
            See :meth:`get_normalized_expression`.

        Returns
        -------
        numpy.ndarray
            ``(cells, proteins)``.
        """
        cells = self._cells(adata, indices, batch_size)
        _training.check_size("n_samples", n_samples)
        return query.background_mean(
            self.module,
            cells,
            proteins=self._proteins(protein_list)[0],
            counterfactuals=resolve_batches(transform_batch, self.registry),
            n_samples=n_samples,
            seed=seed,
        )

    def get_latent_library_size(
        self,
        adata: AnnData | MuData | None = None,
        indices: Indices = None,
        give_mean: bool = True,
        batch_size: int | None = None,
        *,
        seed: int = seeding.DEFAULT_SEED,
    ) -> np.ndarray:
        """Return library sizes of the RNA, ``(cells, 1)``: inferred (posterior mean, or a draw), observed, or given."""
        cells = self._cells(adata, indices, batch_size)
        return query.library_size(self.module, cells, give_mean=give_mean, seed=seed)

    def posterior_predictive_sample(
        self,
        adata: AnnData | MuData | None = None,
        indices: Indices = None,
        n_samples: int = 1,
        batch_size: int | None = None,
        gene_list: Sequence[str] | None = None,
        protein_list: Sequence[str] | None = None,
        *,
        transform_batch: Any = None,
        seed: int = seeding.DEFAULT_SEED,
    ) -> dict[str, csr_array | np.ndarray | list[csr_array] | list[np.ndarray]]:
        """Draw new counts for each cell from the fitted model, of RNA and protein from the same cell state.

        Parameters
        ----------
        adata, indices, batch_size, gene_list, protein_list
            Which cells and features; see :meth:`get_normalized_expression`.
        n_samples
            Data sets to draw.
        transform_batch
            One batch to simulate every cell in; ``None`` for its own.
        seed
            Of the draws.

        Returns
        -------
        dict
            ``"rna"``: a ``csr_array`` of shape ``(cells, genes)``, ``"protein"``: an array of shape ``(cells,
            proteins)``; lists of ``n_samples`` of them for several samples. Where a protein was not measured, what
            would be expected there.
        """
        _training.check_size("n_samples", n_samples)
        features = {RNA: self._genes(gene_list)[0], PROTEIN: self._proteins(protein_list)[0]}
        samples = query.joint_predictive(
            self.module,
            self._cells(adata, indices, batch_size),
            features,
            counterfactual=_modality.one_counterfactual(transform_batch, self.registry),
            n_samples=n_samples,
            seed=seed,
        )
        samples[PROTEIN] = [sample.toarray() for sample in samples[PROTEIN]]
        return {name: drawn[0] if n_samples == 1 else drawn for name, drawn in samples.items()}

    def get_likelihood_parameters(
        self,
        adata: AnnData | MuData | None = None,
        indices: Indices = None,
        *,
        n_samples: int = 1,
        give_mean: bool = False,
        batch_size: int | None = None,
        seed: int = seeding.DEFAULT_SEED,
    ) -> dict[str, dict[str, np.ndarray]]:
        """Return the parameters of each count's distribution.

        Returns
        -------
        dict
            ``"rna"``: ``"mean"`` (before dropout), ``"dispersions"`` and, with zero inflation, ``"dropout"``.
            ``"protein"``: ``"mean"``, ``"background_mean"``, ``"foreground_mean"``, ``"background_probability"`` and
            ``"dispersions"``. Shape ``(cells, features)``, or ``(n_samples, cells, features)`` for several samples
            without ``give_mean``.
        """
        _training.check_size("n_samples", n_samples)
        cells = self._cells(adata, indices, batch_size)
        return {
            name: query.likelihood_parameters(
                self.module, cells, modality=name, n_samples=n_samples, give_mean=give_mean, seed=seed
            )
            for name in (RNA, PROTEIN)
        }

    def get_feature_correlation_matrix(
        self,
        adata: AnnData | MuData | None = None,
        indices: Indices = None,
        n_samples: int = 10,
        batch_size: int | None = None,
        rna_size_factor: float = 1_000.0,
        transform_batch: Any = None,
        correlation_type: Literal["spearman", "pearson"] = "spearman",
        log_transform: bool = False,
        *,
        gene_list: Sequence[str] | None = None,
        protein_list: Sequence[str] | None = None,
        seed: int = seeding.DEFAULT_SEED,
    ) -> pd.DataFrame:
        """Return correlations between genes and proteins of denoised expression, without protein background.

        Of gamma draws, that is with the biological overdispersion but without counting noise.

        Parameters
        ----------
        adata, indices, batch_size, gene_list, protein_list
            Which cells and features; see :meth:`get_normalized_expression`. The matrix has a row for each: with all
            genes it is large.
        n_samples
            Draws per cell.
        rna_size_factor
            Total that RNA is scaled to before the gamma draws.
        transform_batch
            As in :meth:`get_normalized_expression`; a list averages the matrices.
        correlation_type
            ``"spearman"`` or ``"pearson"``.
        log_transform
            Correlate log(1 + x).
        seed
            Of the draws.

        Returns
        -------
        DataFrame
            Genes and then proteins, in rows and columns.
        """
        _training.check_size("n_samples", n_samples)
        cells = self._cells(adata, indices, batch_size)
        (genes, gene_names), (proteins, protein_names) = self._genes(gene_list), self._proteins(protein_list)
        names = np.concatenate([gene_names, protein_names])
        if not len(cells) or not len(names):
            message = "Correlations need at least one cell and one feature; indices, or both lists, select none."
            raise OptionError(message)
        matrix = query.joint_correlation(
            self.module,
            cells,
            {RNA: genes, PROTEIN: proteins},
            rna_size_factor=_modality.positive("rna_size_factor", rna_size_factor),
            counterfactuals=resolve_batches(transform_batch, self.registry),
            n_samples=n_samples,
            correlation=correlation_type,
            log_transform=log_transform,
            seed=seed,
        )
        return pd.DataFrame(matrix, index=names, columns=names)

    # ---------------------------------------------------------------- helpers

    @property
    def _takes_negative(self) -> bool:
        return False

    def _check_counts(self, dataset: data_layer.Dataset) -> None:
        assert self.adata is not None
        for name in (RNA, PROTEIN):
            data_layer.check_counts(dataset.summary(name), self.adata, self.registry.modality(name))

    def _genes(self, gene_list: Sequence[str] | None) -> tuple[np.ndarray | None, np.ndarray]:
        names = _modality.feature_names(self, RNA)
        columns = resolve_genes(gene_list, names)
        return columns, names if columns is None else names[columns]

    def _proteins(self, protein_list: Sequence[str] | None) -> tuple[np.ndarray | None, np.ndarray]:
        names = _modality.feature_names(self, PROTEIN)
        columns = resolve_genes(protein_list, names, "protein")
        return columns, names if columns is None else names[columns]

    def _warn_of_unmeasured(self) -> None:
        """Say which proteins were taken as not measured because they have no counts in a panel."""
        protein = self.registry.modality(PROTEIN)
        assert protein.gaps is not None
        column = self.registry.columns[protein.gaps.column]
        for category, features in zip(column.categories, protein.gaps.unmeasured, strict=False):
            if features:
                names = [protein.feature_names[i] for i in features]
                message = (
                    f"{len(names):,} of {protein.n_features:,} proteins have no counts in {column.role} {category!r} "
                    f"and are taken as not measured there: {shorten(names)}. If these are true zeros, pass "
                    "override_missing_proteins=True; NaN, or a mask, says what was not measured without guessing."
                )
                warnings.warn(message, DataWarning, stacklevel=3)


def _labelled(values: np.ndarray, index: pd.Index | None, names: np.ndarray, return_numpy: bool | None) -> Any:
    return values if return_numpy or values.ndim == 3 else pd.DataFrame(values, index=index, columns=names)
