"""CXRReportGen's request and reply, so that its clients can talk to any reporter.

A request is ``{"input_data": {"columns": [...], "index": [0, ...], "data": [[...], ...]}, "params": {}}`` with images
as base64; the reply is a list with one ``{"output": TEXT}`` a row, where TEXT is JSON: ``[[sentence, null], [sentence,
[[x1, y1, x2, y2], ...]], ...]`` with boxes as fractions of the centre square of the shorter side.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roentgen.errors import UserError
from roentgen.files import read_bytes
from roentgen.images import read_image
from roentgen.prompts import parse
from roentgen.prompts.labels import NO_FINDING
from roentgen.reports import boxes
from roentgen.reports.base import Context, Finding, Image, Report

COLUMNS = (*("frontal_image", "lateral_image", "indication", "technique", "comparison", "prior_image", "prior_report"),)
IMAGES = ("frontal_image", "lateral_image", "prior_image")


@dataclass(frozen=True)
class Row:
    """One study of a request."""

    image: Image
    context: Context


def to_cxrreportgen(report: Report, width: int, height: int) -> list[list[Any]]:
    """``[[sentence, null | boxes], ...]`` of a report on an image ``width`` x ``height``.

    A box outside the centre square cannot be said in this convention and is left out.
    """
    rows: list[list[Any]] = []
    for finding in report.findings:
        said = [boxes.to_cxrreportgen(box, width, height) for box in finding.boxes]
        rows.append([finding.text, [list(box) for box in said if box is not None] or None])
    if not rows:
        rows.append([report.text or " ".join(report.warnings), None])
    return rows


def from_cxrreportgen(rows: Sequence[Sequence[Any]], width: int, height: int) -> Report:
    """The report that a reply's rows say; labels and sides are read off each sentence by roentgen's own rules."""
    findings = []
    for sentence, places in rows:
        found = [boxes.from_cxrreportgen(place, width, height) for place in places or ()]
        labels = parse(str(sentence))
        names = [name for name in labels.findings if name != NO_FINDING]
        label = names[0] if names else None
        findings.append(
            Finding(
                text=str(sentence),
                label=label,
                boxes=tuple(box for box in found if box is not None),
                side=labels.sides.get(label) if label else None,
                present=label is not None,
            )
        )
    return Report(tuple(findings), " ".join(finding.text for finding in findings))


def write_reply(reports: Sequence[Report], images: Sequence[Image]) -> list[dict[str, str]]:
    """The reply to a request: one ``{"output": JSON text}`` a row."""
    return [
        {"output": json.dumps(to_cxrreportgen(report, image.shape[1], image.shape[0]), ensure_ascii=False)}
        for report, image in zip(reports, images, strict=True)
    ]


def read_reply(reply: Sequence[Mapping[str, str]]) -> list[list[list[Any]]]:
    """The rows of each output; UserError where the reply is not in this format."""
    try:
        return [json.loads(one["output"]) for one in reply]
    except (TypeError, KeyError, ValueError):
        raise UserError('the reply is not CXRReportGen\'s: expected a list of {"output": JSON text}') from None


def write_request(studies: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A request for studies that map names of ``COLUMNS`` to texts, and images to files or their bytes."""
    data = []
    for study in studies:
        unknown = [name for name in study if name not in COLUMNS]
        if unknown:
            raise UserError(f"unknown column {unknown[0]!r}; CXRReportGen's are {', '.join(COLUMNS)}")
        data.append([_encoded(study.get(name)) if name in IMAGES else study.get(name, "") for name in COLUMNS])
    return {"input_data": {"columns": list(COLUMNS), "index": list(range(len(data))), "data": data}, "params": {}}


def _encoded(image: Any) -> str:
    if image is None or image == "":
        return ""
    content = image if isinstance(image, bytes) else read_bytes(Path(image))
    return base64.b64encode(content).decode()


def _read(what: str, data: bytes) -> Image:
    return read_image(what, data=data)


def read_request(payload: Any, *, read: Callable[[str, bytes], Image] = _read) -> list[Row]:
    """The studies of a request; UserError, which names row and column, where something is wrong.

    ``read`` makes uint8 grey [H, W] of a file's name, for errors, and its bytes.
    """
    table = payload.get("input_data") if isinstance(payload, Mapping) else None
    if not isinstance(table, Mapping) or not isinstance(table.get("data"), list):
        raise UserError("input_data: missing; send {'input_data': {'columns': [...], 'index': [...], 'data': [[...]]}}")
    columns = table.get("columns")
    columns = list(COLUMNS) if columns is None else columns
    named = isinstance(columns, list) and all(isinstance(name, str) for name in columns)
    if not named or "frontal_image" not in columns:
        raise UserError(f"input_data.columns: must hold frontal_image; CXRReportGen's are {', '.join(COLUMNS)}")
    if not table["data"]:
        raise UserError("input_data.data: has no rows; send at least one study")
    rows = []
    for number, cells in enumerate(table["data"]):
        if not isinstance(cells, list) or len(cells) != len(columns):
            raise UserError(f"input_data.data, row {number}: must be a list of {len(columns)} cells, as columns says")
        study = dict(zip(columns, cells, strict=True))
        pixels: dict[str, Any] = {name: _decoded(study.get(name), f"{name} of row {number}", read) for name in IMAGES}
        frontal = pixels.pop("frontal_image")
        if frontal is None:
            raise UserError(f"frontal_image of row {number}: is empty; send the image as base64")
        texts: dict[str, Any] = {name: str(study.get(name) or "") for name in COLUMNS if name not in IMAGES}
        rows.append(Row(frontal, Context(**pixels, **texts)))
    return rows


def _decoded(cell: Any, what: str, read: Callable[[str, bytes], Image]) -> Image | None:
    if cell is None or cell == "":
        return None
    if not isinstance(cell, str):
        raise UserError(f"{what}: must be base64 text; send the bytes of a PNG, JPEG or DICOM file as base64")
    return read(what, from_base64(cell, what))


def from_base64(text: str, what: str) -> bytes:
    """The bytes of base64 text or of a data URL; UserError, which begins with ``what``, where it is neither."""
    body = text.partition(",")[2] if text.startswith("data:") else text
    try:  # Python's encodebytes, which CXRReportGen's own example uses, breaks lines
        return base64.b64decode("".join(body.split()), validate=True)
    except (binascii.Error, ValueError):
        raise UserError(f"{what}: cannot be read as base64; send the bytes of a PNG, JPEG or DICOM file") from None
