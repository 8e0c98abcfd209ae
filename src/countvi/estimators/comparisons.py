"""Differential expression: which cells are compared and how, from the arguments of a user to a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from countvi import query
from countvi.data import BATCH_COLUMN, Registry
from countvi.data.container import obs_column
from countvi.errors import OptionError, UnknownNameError, choose, did_you_mean, shorten
from countvi.estimators.names import resolve_batches, resolve_rows
from countvi.estimators.options import NOT_NEGATIVE, SHARE, WHOLE

if TYPE_CHECKING:
    from torch import Tensor

    from countvi.batch import Design
    from countvi.data.container import Container

AS_SCVI_TOOLS = "scvi-tools"
"""Name of the convention that reproduces scvi-tools."""


@dataclass(frozen=True, eq=False)
class ComparedFeatures:
    """The features of a table of differential expression.

    Parameters
    ----------
    names
        Index of the table.
    expression
        From latent variables and design to what is compared, ``(cells, features)``.
    counts
        Modalities whose observed counts belong to the features, in their order.
    pseudocounts
        Default of ``pseudocounts``: ``None``, and NaN for a feature, is a tenth of a count.
    normalized
        For each of ``counts``, whether counts per 10,000 counts mean something.
    """

    names: np.ndarray
    expression: Callable[[Any, Design], Tensor]
    counts: Sequence[str]
    pseudocounts: float | np.ndarray | None = None
    normalized: Sequence[bool] = (True,)


@dataclass(frozen=True)
class NamedComparison:
    """A comparison and what it is called; no names where rows were given instead of groups."""

    comparison: query.Comparison
    group1: Any = None
    group2: Any = None

    @property
    def label(self) -> str:
        """Name of the comparison."""
        return f"{self.group1} vs {self.group2}"


@dataclass(frozen=True, eq=False)
class Groups:
    """Which cells are compared, as a user says it; see :meth:`countvi.SCVI.differential_expression`."""

    groupby: str | None = None
    group1: Any = None
    group2: Any = None
    idx1: Any = None
    idx2: Any = None
    subset_idx: Any = None

    def resolve(self, data: Container) -> tuple[np.ndarray, list[NamedComparison]]:
        """Return the rows of all cells that take part, and the comparisons.

        Raises
        ------
        OptionError
            If it is not clear what is compared with what, or a population is empty.
        UnknownNameError
            If a column or a group does not exist.
        """
        everyone = np.arange(data.n_obs) if self.subset_idx is None else np.unique(_rows(self.subset_idx, data))
        if (self.groupby is None) == (self.idx1 is None):
            message = "Say which cells to compare by groupby= (a column of obs), or by idx1=; one of the two is needed."
            raise OptionError(message)
        found = self._by_rows(data, everyone) if self.groupby is None else self._by_column(data, everyone)
        for named in found:
            _check_sizes(named, len(everyone))
        return everyone, found

    def _by_rows(self, data: Container, everyone: np.ndarray) -> list[NamedComparison]:
        if self.group1 is not None or self.group2 is not None:
            message = "group1 and group2 name categories of groupby, which is not given; use idx1 and idx2 alone."
            raise OptionError(message)
        first = np.intersect1d(_rows(self.idx1, data), everyone)
        second = None if self.idx2 is None else np.intersect1d(_rows(self.idx2, data), everyone)
        return [NamedComparison(query.Comparison(first, second))]

    def _by_column(self, data: Container, everyone: np.ndarray) -> list[NamedComparison]:
        assert self.groupby is not None
        if self.idx2 is not None:
            message = "idx2 goes with idx1; with groupby, name the second group by group2."
            raise OptionError(message)
        column = obs_column(data, self.groupby, "groupby").iloc[everyone].astype("category")
        column = column.cat.remove_unused_categories()
        categories = list(column.cat.categories)
        members = {c: everyone[np.flatnonzero(column.cat.codes == i)] for i, c in enumerate(categories)}
        wanted = categories if self.group1 is None else _as_list(self.group1)
        if self.group1 is None and self.group2 is not None:
            wanted = [group for group in wanted if group != self.group2]
        for group in [*wanted, *([] if self.group2 is None else [self.group2])]:
            if group not in members:
                message = (
                    f"{group!r} is no group of obs[{self.groupby!r}]; there are {shorten(categories, limit=10)}."
                    f"{did_you_mean(group, categories)}"
                )
                raise UnknownNameError(message)
        if self.group2 in wanted:
            message = f"{self.group2!r} cannot be compared with itself: it is in group1 and in group2."
            raise OptionError(message)
        if len(categories) < 2 and len(everyone) == len(members[categories[0]] if categories else ()):
            message = f"obs[{self.groupby!r}] has a single group, {shorten(categories)}; a comparison needs two."
            raise OptionError(message)
        second = None if self.group2 is None else members[self.group2]
        name = "Rest" if self.group2 is None else self.group2
        return [NamedComparison(query.Comparison(members[group], second), group, name) for group in wanted]


@dataclass(frozen=True, eq=False)
class ComparisonOptions:
    """Everything else that a user says; see :meth:`countvi.SCVI.differential_expression`."""

    mode: str = "change"
    delta: float | None = 0.25
    pseudocounts: Any = None
    threshold_counts: float = 0.01
    test_mode: str = "three"
    change_fn: Any = None
    m1_domain_fn: Callable[[Any], Any] | None = None
    cred_interval_lvls: Sequence[float] | None = None
    all_stats: bool = True
    batch_correction: bool = False
    batchid1: Any = None
    batchid2: Any = None
    fdr_target: float = 0.05
    weights: str = "uniform"
    importance_weighting_kwargs: Mapping[str, Any] | None = None
    filter_outlier_cells: bool = False
    sample_key: str | None = None
    n_samples_overall: int = 5_000
    convention: str = "definition"
    silent: bool = True
    seed: int = 0

    def hypothesis(self, default: float | np.ndarray | None) -> query.Hypothesis:
        """Return what is asked of two populations; ``default`` is that of the pseudocounts."""
        as_scvi_tools = choose("convention", self.convention, {"definition": False, AS_SCVI_TOOLS: True})
        two_sided = choose("test_mode", self.test_mode, {"two": True, "three": False})
        if choose("mode", self.mode, {"vanilla": True, "change": False}):
            if self.sample_key is not None:
                message = "sample_key summarises log fold changes, which mode='vanilla' has none of; use mode='change'."
                raise OptionError(message)
            return query.Greater(strict=as_scvi_tools)
        return query.Change(
            delta=None if self.delta is None else NOT_NEGATIVE("delta", self.delta),
            pseudocounts=default if self.pseudocounts is None else NOT_NEGATIVE("pseudocounts", self.pseudocounts),
            two_sided=two_sided,
            effect=_effect(self.change_fn),
            region=self.m1_domain_fn,
            levels=[SHARE("cred_interval_lvls", level) for level in _as_list(self.cred_interval_lvls or [])],
            of_low=as_scvi_tools,
            shrink=1e-3 if as_scvi_tools else 1.0,
        )

    def levels(self, registry: Registry) -> tuple[list[Any], list[Any]]:
        """Return the covariate levels that both populations are decoded under."""
        if not self.batch_correction:
            if self.batchid1 is not None or self.batchid2 is not None:
                message = "batchid1 and batchid2 name batches to decode under, which needs batch_correction=True."
                raise OptionError(message)
            return [None], [None]
        every = [(BATCH_COLUMN, code) for code in range(registry.batch.n_levels)]
        if registry.columns[BATCH_COLUMN].key is None and (self.batchid1 is None or self.batchid2 is None):
            message = "batch_correction decodes under every batch, but the model was set up without a batch_key."
            raise OptionError(message)
        first, second = (
            every if ids is None else resolve_batches(_as_list(ids), registry) for ids in (self.batchid1, self.batchid2)
        )
        # Draws are paired under the same level where both populations have the same ones, whatever their order.
        same = len(first) == len(second) and all(level in second for level in first)
        return (first, first) if same else (first, second)

    def importance(self) -> query.Importance | None:
        """Return how draws are weighed."""
        return importance(self.weights, self.importance_weighting_kwargs)


def importance(weights: str | None, arguments: Mapping[str, Any] | None) -> query.Importance | None:
    """Return how draws are weighed, from ``weights`` and ``importance_weighting_kwargs``."""
    options = dict(arguments or {})
    known = ("n_mc_samples", "truncation")
    unknown = [name for name in options if name not in known]
    if unknown:
        message = f"importance_weighting_kwargs has no {shorten(unknown)}; there are {shorten(known)}."
        raise OptionError(message)
    if weights is None or not choose("weights", weights, {"uniform": False, "importance": True}):
        if options:
            message = "importance_weighting_kwargs needs weights='importance'."
            raise OptionError(message)
        return None
    n = options.get("n_mc_samples", query.Importance.n_proposals)
    WHOLE("n_mc_samples", n)
    return query.Importance(n, bool(options.get("truncation", False)))


def differential(
    model: Any,
    data: Container,
    feature: ComparedFeatures,
    groups: Groups,
    options: ComparisonOptions,
    batch_size: int | None,
) -> pd.DataFrame:
    """Compare populations of cells; behind ``differential_expression``."""
    WHOLE("n_samples_overall", options.n_samples_overall)
    target = SHARE("fdr_target", options.fdr_target)
    everyone, named = groups.resolve(data)
    view = model.view(data, everyone, batch_size)
    cells = view.cells
    hypothesis, levels = options.hypothesis(feature.pseudocounts), options.levels(model.registry)
    sampler = query.PopulationSampler(
        model.module,
        cells,
        feature.expression,
        len(feature.names),
        options.n_samples_overall,
        options.seed,
        options.importance(),
    )
    if options.filter_outlier_cells:
        named = _without_outliers(named, cells, query.latent_states(model.module, cells), options.seed)
    counts = _counts(named, cells, feature, view.measured)
    plan = query.ComparisonPlan(hypothesis, levels, _replicates(options.sample_key, data), options.threshold_counts)
    tables = []
    found = query.compare(sampler, [item.comparison for item in named], [sums for sums, _ in counts], plan)
    for item, (sums, normalized), columns in zip(
        named, counts, _progress(found, len(named), options.silent), strict=True
    ):
        if options.all_stats:
            columns |= _raw(sums, normalized)
        tables.append(_table(columns, feature.names, item, hypothesis, target))
    return pd.concat(tables)


def _table(
    columns: query.Columns, names: np.ndarray, named: NamedComparison, hypothesis: query.Hypothesis, target: float
) -> pd.DataFrame:
    table = pd.DataFrame(columns, index=names)
    if "proba_de" in table:
        table[f"is_de_fdr_{target}"] = query.expected_fdr(table["proba_de"].to_numpy(), target)
    if "replicate_qvalue" in table:
        table[f"is_de_replicates_fdr_{target}"] = (table["replicate_qvalue"] <= target).to_numpy()
    if named.group2 is not None:
        table["comparison"], table["group1"], table["group2"] = named.label, named.group1, named.group2
    return table.sort_values(hypothesis.sort_by, ascending=False, kind="stable")


def _counts(
    named: Sequence[NamedComparison], cells: query.Cells, feature: ComparedFeatures, measured: Mapping[str, np.ndarray]
) -> list[tuple[tuple[query.CountSums, query.CountSums], np.ndarray]]:
    """Observed counts of both populations of each comparison, and which features have normalised means."""
    populations = [named_.comparison.first for named_ in named]
    seconds: dict[int, int] = {}
    for item in named:
        rows = item.comparison.second
        if rows is not None and id(rows) not in seconds:
            seconds[id(rows)] = len(populations)
            populations.append(rows)
    populations.append(cells.rows)
    parts = [query.sum_counts(cells, populations, name, measured.get(name)) for name in feature.counts]
    sums = [query.CountSums.side_by_side(several) for several in zip(*parts, strict=True)]
    normalized = np.concatenate(
        [np.full(len(part[0].total), flag) for part, flag in zip(parts, feature.normalized, strict=True)]
    )
    out = []
    for i, item in enumerate(named):
        second = item.comparison.second
        rest = sums[-1] - sums[i] if second is None else sums[seconds[id(second)]]
        out.append(((sums[i], rest), normalized))
    return out


def _raw(sums: tuple[query.CountSums, query.CountSums], normalized: np.ndarray) -> query.Columns:
    columns: query.Columns = {}
    for i, part in enumerate(sums, start=1):
        columns[f"raw_mean{i}"] = part.mean
    for i, part in enumerate(sums, start=1):
        columns[f"non_zeros_proportion{i}"] = part.nonzero
    for i, part in enumerate(sums, start=1):
        columns[f"raw_normalized_mean{i}"] = np.where(normalized, part.normalized, np.nan)
    return columns


def _without_outliers(
    named: Sequence[NamedComparison], cells: query.Cells, states: np.ndarray, seed: int
) -> list[NamedComparison]:
    place = np.full(cells.source.n_cells, -1)
    place[cells.rows] = np.arange(len(cells))
    shared: dict[int, np.ndarray] = {}  # what is kept of a second population that several comparisons have

    def bulk(rows: np.ndarray) -> np.ndarray:
        return rows[query.inliers(states[place[rows]], np.random.default_rng(seed))]

    out = []
    for item in named:
        first, second = item.comparison.first, item.comparison.second
        if second is None:
            rest = bulk(np.setdiff1d(cells.rows, first))
        else:
            rest = shared[id(second)] if id(second) in shared else shared.setdefault(id(second), bulk(second))
        out.append(NamedComparison(query.Comparison(bulk(first), rest), item.group1, item.group2))
    return out


def _replicates(key: str | None, data: Container) -> query.Replicates | None:
    if key is None:
        return None
    column = obs_column(data, key, "sample_key").astype("category").cat.remove_unused_categories()
    names = [str(category) for category in column.cat.categories]
    if len(names) < 2:
        message = f"sample_key: obs[{key!r}] has {len(names)} samples; a summary over samples needs at least two."
        raise OptionError(message)
    return query.Replicates(column.cat.codes.to_numpy().astype(np.int64), np.array(names, dtype=object))


def _rows(indices: Any, data: Container) -> np.ndarray:
    if isinstance(indices, str):
        obs = pd.DataFrame(data.obs)
        try:
            mask = np.asarray(obs.eval(indices))
        except Exception as error:
            message = (
                f"{indices!r} is no query of obs: {error}. Write one such as \"cell_type == 'B' and n_genes > 9\"."
            )
            raise OptionError(message) from error
        if mask.dtype != bool or mask.shape != (len(obs),):
            message = f"The query {indices!r} does not say of each cell whether it is meant; it gives {mask.dtype}."
            raise OptionError(message)
        return np.flatnonzero(mask)
    return np.unique(resolve_rows(indices, data.obs_names))


def _check_sizes(named: NamedComparison, n_cells: int) -> None:
    first, second = named.comparison.first, named.comparison.second
    n_second = n_cells - len(first) if second is None else len(second)
    if not len(first) or not n_second:
        which = "first" if not len(first) else "second"
        where = "" if named.group2 is None else f" of {named.label!r}"
        message = f"The {which} population{where} has no cells; a comparison needs at least one in each."
        raise OptionError(message)


def _progress(found: Iterable[query.Columns], total: int, silent: bool) -> Iterator[query.Columns]:
    if silent:
        return iter(found)
    from rich.progress import track

    return iter(track(found, description="Differential expression", total=total))


def _effect(change_fn: Any) -> Any:
    if callable(change_fn):
        return change_fn
    return choose("change_fn", change_fn or "log-fold", {"log-fold": query.log_fold, "difference": query.difference})


def _as_list(values: Any) -> list[Any]:
    return list(values) if isinstance(values, (list, tuple, np.ndarray, pd.Index, pd.Series)) else [values]
