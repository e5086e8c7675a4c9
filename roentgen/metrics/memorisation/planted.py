"""Planted copies of training images: what the searches for copies find of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roentgen.images import read_image, resize_center_crop
from roentgen.metrics import neighbours
from roentgen.metrics.extractor import Extractor
from roentgen.metrics.measure import EvaluationInputs, Result, measure
from roentgen.metrics.memorisation import damage
from roentgen.metrics.memorisation.copies import (
    COPY_PIXELS,
    QUANTILE,
    near_duplicate_threshold,
    points_of,
    small_points,
    train_points,
)
from roentgen.metrics.memorisation.nearness import rough_if_few
from roentgen.metrics.neighbours import nearest
from roentgen.metrics.reading import PIXELS
from roentgen.metrics.statistics import clustered_wilson, wilson_interval


def planted_recall(
    planted: Mapping[str, NDArray[np.floating]],
    sources: NDArray[np.integer],
    train: NDArray[np.floating],
    *,
    threshold: float,
    views: int = 1,
) -> dict[str, Result]:
    """How many copies ``near_duplicates`` would find, by kind of copy (exact, cropped, blurred, brightness-shifted).

    ``planted[kind]`` (K, D) are features of copies of the training items ``sources`` (K,), made with
    ``damage.plant``. The value is the share below ``threshold``; ``details["right_source"]`` the share that is and
    whose nearest training item is the one copied, ``per_image["found"]`` (K,) which are. ``views`` as in
    ``near_duplicates``.
    """
    result = {}
    for kind, features in planted.items():
        numbers, distance = nearest(features, train)
        found, n = distance[:, 0] < threshold, len(features)
        right = found & (numbers[:, 0] // views == np.asarray(sources))
        result[kind] = Result(
            float(found.mean()),
            wilson_interval(int(found.sum()), n),
            n,
            "95 % Wilson",
            notes=rough_if_few(n, "planted copies"),
            details={"right_source": float(right.mean()), "median_distance": float(np.median(distance))},
            per_image={"found": found},
        )
    return result


PLANTED = 200
"""Training images whose copies are searched, at most."""
COPIES: dict[str, Callable[[damage.Grey], damage.Grey]] = {
    **damage.PLANTED,
    "blurred": lambda image: damage.blur(image, damage.BLURRED * min(image.shape) / PIXELS),
}
"""Kinds of copies; lengths in ``damage`` are in pixels of an image of ``PIXELS``."""


KINDS = {
    "exact": "unchanged",
    "cropped": f"central {damage.CROPPED:.0%} of each side, brought back to size",
    "blurred": f"Gaussian, sigma {damage.BLURRED / PIXELS:.2%} of the shorter side",
    "brighter": f"+{damage.BRIGHTER:g} grey levels",
}


@measure("planted_copies", "Planted copies found,", suite="standard", better="higher", unit="share", reads=("train",))
def measure_planted_copies(inputs: EvaluationInputs, extractor: Extractor) -> Result:
    """Share of altered copies of training images that the searches for near-duplicates and near-copies find.

    The copies are made at the training image's own size (a blur's width in shares of the side), then go through the
    same chains as generated images. Says what "none found" is worth.
    """
    train = inputs.training()
    rng = np.random.default_rng([inputs.seed, 2])
    sources = np.sort(rng.choice(len(train), min(PLANTED, len(train)), replace=False))
    originals = [read_image(train.paths[row]) for row in sources]
    copies = {kind: [make(image) for image in originals] for kind, make in COPIES.items()}
    small = {k: np.stack([resize_center_crop(image, COPY_PIXELS) for image in images]) for k, images in copies.items()}
    searches: dict[str, Any] = {  # space -> training images, unseen images, copies by kind, rows a training image
        f"{extractor.name} features": (
            *(inputs.of(name, extractor) for name in ("train", "real")),
            {kind: extractor(images)["features"] for kind, images in copies.items()},
            1,
        ),
        "pixels": (
            *(train_points(inputs), points_of(inputs.real, small_points)),
            {kind: small_points(images) for kind, images in small.items()},
            len(neighbours.VIEWS),
        ),
    }
    rows: list[dict[str, Any]] = []
    found = {kind: np.zeros(len(sources), dtype=bool) for kind in COPIES}
    warnings: list[str] = []
    floor = {"value": QUANTILE, "what": "held-out real images"}
    for space, (pool, unseen, queries, views) in searches.items():
        threshold = near_duplicate_threshold(unseen, pool)
        recall = planted_recall(queries, sources, pool, threshold=threshold, views=views)
        for kind, entry in recall.items():
            found[kind] |= entry.per_image["found"]
            warnings += entry.notes
            rows.append({"name": kind, "group": space, **entry.entry, **entry.details, "floor": floor})
    both = np.concatenate([found[kind] for kind in COPIES]).astype(np.float64)
    ci = clustered_wilson(both, np.ones(len(both)), list(np.tile(sources, len(COPIES))))
    whole: dict[str, Any] = {"value": float(both.mean()), "ci": ci, "n": len(both), "floor": floor}
    return Result.of_rows(
        [{"name": "any kind", "group": " or ".join(searches), **whole}, *rows],
        "95 % Wilson; of any kind: at the effective number of independent copies",
        notes=list(dict.fromkeys(warnings)),
        details={"sources": len(sources), "kinds": KINDS},
    )
