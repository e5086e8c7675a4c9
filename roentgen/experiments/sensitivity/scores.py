"""The metrics that are judged, each as a number of a sample and what it is compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray

from roentgen.experiments.sensitivity.samples import KnownImages, World
from roentgen.metrics import neighbours, sharpness
from roentgen.metrics.adherence.auroc import macro_auroc
from roentgen.metrics.distribution import frechet, kernel, prdc
from roentgen.metrics.diversity.ms_ssim import pair_ms_ssim
from roentgen.metrics.diversity.repeats import duplicates_within
from roentgen.metrics.measures import MEASURES
from roentgen.metrics.memorisation.authenticity import AUTHENTIC, authenticity
from roentgen.metrics.memorisation.copies import near_duplicates
from roentgen.metrics.memorisation.nearness import nearer_to_train
from roentgen.metrics.noticed import Noticed
from roentgen.metrics.statistics import Bootstrap, Floats, known_mean

Rows = Callable[[KnownImages, World], Floats]
KID_UNIT = 1000
SPACES = {"features": "features", "pixels": "pixels 32 x 32, standardised, crops of train"}


def fid(s: KnownImages, w: World) -> float:
    x, y = s.features - w.real.features.mean(axis=0), w.real.features - w.real.features.mean(axis=0)
    return frechet.weighted_frechet(x, y, x @ y.T, np.ones(len(x)), np.ones(len(y)))


def kid(s: KnownImages, w: World) -> float:
    return KID_UNIT * kernel.mmd2(s.features, w.real.features)


def manifold(which: str, s: KnownImages, w: World) -> float:
    return float(getattr(manifolds_of(s, w), which))


@lru_cache(maxsize=1)  # four metrics in a row read the same one
def manifolds_of(s: KnownImages, w: World) -> prdc.Manifolds:
    return prdc.manifolds(w.real.features, s.features)


def adherence(s: KnownImages, w: World) -> float:
    none = np.ones((1, len(s)))
    return macro_auroc(s.probabilities, s.labels, w.findings, none, leave_out=("No Finding",)).value


def right_side(s: KnownImages, w: World) -> float:
    known = s.sides != 0
    return float((s.leftness[known] * s.sides[known] > 0).mean()) if known.any() else float("nan")


def nearer(s: KnownImages, w: World) -> float:
    found = nearer_to_train(s.features, w.train.features, w.real.features, subsets=5, bootstrap=Bootstrap(1, w.seed))
    return found.value


def authentic_rows(s: KnownImages, w: World) -> Floats:
    """1 where a row is authentic (N,)."""
    found = authenticity(s.features, w.train.features, train_groups=w.train.patients, bootstrap=Bootstrap(1))
    return np.asarray(found.per_image[AUTHENTIC])


def in_space(space: str, s: KnownImages) -> NDArray[np.floating]:
    """A sample as points of a space in which copies are searched."""
    return s.features if space == "features" else neighbours.standardise(s.thumbs)


def train_in_space(space: str, w: World) -> NDArray[np.floating]:
    return w.train.features if space == "features" else w.views


def copied(space: str, s: KnownImages, w: World) -> float:
    queries, unseen = in_space(space, s), in_space(space, w.real)
    return near_duplicates(queries, train_in_space(space, w), unseen).value


def repeated(s: KnownImages, w: World) -> float:
    mine, real = (s.features, s.hashes), (w.real.features, w.real.hashes)
    return duplicates_within(*mine, *real, groups=s.patients, real_groups=w.real.patients).value


def alike(which: str, s: KnownImages, w: World) -> float:
    pairs = getattr(w, which)
    return float(pair_ms_ssim(s.pixels, pairs).mean()) if len(pairs) else float("nan")


@lru_cache(maxsize=1)  # two metrics in a row read the same one
def sharpness_rows(s: KnownImages) -> dict[str, Floats]:
    return sharpness.each_sharpness(s.pixels)


def mean_of(rows: Rows, s: KnownImages, w: World) -> float:
    return float(known_mean(rows(s, w)))


Value = Callable[[KnownImages, World], float]


@dataclass(frozen=True)
class Metric:
    """``about``: what the registry of measures says of it; ``key``: stem of its result file.

    noise: "halves" compares halves of undamaged images with each other ("lookup": the same, from distances to train
    that are measured once); "patients" draws patients with replacement, for what depends on one set alone (halves of
    one pool differ too little); "rows" the same for a mean over images, which ``rows`` (N,) gives, "pairs" for one
    over image pairs.
    """

    key: str
    about: Noticed
    value: Value
    noise: str
    rows: Rows | None = None


VALUES: dict[str, tuple[Value, str]] = {
    "fid": (fid, "halves"),
    "kid": (kid, "halves"),
    "precision": (partial(manifold, "precision"), "halves"),
    "recall": (partial(manifold, "recall"), "halves"),
    "density": (partial(manifold, "density"), "halves"),
    "coverage": (partial(manifold, "coverage"), "halves"),
    "ms_ssim_within": (partial(alike, "same_kind"), "pairs"),
    "ms_ssim_across": (partial(alike, "other_kind"), "pairs"),
    "repeats": (repeated, "halves"),
    "auroc": (adherence, "patients"),
    "laterality": (right_side, "patients"),
    "nearer": (nearer, "lookup"),
    "copies_features": (partial(copied, "features"), "lookup"),
    "copies_pixels": (partial(copied, "pixels"), "lookup"),
}
"""Each metric as a number of a sample and the world, and how its noise is found."""
ROWS: dict[str, Rows] = {
    "authpct": authentic_rows,
    "detail": lambda s, w: sharpness_rows(s)[sharpness.DETAIL_SHARE],
    "coherence": lambda s, w: sharpness_rows(s)[sharpness.COHERENCE],
}
"""Metrics that are means over images, as values of the images."""


METRICS = tuple(
    Metric(key, about, *(VALUES.get(key) or (partial(mean_of, ROWS[key]), "rows", ROWS[key])))
    for measure in MEASURES.values()
    for key, about in measure.noticed.items()
)
"""Every measure that says what it notices, in the order of the report."""
BOUNDS = {"fid": (0.0, np.inf), "kid": (-np.inf, np.inf), "density": (0.0, np.inf)}
"""What a metric can be at all, where that is not 0 to 1."""
