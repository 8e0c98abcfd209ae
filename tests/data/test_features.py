from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest

from countvi.data.features import GENES, PEAKS, PROTEINS, feature_type_of


def make(names: list[str], **columns: object) -> anndata.AnnData:
    return anndata.AnnData(np.ones((2, len(names)), np.float32), var=pd.DataFrame(columns, index=names))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("rna", GENES),
        ("RNA", GENES),
        ("Gene Expression", GENES),
        ("gene_expression", GENES),
        ("gex", GENES),
        ("ATAC", PEAKS),
        ("chromatin-accessibility", PEAKS),
        ("peaks", PEAKS),
        ("prot", PROTEINS),
        ("ADT", PROTEINS),
        ("mod1", None),
        ("spliced", None),
    ],
)
def test_the_name_tells(name: str, kind: str | None) -> None:
    assert feature_type_of(make(["a", "b"]), name) == kind


def test_the_column_of_10x_comes_first() -> None:
    assert feature_type_of(make(["a", "b"], feature_types="Peaks"), "rna") == PEAKS
    assert feature_type_of(make(["a", "b"], feature_types=pd.Categorical(["Peaks", "Peaks"])), "rna") == PEAKS
    assert feature_type_of(make(["a", "b"], feature_types="CRISPR Guide Capture"), "rna") == "CRISPR Guide Capture"
    assert feature_type_of(make(["a", "b"], feature_types=["Peaks", "Gene Expression"]), "mod1") is None


@pytest.mark.parametrize("name", ["chr1:3094484-3095479", "chrX-12-90", "GL000194.1_114519_115365", "1:5-9"])
def test_names_of_regions_tell(name: str) -> None:
    others = [f"chr2:{i}-{i + 500}" for i in range(9)]
    assert feature_type_of(make([name, *others]), "mod1") == PEAKS
    assert feature_type_of(make([name, "CD3E", *others]), "mod1") == PEAKS  # 10 of 11
    assert feature_type_of(make([name, "CD3E", "CD19"]), "mod1") is None
    assert feature_type_of(make([name, *others]), "rna") == GENES


def test_genes_with_hyphens_are_no_regions() -> None:
    assert feature_type_of(make(["HLA-DRA", "MT-ND1", "RP11-34P13.7", "NKX2-5", "KRTAP5-1-2"]), "mod1") is None
