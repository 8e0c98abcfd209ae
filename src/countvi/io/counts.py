"""Reading count matrices: ``.h5ad``, ``.h5mu`` and the ``.h5`` of Cell Ranger."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from countvi.data import read_h5mu
from countvi.errors import FileFormatError, OptionError

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData


def read_counts(path: str | Path, *, backed: bool = False) -> AnnData:
    """Read an ``.h5ad``, or an ``.h5`` as Cell Ranger writes it (version 3 and later).

    Parameters
    ----------
    path
        The file.
    backed
        Leave the matrix of an ``.h5ad`` on disk.

    Returns
    -------
    AnnData
        Cells x features. From a Cell Ranger file only gene expression is kept; ``var`` has ``gene_ids``.

    Raises
    ------
    FileFormatError
        If the file is missing or of another kind.
    """
    path = Path(path)
    if not path.exists():
        message = f"There is no file {path}."
        raise FileFormatError(message)
    if path.suffix == ".h5ad":
        import anndata

        try:
            return anndata.read_h5ad(path, backed="r" if backed else None)
        except Exception as error:  # a foreign file can fail in any way
            message = f"{path} is not a readable .h5ad file: {error}"
            raise FileFormatError(message) from error
    if path.suffix == ".h5":
        return _read_10x(path)
    message = f"{path} must end in .h5ad, or in .h5 (Cell Ranger); convert other formats with scanpy first."
    raise FileFormatError(message)


def read_mudata(path: str | Path) -> MuData:
    """Read an ``.h5mu`` into memory.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    FileFormatError
        If the file is missing or of another kind.
    OptionError
        If mudata is not installed.
    """
    path = Path(path)
    if not path.exists():
        message = f"There is no file {path}."
        raise FileFormatError(message)
    if path.suffix != ".h5mu":
        message = f"{path} must end in .h5mu, a MuData; one AnnData is read by read_counts."
        raise FileFormatError(message)
    try:
        return read_h5mu(path)
    except ImportError as error:
        message = "Reading .h5mu needs mudata, which is not installed; pip install 'countvi[multimodal]'."
        raise OptionError(message) from error
    except Exception as error:  # a foreign file can fail in any way
        message = f"{path} is not a readable .h5mu file: {error}"
        raise FileFormatError(message) from error


def _read_10x(path: Path) -> AnnData:
    import anndata
    import pandas as pd
    from anndata.utils import make_index_unique
    from scipy.sparse import csr_matrix

    try:
        with h5py.File(path, "r") as file:
            if "matrix" not in file or "features" not in file["matrix"]:  # type: ignore[operator]
                message = (
                    f"{path} is an HDF5 file, but not one of Cell Ranger 3 or later: it has no group 'matrix/features'."
                )
                raise FileFormatError(message)
            group: Any = file["matrix"]
            n_features, n_cells = (int(n) for n in group["shape"][:])
            # Cell Ranger stores features x cells by columns, which is cells x features by rows.
            counts = csr_matrix(
                (group["data"][:].astype(np.float32), group["indices"][:], group["indptr"][:]), (n_cells, n_features)
            )
            counts.check_format(full_check=True)  # an index out of range would be read from anywhere in memory
            features = group["features"]
            var = pd.DataFrame({"gene_ids": features["id"].asstr()[:]}, index=features["name"].asstr()[:])
            expressed = features["feature_type"].asstr()[:] == "Gene Expression"
            obs = pd.DataFrame(index=group["barcodes"].asstr()[:])
        var = var.loc[expressed]
        var.index = make_index_unique(var.index)  # symbols recur in the references of Cell Ranger
        return anndata.AnnData(counts[:, expressed], obs=obs, var=var)
    except FileFormatError:
        raise
    except OSError as error:
        message = f"{path} is not a readable HDF5 file: {error}"
        raise FileFormatError(message) from error
    except Exception as error:  # a foreign file can fail in any way
        message = f"{path} is not a complete file of Cell Ranger: {error}"
        raise FileFormatError(message) from error
