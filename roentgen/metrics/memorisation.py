"""Memorisation: are generated images nearer to training images than to equally many unseen ones?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from roentgen.metrics.bootstrap import percentile_interval

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Nearness:
    """``share`` of queries nearer to train than to test, in [0, 1] (a half: it makes no difference).

    ``pool``: size of each side; ``subsets``: how many random subsets the larger side gave; ``subset_sd``:
    spread of the share; ``nearest_train`` (N,) and ``distance`` (N,): nearest of all training items.
    """

    share: float
    ci: tuple[float, float]
    n: int
    pool: int
    subsets: int
    subset_sd: float
    nearest_train: NDArray[np.int64]
    distance: Floats


def distances(queries: NDArray[np.floating], pool: NDArray[np.floating], *, chunk: int = 256) -> Floats:
    """Euclidean distances (N, M) of ``queries`` (N, D) to ``pool`` (M, D), in float64."""
    x, y = np.asarray(queries, dtype=np.float64), np.asarray(pool, dtype=np.float64)
    centre = y.mean(axis=0)  # less is lost where norms cancel
    x, y = x - centre, y - centre
    norms = (y * y).sum(axis=1)
    result = np.empty((len(x), len(y)))
    for start in range(0, len(x), chunk):
        part = x[start : start + chunk]
        squared = (part * part).sum(axis=1)[:, None] + norms - 2 * part @ y.T
        result[start : start + chunk] = np.sqrt(np.clip(squared, 0, None))
    return result


def nearer_to_train(
    queries: NDArray[np.floating],
    train: NDArray[np.floating],
    test: NDArray[np.floating],
    *,
    subsets: int = 20,
    resamples: int = 1000,
    seed: int = 0,
) -> Nearness:
    """Share of ``queries`` (N, D) whose nearest of ``train`` (A, D) is closer than that of ``test`` (B, D).

    Of more images one is nearer by chance alone, so the larger side is cut to random subsets of the smaller
    one's size and the share is the mean over them. Ties count half. The interval draws queries and subsets.
    """
    if min(len(queries), len(train), len(test)) == 0:
        raise ValueError("queries, train and test must each hold at least one item")
    rng = np.random.default_rng(seed)
    size = min(len(train), len(test))
    to_train, to_test = distances(queries, train), distances(queries, test)
    subsets = 1 if len(train) == len(test) else subsets
    nearer = np.empty((subsets, len(queries)))
    for number in range(subsets):
        from_train, from_test = (
            d if d.shape[1] == size else d[:, rng.choice(d.shape[1], size, replace=False)] for d in (to_train, to_test)
        )
        a, b = from_train.min(axis=1), from_test.min(axis=1)
        nearer[number] = (a < b) + 0.5 * (a == b)
    n = len(queries)
    draws = [nearer[rng.integers(subsets), rng.integers(n, size=n)].mean() for _ in range(resamples)]
    return Nearness(
        share=float(nearer.mean()),
        ci=percentile_interval(draws),
        n=n,
        pool=size,
        subsets=subsets,
        subset_sd=float(nearer.mean(axis=1).std()),
        nearest_train=to_train.argmin(axis=1),
        distance=to_train.min(axis=1),
    )


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
