"""Features of the frozen trunk for the ``labels`` reporter: computed once an image and view, and kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from roentgen.cache import RowStore, build_rows, place
from roentgen.digests import file_digests
from roentgen.files import fingerprint, sha256
from roentgen.images import read_image, to_autoencoder
from roentgen.models.efficientnet_lite import TRUNK, EfficientNetLite0
from roentgen.reports.finding_net import squash

CHAIN = "read_image+squash+jitter-1"
"""Changing how views are made must change this, or old caches would be taken for new."""


@dataclass(frozen=True)
class Jitter:
    """One view of an image: window of the image that is seen, in fractions, and how its greys are changed."""

    left: float = 0.0
    top: float = 0.0
    width: float = 1.0
    height: float = 1.0
    contrast: float = 1.0
    brightness: float = 0.0
    blur: float = 1.0
    noise: float = 0.0

    def box(self, box: Sequence[float]) -> tuple[float, float, float, float]:
        """A box (x1, y1, x2, y2) in fractions of the image as fractions of the view, cut at its edges."""
        x1, y1, x2, y2 = box
        moved = (
            (x1 - self.left) / self.width,
            (y1 - self.top) / self.height,
            (x2 - self.left) / self.width,
            (y2 - self.top) / self.height,
        )
        a, b, c, d = (min(1.0, max(0.0, value)) for value in moved)
        return a, b, c, d


def jitter_of(digest: str, view: int) -> Jitter:
    """The view number ``view`` of an image, a function of its content; 0 is the image as it is. No flips."""
    if view == 0:
        return Jitter()
    rng = np.random.default_rng(int(sha256(f"{digest} {view}")[:15], 16))
    width, height = rng.uniform(0.84, 1.06, 2)
    shift = rng.uniform(-0.05, 0.05, 2)
    return Jitter(
        left=(1 - width) / 2 + shift[0],
        top=(1 - height) / 2 + shift[1],
        width=width,
        height=height,
        contrast=rng.uniform(0.75, 1.25),
        brightness=rng.uniform(-0.2, 0.2),
        # Half of the collection is 128 pixels wide: sharpness must not tell the sources apart.
        blur=rng.uniform(0.45, 1.0) if rng.random() < 0.5 else 1.0,
        noise=rng.uniform(0, 0.05),
    )


def see(images: NDArray[np.uint8], views: Sequence[Jitter], seed: int = 0) -> Tensor:
    """uint8 (N, S, S) -> float (N, 1, S, S) in [-1, 1], each as its view says."""
    x = to_autoencoder(images)
    generator = torch.Generator().manual_seed(seed)
    for row, view in enumerate(views):
        if view == Jitter():
            continue
        one = x[row : row + 1]
        if view.blur < 1:
            side = max(8, round(one.shape[-1] * view.blur))
            one = F.interpolate(one, (side, side), mode="area")
            one = F.interpolate(one, x.shape[-2:], mode="bilinear", align_corners=False)
        theta = torch.tensor(
            [[view.width, 0, 2 * view.left + view.width - 1], [0, view.height, 2 * view.top + view.height - 1]]
        ).float()[None]
        grid = F.affine_grid(theta, list(one.shape), align_corners=False)
        one = F.grid_sample(one, grid, padding_mode="border", align_corners=False)
        one = one * view.contrast + view.brightness
        x[row] = (one + view.noise * torch.randn(one.shape, generator=generator)).clamp(-1, 1)[0]
    return x


def folded(features: EfficientNetLite0, blocks: int = TRUNK) -> Callable[[Tensor], Tensor]:
    """The first ``blocks`` blocks with their norms folded into their convolutions: the same to rounding, faster."""
    import copy

    network = copy.deepcopy(features)
    network.fold()
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return lambda x: network.trunk(x, blocks)


def trunk_features(
    features: EfficientNetLite0, paths: Sequence[str], *, size: int, views: int, cache: Path, batch_size: int = 16,
    blocks: int = TRUNK,
) -> tuple[list[RowStore], list[str]]:  # fmt: skip
    """Rows float16 (C, h, w) of each image, one store a view, and the images' digests.

    Args:
        features: the network whose first ``blocks`` blocks are frozen; rows are what these give.
        paths: image files.
        size: side of the network's square in pixels.
        views: how many views; the first is the image as it is.
        cache: folder.
        batch_size: images at a time.
        blocks: see features.
    """
    digests = file_digests(paths, cache / "images")
    trunk = folded(features, blocks)
    weights = fingerprint(nn.ModuleList([features.stem, features.blocks[:blocks]]))
    folder = place(cache, "trunk", {"weights": weights, "size": size, "chain": CHAIN})

    def load(items: list[int], view: int) -> Tensor:
        images = np.stack([squash(read_image(paths[item]), size) for item in items])
        return see(images, [jitter_of(digests[item], view) for item in items], seed=items[0])

    @torch.inference_mode()
    def encode(x: Tensor) -> NDArray[np.float16]:
        return trunk(x.contiguous(memory_format=torch.channels_last)).contiguous().half().numpy()

    stores = []
    for view in range(views):
        stores.append(
            build_rows(
                folder / f"view-{view}",
                digests,
                lambda items, view=view: load(items, view),  # type: ignore[misc]
                encode,
                what=f"features of view {view}",
                batch_size=batch_size,
            )
        )
    return stores, digests
