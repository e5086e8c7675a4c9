"""Tables of boxes: where findings are in images, beside a manifest.

Two forms are read: a CSV with a row a box (``image``, ``label``, ``x``, ``y``, ``width``, ``height`` in fractions of
the image, from its upper left corner), and the ``metadata.csv`` of an openchest folder (``file``, and in ``boxes`` a
JSON list of [label, x, y, width, height]).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from roentgen.data.manifest import absolute_images, simple_name
from roentgen.data.tables import column_names, read_table
from roentgen.errors import UserError
from roentgen.prompts import FINDINGS

COLUMNS = ("image", "label", "x", "y", "width", "height")
Corner = tuple[float, float, float, float]
"""x, y of the upper left corner, width, height, in fractions of the image."""
SLACK = 0.01  # that rounding in somebody's table may put an edge outside the image


def read_boxes(paths: Sequence[Path]) -> dict[str, list[tuple[str, Corner]]]:
    """(label, corner and size) of every box by absolute image path, in the order of the tables.

    Raises:
        UserError: a table cannot be read; a box lies outside its image, has no area or an unknown label.
    """
    found: dict[str, list[tuple[str, Corner]]] = {}
    for path in paths:
        what = f"--boxes {path}"
        for line, image, label, numbers in _rows(path, what):
            where = f"{what}, line {line}"
            (name,) = absolute_images([image], path.parent)
            found.setdefault(name, []).append((_label(label, where), _corner(numbers, where)))
    if not any(found.values()):
        raise UserError(f"--boxes {', '.join(map(str, paths))}: holds no boxes")
    return found


def by_label(entries: Sequence[tuple[str, Corner]]) -> dict[str, tuple[Corner, ...]]:
    """Boxes (x1, y1, x2, y2) of an image by label, in the order of its ``entries``."""
    found: dict[str, tuple[Corner, ...]] = {}
    for label, (x, y, width, height) in entries:
        found[label] = (*found.get(label, ()), (x, y, x + width, y + height))
    return found


def _rows(path: Path, what: str) -> Iterator[tuple[int, str, object, Sequence[object]]]:
    if "boxes" in column_names(path):
        table = read_table(path, required=("file", "boxes"), name=what, lines=True)
        for line, row in zip(table.index, table.to_dict("records"), strict=True):
            try:
                entries = json.loads(row["boxes"] or "[]")
                for label, *numbers in entries:
                    yield int(line), row["file"], label, numbers
            except (TypeError, ValueError):
                raise UserError(
                    f"{what}, line {line}: boxes is no JSON list of [label, x, y, width, height]; correct it"
                ) from None
        return
    table = read_table(path, required=COLUMNS, name=what, lines=True, fix="write a row a box")
    for line, row in zip(table.index, table.to_dict("records"), strict=True):
        yield int(line), row["image"], row["label"], [row[name] for name in COLUMNS[2:]]


def _label(label: object, where: str) -> str:
    known = {simple_name(name): name for name in FINDINGS}
    name = known.get(simple_name(str(label)))
    if name is None:
        raise UserError(f"{where}: unknown label {label!r}; known are {', '.join(FINDINGS)}")
    return name


def _corner(numbers: Sequence[object], where: str) -> Corner:
    try:
        x, y, width, height = (float(str(value)) for value in numbers)
    except ValueError:
        raise UserError(f"{where}: a box needs four numbers x, y, width, height, not {list(numbers)}") from None
    if not all(map(math.isfinite, (x, y, width, height))):
        raise UserError(f"{where}: a box needs four numbers x, y, width, height, not {list(numbers)}")
    if not (width > 0 and height > 0):
        raise UserError(f"{where}: the box has no area (width {width:g}, height {height:g}); correct or remove it")
    if min(x, y) < -SLACK or max(x + width, y + height) > 1 + SLACK:
        raise UserError(
            f"{where}: the box ({x:g}, {y:g}, {width:g}, {height:g}) lies outside the image; write x, y, width and "
            "height as fractions of the image"
        )
    left, top = max(0.0, x), max(0.0, y)
    return left, top, min(width - (left - x), 1.0 - left), min(height - (top - y), 1.0 - top)
