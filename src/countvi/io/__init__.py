"""Bringing foreign files in."""

from countvi.io.counts import read_counts, read_mudata
from countvi.io.scvi_tools import load_scvi_tools

__all__ = ["load_scvi_tools", "read_counts", "read_mudata"]
