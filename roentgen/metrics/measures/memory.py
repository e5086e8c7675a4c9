"""Memorisation and privacy: neighbours in train, near-duplicates and copies, re-identification."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roentgen.metrics import memorisation
from roentgen.metrics.extractors import Extractor
from roentgen.metrics.image_set import ImageSet
from roentgen.metrics.measures.base import Case, Floats, Found, Unavailable, pixels

COPY_PIXELS = 128
"""Shorter side of images before their thumbnails of 32 x 32: small enough for large training sets."""


def measure_nearest(case: Case, extractor: Extractor) -> Found:
    """Share of generated images nearer to training images than to as many unseen ones."""
    train = case.training()
    queries, seen, unseen = (case.of(name, extractor) for name in ("synthetic", "train", "real"))
    found = memorisation.nearness(
        queries,
        seen,
        unseen,
        groups=case.bootstrap_groups,
        train_groups=train.patients,
        test_groups=case.real.patients,
        resamples=case.resamples,
        seed=case.seed,
    )
    details = found["details"]
    _, to_unseen = memorisation.nearest(queries, unseen)
    _, real_to_train = memorisation.nearest(unseen, seen)
    distances = {
        "generated to training": details.pop("distance"),
        "generated to held-out real": to_unseen[:, 0],
        "held-out real to training": real_to_train[:, 0],
    }
    per_image = {
        "nearest training row": details.pop("nearest_train"),
        "distance to training": distances["generated to training"],
        "share nearer to training": details.pop("nearer"),
    }
    counts = memorisation.prompt_counts(case.synthetic.table["text"].tolist(), train.table["text"].tolist())
    details["by_frequency"] = memorisation.by_frequency(
        per_image["share nearer to training"],
        counts,
        groups=case.bootstrap_groups,
        resamples=case.resamples,
        seed=case.seed,
    )
    details["floor"] = {"value": 0.5, "what": "no difference"}
    details["histogram"] = histogram(distances)
    return {**found, "per_image": per_image, "details": details}


def histogram(values: Mapping[str, Floats], bins: int = 30) -> dict[str, Any]:
    """Common edges (bins + 1,) from the least to the greatest, and for each set the per cent of it in each bin."""
    every = np.concatenate(list(values.values()))
    edges = np.linspace(every.min(), every.max() if every.max() > every.min() else every.min() + 1, bins + 1)
    shares = {name: 100 * np.histogram(found, edges)[0] / len(found) for name, found in values.items()}
    return {"edges": edges, "shares": shares, "unit": "Euclidean distance of features"}


def measure_authenticity(case: Case, extractor: Extractor) -> Found:
    train = case.training()
    found = memorisation.authenticity(
        case.of("synthetic", extractor),
        case.of("train", extractor),
        unseen=case.of("real", extractor),
        groups=case.bootstrap_groups,
        train_groups=train.patients,
        resamples=case.resamples,
        seed=case.seed,
    )
    details = found["details"]
    per_image = {"authentic": details.pop("authentic")}
    details["ceiling"] = {**details.pop("unseen"), "what": "held-out real images"}
    return {**found, "per_image": per_image, "details": details}


def measure_near_duplicates(case: Case, extractor: Extractor) -> Found:
    """Near-duplicates in features; brighter and cropped copies are for ``measure_near_copies``."""
    return near_result(
        case,
        memorisation.near_duplicates(*(case.of(name, extractor) for name in ("synthetic", "train", "real"))),
    )


def measure_near_copies(case: Case, extractor: Extractor) -> Found:
    """Near-duplicates in standardised 32 x 32 pixels, against central crops of each training image."""

    def small(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return memorisation.standardise(memorisation.thumbnails(images))

    def points(images: ImageSet, make: Callable[[NDArray[np.uint8]], NDArray[np.float32]]) -> NDArray[np.float32]:
        blocks = np.array_split(np.arange(len(images)), -(-len(images) // 256))
        return np.concatenate([make(pixels(images, block, COPY_PIXELS)) for block in blocks])

    return near_result(
        case,
        memorisation.near_duplicates(
            points(case.synthetic, small),
            points(case.training(), memorisation.train_views),
            points(case.real, small),
            views=len(memorisation.VIEWS),
        ),
    )


def by_views(case: Case) -> tuple[str, str]:
    return (
        "pixels",
        f"grey uint8; shorter side to at most {COPY_PIXELS} px, centre crop; box to 32 x 32, standardised; training "
        f"images as central crops of {', '.join(f'{keep:g}' for keep in memorisation.VIEWS)}",
    )


def near_result(case: Case, found: Found) -> Found:
    """What ``memorisation.near_duplicates`` found, with names and with what is expected of unseen images."""
    train = case.training()
    details = found["details"]
    names = [Path(image).name for image in case.synthetic.table["image"]]
    seen = [Path(image).name for image in train.table["image"]]
    for pair in details["pairs"]:
        pair |= {"image": names[pair["query"]], "train_image": seen[pair["train"]]}
    per_image = {"near-duplicate of a training image": details.pop("flagged").astype(int)}
    expected = {"value": details["expected"], "what": "held-out real images, by how the threshold is set"}
    details["floor"] = expected
    return {**found, "per_image": per_image, "details": details}


def measure_reidentification(case: Case, extractor: Extractor) -> Found:
    raise Unavailable(
        "needs a siamese model, given as a Python function to roentgen.metrics.reidentification.reidentification"
    )
