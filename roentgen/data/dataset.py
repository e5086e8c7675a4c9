"""Images of a manifest as one array in memory, read once and cached on disk by content."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from roentgen.errors import UserError
from roentgen.images import read_image, resize_center_crop

# Changing how images are read or resized must change this, or old caches would be taken for new.
CHAIN = "read_image+resize_center_crop-1"


@dataclass(frozen=True)
class PixelArray:
    """``pixels`` uint8 (N, size, size); ``native`` int32 (N,): shorter side of each image on disk, in pixels."""

    pixels: NDArray[np.uint8]
    native: NDArray[np.int32]


def load_pixels(paths: Sequence[str], *, size: int, cache: Path | None = None) -> PixelArray:
    """Read images, resize the shorter side to ``size`` and crop the centre square; order is that of ``paths``.

    With ``cache`` (a folder) the array is stored there under a key of paths, file sizes, times, size and chain, and
    memory-mapped on later calls. An unreadable image raises ``UserError``; none is ever replaced.
    """
    if not paths:
        raise UserError("the manifest holds no images for this split; check its split column")
    stats = []
    for path in paths:
        try:
            status = Path(path).stat()
        except OSError:
            raise UserError(f"{path}: image not found; run `roentgen data check` on the manifest") from None
        stats.append(f"{path}:{status.st_size}:{status.st_mtime_ns}")
    key = hashlib.sha256("\n".join([CHAIN, str(size), *stats]).encode()).hexdigest()[:20]
    if cache is not None and (cache / f"pixels-{key}.done").exists():
        return PixelArray(np.load(cache / f"pixels-{key}.npy", mmap_mode="r"), np.load(cache / f"native-{key}.npy"))

    from tqdm import tqdm

    def one(path: str) -> tuple[NDArray[np.uint8], int]:
        image = read_image(path)
        return resize_center_crop(image, size), min(image.shape)

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        bar = tqdm(pool.map(one, paths), total=len(paths), desc="reading images", file=sys.stderr, leave=False)
        results = list(bar)
    array = PixelArray(np.stack([r[0] for r in results]), np.array([r[1] for r in results], dtype=np.int32))
    if cache is not None:
        cache.mkdir(parents=True, exist_ok=True)
        for name, part in (("pixels", array.pixels), ("native", array.native)):
            temporary = cache / f".{name}-{key}-{os.getpid()}.npy"
            np.save(temporary, part)
            temporary.replace(cache / f"{name}-{key}.npy")
        (cache / f"pixels-{key}.done").touch()
    return array
