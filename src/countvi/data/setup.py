"""``setup_anndata`` and ``setup_mudata``: look at what the user chose, record it, write nothing into the data."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from countvi.batch import RNA
from countvi.data.columns import continuous_of, read_column, size_factor_of
from countvi.data.container import as_mudata, checked, obs_column, part_text, rows_of
from countvi.data.features import feature_type_of
from countvi.data.purposes import CovariateKeys, as_keys, read_columns
from countvi.data.registry import Column, Modality, Registry
from countvi.data.source import matrix_at
from countvi.errors import DataError, OptionError, UnknownNameError, did_you_mean, shorten

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

    from countvi.data.container import Container


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
    checked(adata)
    location = _location(layer)
    matrix_at(adata, location)
    keys = {
        "batch_key": batch_key,
        "labels_key": labels_key,
        "size_factor_key": size_factor_key,
        "categorical_covariate_keys": as_keys(categorical_covariate_keys, "categorical_covariate_keys") or None,
        "continuous_covariate_keys": as_keys(continuous_covariate_keys, "continuous_covariate_keys") or None,
    }
    columns, continuous = read_covariates(adata, keys)
    return Registry(
        method="setup_anndata",
        setup_args={"layer": layer, **keys},
        modalities=(Modality(RNA, location, tuple(map(str, adata.var_names))),),
        columns=columns,
        continuous_keys=continuous,
        size_factor_key=size_factor_key,
    )


def read_covariates(data: Container, keys: Mapping[str, Any]) -> tuple[tuple[Column, ...], tuple[str, ...]]:
    """Read the columns of ``obs`` of a model whose parts share their covariates.

    Parameters
    ----------
    data
        The data.
    keys
        The arguments of :func:`setup_anndata` that name columns.

    Returns
    -------
    tuple
        The categorical covariates, batch first and labels second, and the names of the continuous ones.

    Raises
    ------
    UnknownNameError
        If a column does not exist.
    DataError
        If a column cannot be used as what it was given for.
    """
    categorical = as_keys(keys["categorical_covariate_keys"], "categorical_covariate_keys")
    continuous = as_keys(keys["continuous_covariate_keys"], "continuous_covariate_keys")
    size_factor_key = keys["size_factor_key"]
    _check_distinct(keys["batch_key"], categorical, continuous)
    columns = (
        read_column(data, "batch", keys["batch_key"], "batch_key"),
        read_column(data, "labels", keys["labels_key"], "labels_key"),
        *(read_column(data, "categorical", key, "categorical_covariate_keys") for key in categorical),
    )
    for key in continuous:
        continuous_of(obs_column(data, key, "continuous_covariate_keys"), key)
    if size_factor_key is not None:
        size_factor_of(obs_column(data, size_factor_key, "size_factor_key"), size_factor_key)
    return columns, tuple(continuous)


def setup_by_purpose(adata: AnnData, keys: CovariateKeys, *, layer: str | None = None) -> Registry:
    """Record which parts of an AnnData a model shall use whose parts have covariates of their own.

    Parameters
    ----------
    adata
        Cells x genes; it is only read.
    keys
        Which columns of ``adata.obs`` serve what.
    layer
        Layer with the raw counts; ``None`` for ``adata.X``.

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
    """
    checked(adata)
    location = _location(layer)
    matrix_at(adata, location)
    columns, purposes = read_columns(adata, keys)
    return Registry(
        method="setup_anndata",
        setup_args={"layer": layer, **keys.to_json()},
        modalities=(Modality(RNA, location, tuple(map(str, adata.var_names)), None, feature_type_of(adata, RNA)),),
        columns=columns,
        continuous_keys=tuple(keys.nn_continuous_covariate_keys or ()),
        purposes=purposes,
    )


def setup_mudata(
    mdata: MuData,
    keys: CovariateKeys,
    *,
    modalities: Sequence[str] | Mapping[str, str] | None = None,
    layer: str | Mapping[str, str | None] | None = None,
) -> Registry:
    """Record which parts of a MuData a model shall use whose parts have covariates of their own.

    Modalities need not have the same cells: one that lacks a cell was not measured in it.

    Parameters
    ----------
    mdata
        Modalities that share cells; it is only read.
    keys
        Which columns of ``obs`` serve what; they are looked for in ``mdata.obs`` first, then in the modalities'.
        Without feature scaling keys, the conditioning keys scale features too.
    modalities
        Modalities to use; a dictionary gives them other names, ``{name: modality}``; ``None`` for all.
    layer
        Layer with the raw counts in every modality, or ``{name: layer}``; ``None``, or a name left out, for ``X``.

    Returns
    -------
    Registry
        What was chosen, with the categories found.

    Raises
    ------
    UnknownNameError
        If a modality, a layer or a column does not exist.
    DataError
        If a modality is empty or names features twice, if a column cannot be used as what it was given for, or if
        modalities disagree about it.
    OptionError
        If modalities are repeated or none.
    """
    mdata = as_mudata(mdata)
    chosen = _modalities(mdata, modalities)
    layers = _layers(layer, chosen)
    found = tuple(_modality(mdata, name, part, layers[name]) for name, part in chosen.items())
    columns, purposes = read_columns(mdata, keys, scale_by_conditioning=True)
    return Registry(
        method="setup_mudata",
        setup_args={"modalities": chosen, "layer": layers, **keys.to_json()},
        modalities=found,
        columns=columns,
        continuous_keys=tuple(keys.nn_continuous_covariate_keys or ()),
        purposes=purposes,
    )


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


def _location(layer: str | None) -> str:
    return "X" if layer is None else f"layers/{layer}"


def _modalities(mdata: MuData, asked: Sequence[str] | Mapping[str, str] | None) -> dict[str, str]:
    """From names to modalities of the MuData."""
    if isinstance(asked, Mapping):
        chosen = {str(name): str(part) for name, part in asked.items()}
    else:
        parts = list(mdata.mod) if asked is None else as_keys(asked, "modalities")
        chosen = {part: part for part in parts}
        if len(chosen) < len(parts):
            message = f"modalities names some more than once: {shorten(parts)}; name each once."
            raise OptionError(message)
    if not chosen:
        message = f"modalities is empty; name at least one of {shorten(list(mdata.mod))}."
        raise OptionError(message)
    for part in chosen.values():
        if part not in mdata.mod:
            known = list(mdata.mod)
            message = f"modalities: the MuData has no modality {part!r}; it has {shorten(known)}."
            raise UnknownNameError(message + did_you_mean(part, known))
    if len(set(chosen.values())) < len(chosen):
        message = f"modalities gives one modality two names: {chosen}; each modality can be used once."
        raise OptionError(message)
    return chosen


def _layers(layer: str | Mapping[str, str | None] | None, chosen: Mapping[str, str]) -> dict[str, str | None]:
    if not isinstance(layer, Mapping):
        return dict.fromkeys(chosen, layer)
    for name in layer:
        if name not in chosen:
            known = list(chosen)
            message = (
                f"layer: there is no modality {name!r}; the model has {shorten(known)}.{did_you_mean(name, known)}"
            )
            raise UnknownNameError(message)
    return {name: layer.get(name) for name in chosen}


def _modality(mdata: MuData, name: str, part: str, layer: str | None) -> Modality:
    owner, location = part_text(part), _location(layer)
    adata = checked(mdata.mod[part], owner)
    rows_of(mdata, part)
    matrix_at(adata, location, owner)
    return Modality(name, location, tuple(map(str, adata.var_names)), part, feature_type_of(adata, name))


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
