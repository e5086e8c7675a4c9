"""Near-duplicates within one set of images: how many different images did the model really make?

Two independent looks must agree before a pair counts: a difference hash of the pixels and the distance in features.
Chest radiographs are all alike to a coarse hash, so neither threshold is a constant: both are the small quantile of
nearest-neighbour distances among real images of different patients.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from roentgen.images import read_image
from roentgen.metrics.extractor import Extractor, checked
from roentgen.metrics.measure import NOTHING, EvaluationInputs, Result, measure
from roentgen.metrics.memorisation.copies import LISTED, QUANTILE
from roentgen.metrics.neighbours import MEMORY, Ints, nearest
from roentgen.metrics.noticed import COLLAPSE, ONE_KIND, Noticed
from roentgen.metrics.reading import one_seed
from roentgen.metrics.statistics import Groups, numbered, own_groups

SIDE = 16
"""A difference hash has ``SIDE`` x ``SIDE`` bits; 8 x 8 tells photographs apart, not radiographs."""
EXACT = 1e-4
"""Distance, as a share of the threshold, that two passes of one image through a network may differ by."""


def difference_hash(images: Sequence[NDArray[np.uint8]], side: int = SIDE) -> NDArray[np.uint8]:
    """Bits (N, side * side), 0 or 1: is a pixel of the reduced image brighter than the one to its left?

    ``images`` are grey uint8 (H, W) of any sizes, reduced by area averaging to (side, side + 1) in float so that
    small differences are not rounded away. A change of brightness or contrast changes no bit but where it clips.
    """
    bits = np.empty((len(images), side * side), dtype=np.uint8)
    for number, image in enumerate(images):
        exact = Image.fromarray(np.asarray(checked(image), dtype=np.float32))
        small = np.asarray(exact.resize((side + 1, side), Image.Resampling.BOX))
        bits[number] = (small[:, 1:] > small[:, :-1]).ravel()
    return bits


def closest_within(features: NDArray[np.floating], *, groups: Groups | None = None) -> tuple[Ints, NDArray[np.float64]]:
    """Number (N,) of the nearest other item of ``features`` (N, D), of another group with ``groups``, and distance."""
    if len(features) < 2:
        raise ValueError("at least two items are needed")
    own = numbered(own_groups(groups, features))
    numbers, distance = nearest(features, features, without=own, pool_groups=own)
    return numbers[:, 0], distance[:, 0]


def thresholds(
    features: NDArray[np.floating],
    hashes: NDArray[np.uint8],
    *,
    groups: Groups | None = None,
    quantile: float = QUANTILE,
) -> tuple[float, float]:
    """Distances in features and in hash bits below which ``quantile`` of real images have another patient's nearest."""
    _, by_feature = closest_within(features, groups=groups)
    _, by_hash = closest_within(hashes.astype(np.float32), groups=groups)
    return float(np.quantile(by_feature, quantile)), float(np.quantile(by_hash**2, quantile))


def pairs_below(
    features: NDArray[np.floating],
    hashes: NDArray[np.uint8],
    *,
    feature_threshold: float,
    hash_threshold: float,
    memory: int = MEMORY,
) -> tuple[Ints, NDArray[np.float64], NDArray[np.float64]]:
    """All pairs (P, 2), first < second, at most both thresholds apart, with feature distance and differing bits (P,).

    At most a block of N columns in memory at a time; the pairs themselves are all kept.
    """
    if len(features) != len(hashes):
        raise ValueError(f"{len(features)} features and {len(hashes)} hashes")
    x, bits = np.asarray(features, np.float64), hashes.astype(np.float32)
    x = x - x.mean(axis=0)
    ones = bits.sum(axis=1)
    rows = max(1, memory // (32 * len(x)))
    found = []
    for top in range(0, len(x), rows):
        part = slice(top, top + rows)
        differing = ones[part, None] + ones - 2 * bits[part] @ bits.T
        close = np.argwhere(differing <= hash_threshold) + np.array([top, 0])
        found.append(close[close[:, 0] < close[:, 1]])
    pairs = np.concatenate(found)
    # Rounding of the norms must not hide an exact copy: the difference itself is exact.
    gap = np.empty(len(pairs))
    step = max(1, memory // (16 * x.shape[1]))
    for start in range(0, len(pairs), step):
        first, second = pairs[start : start + step].T
        gap[start : start + step] = np.sqrt(((x[first] - x[second]) ** 2).sum(axis=1))
    differing = (hashes[pairs[:, 0]] != hashes[pairs[:, 1]]).sum(axis=1).astype(np.float64)
    keep = gap <= feature_threshold
    return pairs[keep].astype(np.int64), gap[keep], differing[keep]


def families(pairs: Ints, n: int) -> Ints:
    """Family (N,) of each of ``n`` items, numbered by its lowest member: items joined by any chain of ``pairs``."""
    from scipy.sparse import coo_array, csgraph

    joined = coo_array((np.ones(len(pairs)), pairs.T), shape=(n, n))
    _, first, family = np.unique(csgraph.connected_components(joined)[1], return_index=True, return_inverse=True)
    return first[family]


def duplicates_within(
    features: NDArray[np.floating],
    hashes: NDArray[np.uint8],
    real_features: NDArray[np.floating],
    real_hashes: NDArray[np.uint8],
    *,
    groups: Groups | None = None,
    real_groups: Groups | None = None,
) -> Result:
    """Share of images (N) that have a near-duplicate in their own set, and how many different ones are left.

    Thresholds are ``thresholds`` of the real set. More images have nearer neighbours by chance, so the real set
    should be as large: a note says where it is not. Pairs of one of ``groups`` (N,), such as
    two images of one patient in a real set, do not count, nor do those of ``real_groups`` for the thresholds.
    ``details`` holds ``distinct`` (families), ``largest`` family,
    ``exact`` (images whose hash and, but for rounding, features equal another's) and the nearest ``LISTED`` pairs.
    """
    by_feature, by_hash = thresholds(real_features, real_hashes, groups=real_groups)
    pairs, gap, bits = pairs_below(features, hashes, feature_threshold=by_feature, hash_threshold=by_hash)
    if groups is not None:
        names = np.asarray([str(group) for group in groups])
        other = names[pairs[:, 0]] != names[pairs[:, 1]]
        pairs, gap, bits = pairs[other], gap[other], bits[other]
    n = len(features)
    family = families(pairs, n)
    sizes = np.bincount(family, minlength=n)
    same = (gap <= EXACT * by_feature) & (bits == 0)
    notes = []
    if not 0.8 <= len(real_features) / n <= 1.25:
        notes.append(
            f"{n} images against {len(real_features)} real ones: the thresholds hold for sets of equal size only"
        )
    if QUANTILE * len(real_features) < 1:
        notes.append(f"{len(real_features)} real images cannot tell the {QUANTILE:.1%} quantile")
    nearest_pairs = [
        {"first": int(first), "second": int(second), "distance": float(distance), "bits": int(differing)}
        for (first, second), distance, differing in (
            (pairs[row], gap[row], bits[row]) for row in np.lexsort((bits, gap))[:LISTED]
        )
    ]
    return Result(
        float((sizes[family] > 1).mean()),
        NOTHING,  # images that share a near-duplicate are no independent draws: an interval would be too narrow
        n,
        "none: images of one family are not independent",
        notes=notes,
        details={
            "feature_threshold": by_feature,
            "hash_threshold": by_hash,
            "distinct": int((sizes > 0).sum()),
            "largest": int(sizes.max()),
            "exact": len(np.unique(pairs[same])),
            "pairs": nearest_pairs,
        },
    )


@measure(
    "repeats", "Repeats among generated images", suite="standard", better="lower", unit="share",
    noticed={"repeats": Noticed("near-duplicates within", 3, 1, (COLLAPSE, ONE_KIND))},
)  # fmt: skip
def measure_repeats(inputs: EvaluationInputs, extractor: Extractor) -> Result:
    """Share of generated images that have a near-duplicate among the generated ones."""
    made, real = (
        (inputs.of(images.name, extractor), difference_hash([read_image(path) for path in images.paths]))
        for images in (inputs.synthetic, inputs.real)
    )
    patients = inputs.real.patients
    found = duplicates_within(*made, *real, real_groups=patients)
    of_real = duplicates_within(*real, *real, groups=patients, real_groups=patients)
    floor = {"value": of_real.value, "n": of_real.n, "what": "real images among themselves"}
    names = [path.name for path in inputs.synthetic.paths]
    for pair in found.details["pairs"]:
        pair |= {"first_image": names[pair["first"]], "second_image": names[pair["second"]]}
    return found.plus(floor=floor, notes=one_seed(inputs))
