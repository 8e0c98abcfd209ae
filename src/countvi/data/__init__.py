"""From AnnData and MuData to sparse minibatches: set-up, validation, alignment, splits and loading."""

from __future__ import annotations

from countvi.data.compressed_rows import ColumnMap, check_compressed, check_indices, check_offsets
from countvi.data.confounding import confounding_table, warn_of_confounding
from countvi.data.container import MINIFIED_TYPE, is_mudata, obs_column
from countvi.data.covariates import BATCH_COLUMN, LABELS_COLUMN, ROLES, Covariates, Role, RolesOf
from countvi.data.dataset import Dataset, bind, covariate_codes
from countvi.data.extend import extend
from countvi.data.features import GENES, PEAKS, PROTEINS
from countvi.data.h5mu import read_h5mu, write_h5mu
from countvi.data.loader import epoch_batches, epoch_pools, even_batches
from countvi.data.measured import MaskedSource, Patterns
from countvi.data.minified import minified
from countvi.data.moments import variance_ratio
from countvi.data.padding import prepare_query, prepare_query_mudata
from countvi.data.positions import unique_names, with_positions
from countvi.data.proteins import (
    setup_proteins,
    setup_proteins_mudata,
    with_unmeasured,
    with_unmeasured_in_new_panels,
)
from countvi.data.registry import Column, CountMatrix, Gaps, Moments, Registry
from countvi.data.setup import SetupRecords, recall, remember, setup_anndata, setup_mudata
from countvi.data.snapshot import DataSnapshot
from countvi.data.source import BackedSource, CountSource, InMemorySource, UnpairedSource, open_source
from countvi.data.splits import Split, make_split, split_from_indices
from countvi.data.storable import storable
from countvi.data.validate import CountSummary, check_counts, summarize

__all__ = [
    "BATCH_COLUMN",
    "GENES",
    "LABELS_COLUMN",
    "MINIFIED_TYPE",
    "PEAKS",
    "PROTEINS",
    "ROLES",
    "BackedSource",
    "Column",
    "ColumnMap",
    "CountMatrix",
    "CountSource",
    "CountSummary",
    "Covariates",
    "DataSnapshot",
    "Dataset",
    "Gaps",
    "InMemorySource",
    "MaskedSource",
    "Moments",
    "Patterns",
    "Registry",
    "Role",
    "RolesOf",
    "SetupRecords",
    "Split",
    "UnpairedSource",
    "bind",
    "check_compressed",
    "check_counts",
    "check_indices",
    "check_offsets",
    "confounding_table",
    "covariate_codes",
    "epoch_batches",
    "epoch_pools",
    "even_batches",
    "extend",
    "is_mudata",
    "make_split",
    "minified",
    "obs_column",
    "open_source",
    "prepare_query",
    "prepare_query_mudata",
    "read_h5mu",
    "recall",
    "remember",
    "setup_anndata",
    "setup_mudata",
    "setup_proteins",
    "setup_proteins_mudata",
    "split_from_indices",
    "storable",
    "summarize",
    "unique_names",
    "variance_ratio",
    "warn_of_confounding",
    "with_positions",
    "with_unmeasured",
    "with_unmeasured_in_new_panels",
    "write_h5mu",
]
