"""Read-outs of the models that have RNA: what SCVI and its relatives share."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from countvi import query, seeding
from countvi.batch import RNA
from countvi.estimators import _modality, _training
from countvi.estimators._compared import ComparedEstimator
from countvi.estimators._differential import importance
from countvi.estimators._indices import Indices

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from anndata import AnnData
    from scipy.sparse import csr_array


class RNAEstimator(ComparedEstimator, ABC):
    """Base of the estimators with one RNA modality."""

    def get_normalized_expression(
        self,
        adata: AnnData | None = None,
        indices: Indices = None,
        transform_batch: Any = None,
        gene_list: Sequence[str] | None = None,
        library_size: float | Literal["latent"] = 1.0,
        n_samples: int = 1,
        n_samples_overall: int | None = None,
        batch_size: int | None = None,
        return_mean: bool = True,
        return_numpy: bool | None = None,
        *,
        weights: Literal["uniform", "importance"] | None = None,
        importance_weighting_kwargs: Mapping[str, Any] | None = None,
        use_z_mean: bool = False,
        out: Any = None,
        seed: int = seeding.DEFAULT_SEED,
    ) -> pd.DataFrame | np.ndarray:
        r"""Return denoised expression, the posterior mean of :math:`\ell' \rho`.

        Parameters
        ----------
        adata, indices, batch_size
            Which cells; see :meth:`get_latent_representation`.
        transform_batch
            Decode every cell as if it came from this batch, or had these covariates (``{"donor": "d1"}``); a list
            averages over batches, ``"average"`` over all of them; ``None`` leaves each in its own, so the result then
            still carries batch effects.
        gene_list
            Genes to return, in this order.
        library_size
            Total that the expression of a cell is scaled to, or ``"latent"`` for the cell's own: expected counts. (With
            size factors the decoder is a softplus, and rows sum to ``library_size`` only roughly.)
        n_samples
            Posterior draws per cell.
        n_samples_overall
            Instead: draw so many cells with replacement, one posterior draw each.
        return_mean
            Average over draws, or keep them.
        return_numpy
            Return an array rather than a data frame; forced by ``return_mean=False`` with several samples.
        weights
            ``"importance"``: the posterior itself, by importance sampling with the guide as proposal. With several
            ``n_samples`` their weighted mean, otherwise draws that are drawn again by weight.
        importance_weighting_kwargs
            ``n_mc_samples`` (proposals per cell, 32; at least ``n_samples``) and ``truncation`` (cut the largest
            weights, ``False``).
        use_z_mean
            Decode the posterior mean of z instead of draws: fast, without noise, slightly biased.
        out
            An array-like of the right shape to write to (NumPy, zarr, h5py, memmap); it is returned.
        seed
            Of the draws.

        Returns
        -------
        DataFrame or numpy.ndarray
            ``(cells, genes)``; ``(n_samples, cells, genes)`` with ``return_mean=False`` and several samples;
            ``(n_samples_overall, genes)`` with that argument.
        """
        return _modality.expression(
            self,
            RNA,
            self._cells(adata, indices, batch_size),
            self._obs_names(adata),
            transform_batch=transform_batch,
            features=gene_list,
            library_size=library_size,
            n_samples=n_samples,
            n_samples_overall=n_samples_overall,
            return_mean=return_mean,
            return_numpy=return_numpy,
            use_z_mean=use_z_mean,
            out=out,
            seed=seed,
            importance=importance(weights, importance_weighting_kwargs),
        )

    def get_likelihood_parameters(
        self,
        adata: AnnData | None = None,
        indices: Indices = None,
        *,
        n_samples: int = 1,
        give_mean: bool = False,
        batch_size: int | None = None,
        seed: int = seeding.DEFAULT_SEED,
    ) -> dict[str, np.ndarray]:
        """Return the parameters of each count's distribution.

        Returns
        -------
        dict
            ``"mean"``: of the negative binomial (before dropout), Poisson or normal; ``"dispersions"``: inverse
            dispersion theta, where there is one; ``"dropout"``: probability, with zero inflation. Shape ``(cells,
            genes)``, or ``(n_samples, cells, genes)`` for several samples without ``give_mean``.
        """
        _training.check_size("n_samples", n_samples)
        cells = self._cells(adata, indices, batch_size)
        return query.likelihood_parameters(self.module, cells, n_samples=n_samples, give_mean=give_mean, seed=seed)

    def get_latent_library_size(
        self,
        adata: AnnData | None = None,
        indices: Indices = None,
        *,
        give_mean: bool = True,
        batch_size: int | None = None,
        seed: int = seeding.DEFAULT_SEED,
    ) -> np.ndarray:
        """Return library sizes, ``(cells, 1)``: inferred (posterior mean, or a draw), observed, or the size factors."""
        cells = self._cells(adata, indices, batch_size)
        return query.library_size(self.module, cells, give_mean=give_mean, seed=seed)

    def posterior_predictive_sample(
        self,
        adata: AnnData | None = None,
        indices: Indices = None,
        *,
        transform_batch: Any = None,
        n_samples: int = 1,
        gene_list: Sequence[str] | None = None,
        batch_size: int | None = None,
        seed: int = seeding.DEFAULT_SEED,
    ) -> csr_array | np.ndarray | list[csr_array] | list[np.ndarray]:
        """Draw new counts for each cell from the fitted model.

        Parameters
        ----------
        adata, indices, batch_size, gene_list
            Which cells and genes; see :meth:`get_normalized_expression`.
        transform_batch
            One batch to simulate every cell in; ``None`` for its own.
        n_samples
            Data sets to draw.
        seed
            Of the draws.

        Returns
        -------
        scipy.sparse.csr_array
            Shape ``(cells, genes)``; a list of ``n_samples`` of them for several samples. Dense for a normal
            likelihood.
        """
        return _modality.predictive(
            self,
            RNA,
            self._cells(adata, indices, batch_size),
            transform_batch=transform_batch,
            n_samples=n_samples,
            features=gene_list,
            seed=seed,
        )

    def get_feature_correlation_matrix(
        self,
        adata: AnnData | None = None,
        indices: Indices = None,
        *,
        n_samples: int = 10,
        batch_size: int | None = None,
        rna_size_factor: float = 1_000.0,
        transform_batch: Any = None,
        correlation_type: Literal["spearman", "pearson"] = "spearman",
        gene_list: Sequence[str] | None = None,
        seed: int = seeding.DEFAULT_SEED,
    ) -> pd.DataFrame:
        """Return gene-gene correlations of denoised expression.

        Of gamma draws, that is with the biological overdispersion but without counting noise.

        Parameters
        ----------
        adata, indices, batch_size, gene_list
            Which cells and genes; see :meth:`get_normalized_expression`.
        n_samples
            Draws per cell.
        rna_size_factor
            Total that expression is scaled to before the gamma draws.
        transform_batch
            As in :meth:`get_normalized_expression`; a list averages the matrices.
        correlation_type
            ``"spearman"`` or ``"pearson"``.
        seed
            Of the draws.

        Returns
        -------
        DataFrame
            Genes x genes.
        """
        return _modality.correlation(
            self,
            RNA,
            self._cells(adata, indices, batch_size),
            n_samples=n_samples,
            size_factor=rna_size_factor,
            transform_batch=transform_batch,
            correlation_type=correlation_type,
            features=gene_list,
            seed=seed,
        )
