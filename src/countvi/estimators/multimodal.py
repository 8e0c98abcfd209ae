"""The regularised model of several modalities, for users: MuData in, arrays and data frames out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from countvi import data as data_layer
from countvi import query, seeding
from countvi.errors import OptionError
from countvi.estimators import mapping, minified, options, regularized
from countvi.estimators.base import Estimator
from countvi.estimators.build.regularized import ROLES, MultimodalOptions
from countvi.estimators.names import Indices
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
from countvi.nn.joint import Concatenated

if TYPE_CHECKING:
    from mudata import MuData

    from countvi.models.regularized import Regularized  # noqa: F401 - the type of the module, below


Whole = int | Mapping[str, int]
"""A whole number for all modalities, or one for each by name."""
Real = float | Mapping[str, float]
"""A number for all modalities, or one for each by name."""


class RegularizedMultimodalVI(Estimator["Regularized"]):
    """One cell state from several modalities, each with background, feature factors, library size and dispersions.

    Arguments that are numbers can be given once for all modalities, or as a dictionary that names each. A cell need not
    have all modalities: one that was not measured takes no part in anything.

    Parameters
    ----------
    mdata
        Data on which :meth:`setup_mudata` was called.
    n_hidden
        Units per hidden layer. By default 128; of peaks one for each three counts of a peak, on average, between 16 and
        128: larger networks learn very sparse cells by heart.
    n_latent
        Dimensions of the cell state: of each modality's slice with ``latent_mode="concatenation"``, otherwise of the
        whole.
    n_layers
        Hidden layers of encoders and decoders.
    dropout_rate
        Dropout of the encoders.
    latent_mode
        ``"concatenation"``: each modality determines a slice of the cell state, and every decoder sees all;
        ``"weighted_mean"``: modalities are averaged into one state; ``"single_encoder"``: one encoder sees all counts.
    modality_weights
        Weights of a weighted mean: ``"equal"``, ``"universal"`` (learned, the same in all cells) or ``"cell"``
        (learned, from the cell's modalities).
    additive_background_modalities
        Modalities with an ambient background; by default those of gene expression.
    feature_scaling_modalities
        Modalities with feature factors; by default those of peaks.
    dispersion, gene_likelihood, use_batch_in_decoder, regularise_background, deeply_inject_covariates
        See :class:`countvi.AmbientRegularizedSCVI`.
    library_log_vars_weight, library_log_means_centering_sensitivity, library_n_hidden, bg_init_gene_fraction
        See :class:`countvi.AmbientRegularizedSCVI`.
    additive_bg_prior_alpha, additive_bg_prior_beta, feature_scaling_prior_alpha, feature_scaling_prior_beta
        See :class:`countvi.AmbientRegularizedSCVI`.
    dispersion_hyper_prior_mean, dispersion_hyper_prior_alpha, use_batch_norm, use_layer_norm, dropout_on_input
        See :class:`countvi.AmbientRegularizedSCVI`.
    log_variational
        Encode log(1 + x) rather than x.
    seed
        Of the initial weights, and of :meth:`train` where it is given none.

    Examples
    --------
    >>> import countvi
    >>> Model = countvi.RegularizedMultimodalVI
    >>> Model.setup_mudata(mdata, batch_key="sample")  # doctest: +SKIP
    >>> model = Model(mdata, n_latent={"rna": 96, "atac": 32})  # doctest: +SKIP
    >>> model.train()  # doctest: +SKIP
    >>> mdata.obsm["X_joint"] = model.get_latent_representation()  # doctest: +SKIP
    """

    several_modalities: ClassVar[bool] = True
    set_up_by: ClassVar[str] = "setup_mudata"

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
        mdata: MuData,
        n_hidden: Whole | None = None,
        n_latent: Whole = 10,
        n_layers: Whole = 1,
        dropout_rate: Real = 0.1,
        latent_mode: Literal["concatenation", "weighted_mean", "single_encoder"] = "concatenation",
        modality_weights: Literal["equal", "universal", "cell"] = "equal",
        *,
        additive_background_modalities: Sequence[str] | None = None,
        feature_scaling_modalities: Sequence[str] | None = None,
        dispersion: Literal["gene-batch", "gene"] = "gene-batch",
        gene_likelihood: Literal["gamma_poisson", "nb"] = "gamma_poisson",
        use_batch_in_decoder: bool = False,
        library_log_vars_weight: Real = 0.5,
        library_log_means_centering_sensitivity: Real = 1.0,
        library_n_hidden: Whole = 16,
        regularise_background: bool = False,
        additive_bg_prior_alpha: Real = 1.0,
        additive_bg_prior_beta: Real = 100.0,
        bg_init_gene_fraction: Real = 0.2,
        feature_scaling_prior_alpha: Real = 200.0,
        feature_scaling_prior_beta: Real = 200.0,
        dispersion_hyper_prior_mean: Real = 1 / 3,
        dispersion_hyper_prior_alpha: Real = 9.0,
        deeply_inject_covariates: bool = True,
        use_batch_norm: Literal["encoder", "decoder", "none", "both"] = "none",
        use_layer_norm: Literal["encoder", "decoder", "none", "both"] = "both",
        dropout_on_input: bool = True,
        log_variational: bool = True,
        seed: int = seeding.DEFAULT_SEED,
    ) -> None:
        super().__init__(mdata, self._registry_of(mdata), locals(), seed)
        data_layer.warn_of_confounding(self.get_confounding(), "get_confounding()")

    @classmethod
    def setup_mudata(
        cls,
        mdata: MuData,
        modalities: Sequence[str] | Mapping[str, str] | None = None,
        layer: str | Mapping[str, str | None] | None = None,
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
        """Say which parts of a MuData the model reads, and which covariates serve what. Nothing is written into it.

        Columns are looked for in ``mdata.obs`` first; if one is not there, those of the modalities are put together.

        Parameters
        ----------
        mdata
            Modalities that share cells. One that lacks a cell was not measured in it.
        modalities
            Modalities to use; a dictionary gives them other names, ``{name: modality}``; by default all.
        layer
            Layer with the raw counts in every modality, or ``{name: layer}``; by default ``X``.
        feature_scaling_covariate_keys
            Columns whose levels have feature factors of their own. By default the conditioning covariates; ``[]`` for
            one set of factors for all cells.
        batch_key, labels_key, ambient_covariate_keys, nn_conditioning_covariate_keys, nn_continuous_covariate_keys
            See :meth:`countvi.AmbientRegularizedSCVI.setup_anndata`.
        dispersion_key, library_size_key, encoder_covariate_keys
            See :meth:`countvi.AmbientRegularizedSCVI.setup_anndata`.

        Raises
        ------
        UnknownNameError
            If a modality or a key does not exist, with the closest that do.
        OptionError
            If ``batch_key`` is given together with a key that it stands for.
        DataError
            If a column has missing values, cannot be used, or differs between modalities.
        """
        given = set_up_keys(locals())
        roles: data_layer.RolesOf = ROLES
        if feature_scaling_covariate_keys is None:
            roles = {**ROLES, "nn_conditioning_covariate_keys": ("conditioning", "scaling")}
        registry = data_layer.setup_mudata(mdata, given, roles, modalities=modalities, layer=layer)
        warn_of_encoder(registry)
        data_layer.remember(cls, mdata, registry)

    @staticmethod
    def prepare_query_mudata(mdata: MuData, reference_model: RegularizedMultimodalVI) -> MuData:
        """Return a copy of ``mdata`` with exactly the features of a model, in its order; missing ones are zero.

        Parameters
        ----------
        mdata
            Cells from elsewhere; unchanged. Modalities that it lacks stay missing.
        reference_model
            A model, trained or not.
        """
        return data_layer.prepare_query_mudata(mdata, reference_model.registry)

    def get_modality_latents(
        self, adata: MuData | None = None, indices: Indices = None, *, batch_size: int | None = None
    ) -> dict[str, np.ndarray]:
        """Return what each modality alone says about the cell state.

        Parameters
        ----------
        adata, indices, batch_size
            Which cells; see :meth:`get_latent_representation`.

        Returns
        -------
        dict
            By modality, ``(cells, dimensions)``: its slice of a concatenated state, or what enters a weighted mean. NaN
            in cells without the modality.

        Raises
        ------
        OptionError
            If one encoder sees all modalities.
        """
        if self.options.latent_mode == "single_encoder":
            message = "latent_mode='single_encoder' has no states of single modalities: one encoder sees all counts."
            raise OptionError(message)
        return query.modality_latents(self.module, self.view(adata, indices, batch_size).cells)

    def get_modality_attribution(
        self,
        adata: MuData | None = None,
        indices: Indices = None,
        *,
        relative: bool = False,
        batch_size: int | None = None,
    ) -> dict[str, dict[str, np.ndarray]]:
        """Return how much each decoder uses each dimension of the cell state: mean absolute slopes.

        Parameters
        ----------
        adata, indices, batch_size
            Which cells; see :meth:`get_latent_representation`.
        relative
            Share of the expected counts that one unit of z moves, which can be compared between modalities and depths;
            otherwise the mean over features of the slopes of expected counts.

        Returns
        -------
        dict
            By modality: ``"attribution"``, ``(cells, n_latent)``, and ``"weighted_z"``, its product with the state.
        """
        cells = self.view(adata, indices, batch_size).cells
        states = query.latent_states(self.module, cells)
        found = query.modality_attribution(self.module, cells, relative=relative)
        return {name: {"attribution": values, "weighted_z": values * states} for name, values in found.items()}

    @property
    def modality_slices(self) -> dict[str, slice]:
        """Dimensions of the cell state that belong to each modality; empty where they share all."""
        encoder = self.module.encode_z
        return encoder.slices() if isinstance(encoder, Concatenated) else {}

    @classmethod
    def _parse(cls, arguments: Mapping[str, Any], registry: data_layer.Registry) -> MultimodalOptions:
        parsed = options.among(MultimodalOptions, arguments)
        parsed.check_for(registry)
        return parsed
