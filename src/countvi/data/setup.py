"""``setup_anndata`` and ``setup_mudata``: record which matrices and columns a model shall use.

Nothing is written into the data. :func:`read` turns what a user chose into a :class:`countvi.data.Registry`, for all
models.
"""

from __future__ import annotations

import weakref
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from countvi.batch import RNA
from countvi.data.columns import moments_of, read_column, size_factor_of
from countvi.data.container import as_mudata, checked, is_mudata, obs_column, part_text, rows_of
from countvi.data.covariates import BATCH_COLUMN, LABELS_COLUMN, Covariates, RolesOf
from countvi.data.features import feature_type_of
from countvi.data.registry import CountMatrix, Moments, Registry
from countvi.data.source import matrix_at
from countvi.errors import DataError, OptionError, UnknownNameError, did_you_mean, shorten

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

    from countvi.data.container import Container

_FIRST = {"batch_key": BATCH_COLUMN, "labels_key": LABELS_COLUMN}
"""Arguments whose columns come first and are there whether they are given or not."""


def read(
    data: Container,
    modalities: tuple[CountMatrix, ...],
    given: Mapping[str, Any],
    roles: RolesOf,
    others: Mapping[str, Any],
) -> Registry:
    """Read the columns of ``obs`` that a user chose, each once however many roles it has.

    Parameters
    ----------
    data
        The data; they are only read.
    modalities
        The count matrices chosen.
    given
        Arguments of a set-up; those that ``roles`` names are columns of ``obs``, ``None`` for none.
    roles
        What the columns of each argument are for, in the order in which they make up the codes. Roles of
        ``batch_key`` that no other argument was given for fall to the batch.
    others
        The other arguments of the set-up, to be recorded.

    Returns
    -------
    Registry
        What was chosen, with the categories found.

    Raises
    ------
    UnknownNameError
        If a column does not exist.
    DataError
        If a column cannot be used as what it was given for, or is given twice.
    OptionError
        If a name stands where a list is expected or the other way round.
    """
    keys = {argument: _checked_keys(given[argument], argument) for argument in roles}
    _check_distinct(keys, roles)
    columns = [read_column(data, keys.get(argument), argument) for argument in _FIRST]
    at = {keys.get("labels_key"): LABELS_COLUMN, keys.get("batch_key"): BATCH_COLUMN}
    served: defaultdict[str, list[int]] = defaultdict(list)
    moments: list[Moments] = []
    for argument, uses in roles.items():
        for key in _listed(keys[argument]):
            if uses == ("continuous",):
                moments.append(moments_of(obs_column(data, key, argument), key))
            elif uses == ("size_factor",):
                size_factor_of(obs_column(data, key, argument), key)
            elif argument not in _FIRST:
                if key not in at:
                    at[key] = len(columns)
                    columns.append(read_column(data, key, argument))
                for role in uses:
                    served[role].append(at[key])
    for argument, column in _FIRST.items():
        for role in roles.get(argument, ()):
            served[role] = served[role] or [column]
    size_factors = _named(keys, roles, "size_factor")
    return Registry(
        method="setup_mudata" if is_mudata(data) else "setup_anndata",
        setup_args={**others, **keys},
        modalities=modalities,
        columns=tuple(columns),
        covariates=Covariates.serving(served),
        continuous_keys=tuple(_named(keys, roles, "continuous")),
        continuous_moments=tuple(moments),
        size_factor_key=size_factors[0] if size_factors else None,
    )


def setup_anndata(
    adata: AnnData, given: Mapping[str, Any], roles: RolesOf, *, layer: str | None = None, typed: bool = False
) -> Registry:
    """Record which parts of an AnnData a model of one count matrix shall use.

    The counts themselves are not read here; see :func:`countvi.data.validate.check_counts`.

    Parameters
    ----------
    adata
        Cells x genes; it is only read.
    given, roles
        Columns of ``adata.obs``, and what they are for; see :func:`read`, errors as well.
    layer
        Layer with the raw counts; ``None`` for ``adata.X``.
    typed
        Record whether the features are genes, peaks or proteins.

    Raises
    ------
    UnknownNameError
        If the layer does not exist.
    DataError
        If the AnnData is empty or names genes twice.
    """
    checked(adata)
    location = location_of(layer)
    matrix_at(adata, location, choosing=True)
    kind = feature_type_of(adata, RNA) if typed else None
    modality = CountMatrix(RNA, location, tuple(map(str, adata.var_names)), None, kind)
    return read(adata, (modality,), given, roles, {"layer": layer})


def setup_mudata(
    mdata: MuData,
    given: Mapping[str, Any],
    roles: RolesOf,
    *,
    modalities: Sequence[str] | Mapping[str, str] | None = None,
    layer: str | Mapping[str, str | None] | None = None,
) -> Registry:
    """Record which parts of a MuData a model of several count matrices shall use.

    Modalities need not have the same cells: one that lacks a cell was not measured in it.

    Parameters
    ----------
    mdata
        Modalities that share cells; it is only read.
    given, roles
        Columns of ``obs``, and what they are for; see :func:`read`, errors as well. They are looked for in
        ``mdata.obs`` first, then in the modalities'.
    modalities
        Modalities to use; a dictionary gives them other names, ``{name: modality}``; ``None`` for all.
    layer
        Layer with the raw counts in every modality, or ``{name: layer}``; ``None``, or a name left out, for ``X``.

    Raises
    ------
    UnknownNameError
        If a modality or a layer does not exist.
    DataError
        If a modality is empty or names features twice, or if modalities disagree about a column.
    OptionError
        If modalities are repeated or none.
    """
    mdata = as_mudata(mdata)
    chosen = _modalities(mdata, modalities)
    layers = _layers(layer, chosen)
    found = tuple(_modality(mdata, name, part, layers[name]) for name, part in chosen.items())
    return read(mdata, found, given, roles, {"modalities": chosen, "layer": layers})


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
remember, recall = _records.remember, _records.recall


def location_of(layer: str | None) -> str:
    """Return where the counts of a layer lie; ``None`` stands for ``X``.

    Raises
    ------
    OptionError
        If the layer is not named by text.
    """
    if layer is not None and not isinstance(layer, str):
        message = (
            f"A layer is named by text; got {layer!r}. Give a layer with another key a name, `adata.layers['counts'] = "
            f"adata.layers.pop({layer!r})`, and pass that."
        )
        raise OptionError(message)
    return "X" if layer is None else f"layers/{layer}"


def _modalities(mdata: MuData, asked: Sequence[str] | Mapping[str, str] | None) -> dict[str, str]:
    """From names to modalities of the MuData."""
    if isinstance(asked, Mapping):
        chosen = {str(name): str(part) for name, part in asked.items()}
    else:
        parts = list(mdata.mod) if asked is None else _names(asked, "modalities")
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


def _modality(mdata: MuData, name: str, part: str, layer: str | None) -> CountMatrix:
    owner, location = part_text(part), location_of(layer)
    adata = checked(mdata.mod[part], owner)
    rows_of(mdata, part)
    matrix_at(adata, location, owner, choosing=True)
    return CountMatrix(name, location, tuple(map(str, adata.var_names)), part, feature_type_of(adata, name))


def _checked_keys(given: Any, argument: str) -> Any:
    """Return the name of a column, or a list of names if several are expected; ``None`` for none."""
    if given is None:
        return None
    if argument.endswith("_keys"):
        return _names(given, argument)
    if not isinstance(given, str):
        message = f"{argument} must be the name of one column of obs; got {given!r}."
        raise OptionError(message)
    return given


def _names(given: Any, argument: str) -> list[str]:
    if isinstance(given, str):
        message = f"{argument} must be a list of column names; got the string {given!r}. Write [{given!r}]."
        raise OptionError(message)
    names: list[Any] = list(given) if isinstance(given, Iterable) else [None]
    if not all(isinstance(name, str) for name in names):
        message = f"{argument} must be a list of column names; got {given!r}."
        raise OptionError(message)
    return names


def _listed(keys: str | Sequence[str] | None) -> list[str]:
    if keys is None:
        return []
    return [keys] if isinstance(keys, str) else list(keys)


def _named(keys: Mapping[str, Any], roles: RolesOf, use: str) -> list[str]:
    """The columns of the arguments that are for one thing."""
    return [key for argument, uses in roles.items() if use in uses for key in _listed(keys[argument])]


def _check_distinct(keys: Mapping[str, Any], roles: RolesOf) -> None:
    """Refuse columns that are given twice for the same."""
    continuous = _named(keys, roles, "continuous")
    if any("categorical" in uses for uses in roles.values()):
        _check_beside_batch(keys["batch_key"], _named(keys, roles, "categorical") + continuous)
        return
    for argument in roles:
        repeated = [key for key, times in Counter(_listed(keys[argument])).items() if times > 1]
        if repeated:
            message = f"{argument} names {shorten(repeated)} more than once; name each column once."
            raise DataError(message)
    categorical = {
        key for argument, uses in roles.items() if "continuous" not in uses for key in _listed(keys[argument])
    }
    both = [key for key in continuous if key in categorical]
    if both:
        argument = next(argument for argument, uses in roles.items() if "continuous" in uses)
        message = f"{shorten(both)} is named in {argument} and also as a categorical covariate; choose one."
        raise DataError(message)


def _check_beside_batch(batch_key: str | None, covariates: list[str]) -> None:
    """Covariates that all networks see beside the batch are given once, and are not the batch."""
    repeated = [key for key, times in Counter(covariates).items() if times > 1]
    if repeated:
        message = f"Each covariate may be given once; given more than once: {shorten(repeated)}."
        raise DataError(message)
    if batch_key is not None and batch_key in covariates:
        message = (
            f"{batch_key!r} is given as batch_key and again as a covariate; models use the batch as a covariate "
            "already. Remove it from the covariates."
        )
        raise DataError(message)
