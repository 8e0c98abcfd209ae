"""What every estimator does: hold data, train, save, load."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch

from countvi import data as data_layer
from countvi import query, seeding
from countvi.errors import MismatchError, NotSetUpError, NotTrainedError
from countvi.estimators import _persistence, _training
from countvi.estimators._checked import CheckedCells
from countvi.estimators._describe import describe, print_setup
from countvi.estimators._indices import Indices, resolve_rows
from countvi.models.count_model import CountModel
from countvi.train import BatchAdversary, Callback, EarlyStopping, Row, TrainingPlan, progress_callback

if TYPE_CHECKING:
    from typing import Self

    from anndata import AnnData
    from mudata import MuData

    from countvi.data.container import Container
    from countvi.estimators import _mapping

_QUERY_BATCH = 512


class Trainable(ABC):
    """Base of the estimators. Not made by hand: use :class:`countvi.SCVI` and its siblings.

    Attributes
    ----------
    adata
        The data of the model, or ``None`` after ``load`` without data.
    module
        The model itself, a :class:`torch.nn.Module`.
    registry
        What ``setup_anndata`` recorded: genes, categories, keys.
    is_trained
        Whether ``train`` has run.
    """

    _set_up_by: ClassVar[str] = "setup_anndata"
    _loaded: bool = False
    """Whether saved weights follow, so that what is built need not be computed from the data."""

    def __init__(
        self, adata: Container | None, registry: data_layer.Registry, init_args: Mapping[str, Any], seed: int
    ) -> None:
        self.registry = registry
        self.adata = adata
        self.seed = seeding.checked(seed)
        self.is_trained = False
        self._init_args = dict(init_args)
        self._data = self._bound(adata) if adata is not None else None
        self._rows: list[Row] = []
        self._split: data_layer.Split | None = None
        self._fingerprint: str | None = None
        self._mapped: _mapping.Mapped | None = None
        counted = None if self._data is None or self._data.stored is not None else self._data
        if counted is not None:
            self._check_counts(counted)
        with seeding.forked(self.seed):
            self.module = self._build(counted)
        self.module.eval()

    @abstractmethod
    def _build(self, dataset: data_layer.Dataset | None) -> CountModel:
        """Assemble the model; without data where saved weights will follow."""

    @property
    @abstractmethod
    def _takes_negative(self) -> bool:
        """Whether negative values can be used."""

    @property
    @abstractmethod
    def _unread_roles(self) -> frozenset[str]:
        """Roles of columns that this model does not read, so that other data need not have them."""

    @abstractmethod
    def _check_counts(self, dataset: data_layer.Dataset) -> None:
        """Raise or warn where the counts do not suit the model."""

    @classmethod
    def _registry_of(cls, adata: Container) -> data_layer.Registry:
        registry = data_layer.recall(cls, adata)
        if registry is None:
            message = (
                f"This {type(adata).__name__} ({adata.n_obs:,} cells x {adata.n_vars:,} genes) is not set up for "
                f"{cls.__name__}. Call {cls.__name__}.{cls._set_up_by}(...) on this object first; a copy or subset "
                "needs a call of its own."
            )
            raise NotSetUpError(message)
        return registry

    def get_confounding(self) -> pd.DataFrame:
        """Compare every categorical covariate of the model's cells with every other and with the labels.

        What one covariate determines of another cannot be told apart by any model. Look at the rows with a
        ``meaning``, before training.

        Returns
        -------
        DataFrame
            A row for each ordered pair; for the columns see :func:`countvi.data.confounding_table`.

        Raises
        ------
        UnknownNameError
            If the data of the model are not those it was set up with, and lack the labels.
        """
        self._need_data()
        assert self.adata is not None
        return data_layer.confounding_table(data_layer.covariate_codes(self.adata, self.registry), self.registry)

    def view_anndata_setup(self) -> None:
        """Print where the model's counts lie, and the categories of each covariate with their numbers of cells."""
        print_setup(self)

    # ---------------------------------------------------------------- training

    def train(
        self,
        max_epochs: int | None = None,
        *,
        batch_size: int = 64,
        train_size: float | None = None,
        validation_size: float | None = None,
        shuffle_set_split: bool = True,
        external_indexing: Sequence[np.ndarray] | None = None,
        datasplitter_kwargs: Mapping[str, Any] | None = None,
        early_stopping: bool = False,
        early_stopping_monitor: str = "elbo_validation",
        early_stopping_patience: int = 45,
        early_stopping_min_delta: float = 0.0,
        early_stopping_warmup_epochs: int = 0,
        check_val_every_n_epoch: int = 1,
        accelerator: str = "auto",
        devices: Any = "auto",
        strategy: str = "auto",
        precision: str = "32-true",
        seed: int | None = None,
        gradient_clip_val: float | None = None,
        plan_kwargs: Mapping[str, Any] | None = None,
        callbacks: Sequence[Callback] = (),
        logger: Any = None,
        checkpoint_dir: str | Path | None = None,
        resume: bool = False,
        enable_progress_bar: bool = True,
    ) -> None:
        """Fit the model.

        Parameters
        ----------
        max_epochs
            Passes over the training cells; by default fewer the more cells there are: 38 for 2,000, 5 for a million
            (:func:`countvi.train.default_max_epochs`).
        batch_size
            Cells per step.
        train_size, validation_size
            Shares of the cells to train on (0.9) and to hold out (the rest). What is left is the test set.
        shuffle_set_split
            Draw the split at random rather than by position.
        external_indexing
            Rows ``[train, validation, test]`` instead of shares.
        datasplitter_kwargs
            The same as ``{"external_indexing": [...]}``, as in scvi-tools.
        early_stopping
            Stop when the held-out metric stops improving, and keep the best weights.
        early_stopping_monitor, early_stopping_patience, early_stopping_min_delta, early_stopping_warmup_epochs
            Which column of the history, and how patient; see :class:`countvi.train.EarlyStopping`.
        check_val_every_n_epoch
            Epochs between validations.
        accelerator, devices, strategy, precision
            As in Lightning Fabric. ``"auto"`` takes one NVIDIA GPU if there is one, else the CPU; ``"32-true"``,
            ``"64-true"``, ``"bf16-mixed"``.
        seed
            Of this run: split, order of cells, noise. Default: the model's.
        gradient_clip_val
            Largest gradient norm; ``None`` does not clip.
        plan_kwargs
            Optimiser, learning rate, KL warm-up: the fields of :class:`countvi.train.TrainingPlan`.
            ``countvi.train.scvi_tools_plan()`` gives the schedule of scvi-tools.
        callbacks
            :class:`countvi.train.Callback` objects.
        logger
            A Lightning Fabric logger, or several.
        checkpoint_dir
            Folder for a checkpoint after every epoch.
        resume
            Continue from the checkpoint in ``checkpoint_dir`` if there is one; the result is what an uninterrupted run
            gives.
        enable_progress_bar
            Show progress: a bar in a terminal or notebook, else about ten lines.

        Notes
        -----
        The split is drawn once per model and kept: training again never trains on cells held out before. Training again
        continues from the present weights, without a second KL warm-up.

        Raises
        ------
        OptionError
            If an argument is outside what it may be.
        NonFiniteError
            If training cannot be kept finite; names the first offending quantity, gene, cell and batch.
        """
        stopping = EarlyStopping(
            early_stopping_monitor, early_stopping_patience, early_stopping_min_delta, early_stopping_warmup_epochs
        )
        request = _training.TrainRequest(
            max_epochs=max_epochs,
            batch_size=batch_size,
            split=_training.SplitRequest.from_arguments(
                train_size, validation_size, shuffle_set_split, external_indexing, datasplitter_kwargs
            ),
            early_stopping=stopping if early_stopping else None,
            check_val_every_n_epoch=check_val_every_n_epoch,
            seed=self.seed if seed is None else seeding.checked(seed),
            plan=TrainingPlan.from_kwargs(plan_kwargs, gradient_clip_val=gradient_clip_val),
            checkpoint_dir=None if checkpoint_dir is None else Path(checkpoint_dir),
            resume=resume,
            adversary=self._adversary(),
            moving_rows={} if self._mapped is None else self._mapped.hold(self.module),
            relative_length=self._relative_length(),
        )
        fabric = _training.make_fabric(accelerator, devices, strategy, precision, logger)
        dataset, hooks = self._need_data(), [*progress_callback(enable_progress_bar), *callbacks]
        self._split, result = _training.train(
            fabric, self.module, dataset, request, hooks, split=self._split, first_epoch=len(self._rows)
        )
        self.module.load_state_dict(result.weights)
        if not self._loaded and self._mapped is None:  # else other cells may have had what these lack
            _training.fill_levels_without_data(self.module, dataset, self._split.train)
        self.module.float().eval()
        self._rows.extend(result.rows)
        self._fingerprint = None  # of the data trained on; computed when it is needed, as it reads them all
        self.is_trained = True

    def _adversary(self) -> BatchAdversary | None:
        """The classifier that is trained against the model."""
        return None

    def _relative_length(self) -> float:
        """Epochs of a run that names none, as a multiple of those that the number of cells asks for."""
        return 1.0

    @property
    def history(self) -> pd.DataFrame:
        """One row per epoch over all runs, indexed by epoch.

        ``elbo_train`` and ``elbo_validation`` are *negative* evidence lower bounds per cell in nats, lower is better,
        as in scvi-tools; ``reconstruction_loss_*`` and ``kl_local_*`` are their two parts; ``kl_weight`` and ``lr`` are
        the values at the end of the epoch; ``n_rollbacks`` counts steps undone because they were not finite;
        ``seconds`` is the time the epoch took.
        """
        return pd.DataFrame(self._rows).rename_axis("epoch")

    @property
    def train_indices(self) -> np.ndarray:
        """Rows of the cells that were trained on."""
        return self._need_split().train

    @property
    def validation_indices(self) -> np.ndarray:
        """Rows of the cells that were held out for validation."""
        return self._need_split().validation

    @property
    def test_indices(self) -> np.ndarray:
        """Rows of the cells that were neither trained on nor used for validation."""
        return self._need_split().test

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.module.parameters()).device

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
        _training.place(self.module, device)

    # ---------------------------------------------------------------- files

    def save(self, dir_path: str | Path, *, overwrite: bool = False, save_anndata: bool = False) -> None:
        """Write the model to a folder: weights in safetensors, everything else in JSON.

        The folder appears whole or not at all; with ``overwrite`` the old model stays until the new one is complete.

        Parameters
        ----------
        dir_path
            The folder.
        overwrite
            Replace the model in the folder.
        save_anndata
            Write the data beside it as ``adata.h5ad``, for :meth:`load` to find.
        """
        _persistence.save(self, dir_path, overwrite=overwrite, save_anndata=save_anndata)

    @classmethod
    def load(
        cls, dir_path: str | Path, adata: AnnData | MuData | Literal[False] | None = None, *, device: str = "cpu"
    ) -> Self:
        """Read a model that :meth:`save` wrote. Opening a folder runs no code from it.

        Parameters
        ----------
        dir_path
            The folder.
        adata
            Data for the read-outs; genes are matched by name and categories by value, no ``setup_anndata`` is needed.
            ``None`` takes the data saved with the model, if any; ``False`` takes none.
        device
            Where to put the model; see :meth:`to_device`.

        Raises
        ------
        FileFormatError
            If the folder is damaged, newer than this countvi, or of another class.
        MismatchError
            If ``adata`` lacks genes or has categories that the model does not know.
        """
        return _persistence.load(cls, dir_path, adata, device)

    @classmethod
    @abstractmethod
    def _restore(
        cls, adata: Container | None, registry: data_layer.Registry, init_args: Mapping[str, Any], seed: int
    ) -> Self:
        """Make an estimator from what a manifest holds."""

    # ---------------------------------------------------------------- helpers

    def _cells(self, adata: Container | None, indices: Indices, batch_size: int | None) -> query.Cells:
        if not self.is_trained:
            message = f"This {type(self).__name__} is not trained yet. Call model.train() first."
            raise NotTrainedError(message)
        dataset = self._dataset(adata)
        chunk = _QUERY_BATCH if batch_size is None else batch_size
        _training.check_size("batch_size", chunk)
        source = dataset if dataset is self._data else CheckedCells(dataset, self._takes_negative)
        return query.Cells(source, resolve_rows(indices, dataset.obs_names), chunk, self.device)

    def _measured(self, cells: query.Cells) -> dict[str, np.ndarray]:
        """Which of the cells a modality was measured in, by modality; those measured in all cells are left out."""
        source = cells.source.data if isinstance(cells.source, CheckedCells) else cells.source
        assert isinstance(source, data_layer.Dataset)
        measured = {**source.present, **{name: patterns.some() for name, patterns in source.patterns.items()}}
        return {name: present.numpy()[cells.rows] for name, present in measured.items()}

    def _dataset(self, adata: Container | None) -> data_layer.Dataset:
        return self._need_data() if adata is None or adata is self.adata else self._bound(adata)

    def _bound(self, adata: Container) -> data_layer.Dataset:
        """Data read the way the model was set up."""
        return data_layer.bind(adata, self.registry, self._unread_roles)

    def _obs_names(self, adata: Container | None) -> pd.Index:
        return self._need_data().obs_names if adata is None else adata.obs_names

    def _need_data(self) -> data_layer.Dataset:
        if self._data is None:
            message = f"This {type(self).__name__} has no data: it was loaded without. Pass adata=... here, or to load."
            raise MismatchError(message)
        return self._data

    def _training_fingerprint(self) -> str | None:
        if self._fingerprint is None and self._data is not None and self._data.stored is None:
            self._fingerprint = self._data.fingerprint()
        return self._fingerprint

    def _need_split(self) -> data_layer.Split:
        if self._split is None:
            message = f"This {type(self).__name__} has no split into training and held-out cells: call model.train()."
            raise NotTrainedError(message)
        return self._split

    def __repr__(self) -> str:
        return describe(self)
