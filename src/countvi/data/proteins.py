"""``setup_anndata`` and ``setup_mudata`` of models of RNA and protein, and which proteins were not measured where."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from countvi.batch import PROTEIN, RNA
from countvi.data.container import as_mudata, checked, part_text, rows_of
from countvi.data.covariates import ROLES, RolesOf
from countvi.data.dataset import Dataset, bind
from countvi.data.features import GENES, PROTEINS, feature_names, feature_type_of
from countvi.data.measured import unmeasured_by_level
from countvi.data.registry import CountMatrix, Gaps, Registry
from countvi.data.setup import location_of, read
from countvi.data.source import location_text, matrix_at
from countvi.errors import DataError, OptionError, UnknownNameError, did_you_mean, shorten

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

    from countvi.data.container import Container

_LAYERS = ("rna_layer", "protein_layer", "protein_mask_layer")


def setup_proteins(
    adata: AnnData,
    given: Mapping[str, Any],
    roles: RolesOf,
    *,
    protein_expression_obsm_key: str,
    protein_names_uns_key: str | None = None,
    protein_mask_obsm_key: str | None = None,
    layer: str | None = None,
) -> Registry:
    """Record which parts of an AnnData with proteins in ``obsm`` a model shall use.

    Parameters
    ----------
    adata
        Cells x genes, with proteins in ``obsm``; it is only read.
    given, roles
        Columns of ``adata.obs``, and what they are for; see :func:`countvi.data.setup.read`, errors as well.
    protein_expression_obsm_key
        Entry of ``adata.obsm`` with protein counts: data frame, array or sparse matrix. NaN was not measured.
    protein_names_uns_key
        Entry of ``adata.uns`` with the names of the proteins; by default the columns of the data frame, or numbers.
    protein_mask_obsm_key
        Entry of ``adata.obsm`` that is true where a protein was measured.
    layer
        Layer with the RNA counts; ``None`` for ``adata.X``.

    Returns
    -------
    Registry
        What was chosen, with the categories found. Without NaN and without a mask, a protein that has counts, but none
        in a panel (a batch, if there are no panels), counts as not measured there.

    Raises
    ------
    UnknownNameError
        If a layer or an entry does not exist.
    DataError
        If the AnnData is empty or names features twice.
    """
    checked(adata)
    location = location_of(layer)
    matrix_at(adata, location, choosing=True)
    names = _protein_names(adata, protein_expression_obsm_key, protein_names_uns_key)
    modalities = (
        CountMatrix(RNA, location, tuple(map(str, adata.var_names)), None, GENES),
        CountMatrix(PROTEIN, f"obsm/{protein_expression_obsm_key}", names, None, PROTEINS, protein_names_uns_key),
    )
    arguments = {
        "protein_expression_obsm_key": protein_expression_obsm_key,
        "protein_names_uns_key": protein_names_uns_key,
        "protein_mask_obsm_key": protein_mask_obsm_key,
        "layer": layer,
    }
    mask = None if protein_mask_obsm_key is None else f"obsm/{protein_mask_obsm_key}"
    return _with_gaps(adata, read(adata, modalities, given, roles, arguments), mask)


def setup_proteins_mudata(
    mdata: MuData,
    given: Mapping[str, Any],
    roles: RolesOf,
    *,
    rna_layer: str | None = None,
    protein_layer: str | None = None,
    protein_mask_layer: str | None = None,
    modalities: Mapping[str, str | None] | None = None,
) -> Registry:
    """Record which parts of a MuData with RNA and protein a model shall use; as :func:`setup_proteins`.

    Parameters
    ----------
    mdata
        Modalities that share cells; it is only read. Every cell has RNA; one without proteins was not measured there.
    given, roles
        Columns of ``obs``, looked for in ``mdata.obs`` first, then in the modalities', and what they are for.
    rna_layer, protein_layer
        Layers with the counts; ``None`` for ``X``.
    protein_mask_layer
        Layer of the proteins that is true where a protein was measured.
    modalities
        Which modality each argument is about: ``{"rna_layer": "rna", "protein_layer": "protein"}``, and for columns of
        a modality's ``obs``, ``{"batch_key": "rna"}``. By default RNA and protein are told by their features and names.
    """
    mdata = as_mudata(mdata)
    chosen = _chosen(mdata, dict(modalities or {}), roles)
    found = []
    for name, layer, kind in ((RNA, rna_layer, GENES), (PROTEIN, protein_layer, PROTEINS)):
        part = chosen[f"{name}_layer"]
        assert part is not None
        adata = checked(mdata.mod[part], part_text(part))
        location = location_of(layer)
        matrix_at(adata, location, part_text(part), choosing=True)
        found.append(CountMatrix(name, location, tuple(map(str, adata.var_names)), part, kind))
    rows = rows_of(mdata, found[0].part)
    if rows is not None and (rows < 0).any():
        message = (
            f"{int((rows < 0).sum()):,} cells of the MuData have no RNA ({part_text(found[0].part)}); this model "
            "needs RNA in every cell, and can do without proteins. Leave these cells out."
        )
        raise DataError(message)
    arguments = {
        "rna_layer": rna_layer,
        "protein_layer": protein_layer,
        "protein_mask_layer": protein_mask_layer,
        "modalities": chosen,
    }
    mask = None if protein_mask_layer is None else f"layers/{protein_mask_layer}"
    keys = {argument: _of_modality(mdata, given[argument], chosen.get(argument)) for argument in roles}
    return _with_gaps(mdata, read(mdata, tuple(found), keys, roles, arguments), mask)


def _with_gaps(data: Container, registry: Registry, mask: str | None) -> Registry:
    """Add which proteins were not measured where."""
    rna, protein = registry.modalities
    panel = registry.factor(registry.covariates.panel)
    protein = dataclasses.replace(protein, gaps=Gaps(panel.column, mask))
    registry = dataclasses.replace(registry, modalities=(rna, protein))
    dataset = bind(data, registry)
    _check_some(dataset)
    present = dataset.present.get(PROTEIN)
    told = mask is not None or (PROTEIN in dataset.patterns and (present is None or _has_gaps(dataset, present)))
    if told:
        return registry
    levels = dataset.codes[:, panel.column].numpy()
    return with_unmeasured(registry, unmeasured_by_level(dataset.sources[PROTEIN], levels, panel.n_levels))


def _check_some(dataset: Dataset) -> None:
    """Refuse proteins of which nothing is known."""
    modality = dataset.registry.modality(PROTEIN)
    where = location_text(modality.location, part_text(modality.part))
    if PROTEIN in dataset.patterns and not bool(dataset.patterns[PROTEIN].table.any()):
        message = (
            f"No protein was measured in any cell: {where} holds nothing but NaN, or the mask leaves nothing; do the "
            "names of its cells match those of the RNA?"
        )
        raise DataError(message)
    if not any(bool(block.values.any()) for block in dataset.sources[PROTEIN].blocks()):
        message = f"{where} has no counts: all are zero, and there is nothing to learn of proteins."
        raise DataError(message)


def with_unmeasured_in_new_panels(registry: Registry, known: Registry, data: Container) -> Registry:
    """Count proteins without any count in a new panel as not measured there, unless NaN or a mask tells.

    Parameters
    ----------
    registry
        With the panels of a query.
    known
        Without them.
    data
        The query.
    """
    gaps = registry.modality(PROTEIN).gaps
    assert gaps is not None
    dataset = bind(data, registry, ROLES - {"labels"})
    present = dataset.present.get(PROTEIN)
    told = PROTEIN in dataset.patterns and (present is None or _has_gaps(dataset, present))
    n_known, n_levels = (len(r.columns[gaps.column].categories) for r in (known, registry))
    if gaps.mask is not None or told or n_known == n_levels:
        return registry
    sums = dataset.level_sums(PROTEIN, [gaps.column])[0]
    before = (*gaps.unmeasured, *[()] * (n_known - len(gaps.unmeasured)))
    new = tuple(tuple(int(i) for i in (row == 0).nonzero()) if row.any() else () for row in sums[n_known:])
    return with_unmeasured(registry, (*before, *new))


def with_unmeasured(registry: Registry, unmeasured: tuple[tuple[int, ...], ...]) -> Registry:
    """Return a registry with other proteins that count as not measured, by level of the panel."""
    rna, protein = registry.modalities
    assert protein.gaps is not None
    gaps = dataclasses.replace(protein.gaps, unmeasured=unmeasured)
    return dataclasses.replace(registry, modalities=(rna, dataclasses.replace(protein, gaps=gaps)))


def _has_gaps(dataset: Any, present: Any) -> bool:
    """Whether some cell that has proteins lacks some of them."""
    patterns = dataset.patterns[PROTEIN]
    return not bool(patterns.table[patterns.code[present]].all())


def _protein_names(adata: AnnData, key: str, names_key: str | None) -> tuple[str, ...]:
    if key not in adata.obsm:
        known = list(adata.obsm)
        message = (
            f"protein_expression_obsm_key: adata.obsm has no {key!r}; it has {shorten(known)}."
            f"{did_you_mean(key, known)}"
        )
        raise UnknownNameError(message)
    names = tuple(feature_names(adata, f"obsm/{key}", names_key))
    if not names:
        message = f"adata.obsm[{key!r}] has no columns; at least one protein is needed."
        raise DataError(message)
    return names


def _chosen(mdata: MuData, asked: dict[str, str | None], roles: RolesOf) -> dict[str, str | None]:
    """Which modality each argument is about."""
    known = (*_LAYERS, *roles)
    for argument, part in asked.items():
        if argument not in known:
            message = f"modalities has no argument {argument!r}; it takes {shorten(known, limit=len(known))}."
            raise OptionError(message + did_you_mean(argument, known))
        if part is not None and part not in mdata.mod:
            parts = list(mdata.mod)
            message = (
                f"modalities[{argument!r}]: the MuData has no modality {part!r}; it has {shorten(parts)}."
                f"{did_you_mean(part, parts)}"
            )
            raise UnknownNameError(message)
    for argument, kind, words in (("rna_layer", GENES, "RNA"), ("protein_layer", PROTEINS, "protein")):
        if asked.get(argument) is None:
            of_kind = [part for part in mdata.mod if feature_type_of(cast("AnnData", mdata.mod[part]), part) == kind]
            if len(of_kind) != 1:
                message = (
                    f"{len(of_kind)} modalities of the MuData look like {words}; it has {shorten(list(mdata.mod))}. "
                    f"Say which one it is: modalities={{{argument!r}: ...}}."
                )
                raise OptionError(message)
            asked[argument] = of_kind[0]
    if asked["rna_layer"] == asked["protein_layer"]:
        message = f"modalities names {asked['rna_layer']!r} as RNA and as protein; they are two modalities."
        raise OptionError(message)
    return asked


def _of_modality(mdata: MuData, given: Any, part: str | None) -> Any:
    """Spell columns of one modality's ``obs`` as ``modality:column``."""
    if part is None or given is None:
        return given
    columns = mdata.mod[part].obs.columns
    spelled = [f"{part}:{key}" if key in columns else key for key in ([given] if isinstance(given, str) else given)]
    return spelled[0] if isinstance(given, str) else spelled
