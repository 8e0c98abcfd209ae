"""The single-cell model of DestVI for users: AnnData in, arrays and data frames out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from countvi import data as data_layer
from countvi import query, seeding
from countvi.batch import RNA
from countvi.data.registry import LABELS_COLUMN
from countvi.errors import OptionError, UnknownNameError, did_you_mean
from countvi.estimators._build_destvi import CondSCVIOptions, build_condscvi
from countvi.estimators._options import known_options
from countvi.estimators._passing import passes_on_to
from countvi.estimators._rna import RNAEstimator
from countvi.estimators._trainable import Trainable
from countvi.estimators._training import check_size, holds_out
from countvi.nn.initial_values import start_shapes
from countvi.nn.observation import ObserveRateShape
from countvi.train.config import plan_entries, with_peak

if TYPE_CHECKING:
    from typing import Self

    from anndata import AnnData

    from countvi.models.condscvi import CondSCVI as CondSCVIModel
    from countvi.nn.state_priors import LearnedPrior

# A rare type counts at most as if it were this share of the cells.
_LEAST_SHARE = 0.05
# Steps as a multiple of what the number of cells asks for: what fewer leave to gain shows in the proportions of spots.
_LONGER = 3.0
# At the rate of SCVI, and with its shorter warm-up, the states of a type with few cells more often stay at their prior.
_PEAK, _PLAN = 0.02, {"kl_warmup_fraction": 0.6}


class CondSCVI(RNAEstimator):
    """Continuous states within cell types, the single-cell model of DestVI (Lopez et al. 2022).

    Parameters
    ----------
    adata
        Data on which :meth:`setup_anndata` was called.
    n_hidden
        Units per hidden layer.
    n_latent
        Dimensions of the state within a type.
    n_layers
        Hidden layers of encoder and decoder.
    weight_obs
        Let a cell of a rare type count more in training, in inverse proportion to the share of its type, which is taken
        to be 5% at least. On average a cell counts one.
    dropout_rate
        Dropout of encoder and decoder.
    log_variational
        Encode log(1 + x) rather than x.
    encode_covariates
        Let the encoder see the batch too.
    seed
        Of the initial weights, and of :meth:`train` where it is given none.

    Examples
    --------
    >>> import countvi
    >>> countvi.CondSCVI.setup_anndata(cells, labels_key="cell_type", layer="counts")  # doctest: +SKIP
    >>> reference = countvi.CondSCVI(cells)  # doctest: +SKIP
    >>> reference.train()  # doctest: +SKIP

    References
    ----------
    Lopez, Li, Keren-Shaul, Boyeau, Kedmi, Pilzer, Jelinski, et al. DestVI identifies continuums of cell types in
    spatial transcriptomics data. Nature Biotechnology 40, 1360-1369 (2022).
    """

    module: CondSCVIModel

    def __init__(
        self,
        adata: AnnData,
        n_hidden: int = 128,
        n_latent: int = 5,
        n_layers: int = 2,
        weight_obs: bool = False,
        dropout_rate: float = 0.05,
        *,
        log_variational: bool = True,
        encode_covariates: bool = False,
        seed: int = seeding.DEFAULT_SEED,
    ) -> None:
        options = CondSCVIOptions(
            n_hidden=n_hidden,
            n_latent=n_latent,
            n_layers=n_layers,
            weight_obs=weight_obs,
            dropout_rate=dropout_rate,
            log_variational=log_variational,
            encode_covariates=encode_covariates,
        )
        self._start(adata, self._registry_of(adata), options, seed)

    def _start(self, adata: AnnData | None, registry: data_layer.Registry, options: CondSCVIOptions, seed: int) -> None:
        self._options = options
        super().__init__(adata, registry, dataclasses.asdict(options), seed)

    @classmethod
    def _restore(
        cls, adata: AnnData | None, registry: data_layer.Registry, init_args: Mapping[str, Any], seed: int
    ) -> Self:
        model = cls.__new__(cls)
        model._loaded = True
        model._start(adata, registry, CondSCVIOptions(**known_options(init_args, CondSCVIOptions)), seed)
        return model

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        labels_key: str | None = None,
        layer: str | None = None,
        batch_key: str | None = None,
    ) -> None:
        """Say which parts of an AnnData the model reads. Nothing is written into ``adata``.

        Parameters
        ----------
        adata
            Cells x genes.
        labels_key
            Column of ``obs`` with the type of each cell; by default all are of one type.
        layer
            Layer with the raw counts; by default ``X``.
        batch_key
            Column of ``obs`` with the batch, which the decoder sees.

        Raises
        ------
        UnknownNameError
            If a key does not exist, with the closest that do.
        DataError
            If a column has missing values or cannot be used.
        """
        registry = data_layer.setup_anndata(adata, layer=layer, batch_key=batch_key, labels_key=labels_key)
        data_layer.remember(cls, adata, registry)

    @staticmethod
    def prepare_query_anndata(adata: AnnData, reference_model: CondSCVI) -> AnnData:
        """Return a copy of ``adata`` with exactly the genes of a model, in its order; missing ones are zero.

        Parameters
        ----------
        adata
            Cells from elsewhere; unchanged.
        reference_model
            A model, trained or not.
        """
        return data_layer.prepare_query(adata, reference_model.registry)

    @property
    def cell_types(self) -> list[Any]:
        """The types, in the order of their codes."""
        return list(self.registry.columns[LABELS_COLUMN].categories)

    @passes_on_to(Trainable.train)
    def train(
        self,
        max_epochs: int | None = None,
        *,
        lr: float | None = None,
        train_size: float | None = None,
        plan_kwargs: Mapping[str, Any] | None = None,
        **arguments: Any,
    ) -> None:
        """Fit the model.

        Parameters
        ----------
        max_epochs
            Passes over the training cells; by default fewer the more cells there are, and twice as many as for
            :class:`countvi.SCVI`: the spatial model can be no better than this one.
        lr
            Peak learning rate, by default 0.02; the same as ``plan_kwargs={"lr": ...}``, and goes before it.
        train_size
            Share of the cells to train on; by default all of them, unless ``validation_size``, ``external_indexing``
            or ``early_stopping`` ask for another split.
        plan_kwargs, arguments
            As of :meth:`countvi.SCVI.train`, and so are all other arguments; but the KL warm-up is over 60% of the run.
        """
        if train_size is None and not holds_out(train_size, arguments):
            train_size = 1.0
        plan = with_peak(_PLAN | plan_entries(plan_kwargs, lr=lr), _PEAK)
        super().train(max_epochs, train_size=train_size, plan_kwargs=plan, **arguments)

    def _relative_length(self) -> float:
        return _LONGER

    def get_vamp_prior(
        self,
        adata: AnnData | None = None,
        p: int = 10,
        *,
        subcluster_key: str | None = None,
        batch_size: int | None = None,
        seed: int = seeding.DEFAULT_SEED,
    ) -> dict[str, np.ndarray]:
        """Summarise the posteriors of the cells of each type by a mixture of normals.

        Parameters
        ----------
        adata
            Cells; by default those of the model.
        p
            Components per type, found by k-means of the posterior means. A type with fewer cells has one for each cell.
        subcluster_key
            Column of ``obs`` with clusters within types, of at most ``p`` per type, to use instead. (scvi-tools: a
            column named ``overclustering_vamp``, which is taken too.)
        batch_size
            Cells at a time.
        seed
            Of the k-means.

        Returns
        -------
        dict
            ``"mean_vprior"`` and ``"var_vprior"``, shape ``(types, p, n_latent)``: means, and *variances* as in
            scvi-tools; ``"weights_vprior"``, shape ``(types, p)``. Components that a type does not use have mean 0,
            variance 1 and weight 0. With a learned prior (a file of scvi-tools), that prior.

        Raises
        ------
        OptionError
            If a type has more clusters than ``p``.
        """
        check_size("p", p)
        mixture = self._vamp_mixture(adata, p, subcluster_key, batch_size, seed)
        return {
            "mean_vprior": mixture.mean,
            "var_vprior": mixture.scale**2,
            "weights_vprior": mixture.weights,
        }

    def _vamp_mixture(
        self, adata: AnnData | None, p: int, subcluster_key: str | None, batch_size: int | None, seed: int
    ) -> query.VampMixture:
        if self._options.prior == "mog":
            learned = cast("LearnedPrior", self.module.prior_of_state)
            parts = (learned.loc, learned.log_scale.exp(), learned.logits.softmax(-1))
            return query.VampMixture(*(part.detach().cpu().double().numpy() for part in parts))
        cells = self._cells(adata, None, batch_size)
        loc, scale = query.latent_moments(self.module, cells)
        labels = self._dataset(adata).codes[:, LABELS_COLUMN].numpy()
        n_types = self.registry.labels.n_levels
        data = cast("AnnData", self.adata if adata is None else adata)
        if subcluster_key is None and "overclustering_vamp" in data.obs:
            subcluster_key = "overclustering_vamp"
        if subcluster_key is None:
            clusters = query.subclusters(loc, labels, n_types, p, seed)
        else:
            clusters = self._given_clusters(data, labels, p, subcluster_key)
        return query.vamp_mixture(loc, scale, labels, clusters, n_types, p)

    def _given_clusters(self, data: AnnData, labels: np.ndarray, p: int, key: str) -> np.ndarray:
        if key not in data.obs:
            message = f"subcluster_key: there is no obs[{key!r}].{did_you_mean(key, data.obs.columns)}"
            raise UnknownNameError(message)
        clusters = np.unique(data.obs[key].astype(str).to_numpy(), return_inverse=True)[1]
        for code, name in enumerate(self.cell_types):
            n_clusters = len(np.unique(clusters[labels == code]))
            if n_clusters > p:
                message = f"Type {name!r} has {n_clusters} clusters in obs[{key!r}], more than p={p}. Pass a larger p."
                raise OptionError(message)
        return clusters

    def _build(self, dataset: data_layer.Dataset | None) -> CondSCVIModel:
        weight = torch.ones(self.registry.labels.n_levels) if self._options.weight_obs else None
        if weight is not None and dataset is not None:
            weight = _weights(dataset.codes[:, LABELS_COLUMN], len(weight))
        model = build_condscvi(self._options, self.registry, weight)
        if dataset is not None and not self._loaded and isinstance(model.observe, ObserveRateShape):
            totals = torch.from_numpy(dataset.summary(RNA).feature_totals)
            start_shapes(model.observe, totals, data_layer.variance_ratio(dataset, RNA, LABELS_COLUMN))
        return model

    @property
    def _takes_negative(self) -> bool:
        return False

    @property
    def _unread_roles(self) -> frozenset[str]:
        return frozenset()

    def _check_counts(self, dataset: data_layer.Dataset) -> None:
        assert self.adata is not None
        data_layer.check_counts(
            dataset.summary(RNA), self.adata, self.registry.modality(RNA), allow_negative=False, allow_fractional=False
        )


def _weights(labels: torch.Tensor, n_types: int) -> torch.Tensor:
    """What a cell of each type counts: one over the share of its type, one on average."""
    sizes = torch.bincount(labels, minlength=n_types).float()
    share = (sizes / sizes.sum()).clamp(min=_LEAST_SHARE)
    weight = share.sum() / share
    return weight * sizes.sum() / (weight * sizes).sum()
