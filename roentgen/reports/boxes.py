"""Boxes and their conventions.

Inside roentgen a box is (x1, y1, x2, y2) in fractions of the whole image, from its upper left corner. Others count in
pixels, in fractions of a crop, or in bins of the centre square; every way there has a way back.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from roentgen.errors import UserError

Box = tuple[float, float, float, float]
"""(x1, y1, x2, y2), 0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1."""
BINS = 100
"""CXRReportGen, as MAIRA-2 (arXiv 2406.04449), says each coordinate as the centre of one of so many bins."""


def check_box(box: Sequence[float], *, what: str = "box") -> Box:
    """``box`` as a ``Box``; UserError, which names ``what``, where it is outside the image or has no area."""
    try:
        x1, y1, x2, y2 = (float(value) for value in box)
    except (TypeError, ValueError):
        raise UserError(f"{what}: {box!r} is no box; write four numbers x1, y1, x2, y2") from None
    if not (0 <= x1 <= 1 and 0 <= x2 <= 1 and 0 <= y1 <= 1 and 0 <= y2 <= 1):
        raise UserError(f"{what}: ({x1:g}, {y1:g}, {x2:g}, {y2:g}) lies outside the image; write fractions from 0 to 1")
    if x2 <= x1 or y2 <= y1:
        raise UserError(f"{what}: ({x1:g}, {y1:g}, {x2:g}, {y2:g}) has no area; x2 and y2 must be above x1 and y1")
    return x1, y1, x2, y2


# ------------------------------------------------------------------------------------------------- pixels


def to_pixels(box: Box, width: int, height: int) -> tuple[float, float, float, float]:
    """Edges in pixels of an image ``width`` x ``height``."""
    return box[0] * width, box[1] * height, box[2] * width, box[3] * height


def from_pixels(box: Sequence[float], width: int, height: int) -> Box:
    """The box of edges in pixels, which may end at ``width`` and ``height``."""
    x1, y1, x2, y2 = box
    return check_box((x1 / width, y1 / height, x2 / width, y2 / height), what="box in pixels")


# ------------------------------------------------------------------------------------------------ windows


def into_window(box: Box, window: Box) -> Box | None:
    """``box`` in fractions of ``window``, cut at its edges; None where nothing of it is inside.

    ``window`` is in fractions of the image. One that reaches beyond it, such as (-.1, 0, 1.1, 1), is a padded image.
    """
    width, height = window[2] - window[0], window[3] - window[1]
    x1, x2 = ((value - window[0]) / width for value in (box[0], box[2]))
    y1, y2 = ((value - window[1]) / height for value in (box[1], box[3]))
    x1, y1, x2, y2 = max(0.0, x1), max(0.0, y1), min(1.0, x2), min(1.0, y2)
    return (x1, y1, x2, y2) if x2 > x1 and y2 > y1 else None


def out_of_window(box: Box, window: Box) -> Box | None:
    """The way back from ``into_window``: fractions of the image, cut at its edges."""
    width, height = window[2] - window[0], window[3] - window[1]
    x1, x2 = (min(1.0, max(0.0, window[0] + value * width)) for value in (box[0], box[2]))
    y1, y2 = (min(1.0, max(0.0, window[1] + value * height)) for value in (box[1], box[3]))
    return (x1, y1, x2, y2) if x2 > x1 and y2 > y1 else None


def centre_square(width: int, height: int) -> Box:
    """The centre square of the shorter side as a window of an image ``width`` x ``height``."""
    side = min(width, height)
    x, y = (1 - side / width) / 2, (1 - side / height) / 2
    return x, y, 1 - x, 1 - y


# ------------------------------------------------------------------------------------------- CXRReportGen


def to_cxrreportgen(box: Box, width: int, height: int) -> Box | None:
    """Fractions of the centre square, each the centre of its bin; None where the box lies outside that square."""
    inside = into_window(box, centre_square(width, height))
    if inside is None:
        return None
    x1, y1, x2, y2 = ((min(BINS - 1, int(value * BINS + 1e-9)) + 0.5) / BINS for value in inside)
    return x1, y1, x2, y2


def from_cxrreportgen(box: Sequence[float], width: int, height: int) -> Box | None:
    """Fractions of the whole image from those of the centre square; None where they leave nothing inside it."""
    x1, y1, x2, y2 = (min(1.0, max(0.0, float(value))) for value in box)
    half = 0.5 / BINS
    if x2 <= x1:  # both edges in one bin: the bin's width
        x1, x2 = x1 - half, x1 + half
    if y2 <= y1:
        y1, y2 = y1 - half, y1 + half
    return out_of_window((x1, y1, x2, y2), centre_square(width, height))


# ---------------------------------------------------------------------------------------------- measures


def area(box: Box) -> float:
    """Share of the image."""
    return (box[2] - box[0]) * (box[3] - box[1])


def overlap(one: Box, other: Box) -> float:
    """Area of the intersection, as a share of the image."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)


def iou(one: Box, other: Box) -> float:
    """Intersection over union."""
    inside = overlap(one, other)
    return inside / (area(one) + area(other) - inside)


def centre(box: Box) -> tuple[float, float]:
    """The middle of a box."""
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def holds(box: Box, x: float, y: float) -> bool:
    """Whether a point lies in a box."""
    return box[0] <= x <= box[2] and box[1] <= y <= box[3]


def suppress(boxes: Sequence[Box], scores: Sequence[float], *, most: float, keep: int) -> list[int]:
    """Indices of the boxes that stay, best first.

    None overlaps a better one by more than IoU ``most``, or holds its middle, or has its own middle in it.
    """

    def apart(one: Box, other: Box) -> bool:
        return iou(one, other) <= most and not holds(one, *centre(other)) and not holds(other, *centre(one))

    stay: list[int] = []
    for index in sorted(range(len(boxes)), key=lambda i: (-scores[i], i)):
        if len(stay) < keep and all(apart(boxes[index], boxes[other]) for other in stay):
            stay.append(index)
    return stay


def side_of(boxes: Iterable[Box]) -> str | None:
    """The patient's side of boxes by their middles: left, right, bilateral; None without boxes."""
    sides = {"right" if centre(box)[0] < 0.5 else "left" for box in boxes}
    return None if not sides else sides.pop() if len(sides) == 1 else "bilateral"
