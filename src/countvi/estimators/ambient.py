"""The regularised model of one modality, for users: AnnData in, arrays and data frames out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from countvi import data as data_layer
from countvi import seeding
from countvi.estimators import mapping, minified, options, regularized
from countvi.estimators.base import Estimator
from countvi.estimators.build.regularized import ROLES, AmbientOptions
from countvi.estimators.readouts import (
    abundance,
    ambient,
    checks,
    correlation,
    differential,
    evidence,
    expression,
    labels,
    latent,
    predictive,
)
from countvi.estimators.regularized import set_up_keys, warn_of_encoder

if TYPE_CHECKING:
    from anndata import AnnData

    from countvi.models.regularized import Regularized  # noqa: F401 - the type of the module, below


class AmbientRegularizedSCVI(Estimator["Regularized"]):
    """scVI with ambient background, learned library size and regularised overdispersion.

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
        Dropout of the encoders.
    dispersion
        ``"gene-batch"``: one per gene and level of the dispersion key; ``"gene"``: one per gene.
    gene_likelihood
        ``"gamma_poisson"``, also called ``"nb"``; there is no other.
    use_additive_background
        Add an ambient background of each level of the ambient covariates.
    use_feature_scaling
        Multiply each gene by a factor of each level of the feature scaling covariates, or by one for all cells.
    use_batch_in_decoder
        Let the decoder see the batch besides the conditioning covariates.
    library_log_vars_weight
        Share of the variance of log totals that the prior of the log library size keeps.
    library_log_means_centering_sensitivity
        Divides the unit that expression and background are measured in: by default the counts of an average cell.
    library_n_hidden
        Units of the library encoder.
    regularise_background
        Give the background its Gamma prior.
    additive_bg_prior_alpha, additive_bg_prior_beta
        Shape and rate of that prior.
    bg_init_gene_fraction
        Share of a gene's counts that is taken for background before training.
    feature_scaling_prior_alpha, feature_scaling_prior_beta
        Shape and rate of the Gamma prior of feature factors.
    dispersion_hyper_prior_mean, dispersion_hyper_prior_alpha
        Expected 1 / sqrt(theta), and how sure that is: the rate of its exponential prior is
        Gamma(alpha, alpha * mean), Gamma(9, 3) by default.
    deeply_inject_covariates
        Give categorical covariates to every layer, not only to the first.
    use_batch_norm, use_layer_norm
        ``"encoder"``, ``"decoder"``, ``"both"`` or ``"none"``.
    dropout_on_input
        Drop features before each linear map rather than units behind it.
    log_variational
        Encode log(1 + x) rather than x.
    seed
        Of the initial weights, and of :meth:`train` where it is given none.

    Examples
    --------
    >>> import countvi
    >>> Model = countvi.AmbientRegularizedSCVI
    >>> Model.setup_anndata(adata, layer="counts", batch_key="sample")  # doctest: +SKIP
    >>> model = Model(adata, n_hidden=512, n_latent=128)  # doctest: +SKIP
    >>> model.train()  # doctest: +SKIP
    >>> adata.layers["clean"] = model.get_decontaminated_counts()  # doctest: +SKIP
    """

    has_background: ClassVar[bool] = True
    defaults = regularized.DEFAULTS
    training_defaults = property(regularized.training_defaults)

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
    get_ambient_fraction = ambient.get_ambient_fraction
    get_decontaminated_counts = ambient.get_decontaminated_counts
    get_background_profile = ambient.get_background_profile
    get_feature_scaling = ambient.get_feature_scaling
    get_inverse_dispersion = ambient.get_inverse_dispersion
    get_log_prior = ambient.get_log_prior
    train = regularized.train
    _start = regularized.start
    _build = regularized.build

    def __init__(
        self,
        adata: AnnData,
        n_hidden: int = 128,
        n_latent: int = 10,
        n_layers: int = 1,
        dropout_rate: float = 0.1,
        dispersion: Literal["gene-batch", "gene"] = "gene-batch",
        gene_likelihood: Literal["gamma_poisson", "nb"] = "gamma_poisson",
        *,
        use_additive_background: bool = True,
        use_feature_scaling: bool = True,
        use_batch_in_decoder: bool = False,
        library_log_vars_weight: float = 0.5,
        library_log_means_centering_sensitivity: float = 1.0,
        library_n_hidden: int = 16,
        regularise_background: bool = False,
        additive_bg_prior_alpha: float = 1.0,
        additive_bg_prior_beta: float = 100.0,
        bg_init_gene_fraction: float = 0.2,
        feature_scaling_prior_alpha: float = 200.0,
        feature_scaling_prior_beta: float = 200.0,
        dispersion_hyper_prior_mean: float = 1 / 3,
        dispersion_hyper_prior_alpha: float = 9.0,
        deeply_inject_covariates: bool = True,
        use_batch_norm: Literal["encoder", "decoder", "none", "both"] = "none",
        use_layer_norm: Literal["encoder", "decoder", "none", "both"] = "both",
        dropout_on_input: bool = True,
        log_variational: bool = True,
        seed: int = seeding.DEFAULT_SEED,
    ) -> None:
        super().__init__(adata, self._registry_of(adata), locals(), seed)
        data_layer.warn_of_confounding(self.get_confounding(), "get_confounding()")

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        layer: str | None = None,
        batch_key: str | None = None,
        *,
        labels_key: str | None = None,
        ambient_covariate_keys: Sequence[str] | None = None,
        nn_conditioning_covariate_keys: Sequence[str] | None = None,
        nn_continuous_covariate_keys: Sequence[str] | None = None,
        feature_scaling_covariate_keys: Sequence[str] | None = None,
        dispersion_key: str | None = None,
        library_size_key: str | None = None,
        encoder_covariate_keys: Sequence[str] | Literal[False] | None = False,
    ) -> None:
        """Say which parts of an AnnData the model reads, and which covariates serve what. Nothing is written into it.

        Parameters
        ----------
        adata
            Cells x genes.
        layer
            Layer with the raw counts; by default ``X``.
        batch_key
            Column of ``obs`` that serves as ambient, dispersion and library size key at once; not together with one of
            these three. The decoder does not see it: to integrate batches that differ in more than that, name it among
            the conditioning columns too.
        labels_key
            Column of ``obs`` with cell labels. The model does not read it; :meth:`get_confounding` compares covariates
            with it.
        ambient_covariate_keys
            Columns whose levels have a background of their own, summed over columns. By default one background serves
            all cells.
        nn_conditioning_covariate_keys
            Columns that the decoder sees, for any change of expression.
        nn_continuous_covariate_keys
            Columns with numbers, in any unit (they are standardised), which encoders and decoder see.
        feature_scaling_covariate_keys
            Columns whose levels have feature factors of their own, multiplied over columns. By default one set of
            factors serves all cells.
        dispersion_key
            Column whose levels have dispersions of their own. By default one set serves all cells.
        library_size_key
            Column whose levels have a library size prior of their own. By default one serves all cells.
        encoder_covariate_keys
            Columns that the encoders see besides counts; ``False`` for none, which keeps technical covariates out of
            the cell state.

        Raises
        ------
        UnknownNameError
            If a key does not exist, with the closest that do.
        OptionError
            If ``batch_key`` is given together with a key that it stands for.
        DataError
            If a column has missing values or cannot be used.
        """
        given = set_up_keys(locals())
        registry = data_layer.setup_anndata(adata, given, ROLES, layer=layer, typed=True)
        warn_of_encoder(registry)
        data_layer.remember(cls, adata, registry)

    @staticmethod
    def prepare_query_anndata(adata: AnnData, reference_model: AmbientRegularizedSCVI) -> AnnData:
        """Return a copy of ``adata`` with exactly the genes of a model, in its order; missing ones are zero.

        Parameters
        ----------
        adata
            Cells from elsewhere; unchanged.
        reference_model
            A model, trained or not.
        """
        return data_layer.prepare_query(adata, reference_model.registry)

    @classmethod
    def _parse(cls, arguments: Mapping[str, Any], registry: data_layer.Registry) -> AmbientOptions:
        parsed = options.among(AmbientOptions, arguments)
        parsed.check_for(registry)
        return parsed
