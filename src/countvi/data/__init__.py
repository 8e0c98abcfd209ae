"""From AnnData to sparse minibatches: set-up, validation, alignment, splits and loading."""

from __future__ import annotations

from countvi.data.dataset import Dataset, bind, prepare_query
from countvi.data.loader import epoch_batches, epoch_pools, even_batches
from countvi.data.registry import Column, Modality, Registry
from countvi.data.rows import ColumnMap
from countvi.data.setup import SetupRecords, recall, remember, setup_anndata
from countvi.data.source import BackedSource, CountSource, InMemorySource, open_source
from countvi.data.splits import Split, make_split, split_from_indices
from countvi.data.validate import CountSummary, check_counts, summarize

__all__ = [
    "BackedSource",
    "Column",
    "ColumnMap",
    "CountSource",
    "CountSummary",
    "Dataset",
    "InMemorySource",
    "Modality",
    "Registry",
    "SetupRecords",
    "Split",
    "bind",
    "check_counts",
    "epoch_batches",
    "epoch_pools",
    "even_batches",
    "make_split",
    "open_source",
    "prepare_query",
    "recall",
    "remember",
    "setup_anndata",
    "split_from_indices",
    "summarize",
]
