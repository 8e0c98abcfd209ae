"""scVI for users: AnnData in, arrays and data frames out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from countvi import data as data_layer
from countvi import seeding
from countvi.batch import RNA
from countvi.errors import DataError, OptionError
from countvi.estimators import mapping, minified, options
from countvi.estimators.base import Estimator
from countvi.estimators.build.scvi import SCVIOptions, build_scvi
from countvi.estimators.build.shared import BESIDE_BATCH, LibraryMoments
from countvi.estimators.names import Indices
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
)
from countvi.estimators.state import TrainingDefaults

if TYPE_CHECKING:
    from anndata import AnnData

    from countvi.models.scvi import SCVI as SCVIModel


class SCVI(Estimator["SCVIModel"]):
    """Single-cell variational inference (Lopez et al. 2018).

    Parameters
    ----------
    adata
        Data on which :meth:`setup_anndata` was called.
    n_hidden
        Units per hidden layer.
    n_latent
        Dimensions of the cell state.
    n_layers
        Hidden layers of encoder and decoder.
    dropout_rate
        Dropout of the encoder.
    dispersion
        ``"gene"``: one per gene; ``"gene-batch"``, ``"gene-label"``: one per gene and batch or label; ``"gene-cell"``:
        decoded.
    gene_likelihood
        ``"zinb"``, ``"nb"``, ``"poisson"``, or ``"normal"`` for values that are not counts.
    use_observed_lib_size
        The library size is the total count (default), or inferred. A size factor key overrides both.
    latent_distribution
        ``"normal"``, or ``"ln"``: a logistic normal, whose states lie on the simplex.
    encode_covariates
        Let the encoder see the covariates too.
    deeply_inject_covariates
        Give categorical covariates to every layer, not only to the first.
    use_batch_norm, use_layer_norm
        ``"encoder"``, ``"decoder"``, ``"both"`` or ``"none"``.
    batch_representation
        ``"one-hot"``, or ``"embedding"``: five learned numbers per batch.
    log_variational
        Encode log(1 + x) rather than x.
    seed
        Of the initial weights, and of :meth:`train` where it is given none.

    Examples
    --------
    >>> import countvi
    >>> countvi.SCVI.setup_anndata(adata, layer="counts", batch_key="batch")  # doctest: +SKIP
    >>> model = countvi.SCVI(adata)  # doctest: +SKIP
    >>> model.train()  # doctest: +SKIP
    >>> adata.obsm["X_scVI"] = model.get_latent_representation()  # doctest: +SKIP

    References
    ----------
    Lopez, Regier, Cole, Jordan, Yosef. Deep generative modeling for single-cell transcriptomics. Nature Methods 15,
    1053-1058 (2018).
    """

    defaults = TrainingDefaults(relative_length=1.5)  # with fewer steps, batches stay further apart

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
    load_query_data = classmethod(mapping.load_query_data)
    minify_adata = minified.minify_adata

    def __init__(
        self,
        adata: AnnData,
        n_hidden: int = 128,
        n_latent: int = 10,
        n_layers: int = 1,
        dropout_rate: float = 0.1,
        dispersion: Literal["gene", "gene-batch", "gene-label", "gene-cell"] = "gene",
        gene_likelihood: Literal["zinb", "nb", "poisson", "normal"] = "zinb",
        use_observed_lib_size: bool = True,
        latent_distribution: Literal["normal", "ln"] = "normal",
        *,
        encode_covariates: bool = False,
        deeply_inject_covariates: bool = True,
        use_batch_norm: Literal["encoder", "decoder", "none", "both"] = "both",
        use_layer_norm: Literal["encoder", "decoder", "none", "both"] = "none",
        batch_representation: Literal["one-hot", "embedding"] = "one-hot",
        log_variational: bool = True,
        seed: int = seeding.DEFAULT_SEED,
    ) -> None:
        super().__init__(adata, self._registry_of(adata), locals(), seed)

    @classmethod
    def _parse(cls, arguments: Mapping[str, Any], registry: data_layer.Registry) -> SCVIOptions:
        return options.among(SCVIOptions, arguments)

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        layer: str | None = None,
        batch_key: str | None = None,
        labels_key: str | None = None,
        size_factor_key: str | None = None,
        categorical_covariate_keys: Sequence[str] | None = None,
        continuous_covariate_keys: Sequence[str] | None = None,
    ) -> None:
        """Say which parts of an AnnData the model reads. Nothing is written into ``adata``.

        Parameters
        ----------
        adata
            Cells x genes.
        layer
            Layer with the raw counts; by default ``X``.
        batch_key
            Column of ``obs`` with the batch.
        labels_key
            Column of ``obs`` with cell labels; used by ``dispersion="gene-label"``.
        size_factor_key
            Column of ``obs`` with size factors, which replace the library size. The decoder then is a softplus and
            expected frequencies need not sum to one.
        categorical_covariate_keys, continuous_covariate_keys
            Columns of ``obs`` with further covariates, which the decoder sees (the encoder too with
            ``encode_covariates``). Continuous ones are in any unit: they are standardised.

        Raises
        ------
        UnknownNameError
            If a key does not exist, with the closest that do.
        DataError
            If a column has missing values or cannot be used.
        """
        data_layer.remember(cls, adata, data_layer.setup_anndata(adata, locals(), BESIDE_BATCH, layer=layer))

    @staticmethod
    def prepare_query_anndata(adata: AnnData, reference_model: SCVI) -> AnnData:
        """Return a copy of ``adata`` with exactly the genes of a model, in its order; missing ones are zero.

        Parameters
        ----------
        adata
            Cells from elsewhere; unchanged.
        reference_model
            A model, trained or not.
        """
        return data_layer.prepare_query(adata, reference_model.registry)

    def get_batch_representation(
        self, adata: AnnData | None = None, indices: Indices = None, *, batch_size: int | None = None
    ) -> np.ndarray:
        """Return the learned vector of each cell's batch, shape ``(cells, 5)``.

        Parameters
        ----------
        adata, indices, batch_size
            Which cells; see :meth:`get_latent_representation`.

        Raises
        ------
        OptionError
            If the model represents batches by one-hot columns.
        """
        table = self.module.covariates.embedding
        if table is None:
            message = "This model has no batch embedding. Build it with batch_representation='embedding'."
            raise OptionError(message)
        codes = self.view(adata, indices, batch_size).codes[:, self.registry.batch.column]
        return table.weight.detach().cpu()[codes].numpy()

    def _start(self, dataset: data_layer.Dataset, context: Any) -> LibraryMoments | None:
        if self.options.use_observed_lib_size:
            return None
        return LibraryMoments.of(dataset)

    def _build(self, start: LibraryMoments | None) -> SCVIModel:
        moments = LibraryMoments.unknown(self.registry.batch.n_levels) if start is None else start
        return build_scvi(self.options, self.registry, moments)

    @property
    def _takes_negative(self) -> bool:
        return self.options.gene_likelihood == "normal" and not self.options.log_variational

    @property
    def _takes_fractions(self) -> bool:
        return self.options.gene_likelihood == "normal"

    @property
    def roles_read(self) -> frozenset[data_layer.Role]:
        """Those of all covariates, labels only where they have dispersions of their own."""
        return data_layer.ROLES if self.options.dispersion == "gene-label" else super().roles_read

    def _check_counts(self, dataset: data_layer.Dataset) -> None:
        assert self.adata is not None
        normal = self.options.gene_likelihood == "normal"
        summary = dataset.summary(RNA)
        data_layer.check_counts(
            summary, self.adata, self.registry.modality(RNA), allow_negative=normal, allow_fractional=normal
        )
        if summary.n_negative and self.options.log_variational:
            message = (
                f"{summary.n_negative:,} values are negative, and log(1 + x) of a negative value need not exist. "
                "Pass log_variational=False."
            )
            raise OptionError(message)
        observed = self.registry.size_factor_key is None
        if observed and bool((summary.cell_totals < 0).any()):
            n_negative = int((summary.cell_totals < 0).sum())
            message = (
                f"{n_negative:,} cells have a negative total, which cannot be a library size. Set up with "
                "size_factor_key (a column of ones, say)."
            )
            raise DataError(message)
