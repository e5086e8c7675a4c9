"""The report of an evaluation: one HTML file that needs nothing else, light or dark, readable without colour.

It is made from the result files alone (and pictures handed over as arrays), gives no verdict, and names what was not
computed with the reason. Every text from outside (prompts, paths, file names) is escaped.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

PICTURE = 224  # pixels: the longer side of a picture in the report
LONG = 40  # characters: parts of a condition beyond this stand on lines of their own
STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1c; --page: #fff; --quiet: #555; --line: #ddd; --strong: #444;
  --box: #f5f5f3; --link: #1f4e79; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --page: #16181b; --quiet: #a9adb3; --line: #3a3e44;
  --strong: #8b9097; --box: #22252a; --link: #8cbdf0; } figure.plot img { background: #fff; border-radius: 4px; } }
@media print { :root { --ink: #000; --page: #fff; --quiet: #444; --line: #bbb; --box: #fff; --link: #000; } }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; color: var(--ink);
  background: var(--page); max-width: 1080px; margin: 0 auto; padding: 28px 24px 60px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 4px; }
h2 { font-size: 19px; margin: 40px 0 8px; padding-bottom: 4px; border-bottom: 1px solid var(--line); }
h3 { font-size: 15px; margin: 24px 0 4px; }
p { margin: 6px 0 10px; max-width: 80ch; }
.quiet, figcaption, caption { color: var(--quiet); font-size: 13px; }
nav { font-size: 13px; margin: 10px 0 0; } nav a { margin-right: 14px; } a { color: var(--link); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; margin: 8px 0; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding: 2px 0 6px; }
th, td { text-align: right; padding: 5px 9px; border-bottom: 1px solid var(--line); vertical-align: top; }
th:first-child, td:first-child, .text { text-align: left; }
thead th { border-bottom: 2px solid var(--strong); font-weight: 600; }
tbody th { font-weight: 500; text-align: left; min-width: 16ch; }
td .interval, td .of { display: block; color: var(--quiet); font-size: 12px; white-space: nowrap; }
td .of { white-space: normal; max-width: 27ch; margin-left: auto; } td .value { white-space: nowrap; }
ul { margin: 6px 0; padding-left: 22px; } li { margin: 2px 0; }
sup { font-size: 10px; line-height: 0; margin-left: 2px; }
code, pre { font: 12.5px/1.45 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
code { overflow-wrap: anywhere; }
pre { background: var(--box); border: 1px solid var(--line); padding: 9px 11px;
  white-space: pre-wrap; overflow-wrap: anywhere; }
figure { margin: 14px 0 22px; break-inside: avoid; } figure.plot img { max-width: 100%; height: auto; }
.panel { display: grid; gap: 12px 10px; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); margin-top: 8px; }
.panel.pairs { grid-template-columns: repeat(auto-fill, minmax(316px, 1fr)); }
.item { break-inside: avoid; } .item .pictures { display: flex; gap: 4px; }
.item .pictures > div { flex: 1 1 0; min-width: 0; }
.item img { width: 100%; height: auto; display: block; background: #000; aspect-ratio: 1; object-fit: contain; }
.item .note { font-size: 12px; line-height: 1.35; margin-top: 3px; overflow-wrap: anywhere; }
.item .tag { font-size: 11.5px; color: var(--quiet); }
dl { display: grid; grid-template-columns: minmax(120px, max-content) 1fr; gap: 3px 16px; font-size: 13.5px; }
dt { color: var(--quiet); } dd { margin: 0; overflow-wrap: anywhere; }
@media print { body { max-width: none; padding: 0; font-size: 11pt; } nav { display: none; }
  h2 { break-after: avoid; } tr, .item { break-inside: avoid; } .scroll { overflow: visible; }
  a { color: inherit; text-decoration: none; } }
"""


@dataclass(frozen=True)
class Picture:
    """One item of a panel: images side by side, each with a short tag, and a note below them."""

    images: Sequence[NDArray[np.uint8]]
    tags: Sequence[str]
    note: str


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
    """One line of the summary: what was measured, and what bounds it; entries are value, ci, n (and ``what``)."""

    measure: str
    group: str
    entry: Mapping[str, Any]
    floor: Mapping[str, Any] | None
    ceiling: Mapping[str, Any] | None
    better: str
    warnings: Sequence[str]
    reconstructed: Mapping[str, Any] | None = None


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


def cell(entry: Mapping[str, Any] | None) -> str:
    """A table cell: the value, its interval below, and what it is of."""
    if entry is None or entry.get("value") is None:
        return "–"
    text = f'<span class="value">{number(entry["value"])}</span>'
    if span := interval(entry):
        text += f'<span class="interval">{span}</span>'
    if entry.get("what"):
        what = html.escape(str(entry["what"])).replace("n = ", "n&nbsp;=&nbsp;")
        text += f'<span class="of">{what}</span>'
    return text


def table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, caption: str = "", text_columns: Sequence[int] = ()
) -> str:
    """An HTML table; cells are HTML already, the header is text."""

    def kind(column: int) -> str:
        return ' class="text"' if column in text_columns else ""

    heads = "".join(f'<th scope="col"{kind(i)}>{html.escape(name)}</th>' for i, name in enumerate(header))
    body = "\n".join(
        "<tr>"
        + f'<th scope="row">{row[0]}</th>'
        + "".join(f"<td{kind(i)}>{value}</td>" for i, value in enumerate(row[1:], 1))
        + "</tr>"
        for row in rows
    )
    above = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    return f'<div class="scroll"><table>{above}<thead><tr>{heads}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def render(report: Report) -> str:
    """The whole page as text."""
    escape = html.escape
    notes = {text: place for place, text in enumerate(dict.fromkeys([*_line_warnings(report), *report.warnings]), 1)}
    sections: list[tuple[str, str, str]] = []
    if report.lines:
        sections.append(("summary", "Summary", _summary(report, notes)))
    if notes:
        items = "".join(f'<li id="w{place}">{escape(text)}</li>' for text, place in notes.items())
        sections.append(("warnings", "Warnings", f"<ol>{items}</ol>"))
    if report.missing:
        rows = [[escape(name), escape(reason)] for name, reason in report.missing]
        sections.append(("missing", "Not computed", table(["measure", "reason"], rows, text_columns=(1,))))
    if report.plots:
        sections.append(("plots", "Plots", "".join(map(_plot, report.plots))))
    if report.tables:
        # Without a summary the tables are the summary.
        place = len(sections) if report.lines else 0
        parts = [
            table(header, [[escape(value) for value in row] for row in rows], caption=f"{title}. {about}")
            for title, about, header, rows in report.tables
        ]
        sections.insert(place, ("tables", "Tables", "".join(parts)))
    if report.panels:
        sections.append(("images", "Images", "".join(map(_panel, report.panels))))
    sections.append(
        ("conditions", "Conditions", f"<pre>{escape(report.command)}</pre>{_conditions(report.conditions)}")
    )
    links = "".join(f'<a href="#{name}">{title}</a>' for name, title, _ in sections)
    body = "\n".join(f'<section id="{name}"><h2>{title}</h2>{content}</section>' for name, title, content in sections)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(report.title)}</title><style>{STYLE}</style></head>\n<body>\n"
        f'<header><h1>{escape(report.title)}</h1><p class="quiet">{escape(report.subtitle)}</p>'
        f"<nav>{links}</nav></header>\n{body}\n</body></html>\n"
    )


def _line_warnings(report: Report) -> list[str]:
    return [warning for line in report.lines for warning in line.warnings]


def _summary(report: Report, notes: Mapping[str, int]) -> str:
    rows = []
    rebuilt = any(line.reconstructed for line in report.lines)
    for line in report.lines:
        places = [notes[warning] for warning in dict.fromkeys(line.warnings)]
        marks = ",".join(f'<a href="#w{place}">{place}</a>' for place in places)
        name = html.escape(line.measure) + (f"<sup>{marks}</sup>" if marks else "")
        if line.group:
            name += f'<span class="quiet"> · {html.escape(line.group)}</span>'
        count = line.entry.get("n")
        rows.append(
            [
                name,
                cell(line.entry),
                cell(line.floor),
                cell(line.ceiling),
                *([cell(line.reconstructed)] if rebuilt else []),
                "–" if count is None else f"{int(count):,}",
                html.escape(line.better),
            ]
        )
    about = (
        "Below a value: its 95 % interval. Floor and ceiling bound the measure: what chance alone would give, and what "
        "real images give; each says what it is of. Reconstructed: real images through the model's "
        "autoencoder. Raised numbers lead to the warnings."
    )
    header = ["measure", "generated", "floor", "ceiling", *(["reconstructed"] if rebuilt else []), "n", "better"]
    return table(header, rows, caption=about, text_columns=(len(header) - 1,))


def _plot(plot: Plot) -> str:
    data = base64.b64encode(plot.svg.encode()).decode()
    return (
        f'<figure class="plot"><h3>{html.escape(plot.title)}</h3>'
        f'<img src="data:image/svg+xml;base64,{data}" alt="{html.escape(plot.alt)}">'
        f"<figcaption>{html.escape(plot.caption)}</figcaption></figure>"
    )


def _panel(panel: Panel) -> str:
    pairs = any(len(picture.images) > 1 for picture in panel.pictures)
    items = []
    for picture in panel.pictures:
        shown = "".join(
            f'<div><img src="{data_uri(image)}" alt="{html.escape(f"{tag} {picture.note}".strip())}">'
            + (f'<div class="tag">{html.escape(tag)}</div>' if tag else "")
            + "</div>"
            for image, tag in zip(picture.images, picture.tags, strict=True)
        )
        note = f'<div class="note">{html.escape(picture.note)}</div>'
        items.append(f'<div class="item"><div class="pictures">{shown}</div>{note}</div>')
    return (
        f'<h3>{html.escape(panel.title)}</h3><p class="quiet">{html.escape(panel.about)}</p>'
        f'<div class="panel{" pairs" if pairs else ""}">{"".join(items)}</div>'
    )


def _conditions(conditions: Mapping[str, Any]) -> str:
    rows = []
    for name, value in conditions.items():
        if isinstance(value, Mapping):
            parts = [f"{key}: {item}" for key, item in value.items()]
        elif isinstance(value, list | tuple):
            parts = [str(item) for item in value]
        else:
            parts = [str(value)]
        # What has long parts, such as the methods of the intervals, is a list to be looked up in.
        joint = "<br>" if len(parts) > 1 and max(map(len, parts)) > LONG else "; "
        rows.append(f"<dt>{html.escape(str(name))}</dt><dd>{joint.join(map(html.escape, parts))}</dd>")
    return f"<dl>{''.join(rows)}</dl>"


def data_uri(image: NDArray[np.uint8], longest: int = PICTURE) -> str:
    """A grey uint8 (H, W) image as a PNG data URI, made smaller where its longer side is above ``longest``."""
    from PIL import Image

    picture = Image.fromarray(image)
    scale = longest / max(picture.size)
    if scale < 1:
        size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
