"""The spatial model of DestVI for users: a slide and a single-cell reference in, data frames out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from countvi import data as data_layer
from countvi import seeding
from countvi.batch import RNA
from countvi.errors import OptionError
from countvi.estimators import options, training
from countvi.estimators.base import Estimator
from countvi.estimators.build.destvi import DestVIOptions, Reference, SpotStart, build_destvi, empty_reference
from countvi.estimators.build.spots_start import (
    Teaching,
    given_abundances,
    match_genes,
    reference_of,
    start_of,
    teach_abundances,
)
from countvi.estimators.readouts import evidence, spot_analysis, spots
from countvi.estimators.signatures import passes_on_to
from countvi.estimators.splits import settle_split
from countvi.estimators.state import TrainingDefaults
from countvi.train.config import plan_entries

if TYPE_CHECKING:
    from typing import Self

    from anndata import AnnData
    from torch import Tensor

    from countvi.estimators.condscvi import CondSCVI
    from countvi.models.destvi import DestVI as DestVIModel

# An epoch moves each spot's own parameters once, however many spots there are. From a start at the abundances and
# states, many more still raise the likelihood, by states that imitate other types: proportions get worse. With half as
# many, spots of many cells with states that vary a lot were not done.
_EPOCHS = 30
# An amortised network starts from nothing for the states.
_EPOCHS_AMORTISED = 100


class DestVI(Estimator["DestVIModel"]):
    """Cell types of spots, and the state of each type in each spot (Lopez et al. 2022).

    Made from a slide and a trained single-cell model by :meth:`from_rna_model`.

    Examples
    --------
    >>> import countvi
    >>> countvi.CondSCVI.setup_anndata(cells, labels_key="cell_type")  # doctest: +SKIP
    >>> reference = countvi.CondSCVI(cells)  # doctest: +SKIP
    >>> reference.train()  # doctest: +SKIP
    >>> countvi.DestVI.setup_anndata(slide)  # doctest: +SKIP
    >>> model = countvi.DestVI.from_rna_model(slide, reference)  # doctest: +SKIP
    >>> model.train()  # doctest: +SKIP
    >>> slide.obsm["proportions"] = model.get_proportions()  # doctest: +SKIP

    References
    ----------
    Lopez, Li, Keren-Shaul, Boyeau, Kedmi, Pilzer, Jelinski, et al. DestVI identifies continuums of cell types in
    spatial transcriptomics data. Nature Biotechnology 40, 1360-1369 (2022).
    """

    _taught: Tensor | None = None
    defaults = TrainingDefaults(
        batch_size=128,
        max_epochs=_EPOCHS,
        plan={"lr": 0.05, "eps": 1e-8, "weight_decay": 0.0, "kl_warmup_fraction": 0.0},
        hold_out=False,
    )

    get_elbo = evidence.get_elbo
    get_reconstruction_error = evidence.get_reconstruction_error
    get_proportions = spots.get_proportions
    get_gamma = spots.get_gamma
    get_scale_for_ct = spots.get_scale_for_ct
    get_expression_for_ct = spots.get_expression_for_ct
    get_proportion_thresholds = spot_analysis.get_proportion_thresholds
    get_presence = spot_analysis.get_presence
    get_state_axes = spot_analysis.get_state_axes
    differential_expression = spot_analysis.differential_expression

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        message = "A DestVI is made of a slide and a trained CondSCVI: use DestVI.from_rna_model(slide, reference)."
        raise OptionError(message)

    @classmethod
    def from_rna_model(
        cls,
        st_adata: AnnData,
        sc_model: CondSCVI,
        vamp_prior_p: int | None = 15,
        l1_reg: float = 0.0,
        *,
        amortization: Literal["none", "latent", "proportion", "both"] = "none",
        beta_reg: float = 5.0,
        eta_reg: float = 1e-4,
        entropy_reg: float = 0.0,
        gamma_reg: float = 1.0,
        sparsity_reg: float = 3.0,
        dropout_amortization: float = 0.05,
        initial_proportions: pd.DataFrame | np.ndarray | None = None,
        subcluster_key: str | None = None,
        seed: int = seeding.DEFAULT_SEED,
    ) -> Self:
        r"""Build the model of a slide on a single-cell model.

        Parameters
        ----------
        st_adata
            The slide, spots x genes, on which :meth:`setup_anndata` was called.
        sc_model
            Trained single-cell model. Genes are matched by name; those that the slide lacks are left out, with a
            warning.
        vamp_prior_p
            Components per type of the prior of the states; ``None`` for a unit normal instead.
        l1_reg
            Nats per spot for a mean abundance of one: larger values leave fewer types in a spot.
        amortization
            Which parameters of a spot a network gives from its counts: its states (``"latent"``), its abundances
            (``"proportion"``), ``"both"`` or ``"none"``. The others are estimated for each spot by itself. Spots that
            were not trained on can only be read with ``"both"``.
        beta_reg
            Nats per spot for a unit of variance of log alpha over genes. Lower it where cells and slide were measured
            by different techniques.
        eta_reg
            Weight of the log-density of the noise, per spot.
        entropy_reg
            Nats per spot for a nat of entropy of its proportions: larger values leave fewer types in a spot.
        gamma_reg
            Weight of the log-density of the states.
        sparsity_reg
            Counts that a type must explain to be in a spot. Types below it are left out at the start and stay out;
            the others lose about as many to the prior, a density of beta that falls with this power. 0 leaves no type
            out.
        dropout_amortization
            Dropout of the networks.
        initial_proportions
            Where the proportions start, spots x types: by default a sparse mixture of what the types express in the
            states of the prior. A network of the abundances is fitted to these first.
        subcluster_key
            Column of the reference's ``obs`` with clusters within types, as components of the prior.
        seed
            Of the initial weights and the prior, and of :meth:`train` where it is given none.

        Raises
        ------
        MismatchError
            If slide and reference share no genes.
        OptionError
            If the reference is of a generation whose counts do not add up.
        """
        registry = cls._registry_of(st_adata)
        genes = match_genes(sc_model, registry)
        modality = registry.modality(RNA)
        names = tuple(sc_model.registry.modality(RNA).feature_names[i] for i in genes.shared)
        registry = dataclasses.replace(registry, modalities=(dataclasses.replace(modality, feature_names=names),))
        reference = reference_of(sc_model, genes.shared, vamp_prior_p, subcluster_key, seed)
        options = DestVIOptions(
            cell_types=tuple(str(name) for name in sc_model.cell_types),
            n_hidden=sc_model.options.n_hidden,
            n_latent=sc_model.options.n_latent,
            n_layers=sc_model.options.n_layers,
            n_components=reference.prior[2].shape[1],
            n_spots=st_adata.n_obs,
            amortization=amortization,
            l1_reg=l1_reg,
            beta_reg=beta_reg,
            eta_reg=eta_reg,
            entropy_reg=entropy_reg,
            gamma_reg=gamma_reg,
            sparsity_reg=sparsity_reg,
            dropout_amortization=dropout_amortization,
        )
        given = None
        if initial_proportions is not None:
            given = given_abundances(initial_proportions, st_adata.obs_names, options.cell_types)
        arguments = {
            **dataclasses.asdict(options),
            "spots": None
            if options.amortization == "both"
            else list(map(str, data_layer.unique_names(st_adata.obs_names))),
            "missing_genes": genes.missing,
        }
        model = cls.__new__(cls)
        Estimator.__init__(model, st_adata, registry, arguments, seed, context=(reference, given))
        return model

    @classmethod
    def _parse(cls, arguments: Mapping[str, Any], registry: data_layer.Registry) -> DestVIOptions:
        return options.among(DestVIOptions, arguments)

    @property
    def cell_types(self) -> list[str]:
        """Names of the types, in the order of the columns."""
        return list(self.options.cell_types)

    @property
    def missing_genes(self) -> list[str]:
        """Genes of the reference that the slide lacks: they are left out. Genes of the slide alone are not read."""
        return list(self.options.missing_genes)

    @classmethod
    def setup_anndata(cls, adata: AnnData, layer: str | None = None) -> None:
        """Say which parts of an AnnData the model reads. Nothing is written into ``adata``.

        Parameters
        ----------
        adata
            The slide, spots x genes.
        layer
            Layer with the raw counts; by default ``X``.

        Raises
        ------
        UnknownNameError
            If the layer does not exist, with the closest that do.
        """
        data_layer.remember(cls, adata, data_layer.setup_anndata(adata, {}, {}, layer=layer))

    @passes_on_to(training.train)
    def train(
        self,
        max_epochs: int | None = None,
        *,
        train_size: float | None = None,
        n_epochs_kl_warmup: int | None = None,
        plan_kwargs: Mapping[str, Any] | None = None,
        **arguments: Any,
    ) -> None:
        """Fit the model.

        Parameters
        ----------
        max_epochs
            Passes over the spots; by default 30, or 100 with a network: more raise the likelihood a little further, and
            let states imitate other types.
        n_epochs_kl_warmup
            The same as in ``plan_kwargs``, and goes before it.
        train_size
            Share of the spots to train on; by default all of them. Spots can be held out with
            ``amortization="both"`` only: the others have parameters that nothing but their own counts can tell.
        plan_kwargs, arguments
            As of :meth:`countvi.SCVI.train`, and so are all other arguments. The plan starts from a rate of 0.05
            without KL warm-up, as the proportions do not start from nothing.
        """
        plan = plan_entries(plan_kwargs, n_epochs_kl_warmup=n_epochs_kl_warmup)
        request = training.requested(self, max_epochs, train_size=train_size, plan_kwargs=plan, **arguments)
        if (request.split.holds_out or request.early_stopping) and self.options.spots is not None:
            message = (
                f"With amortization={self.options.amortization!r} spots cannot be held out: their parameters are "
                "estimated from their own counts. Use amortization='both', or leave train_size, validation_size, "
                "external_indexing and early_stopping out."
            )
            raise OptionError(message)
        if self.options.amortised[1] and not self.is_trained and self._taught is not None:
            # The network of the abundances starts where those of spots by themselves do.
            split = settle_split(self.split, request.split, self.dataset.n_cells, request.seed)
            self.module.cpu()
            teaching = Teaching(self._taught, request.batch_size, request.seed)
            teach_abundances(self.module, self.dataset, split, teaching)
            self.split = split
        training.run(self, request)

    # ---------------------------------------------------------------- what the model declares

    @property
    def training_defaults(self) -> TrainingDefaults:
        """Longer runs with a network."""
        return (
            dataclasses.replace(self.defaults, max_epochs=_EPOCHS_AMORTISED)
            if any(self.options.amortised)
            else self.defaults
        )

    def _bind(self, adata: Any) -> data_layer.Dataset:
        data = super()._bind(adata)
        spots = self.options.spots
        return data if spots is None else data_layer.with_positions(data, pd.Index(spots))

    def _start(
        self, dataset: data_layer.Dataset, context: tuple[Reference, np.ndarray | None]
    ) -> tuple[Reference, SpotStart]:
        reference, given = context
        start = start_of(dataset, reference, given, self.options.sparsity_reg)
        self._taught = start.abundance
        return reference, start

    def _build(self, start: tuple[Reference, SpotStart] | None) -> DestVIModel:
        if start is None:
            empty = empty_reference(self.options, self.registry.modality(RNA).n_features)
            return build_destvi(self.options, empty, None)
        return build_destvi(self.options, *start)

    @property
    def roles_read(self) -> frozenset[data_layer.Role]:
        """None: spots have no covariates."""
        return frozenset()
