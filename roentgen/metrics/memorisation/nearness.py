"""Memorisation: are generated images nearer to training images than unseen real images are?

Everything here works on features (N, D) of any kind, thumbnails of pixels included, by Euclidean distance. A measure
that finds nothing says that it found nothing in those features: copies that the features do not tell from other
images of the same kind stay hidden, so ``planted_recall`` belongs beside every "none found".
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roentgen.metrics.adherence.laterality import wilson_interval
from roentgen.metrics.bootstrap import RESAMPLES, cluster_weights, mean_interval, percentile_interval
from roentgen.metrics.neighbours import Floats, Ints, blocks, nearest

Groups = Sequence[object] | NDArray[np.generic]

QUANTILE = 0.01
"""Share of unseen real images that the threshold of a near-duplicate flags."""
FEW = 100
"""Below this many images a share is too rough to say more than "all" or "none"."""
OFTEN = 10
"""A prompt that occurs more often than this in training is one seen often."""


@dataclass(frozen=True)
class Nearness:
    """``share`` of queries nearer to train than to test, in [0, 1] (a half: it makes no difference).

    ``pool``: size of each side; ``subsets``: how many random subsets the larger side gave; ``subset_sd``:
    spread of the share; ``nearest_train`` (N,) and ``distance`` (N,): nearest of all training items;
    ``nearer`` (N,): share of the subsets in which each query was nearer to train.
    """

    share: float
    ci: tuple[float, float]
    n: int
    pool: int
    subsets: int
    subset_sd: float
    nearest_train: NDArray[np.int64]
    distance: Floats
    nearer: Floats


def nearer_to_train(
    queries: NDArray[np.floating],
    train: NDArray[np.floating],
    test: NDArray[np.floating],
    *,
    groups: Groups | None = None,
    subsets: int = 20,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Nearness:
    """Share of ``queries`` (N, D) whose nearest of ``train`` (A, D) is closer than that of ``test`` (B, D).

    Of more images one is nearer by chance alone, so the larger side is cut to random subsets of the smaller
    one's size and the share is the mean over them. Ties count half. The interval draws queries (with ``groups``
    (N,) patients, all queries of one together) and subsets.
    """
    if min(len(queries), len(train), len(test)) == 0:
        raise ValueError("queries, train and test must each hold at least one item")
    rng = np.random.default_rng(seed)
    size = min(len(train), len(test))
    subsets = 1 if len(train) == len(test) else subsets
    chosen: dict[str, list[Ints]] = {"train": [], "test": []}
    for _ in range(subsets):
        for name, pool in (("train", train), ("test", test)):
            rows = np.arange(size) if len(pool) == size else rng.choice(len(pool), size, replace=False)
            chosen[name].append(rows)
    numbers, closest = nearest(queries, train)
    a = _subset_distances(queries, train, chosen["train"])
    b = _subset_distances(queries, test, chosen["test"])
    nearer = (a < b) + 0.5 * (a == b)
    n = len(queries)
    if groups is None:
        draws = [nearer[rng.integers(subsets), rng.integers(n, size=n)].mean() for _ in range(resamples)]
    else:
        weights = cluster_weights(groups, resamples, seed)
        picked = nearer[rng.integers(subsets, size=resamples)]
        draws = list((weights * picked).sum(axis=1) / weights.sum(axis=1))
    return Nearness(
        share=float(nearer.mean()),
        ci=percentile_interval(draws),
        n=n,
        pool=size,
        subsets=subsets,
        subset_sd=float(nearer.mean(axis=1).std()),
        nearest_train=numbers[:, 0],
        distance=closest[:, 0],
        nearer=nearer.mean(axis=0),
    )


def _subset_distances(queries: NDArray[np.floating], pool: NDArray[np.floating], subsets: Sequence[Ints]) -> Floats:
    """Distance (S, N) of each query to its nearest among each of the ``subsets`` of ``pool``."""
    members = np.zeros((len(subsets), len(pool)), dtype=bool)
    for number, chosen in enumerate(subsets):
        members[number, chosen] = True
    result = np.full((len(subsets), len(queries)), np.inf)
    for rows, columns, squared in blocks(queries, pool):
        for number, member in enumerate(members[:, columns]):
            if member.any():
                result[number, rows] = np.minimum(result[number, rows], squared[:, member].min(axis=1))
    return np.asarray(np.sqrt(result))


def membership_test(
    queries: NDArray[np.floating],
    train: NDArray[np.floating],
    test: NDArray[np.floating],
    *,
    train_groups: Groups | None = None,
    test_groups: Groups | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Permutation test: would train and test lie as they do about ``queries`` had the model never seen train?

    The nearest real image of a query is a training image with chance A / (A + B) if which patients were trained on
    makes no difference. Drawing the "trained" patients anew ``resamples`` times tells how far chance goes; unlike the
    interval of ``nearer_to_train`` it counts the luck of which real images are in the pools (a few of them are the
    nearest of many queries). No subsets are needed: unequal pools have an unequal expectation.

    Returns:
        ``share`` of queries whose nearest is in train, ``expected`` share (mean under permutation), ``p`` (one-sided,
        at least 1 / (resamples + 1)), and ``null``: the central 95 % under permutation.
    """
    of_train = [f"train {group}" for group in (range(len(train)) if train_groups is None else train_groups)]
    of_test = [f"test {group}" for group in (range(len(test)) if test_groups is None else test_groups)]
    if len(of_train) != len(train) or len(of_test) != len(test):
        raise ValueError("groups must name a patient for each item")
    (in_train, a), (in_test, b) = nearest(queries, train), nearest(queries, test)
    names, index = np.unique(np.array(of_train + of_test), return_inverse=True)
    trained = np.array([name.startswith("train ") for name in names])
    first = (a < b)[:, 0] + 0.5 * (a == b)[:, 0]
    hits = np.bincount(index[in_train[:, 0]], weights=first, minlength=len(names))
    hits += np.bincount(index[len(train) + in_test[:, 0]], weights=1 - first, minlength=len(names))
    rng = np.random.default_rng(seed)
    null = np.array([hits[rng.permutation(trained)].sum() for _ in range(resamples)]) / len(queries)
    share = float(hits[trained].sum() / len(queries))
    return {
        "share": share,
        "expected": float(null.mean()),
        "p": float((1 + (null >= share - 1e-12).sum()) / (1 + resamples)),
        "null": percentile_interval(null),
    }


def nearness(
    queries: NDArray[np.floating],
    train: NDArray[np.floating],
    test: NDArray[np.floating],
    *,
    groups: Groups | None = None,
    train_groups: Groups | None = None,
    test_groups: Groups | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """``nearer_to_train`` and ``membership_test`` as one result: value (0.5: none), interval, p, each query's share.

    ``details["nearer"]`` (N,) is the share of subsets in which the query was nearer to train, for ``by_frequency``.
    """
    found = nearer_to_train(queries, train, test, groups=groups, resamples=resamples, seed=seed)
    test_of = membership_test(
        queries, train, test, train_groups=train_groups, test_groups=test_groups, resamples=resamples, seed=seed
    )
    warnings = _few(found.n, "queries") + _few(found.pool, "unseen images")
    if len(train) > 4 * len(test):
        warnings.append(
            f"train holds {len(train)} images and the unseen set {len(test)}: a copy counts only where its source is "
            f"in the subset of {found.pool}, {found.pool / len(train):.0%} of the time; look at the near-duplicates"
        )
    return {
        "value": found.share,
        "ci": found.ci,
        "ci_method": f"95 % percentile, bootstrap by {'image' if groups is None else 'patient'} and over train "
        f"subsets, {resamples} resamples",
        "n": found.n,
        "warnings": warnings,
        "details": {
            "pool": found.pool,
            "subsets": found.subsets,
            "subset_sd": found.subset_sd,
            "membership": test_of,
            "nearest_train": found.nearest_train,
            "distance": found.distance,
            "nearer": found.nearer,
        },
    }


def authenticity(
    queries: NDArray[np.floating],
    train: NDArray[np.floating],
    *,
    unseen: NDArray[np.floating] | None = None,
    groups: Groups | None = None,
    train_groups: Groups | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """AuthPct as a share: ``queries`` that are farther from their nearest training image than that one from its own.

    Alaa et al. 2022, section 4.3: a sample is authentic if d(query, r) > d(r, nearest other training item), r being
    the query's nearest. Two images of one patient in train make r's own neighbour near and so a copy "authentic";
    with ``train_groups`` (A,) the neighbour is one of another patient. The value rises with the spread of the model
    and falls with the size of train, so it says something only beside ``unseen`` real images' value.
    """
    if len(queries) == 0 or len(train) < 2:
        raise ValueError("authenticity needs a query and two training items")
    own = np.arange(len(train)) if train_groups is None else _numbered(train_groups)

    def shares(items: NDArray[np.floating]) -> Floats:
        closest, distance = nearest(items, train)
        sources, back = np.unique(closest[:, 0], return_inverse=True)
        _, between = nearest(train[sources], train, without=own[sources], pool_groups=own)
        return (distance[:, 0] > between[back, 0]).astype(np.float64)

    authentic = shares(queries)
    details: dict[str, Any] = {"authentic": authentic, "pool": len(train)}
    if unseen is not None and len(unseen):
        real = shares(unseen)
        details["unseen"] = {
            "value": float(real.mean()),
            "ci": wilson_interval(int(real.sum()), len(real)),
            "n": len(real),
        }
    return {
        "value": float(authentic.mean()),
        "ci": _interval(authentic, groups, resamples=resamples, seed=seed),
        "ci_method": f"95 % percentile, bootstrap by {'image' if groups is None else 'patient'}, {resamples} resamples",
        "n": len(queries),
        "warnings": _few(len(queries), "queries"),
        "details": details,
    }


def near_duplicate_threshold(
    unseen: NDArray[np.floating], train: NDArray[np.floating], *, quantile: float = QUANTILE
) -> float:
    """Distance below which ``quantile`` of ``unseen`` real images (B, D) lie from their nearest training image."""
    if not 0 < quantile < 1:
        raise ValueError(f"quantile must be between 0 and 1, got {quantile}")
    _, distance = nearest(unseen, train)
    return float(np.quantile(distance[:, 0], quantile))


def near_duplicates(
    queries: NDArray[np.floating],
    train: NDArray[np.floating],
    unseen: NDArray[np.floating],
    *,
    quantile: float = QUANTILE,
    views: int = 1,
    listed: int = 50,
) -> dict[str, Any]:
    """Share of ``queries`` nearer to a training image than all but ``quantile`` of ``unseen`` real images are.

    A model that memorises nothing is expected to have about ``quantile``; ``details["pairs"]`` holds the nearest
    ``listed`` pairs, nearest first, (query, train, distance, whether below the threshold), for looking at. With
    ``views`` V, ``train`` is (A * V, D), the rows of one image one after the other, as
    ``neighbours.train_views`` gives them.
    """
    threshold = near_duplicate_threshold(unseen, train, quantile=quantile)
    numbers, distance = nearest(queries, train)
    order = np.argsort(distance[:, 0], kind="stable")
    below = distance[:, 0] < threshold
    count = int(below.sum())
    warnings = _few(len(queries), "queries")
    if quantile * len(unseen) < 1:
        warnings.append(
            f"{len(unseen)} unseen images cannot tell the {quantile:.1%} quantile: the threshold rests on the nearest "
            f"of them; {math.ceil(1 / quantile)} or more are needed"
        )
    return {
        "value": count / len(queries),
        "ci": wilson_interval(count, len(queries)),
        "ci_method": "95 % Wilson",
        "n": len(queries),
        "warnings": warnings,
        "details": {
            "expected": quantile,
            "threshold": threshold,
            "count": count,
            "unseen": len(unseen),
            "flagged": below,
            "pairs": [
                {
                    "query": int(row),
                    "train": int(numbers[row, 0]) // views,
                    "distance": float(distance[row, 0]),
                    "near_duplicate": bool(below[row]),
                }
                for row in order[:listed]
            ],
        },
    }


def planted_recall(
    planted: Mapping[str, NDArray[np.floating]],
    sources: Mapping[str, NDArray[np.integer]],
    train: NDArray[np.floating],
    *,
    threshold: float,
    views: int = 1,
) -> dict[str, dict[str, Any]]:
    """How many copies ``near_duplicates`` would find, by kind of copy (exact, cropped, blurred, brightness-shifted).

    ``planted[kind]`` (K, D) are features of copies of the training items ``sources[kind]`` (K,), made with
    ``damage.plant``. ``value`` is the share below ``threshold``; ``details["right_source"]`` the share that is and
    whose nearest training item is the one copied, ``details["found"]`` (K,) which are. ``views`` as in
    ``near_duplicates``.
    """
    result = {}
    for kind, features in planted.items():
        numbers, distance = nearest(features, train)
        found = distance[:, 0] < threshold
        right = found & (numbers[:, 0] // views == np.asarray(sources[kind]))
        n = len(features)
        result[kind] = {
            "value": float(found.mean()),
            "ci": wilson_interval(int(found.sum()), n),
            "ci_method": "95 % Wilson",
            "n": n,
            "warnings": _few(n, "planted copies"),
            "details": {
                "right_source": float(right.mean()),
                "median_distance": float(np.median(distance)),
                "found": found,
            },
        }
    return result


def prompt_counts(prompts: Sequence[Hashable], training: Sequence[Hashable]) -> Ints:
    """How often each of ``prompts`` (N,) occurs among the prompts of ``training``.

    Texts are compared without regard to case, punctuation at the end and white space; other things (sets of labels,
    where each report is worded differently) as they are.
    """
    counted = Counter(_plain(prompt) for prompt in training)
    return np.array([counted[_plain(prompt)] for prompt in prompts], dtype=np.int64)


def by_frequency(
    values: Floats,
    counts: NDArray[np.integer],
    *,
    groups: Groups | None = None,
    often: int = OFTEN,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Mean of ``values`` (N,) of any measure above, apart for prompts seen "never", "rarely" and "often" in training.

    ``counts`` (N,) as ``prompt_counts`` gives them; rarely is 1 to ``often`` times. Groups without a prompt are listed
    with n = 0 and NaN.
    """
    if len(values) != len(counts):
        raise ValueError(f"{len(values)} values and {len(counts)} counts")
    names = np.asarray([str(group) for group in (range(len(values)) if groups is None else groups)])
    ranges = (("never", 0, 0), ("rarely", 1, often), ("often", often + 1, np.iinfo(np.int64).max))
    result = []
    for name, low, high in ranges:
        rows = np.flatnonzero((counts >= low) & (counts <= high))
        empty = len(rows) == 0
        result.append(
            {
                "seen": name,
                "from": low,
                "to": None if name == "often" else high,
                "value": float("nan") if empty else float(np.mean(values[rows])),
                "ci": (float("nan"), float("nan"))
                if empty
                else _interval(values[rows], names[rows], resamples=resamples, seed=seed),
                "n": len(rows),
            }
        )
    return result


def _interval(values: Floats, groups: Groups | None, *, resamples: int, seed: int) -> tuple[float, float]:
    return mean_interval(values, None if groups is None else list(groups), resamples=resamples, seed=seed)


def _plain(prompt: Hashable) -> Hashable:
    return " ".join(prompt.split()).rstrip(".").casefold() if isinstance(prompt, str) else prompt


def _numbered(groups: Groups) -> Ints:
    return np.unique(np.asarray([str(group) for group in groups]), return_inverse=True)[1].astype(np.int64)


def _few(n: int, what: str) -> list[str]:
    return [f"{n} {what}: fewer than {FEW}, the share is rough"] if n < FEW else []
