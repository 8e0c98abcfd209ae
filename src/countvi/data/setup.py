"""``setup_anndata``: look at what the user chose, record it, write nothing into the AnnData."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Sequence

from anndata import AnnData

from countvi.batch import RNA
from countvi.data.columns import categories_of, continuous_of, obs_column, size_factor_of
from countvi.data.registry import Column, Modality, Registry
from countvi.data.source import matrix_at
from countvi.errors import DataError, OptionError, shorten


def setup_anndata(
    adata: AnnData,
    *,
    layer: str | None = None,
    batch_key: str | None = None,
    labels_key: str | None = None,
    size_factor_key: str | None = None,
    categorical_covariate_keys: Sequence[str] | None = None,
    continuous_covariate_keys: Sequence[str] | None = None,
) -> Registry:
    """Record which parts of an AnnData a model shall use.

    The counts themselves are not read here; see :func:`countvi.data.validate.check_counts`.

    Parameters
    ----------
    adata
        Cells x genes; it is only read.
    layer
        Layer with the raw counts; ``None`` for ``adata.X``.
    batch_key
        Column of ``adata.obs`` with the batch of each cell.
    labels_key
        Column of ``adata.obs`` with a label (a cell type) of each cell.
    size_factor_key
        Column of ``adata.obs`` with size factors, finite and positive.
    categorical_covariate_keys
        Columns of ``adata.obs`` with further categorical covariates.
    continuous_covariate_keys
        Columns of ``adata.obs`` with continuous covariates, numeric and finite.

    Returns
    -------
    Registry
        What was chosen, with the categories found.

    Raises
    ------
    UnknownNameError
        If a layer or a column does not exist.
    DataError
        If the AnnData is empty, names genes twice, or a column cannot be used as what it was given for.
    OptionError
        If a list of keys is a single string.
    """
    check_shape(adata)
    location = "X" if layer is None else f"layers/{layer}"
    matrix_at(adata, location)
    categorical = _as_keys(categorical_covariate_keys, "categorical_covariate_keys")
    continuous = _as_keys(continuous_covariate_keys, "continuous_covariate_keys")
    _check_distinct(batch_key, categorical, continuous)

    columns = [_column(adata, "batch", batch_key, "batch_key"), _column(adata, "labels", labels_key, "labels_key")]
    columns += [_column(adata, "categorical", key, "categorical_covariate_keys") for key in categorical]
    for key in continuous:
        continuous_of(obs_column(adata, key, "continuous_covariate_keys"), key)
    if size_factor_key is not None:
        size_factor_of(obs_column(adata, size_factor_key, "size_factor_key"), size_factor_key)
    return Registry(
        method="setup_anndata",
        setup_args={
            "layer": layer,
            "batch_key": batch_key,
            "labels_key": labels_key,
            "size_factor_key": size_factor_key,
            "categorical_covariate_keys": categorical or None,
            "continuous_covariate_keys": continuous or None,
        },
        modalities=(Modality(RNA, location, tuple(map(str, adata.var_names))),),
        columns=tuple(columns),
        continuous_keys=tuple(continuous),
        size_factor_key=size_factor_key,
    )


def check_shape(adata: AnnData) -> None:
    """Check that it is an AnnData with cells and genes, and that a gene is known by its name.

    Raises
    ------
    DataError
        If it is something else, if there are none, or if names of genes are repeated.
    """
    if not isinstance(adata, AnnData):
        message = f"An AnnData is expected here; got {type(adata).__module__}.{type(adata).__name__}."
        raise DataError(message)
    if adata.n_obs == 0 or adata.n_vars == 0:
        message = f"The AnnData is empty: {adata.n_obs} cells and {adata.n_vars} genes; at least one of each is needed."
        raise DataError(message)
    repeated = adata.var_names[adata.var_names.duplicated()].unique()
    if len(repeated):
        message = (
            f"{len(repeated):,} names occur more than once in adata.var_names: {shorten(list(repeated))}; genes are "
            "matched by name, so names must be distinct. Call `adata.var_names_make_unique()` first."
        )
        raise DataError(message)


class SetupRecords:
    """Which registry belongs to which AnnData, for each model class, as long as the AnnData lives.

    An AnnData cannot be hashed, so the key is its identity; the entry goes when the object goes.
    """

    def __init__(self) -> None:
        self._registries: dict[int, dict[type, Registry]] = {}

    def __len__(self) -> int:
        """Return for how many objects there is a record."""
        return len(self._registries)

    def remember(self, model_class: type, adata: object, registry: Registry) -> None:
        """Record the registry of an object; a second set-up replaces the first."""
        if id(adata) not in self._registries:
            self._registries[id(adata)] = {}
            weakref.finalize(adata, self._registries.pop, id(adata), None).atexit = False
        self._registries[id(adata)][model_class] = registry

    def recall(self, model_class: type, adata: object) -> Registry | None:
        """Return the registry of an object, or ``None`` if it was not set up for this class."""
        return self._registries.get(id(adata), {}).get(model_class)


_records = SetupRecords()


def remember(model_class: type, adata: object, registry: Registry) -> None:
    """Record that an object was set up for a model class."""
    _records.remember(model_class, adata, registry)


def recall(model_class: type, adata: object) -> Registry | None:
    """Return what an object was set up with for a model class, or ``None``."""
    return _records.recall(model_class, adata)


def _as_keys(keys: Sequence[str] | None, argument: str) -> list[str]:
    if isinstance(keys, str):
        message = f"{argument} must be a list of column names; got the string {keys!r}. Write [{keys!r}]."
        raise OptionError(message)
    return [] if keys is None else list(keys)


def _check_distinct(batch_key: str | None, categorical: list[str], continuous: list[str]) -> None:
    repeated = [key for key, times in Counter(categorical + continuous).items() if times > 1]
    if repeated:
        message = f"Each covariate may be given once; given more than once: {shorten(repeated)}."
        raise DataError(message)
    if batch_key is not None and batch_key in categorical + continuous:
        message = (
            f"{batch_key!r} is given as batch_key and again as a covariate; models use the batch as a covariate "
            "already. Remove it from the covariates."
        )
        raise DataError(message)


def _column(adata: AnnData, role: str, key: str | None, argument: str) -> Column:
    if key is None:
        return Column(role, None, (0,))
    return Column(role, key, categories_of(obs_column(adata, key, argument), key))
