"""totalVI for users: AnnData or MuData with RNA and protein in, arrays and data frames out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from countvi import data as data_layer
from countvi import seeding
from countvi.batch import PROTEIN
from countvi.errors import DataWarning, shorten, warn
from countvi.estimators import mapping, minified, options, training
from countvi.estimators.base import Estimator
from countvi.estimators.build.totalvi import ROLES, TOTALVIOptions, TOTALVIStart, adversary_scale, build_totalvi
from countvi.estimators.readouts import (
    abundance,
    checks,
    evidence,
    labels,
    latent,
    predictive,
    proteins,
    rna_and_protein,
)
from countvi.estimators.signatures import passes_on_to
from countvi.estimators.state import TrainingDefaults
from countvi.train import BatchAdversary
from countvi.train.config import plan_entries

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

    from countvi.data.container import Container
    from countvi.models.totalvi import TOTALVI as TOTALVIModel


class TOTALVI(Estimator["TOTALVIModel"]):
    """Total variational inference: RNA and protein of the same cells (Gayoso, Steier et al. 2021).

    Parameters
    ----------
    adata
        AnnData on which :meth:`setup_anndata` was called, or MuData on which :meth:`setup_mudata` was.
    n_latent
        Dimensions of the cell state.
    gene_dispersion
        ``"gene"``: one per gene; ``"gene-batch"``, ``"gene-label"``: one per gene and batch or label; ``"gene-cell"``:
        decoded.
    protein_dispersion
        ``"protein"``, ``"protein-batch"`` or ``"protein-label"``.
    gene_likelihood
        ``"nb"`` or ``"zinb"``.
    latent_distribution
        ``"normal"``, or ``"ln"``: a logistic normal, whose states lie on the simplex.
    empirical_protein_background_prior
        Start the prior of the background, too, from a mixture of two normals fitted to the counts of each protein in
        each panel (batch, without panels), as by default. Otherwise it starts at 3 and 1 for all proteins.
    override_missing_proteins
        Take proteins without any count in a panel for zeros, rather than as not measured there.
    n_hidden
        Units per hidden layer.
    n_layers_encoder, n_layers_decoder
        Hidden layers.
    dropout_rate_encoder, dropout_rate_decoder
        Dropout.
    use_observed_lib_size
        The library size of the RNA is the total count (default), or inferred. A size factor key overrides both.
    encode_covariates
        Let the encoders see the covariates too.
    use_batch_norm, use_layer_norm
        ``"encoder"``, ``"decoder"``, ``"both"`` or ``"none"``.
    log_variational
        Encode log(1 + x) rather than x.
    normalize_encoder_input
        Divide the counts that the encoders see by one plus their mean over the genes, or the proteins, of the cell.
    protein_batch_efficiency
        Multiply the counts expected of a protein by a factor of its batch, learned with a log-normal prior.
    activation_function_bg
        How the standard deviation of the log background becomes positive: ``"softplus"`` or ``"exp"``.
    seed
        Of the initial weights, and of :meth:`train` where it is given none.

    Examples
    --------
    >>> import countvi
    >>> countvi.TOTALVI.setup_anndata(adata, "protein_expression", batch_key="batch")  # doctest: +SKIP
    >>> model = countvi.TOTALVI(adata)  # doctest: +SKIP
    >>> model.train()  # doctest: +SKIP
    >>> adata.obsm["X_totalVI"] = model.get_latent_representation()  # doctest: +SKIP
    >>> rna, protein = model.get_normalized_expression(n_samples=10)  # doctest: +SKIP

    References
    ----------
    Gayoso, Steier, Lopez, Regier, Nazor, Streets, Yosef. Joint probabilistic modeling of single-cell multi-omic data
    with totalVI. Nature Methods 18, 272-282 (2021).
    """

    # At twice the rate, proteins that a batch lacks are predicted worse.
    defaults = TrainingDefaults(batch_size=256, peak=0.02)

    get_latent_representation = latent.get_latent_representation
    get_aggregated_posterior = latent.get_aggregated_posterior
    get_elbo = evidence.get_elbo
    get_reconstruction_error = evidence.get_reconstruction_error
    get_marginal_ll = evidence.get_marginal_ll
    get_normalized_expression = proteins.get_normalized_expression
    get_protein_foreground_probability = proteins.get_protein_foreground_probability
    get_protein_background_mean = proteins.get_protein_background_mean
    get_raw_proteins = proteins.get_raw_proteins
    get_likelihood_parameters = rna_and_protein.get_likelihood_parameters
    get_latent_library_size = predictive.get_latent_library_size
    posterior_predictive_sample = rna_and_protein.posterior_predictive_sample
    get_feature_correlation_matrix = rna_and_protein.get_feature_correlation_matrix
    differential_expression = rna_and_protein.differential_expression
    differential_abundance = abundance.differential_abundance
    get_predictive_checks = checks.get_predictive_checks
    transfer_labels = labels.transfer_labels
    load_query_data = classmethod(mapping.load_query_data)
    minify_adata = minified.minify_adata

    def __init__(
        self,
        adata: AnnData | MuData,
        n_latent: int = 20,
        gene_dispersion: Literal["gene", "gene-batch", "gene-label", "gene-cell"] = "gene",
        protein_dispersion: Literal["protein", "protein-batch", "protein-label"] = "protein",
        gene_likelihood: Literal["nb", "zinb"] = "nb",
        latent_distribution: Literal["normal", "ln"] = "normal",
        empirical_protein_background_prior: bool | None = None,
        override_missing_proteins: bool = False,
        *,
        n_hidden: int = 256,
        n_layers_encoder: int = 2,
        n_layers_decoder: int = 1,
        dropout_rate_encoder: float = 0.2,
        dropout_rate_decoder: float = 0.2,
        use_observed_lib_size: bool = True,
        encode_covariates: bool = True,
        use_batch_norm: Literal["encoder", "decoder", "none", "both"] = "both",
        use_layer_norm: Literal["encoder", "decoder", "none", "both"] = "none",
        log_variational: bool = True,
        normalize_encoder_input: bool = True,
        protein_batch_efficiency: bool = False,
        activation_function_bg: Literal["softplus", "exp"] = "softplus",
        seed: int = seeding.DEFAULT_SEED,
    ) -> None:
        super().__init__(adata, self._registry_with(adata, override_missing_proteins), locals(), seed)
        self._warn_of_unmeasured()

    @classmethod
    def _registry_with(cls, adata: Container, override_missing_proteins: bool) -> data_layer.Registry:
        registry = cls._registry_of(adata)
        return data_layer.with_unmeasured(registry, ()) if override_missing_proteins else registry

    @classmethod
    def _parse(cls, arguments: Mapping[str, Any], registry: data_layer.Registry) -> TOTALVIOptions:
        return options.among(TOTALVIOptions, arguments)

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        protein_expression_obsm_key: str,
        protein_names_uns_key: str | None = None,
        batch_key: str | None = None,
        panel_key: str | None = None,
        layer: str | None = None,
        size_factor_key: str | None = None,
        categorical_covariate_keys: Sequence[str] | None = None,
        continuous_covariate_keys: Sequence[str] | None = None,
        *,
        labels_key: str | None = None,
        protein_mask_obsm_key: str | None = None,
    ) -> None:
        """Say which parts of an AnnData the model reads. Nothing is written into ``adata``.

        Parameters
        ----------
        adata
            Cells x genes.
        protein_expression_obsm_key
            Entry of ``obsm`` with raw protein counts: a data frame, an array or a sparse matrix. NaN stands for what
            was not measured.
        protein_names_uns_key
            Entry of ``uns`` with the names of the proteins; by default the columns of the data frame, or numbers.
        batch_key
            Column of ``obs`` with the batch.
        panel_key
            Column of ``obs`` with the antibody panel, where it is not that of the batch: what was measured, and the
            prior of the background, are those of the panel.
        layer
            Layer with the raw RNA counts; by default ``X``.
        size_factor_key
            Column of ``obs`` with size factors, which replace the library size of the RNA.
        categorical_covariate_keys, continuous_covariate_keys
            Columns of ``obs`` with further covariates. Continuous ones are in any unit: they are standardised.
        labels_key
            Column of ``obs`` with cell labels; used by ``gene_dispersion="gene-label"`` and ``"protein-label"``.
        protein_mask_obsm_key
            Entry of ``obsm`` that is true where a protein was measured in a cell. Without a mask and without NaN, a
            protein that has counts, but none in a panel, counts as not measured there.

        Raises
        ------
        UnknownNameError
            If a key does not exist, with the closest that do.
        DataError
            If a column has missing values or cannot be used.
        """
        given = locals()
        registry = data_layer.setup_proteins(
            adata,
            given,
            ROLES,
            protein_expression_obsm_key=protein_expression_obsm_key,
            protein_names_uns_key=protein_names_uns_key,
            protein_mask_obsm_key=protein_mask_obsm_key,
            layer=layer,
        )
        data_layer.remember(cls, adata, registry)

    @classmethod
    def setup_mudata(
        cls,
        mdata: MuData,
        rna_layer: str | None = None,
        protein_layer: str | None = None,
        batch_key: str | None = None,
        panel_key: str | None = None,
        size_factor_key: str | None = None,
        categorical_covariate_keys: Sequence[str] | None = None,
        continuous_covariate_keys: Sequence[str] | None = None,
        modalities: Mapping[str, str | None] | None = None,
        *,
        labels_key: str | None = None,
        protein_mask_layer: str | None = None,
    ) -> None:
        """Say which parts of a MuData the model reads. Nothing is written into ``mdata``.

        Parameters
        ----------
        mdata
            With a modality of RNA, which every cell has, and one of protein. A cell that is not in the latter has no
            proteins measured.
        rna_layer, protein_layer
            Layers with the raw counts; by default ``X``. NaN stands for a protein that was not measured.
        modalities
            Which modality an argument is about, by its name: ``{"rna_layer": "rna", "protein_layer": "prot",
            "batch_key": "rna"}``. By default RNA and protein are told by their features and names, and columns are
            looked for in ``mdata.obs`` and then in all modalities.
        protein_mask_layer
            Layer of the proteins that is true where one was measured in a cell.
        batch_key, panel_key, labels_key, size_factor_key, categorical_covariate_keys, continuous_covariate_keys
            See :meth:`setup_anndata`.
        """
        given = locals()
        registry = data_layer.setup_proteins_mudata(
            mdata,
            given,
            ROLES,
            rna_layer=rna_layer,
            protein_layer=protein_layer,
            protein_mask_layer=protein_mask_layer,
            modalities=modalities,
        )
        data_layer.remember(cls, mdata, registry)

    @staticmethod
    def prepare_query_anndata(adata: AnnData, reference_model: TOTALVI) -> AnnData:
        """Return a copy of ``adata`` with exactly the genes of a model, in its order; missing ones are zero.

        Parameters
        ----------
        adata
            Cells from elsewhere; unchanged. Proteins that it lacks stay missing.
        reference_model
            A model, trained or not.
        """
        return data_layer.prepare_query(adata, reference_model.registry)

    @staticmethod
    def prepare_query_mudata(mdata: MuData, reference_model: TOTALVI) -> MuData:
        """Return a copy of ``mdata`` with exactly the features of a model, in its order.

        Parameters
        ----------
        mdata
            Cells from elsewhere; unchanged. Proteins that it lacks count as not measured, genes as zero.
        reference_model
            A model, trained or not.
        """
        return data_layer.prepare_query_mudata(mdata, reference_model.registry)

    def extended_registry(self, adata: Container) -> data_layer.Registry:
        """Return what this model was set up with, and the categories and panels of a query besides.

        Parameters
        ----------
        adata
            The query.
        """
        registry = super().extended_registry(adata)
        if self.options.override_missing_proteins:
            return registry
        return data_layer.with_unmeasured_in_new_panels(registry, self.registry, adata)

    @passes_on_to(training.train)
    def train(
        self,
        max_epochs: int | None = None,
        *,
        reduce_lr_on_plateau: bool | None = None,
        n_steps_kl_warmup: int | None = None,
        n_epochs_kl_warmup: int | None = None,
        adversarial_classifier: bool | float | None = None,
        plan_kwargs: Mapping[str, Any] | None = None,
        **arguments: Any,
    ) -> None:
        """Fit the model.

        Parameters
        ----------
        max_epochs
            Passes over the training cells; by default fewer the more cells there are: 90 for 2,000, 9 for a million
            (:func:`countvi.train.default_max_epochs`).
        reduce_lr_on_plateau, n_steps_kl_warmup, n_epochs_kl_warmup
            The same as in ``plan_kwargs``, and go before it.
        adversarial_classifier
            Train a classifier of the batch beside the model, which learns cell states that do not tell it. ``True``
            weights it by one minus the KL weight, a number by that. By default where proteins are missing and there is
            more than one batch.
        plan_kwargs, arguments
            As of :meth:`countvi.SCVI.train`, and so are all other arguments. The KL warm-up,
            ``plan_kwargs["kl_warmup_fraction"]`` of the steps, is that of the model's own steps.

        Raises
        ------
        OptionError
            If a classifier is asked for and there is one batch only, or another argument is outside what it may be.
        """
        warmup = {"n_steps_kl_warmup": n_steps_kl_warmup, "n_epochs_kl_warmup": n_epochs_kl_warmup}
        plan = plan_entries(plan_kwargs, reduce_lr_on_plateau=reduce_lr_on_plateau, **warmup)
        request = training.requested(self, max_epochs, plan_kwargs=plan, **arguments)
        training.run(self, dataclasses.replace(request, adversary=self.adversary(adversarial_classifier)))

    def adversary(self, asked: bool | float | None = None) -> BatchAdversary | None:
        """Return the classifier of the batch that :meth:`train` trains beside the model, if any.

        Parameters
        ----------
        asked
            The argument ``adversarial_classifier``.
        """
        batch = self.registry.batch
        scale = adversary_scale(asked, batch.n_levels, missing=PROTEIN in self.dataset.patterns)
        return None if scale == 0.0 else BatchAdversary(self.module.n_latent, batch, scale, self.seed)

    def _start(self, dataset: data_layer.Dataset, context: Any) -> TOTALVIStart:
        return TOTALVIStart.of(dataset, self.options, self.seed)

    def _build(self, start: TOTALVIStart | None) -> TOTALVIModel:
        return build_totalvi(
            self.options, self.registry, TOTALVIStart.unknown(self.registry) if start is None else start
        )

    @property
    def roles_read(self) -> frozenset[data_layer.Role]:
        """Those of all covariates, labels only where they have dispersions of their own."""
        by_label = {self.options.gene_dispersion, self.options.protein_dispersion} & {"gene-label", "protein-label"}
        return data_layer.ROLES if by_label else super().roles_read

    def _warn_of_unmeasured(self) -> None:
        """Say which proteins were taken as not measured because they have no counts in a panel."""
        protein = self.registry.modality(PROTEIN)
        assert protein.gaps is not None
        column, panel = protein.gaps.column, self.registry.covariates.name(protein.gaps.column)
        for category, features in zip(self.registry.columns[column].categories, protein.gaps.unmeasured, strict=False):
            if features:
                names = [protein.feature_names[i] for i in features]
                message = (
                    f"{len(names):,} of {protein.n_features:,} proteins have no counts in {panel} {category!r} "
                    f"and are taken as not measured there: {shorten(names)}. If these are true zeros, pass "
                    "override_missing_proteins=True; NaN, or a mask, says what was not measured without guessing."
                )
                warn(message, DataWarning)
