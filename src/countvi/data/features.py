"""What the features of a matrix are (genes, peaks or proteins, in the words of 10x Genomics), and their names."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pandas as pd

from countvi.data.source import matrix_at
from countvi.errors import DataError, UnknownNameError, did_you_mean, shorten

if TYPE_CHECKING:
    from anndata import AnnData

GENES = "Gene Expression"
"""Counts of transcripts."""
PEAKS = "Peaks"
"""Counts of fragments in accessible regions."""
PROTEINS = "Antibody Capture"
"""Counts of antibody tags."""

_COLUMNS = ("feature_types", "feature_type")
_WORDS = {
    GENES: {"gene expression", "gene", "genes", "rna", "gex", "mrna", "scrna", "snrna", "transcriptome", "expression"},
    PEAKS: {"peaks", "peak", "atac", "scatac", "snatac", "chromatin", "accessibility", "chromatin accessibility"},
    PROTEINS: {"antibody capture", "antibodies", "adt", "protein", "proteins", "prot", "proteomics"},
}
_REGION = re.compile(r"[A-Za-z0-9_.]+[:\-_]\d+[\-_]\d+")
_MOST = 0.9
"""Share of the names that must be those of regions."""


def feature_type_of(adata: AnnData, name: str) -> str | None:
    """Say what the features of a modality are.

    In this order: the one value of ``var["feature_types"]``, the name of the modality, names of features that are
    genomic regions.

    Parameters
    ----------
    adata
        The modality.
    name
        What it is called.

    Returns
    -------
    str or None
        :data:`GENES`, :data:`PEAKS` or :data:`PROTEINS`; another single value of ``var["feature_types"]`` as it is;
        ``None`` if nothing tells.
    """
    for column in _COLUMNS:
        found = adata.var[column].dropna().unique() if column in adata.var else ()
        if len(found) == 1:
            return _known(str(found[0])) or str(found[0])
    by_name = _known(name)
    if by_name is not None:
        return by_name
    regions = sum(_REGION.fullmatch(str(feature)) is not None for feature in adata.var_names)
    return PEAKS if adata.n_vars and regions >= _MOST * adata.n_vars else None


def feature_names(adata: AnnData, location: str, names_key: str | None = None) -> list[str]:
    """Return the names of the columns of a count matrix.

    Parameters
    ----------
    adata
        The AnnData it lies in.
    location
        ``"X"``, ``"layers/<key>"`` or ``"obsm/<key>"``.
    names_key
        Entry of ``adata.uns`` with the names of the columns of an array in ``obsm``. Without it they are numbered; a
        data frame has its own names.

    Returns
    -------
    list of str
        Those of ``adata.var_names`` for ``X`` and layers.

    Raises
    ------
    UnknownNameError
        If ``obsm`` or ``uns`` has no such entry.
    DataError
        If there are not as many names as columns, or names of columns of ``obsm`` are repeated.
    """
    if not location.startswith("obsm/"):
        return [str(name) for name in adata.var_names]
    key = location.removeprefix("obsm/")
    matrix = matrix_at(adata, location)
    if names_key is not None:
        if names_key not in adata.uns:
            known = list(adata.uns)
            message = f"adata.uns has no {names_key!r}; it has {shorten(known)}.{did_you_mean(names_key, known)}"
            raise UnknownNameError(message)
        names = [str(name) for name in adata.uns[names_key]]
    else:
        columns = matrix.columns if isinstance(matrix, pd.DataFrame) else range(matrix.shape[1])
        names = [str(name) for name in columns]
    if len(names) != matrix.shape[1]:
        message = (
            f"adata.uns[{names_key!r}] has {len(names)} names for the {matrix.shape[1]} columns of adata.obsm[{key!r}]."
        )
        raise DataError(message)
    repeated = [str(name) for name in pd.Index(names)[pd.Index(names).duplicated()].unique()]
    if repeated:
        message = (
            f"{len(repeated):,} names of columns of adata.obsm[{key!r}] occur more than once: {shorten(repeated)}; "
            "they are matched by name, so names must be distinct."
        )
        raise DataError(message)
    return names


def _known(word: str) -> str | None:
    spelled = re.sub(r"[\s_\-]+", " ", word).strip().casefold()
    return next((kind for kind, words in _WORDS.items() if spelled in words), None)
