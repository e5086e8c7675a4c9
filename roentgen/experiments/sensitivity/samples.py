"""Real images with all that the metrics read of them, and what they are compared with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from roentgen.cache import kept_in_batches
from roentgen.data.manifest import side_signs
from roentgen.files import sha256
from roentgen.metrics import neighbours
from roentgen.metrics.adherence.laterality import LEFT, RIGHT
from roentgen.metrics.diversity import repeats as duplicates
from roentgen.metrics.extractor import Extractor
from roentgen.metrics.memorisation import damage
from roentgen.metrics.pairing import kind_of
from roentgen.prompts import labels_from_row

Floats = NDArray[np.float64]
SIDE = 256
"""All images are brought to this size first, so that a dose means the same whatever the size on disk."""


@dataclass(frozen=True, eq=False)
class KnownImages:
    """Images and what is known of them, one row an image.

    pixels uint8 (N, SIDE, SIDE); features (N, D); probabilities (N, F) and leftness (N, F) of the classifier's
    findings; thumbs (N, 1024); hashes (N, 256); labels (N, F) 1, 0, NaN; sides (N, F): 1 left, -1 right, 0 neither;
    patients, kinds (N,): findings and view as numbers.
    """

    pixels: NDArray[np.uint8]
    features: Floats
    probabilities: Floats
    leftness: Floats
    thumbs: Floats
    hashes: NDArray[np.uint8]
    labels: Floats
    sides: NDArray[np.int64]
    patients: NDArray[np.str_]
    kinds: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.features)

    def take(self, rows: NDArray[np.integer]) -> KnownImages:
        return KnownImages(**{field.name: getattr(self, field.name)[rows] for field in dataclasses.fields(self)})

    def with_images(self, rows: NDArray[np.integer], other: KnownImages, numbers: NDArray[np.integer]) -> KnownImages:
        """The sample with the images of ``rows`` taken from ``other``; what was asked for stays."""
        changed = {}
        for name in IMAGE_FIELDS:
            values = np.array(getattr(self, name))
            values[rows] = getattr(other, name)[numbers]
            changed[name] = values
        return replace(self, **changed)

    def with_answers(self, rows: NDArray[np.integer], other: KnownImages, numbers: NDArray[np.integer]) -> KnownImages:
        """The sample with what was asked for in ``rows`` taken from ``other``; the images stay."""
        changed = {}
        for name in ("labels", "sides", "kinds"):
            values = np.array(getattr(self, name))
            values[rows] = getattr(other, name)[numbers]
            changed[name] = values
        return replace(self, **changed)


IMAGE_FIELDS = ("pixels", "features", "probabilities", "leftness", "thumbs", "hashes")


def join(a: KnownImages, b: KnownImages) -> KnownImages:
    """Rows of both, ``a`` first."""
    fields = [field.name for field in dataclasses.fields(KnownImages)]
    return KnownImages(**{name: np.concatenate([getattr(a, name), getattr(b, name)]) for name in fields})


@dataclass(frozen=True, eq=False)
class World:
    """What a sample is compared with: unseen real images, training images, pairs for MS-SSIM, and the findings.

    views (V * N, 1024): crops of the training images, for the search of copies.
    """

    real: KnownImages
    train: KnownImages
    views: NDArray[np.float32]
    findings: tuple[str, ...]
    same_kind: NDArray[np.int64]
    other_kind: NDArray[np.int64]
    seed: int


@dataclass(frozen=True)
class Reader:
    """Images to samples; what the networks say of a set is kept under ``work`` by its pixels and the weights."""

    classifier: Extractor
    chosen: Extractor
    work: Path
    batch_size: int

    def outputs(self, pixels: NDArray[np.uint8], name: str) -> dict[str, Floats]:
        both = {extractor.key: extractor for extractor in (self.classifier, self.chosen)}
        key = sha256(f"{pixels.shape} {sorted(both)}", np.ascontiguousarray(pixels).data)

        def make(part: slice) -> dict[str, NDArray[Any]]:
            said = {extractor_key: extractor(list(pixels[part])) for extractor_key, extractor in both.items()}
            scores, sides = said[self.classifier.key], said[self.classifier.key]["sides"].astype(np.float64)
            return {
                "features": said[self.chosen.key]["features"],
                "probabilities": scores["probabilities"],
                "leftness": (sides[..., LEFT] - sides[..., RIGHT]).astype(np.float32),
                "thumbs": neighbours.thumbnails(pixels[part]).astype(np.float32),
                "hashes": duplicates.difference_hash(list(pixels[part])),
            }

        found = kept_in_batches(
            self.work / "outputs", "outputs", key, make, count=len(pixels), size=self.batch_size, what=name
        )
        return {field: v.astype(np.float64) if v.dtype == np.float32 else v for field, v in found.items()}

    def sample(self, pixels: NDArray[np.uint8], rows: pd.DataFrame, name: str) -> KnownImages:
        """Images with what the manifest's ``rows`` say of them."""
        findings = self.classifier.findings
        nothing = pd.Series(np.nan, index=rows.index)
        kinds = [str(kind_of(labels_from_row(row))) for row in rows.to_dict("records")]  # type: ignore[call-overload]
        return KnownImages(
            pixels=pixels,
            **self.outputs(pixels, name),  # type: ignore[arg-type]
            labels=np.column_stack([rows.get(f, nothing).to_numpy(np.float64) for f in findings]),
            sides=side_signs(rows, findings).astype(np.int64),
            patients=rows["patient_id"].to_numpy(dtype=str),
            kinds=np.unique(kinds, return_inverse=True)[1],
        )

    def again(self, sample: KnownImages, pixels: NDArray[np.uint8], name: str) -> KnownImages:
        """The same rows with other pixels."""
        return replace(sample, pixels=pixels, **self.outputs(pixels, name))  # type: ignore[arg-type]


def changed(pixels: NDArray[np.uint8], change: Callable[[damage.Grey, int], damage.Grey]) -> NDArray[np.uint8]:
    """``change(image, row)`` of every image, in threads."""
    with ThreadPoolExecutor(2) as pool:
        return np.stack(list(pool.map(change, pixels, range(len(pixels)))))


def pairs_of(sample: KnownImages, count: int, *, same: bool, seed: int) -> NDArray[np.int64]:
    """At most ``count`` pairs (P, 2) of rows of different patients, of one kind or of different kinds."""
    n = len(sample)
    first, second = np.triu_indices(n, 1)
    alike_kind = sample.kinds[first] == sample.kinds[second]
    good = np.flatnonzero((alike_kind == same) & (sample.patients[first] != sample.patients[second]))
    chosen = np.random.default_rng(seed).permutation(good)[:count]
    return np.column_stack([first[chosen], second[chosen]]).astype(np.int64)
