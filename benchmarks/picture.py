"""Draws ``docs/images/training.png`` from the JSON in ``results/``."""

from __future__ import annotations

import statistics
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from measure import HERE, Comparison

PICTURE = HERE.parent / "docs" / "images" / "training.png"
_WORK = "default training"
_NAMES = {
    "pbmc3k": "SCVI, blood",
    "pbmc4k": "SCVI, blood, three wells",
    "kang": "SCVI, blood, stimulated or not",
    "citeseq": "SCVI, RNA of CITE-seq",
    "pdac": "SCVI, pancreas",
    "TOTALVI, CITE-seq": "TOTALVI, RNA and protein",
}
_ONE_THREAD = "one thread"
"""In the notes of rows whose times are no match for the others'."""
_OURS, _THEIRS = "#1b6ca8", "#b8bcc2"


def draw(sections: dict[str, list[Comparison]], path: Path = PICTURE) -> None:
    """Draw how long both sides train by default, and what held-out likelihood we gain; nothing without such rows."""
    rows = [row for rows in sections.values() for row in rows if row.work.startswith(_WORK)]
    rows = [row for row in rows if row.ours and row.theirs and row.elbo_ours and row.elbo_theirs]
    rows = [row for row in rows if _ONE_THREAD not in row.notes]
    if not rows:
        return
    rows.sort(key=lambda row: statistics.median(row.theirs))
    figure = Figure(figsize=(7.2, 0.6 * len(rows) + 1.0), layout="constrained")
    FigureCanvasAgg(figure)  # no window system, so that it works on a server
    axes = figure.add_subplot()
    ours, theirs = ([statistics.median(times) for times in side] for side in _times(rows))
    gains = [statistics.median(row.elbo_ours) - statistics.median(row.elbo_theirs) for row in rows]
    texts = [f"{_text(second)}, {gain:+.1f} nats per cell" for second, gain in zip(ours, gains, strict=True)]
    sides = (("countvi", _OURS, ours, texts, 0.2), (rows[0].other, _THEIRS, theirs, [*map(_text, theirs)], -0.2))
    for label, color, seconds, labels, shift in sides:
        places = [i + shift for i in range(len(rows))]
        bars = axes.barh(places, seconds, height=0.36, color=color, label=label)
        axes.bar_label(bars, labels, padding=4, fontsize=9)
    axes.set_yticks(range(len(rows)), [_name(row) for row in rows])
    axes.set_xlim(0, 1.12 * max(theirs))
    axes.set_xlabel("seconds")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.legend(frameon=False, loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def _times(rows: list[Comparison]) -> tuple[list[list[float]], list[list[float]]]:
    return [row.ours for row in rows], [row.theirs for row in rows]


def _name(row: Comparison) -> str:
    end = next((key for key in sorted(_NAMES, key=len, reverse=True) if row.work.endswith(key)), row.work)
    cells = row.notes.split(" x ")[0]
    return f"{_NAMES.get(end, end)}\n{cells} cells"


def _text(seconds: float) -> str:
    return f"{seconds:.0f} s"
