"""Writing and reading ``.h5mu`` files; mudata itself would turn text into categories in the user's object."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import pandas as pd

from countvi.data.storable import storable, storable_table

if TYPE_CHECKING:
    from mudata import MuData

# The file starts with 512 bytes in front of HDF5 that say what it is.
_HEADER = 512
_VERSION = "0.1.0"


def write_h5mu(mdata: MuData, path: Path) -> None:
    """Write a MuData to a new ``.h5mu`` file, which mudata reads.

    Parameters
    ----------
    mdata
        In memory or backed; it is only read.
    path
        The file.
    """
    from anndata.io import write_elem

    with h5py.File(path, "w", userblock_size=_HEADER) as file:
        for name in ("obs", "var"):
            table = pd.DataFrame(getattr(mdata, name))
            changed = storable_table(table)
            write_elem(file, name, table if changed is None else changed)
        for name in ("obsm", "varm", "obsp", "varp", "uns", "obsmap", "varmap"):
            write_elem(file, name, dict(getattr(mdata, name)))
        for name, adata in mdata.mod.items():
            write_elem(file, f"mod/{name}", storable(adata))
        file["mod"].attrs["mod-order"] = list(mdata.mod)
        file.attrs.update({"axis": mdata.axis, "encoding-type": "MuData", "encoding-version": _VERSION})
    with path.open("r+b") as stream:
        stream.write(f"MuData (format-version={_VERSION};creator=countvi)".encode().ljust(_HEADER, b"\0"))


def read_h5mu(path: Path) -> MuData:
    """Read what :func:`write_h5mu` or mudata wrote, into memory."""
    import mudata

    with mudata.set_options(pull_on_update=False):
        return mudata.read_h5mu(path)
