"""The damages and their doses, and a sample after one of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from roentgen.experiments.sensitivity.samples import KnownImages, Reader, World, changed
from roentgen.metrics.memorisation import damage
from roentgen.metrics.noticed import (
    BLUR,
    BLURRED,
    BRIGHT,
    BRIGHTER,
    COLLAPSE,
    COPIES,
    CROPPED,
    FLIP,
    JPEG,
    LABELS,
    NOISE,
    ONE_KIND,
)


@dataclass(frozen=True)
class Damage:
    """``doses`` from weak to strong; ``unit`` is a format of the dose."""

    name: str
    doses: tuple[float, ...]
    unit: str

    def dose(self, dose: float) -> str:
        return self.unit.format(dose)


DAMAGES = (
    Damage(BLUR, (0.5, 1, 2, 4), "sigma {:g} px"),
    Damage(NOISE, (5, 10, 20, 40), "sd {:g} grey levels"),
    Damage(BRIGHT, (5, 10, 20, 40), "+{:g} grey levels"),
    Damage(JPEG, (75, 50, 25, 10), "quality {:g}"),
    Damage(LABELS, (0.1, 0.25, 0.5, 1), "{:.0%} of rows"),
    Damage(FLIP, (0.1, 0.25, 0.5, 1), "{:.0%} of images"),
    Damage(COLLAPSE, (200, 100, 50, 10), "{:g} images left"),
    Damage(ONE_KIND, (4, 2, 1), "{:g} images of each kind"),
    Damage(COPIES, (0.02, 0.05, 0.1, 0.25), "{:.0%} of images"),
    Damage(CROPPED, (0.1, 0.25), "{:.0%} of images"),
    Damage(BLURRED, (0.1, 0.25), "{:.0%} of images"),
    Damage(BRIGHTER, (0.1, 0.25), "{:.0%} of images"),
)
PIXEL_DAMAGE: dict[str, Callable[[damage.Grey, float, int], damage.Grey]] = {
    BLUR: lambda image, dose, seed: damage.blur(image, dose),
    NOISE: lambda image, dose, seed: damage.noise(image, dose, seed=seed),
    BRIGHT: lambda image, dose, seed: damage.brightness(image, dose),
    JPEG: lambda image, dose, seed: damage.jpeg(image, int(dose)),
}
ALTERED = {CROPPED: "cropped", BLURRED: "blurred", BRIGHTER: "brighter"}


def doses_of(kind: Damage, n: int) -> list[float]:
    """The doses that ``n`` images allow: as many as there are cannot be "left"."""
    return [dose for dose in kind.doses if kind.name != COLLAPSE or dose < n]


def damaged_sample(name: str, dose: float, start: KnownImages, world: World, reader: Reader, seed: int) -> KnownImages:
    """``start`` after damage ``name`` of this ``dose``."""
    n = len(start)
    if name in PIXEL_DAMAGE:
        damage_of = PIXEL_DAMAGE[name]
        pixels = changed(start.pixels, lambda image, row: damage_of(image, dose, seed + row))
        return reader.again(start, pixels, f"{name} {dose:g}")
    if name == LABELS:
        order = damage.shuffle(n, dose, seed=seed)
        return start.with_answers(np.arange(n), start, order)
    if name == FLIP:
        mirrored = reader.again(start, changed(start.pixels, lambda image, row: damage.flip(image)), name)
        rows = np.random.default_rng(seed).permutation(n)[: round(dose * n)]
        return start.with_images(rows, mirrored, rows)
    if name == COLLAPSE:
        return start.with_images(np.arange(n), start, damage.collapse(n, int(dose), seed=seed))
    if name == ONE_KIND:
        shown = np.arange(n)
        for kind in np.unique(start.kinds):
            rows = np.flatnonzero(start.kinds == kind)
            if len(rows) > dose:
                shown[rows] = rows[damage.collapse(len(rows), int(dose), seed=seed)]
        return start.with_images(np.arange(n), start, shown)
    rows, numbers = damage.replace(n, dose, len(world.train), seed=seed)
    sources = world.train.take(numbers)
    if name in ALTERED:
        alter = damage.PLANTED[ALTERED[name]]
        sources = reader.again(sources, changed(sources.pixels, lambda image, row: alter(image)), name)
    order = np.arange(len(rows))
    # A memorised image answers the prompt that it was trained with.
    return start.with_images(rows, sources, order).with_answers(rows, sources, order)
