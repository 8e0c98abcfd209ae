"""Behind ``countvi deconvolve``: models, tables and maps of a slide in a folder."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import typer

from countvi.cli.commands import Option, signature_of
from countvi.cli.notes import notes
from countvi.cli.values import GivenOptions
from countvi.errors import OptionError, UnknownNameError, did_you_mean

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.figure import Figure

    from countvi.estimators.deconvolution import Deconvolution

_SPATIAL = "spatial"
_COLUMNS = 4
# Letters of a line that are as wide as a map.
_TITLE = 28
_TOP_GENES = 50
_TYPES_PER_GENE = 3
_WRITTEN = ("reference", "slide")


@dataclass(frozen=True)
class _Maps:
    """What is drawn, besides proportions."""

    places: np.ndarray
    genes: tuple[str, ...]
    fdr: float


def options(name: str) -> list[Option]:
    """Return the options of ``"deconvolve"``: the arguments of :func:`countvi.deconvolve`."""
    return signature_of("deconvolve", "Models")


def run(
    *,
    reference: Path,
    spatial: Path,
    out: Path,
    gene: Sequence[str] = (),
    fdr: float = 0.05,
    overwrite: bool = False,
    quiet: bool = False,
    given: GivenOptions,
) -> None:
    """Deconvolve a slide, write everything, and say what was written.

    Parameters
    ----------
    reference
        Single cells with types: .h5ad, or .h5 of Cell Ranger.
    spatial
        The slide; maps need its obsm['spatial'].
    out
        Folder to write to.
    gene
        Gene to draw by type.
    fdr
        False discovery rate of the presence map.
    overwrite
        Replace what an earlier run wrote.
    quiet
        Show no progress.
    given
        What the command was given: these, and the arguments of :func:`countvi.deconvolve`.

    Raises
    ------
    CountviError
        If something is not as it must be; the message says what to do.
    """
    arguments = given.of("deconvolve")
    _check((reference, spatial), out, overwrite)
    with notes():
        import countvi
        from countvi.io import read_counts

        cells, slide = read_counts(reference), read_counts(spatial)
        unknown = next((name for name in gene if name not in slide.var_names), None)
        if unknown is not None:
            message = f"--gene: the slide has no {unknown!r}.{did_you_mean(unknown, slide.var_names)}"
            raise UnknownNameError(message)
        found = countvi.deconvolve(cells, slide, **arguments, enable_progress_bar=not quiet)
        out.mkdir(parents=True, exist_ok=True)
        for name, model in zip(_WRITTEN, (found.reference, found.model), strict=True):
            model.save(out / name, overwrite=True)
        files = _write_tables(found, out)
        if _SPATIAL in slide.obsm:
            import numpy as np

            places = np.asarray(slide.obsm[_SPATIAL], dtype=float)[:, :2]
            files += _write_axes(found, out) + _draw(found, _Maps(places, tuple(gene), fdr), out)
    typer.echo(_report(found, out, files))


def _report(found: Deconvolution, out: Path, files: list[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in files)
    most = cast("pd.Series", found.proportions.mean()).sort_values(ascending=False)
    lines = [
        f"{len(found.proportions):,} spots, {len(most)} types; most frequent: "
        + ", ".join(f"{name} ({share:.0%})" for name, share in most.iloc[:3].items()),
        f"  {out / 'reference'}, {out / 'slide'}: models, for CondSCVI.load and DestVI.load of countvi",
        *(f"  {out / name!s:{width + len(str(out)) + 1}}  {what}" for name, what in files),
    ]
    if "proportions.png" not in dict(files):
        lines.append(f"No maps: the slide has no obsm['{_SPATIAL}'].")
    return "\n".join(lines)


def _check(inputs: Sequence[Path], out: Path, overwrite: bool) -> None:
    for path in inputs:
        if not path.exists():
            message = f"There is no file {path}."
            raise OptionError(message)
    if out.exists() and any(out.iterdir()):
        if not overwrite:
            message = f"{out} is not empty. Pass --overwrite to replace an earlier run, or name another."
            raise OptionError(message)
        for name in _WRITTEN:
            shutil.rmtree(out / name, ignore_errors=True)


def _write_tables(found: Deconvolution, out: Path) -> list[tuple[str, str]]:
    found.proportions.to_csv(out / "proportions.csv")
    found.presence.probability.to_csv(out / "presence.csv")
    found.presence.fdr.to_csv(out / "presence_fdr.csv")
    found.thresholds.to_csv(out / "thresholds.csv")
    return [
        ("proportions.csv", "share of each type in the counts of each spot"),
        ("presence.csv", "probability that a type is in a spot at all"),
        ("presence_fdr.csv", "false discovery rate if all spots as probable are called"),
        ("thresholds.csv", "proportion from which on a type's states are worth looking at"),
    ]


def _write_axes(found: Deconvolution, out: Path) -> list[tuple[str, str]]:
    import pandas as pd

    there = found.proportions.columns[(found.proportions > 0).any()]
    axes = {name: found.model.get_state_axes(name) for name in there}
    summary = pd.concat({name: part.summary for name, part in axes.items()}, names=["type", "axis"])
    summary.to_csv(out / "axes.csv")
    genes = {name: part.genes.groupby("axis").head(_TOP_GENES) for name, part in axes.items()}
    pd.concat(genes, names=["type", None]).droplevel(1).to_csv(out / "axes_genes.csv")
    return [
        ("axes.csv", "directions in which the states of each type vary over the slide"),
        ("axes_genes.csv", f"the {_TOP_GENES} genes that follow each of them most"),
    ]


def _draw(found: Deconvolution, asked: _Maps, out: Path) -> list[tuple[str, str]]:
    called = found.presence.called(asked.fdr)
    maps: list[tuple[str, str, Sequence[tuple[Any, Any]]]] = [
        ("proportions.png", "maps of the proportions", list(found.proportions.items())),
        ("presence.png", f"spots where a type is present, false discovery rate {asked.fdr:g}", list(called.items())),
    ]
    if asked.genes:
        maps.append(("genes.png", "expected counts of the genes asked for, by type", _of_genes(found, asked.genes)))
    for name, _, panels in maps:
        _page([(str(title), values) for title, values in panels], asked.places).savefig(out / name, dpi=110)
    return [(name, what) for name, what, _ in maps]


def _of_genes(found: Deconvolution, genes: tuple[str, ...]) -> list[tuple[str, pd.Series]]:
    """Counts of each gene in the types that have most of them."""
    known = [gene for gene in genes if gene in set(found.model.registry.modalities[0].feature_names)]
    totals: dict[tuple[str, str], pd.Series] = {}
    for label in found.model.cell_types:
        counts = found.model.get_expression_for_ct(label)[known]
        totals.update({(gene, label): counts[gene] for gene in known})
    panels = []
    for gene in known:
        best = sorted(found.model.cell_types, key=lambda label: -totals[gene, label].sum())[:_TYPES_PER_GENE]
        panels += [(f"{gene} in {label}", totals[gene, label]) for label in best]
    return panels


def _page(panels: list[tuple[str, pd.Series]], places: np.ndarray) -> Figure:
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from countvi import plot

    columns = min(_COLUMNS, max(len(panels), 1))
    rows = -(-max(len(panels), 1) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.8 * rows), layout="constrained")
    FigureCanvasAgg(figure)  # no window system, so that it works on a server
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for ax, (title, values) in zip(axes, panels, strict=False):
        plot.spatial(values, places, ax, title=textwrap.fill(title, _TITLE))
    for ax in axes[len(panels) :]:
        ax.axis("off")
    return figure
