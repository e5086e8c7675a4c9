"""Each metric's own noise: how far undamaged images move it."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from tqdm import tqdm

from roentgen.experiments.sensitivity.samples import KnownImages, World, join, pairs_of
from roentgen.experiments.sensitivity.scores import METRICS, SPACES, Metric, in_space, train_in_space
from roentgen.metrics import neighbours
from roentgen.metrics.diversity.ms_ssim import pair_ms_ssim
from roentgen.metrics.memorisation.copies import QUANTILE
from roentgen.metrics.statistics import Bootstrap, Floats, percentile_interval, resampled_means


def noise_of_all(start: KnownImages, world: World, *, draws: int, seed: int) -> dict[str, Floats]:
    """Values (draws,) of each metric over undamaged images."""
    rng = np.random.default_rng(seed)
    pool = join(start, world.real)
    names, patient = np.unique(pool.patients, return_inverse=True)
    light = replace(pool, pixels=np.zeros((len(pool), 1, 1), np.uint8))  # halves are never looked at, only measured
    far = Lookup.of(pool, world)
    weights = Bootstrap(draws, seed).weights(start.patients)
    found: dict[str, list[float]] = {metric.key: [] for metric in METRICS}
    for number in tqdm(range(draws), desc="noise of undamaged images", file=sys.stderr, leave=False):
        ranks = rng.permutation(len(names))[patient]
        order = np.argsort(ranks, kind="stable")  # whole patients, in random order
        a, b = np.sort(order[: len(start)]), np.sort(order[len(start) :])
        first, other = light.take(a), replace(world, real=light.take(b), seed=seed + number)
        drawn = start.take(np.repeat(np.arange(len(start)), weights[number].astype(np.int64)))
        for metric in METRICS:
            if metric.noise == "halves":
                found[metric.key].append(metric.value(first, other))
            elif metric.noise == "lookup":
                found[metric.key].append(far.value(metric.key, a, b))
            elif metric.noise == "patients":
                found[metric.key].append(metric.value(drawn, world))
    for metric in METRICS:
        if metric.rows is not None:
            found[metric.key] = list(resampled_means(metric.rows(start, world), weights))
        if metric.noise == "pairs":
            found[metric.key] = pair_draws(metric, start, world, draws=draws, seed=seed)
    return {key: np.array(values) for key, values in found.items()}


@dataclass(frozen=True, eq=False)
class Lookup:
    """Distances that every division of the undamaged images into halves shares: the same values, far sooner.

    nearest (N,): to train, by space; subsets (S, N): to the nearest of S random subsets of train; within (N, N).
    """

    nearest: dict[str, Floats]
    subsets: Floats
    within: Floats

    @staticmethod
    def of(pool: KnownImages, world: World) -> Lookup:
        size = min(len(world.real), len(world.train))
        rng = np.random.default_rng(world.seed)
        drawn = [rng.choice(len(world.train), size, replace=False) for _ in range(5)]
        to_train = cdist(pool.features, world.train.features)
        return Lookup(
            nearest={
                f"copies_{space}": neighbours.nearest(in_space(space, pool), train_in_space(space, world))[1][:, 0]
                for space in SPACES
            },
            subsets=np.stack([to_train[:, rows].min(axis=1) for rows in drawn]),
            within=cdist(pool.features, pool.features),
        )

    def value(self, key: str, a: NDArray[np.integer], b: NDArray[np.integer]) -> float:
        """The metric ``key`` with rows ``a`` in the part of the damaged images, ``b`` in that of the real ones."""
        if key == "nearer":
            to_real = self.within[np.ix_(a, b)].min(axis=1)
            return float((self.subsets[:, a] < to_real).mean())
        distance = self.nearest[key]
        return float((distance[a] < np.quantile(distance[b], QUANTILE)).mean())


def range_about(value: float, draws: Floats, bounds: tuple[float, float]) -> tuple[float, float]:
    """Central 95 % of ``draws``, moved so that their median is ``value``, within ``bounds``.

    The images to be damaged are one draw, high or low by luck; damage is a step from there, not from the middle.
    """
    low, high = percentile_interval(draws)
    finite = draws[np.isfinite(draws)]
    if not len(finite) or not np.isfinite(value):
        return float("nan"), float("nan")
    shift = value - float(np.median(finite))
    return max(bounds[0], low + shift), min(bounds[1], high + shift)


def pair_draws(metric: Metric, start: KnownImages, world: World, *, draws: int, seed: int) -> list[float]:
    """The metric's mean over image pairs drawn anew, with replacement, from four times as many undamaged pairs."""
    same = metric.key == "ms_ssim_within"
    used = world.same_kind if same else world.other_kind
    if len(used) == 0:
        return []
    more = pairs_of(start, 4 * len(used), same=same, seed=seed + 1)
    values = pair_ms_ssim(start.pixels, more)
    rng = np.random.default_rng(seed)
    return [float(values[rng.integers(len(values), size=len(used))].mean()) for _ in range(draws)]
