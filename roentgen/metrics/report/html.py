"""The report of an evaluation: one HTML file that needs nothing else, light or dark, readable without colour.

It is made from the result files alone (and pictures handed over as arrays), gives no verdict, and names what was not
computed with the reason. Every text from outside (prompts, paths, file names) is escaped by Jinja2.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, Template
from numpy.typing import NDArray
from PIL import Image

from roentgen.images import marks_of, png_bytes

PICTURE = 224  # pixels: the longer side of a picture in the report


@dataclass(frozen=True)
class Picture:
    """One item of a panel: images side by side, each with a short tag, and a note below them."""

    images: Sequence[NDArray[np.uint8]]
    tags: Sequence[str]
    note: str
    paths: Sequence[Path | None] = (None, None)  # where images come from: marks of generated ones go into the page, too


@dataclass(frozen=True)
class Panel:
    """A titled grid of pictures; ``about`` says how they were chosen."""

    title: str
    about: str
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Plot:
    """A drawing (SVG text) with its caption; ``alt`` tells in words what it shows."""

    title: str
    svg: str
    caption: str
    alt: str


@dataclass(frozen=True)
class Line:
    """One line of the summary: what was measured; ``entry`` is value, ci, n, and what bounds it, an entry each."""

    measure: str
    group: str
    entry: Mapping[str, Any]
    better: str
    warnings: Sequence[str]


@dataclass(frozen=True)
class Report:
    """Everything on the page."""

    title: str
    subtitle: str
    lines: Sequence[Line]
    warnings: Sequence[str]
    missing: Sequence[tuple[str, str]]
    plots: Sequence[Plot]
    panels: Sequence[Panel]
    tables: Sequence[tuple[str, str, Sequence[str], Sequence[Sequence[str]]]]
    conditions: Mapping[str, Any]
    command: str


def number(value: Any, digits: int = 3) -> str:
    """``digits`` significant digits without exponents where that can be read; an en dash for nothing."""
    if value is None or isinstance(value, str) or not math.isfinite(value):
        return "–" if not isinstance(value, str) else value
    if abs(value) < 1e-12:  # what rounding leaves of 0
        return "0"
    size = math.floor(math.log10(abs(value)))
    if size < -4:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{max(0, digits - 1 - size)}f}"


def interval(entry: Mapping[str, Any] | None) -> str:
    """ "0.71 to 0.77", or "" where there is none; as many decimals as the value has."""
    low, high = (entry or {}).get("ci") or (None, None)
    if low is None or high is None:
        return ""
    return f"{number(low)} to {number(high)}"


def spelled(entry: Mapping[str, Any] | None) -> str:
    """ "0.74 [0.71, 0.77]" """
    if entry is None or entry.get("value") is None:
        return "–"
    low, high = entry.get("ci") or (None, None)
    span = "" if low is None or high is None else f" [{number(low)}, {number(high)}]"
    return f"{number(entry['value'])}{span}"


def render(report: Report) -> str:
    """The whole page as text."""
    warnings = [warning for line in report.lines for warning in line.warnings]
    notes = {text: place for place, text in enumerate(dict.fromkeys([*warnings, *report.warnings]), 1)}
    tables = ("tables", "Tables", report.tables)
    sections = [
        *([] if report.lines else [tables]),  # without a summary the tables are the summary
        ("summary", "Summary", report.lines),
        ("warnings", "Warnings", notes),
        ("missing", "Not computed", report.missing),
        ("plots", "Plots", report.plots),
        *([tables] if report.lines else []),
        ("images", "Images", report.panels),
        ("conditions", "Conditions", True),
    ]
    shown = [(name, title) for name, title, content in sections if content]
    return _page().render(report=report, notes=notes, sections=shown)


@cache
def _page() -> Template:
    """The page's template, which takes longer to compile than to fill."""
    jinja = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    filters = {"number": number, "interval": interval, "data_uri": data_uri, "svg_uri": _svg_uri, "parts": _parts}
    jinja.filters |= filters
    return jinja.get_template("page.html.jinja")


def _parts(value: Any) -> list[str]:
    """What a condition consists of, as texts."""
    if isinstance(value, Mapping):
        return [f"{key}: {item}" for key, item in value.items()]
    return [str(item) for item in value] if isinstance(value, list | tuple) else [str(value)]


def _svg_uri(svg: str) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"


def data_uri(image: NDArray[np.uint8], path: Path | None = None, longest: int = PICTURE) -> str:
    """A grey uint8 (H, W) image as a PNG data URI, made smaller where its longer side is above ``longest``, with the
    marks of the file ``path`` that it was read from."""
    picture = Image.fromarray(image)
    scale = longest / max(picture.size)
    if scale < 1:
        size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    data = png_bytes(np.asarray(picture), {} if path is None else marks_of(path))
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"
