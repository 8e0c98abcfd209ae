"""Reading files of other tools: models of scvi-tools, and count matrices."""

from countvi.io.counts import read_counts, read_mudata
from countvi.io.scvi_tools import load_scvi_tools

__all__ = ["load_scvi_tools", "read_counts", "read_mudata"]
