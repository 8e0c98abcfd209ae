"""What the features of a matrix are: genes, peaks or proteins, in the words of 10x Genomics."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

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


def _known(word: str) -> str | None:
    spelled = re.sub(r"[\s_\-]+", " ", word).strip().casefold()
    return next((kind for kind, words in _WORDS.items() if spelled in words), None)
