"""Saved models: the countvi model folder, and scvi-tools archives read without running their pickles."""

from countvi.files.folder import DATA_FILE, MANIFEST_FILE, MUDATA_FILE, TENSORS_FILE, read_model, write_model
from countvi.files.manifest import DIGEST, FORMAT_VERSION, MIGRATIONS, Manifest
from countvi.files.scvi_archive import ScviArchive, read_scvi_archive

__all__ = [
    "DATA_FILE",
    "DIGEST",
    "FORMAT_VERSION",
    "MANIFEST_FILE",
    "MIGRATIONS",
    "MUDATA_FILE",
    "TENSORS_FILE",
    "Manifest",
    "ScviArchive",
    "read_model",
    "read_scvi_archive",
    "write_model",
]
