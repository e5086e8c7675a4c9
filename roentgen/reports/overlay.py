"""The picture of a report: the image with boxes, and below it the sentences with the boxes' numbers and colours.

Colours are Okabe and Ito's, which people with any colour vision tell apart; each box has a number as well, a dark edge
on both sides so that it shows on any ground, and the text stands beside the anatomy, not on it.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from roentgen.images import wrapped
from roentgen.reports.base import Image as Pixels
from roentgen.reports.base import Report
from roentgen.reports.boxes import Box, iou, to_pixels

# Okabe & Ito 2008, without black and the blue that is too dark on a radiograph.
COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (213, 94, 0), (204, 121, 167))
SMALLEST = 640
"""Pixels of the picture's shorter side at least: a smaller image is enlarged."""
SAME = 0.9  # IoU from which two boxes are drawn as one
INK, PAPER, PALE = (255, 255, 255), (16, 16, 16), (176, 176, 176)
NOTE = "Made by an algorithm. Research only, not for diagnosis."


def draw_report(image: Pixels, report: Report, *, title: str = "") -> Image.Image:
    """A colour picture (PIL, RGB) of a grey image uint8 [H, W] and its report; lines and letters grow with it."""
    height, width = image.shape
    scale = max(1.0, SMALLEST / min(height, width))
    width, height = round(width * scale), round(height * scale)
    picture = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC).convert("RGB")
    unit = min(width, height) / SMALLEST
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=round(20 * unit))
    lines: list[tuple[str, tuple[int, int, int], str]] = []
    tags: dict[Box, list[tuple[str, tuple[int, int, int]]]] = {}
    number = 0
    for finding in report.findings:
        if not finding.present:
            lines.append(("", PALE, finding.text))
            continue
        probability = "" if finding.probability is None else f"  ({100 * finding.probability:.0f} %)"
        if not finding.boxes:
            lines.append(("", INK, finding.text + probability))
            continue
        colour = COLOURS[number % len(COLOURS)]
        number += 1
        lines.append((str(number), colour, finding.text + probability))
        for box in finding.boxes:
            same = next((other for other in tags if iou(other, box) > SAME), box)
            tags.setdefault(same, []).append((str(number), colour))
    # One rectangle for findings of one place, with the tags of all of them; tags last, so that no line crosses them.
    for box, owners in tags.items():
        _draw_box(draw, to_pixels(box, width, height), owners[0][1], unit)
    pad = round(4 * unit)
    edges = [to_pixels(box, width, height) for box in tags]
    sizes = [
        (sum(round(font.getlength(tag)) + 2 * pad for tag, _ in owners), round(20 * unit) + 2 * pad)
        for owners in tags.values()
    ]
    for (x, y), owners in zip(tag_corners(edges, sizes, (width, height)), tags.values(), strict=True):
        _draw_tags(draw, x, y, owners, font=font, unit=unit)
    lines += [("", COLOURS[0], warning[:1].upper() + warning[1:]) for warning in report.warnings]
    return _with_legend(picture, lines, title=title, unit=unit)


def _draw_box(draw: ImageDraw.ImageDraw, box: tuple[float, ...], colour: tuple[int, int, int], unit: float) -> None:
    line = max(2, round(3 * unit))
    x1, y1, x2, y2 = (round(value) for value in box)
    draw.rectangle((x1 - line, y1 - line, x2 + line, y2 + line), outline=PAPER, width=line)
    draw.rectangle((x1, y1, x2, y2), outline=colour, width=line)
    draw.rectangle((x1 + line, y1 + line, max(x1 + line, x2 - line), max(y1 + line, y2 - line)), outline=PAPER, width=1)


def tag_corners(
    boxes: Sequence[Sequence[float]], sizes: Sequence[tuple[int, int]], image: tuple[int, int]
) -> list[tuple[int, int]]:
    """Upper left corners (x, y) of the tags of boxes (x1, y1, x2, y2); where there is room, none covers another.

    A tag of width and height ``sizes[i]`` goes above its box's left edge, else to another corner or along an edge; all
    in pixels of ``image``, its width and height.
    """
    placed: list[tuple[int, int, int, int]] = []
    for box, (width, height) in zip(boxes, sizes, strict=True):
        x1, y1, x2, y2 = (round(value) for value in box)
        rows = [y1 - height, y2, y1, y2 - height]  # above and below the box, then inside of it
        columns = [x1, x2 - width, *range(x1 + width, x2 - width, max(1, width // 2))]
        wanted = [(x, y) for y in rows for x in columns]
        corners = [
            (min(max(0, x), max(0, image[0] - width)), min(max(0, y), max(0, image[1] - height))) for x, y in wanted
        ]
        free = (
            (x, y)
            for x, y in corners
            if all(x >= c or x + width <= a or y >= d or y + height <= b for a, b, c, d in placed)
        )
        x, y = next(free, corners[0])
        placed.append((x, y, x + width, y + height))
    return [(x, y) for x, y, _, _ in placed]


def _draw_tags(
    draw: ImageDraw.ImageDraw, x: int, y: int, owners: Sequence[tuple[str, tuple[int, int, int]]], *, font: Any,
    unit: float,
) -> None:  # fmt: skip
    """The numbers of the findings of one box, side by side from (x, y)."""
    pad = round(4 * unit)
    for text, colour in owners:
        right, bottom = x + round(font.getlength(text)) + 2 * pad, y + round(20 * unit) + 2 * pad
        draw.rectangle((x, y, right, bottom), fill=colour, outline=PAPER, width=max(1, round(unit)))
        draw.text((x + pad, y + pad), text, fill=PAPER, font=font)
        x = right


def _with_legend(
    picture: Image.Image, lines: list[tuple[str, tuple[int, int, int], str]], *, title: str, unit: float
) -> Image.Image:
    size, pad = round(20 * unit), round(12 * unit)
    font, small = ImageFont.load_default(size=size), ImageFont.load_default(size=round(16 * unit))
    indent = round(34 * unit)
    rows: list[tuple[str, tuple[int, int, int], str, Any]] = []
    for tag, colour, text in lines:
        ink = INK if tag else colour
        for place, piece in enumerate(wrapped(text, font, picture.width - 2 * pad - indent)):
            rows.append((tag if not place else "", colour if tag else ink, piece, font))
    notes = [part for part in (title, NOTE) if part]
    for note in notes:
        rows += [("", PALE, piece, small) for piece in wrapped(note, small, picture.width - 2 * pad - indent)]
    step = round(1.4 * size)
    whole = Image.new("RGB", (picture.width, picture.height + 2 * pad + step * len(rows)), PAPER)
    whole.paste(picture, (0, 0))
    draw = ImageDraw.Draw(whole)
    for place, (tag, colour, text, face) in enumerate(rows):
        y = picture.height + pad + place * step
        if tag:
            draw.rectangle((pad, y, pad + round(24 * unit), y + round(1.15 * size)), fill=colour)
            draw.text((pad + round(6 * unit), y), tag, fill=PAPER, font=font)
        draw.text((pad + indent, y), text, fill=INK if tag else colour, font=face)
    return whole


def picture_bytes(picture: Image.Image, marks: Mapping[str, str]) -> bytes:
    """The picture as a PNG that says what made it."""
    chunks = PngImagePlugin.PngInfo()
    for key, value in marks.items():
        chunks.add_text(key, value)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", pnginfo=chunks)
    return buffer.getvalue()


def as_array(picture: Image.Image) -> np.ndarray:
    """The picture as uint8 [H, W, 3]."""
    return np.asarray(picture)
