"""Further read-outs of DestVI: thresholds, presence, axes of states, differences between regions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast, final

import numpy as np
import pandas as pd
import scipy.sparse as sp

from countvi import query, seeding
from countvi.batch import RNA
from countvi.data import LABELS_COLUMN
from countvi.errors import DataError, MismatchError, OptionError, UnknownNameError, did_you_mean, shorten
from countvi.estimators.options import WHOLE, Rule
from countvi.estimators.readouts.features import feature_names
from countvi.estimators.readouts.spots import cell_types, get_proportions, type_index

if TYPE_CHECKING:
    from anndata import AnnData

    from countvi.estimators.state import Fitted
    from countvi.models.condscvi import CondSCVI
    from countvi.models.destvi import DestVI

_AT_LEAST_ONE = Rule(float, lambda value: value >= 1, "a number of at least 1")
_FEWEST_SPOTS = 3
_FEWEST_SAMPLES = 2


@final
@dataclass(frozen=True, eq=False)
class PresenceCalls:
    """Which types are in which spots.

    Parameters
    ----------
    probability
        That at least one cell of the type is in the spot: spots x types.
    fdr
        Expected share of false calls if all spots at least as probable are called, for each type: spots x types.
    """

    probability: pd.DataFrame
    fdr: pd.DataFrame

    def called(self, fdr: float = 0.05) -> pd.DataFrame:
        """Return the calls at a false discovery rate: bool, spots x types."""
        return self.fdr <= fdr


@final
@dataclass(frozen=True, eq=False)
class TypeAxes:
    """Axes along which the states of one type vary over a slide.

    Parameters
    ----------
    scores
        Spots x axes.
    summary
        One row per axis: ``variance`` (share of the variance of the states) and ``moran`` (Moran's I).
    genes
        One row per axis and gene: ``correlation`` of the type's log expression with the axis, and ``log2_change`` per
        standard deviation of it; those that correlate most come first.
    """

    scores: pd.DataFrame
    summary: pd.DataFrame
    genes: pd.DataFrame


def get_proportion_thresholds(self: Fitted[DestVI]) -> pd.Series:
    """Return a proportion for each type from which on its states are worth looking at.

    The logarithms of the proportions are cut where the two parts are most alike within (Otsu 1979).

    Returns
    -------
    Series
        By type.
    """
    proportions = get_proportions(self)
    cuts = query.proportion_thresholds(proportions.to_numpy(dtype=np.float64))
    return pd.Series(cuts, index=proportions.columns, name="threshold")


def get_presence(
    self: Fitted[DestVI],
    sc_model: Fitted[CondSCVI],
    *,
    cells_per_spot: float = 6,
    n_states: int = 4,
    seed: int = seeding.DEFAULT_SEED,
) -> PresenceCalls:
    r"""Return the probability that each type is in each spot at all.

    It is learned from spots that are sums of cells of the reference, with the depth of those of the slide: from how
    much of each type seems to be in such a spot to the types that are.

    Parameters
    ----------
    sc_model
        The reference that this model was made from, with its cells.
    cells_per_spot
        Cells that a spot holds on average. The more there are, the more types are likely.
    n_states
        States per type: clusters of its reference cells.
    seed
        Of the clusters, the simulated spots and the forest.

    Returns
    -------
    PresenceCalls
        ``probability`` and ``fdr``, spots x types each; ``called(fdr)`` for calls.

    Raises
    ------
    MismatchError
        If the reference has other types, or lacks genes.
    """
    _AT_LEAST_ONE("cells_per_spot", cells_per_spot)
    WHOLE("n_states", n_states)
    cells = _reference_cells(self, sc_model, n_states, seed)
    # A type of the registry need not have any cells.
    codes, labels = np.unique(cells.labels, return_inverse=True)
    found = query.presence_of_types(
        _counts(self.view().cells),
        cells._replace(labels=labels),
        self.module.log_alpha.detach().cpu().double().exp().numpy(),
        cells_per_spot=cells_per_spot,
        seed=seed,
    )
    probability, fdr = np.zeros((2, len(found.fdr), len(cell_types(self))))
    fdr += 1.0
    probability[:, codes], fdr[:, codes] = found
    return PresenceCalls(_table(self, probability), _table(self, fdr))


def get_state_axes(self: Fitted[DestVI], label: str, *, spatial_key: str = "spatial", n_neighbors: int = 6) -> TypeAxes:
    """Return the directions in which the states of a type vary smoothly over the slide, and their genes.

    Spots count by their proportion of the type. Axes are sorted by the variation that neighbours share.

    Parameters
    ----------
    label
        The type.
    spatial_key
        Where the slide's ``obsm`` has the places of spots.
    n_neighbors
        Neighbours of a spot.

    Returns
    -------
    TypeAxes
        ``scores`` (spots x axes), ``summary`` (a row per axis) and ``genes`` (a row per axis and gene).

    Raises
    ------
    DataError
        If no spot has the type.
    """
    WHOLE("n_neighbors", n_neighbors)
    code, adata = type_index(self, label), _slide(self)
    if spatial_key not in adata.obsm:
        message = f"spatial_key: there is no obsm[{spatial_key!r}].{did_you_mean(spatial_key, adata.obsm)}"
        raise UnknownNameError(message)
    weight = get_proportions(self)[label].to_numpy(dtype=np.float64)
    if not weight.any():
        message = f"No spot has any {label!r}, so that its states vary nowhere. See get_proportions()."
        raise DataError(message)
    cells = self.view().cells
    gamma = query.type_states(self.module, cells)[:, code]
    found = query.spatial_axes(gamma, weight, np.asarray(adata.obsm[spatial_key], dtype=np.float64), n_neighbors)
    correlation, change = query.axis_genes(self.module, cells, code, found.scores, weight)
    axes = pd.Index(np.arange(len(found.moran)), name="axis")
    names = feature_names(self, RNA)
    genes = pd.DataFrame(
        {
            "axis": np.repeat(axes.to_numpy(), len(names)),
            "gene": np.tile(names, len(axes)),
            "correlation": correlation.ravel(),
            "log2_change": change.ravel(),
        }
    )
    order = np.lexsort((-genes["correlation"].abs().to_numpy(), genes["axis"].to_numpy()))
    return TypeAxes(
        scores=pd.DataFrame(found.scores, index=self.dataset.obs_names, columns=axes),
        summary=pd.DataFrame({"variance": found.variance, "moran": found.moran}, index=axes),
        genes=genes.iloc[order].reset_index(drop=True),
    )


def differential_expression(
    self: Fitted[DestVI],
    label: str,
    groupby: str,
    group1: str,
    group2: str | None = None,
    *,
    sample_key: str | None = None,
    min_proportion: float | None = None,
) -> pd.DataFrame:
    """Compare what one type expresses in two groups of spots: regions, conditions.

    Compared is the expression that the model expects of the type in its state, spot by spot. Nothing is drawn. With
    ``sample_key`` the samples are the unit (a moderated t-test on their means); without, the spots are (by ranks),
    and a small p-value then speaks of these slides only.

    Parameters
    ----------
    label
        The type.
    groupby
        Column of the slide's ``obs``.
    group1, group2
        Its categories to compare; without the second, all other spots.
    sample_key
        Column of ``obs`` with the sample (slide, animal, patient) of each spot; at least two in each group.
    min_proportion
        Proportion of the type from which on a spot takes part; by default :meth:`get_proportion_thresholds`.

    Returns
    -------
    DataFrame
        A row per gene, the smallest p-value first: ``mean1`` and ``mean2`` (expected counts of a pure spot per
        count of library), ``log2_change`` of group1 over group2, ``p_value``, ``fdr``.

    Raises
    ------
    OptionError
        If a group has fewer than three such spots, or fewer than two samples, or a sample is in both groups.
    """
    code = type_index(self, label)
    proportion = get_proportions(self)[label].to_numpy(dtype=np.float64)
    least = float(get_proportion_thresholds(self)[label]) if min_proportion is None else min_proportion
    column = _column(self, "groupby", groupby)
    for name, group in (("group1", group1), ("group2", group2)):
        if group is not None and group not in set(column):
            message = f"{name}: obs[{groupby!r}] has no {group!r}; it has {shorten(sorted(set(column)))}."
            raise UnknownNameError(message)
    first = column == group1
    second = ~first if group2 is None else column == group2
    rows = np.flatnonzero((proportion >= least) & (first | second))
    of_first = first[rows]
    if min(of_first.sum(), (~of_first).sum()) < _FEWEST_SPOTS:
        message = (
            f"Of the spots with at least {least:.3g} of {label!r}, {of_first.sum()} are in group1 and "
            f"{(~of_first).sum()} in group2; at least {_FEWEST_SPOTS} each are needed. Lower min_proportion."
        )
        raise OptionError(message)
    samples = None if sample_key is None else _column(self, "sample_key", sample_key)[rows]
    if samples is not None:
        _check_samples(samples, of_first)
    cells = self.view(None, rows, None).cells

    def expression(columns: np.ndarray) -> np.ndarray:
        return cast("np.ndarray", query.type_expression(self.module, cells, code, genes=columns))

    names = feature_names(self, RNA)
    found = query.compare_types(expression, len(names), of_first, proportion[rows], samples)
    table = pd.DataFrame(
        {
            "mean1": found.mean_first,
            "mean2": found.mean_second,
            "log2_change": found.log2_change,
            "p_value": found.p_value,
            "fdr": found.fdr,
        },
        index=names,
    )
    return table.sort_values("p_value", kind="stable")


def _table(model: Fitted[DestVI], values: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(values, index=model.dataset.obs_names, columns=pd.Index(cell_types(model)))


def _slide(model: Fitted[DestVI]) -> AnnData:
    return cast("AnnData", model.container(None))


def _column(model: Fitted[DestVI], argument: str, key: str) -> np.ndarray:
    obs = _slide(model).obs
    if key not in obs:
        message = f"{argument}: there is no obs[{key!r}].{did_you_mean(key, obs.columns)}"
        raise UnknownNameError(message)
    return obs[key].astype(str).to_numpy()


def _reference_cells(
    model: Fitted[DestVI], sc_model: Fitted[CondSCVI], n_states: int, seed: int
) -> query.ReferenceCells:
    """Counts, types and states of the reference's cells."""
    if list(map(str, sc_model.registry.columns[LABELS_COLUMN].categories)) != list(cell_types(model)):
        message = "sc_model has other cell types than the reference that this model was made from."
        raise MismatchError(message)
    names = list(sc_model.registry.modality(RNA).feature_names)
    at = {name: i for i, name in enumerate(names)}
    genes = feature_names(model, RNA)
    missing = [name for name in genes if name not in at]
    if missing:
        message = f"sc_model lacks genes of this model: {shorten(missing)}."
        raise MismatchError(message)
    cells = sc_model.view().cells
    labels = sc_model.dataset.codes[:, LABELS_COLUMN].numpy()
    loc, _ = query.latent_moments(sc_model.module, cells)
    states = query.subclusters(loc, labels, len(cell_types(model)), n_states, seed)
    counts = sp.csr_array(_counts(cells)[:, [at[name] for name in genes]])
    return query.ReferenceCells(counts, labels, states)


def _counts(cells: query.Cells) -> sp.csr_array:
    return query.stacked(query.to_csr(batch.counts[RNA]) for _, batch in cells)


def _check_samples(samples: np.ndarray, first: np.ndarray) -> None:
    one, other = set(samples[first]), set(samples[~first])
    if one & other:
        message = f"sample_key: a sample must be in one group; in both are {shorten(sorted(one & other))}."
        raise OptionError(message)
    if min(len(one), len(other)) < _FEWEST_SAMPLES:
        message = (
            f"sample_key: group1 has {len(one)} samples and group2 {len(other)} with enough of the type; at least "
            f"{_FEWEST_SAMPLES} each are needed. Without sample_key, spots are compared."
        )
        raise OptionError(message)
