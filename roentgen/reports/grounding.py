"""From a finding's map to its boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roentgen.reports.boxes import Box, holds, suppress

KEEP = 4  # boxes of one finding at most
OVERLAP = 0.3  # IoU above which two boxes are one


def regressed_boxes(places: NDArray[np.float32], edges: NDArray[np.float32], *, threshold: float) -> tuple[Box, ...]:
    """Boxes of one finding from its map and the regressed edges, best first; at least one.

    Each cell at or above ``threshold`` proposes the box that its edges say, and so does the highest cell in any case.
    Of boxes that overlap, the one with the most support stays, and at most ``KEEP`` do: scores are the map's
    value times that of the box's middle, since cells in the middle of a finding know its edges best.

    Args:
        places: probabilities (h, w).
        edges: distances (4, h, w) from the cell's centre to left, top, right, bottom, in fractions of the image.
        threshold: of the map.
    """
    height, width = places.shape
    rows, columns = np.nonzero(places >= min(threshold, float(places.max())))
    boxes: list[Box] = []
    scores: list[float] = []
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        x, y = (column + 0.5) / width, (row + 0.5) / height
        left, top, right, bottom = edges[:, row, column].tolist()
        box = (max(0.0, x - left), max(0.0, y - top), min(1.0, x + right), min(1.0, y + bottom))
        if box[2] <= box[0] or box[3] <= box[1]:
            continue
        middle_y = min(height - 1, int((box[1] + box[3]) / 2 * height))
        middle_x = min(width - 1, int((box[0] + box[2]) / 2 * width))
        boxes.append(box)
        scores.append(float(places[row, column] * places[middle_y, middle_x]))
    return tuple(boxes[index] for index in suppress(boxes, scores, most=OVERLAP, keep=KEEP))


def peak_box(places: NDArray[np.float32], size: Sequence[float]) -> tuple[Box, ...]:
    """One box of a known ``size`` (width, height in fractions) around the highest part of a map (h, w)."""
    height, width = places.shape
    row, column = np.unravel_index(int(places.argmax()), places.shape)
    near = np.zeros_like(places)
    window = (slice(max(0, row - 1), row + 2), slice(max(0, column - 1), column + 2))
    near[window] = places[window]
    total = float(near.sum()) or 1.0
    x = float((near.sum(0) * (np.arange(width) + 0.5)).sum()) / total / width
    y = float((near.sum(1) * (np.arange(height) + 0.5)).sum()) / total / height
    half_x, half_y = size[0] / 2, size[1] / 2
    x, y = min(max(x, half_x), 1 - half_x), min(max(y, half_y), 1 - half_y)
    return ((x - half_x, y - half_y, x + half_x, y + half_y),)


def boxes_of(
    label: str, places: NDArray[np.float32], edges: NDArray[np.float32], places_info: Mapping[str, Any]
) -> tuple[Box, ...]:
    """The boxes of a finding as ``config.json`` says that they are found: regressed, of a known size, or none."""
    how = places_info.get(label)
    if how is None:
        return ()
    if how["how"] == "regressed":
        return regressed_boxes(places, edges, threshold=float(how["threshold"]))
    return peak_box(places, how["size"])


def on_side(boxes: Sequence[Box], side: str | None) -> tuple[Box, ...]:
    """The boxes that a patient's side allows; all of them where that leaves none."""
    if side not in ("left", "right"):
        return tuple(boxes)
    half: Box = (0.5, 0.0, 1.0, 1.0) if side == "left" else (0.0, 0.0, 0.5, 1.0)
    kept = tuple(box for box in boxes if holds(half, (box[0] + box[2]) / 2, 0.5))
    return kept or tuple(boxes)
