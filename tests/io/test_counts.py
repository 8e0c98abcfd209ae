"""Count matrices from disk: .h5ad and the .h5 of Cell Ranger."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import scipy.sparse as sp

import countvi
from countvi.errors import CountviError, DataError, FileFormatError

COUNTS = np.array([[1, 0, 0, 9], [0, 2, 0, 0], [0, 0, 0, 0], [4, 0, 5, 7], [0, 0, 6, 0]], np.int32)  # cells x features


def write_10x(path, *, names=("A", "B", "A", "CD3"), kinds=("Gene Expression",) * 3 + ("Antibody Capture",)):
    """Write as Cell Ranger 3 does: features x cells, compressed by columns."""
    matrix = sp.csc_matrix(COUNTS.T)
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        group["data"] = matrix.data.astype(np.int32)
        group["indices"] = matrix.indices.astype(np.int64)
        group["indptr"] = matrix.indptr.astype(np.int64)
        group["shape"] = np.array(matrix.shape, np.int32)
        group["barcodes"] = np.array([f"BC{i}-1" for i in range(5)], "S10")
        features = group.create_group("features")
        features["id"] = np.array([f"ENSG{i}" for i in range(4)], "S10")
        features["name"] = np.array(names, "S10")
        features["feature_type"] = np.array(kinds, "S20")
        features["genome"] = np.array(["hg"] * 4, "S5")
    return path


def test_a_file_of_cell_ranger(tmp_path):
    adata = countvi.io.read_counts(write_10x(tmp_path / "filtered.h5"))
    np.testing.assert_array_equal(adata.X.toarray(), COUNTS[:, :3])
    assert sp.issparse(adata.X)
    assert adata.X.format == "csr"
    assert list(adata.obs_names) == [f"BC{i}-1" for i in range(5)]
    assert list(adata.var_names) == ["A", "B", "A-1"]
    assert list(adata.var["gene_ids"]) == ["ENSG0", "ENSG1", "ENSG2"]


def test_it_can_be_used_at_once(tmp_path, fit):
    path = write_10x(tmp_path / "filtered.h5", names=("A", "B", "C", "CD3"))
    with pytest.warns(countvi.errors.DataWarning, match="1 of 5 cells have no counts"):
        model = fit(countvi.io.read_counts(path))
    assert np.isfinite(model.get_latent_representation()).all()


def test_h5ad(simulate, tmp_path):
    adata = simulate()
    adata.write_h5ad(tmp_path / "cells.h5ad")
    for path in (tmp_path / "cells.h5ad", str(tmp_path / "cells.h5ad")):
        read = countvi.io.read_counts(path)
        assert not read.isbacked
        np.testing.assert_array_equal(read.X.toarray(), adata.X.toarray())
    backed = countvi.io.read_counts(tmp_path / "cells.h5ad", backed=True)
    assert backed.isbacked
    backed.file.close()


def test_what_cannot_be_read(simulate, tmp_path):
    (tmp_path / "text.h5").write_text("not HDF5")
    (tmp_path / "text.h5ad").write_text("not HDF5")
    (tmp_path / "table.csv").write_text("a,b")
    (tmp_path / "folder.h5").mkdir()
    with h5py.File(tmp_path / "old.h5", "w") as file:
        file.create_group("GRCh38")
    with h5py.File(write_10x(tmp_path / "partial.h5"), "a") as file:
        del file["matrix/indptr"]
    with h5py.File(write_10x(tmp_path / "short.h5"), "a") as file:
        del file["matrix/barcodes"]
        file["matrix/barcodes"] = np.array(["BC0-1"], "S10")
    for name, message in [
        ("nothing.h5ad", "There is no file"),
        ("nothing.h5", "There is no file"),
        ("text.h5", "not a readable HDF5 file"),
        ("folder.h5", "not a readable HDF5 file"),
        ("text.h5ad", r"not a readable \.h5ad file"),
        ("table.csv", r"must end in \.h5ad, or in \.h5 \(Cell Ranger\)"),
        ("old.h5", "not one of Cell Ranger 3 or later"),
        ("partial.h5", "partial.h5"),
        ("short.h5", "short.h5"),
    ]:
        with pytest.raises(FileFormatError, match=message) as caught:
            countvi.io.read_counts(tmp_path / name)
        assert isinstance(caught.value, CountviError)


def test_a_matrix_saved_as_h5ad_by_its_name_only(tmp_path):
    """HDF5, but not an AnnData."""
    with h5py.File(tmp_path / "x.h5ad", "w") as file:
        file["x"] = np.zeros(3)
    try:
        adata = countvi.io.read_counts(tmp_path / "x.h5ad")
    except FileFormatError:
        return
    with pytest.raises(CountviError, match="empty"):
        countvi.SCVI.setup_anndata(adata)


def test_a_file_of_antibodies(tmp_path):
    path = write_10x(tmp_path / "adt.h5", kinds=("Antibody Capture",) * 4)
    with pytest.raises(FileFormatError, match=r"no features of type 'Gene Expression'.*it has 'Antibody Capture'"):
        countvi.io.read_counts(path)


@pytest.mark.parametrize(("array", "value"), [("indices", -1), ("indices", 2**31 - 5), ("indptr", 99), ("indptr", -4)])
def test_a_broken_matrix_is_an_error(simulate, tmp_path, array, value):
    """It was the end of the interpreter."""
    with h5py.File(write_10x(tmp_path / "broken.h5"), "a") as file:
        file[f"matrix/{array}"][2] = value
    with pytest.raises(DataError, match=r"broken\.h5 is broken: its ind"):
        countvi.io.read_counts(tmp_path / "broken.h5")
    adata = simulate()
    adata.layers["other"] = adata.X.tocsc()
    for where in ("X", "layers/other"):
        adata.write_h5ad(tmp_path / "broken.h5ad")
        with h5py.File(tmp_path / "broken.h5ad", "a") as file:
            file[f"{where}/{array}"][2] = value if array == "indices" or value < 0 else 10**6
        with pytest.raises(DataError, match=r"broken\.h5ad is broken: its ind"):
            countvi.io.read_counts(tmp_path / "broken.h5ad")
