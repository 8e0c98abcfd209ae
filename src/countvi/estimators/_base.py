"""Read-outs of models whose latent variables have a posterior: cell states and evidence."""

from __future__ import annotations

from abc import ABC
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from countvi import data as data_layer
from countvi import query, seeding
from countvi.errors import choose
from countvi.estimators import _abundance, _criticism, _labels, _mapping, _training
from countvi.estimators._indices import Indices
from countvi.estimators._scored import ScoredEstimator, mean_over_cells

if TYPE_CHECKING:
    from typing import Self

    import pandas as pd
    from anndata import AnnData
    from mudata import MuData
    from torch.distributions import MixtureSameFamily

# Evidence by importance sampling holds many draws per cell, so it takes fewer cells at a time.
_EVIDENCE_BATCH = 64


class CountEstimator(ScoredEstimator, ABC):
    """Base of the estimators whose latent variables have a posterior: cell states and evidence."""

    @classmethod
    def load_query_data(
        cls,
        adata: AnnData | MuData,
        reference_model: Self | str | Path,
        *,
        unfrozen: bool = False,
        freeze_dropout: bool = False,
        freeze_expression: bool = True,
        freeze_decoder_first_layer: bool = True,
        freeze_batchnorm_encoder: bool = True,
        freeze_batchnorm_decoder: bool = False,
        freeze_library_encoder: bool = False,
        device: str = "cpu",
        seed: int | None = None,
    ) -> Self:
        """Map new cells onto a trained model, which keeps what it knows (Lotfollahi et al. 2022).

        The result is a model of the new cells with the same cell states as the reference. Their batches, and categories
        of other covariates that the reference does not know, become new rows of its tables; :meth:`train` then learns
        these rows and holds the rest, to the bit. New rows start at the mean of the known ones.

        Parameters
        ----------
        adata
            New cells, with the columns of ``obs`` that the reference was set up with; no set-up is needed. Genes are
            matched by name; where some are missing, call ``prepare_query_anndata`` (``prepare_query_mudata``) first.
        reference_model
            A trained model of this class, or the folder that it was saved to.
        unfrozen
            Hold nothing: go on training the whole model, on the new cells alone.
        freeze_dropout
            Train without dropout.
        freeze_expression
            Hold the first layer of the encoders.
        freeze_decoder_first_layer
            Hold the first layer of the decoders.
        freeze_batchnorm_encoder, freeze_batchnorm_decoder
            Hold batch normalisation, and normalise with the reference's statistics in training too.
        freeze_library_encoder
            Hold the network that infers library sizes, in models that infer them.
        device
            Where to put the model.
        seed
            Of :meth:`train` where it is given none; by default the reference's.

        Returns
        -------
        Self
            To be trained, unless the reference knows every category and there is nothing to learn.

        Raises
        ------
        MismatchError
            If the cells lack genes of the reference.
        UnknownNameError
            If ``obs`` lacks a column.

        Examples
        --------
        >>> mapped = countvi.SCVI.load_query_data(adata, "reference/")  # doctest: +SKIP
        >>> mapped.train()  # doctest: +SKIP
        >>> adata.obsm["X_scVI"] = mapped.get_latent_representation()  # doctest: +SKIP
        """
        freezing = {name: value for name, value in locals().items() if name == "unfrozen" or name.startswith("freeze_")}
        return _mapping.load_query_data(cls, adata, reference_model, freezing, device=device, seed=seed)

    def minify_adata(
        self, minified_data_type: Literal["latent_posterior_parameters"] = data_layer.MINIFIED_TYPE
    ) -> None:
        """Keep the posterior of the model's cells instead of their counts, which takes far less space.

        The data of the model become a copy of ``obs`` with means and variances in ``obsm``; your own AnnData or MuData
        is unchanged. Cell states, expression, library sizes, predictive samples and correlations are read out as
        before. What compares with counts (evidence, checks, ambient counts, training) says that it needs them: pass
        ``adata=`` there. Save with ``save_anndata=True`` to keep the small data with the model.

        Parameters
        ----------
        minified_data_type
            ``"latent_posterior_parameters"``; there is no other.
        """
        choose("minified_data_type", minified_data_type, {data_layer.MINIFIED_TYPE: None})
        cells = self._cells(None, None, None)
        assert self.adata is not None
        self._training_fingerprint()  # of the counts, while they are here
        posterior = query.latent_posteriors(self.module, cells)
        self.adata = data_layer.minified(self.adata, self.registry, posterior, self._need_data().patterns)
        self._data = self._bound(self.adata)

    @property
    def minified_data_type(self) -> str | None:
        """``"latent_posterior_parameters"`` if the model keeps the posterior of its cells and no counts."""
        return data_layer.MINIFIED_TYPE if self._data is not None and self._data.stored is not None else None

    def _extended_by(self, query: AnnData | MuData) -> data_layer.Registry:
        """What this model was set up with, and the categories of a query besides."""
        return data_layer.extend(self.registry, query, self._unread_roles)

    def transfer_labels(
        self,
        query: AnnData | MuData | Self,
        key: str,
        *,
        n_neighbors: int = 15,
        max_uncertainty: float = 0.5,
        min_typicality: float = 0.01,
        unknown: str = "unknown",
    ) -> pd.DataFrame:
        """Label new cells by the nearest labelled cells of this model, where there are any like them.

        Parameters
        ----------
        query
            The model of new cells that :meth:`load_query_data` made of this one; or the cells themselves, if this model
            knows their batches.
        key
            Column of ``obs`` of this model's own cells with their labels. Cells without one are left out.
        n_neighbors
            Labelled cells that vote on a cell, the nearer the more.
        max_uncertainty
            Cells above it are unknown: between labels.
        min_typicality
            Cells below it are unknown: far from everything labelled. 0 lets every cell have a label.
        unknown
            What to call them.

        Returns
        -------
        DataFrame
            A row for each cell. ``label``: the most voted label, or ``unknown``. ``best``: the most voted label in any
            case. ``uncertainty``: share of the votes for other labels, 0 to 1. ``typicality``: share of the labelled
            cells of that label that lie at least as far from their own nearest cells, or whose state is at least as
            unsure, whichever is less, 0 to 1: small where the reference has nothing like the cell. Both can miss a type
            that the reference lacks and that resembles one that it has; look at markers.

        Raises
        ------
        UnknownNameError
            If ``obs`` has no such column.
        OptionError
            If ``query`` is a model of another space.
        """
        return _labels.transfer_labels(
            self,
            query,
            key,
            n_neighbors=n_neighbors,
            max_uncertainty=max_uncertainty,
            min_typicality=min_typicality,
            unknown=unknown,
        )

    def get_latent_representation(
        self,
        adata: AnnData | MuData | None = None,
        indices: Indices = None,
        *,
        give_mean: bool = True,
        mc_samples: int = 5_000,
        batch_size: int | None = None,
        return_dist: bool = False,
        seed: int = seeding.DEFAULT_SEED,
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        r"""Return the cell state.

        Parameters
        ----------
        adata
            Cells; by default those of the model. Genes are matched by name, categories by value.
        indices
            Rows or a mask; by default all.
        give_mean
            The posterior mean, or one draw.
        mc_samples
            Draws behind the mean of a logistic-normal state, which has no closed form.
        batch_size
            Cells at a time.
        return_dist
            Return mean and variance of :math:`q(z \mid x)` instead (before the softmax of a logistic normal).
        seed
            Of the draws.

        Returns
        -------
        numpy.ndarray
            Shape ``(cells, n_latent)``; with ``return_dist``, two of them.
        """
        _training.check_size("mc_samples", mc_samples)
        cells = self._cells(adata, indices, batch_size)
        if return_dist:
            loc, scale = query.latent_moments(self.module, cells)
            return loc, scale**2
        return query.latent_states(self.module, cells, give_mean=give_mean, mc_samples=mc_samples, seed=seed)

    def get_aggregated_posterior(
        self,
        adata: AnnData | MuData | None = None,
        indices: Indices = None,
        *,
        batch_size: int | None = None,
        dof: float | None = 3.0,
    ) -> MixtureSameFamily:
        """Return the posteriors of cells as one density over z: a mixture in which each cell has the same weight.

        Parameters
        ----------
        adata, indices, batch_size
            Which cells; see :meth:`get_latent_representation`.
        dof
            Degrees of freedom of Student's t, whose tails are heavier than those of a normal; ``None`` for normals.

        Returns
        -------
        torch.distributions.MixtureSameFamily
            Over vectors of length ``n_latent``.
        """
        _abundance.check_dof(dof)
        loc, scale = query.latent_moments(self.module, self._cells(adata, indices, batch_size))
        _abundance.check_cells(loc, "adata")
        return query.aggregated_posterior(loc, scale, dof)

    def differential_abundance(
        self,
        adata: AnnData | MuData | None = None,
        sample_key: str | None = None,
        *,
        batch_size: int | None = None,
        num_cells_posterior: int | None = None,
        dof: float | None = None,
        seed: int = seeding.DEFAULT_SEED,
    ) -> pd.DataFrame:
        """Return how dense each sample is where each cell lies: which states are common in which sample.

        The difference of two columns says how much more common a cell's state is in one sample than in the other.
        Average columns over the samples of a condition before comparing conditions; the samples are the replicates.

        Parameters
        ----------
        adata
            Cells; by default those of the model.
        sample_key
            Column of ``obs`` that says which sample a cell is from.
        batch_size
            Cells at a time.
        num_cells_posterior
            Cells per sample that stand for it, drawn at random; by default all. With the same number in each, samples
            of different sizes are smoothed alike.
        dof
            As in :meth:`get_aggregated_posterior`; ``None`` for normals.
        seed
            Of the draw of cells.

        Returns
        -------
        DataFrame
            Log-density of the posterior mean of z of each cell under each sample's aggregated posterior, in nats, cells
            x samples.

        Raises
        ------
        OptionError
            If ``sample_key`` is left out, or names fewer than two samples.
        """
        _abundance.check_dof(dof)
        cells = self._cells(adata, None, batch_size)
        return _abundance.densities(self, cells, adata, sample_key, num_cells_posterior, dof, seed)

    def get_marginal_ll(
        self,
        adata: AnnData | MuData | None = None,
        indices: Indices = None,
        *,
        n_mc_samples: int = 1_000,
        n_mc_samples_per_pass: int = 20,
        batch_size: int | None = None,
        return_mean: bool = True,
        seed: int = seeding.DEFAULT_SEED,
    ) -> float | np.ndarray:
        """Return the marginal log-likelihood log p(x) per cell in nats, by importance sampling from the guide.

        A lower bound that tightens with the number of samples (Burda et al. 2016); higher is better.

        Parameters
        ----------
        adata, indices, batch_size
            Which cells; see :meth:`get_latent_representation`.
        n_mc_samples, n_mc_samples_per_pass
            Draws per cell, and how many are held at a time.
        return_mean
            The mean over cells, or one value per cell, shape ``(cells,)``.
        seed
            Of the draws.
        """
        _training.check_size("n_mc_samples", n_mc_samples)
        _training.check_size("n_mc_samples_per_pass", n_mc_samples_per_pass)
        cells = self._cells(adata, indices, _EVIDENCE_BATCH if batch_size is None else batch_size)
        values = query.marginal_log_likelihood(
            self.module, cells, n_samples=n_mc_samples, samples_per_pass=n_mc_samples_per_pass, seed=seed
        )
        return mean_over_cells(values) if return_mean else values

    def get_predictive_checks(
        self,
        adata: AnnData | MuData | None = None,
        indices: Indices = None,
        *,
        modality: str | None = None,
        n_samples: int = 10,
        batch_size: int | None = None,
        seed: int = seeding.DEFAULT_SEED,
    ) -> Any:
        """Compare the counts with counts drawn from the model, to see whether it describes these data.

        Use cells that were not trained on, ``indices=model.validation_indices``. ``countvi.pl.predictive_check`` draws
        the result.

        Parameters
        ----------
        adata, indices, batch_size
            Which cells; see :meth:`get_latent_representation`.
        modality
            Which modality.
        n_samples
            Draws per cell.
        seed
            Of the draws.

        Returns
        -------
        PredictiveChecks
            ``genes`` and ``cells``, two data frames. ``cv`` is the standard deviation over the mean, ``zero_fraction``
            the share of zeros; beside them the same of drawn counts, ``cv_predicted`` and ``zero_fraction_predicted``.
            ``calibration_error`` is 0 if observed counts are as often below a drawn one as a further draw is, and 0.5
            at most: the mean distance of the distribution of their ranks from the uniform one (with random ranks for
            ties; a gene in n cells has about ``0.3 / sqrt(n)`` by chance). Of several modalities, a dictionary by name
            unless one is named.
        """
        cells, obs_names = self._cells(adata, indices, batch_size), self._obs_names(adata)
        names = [m.name for m in self.registry.modalities]
        if modality is not None:
            names = [self.registry.modality(modality).name]
        found = {
            name: _criticism.predictive_checks(self, name, cells, obs_names, n_samples=n_samples, seed=seed)
            for name in names
        }
        return found[names[0]] if len(names) == 1 else found
