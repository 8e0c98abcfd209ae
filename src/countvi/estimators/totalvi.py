"""totalVI for users: AnnData or MuData with RNA and protein in, arrays and data frames out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from countvi import data as data_layer
from countvi import seeding
from countvi.batch import PROTEIN
from countvi.errors import FileFormatError, shorten
from countvi.estimators._build_totalvi import Start, TOTALVIOptions, adversary_scale, build_totalvi
from countvi.estimators._indices import Indices, resolve_rows
from countvi.estimators._passing import passes_on_to
from countvi.estimators._proteins import ProteinEstimator
from countvi.estimators._trainable import Trainable
from countvi.train import BatchAdversary
from countvi.train.config import plan_entries, with_peak

if TYPE_CHECKING:
    from typing import Self

    from anndata import AnnData
    from mudata import MuData

    from countvi.data.container import Container
    from countvi.models.totalvi import TOTALVI as TOTALVIModel

_PEAK = 0.02  # with twice that, proteins that a batch lacks are predicted worse


class TOTALVI(ProteinEstimator):
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

    module: TOTALVIModel
    _adversary_scale: float | None = 0.0

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
        options = TOTALVIOptions(
            n_latent=n_latent,
            gene_dispersion=gene_dispersion,
            protein_dispersion=protein_dispersion,
            gene_likelihood=gene_likelihood,
            latent_distribution=latent_distribution,
            empirical_protein_background_prior=empirical_protein_background_prior,
            override_missing_proteins=override_missing_proteins,
            n_hidden=n_hidden,
            n_layers_encoder=n_layers_encoder,
            n_layers_decoder=n_layers_decoder,
            dropout_rate_encoder=dropout_rate_encoder,
            dropout_rate_decoder=dropout_rate_decoder,
            use_observed_lib_size=use_observed_lib_size,
            encode_covariates=encode_covariates,
            use_batch_norm=use_batch_norm,
            use_layer_norm=use_layer_norm,
            log_variational=log_variational,
            normalize_encoder_input=normalize_encoder_input,
            protein_batch_efficiency=protein_batch_efficiency,
            activation_function_bg=activation_function_bg,
        )
        registry = self._registry_of(adata)
        if options.override_missing_proteins:
            registry = data_layer.with_unmeasured(registry, ())
        self._begin(adata, registry, options, seed, loaded=False)
        self._warn_of_unmeasured()

    def _begin(
        self, data: Container | None, registry: data_layer.Registry, options: TOTALVIOptions, seed: int, *, loaded: bool
    ) -> None:
        self._options = options
        self._loaded = loaded
        super().__init__(data, registry, dataclasses.asdict(options), seed)

    @classmethod
    def _restore(
        cls, adata: Container | None, registry: data_layer.Registry, init_args: Mapping[str, Any], seed: int
    ) -> Self:
        unknown = sorted(init_args.keys() - TOTALVIOptions.__dataclass_fields__.keys())
        if unknown:
            message = (
                f"The saved model has options that this version of countvi does not know: {shorten(unknown)}. It was "
                "changed by hand or written by a newer version; update countvi."
            )
            raise FileFormatError(message)
        model = cls.__new__(cls)
        model._begin(adata, registry, TOTALVIOptions(**init_args), seed, loaded=True)
        return model

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
            Columns of ``obs`` with further covariates.
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
        keys = data_layer.ProteinKeys(
            batch_key, panel_key, labels_key, size_factor_key, categorical_covariate_keys, continuous_covariate_keys
        )
        registry = data_layer.setup_proteins(
            adata,
            keys,
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
        keys = data_layer.ProteinKeys(
            batch_key, panel_key, labels_key, size_factor_key, categorical_covariate_keys, continuous_covariate_keys
        )
        registry = data_layer.setup_proteins_mudata(
            mdata,
            keys,
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

    def _extended_by(self, query: AnnData | MuData) -> data_layer.Registry:
        registry = super()._extended_by(query)
        if self._options.override_missing_proteins:
            return registry
        return data_layer.with_unmeasured_in_new_panels(registry, self.registry, query)

    @passes_on_to(Trainable.train)
    def train(
        self,
        max_epochs: int | None = None,
        *,
        lr: float | None = None,
        batch_size: int = 256,
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
        lr
            Peak learning rate, by default 0.02.
        batch_size
            Cells per step.
        reduce_lr_on_plateau, n_steps_kl_warmup, n_epochs_kl_warmup
            These and ``lr`` are the same as in ``plan_kwargs``, and go before it.
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
        missing = PROTEIN in self._need_data().patterns
        self._adversary_scale = adversary_scale(adversarial_classifier, self.registry.batch.n_levels, missing=missing)
        warmup = {"n_steps_kl_warmup": n_steps_kl_warmup, "n_epochs_kl_warmup": n_epochs_kl_warmup}
        plan = plan_entries(plan_kwargs, lr=lr, reduce_lr_on_plateau=reduce_lr_on_plateau, **warmup)
        super().train(max_epochs, batch_size=batch_size, plan_kwargs=with_peak(plan, _PEAK), **arguments)

    def _adversary(self) -> BatchAdversary | None:
        if self._adversary_scale == 0.0:
            return None
        return BatchAdversary(self.module.n_latent, self.registry.batch, self._adversary_scale, self.seed)

    def _build(self, dataset: data_layer.Dataset | None) -> TOTALVIModel:
        if dataset is None or self._loaded:
            return build_totalvi(self._options, self.registry, Start.unknown(self.registry))
        return build_totalvi(self._options, self.registry, Start.of(dataset, self._options, self.seed))

    @property
    def _unread_roles(self) -> frozenset[str]:
        by_label = (self._options.gene_dispersion, self._options.protein_dispersion)
        return frozenset() if {"gene-label", "protein-label"} & set(by_label) else frozenset({"labels"})

    def get_raw_proteins(
        self,
        adata: AnnData | MuData | None = None,
        indices: Indices = None,
        protein_list: Sequence[str] | None = None,
    ) -> pd.DataFrame:
        """Return protein counts as the model sees them, ``(cells, proteins)``; NaN where one was not measured.

        Parameters
        ----------
        adata, indices, protein_list
            Which cells and proteins; see :meth:`get_normalized_expression`.
        """
        dataset = self._dataset(adata)
        rows = resolve_rows(indices, dataset.obs_names)
        batch = dataset.batch(rows)
        counts, measured = batch.counts[PROTEIN].to_dense().numpy(), batch.design.measured_entries(PROTEIN)
        values = counts if measured is None else np.where(measured.numpy(), counts, np.nan)
        columns, names = self._proteins(protein_list)
        values = values if columns is None else values[:, columns]
        return pd.DataFrame(values, index=dataset.obs_names[rows], columns=names)
