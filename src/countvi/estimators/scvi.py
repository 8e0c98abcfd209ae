"""scVI for users: AnnData in, arrays and data frames out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from countvi import data as data_layer
from countvi import seeding
from countvi.batch import RNA
from countvi.errors import DataError, OptionError
from countvi.estimators._build import LibraryMoments, SCVIOptions, build_scvi
from countvi.estimators._indices import Indices
from countvi.estimators._options import known_options
from countvi.estimators._rna import RNAEstimator
from countvi.nn.library import library_moments

if TYPE_CHECKING:
    from typing import Self

    from anndata import AnnData

    from countvi.models.scvi import SCVI as SCVIModel

# Steps as a multiple of what the number of cells asks for: with fewer, batches stay further apart.
_LENGTH = 1.5


class SCVI(RNAEstimator):
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

    module: SCVIModel

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
        options = SCVIOptions(
            n_hidden=n_hidden,
            n_latent=n_latent,
            n_layers=n_layers,
            dropout_rate=dropout_rate,
            dispersion=dispersion,
            gene_likelihood=gene_likelihood,
            use_observed_lib_size=use_observed_lib_size,
            latent_distribution=latent_distribution,
            encode_covariates=encode_covariates,
            deeply_inject_covariates=deeply_inject_covariates,
            use_batch_norm=use_batch_norm,
            use_layer_norm=use_layer_norm,
            batch_representation=batch_representation,
            log_variational=log_variational,
        )
        self._start(adata, self._registry_of(adata), options, seed)

    def _start(self, adata: AnnData | None, registry: data_layer.Registry, options: SCVIOptions, seed: int) -> None:
        self._options = options
        super().__init__(adata, registry, dataclasses.asdict(options), seed)

    @classmethod
    def _restore(
        cls, adata: AnnData | None, registry: data_layer.Registry, init_args: Mapping[str, Any], seed: int
    ) -> Self:
        model = cls.__new__(cls)
        model._start(adata, registry, SCVIOptions(**known_options(init_args, SCVIOptions)), seed)
        return model

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
            ``encode_covariates``).

        Raises
        ------
        UnknownNameError
            If a key does not exist, with the closest that do.
        DataError
            If a column has missing values or cannot be used.
        """
        registry = data_layer.setup_anndata(
            adata,
            layer=layer,
            batch_key=batch_key,
            labels_key=labels_key,
            size_factor_key=size_factor_key,
            categorical_covariate_keys=categorical_covariate_keys,
            continuous_covariate_keys=continuous_covariate_keys,
        )
        data_layer.remember(cls, adata, registry)

    def _relative_length(self) -> float:
        return _LENGTH

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
        cells = self._cells(adata, indices, batch_size)
        codes = self._dataset(adata).codes[cells.rows, self.registry.batch.column]
        return table.weight.detach().cpu()[codes].numpy()

    def _build(self, dataset: data_layer.Dataset | None) -> SCVIModel:
        n_batches = self.registry.batch.n_levels
        moments = LibraryMoments.unknown(n_batches)
        if dataset is not None and not self._options.use_observed_lib_size:
            totals = torch.from_numpy(dataset.summary(RNA).cell_totals)
            moments = LibraryMoments(*library_moments(totals, dataset.codes[:, self.registry.batch.column], n_batches))
        return build_scvi(self._options, self.registry, moments)

    @property
    def _takes_negative(self) -> bool:
        return self._options.gene_likelihood == "normal" and not self._options.log_variational

    @property
    def _unread_roles(self) -> frozenset[str]:
        return frozenset() if self._options.dispersion == "gene-label" else frozenset({"labels"})

    def _check_counts(self, dataset: data_layer.Dataset) -> None:
        assert self.adata is not None
        normal = self._options.gene_likelihood == "normal"
        summary = dataset.summary(RNA)
        data_layer.check_counts(
            summary, self.adata, self.registry.modality(RNA), allow_negative=normal, allow_fractional=normal
        )
        if summary.n_negative and self._options.log_variational:
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
                "size_factor_key "
                "(a column of ones, say)."
            )
            raise DataError(message)
