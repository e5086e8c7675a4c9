"""Memorisation and privacy: neighbours in train, near-duplicates and copies, re-identification."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roentgen.errors import UserError
from roentgen.images import read_image, resize_center_crop
from roentgen.metrics import neighbours
from roentgen.metrics.adherence import laterality
from roentgen.metrics.extractors import Extractor
from roentgen.metrics.image_set import ImageSet
from roentgen.metrics.measure import PIXELS, Case, Floats, Found, Unavailable, pixels
from roentgen.metrics.memorisation import damage, reidentification
from roentgen.metrics.memorisation import nearness as memorisation
from roentgen.metrics.siamese import LoadedSiamese, load_siamese

COPY_PIXELS = 128
"""Shorter side of images before their thumbnails of 32 x 32: small enough for large training sets."""
PLANTED = 200
"""Training images whose copies are searched, at most."""
SIAMESE_PAIRS = 500
"""Pairs of each kind that the siamese model sees, at most."""


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
    _, to_unseen = neighbours.nearest(queries, unseen)
    _, real_to_train = neighbours.nearest(unseen, seen)
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
    return near_result(
        case,
        memorisation.near_duplicates(
            _points(case.synthetic, _small),
            _train_points(case),
            _points(case.real, _small),
            views=len(neighbours.VIEWS),
        ),
    )


def _small(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    return neighbours.standardise(neighbours.thumbnails(images))


def _points(images: ImageSet, make: Callable[[NDArray[np.uint8]], NDArray[np.float32]]) -> NDArray[np.float32]:
    blocks = np.array_split(np.arange(len(images)), -(-len(images) // 256))
    return np.concatenate([make(pixels(images, block, COPY_PIXELS)) for block in blocks])


@lru_cache(maxsize=1)  # two measures search the same crops
def _train_points(case: Case) -> NDArray[np.float32]:
    return _points(case.training(), neighbours.train_views)


def measure_planted_copies(case: Case, extractor: Extractor) -> Found:
    """Share of altered copies of training images that the searches for near-duplicates and near-copies find.

    The copies are made at the training image's own size (a blur's width in shares of the side), then go through the
    same chains as generated images. Says what "none found" is worth.
    """
    train = case.training()
    rng = np.random.default_rng([case.seed, 2])
    sources = np.sort(rng.choice(len(train), min(PLANTED, len(train)), replace=False))
    originals = [read_image(train.paths[row]) for row in sources]
    copies = {kind: [make(image) for image in originals] for kind, make in COPIES.items()}
    searches = {
        "features": (case.of("train", extractor), case.of("real", extractor), 1),
        "pixels": (_train_points(case), _points(case.real, _small), len(neighbours.VIEWS)),
    }
    queries = {
        "features": {kind: extractor(images)["features"] for kind, images in copies.items()},
        "pixels": {
            kind: _small(np.stack([resize_center_crop(image, COPY_PIXELS) for image in images]))
            for kind, images in copies.items()
        },
    }
    rows: list[Found] = []
    found = {kind: np.zeros(len(sources), dtype=bool) for kind in COPIES}
    warnings: list[str] = []
    floor = {"value": memorisation.QUANTILE, "what": "held-out real images"}
    spaces = {"features": f"{extractor.name} features", "pixels": "pixels"}
    for space, (pool, unseen, views) in searches.items():
        recall = memorisation.planted_recall(
            queries[space],
            dict.fromkeys(COPIES, sources),
            pool,
            threshold=memorisation.near_duplicate_threshold(unseen, pool),
            views=views,
        )
        for kind, entry in recall.items():
            found[kind] |= entry["details"].pop("found")
            warnings += entry["warnings"]
            kept = {key: entry[key] for key in ("value", "ci", "n")}
            rows.append({"name": kind, "group": spaces[space], **kept, **entry["details"], "floor": floor})
    both = np.concatenate([found[kind] for kind in COPIES]).astype(np.float64)
    ci = laterality.clustered_wilson(both, np.ones(len(both)), list(np.tile(sources, len(COPIES))))
    whole: Found = {"name": "any kind", "group": " or ".join(spaces.values()), "floor": floor}
    whole |= {"value": float(both.mean()), "ci": ci, "n": len(both)}
    return {
        "value": whole["value"],
        "ci": ci,
        "ci_method": "95 % Wilson; of any kind: at the effective number of independent copies",
        "n": len(both),
        "warnings": list(dict.fromkeys(warnings)),
        "details": {
            "rows": [whole, *rows],
            "floor": floor,
            "sources": len(sources),
            "kinds": {
                "exact": "unchanged",
                "cropped": f"central {damage.CROPPED:.0%} of each side, brought back to size",
                "blurred": f"Gaussian, sigma {damage.BLURRED / PIXELS:.2%} of the shorter side",
                "brighter": f"+{damage.BRIGHTER:g} grey levels",
            },
        },
    }


COPIES: dict[str, Callable[[damage.Grey], damage.Grey]] = {
    **damage.PLANTED,
    "blurred": lambda image: damage.blur(image, damage.BLURRED * min(image.shape) / PIXELS),
}
"""Kinds of copies; lengths in ``damage`` are in pixels of an image of ``PIXELS``."""


def by_views(case: Case) -> tuple[str, str]:
    return (
        "pixels",
        f"grey uint8; shorter side to at most {COPY_PIXELS} px, centre crop; box to 32 x 32, standardised; training "
        f"images as central crops of {', '.join(f'{keep:g}' for keep in neighbours.VIEWS)}",
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


def by_siamese(case: Case) -> tuple[str, str]:
    siamese = _siamese(case)
    return f"siamese {siamese.name}, sha256 {siamese.hash}", "grey uint8 images as they are; the function's own chain"


def _siamese(case: Case) -> LoadedSiamese:
    if case.siamese is None:
        raise Unavailable("no model that tells patients apart was given (--siamese FILE.py:FUNCTION)")
    return load_siamese(case.siamese)


def measure_reidentification(case: Case, extractor: Extractor) -> Found:
    """Do generated images, each with its nearest training image, look like one patient to a siamese model?"""
    train, siamese = case.training(), _siamese(case)
    pool = case.of("train", extractor)
    same, _ = reidentification.patient_pairs(train.patients, count=SIAMESE_PAIRS, seed=case.seed)
    if not len(same):
        raise Unavailable(
            "no patient of --train has two images, so the siamese model cannot be measured", bad_input=True
        )
    groups = case.bootstrap_groups

    def nearest_scores(images: ImageSet, name: str) -> tuple[Floats, NDArray[np.int64]]:
        rows = np.random.default_rng(case.seed).permutation(len(images))[:SIAMESE_PAIRS]
        rows = np.sort(rows)
        near = reidentification.nearest_pairs(case.of(name, extractor)[rows], pool)
        return siamese_scores(siamese, images, train, np.column_stack([rows, near[:, 1]])), rows

    generated, rows = nearest_scores(case.synthetic, "synthetic")
    strangers, unseen = nearest_scores(case.real, "real")
    found = reidentification.reidentification(
        generated,
        siamese_scores(siamese, train, train, same),
        strangers,
        groups=[groups[row] for row in rows],
        same_groups=[train.patients[first] for first, _ in same],
        different_groups=[case.real.patients[row] for row in unseen],
        resamples=case.resamples,
        seed=case.seed,
    )
    details = found["details"]
    details["floor"] = {"value": 0.5, "what": "no more like training patients than unseen images are"}
    details["ceiling"] = {**details["power"], "n": len(same), "what": "real pairs of one patient"}
    return found


def siamese_scores(siamese: LoadedSiamese, first: ImageSet, second: ImageSet, pairs: NDArray[np.integer]) -> Floats:
    """Scores (P,) of ``pairs`` (P, 2) of rows of two sets, read as they are needed."""
    try:
        return reidentification.scores(siamese.compare, Read(first), Read(second), np.asarray(pairs, dtype=np.int64))
    except UserError:
        raise
    except Exception as error:  # somebody else's code
        raise UserError(
            f"--siamese {siamese.name} failed on two lists of grey uint8 images ({type(error).__name__}: {error}); "
            "it must give one score a pair, higher for the same patient"
        ) from error


class Read(Sequence[NDArray[np.uint8]]):
    """The images of a set, read when they are asked for."""

    def __init__(self, images: ImageSet) -> None:
        self.paths = images.paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: Any) -> Any:
        return read_image(self.paths[row])
