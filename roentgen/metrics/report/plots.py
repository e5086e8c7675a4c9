"""Plots of an evaluation, as SVG text: readable in print and without colour (marks, hatches and line styles differ).

Every function takes plain numbers and returns the same bytes for the same numbers. Matplotlib is used without its
global state, so that nothing is left open and no display is needed.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

Entry = Mapping[str, Any]
"""``{"value": float, "ci": (low, high), ...}``; None stands for what could not be computed."""

INK, BLUE, ORANGE, GREY = "#222222", "#3b6fa5", "#c8741f", "#8a8a8a"
COLOURS = (BLUE, ORANGE, "#5b8c5a", "#8a5a9c", "#a05252", GREY)  # differ in lightness too
MARKERS = ("o", "s", "^", "D", "v", "P")
LINES = ("-", "--", ":", "-.", (0, (5, 1)), (0, (1, 1)))
WIDTH = 7.2  # inches, the text width of a printed page
STYLE: Any = {
    "font.size": 9.0,
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same letters everywhere
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.axisbelow": True,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "roentgen",
}


@contextmanager
def drawing(width: float, height: float) -> Iterator[tuple[Figure, io.StringIO]]:
    """A figure (inches); when the block ends it is drawn into the text buffer."""
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, buffer
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})


def finding_bars(rows: Sequence[Entry], *, axis: str, chance: float | None = None) -> str:
    """A bar a finding with its interval, the most first; ``rows``: finding, value, ci, and optionally positives (or
    n), ``ceiling`` and ``floor`` (each an entry).

    ``axis`` names the measure and its unit. ``chance``: a dotted line there, such as 0.5 for an AUROC.
    """
    shown = sorted((row for row in rows if row.get("value") is not None), key=lambda row: float(row["value"]))
    with drawing(WIDTH, 1.1 + 0.27 * max(len(shown), 1)) as (figure, buffer):
        axes = figure.add_subplot()
        places = np.arange(len(shown))
        values = [float(row["value"]) for row in shown]
        axes.barh(places, values, height=0.62, color=BLUE, alpha=0.45, edgecolor=INK, linewidth=0.6, label="generated")
        _intervals(axes, shown, places)
        for name, marker, label in (("ceiling", "D", "real images"), ("floor", "|", "floor")):
            found = [
                (float(row[name]["value"]), place) for row, place in zip(shown, places, strict=True) if _has(row, name)
            ]
            if found:
                x, y = zip(*found, strict=True)
                size, inside = (5, "white") if marker == "D" else (10, INK)
                axes.plot(x, y, marker, markersize=size, color=INK, markerfacecolor=inside, zorder=4, label=label)
        if chance is not None:
            axes.axvline(chance, color=INK, linestyle=":", linewidth=1, label=f"chance ({chance:g})")
        axes.set_yticks(places, [_name(row) for row in shown])
        _finish(figure, axes, columns=4, grid="x", xlabel=axis, ylim=(-0.6, max(len(shown), 1) - 0.4))
    return buffer.getvalue()


def against_n(curves: Mapping[str, Sequence[Entry]], *, axis: str, limits: Mapping[str, float] | None = None) -> str:
    """Each curve's value at ``n`` images; ``limits``: what it goes to for endless n."""
    with drawing(WIDTH, 3.2) as (figure, buffer):
        axes = figure.add_subplot()
        counts: list[float] = []
        for name, points, colour, style, marker in _styles(curves):
            known = sorted((p for p in points if p.get("value") is not None), key=lambda point: float(point["n"]))
            if not known:
                continue
            n, values = [float(point["n"]) for point in known], [float(point["value"]) for point in known]
            counts += n
            axes.plot(n, values, linestyle=style, marker=marker, color=colour, label=name, markersize=4)
            limit = (limits or {}).get(name)
            if limit is not None and math.isfinite(limit):
                label = f"{name}, endless n: {limit:.3g}"
                axes.axhline(limit, color=colour, linewidth=0.9, linestyle=(0, (1, 2)), label=label)
        if counts and max(counts) / min(counts) > 8:
            axes.set_xscale("log")
        if counts:
            axes.set_xticks(_spread(counts), [f"{n:,.0f}" for n in _spread(counts)])
            axes.set_xticks([], minor=True)
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        _finish(figure, axes, columns=2, xlabel="images (n) on each side", ylabel=axis)
    return buffer.getvalue()


def histograms(edges: Sequence[float], shares: Mapping[str, Sequence[float]], *, axis: str) -> str:
    """Outlined histograms over common ``edges``; ``shares`` are per cent of each set's images in each bin."""
    with drawing(WIDTH, 3.0) as (figure, buffer):
        axes = figure.add_subplot()
        for name, values, colour, style, _ in _styles(shares):
            if colour == COLOURS[0]:
                axes.stairs(values, edges, fill=True, color=colour, alpha=0.25)
            axes.stairs(values, edges, color=colour, linestyle=style, linewidth=1.7, label=name)
        axes.set_ylim(bottom=0)
        _finish(figure, axes, columns=2, grid="y", xlabel=axis, ylabel="images, %")
    return buffer.getvalue()


def reliability(curves: Mapping[str, Sequence[Entry]]) -> str:
    """Reliability curves: bins with mean ``score``, ``frequency`` (share of positives), ``n``; below, images a bin."""
    with drawing(WIDTH * 0.72, 4.6) as (figure, buffer):
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        upper.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":", label="perfect")
        for name, bins, colour, style, marker in _styles(curves):
            known = [b for b in bins if b.get("score") is not None and b.get("frequency") is not None and b.get("n")]
            x, y = ([float(b[key]) for b in known] for key in ("score", "frequency"))
            upper.plot(x, y, marker=marker, color=colour, linestyle=style, label=name, markersize=4.5)
            for b, place, value in zip(known, x, y, strict=True):
                low, high = b.get("ci") or (None, None)
                if low is not None and high is not None:
                    upper.plot([place, place], [min(low, value), max(high, value)], color=colour, linewidth=0.9)
            lower.plot(x, [float(b["n"]) for b in known], marker=marker, color=colour, linestyle=style, markersize=3)
        lower.set_ylim(bottom=0)
        lower.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        _finish(figure, upper, columns=0, xlim=(0, 1), ylim=(0, 1), ylabel="observed share of positives")
        _finish(figure, lower, columns=3, xlabel="predicted probability, mean of the bin", ylabel="labels a bin")
        figure.align_ylabels()
    return buffer.getvalue()


def side_by_side(rows: Sequence[tuple[str, Entry]], *, axis: str, lines: Mapping[str, float] | None = None) -> str:
    """One mark and interval a model for one measure; ``lines``: named vertical lines such as the floor."""
    with drawing(WIDTH, 0.95 + 0.3 * len(rows)) as (figure, buffer):
        axes = figure.add_subplot()
        places = np.arange(len(rows))[::-1]
        for (_, entry), place in zip(rows, places, strict=True):
            if entry.get("value") is None:
                where: Any = ("axes fraction", "data")
                box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
                axes.annotate("not computed", (0.02, place), xycoords=where, va="center", fontsize=8, bbox=box)
                continue
            axes.plot([float(entry["value"])], [place], marker="o", color=BLUE, markersize=6, markeredgecolor=INK)
            _intervals(axes, [entry], np.array([place]))
        for number, (name, value) in enumerate((lines or {}).items()):
            style: Any = LINES[1 + number % (len(LINES) - 1)]
            axes.axvline(value, color=INK, linestyle=style, linewidth=1, label=f"{name} ({value:.3g})")
        axes.set_yticks(places, [name for name, _ in rows])
        _finish(figure, axes, columns=3 if lines else 0, grid="x", xlabel=axis, ylim=(-0.6, len(rows) - 0.4))
    return buffer.getvalue()


def _intervals(axes: Axes, rows: Sequence[Entry], places: Any) -> None:
    for row, place in zip(rows, places, strict=True):
        low, high = row.get("ci") or (None, None)
        if low is not None and high is not None:
            axes.hlines(place, low, high, color=INK, linewidth=1.3, zorder=3)
            axes.plot([low, high], [place, place], linestyle="", marker="|", color=INK, markersize=6, zorder=3)


def _styles(names: Mapping[str, Any]) -> Iterator[tuple[str, Any, str, Any, str]]:
    """Each name with what is drawn of it, and its own colour, line style and marker."""
    for number, (name, what) in enumerate(names.items()):
        yield name, what, *(choice[number % len(choice)] for choice in (COLOURS, LINES, MARKERS))


def _finish(figure: Figure, axes: Axes, *, columns: int, **about: Any) -> None:
    """Labels and limits, a light grid (along one axis, or both) and the legend above."""
    axes.grid(axis=about.pop("grid", "both"), color="#dddddd", linewidth=0.6)
    axes.set(**about)
    if columns:
        figure.legend(loc="outside upper center", ncols=columns, fontsize=8)


def _spread(counts: Sequence[float]) -> list[float]:
    """Those of ``counts`` that are 1.25 times apart, so that their labels do not touch."""
    chosen: list[float] = []
    for count in sorted(set(counts), reverse=True):
        if not chosen or chosen[-1] / count >= 1.25:
            chosen.append(count)
    return chosen


def _has(row: Entry, name: str) -> bool:
    entry = row.get(name)
    return isinstance(entry, Mapping) and entry.get("value") is not None


def _name(row: Entry) -> str:
    """ "Pleural Thickening (n = 9)": findings as people write them, with how many images stand behind the bar."""
    name = str(row["finding"]).replace("_", " ")
    count = row.get("positives", row.get("n"))
    return name if count is None else f"{name} (n = {count})"
