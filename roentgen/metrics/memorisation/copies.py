"""Near-duplicates of training images: in features, and in small pixels against crops of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roentgen.metrics import neighbours
from roentgen.metrics.extractor import Extractor
from roentgen.metrics.image_set import ImageSet
from roentgen.metrics.measure import VALIDATION, EvaluationInputs, Result, bound, measure
from roentgen.metrics.memorisation.nearness import Nearness, nearer_to_train, rough_if_few
from roentgen.metrics.neighbours import nearest
from roentgen.metrics.noticed import ALL_COPIES, Noticed
from roentgen.metrics.reading import pixels
from roentgen.metrics.statistics import wilson_interval

QUANTILE = 0.01
"""Share of unseen real images that the threshold of a near-duplicate flags."""


def near_duplicate_threshold(
    unseen: NDArray[np.floating], train: NDArray[np.floating], *, quantile: float = QUANTILE
) -> float:
    """Distance below which ``quantile`` of ``unseen`` real images (B, D) lie from their nearest training image."""
    if not 0 < quantile < 1:
        raise ValueError(f"quantile must be between 0 and 1, got {quantile}")
    _, distance = nearest(unseen, train)
    return float(np.quantile(distance[:, 0], quantile))


def near_duplicates(
    queries: NDArray[np.floating],
    train: NDArray[np.floating],
    unseen: NDArray[np.floating],
    *,
    quantile: float = QUANTILE,
    views: int = 1,
    listed: int = 50,
) -> dict[str, Any]:
    """Share of ``queries`` nearer to a training image than all but ``quantile`` of ``unseen`` real images are.

    A model that memorises nothing is expected to have about ``quantile``; ``details["pairs"]`` holds the nearest
    ``listed`` pairs, nearest first, (query, train, distance, whether below the threshold), for looking at. With
    ``views`` V, ``train`` is (A * V, D), the rows of one image one after the other, as
    ``neighbours.train_views`` gives them.
    """
    threshold = near_duplicate_threshold(unseen, train, quantile=quantile)
    numbers, distance = nearest(queries, train)
    order = np.argsort(distance[:, 0], kind="stable")
    below = distance[:, 0] < threshold
    count = int(below.sum())
    warnings = rough_if_few(len(queries), "queries")
    if quantile * len(unseen) < 1:
        warnings.append(
            f"{len(unseen)} unseen images cannot tell the {quantile:.1%} quantile: the threshold rests on the nearest "
            f"of them; {math.ceil(1 / quantile)} or more are needed"
        )
    return {
        "value": count / len(queries),
        "ci": wilson_interval(count, len(queries)),
        "ci_method": "95 % Wilson",
        "n": len(queries),
        "warnings": warnings,
        "details": {
            "expected": quantile,
            "threshold": threshold,
            "count": count,
            "unseen": len(unseen),
            "flagged": below,
            "pairs": [
                {
                    "query": i,
                    "train": int(near) // views,
                    "distance": float(gap),
                    "near_duplicate": bool(gap < threshold),
                }
                for i in order[:listed].tolist()
                for near, gap in [(numbers[i, 0], distance[i, 0])]
            ],
        },
    }


COPY_PIXELS = 128
"""Shorter side of images before their thumbnails of 32 x 32: small enough for large training sets."""


def by_views(inputs: EvaluationInputs) -> tuple[str, str]:
    return (
        "pixels",
        f"grey uint8; shorter side to at most {COPY_PIXELS} px, centre crop; box to 32 x 32, standardised; training "
        f"images as central crops of {', '.join(f'{keep:g}' for keep in neighbours.VIEWS)}",
    )


def by_thumbnails(inputs: EvaluationInputs) -> tuple[str, str]:
    return "pixels", f"grey uint8; shorter side to at most {COPY_PIXELS} px, centre crop; box to 32 x 32"


@measure(
    "near_duplicates", "Near-duplicates of training images", suite="standard", better="lower", unit="share",
    each_extractor=True, reads=("train",),
    noticed={"copies_features": Noticed("near-duplicates of train, features", 3, 1, ALL_COPIES)},
)  # fmt: skip
def measure_near_duplicates(inputs: EvaluationInputs, extractor: Extractor) -> Result:
    """Near-duplicates in features; brighter and cropped copies are for ``measure_near_copies``."""
    inputs.training()
    return near_result(
        inputs, near_duplicates(*(inputs.of(name, extractor) for name in ("synthetic", "train", "real")))
    )


@measure(
    "near_copies", "Near-copies of training images", suite="standard", better="lower", unit="share", output="",
    judge=by_views, reads=("train",),
    noticed={"copies_pixels": Noticed("near-duplicates of train, pixels", 3, 1, ALL_COPIES)},
)  # fmt: skip
def measure_near_copies(inputs: EvaluationInputs, extractor: Extractor) -> Result:
    """Near-duplicates in standardised 32 x 32 pixels, against central crops of each training image."""
    train = train_points(inputs)
    made, unseen = (points_of(images, small_points) for images in (inputs.synthetic, inputs.real))
    return near_result(inputs, near_duplicates(made, train, unseen, views=len(neighbours.VIEWS)))


def small_points(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    return neighbours.standardise(neighbours.thumbnails(images))


def points_of(images: ImageSet, make: Callable[[NDArray[np.uint8]], NDArray[np.float32]]) -> NDArray[np.float32]:
    blocks = np.array_split(np.arange(len(images)), -(-len(images) // 256))
    return np.concatenate([make(pixels(images, block, COPY_PIXELS)) for block in blocks])


@lru_cache(maxsize=1)  # two measures search the same crops
def train_points(inputs: EvaluationInputs) -> NDArray[np.float32]:
    return points_of(inputs.training(), neighbours.train_views)


def near_result(inputs: EvaluationInputs, found: dict[str, Any]) -> Result:
    """What ``near_duplicates`` found, with names and with what is expected of unseen images."""
    train = inputs.training()
    details = found["details"]
    names = [Path(image).name for image in inputs.synthetic.table["image"]]
    seen = [Path(image).name for image in train.table["image"]]
    for pair in details["pairs"]:
        pair |= {"image": names[pair["query"]], "train_image": seen[pair["train"]]}
    per_image = {"near-duplicate of a training image": details.pop("flagged").astype(int)}
    expected = {"value": details["expected"], "what": "held-out real images, by how the threshold is set"}
    return Result.of(found, floor=expected, per_image=per_image)


@measure(
    "nearest_pixels", "Nearer to training than to held-out, pixels", suite="standard", better="near 0.5", unit="share",
    output="", judge=by_thumbnails, reads=("train", VALIDATION),
)  # fmt: skip
def measure_nearest_pixels(inputs: EvaluationInputs, extractor: Extractor) -> Result:
    """Share of generated images nearer to training images than to as many unseen ones, in 32 x 32 pixels."""
    train, real = (points_of(images, neighbours.thumbnails) for images in (inputs.training(), inputs.real))

    def nearer(images: ImageSet, groups: Sequence[object]) -> Nearness:
        return nearer_to_train(points_of(images, neighbours.thumbnails), train, real, groups=groups, **inputs.bootstrap)

    found = nearer(inputs.synthetic, inputs.bootstrap_groups)
    control = None if inputs.validation is None else nearer(inputs.validation, inputs.validation.patients)
    return Result(
        value=found.value,
        ci=found.ci,
        n=found.n,
        ci_method=f"95 % percentile, bootstrap by patient and over train subsets, {inputs.resamples} resamples",
        floor={"value": 0.5, "what": "no difference"},
        ceiling=bound(vars(control), "validation images") if control else None,
        details={"pool": found.pool, "subsets": found.subsets, "subset_sd": found.subset_sd},
    )
