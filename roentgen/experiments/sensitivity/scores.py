"""The metrics that are judged, each as a number of a sample and what it is compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray

from roentgen.experiments.sensitivity.damages import ALL_COPIES, BLUR, COLLAPSE, FLIP, LABELS, LOOKS, NOISE, ONE_KIND
from roentgen.experiments.sensitivity.samples import Sample, World
from roentgen.metrics import neighbours, sharpness
from roentgen.metrics.adherence.auroc import macro_auroc
from roentgen.metrics.distribution import frechet, kernel, prdc
from roentgen.metrics.diversity import repeats as duplicates
from roentgen.metrics.diversity.ms_ssim import pair_ms_ssim
from roentgen.metrics.memorisation import nearness as memorisation

Floats = NDArray[np.float64]
Rows = Callable[[Sample, World], Floats]
KID_UNIT = 1000
SPACES = {"features": "features", "pixels": "pixels 32 x 32, standardised, crops of train"}


def fid(s: Sample, w: World) -> float:
    x, y = s.features - w.real.features.mean(axis=0), w.real.features - w.real.features.mean(axis=0)
    return frechet.weighted_frechet(x, y, x @ y.T, np.ones(len(x)), np.ones(len(y)))


def kid(s: Sample, w: World) -> float:
    return KID_UNIT * kernel.mmd2(s.features, w.real.features)


def manifold(which: str, s: Sample, w: World) -> float:
    return float(getattr(manifolds_of(s, w), which))


@lru_cache(maxsize=1)  # four metrics in a row read the same one
def manifolds_of(s: Sample, w: World) -> prdc.Manifolds:
    return prdc.manifolds(w.real.features, s.features)


def adherence(s: Sample, w: World) -> float:
    none = np.ones((1, len(s)))
    return macro_auroc(s.probabilities, s.labels, w.findings, none, leave_out=("No Finding",)).value


def right_side(s: Sample, w: World) -> float:
    known = s.sides != 0
    return float((s.leftness[known] * s.sides[known] > 0).mean()) if known.any() else float("nan")


def nearer(s: Sample, w: World) -> float:
    found = memorisation.nearer_to_train(
        s.features, w.train.features, w.real.features, subsets=5, resamples=1, seed=w.seed
    )
    return found.share


def authentic_rows(s: Sample, w: World) -> Floats:
    """1 where a row is authentic (N,)."""
    found = memorisation.authenticity(s.features, w.train.features, train_groups=w.train.patients, resamples=1)
    return np.asarray(found["details"]["authentic"])


def in_space(space: str, s: Sample) -> NDArray[np.floating]:
    """A sample as points of a space in which copies are searched."""
    return s.features if space == "features" else neighbours.standardise(s.thumbs)


def train_in_space(space: str, w: World) -> NDArray[np.floating]:
    return w.train.features if space == "features" else w.views


def copied(space: str, s: Sample, w: World) -> float:
    queries, unseen = in_space(space, s), in_space(space, w.real)
    return float(memorisation.near_duplicates(queries, train_in_space(space, w), unseen, listed=0)["value"])


def repeated(s: Sample, w: World) -> float:
    found = duplicates.duplicates_within(
        s.features,
        s.hashes,
        w.real.features,
        w.real.hashes,
        groups=s.patients,
        real_groups=w.real.patients,
        listed=0,
    )
    return float(found["value"])


def alike(which: str, s: Sample, w: World) -> float:
    pairs = getattr(w, which)
    return float(pair_ms_ssim(s.pixels, pairs).mean()) if len(pairs) else float("nan")


@lru_cache(maxsize=1)  # two metrics in a row read the same one
def sharpness_rows(s: Sample) -> dict[str, Floats]:
    return sharpness.each_sharpness(s.pixels)


def mean_of(rows: Rows, s: Sample, w: World) -> float:
    return sharpness.mean_of_known(rows(s, w))


@dataclass(frozen=True)
class Metric:
    """``claims``: damages that the metric is said to measure. ``worse``: 1 where higher is worse, else -1.

    noise: "halves" compares halves of undamaged images with each other ("lookup": the same, from distances to train
    that are measured once); "patients" draws patients with replacement, for what depends on one set alone (halves of
    one pool differ too little); "rows" the same for a mean over images, which ``rows`` (N,) gives, "pairs" for one
    over image pairs.
    """

    key: str
    title: str
    value: Callable[[Sample, World], float]
    worse: int
    digits: int
    claims: tuple[str, ...]
    noise: str = "halves"
    rows: Rows | None = None


def by_rows(key: str, title: str, rows: Rows, worse: int, digits: int, claims: tuple[str, ...]) -> Metric:
    """A metric that is the mean of ``rows`` over images."""
    return Metric(key, title, partial(mean_of, rows), worse, digits, claims, "rows", rows)


METRICS = (
    Metric("fid", "FID", fid, 1, 1, (*LOOKS, COLLAPSE)),
    Metric("kid", f"KID x {KID_UNIT}", kid, 1, 1, (*LOOKS, COLLAPSE)),
    Metric("precision", "precision", partial(manifold, "precision"), -1, 2, LOOKS),
    Metric("recall", "recall", partial(manifold, "recall"), -1, 2, (COLLAPSE, ONE_KIND)),
    Metric("density", "density", partial(manifold, "density"), -1, 2, LOOKS),
    Metric("coverage", "coverage", partial(manifold, "coverage"), -1, 2, (COLLAPSE, ONE_KIND)),
    Metric("ms_ssim_within", "MS-SSIM, one kind", partial(alike, "same_kind"), 1, 3, (ONE_KIND, COLLAPSE), "pairs"),
    Metric("ms_ssim_across", "MS-SSIM, all kinds", partial(alike, "other_kind"), 1, 3, (COLLAPSE,), "pairs"),
    Metric("repeats", "near-duplicates within", repeated, 1, 3, (COLLAPSE, ONE_KIND)),
    Metric("auroc", "AUROC", adherence, -1, 3, (LABELS,), "patients"),
    Metric("laterality", "right side", right_side, -1, 3, (FLIP,), "patients"),
    Metric("nearer", "nearer to train", nearer, 1, 3, ALL_COPIES, "lookup"),
    by_rows("authpct", "AuthPct (share)", authentic_rows, -1, 3, ALL_COPIES),
    Metric(
        "copies_features", "near-duplicates of train, features", partial(copied, "features"), 1, 3, ALL_COPIES, "lookup"
    ),
    Metric("copies_pixels", "near-duplicates of train, pixels", partial(copied, "pixels"), 1, 3, ALL_COPIES, "lookup"),
    by_rows("detail", "detail", lambda s, w: sharpness_rows(s)[sharpness.DETAIL_SHARE], -1, 4, (BLUR,)),
    by_rows("coherence", "coherence", lambda s, w: sharpness_rows(s)[sharpness.COHERENCE], -1, 3, (NOISE,)),
)

BOUNDS = {"fid": (0.0, np.inf), "kid": (-np.inf, np.inf), "density": (0.0, np.inf)}
"""What a metric can be at all, where that is not 0 to 1."""
