"""Near-duplicates of training images: in features, and in small pixels against crops of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from roentgen.metrics import neighbours
from roentgen.metrics.extractor import Extractor
from roentgen.metrics.image_set import ImageSet
from roentgen.metrics.measure import VALIDATION, EvaluationInputs, Result, bound, measure
from roentgen.metrics.memorisation.nearness import nearer_to_train, rough_if_few
from roentgen.metrics.neighbours import nearest
from roentgen.metrics.noticed import ALL_COPIES, Noticed
from roentgen.metrics.reading import pixels
from roentgen.metrics.statistics import wilson_interval

QUANTILE = 0.01
"""Share of unseen real images that the threshold of a near-duplicate flags."""
LISTED = 50
FLAGGED = "near-duplicate of a training image"
"""Column of single images."""


def near_duplicate_threshold(unseen: NDArray[np.floating], train: NDArray[np.floating]) -> float:
    """Distance below which ``QUANTILE`` of ``unseen`` real images (B, D) lie from their nearest training image."""
    return float(np.quantile(nearest(unseen, train)[1][:, 0], QUANTILE))


def near_duplicates(
    queries: NDArray[np.floating], train: NDArray[np.floating], unseen: NDArray[np.floating], *, views: int = 1
) -> Result:
    """Share of ``queries`` nearer to a training image than all but ``QUANTILE`` of ``unseen`` real images are.

    A model that memorises nothing is expected to have about ``QUANTILE``; ``details["pairs"]`` holds the nearest
    ``LISTED`` pairs, nearest first, (query, train, distance, whether below the threshold), for looking at. With
    ``views`` V, ``train`` is (A * V, D), the rows of one image one after the other, as
    ``neighbours.train_views`` gives them.
    """
    threshold = near_duplicate_threshold(unseen, train)
    numbers, distance = (found[:, 0] for found in nearest(queries, train))
    below = distance < threshold
    count = int(below.sum())
    notes = rough_if_few(len(queries), "queries")
    if QUANTILE * len(unseen) < 1:
        notes.append(
            f"{len(unseen)} unseen images cannot tell the {QUANTILE:.1%} quantile: the threshold rests on the nearest "
            f"of them; {math.ceil(1 / QUANTILE)} or more are needed"
        )
    pairs = [
        {
            "query": i,
            "train": int(numbers[i]) // views,
            "distance": float(distance[i]),
            "near_duplicate": bool(below[i]),
        }
        for i in np.argsort(distance, kind="stable")[:LISTED].tolist()
    ]
    return Result(
        count / len(queries),
        wilson_interval(count, len(queries)),
        len(queries),
        "95 % Wilson",
        floor={"value": QUANTILE, "what": "held-out real images, by how the threshold is set"},
        notes=notes,
        details={
            "expected": QUANTILE, "threshold": threshold, "count": count, "unseen": len(unseen), "pairs": pairs
        },
        per_image={FLAGGED: below.astype(int)},
    )  # fmt: skip


COPY_PIXELS = 128
"""Shorter side of images before their thumbnails of 32 x 32: small enough for large training sets."""


BY_VIEWS = (
    "pixels",
    f"grey uint8; shorter side to at most {COPY_PIXELS} px, centre crop; box to 32 x 32, standardised; training "
    f"images as central crops of {', '.join(f'{keep:g}' for keep in neighbours.VIEWS)}",
)
BY_THUMBNAILS = ("pixels", f"grey uint8; shorter side to at most {COPY_PIXELS} px, centre crop; box to 32 x 32")


@measure(
    "near_duplicates", "Near-duplicates of training images", suite="standard", better="lower", unit="share",
    each_extractor=True, reads=("train",),
    noticed={"copies_features": Noticed("near-duplicates of train, features", 3, 1, ALL_COPIES)},
)  # fmt: skip
def measure_near_duplicates(inputs: EvaluationInputs, extractor: Extractor) -> Result:
    """Near-duplicates in features; brighter and cropped copies are for ``measure_near_copies``."""
    inputs.training()
    return _named(inputs, near_duplicates(*(inputs.of(name, extractor) for name in ("synthetic", "train", "real"))))


@measure(
    "near_copies", "Near-copies of training images", suite="standard", better="lower", unit="share", output="",
    judge=BY_VIEWS, reads=("train",),
    noticed={"copies_pixels": Noticed("near-duplicates of train, pixels", 3, 1, ALL_COPIES)},
)  # fmt: skip
def measure_near_copies(inputs: EvaluationInputs, extractor: Extractor) -> Result:
    """Near-duplicates in standardised 32 x 32 pixels, against central crops of each training image."""
    train = train_points(inputs)
    made, unseen = (points_of(images, small_points) for images in (inputs.synthetic, inputs.real))
    return _named(inputs, near_duplicates(made, train, unseen, views=len(neighbours.VIEWS)))


def small_points(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    return neighbours.standardise(neighbours.thumbnails(images))


def points_of(images: ImageSet, make: Callable[[NDArray[np.uint8]], NDArray[np.float32]]) -> NDArray[np.float32]:
    blocks = np.array_split(np.arange(len(images)), -(-len(images) // 256))
    return np.concatenate([make(pixels(images, block, COPY_PIXELS)) for block in blocks])


@lru_cache(maxsize=1)  # two measures search the same crops
def train_points(inputs: EvaluationInputs) -> NDArray[np.float32]:
    return points_of(inputs.training(), neighbours.train_views)


def _named(inputs: EvaluationInputs, found: Result) -> Result:
    """With the names of the images of each pair."""
    names, seen = ([Path(path).name for path in images.paths] for images in (inputs.synthetic, inputs.training()))
    for pair in found.details["pairs"]:
        pair |= {"image": names[pair["query"]], "train_image": seen[pair["train"]]}
    return found


@measure(
    "nearest_pixels", "Nearer to training than to held-out, pixels", suite="standard", better="near 0.5", unit="share",
    output="", judge=BY_THUMBNAILS, reads=("train", VALIDATION),
)  # fmt: skip
def measure_nearest_pixels(inputs: EvaluationInputs, extractor: Extractor) -> Result:
    """Share of generated images nearer to training images than to as many unseen ones, in 32 x 32 pixels."""
    train, real = (points_of(images, neighbours.thumbnails) for images in (inputs.training(), inputs.real))

    def nearer(images: ImageSet, groups: Sequence[object]) -> Result:
        return nearer_to_train(
            points_of(images, neighbours.thumbnails), train, real, groups, bootstrap=inputs.bootstrap
        )

    found = nearer(inputs.synthetic, inputs.bootstrap_groups).plus(per_image={})
    if inputs.validation is None:
        return found
    control = nearer(inputs.validation, inputs.validation.patients)
    return found.plus(ceiling=bound(control.entry, "validation images"))
