"""The page of ``roentgen data check``: one HTML file that holds its images, and needs no network."""

from __future__ import annotations

import base64
import html
import io
import random
from pathlib import Path

import pandas as pd
from PIL import Image

from roentgen.data.check import Report, severity_of
from roentgen.files import write_atomic
from roentgen.images import read_image

THUMBNAIL = 128  # pixels, longer side
GALLERY = 48  # images drawn at random
MAX_ROWS = 2000  # of one kind, so that a page about a broken set can still be opened

STYLE = """
:root { color-scheme: light dark; --ink: #1c2126; --paper: #fff; --line: #dfe3e8;
        --error: #b3261e; --warning: #8a5a00; --note: #47606f; --ok: #1b6e3c; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #dfe4ea; --paper: #14181c; --line: #333b43;
          --error: #ff8a80; --warning: #f0b95a; --note: #9db4c3; --ok: #7fd09c; }
}
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem;
       color: var(--ink); background: var(--paper); }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; margin: .6rem 0; font-size: .88rem; }
th, td { padding: .2rem .7rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
th:first-child, td:first-child, td.text { text-align: left; }
td.text { overflow-wrap: break-word; min-width: 9ch; max-width: 60ch; } td.text:first-child { min-width: 16ch; }
.error { color: var(--error); } .warning { color: var(--warning); } .note { color: var(--note); }
.ok { color: var(--ok); }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: .9rem; }
figure { margin: 0; font-size: .78rem; } figure img { display: block; background: #000; max-width: 100%; }
figcaption { overflow-wrap: anywhere; margin-top: .25rem; }
details { margin: .5rem 0; } summary { cursor: pointer; }
.scroll { overflow-x: auto; }
"""


def write_page(report: Report, path: Path, *, thumbnails: int = 24) -> None:
    """Write the page atomically.

    Args:
        report: from ``check_manifest``.
        path: target file; its folder is made.
        thumbnails: images to show for each kind of problem.

    Raises:
        UserError: when it cannot be written.
    """
    write_atomic(path, page(report, thumbnails=thumbnails).encode())


def page(report: Report, *, thumbnails: int) -> str:
    """The page as HTML text."""
    title = f"Data check of {html.escape(report.manifest.name)}"
    counts = [
        f'<span class="{severity if number else "ok"}">{number:,} {severity}{"s" * (number != 1)}</span>'
        for severity in ("error", "warning", "note")
        for number in [report.count(severity)]
    ]
    patients = report.table["patient_id"].nunique()
    parts = [
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{STYLE}</style></head><body><h1>{title}</h1>",
        f"<p>{len(report.table):,} images of {patients:,} patients: {', '.join(counts)}.</p>",
    ]
    parts += [f'<p class="note">Note: {html.escape(note)}.</p>' for note in report.notes]
    order = ("error", "warning", "note")
    for kind in sorted(report.problems, key=lambda kind: order.index(severity_of(kind))):
        parts.append(_problem_section(report, kind, thumbnails))
    for name, table in report.statistics.items():
        parts.append(f"<h2>{html.escape(name)}</h2>{_table(table)}")
    rows = [index for index, fact in enumerate(report.facts) if not fact.error]
    rows = sorted(random.Random(0).sample(rows, min(GALLERY, len(rows))))
    parts.append(f"<h2>{len(rows)} images drawn at random</h2>")
    parts.append(_grid([_figure(report, row, str(report.table.at[row, "text"])) for row in rows]))
    return "\n".join([*parts, "</body></html>\n"])


def _problem_section(report: Report, kind: str, thumbnails: int) -> str:
    found = report.problems[kind]
    severity = severity_of(kind)
    shown = [
        _figure(report, problem.row - 1, problem.message)
        for problem in [p for p in found if not report.facts[p.row - 1].error][:thumbnails]
    ]
    records = [
        {
            "row": problem.row,
            "patient": report.table.at[problem.row - 1, "patient_id"],
            "split": report.table.at[problem.row - 1, "split"],
            "what": problem.message,
            "image": report.table.at[problem.row - 1, "image"],
        }
        for problem in found[:MAX_ROWS]
    ]
    listing = _table(pd.DataFrame(records))
    if len(found) > MAX_ROWS:
        listing += f"<p>The first {MAX_ROWS:,} of {len(found):,}.</p>"
    opened = " open" if severity == "error" and len(found) <= 20 else ""
    return (
        f'<h2 class="{severity}">{severity.capitalize()}: {html.escape(kind)} ({len(found):,})</h2>'
        f"{_grid(shown)}<details{opened}><summary>List</summary>{listing}</details>"
    )


def _grid(figures: list[str]) -> str:
    return f'<div class="grid">{"".join(figures)}</div>' if figures else ""


def _figure(report: Report, row: int, caption: str) -> str:
    """Thumbnail of a readable image with its row, labels' source and a caption."""
    pixels = Image.fromarray(read_image(report.table.at[row, "image"]))
    pixels.thumbnail((THUMBNAIL, THUMBNAIL))
    stored = io.BytesIO()
    pixels.save(stored, format="JPEG", quality=85)
    data = base64.b64encode(stored.getvalue()).decode()
    cells = [f"row {row + 1}", *(str(report.table.at[row, column]) for column in ("split", "view"))]
    head = ", ".join(cell for cell in cells if cell)
    return (
        f'<figure><img src="data:image/jpeg;base64,{data}" alt="row {row + 1}">'
        f"<figcaption>{html.escape(head)}<br>{html.escape(caption)}</figcaption></figure>"
    )


def _table(table: pd.DataFrame) -> str:
    head = "".join(f"<th>{html.escape(str(column))}</th>" for column in table.columns)
    body = "".join(
        "<tr>" + "".join(_cell(value) for value in record) + "</tr>"
        for record in table.itertuples(index=False, name=None)
    )
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def _cell(value: object) -> str:
    if isinstance(value, str):
        return f'<td class="text">{html.escape(value)}</td>'
    return f"<td>{value:,}</td>" if isinstance(value, int) else f"<td>{value:g}</td>"
