"""Is the image a near-copy of a training image?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from roentgen.metrics.neighbours import VIEWS, standardise, thumbnails
from roentgen.prompts import Labels
from roentgen.synthesis.filters.inputs import FilterInputs, Floats, Grey

THUMBNAIL = 32


@dataclass(frozen=True)
class Copies:
    """Is the image a near-copy of a training image? The score is the distance to the nearest one.

    views: standardised thumbnails (V, 1024) of ``thumbnail_views``. rule: ``least``, the smallest distance that is
    kept, ``quantile`` of unseen real images below it.
    """

    views: NDArray[np.float32] = field(repr=False)
    rule: Mapping[str, Any]

    def scores(self, inputs: FilterInputs, labels: Sequence[Labels]) -> Floats:
        return nearest_view(inputs.pixels, self.views)

    def keeps(self, scores: Floats) -> NDArray[np.bool_]:
        return scores >= self.rule["least"]

    def describe(self) -> dict[str, Any]:
        return {
            "measure": "distance to the nearest training image in standardised 32 x 32 thumbnails, the training image "
            f"also cropped to {', '.join(f'{keep:.0%}' for keep in VIEWS[1:])} and mirrored",
            "least": round(float(self.rule["least"]), 4),
            "threshold_from": f"{self.rule['quantile']:.1%} of real images of other patients are nearer",
            "training_images": len(self.views) // len(VIEWS),
            "misses": "copies that are shifted or turned by more than about two hundredths of the side",
        }


def thumbnail_views(packed: Grey) -> NDArray[np.float32]:
    """Standardised central crops (V * M, 1024), V = ``len(VIEWS)``, of thumbnails uint8 (M, 1024); view after view."""
    small = packed.reshape(-1, THUMBNAIL, THUMBNAIL).astype(np.float32)
    parts = []
    for keep in VIEWS:
        margin = THUMBNAIL * (1 - keep) / 2
        box = (margin, margin, THUMBNAIL - margin, THUMBNAIL - margin)
        crops = [
            image if keep == 1 else np.asarray(
                Image.fromarray(image).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BICUBIC, box=box)
            )
            for image in small
        ]  # fmt: skip
        parts.append(standardise(np.stack(crops).reshape(len(small), -1)))
    return np.concatenate(parts)


def nearest_view(pixels: Grey, views: NDArray[np.float32], *, block: int = 4096) -> Floats:
    """Distance (N,) of uint8 images (N, H, W), as they are and mirrored, to the nearest of ``views`` (V, 1024)."""
    small = thumbnails(pixels, THUMBNAIL)
    mirrored = small.reshape(-1, THUMBNAIL, THUMBNAIL)[:, :, ::-1].reshape(len(small), -1)
    queries = standardise(np.concatenate([small, mirrored]))
    best = np.full(len(queries), -np.inf)
    number = np.zeros(len(queries), dtype=np.int64)
    norms = (views**2).sum(axis=1)
    for start in range(0, len(views), block):
        # |q - v|^2 = |q|^2 - (2 q.v - |v|^2): the largest of what is in brackets is the nearest.
        like = 2 * queries @ views[start : start + block].T - norms[start : start + block]
        top = like.argmax(axis=1)
        value = like[np.arange(len(queries)), top]
        better = value > best
        number[better], best[better] = start + top[better], value[better]
    gaps = queries.astype(np.float64) - views[number]  # exact where the product has cancelled
    distances = np.sqrt((gaps**2).sum(axis=1))
    return np.asarray(distances.reshape(2, -1).min(axis=0))


def copies_rule(distances: Floats, share: float) -> dict[str, Any]:
    """What ``Copies`` compares with: the ``share`` quantile of unseen images' nearest distances (N,)."""
    return {"quantile": share, "least": float(np.quantile(distances, share)), "images": len(distances)}
