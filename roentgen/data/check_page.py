"""The page of ``roentgen data check``: one HTML file that holds its images, and needs no network."""

from __future__ import annotations

import base64
import random
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment
from PIL import Image

from roentgen.data.check import Report, severity_of
from roentgen.files import write_atomic
from roentgen.images import jpeg_bytes, marks_of, read_image

THUMBNAIL = 128  # pixels, longer side
GALLERY = 48  # images drawn at random
MAX_ROWS = 2000  # of one kind, so that a page about a broken set can still be opened


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
    """The page as HTML text; what comes from the manifest is escaped."""
    order = ("error", "warning", "note")
    kinds = sorted(report.problems, key=lambda kind: order.index(severity_of(kind)))
    rows = [index for index, fact in enumerate(report.facts) if not fact.error]
    rows = sorted(random.Random(0).sample(rows, min(GALLERY, len(rows))))
    jinja = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = Path(__file__).with_name("check_page.html.jinja").read_text(encoding="utf-8")
    return jinja.from_string(template).render(
        title=f"Data check of {report.manifest.name}",
        images=len(report.table),
        patients=report.table["patient_id"].nunique(),
        counts={severity: report.count(severity) for severity in order},
        notes=report.notes,
        problems=[_problem(report, kind, thumbnails) for kind in kinds],
        statistics=report.statistics,
        drawn=[_figure(report, row, str(report.table.at[row, "text"])) for row in rows],
    )


def _problem(report: Report, kind: str, thumbnails: int) -> dict[str, Any]:
    found = report.problems[kind]
    shown = [problem for problem in found if not report.facts[problem.row - 1].error][:thumbnails]
    rows = report.table.iloc[[problem.row - 1 for problem in found[:MAX_ROWS]]]
    return {
        "kind": kind,
        "severity": severity_of(kind),
        "count": len(found),
        "figures": [_figure(report, problem.row - 1, problem.message) for problem in shown],
        "table": pd.DataFrame(
            {
                "row": [problem.row for problem in found[:MAX_ROWS]],
                "patient": rows["patient_id"].tolist(),
                "split": rows["split"].tolist(),
                "what": [problem.message for problem in found[:MAX_ROWS]],
                "image": rows["image"].tolist(),
            }
        ),
    }


def _figure(report: Report, row: int, caption: str) -> dict[str, Any]:
    """Thumbnail of a readable image with its row, split, view and a caption."""
    pixels = Image.fromarray(read_image(report.table.at[row, "image"]))
    pixels.thumbnail((THUMBNAIL, THUMBNAIL))
    stored = jpeg_bytes(np.asarray(pixels), marks_of(Path(report.table.at[row, "image"])), quality=85)
    cells = [f"row {row + 1}", *(str(report.table.at[row, column]) for column in ("split", "view"))]
    jpeg = base64.b64encode(stored).decode()
    return {"row": row + 1, "jpeg": jpeg, "head": ", ".join(filter(None, cells)), "caption": caption}
