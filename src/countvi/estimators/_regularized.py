"""What the regularised models share: one modality is the case of several that has one."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from countvi import data as data_layer
from countvi import query, seeding
from countvi.errors import FileFormatError, OptionError, shorten
from countvi.estimators import _modality, _training
from countvi.estimators._build_regularized import RegularizedOptions
from countvi.estimators._compared import ComparedEstimator
from countvi.estimators._differential import importance
from countvi.estimators._indices import Indices
from countvi.estimators._passing import passes_on_to
from countvi.train.config import plan_entries, with_peak

if TYPE_CHECKING:
    from typing import Self

    from anndata import AnnData
    from mudata import MuData

    from countvi.data.container import Container
    from countvi.estimators._differential import Groups, Request
    from countvi.models.regularized import Regularized

# While the divergence weighs little, an encoder of many sparse features learns its cells by heart.
_PLAN = {"weight_decay": 0.0, "kl_warmup_fraction": 0.05}
_WITH_PEAKS = 0.75
# Networks of any size shall fit alike; with more noise in the steps, as SCVI has it, large ones end lower.
_BATCH, _PEAK = 128, 0.02
_NOT_OPTIONS = ("self", "adata", "mdata", "seed")


def options_among(names: Mapping[str, Any]) -> dict[str, Any]:
    """From the local variables at the start of a constructor to its options, as JSON values."""
    given = {name: value for name, value in names.items() if name not in _NOT_OPTIONS}
    return {
        name: dict(value) if isinstance(value, Mapping) else list(value) if isinstance(value, (list, tuple)) else value
        for name, value in given.items()
    }


class RegularizedEstimator(ComparedEstimator, ABC):
    """Base of the regularised estimators: their read-outs, of one modality or of each."""

    module: Regularized

    def _begin(
        self,
        data: Container | None,
        registry: data_layer.Registry,
        arguments: Mapping[str, Any],
        seed: int,
        *,
        loaded: bool = False,
    ) -> None:
        self._loaded = loaded
        self._options = RegularizedOptions.checked(self._completed(arguments), registry)
        super().__init__(data, registry, arguments, seed)
        if not loaded:
            data_layer.warn_of_confounding(self.get_confounding(), "get_confounding()")

    @classmethod
    def _restore(
        cls, adata: Container | None, registry: data_layer.Registry, init_args: Mapping[str, Any], seed: int
    ) -> Self:
        parameters = inspect.signature(cls.__init__).parameters
        defaults = {name: p.default for name, p in parameters.items() if name not in _NOT_OPTIONS}
        unknown = sorted(init_args.keys() - defaults.keys())
        if unknown:
            message = (
                f"The saved model has options that this version of countvi does not know: {shorten(unknown)}. It was "
                "changed by hand or written by a newer version; update countvi."
            )
            raise FileFormatError(message)
        model = cls.__new__(cls)
        model._begin(adata, registry, {**defaults, **init_args}, seed, loaded=True)
        return model

    @classmethod
    @abstractmethod
    def _completed(cls, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """Arguments of the constructor as :class:`RegularizedOptions` takes them."""

    @abstractmethod
    def _over(self, modality: str | None, compute: Callable[[str], Any], names: Sequence[str] | None = None) -> Any:
        """Compute something of a modality, or of all that are meant if none is named."""

    @passes_on_to(ComparedEstimator.train)
    def train(
        self,
        max_epochs: int | None = None,
        *,
        batch_size: int = _BATCH,
        early_stopping_min_delta: float | None = None,
        early_stopping_min_delta_per_feature: float = 2e-4,
        plan_kwargs: Mapping[str, Any] | None = None,
        **arguments: Any,
    ) -> None:
        """Fit the model.

        Parameters
        ----------
        max_epochs
            Passes over the training cells; by default fewer the more cells there are: 48 for 2,000, 5 for a million
            (:func:`countvi.train.default_max_epochs`); with peaks, whose networks overfit sooner, three quarters of
            that.
        batch_size
            Cells per step.
        early_stopping_min_delta
            Smallest improvement of the monitored metric that counts; by default the number of features, of all
            modalities, times ``early_stopping_min_delta_per_feature``.
        early_stopping_min_delta_per_feature
            The same per feature, in nats per cell.
        plan_kwargs
            As for :class:`countvi.SCVI`, but with a peak rate of 0.02, a KL warm-up over a twentieth of the run, and
            without weight decay unless ``{"weight_decay": ...}`` asks for it: it would be a second prior of background,
            factors and dispersions.
        arguments
            All other arguments of :meth:`countvi.SCVI.train`.
        """
        if early_stopping_min_delta is None:
            n_features = sum(m.n_features for m in self.registry.modalities)
            early_stopping_min_delta = n_features * early_stopping_min_delta_per_feature
        plan = _PLAN | plan_entries(plan_kwargs)
        arguments |= {"batch_size": batch_size, "early_stopping_min_delta": early_stopping_min_delta}
        super().train(max_epochs, plan_kwargs=with_peak(plan, _PEAK), **arguments)

    def _relative_length(self) -> float:
        peaks = any(modality.feature_type == data_layer.PEAKS for modality in self.registry.modalities)
        return _WITH_PEAKS if peaks else 1.0

    # ---------------------------------------------------------------- expression

    def get_normalized_expression(
        self,
        adata: AnnData | MuData | None = None,
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
        modality: str | None = None,
        include_background: bool = False,
        weights: Literal["uniform", "importance"] | None = None,
        importance_weighting_kwargs: Mapping[str, Any] | None = None,
        use_z_mean: bool = False,
        out: Any = None,
        seed: int = seeding.DEFAULT_SEED,
    ) -> Any:
        r"""Return denoised expression: the posterior mean of :math:`\rho`, in units of an average cell's counts.

        Without the background a row sums to about one minus the cell's ambient share, times ``library_size``.

        Parameters
        ----------
        adata, indices, batch_size
            Which cells; see :meth:`get_latent_representation`.
        transform_batch
            Decode every cell as if it came from this batch, or had these covariates (``{"site": "s1"}``); a list
            averages, ``"average"`` does over all batches; ``None`` leaves each cell as it is, so the result then still
            carries technical effects.
        gene_list
            Features to return, in this order.
        library_size
            Multiplies the expression; ``"latent"`` for the expected counts of each cell at its own library size, with
            its feature factors.
        n_samples
            Posterior draws per cell.
        n_samples_overall
            Instead: draw so many cells with replacement, one posterior draw each.
        return_mean
            Average over draws, or keep them.
        return_numpy
            Return an array rather than a data frame; forced by ``return_mean=False`` with several samples.
        modality
            Which modality.
        include_background
            Add the ambient background.
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
            ``(cells, features)``; ``(n_samples, cells, features)`` with ``return_mean=False`` and several samples;
            ``(n_samples_overall, features)`` with that argument. Of several modalities, a dictionary by name unless
            one is named.
        """
        if out is not None and modality is None and len(self.registry.modalities) > 1:
            message = "out holds one modality, and the model has several; name it with modality=."
            raise OptionError(message)

        weighing = importance(weights, importance_weighting_kwargs)
        cells, obs_names = self._cells(adata, indices, batch_size), self._obs_names(adata)

        def compute(name: str) -> Any:
            return _modality.expression(
                self,
                name,
                cells,
                obs_names,
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
                background=include_background,
                importance=weighing,
            )

        return self._over(modality, compute)

    def _compare(
        self, adata: Container | None, groups: Groups, request: Request, modality: str | None, batch_size: int | None
    ) -> Any:
        return self._over(
            modality, lambda name: super(RegularizedEstimator, self)._compare(adata, groups, request, name, batch_size)
        )

    def get_likelihood_parameters(
        self,
        adata: AnnData | MuData | None = None,
        indices: Indices = None,
        *,
        modality: str | None = None,
        n_samples: int = 1,
        give_mean: bool = False,
        batch_size: int | None = None,
        seed: int = seeding.DEFAULT_SEED,
    ) -> Any:
        """Return the parameters of each count's distribution.

        Returns
        -------
        dict
            ``"mean"`` of the negative binomial, background included, and ``"dispersions"``, the posterior median of the
            inverse dispersion theta: shape ``(cells, features)``, or ``(n_samples, cells, features)`` for several
            samples without ``give_mean``. Of several modalities, a dictionary by name unless one is named.
        """
        _training.check_size("n_samples", n_samples)
        cells = self._cells(adata, indices, batch_size)
        return self._over(
            modality,
            lambda name: query.likelihood_parameters(
                self.module, cells, modality=name, n_samples=n_samples, give_mean=give_mean, seed=seed
            ),
        )

    def get_latent_library_size(
        self,
        adata: AnnData | MuData | None = None,
        indices: Indices = None,
        *,
        modality: str | None = None,
        give_mean: bool = True,
        batch_size: int | None = None,
        seed: int = seeding.DEFAULT_SEED,
    ) -> Any:
        """Return library sizes in counts, ``(cells, 1)``: the posterior mean, or a draw.

        NaN where a modality was not measured. Of several modalities, a dictionary by name unless one is named.
        """
        cells = self._cells(adata, indices, batch_size)
        sizes = query.library_size(self.module, cells, give_mean=give_mean, seed=seed)
        measured = self._measured(cells)

        def compute(name: str) -> np.ndarray:
            column = sizes[:, [self.module.names.index(name)]]
            return np.where(measured[name][:, None], column, np.nan) if name in measured else column

        return self._over(modality, compute)

    def posterior_predictive_sample(
        self,
        adata: AnnData | MuData | None = None,
        indices: Indices = None,
        *,
        modality: str | None = None,
        transform_batch: Any = None,
        n_samples: int = 1,
        gene_list: Sequence[str] | None = None,
        batch_size: int | None = None,
        seed: int = seeding.DEFAULT_SEED,
    ) -> Any:
        """Draw new counts for each cell from the fitted model, ambient ones included.

        Parameters
        ----------
        adata, indices, batch_size, gene_list, modality
            Which cells and features; see :meth:`get_normalized_expression`.
        transform_batch
            One batch, or one set of covariates, to simulate every cell in; ``None`` for its own.
        n_samples
            Data sets to draw.
        seed
            Of the draws.

        Returns
        -------
        scipy.sparse.csr_array
            Shape ``(cells, features)``; a list of ``n_samples`` of them for several samples. Of several modalities, a
            dictionary by name unless one is named; where one was not measured, what would be expected there.
        """
        cells = self._cells(adata, indices, batch_size)
        return self._over(
            modality,
            lambda name: _modality.predictive(
                self,
                name,
                cells,
                transform_batch=transform_batch,
                n_samples=n_samples,
                features=gene_list,
                seed=seed,
            ),
        )

    def get_feature_correlation_matrix(
        self,
        adata: AnnData | MuData | None = None,
        indices: Indices = None,
        *,
        modality: str | None = None,
        n_samples: int = 10,
        batch_size: int | None = None,
        rna_size_factor: float = 1_000.0,
        transform_batch: Any = None,
        correlation_type: Literal["spearman", "pearson"] = "spearman",
        gene_list: Sequence[str] | None = None,
        seed: int = seeding.DEFAULT_SEED,
    ) -> Any:
        """Return correlations between features of denoised expression; see :class:`countvi.SCVI`.

        Returns
        -------
        DataFrame
            Features x features. Of several modalities, a dictionary by name unless one is named.
        """
        cells = self._cells(adata, indices, batch_size)
        return self._over(
            modality,
            lambda name: _modality.correlation(
                self,
                name,
                cells,
                n_samples=n_samples,
                size_factor=rna_size_factor,
                transform_batch=transform_batch,
                correlation_type=correlation_type,
                features=gene_list,
                seed=seed,
            ),
        )
