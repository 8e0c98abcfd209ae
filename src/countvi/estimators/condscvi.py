"""The single-cell model of DestVI for users: AnnData in, arrays and data frames out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from countvi import data as data_layer
from countvi import seeding
from countvi.data import LABELS_COLUMN
from countvi.estimators import mapping, minified, options
from countvi.estimators.base import Estimator
from countvi.estimators.build.condscvi import ROLES, CondSCVIOptions, build_condscvi
from countvi.estimators.readouts import (
    abundance,
    checks,
    correlation,
    differential,
    evidence,
    expression,
    labels,
    latent,
    predictive,
    vamp,
)
from countvi.estimators.state import TrainingDefaults

if TYPE_CHECKING:
    from anndata import AnnData

    from countvi.models.condscvi import CondSCVI as CondSCVIModel


class CondSCVI(Estimator["CondSCVIModel"]):
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

    # Longer, as what fewer steps leave to gain shows in the proportions of spots. At the rate of SCVI, and with its
    # shorter warm-up, the states of a type with few cells more often stay at their prior.
    defaults = TrainingDefaults(relative_length=3.0, peak=0.02, plan={"kl_warmup_fraction": 0.6}, hold_out=False)

    get_latent_representation = latent.get_latent_representation
    get_aggregated_posterior = latent.get_aggregated_posterior
    get_elbo = evidence.get_elbo
    get_reconstruction_error = evidence.get_reconstruction_error
    get_marginal_ll = evidence.get_marginal_ll
    get_normalized_expression = expression.get_normalized_expression
    get_likelihood_parameters = predictive.get_likelihood_parameters
    get_latent_library_size = predictive.get_latent_library_size
    posterior_predictive_sample = predictive.posterior_predictive_sample
    get_feature_correlation_matrix = correlation.get_feature_correlation_matrix
    differential_expression = differential.differential_expression
    differential_abundance = abundance.differential_abundance
    get_predictive_checks = checks.get_predictive_checks
    transfer_labels = labels.transfer_labels
    get_vamp_prior = vamp.get_vamp_prior
    load_query_data = classmethod(mapping.load_query_data)
    minify_adata = minified.minify_adata

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
        super().__init__(adata, self._registry_of(adata), locals(), seed)

    @classmethod
    def _parse(cls, arguments: Mapping[str, Any], registry: data_layer.Registry) -> CondSCVIOptions:
        return options.among(CondSCVIOptions, arguments)

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
        data_layer.remember(cls, adata, data_layer.setup_anndata(adata, locals(), ROLES, layer=layer))

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

    def _build(self, start: data_layer.Dataset | None) -> CondSCVIModel:
        return build_condscvi(self.options, self.registry, start)

    @property
    def roles_read(self) -> frozenset[data_layer.Role]:
        """All: types are what the model is about."""
        return data_layer.ROLES
