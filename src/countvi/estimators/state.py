"""What a model is fitted with, and what is known of the fit: data, options, module, split, history."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import numpy as np
import pandas as pd
import torch

from countvi import data as data_layer
from countvi import query, seeding
from countvi.errors import DataError, DataWarning, MismatchError, NotSetUpError, NotTrainedError, OptionError, warn
from countvi.estimators.checked import CheckedCells
from countvi.estimators.names import Indices, resolve_rows
from countvi.estimators.options import WHOLE
from countvi.estimators.signatures import name_unknown_arguments
from countvi.models.count_model import CountModel
from countvi.nn.surgery import Freezing, freeze
from countvi.train import Row

if TYPE_CHECKING:
    from typing import Self

    from countvi.data.container import Container

_QUERY_BATCH = 512

M = TypeVar("M", bound=CountModel, covariant=True)


@dataclass(frozen=True)
class TrainingDefaults:
    """What ``train`` does where a user does not say.

    Parameters
    ----------
    batch_size
        Cells per step.
    peak
        Peak learning rate of one cycle; ``None`` for the plan's own.
    plan
        Other entries of the plan.
    relative_length
        Epochs, as a multiple of those that the number of cells asks for.
    max_epochs
        Epochs, whatever the number of cells; ``None`` for what that asks for.
    hold_out
        Whether cells are held out though nobody asks for it.
    """

    batch_size: int = 64
    peak: float | None = None
    plan: Mapping[str, Any] = field(default_factory=dict)
    relative_length: float = 1.0
    max_epochs: int | None = None
    hold_out: bool = True


@dataclass(frozen=True)
class Mapped:
    """What the model of a query remembers of its reference.

    Parameters
    ----------
    known
        How many categories the reference knew of each column of the codes.
    freezing
        What of it is held.
    """

    known: tuple[int, ...]
    freezing: Freezing

    def hold(self, module: CountModel) -> dict[str, tuple[slice, ...]]:
        """Hold what the reference knows; return the rows that may move all the same, by name of the parameter."""
        return freeze(module, self.known, self.freezing)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {"known": list(self.known), "freezing": asdict(self.freezing)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Mapped:
        """Build from what :meth:`to_json` returned."""
        return cls(tuple(values["known"]), Freezing(**values["freezing"]))


@dataclass(frozen=True, eq=False)
class View:
    """The cells of one read-out, and what is known of them.

    Parameters
    ----------
    cells
        The cells, in the order asked for.
    dataset
        The data that they are among.
    """

    cells: query.Cells
    dataset: data_layer.Dataset

    @property
    def names(self) -> pd.Index:
        """Names of the cells."""
        return self.dataset.obs_names[self.cells.rows]

    @property
    def codes(self) -> torch.Tensor:
        """Codes of their covariates, shape ``(cells, columns)``, int64."""
        return self.dataset.codes[self.cells.rows]

    @property
    def measured(self) -> dict[str, np.ndarray]:
        """Which of the cells a modality was measured in, by modality; those measured in all cells are left out."""
        patterns = {name: patterns.some() for name, patterns in self.dataset.patterns.items()}
        return {name: here.numpy()[self.cells.rows] for name, here in {**self.dataset.present, **patterns}.items()}


class Fitted(ABC, Generic[M]):
    """Base of the estimators. Not made by hand: use :class:`countvi.SCVI` and its siblings.

    A model declares how its options are checked (:meth:`_parse`), what the data say before training (:meth:`_start`),
    how its parts are assembled (:meth:`_build`), and how it is trained by default (``defaults``).

    Attributes
    ----------
    module
        The model itself, a :class:`torch.nn.Module`.
    registry
        What ``setup_anndata`` recorded: genes, categories, keys.
    options
        The arguments of the constructor, checked.
    bound
        The data of the model as it reads them, or ``None``; :attr:`dataset` raises where there are none.
    split
        Which cells are trained on and which are held out, once :meth:`train` has run.
    epochs
        One entry per epoch over all runs; see :attr:`history`.
    mapped
        What the model of a query remembers of its reference.
    restored
        Whether the weights were read from a file rather than trained here.
    fingerprint
        Of the data trained on; ``None`` until it is asked for.
    seed
        Of the initial weights, and of ``train`` where it is given none.
    is_trained
        Whether ``train`` has run.
    """

    module: M
    several_modalities: ClassVar[bool] = False
    """Whether read-outs of modalities are given by their names."""
    has_background: ClassVar[bool] = False
    """Whether an ambient background is part of the model."""
    defaults: ClassVar[TrainingDefaults] = TrainingDefaults()
    """What ``train`` does where a user does not say."""
    set_up_by: ClassVar[str] = "setup_anndata"
    """The method that says which parts of the data are read."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        name_unknown_arguments(cls)

    def __init__(
        self,
        adata: Container | None,
        registry: data_layer.Registry,
        arguments: Mapping[str, Any],
        seed: int,
        *,
        restored: bool = False,
        context: Any = None,
    ) -> None:
        """Bind data and build the model; ``restored``: saved weights follow; ``context``: see :meth:`_start`."""
        self.registry = registry
        self.seed = seeding.checked(seed)
        self.is_trained = False
        self.options: Any = self._parse(arguments, registry)
        self._adata: Container | None = None
        self._snapshot: data_layer.DataSnapshot | None = None
        self.bound: data_layer.Dataset | None = None
        if adata is not None:
            self._take(adata, self._bind(adata))
        self.epochs: list[Row] = []
        self.split: data_layer.Split | None = None
        self.fingerprint: str | None = None
        self.mapped: Mapped | None = None
        self.restored = restored
        counted = self.counted
        if counted is not None:
            self._check_counts(counted)
        with seeding.forked(self.seed):
            self.module = self._build(None if restored or counted is None else self._start(counted, context))
        self.module.eval()

    @classmethod
    def restore(
        cls,
        adata: Container | None,
        registry: data_layer.Registry,
        arguments: Mapping[str, Any],
        seed: int,
        *,
        restored: bool = True,
    ) -> Self:
        """Make an estimator from what a manifest holds, or from what a reference was made with.

        Parameters
        ----------
        adata, registry
            The data, if there are any, and what was recorded of those it was set up with.
        arguments
            Of the constructor.
        seed
            Of the initial weights.
        restored
            Whether all weights will follow; otherwise they start from the data.
        """
        model = cls.__new__(cls)
        Fitted.__init__(model, adata, registry, arguments, seed, restored=restored)
        return model

    # ---------------------------------------------------------------- what a model declares

    @classmethod
    @abstractmethod
    def _parse(cls, arguments: Mapping[str, Any], registry: data_layer.Registry) -> Any:
        """Check the arguments of the constructor."""

    def _start(self, dataset: data_layer.Dataset, context: Any) -> Any:
        """What the data say before training; of the context, too, if a constructor has any."""
        return dataset

    @abstractmethod
    def _build(self, start: Any) -> M:
        """Assemble the model; ``None`` to start from where weights will follow."""

    @property
    def _takes_negative(self) -> bool:
        """Whether negative values can be used."""
        return False

    @property
    def _takes_fractions(self) -> bool:
        """Whether values that are not whole numbers are meant."""
        return False

    @property
    def roles_read(self) -> frozenset[data_layer.Role]:
        """Roles of the covariates that this model reads; other data need not have the columns of the others."""
        return data_layer.ROLES - {"labels"}

    def _check_counts(self, dataset: data_layer.Dataset) -> None:
        """Raise or warn where the counts do not suit the model."""
        assert self.adata is not None
        for modality in self.registry.modalities:
            data_layer.check_counts(dataset.summary(modality.name), self.adata, modality)

    @property
    def training_defaults(self) -> TrainingDefaults:
        """What ``train`` does with these data and options where a user does not say."""
        return self.defaults

    def extended_registry(self, adata: Container) -> data_layer.Registry:
        """Return what this model was set up with, and the categories of a query besides.

        Parameters
        ----------
        adata
            The query.
        """
        return data_layer.extend(self.registry, adata, self.roles_read)

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of the constructor, checked, as JSON values."""
        return asdict(self.options)

    # ---------------------------------------------------------------- data

    @classmethod
    def _registry_of(cls, adata: Container) -> data_layer.Registry:
        registry = data_layer.recall(cls, adata)
        if registry is None:
            message = (
                f"This {type(adata).__name__} ({adata.n_obs:,} cells x {adata.n_vars:,} genes) is not set up for "
                f"{cls.__name__}. Call {cls.__name__}.{cls.set_up_by}(...) on this object first; a copy or subset "
                "needs a call of its own."
            )
            raise NotSetUpError(message)
        return registry

    def _bind(self, adata: Container) -> data_layer.Dataset:
        """Read data the way the model was set up."""
        return data_layer.bind(adata, self.registry, self.roles_read)

    def _take(self, adata: Container, dataset: data_layer.Dataset) -> None:
        self._adata, self.bound = adata, dataset
        self._snapshot = data_layer.DataSnapshot.of(adata, dataset)

    def _seen(self) -> data_layer.DataSnapshot:
        """What the data of the model look like now."""
        assert self._adata is not None and self.bound is not None
        return data_layer.DataSnapshot.of(self._adata, self.bound)

    @property
    def adata(self) -> Any:
        """The data of the model, or ``None`` after ``load`` without data. Other data can be assigned.

        They are read the way the model was set up: genes are matched by name, categories by value. A split into
        training and held-out cells of other data does not apply to them and is dropped.
        """
        return self._adata

    @adata.setter
    def adata(self, adata: Container) -> None:
        dataset = self._bind(adata)
        if self._snapshot is not None and not self._snapshot.changed_counts(self._seen()):
            self.training_fingerprint()  # of the data trained on, while they are here
        if self.bound is not None and not dataset.obs_names.equals(self.bound.obs_names):
            self.split = None
        self._take(adata, dataset)

    def _notice_changes(self) -> None:
        """Read data again that were changed behind the model, and say so.

        Raises
        ------
        DataError
            If their counts were written over by values that are none.
        """
        if self.bound is None or self._snapshot is None or self._adata is None:
            return
        before, now = self._snapshot, self._seen()
        same_cells, covariates = before.same_cells(now), before.changed_covariates(now)
        counts = before.changed_counts(now)
        if same_cells and not covariates and not counts:
            return
        if counts and before.whole and not now.whole:
            message = (
                f"The counts that this {type(self).__name__} reads were written over with values that are not whole "
                "numbers, by sc.pp.normalize_total or sc.pp.log1p for instance: it reads them where they lie in your "
                "AnnData, without a copy. Assign data that hold the counts, model.adata = ...; and keep counts in a "
                "layer, adata.layers['counts'] = adata.X.copy(), which setup_anndata(layer='counts') reads."
            )
            raise DataError(message)
        if not counts:
            self.training_fingerprint()  # of the data trained on, while they are here
        old, new = self.bound, self._bind(self._adata)
        self._take(self._adata, new)
        assert self._snapshot is not None
        same_values = not counts and new.same_covariates(old)
        if same_cells and same_values:  # text that became categories, say
            return
        renamed = same_values and not before.changed_counts(self._snapshot)
        if same_cells:
            what = f"obs[{covariates[0]!r}] holds other values" if covariates else "counts were written over"
        elif renamed:
            what = "cells have other names"
        else:
            what = f"there are {new.n_cells:,} cells where there were {old.n_cells:,}"
            what = what if new.n_cells != old.n_cells else "the cells are others, or in another order"
        lost = ""
        if not same_cells and not renamed and self.split is not None:
            self.split = None
            lost = " The split into training and held-out cells does not apply to them; train() draws a new one."
        message = (
            f"The data of this {type(self).__name__} were changed after it read them: {what}. It reads them as they "
            f"are now.{lost}"
        )
        warn(message, DataWarning)

    @property
    def dataset(self) -> data_layer.Dataset:
        """The data of the model as it reads them.

        Raises
        ------
        MismatchError
            If it has none.
        """
        if self.bound is None:
            message = f"This {type(self).__name__} has no data: it was loaded without. Pass adata=... here, or to load."
            raise MismatchError(message)
        self._notice_changes()
        return self.bound

    @property
    def counted(self) -> data_layer.Dataset | None:
        """The data of the model, if it has any and they hold counts."""
        return None if self.bound is None or self.bound.stored is not None else self.bound

    def container(self, adata: Container | None) -> Container:
        """Return the data given, or those of the model.

        Parameters
        ----------
        adata
            Data; ``None`` for those of the model.
        """
        if adata is not None:
            return adata
        assert self.dataset is not None
        return self.adata

    def dataset_of(self, adata: Container | None) -> data_layer.Dataset:
        """Return the data given, or those of the model, as the model reads them.

        Parameters
        ----------
        adata
            Data; ``None`` for those of the model.
        """
        return self.dataset if adata is None or adata is self.adata else self._bind(adata)

    def view(self, adata: Container | None = None, indices: Indices = None, batch_size: int | None = None) -> View:
        """Return the cells of a read-out.

        Parameters
        ----------
        adata, indices, batch_size
            Data, rows or a mask, and how many cells at a time; see :meth:`get_latent_representation`.

        Raises
        ------
        NotTrainedError
            If the model is not trained.
        """
        if not self.is_trained:
            message = f"This {type(self).__name__} is not trained yet. Call model.train() first."
            raise NotTrainedError(message)
        dataset = self.dataset_of(adata)
        chunk = WHOLE("batch_size", _QUERY_BATCH if batch_size is None else batch_size)
        source: query.BatchSource = dataset
        if dataset is not self.bound:
            source = CheckedCells(dataset, self._takes_negative, self._takes_fractions)
        return View(query.Cells(source, resolve_rows(indices, dataset.obs_names), chunk, self.device), dataset)

    def training_fingerprint(self) -> str | None:
        """Return what identifies the data trained on; ``None`` if they are not at hand."""
        if self.fingerprint is None and self.counted is not None:
            self.fingerprint = self.counted.fingerprint()
        return self.fingerprint

    # ---------------------------------------------------------------- what users ask of any model

    @property
    def history(self) -> pd.DataFrame:
        """One row per epoch over all runs, indexed by epoch.

        ``elbo_train`` and ``elbo_validation`` are *negative* evidence lower bounds per cell in nats, lower is better,
        as in scvi-tools; ``reconstruction_loss_*`` and ``kl_local_*`` are their two parts. ``kl_global_*`` is
        the negative log-prior of what belongs to no cell (see ``get_log_prior``), divided by the number of training
        cells: nats per cell like its neighbours, and as ``train_loss`` counts it. It is not part of ``elbo_*``.
        ``kl_weight`` and ``lr`` are
        the values at the end of the epoch; ``n_rollbacks`` counts steps undone because they were not finite;
        ``seconds`` is the time the epoch took.
        """
        return pd.DataFrame(self.epochs).rename_axis("epoch")

    @property
    def train_indices(self) -> np.ndarray:
        """Rows of the cells that were trained on."""
        return self._split_made().train

    @property
    def validation_indices(self) -> np.ndarray:
        """Rows of the cells that were held out for validation."""
        return self._split_made().validation

    @property
    def test_indices(self) -> np.ndarray:
        """Rows of the cells that were neither trained on nor used for validation."""
        return self._split_made().test

    def _split_made(self) -> data_layer.Split:
        if self.split is None:
            message = f"This {type(self).__name__} has no split into training and held-out cells: call model.train()."
            raise NotTrainedError(message)
        return self.split

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.module.parameters()).device

    @property
    def minified_data_type(self) -> str | None:
        """``"latent_posterior_parameters"`` if the model keeps the posterior of its cells and no counts."""
        return data_layer.MINIFIED_TYPE if self.bound is not None and self.bound.stored is not None else None

    def to_device(self, device: str | torch.device) -> None:
        """Move the model.

        Parameters
        ----------
        device
            As in torch, ``"cuda:0"``; or ``"auto"``: an NVIDIA GPU if there is one, else the CPU.

        Raises
        ------
        OptionError
            If there is no such device.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self.module.to(torch.device(device))
        except (RuntimeError, AssertionError) as error:
            message = f"The model cannot be moved to device {str(device)!r}: {str(error).splitlines()[0]}"
            raise OptionError(message) from error
