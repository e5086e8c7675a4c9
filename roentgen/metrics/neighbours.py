"""Points and their nearest neighbours: distances in blocks, and pixels as points.

Points are rows (N, D) of any kind, features or thumbnails, compared by Euclidean distance.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from roentgen.metrics.memorisation import damage
from roentgen.metrics.statistics import Floats

Ints = NDArray[np.int64]

MEMORY = 256 * 2**20
"""Bytes that a block of distances may take."""
VIEWS = (1.0, 0.92, 0.84)
"""Central crops of each training image, as shares of its sides, in which a cropped copy is searched."""


def blocks(
    queries: NDArray[np.floating], pool: NDArray[np.floating], memory: int = MEMORY
) -> Iterator[tuple[slice, slice, Floats]]:
    """Squared distances of blocks of ``queries`` to blocks of ``pool``, with the rows and columns they are of.

    Rows come in order, and for each block of them all columns in order; about ``memory`` bytes at a time.
    """
    if queries.ndim != 2 or pool.ndim != 2 or queries.shape[1] != pool.shape[1]:
        raise ValueError(f"expected features of one width, got {queries.shape} and {pool.shape}")
    centre = pool.mean(axis=0, dtype=np.float64)  # less is lost where norms cancel
    if not np.isfinite(centre).all():
        raise ValueError("features hold NaN or infinity")
    # Three arrays of a block's size live at once: products, squares and the order.
    side = max(1, min(4096, math.isqrt(memory // 24)))
    for top in range(0, len(queries), side):
        x = np.asarray(queries[top : top + side], dtype=np.float64) - centre
        norms = (x * x).sum(axis=1)[:, None]
        if not np.isfinite(norms).all():
            raise ValueError("features hold NaN or infinity")
        for start in range(0, len(pool), side):
            y = np.asarray(pool[start : start + side], dtype=np.float64) - centre
            squared = np.clip(norms + (y * y).sum(axis=1) - 2 * x @ y.T, 0, None)
            yield slice(top, top + side), slice(start, start + side), squared


def nearest(
    queries: NDArray[np.floating],
    pool: NDArray[np.floating],
    *,
    k: int = 1,
    without: NDArray[np.integer] | None = None,
    pool_groups: NDArray[np.integer] | None = None,
    memory: int = MEMORY,
) -> tuple[Ints, Floats]:
    """Numbers (N, k) of the ``k`` items of ``pool`` (M, D) nearest to each of ``queries`` (N, D), and the distances.

    In float64, block by block: no more than about ``memory`` bytes of distances at a time, whatever N and M. Of equal
    distances the lower number comes first. ``without`` (N,) leaves an item out for each query (its own number, when
    the queries are from the pool; -1: none); with ``pool_groups`` (M,) numbers a group, such as a patient's images.
    Where fewer than k items are left the number is -1 and the distance infinite.
    """
    if len(pool) == 0 or k < 1:
        raise ValueError("the pool must hold an item and k be at least 1")
    left_out = np.full(len(queries), -1) if without is None else np.asarray(without)
    groups = np.arange(len(pool)) if pool_groups is None else np.asarray(pool_groups)
    numbers = np.full((len(queries), k), -1, dtype=np.int64)
    found = np.full((len(queries), k), np.inf)
    for rows, columns, squared in blocks(queries, pool, memory):
        squared[groups[columns] == left_out[rows, None]] = np.inf
        best = squared.argmin(axis=1)[:, None] if k == 1 else np.argsort(squared, axis=1, kind="stable")[:, :k]
        value = np.take_along_axis(squared, best, axis=1)
        both = np.concatenate([found[rows], value], axis=1)
        names = np.concatenate([numbers[rows], np.where(np.isinf(value), -1, best + columns.start)], axis=1)
        order = np.argsort(both, axis=1, kind="stable")[:, :k]
        found[rows] = np.take_along_axis(both, order, axis=1)
        numbers[rows] = np.take_along_axis(names, order, axis=1)
    # Squares that cancel leave rounding of their own size; the difference itself is exact.
    for column in range(k):
        known = np.flatnonzero(numbers[:, column] >= 0)
        for part in np.array_split(known, max(1, len(known) // 1024)):
            gap = np.asarray(queries[part], np.float64) - np.asarray(pool[numbers[part, column]], np.float64)
            found[part, column] = np.linalg.norm(gap, axis=1)
    return numbers, found


def thumbnails(images: NDArray[np.uint8], side: int = 32) -> NDArray[np.float32]:
    """uint8 (N, H, W) -> float32 (N, side * side) in [0, 1]: the second, model-free space for neighbours."""
    from PIL import Image

    if images.dtype != np.uint8 or images.ndim != 3:
        raise ValueError(f"expected uint8 (N, H, W), got {images.dtype} {images.shape}")
    result = np.empty((len(images), side * side), dtype=np.float32)
    for number, image in enumerate(images):
        exact = Image.fromarray(np.asarray(image, dtype=np.float32))
        small = exact.resize((side, side), Image.Resampling.BOX)
        result[number] = np.asarray(small).ravel() / 255
    return result


def standardise(points: NDArray[np.floating]) -> NDArray[np.float32]:
    """Rows (N, D) less their mean, over their standard deviation; a flat row gives zeros.

    Thumbnails so treated do not change with brightness and contrast, and neither does the distance of a copy.
    """
    x = np.asarray(points, dtype=np.float64)
    x = x - x.mean(axis=1, keepdims=True)
    spread = x.std(axis=1, keepdims=True)
    return np.divide(x, spread, out=np.zeros_like(x), where=spread > 1e-9).astype(np.float32)


def train_views(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Standardised thumbnails (N * V, 1024) of central crops of uint8 (N, H, W), V = ``len(VIEWS)`` an image.

    Search them with ``standardise(thumbnails(queries))``: a copy is found also where it is brighter, or cropped about
    the centre. Copies that are shifted, turned or cropped at one side only are not.
    """
    crops = [thumbnails(np.stack([damage.crop(image, keep) for image in images])) for keep in VIEWS]
    return standardise(np.stack(crops, axis=1).reshape(len(images) * len(VIEWS), -1))
