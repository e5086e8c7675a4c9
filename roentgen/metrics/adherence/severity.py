"""Severity: does "large" make more of a finding than "small", with the same seed and nothing else changed?

Two findings have a size that a simple measure of the image shows, without a network. Neither is a diagnosis, and each
is worth what it tells of real images with and without the finding, which stands beside it as the ceiling. Zones and
levels are those that told openly licensed real images (validation and test) apart best, of a coarse grid.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roentgen.metrics.adherence.auroc import auroc, weighted_auroc
from roentgen.metrics.adherence.probes import LITTLE, MUCH, SEVERITIES, probes_of
from roentgen.metrics.extractor import Extractor
from roentgen.metrics.measure import CHANCE, EvaluationInputs, Result, Unavailable, measure
from roentgen.metrics.memorisation.damage import blur
from roentgen.metrics.reading import PIXELS, pixels
from roentgen.metrics.statistics import Drawn, Floats, wilson_interval

LOWER = (0.60, 0.80)
"""Rows of the lower lung zones, in shares of the height."""
SIDES = ((0.15, 0.35), (0.65, 0.85))
"""Columns of the lung zones, in shares of the width."""
HEART = (0.40, 0.65)
"""Rows in which the heart is widest."""
MIDLINE = (0.40, 0.60)
"""Columns in which the mediastinum lies."""
WHITE, HEART_WHITE = 0.60, 0.65
"""What counts as white, in shares of the way from the image's own 5th to its 95th percentile."""
SMOOTHED = 4 / 256
"""Standard deviation of the smoothing before the heart is measured, in shares of the side."""
REAL = 400
"""Real images with a finding, and as many without, that tell what the measure is worth."""
BY_SHAPE = "pixels", f"grey uint8; shorter side to {PIXELS} px by antialiased bicubic, centre crop"


def lower_zone_white(images: NDArray[np.uint8]) -> Floats:
    """Share (N,) of the lower lung zones of ``images`` uint8 (N, H, W) that is white: fluid fills them from below."""
    level = _level(images, WHITE)
    height, width = images.shape[1:]
    rows = slice(round(LOWER[0] * height), round(LOWER[1] * height))
    zones = [images[:, rows, round(left * width) : round(right * width)] for left, right in SIDES]
    return np.asarray(np.concatenate(zones, axis=2) > level[:, None, None]).mean(axis=(1, 2))


def heart_to_thorax(images: NDArray[np.uint8]) -> Floats:
    """Width of the heart over that of the thorax (N,) of ``images`` uint8 (N, H, W); NaN where no row shows both.

    In each row the heart is the white run across the midline and the lungs are the dark runs on both sides of it; the
    thorax reaches from the outer edge of one lung to that of the other. The widest heart (90th percentile of the rows)
    is taken over the widest thorax, as the cardiothoracic ratio is.
    """
    height, width = images.shape[1:]
    found = np.full(len(images), np.nan)
    for number, level in enumerate(_level(images, HEART_WHITE)):
        image = blur(images[number], SMOOTHED * min(height, width))
        hearts, thoraces = [], []
        for row in image[round(HEART[0] * height) : round(HEART[1] * height)] > level:
            edges = _edges(row, width)
            if edges is not None:
                outer_left, left, right, outer_right = edges
                hearts.append(right - left)
                thoraces.append(outer_right - outer_left)
        if hearts:
            found[number] = np.quantile(hearts, 0.9) / np.quantile(thoraces, 0.9)
    return found


def _level(images: NDArray[np.uint8], share: float) -> Floats:
    """Grey level (N,) at ``share`` of the way from each image's 5th to its 95th percentile."""
    if images.dtype != np.uint8 or images.ndim != 3 or len(images) == 0:
        raise ValueError(f"expected uint8 (N, H, W) with N of at least 1, got {images.dtype} {images.shape}")
    low, high = np.percentile(images, (5, 95), axis=(1, 2))
    return np.asarray(low + share * (high - low))


def _edges(white: NDArray[np.bool_], width: int) -> tuple[int, int, int, int] | None:
    """Outer edge, heart's edge, heart's edge and outer edge of one row; None where a lung is missing."""
    centre = range(round(MIDLINE[0] * width), round(MIDLINE[1] * width))
    inside = [column for column in centre if white[column]]
    if not inside:
        return None
    start = min(inside, key=lambda column: abs(column - width // 2))
    dark = np.flatnonzero(~white)
    before, after = dark[dark < start], dark[dark > start]
    if not len(before) or not len(after):
        return None
    left, right = int(before[-1]), int(after[0])
    wall = np.flatnonzero(white)
    outside_left, outside_right = wall[wall < left], wall[wall > right]
    outer_left = int(outside_left[-1]) if len(outside_left) else 0
    outer_right = int(outside_right[0]) if len(outside_right) else width - 1
    return outer_left, left, right, outer_right


MEASURED: dict[str, tuple[str, Callable[[NDArray[np.uint8]], Floats]]] = {
    "Effusion": ("white area of the lower zones", lower_zone_white),
    "Cardiomegaly": ("width of the heart over the thorax", heart_to_thorax),
}
"""What is measured of each finding: words, and the function."""


@measure(
    "severity", "More of it where more is asked for,", suite="quick", better="higher", unit="share", output="",
    judge=BY_SHAPE, reads=("probes",),
)  # fmt: skip
def measure_severity(inputs: EvaluationInputs, extractor: Extractor) -> Result:
    """Share of seeds whose image asked for much of a finding shows more of it than the one asked for little."""
    rows: list[dict[str, Any]] = []
    for probe in SEVERITIES:
        words, value_of = MEASURED[probe.finding]
        found = [probes_of(inputs, probe, answer) for answer in (LITTLE, MUCH)]
        little, much = (value_of(pixels(inputs.made_probes(), chosen, PIXELS)) for chosen in found)
        known = np.isfinite(little) & np.isfinite(much)
        n = int(known.sum())
        if not n:
            continue
        gap = (much - little)[known]
        more = float((gap > 0).sum() + 0.5 * (gap == 0).sum())
        row = {
            "name": f"{probe.finding.lower()}: {words}",
            "group": f"{probe.prompts[LITTLE]} / {probe.prompts[MUCH]}",
            "value": more / n,
            "ci": wilson_interval(more, n),
            "n": n,
            "floor": CHANCE,
            "little": float(little[known].mean()),
            "much": float(much[known].mean()),
        }
        if (ceiling := _ceiling(inputs, probe.finding, value_of)) is not None:
            row["ceiling"] = ceiling
        rows.append(row)
    if not rows:
        raise Unavailable("no pair of images of little and much of a finding could be measured")
    return Result.of_rows(rows, "95 % Wilson, a pair of images of one seed each")


def _ceiling(
    inputs: EvaluationInputs, finding: str, value_of: Callable[[NDArray[np.uint8]], Floats]
) -> dict[str, Any] | None:
    """AUROC of the measure for the finding on real images; None where one side is missing."""
    labels = inputs.real.labels([finding])[:, 0]
    rng = np.random.default_rng(inputs.seed)
    sides = [rng.permutation(np.flatnonzero(labels == label))[:REAL] for label in (1, 0)]
    if not all(len(rows) for rows in sides):
        return None
    rows = np.concatenate(sides)
    values = value_of(pixels(inputs.real, rows, PIXELS))
    rows, values = rows[np.isfinite(values)], values[np.isfinite(values)]
    whole = auroc(values, labels[rows])
    if not np.isfinite(whole):
        return None
    patients = inputs.real.patients
    weights = inputs.bootstrap.weights([patients[row] for row in rows])
    words = "AUROC of the measure, real images with the finding against without"
    found = Drawn(whole, weighted_auroc(values, labels[rows], weights))
    return {**found.entry, "n": len(rows), "what": words}
