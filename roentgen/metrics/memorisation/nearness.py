"""Memorisation: are generated images nearer to training images than unseen real images are?

Everything here works on features (N, D) of any kind, thumbnails of pixels included, by Euclidean distance. A measure
that finds nothing says that it found nothing in those features: copies that the features do not tell from other
images of the same kind stay hidden, so ``planted_recall`` belongs beside every "none found".
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roentgen.metrics.extractor import Extractor
from roentgen.metrics.measure import NOTHING, VALIDATION, EvaluationInputs, Result, bound, measure
from roentgen.metrics.neighbours import Ints, blocks, nearest
from roentgen.metrics.noticed import ALL_COPIES, Noticed
from roentgen.metrics.statistics import USUAL, Bootstrap, Floats, Groups, own_groups, percentile_interval

FEW = 100
"""Below this many images a share is too rough to say more than "all" or "none"."""
OFTEN = 10
"""A prompt that occurs more often than this in training is one seen often."""
NEAREST, DISTANCE, NEARER = "nearest training row", "distance to training", "share nearer to training"
"""Columns of single images."""


def nearer_to_train(
    queries: NDArray[np.floating],
    train: NDArray[np.floating],
    test: NDArray[np.floating],
    groups: Groups | None = None,
    *,
    subsets: int = 20,
    bootstrap: Bootstrap = USUAL,
) -> Result:
    """Share of ``queries`` (N, D) whose nearest of ``train`` (A, D) is closer than that of ``test`` (B, D); a half: it
    makes no difference.

    Of more images one is nearer by chance alone, so the larger side is cut to random subsets of the smaller
    one's size and the share is the mean over them. Ties count half. The interval draws queries (with ``groups``
    (N,) patients, all queries of one together) and subsets.

    Returns:
        ``details``: ``pool``, the size of each side; how many ``subsets`` the larger gave; ``subset_sd``, the spread
        of the share. ``per_image`` (N,): number of the nearest of all training items and its distance, and the share
        of the subsets in which the query was nearer to train.
    """
    if min(len(queries), len(train), len(test)) == 0:
        raise ValueError("queries, train and test must each hold at least one item")
    rng, resamples = np.random.default_rng(bootstrap.seed), bootstrap.resamples
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
        weights = bootstrap.weights(groups)
        picked = nearer[rng.integers(subsets, size=resamples)]
        draws = list((weights * picked).sum(axis=1) / weights.sum(axis=1))
    notes = rough_if_few(n, "queries") + rough_if_few(size, "unseen images")
    if len(train) > 4 * len(test):
        notes.append(
            f"train holds {len(train)} images and the unseen set {len(test)}: a copy counts only where its source is "
            f"in the subset of {size}, {size / len(train):.0%} of the time; look at the near-duplicates"
        )
    return Result(
        float(nearer.mean()),
        percentile_interval(draws),
        n,
        bootstrap.said(f"{'image' if groups is None else 'patient'} and over train subsets"),
        floor={"value": 0.5, "what": "no difference"},
        notes=notes,
        details={"pool": size, "subsets": subsets, "subset_sd": float(nearer.mean(axis=1).std())},
        per_image={NEAREST: numbers[:, 0], DISTANCE: closest[:, 0], NEARER: nearer.mean(axis=0)},
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
    train_groups: Groups | None = None,
    test_groups: Groups | None = None,
    *,
    bootstrap: Bootstrap = USUAL,
) -> dict[str, Any]:
    """Permutation test: would train and test lie as they do about ``queries`` had the model never seen train?

    The nearest real image of a query is a training image with chance A / (A + B) if which patients were trained on
    makes no difference. Drawing the "trained" patients anew, a resample each, tells how far chance goes; unlike the
    interval of ``nearer_to_train`` it counts the luck of which real images are in the pools (a few of them are the
    nearest of many queries). No subsets are needed: unequal pools have an unequal expectation.

    Returns:
        ``share`` of queries whose nearest is in train, ``expected`` share (mean under permutation), ``p`` (one-sided,
        at least 1 / (resamples + 1)), and ``null``: the central 95 % under permutation.
    """
    of_train = [f"train {group}" for group in own_groups(train_groups, train)]
    of_test = [f"test {group}" for group in own_groups(test_groups, test)]
    if len(of_train) != len(train) or len(of_test) != len(test):
        raise ValueError("groups must name a patient for each item")
    (in_train, a), (in_test, b) = nearest(queries, train), nearest(queries, test)
    names, index = np.unique(np.array(of_train + of_test), return_inverse=True)
    trained = np.array([name.startswith("train ") for name in names])
    first = (a < b)[:, 0] + 0.5 * (a == b)[:, 0]
    hits = np.bincount(index[in_train[:, 0]], weights=first, minlength=len(names))
    hits += np.bincount(index[len(train) + in_test[:, 0]], weights=1 - first, minlength=len(names))
    rng, resamples = np.random.default_rng(bootstrap.seed), bootstrap.resamples
    null = np.array([hits[rng.permutation(trained)].sum() for _ in range(resamples)]) / len(queries)
    share = float(hits[trained].sum() / len(queries))
    return {
        "share": share,
        "expected": float(null.mean()),
        "p": float((1 + (null >= share - 1e-12).sum()) / (1 + resamples)),
        "null": percentile_interval(null),
    }


def prompt_counts(prompts: Sequence[Hashable], training: Sequence[Hashable]) -> Ints:
    """How often each of ``prompts`` (N,) occurs among the prompts of ``training``.

    Texts are compared without regard to inputs, punctuation at the end and white space; other things (sets of labels,
    where each report is worded differently) as they are.
    """
    counted = Counter(_plain(prompt) for prompt in training)
    return np.array([counted[_plain(prompt)] for prompt in prompts], dtype=np.int64)


def by_frequency(
    values: Floats,
    counts: NDArray[np.integer],
    groups: Groups | None = None,
    *,
    bootstrap: Bootstrap = USUAL,
) -> list[dict[str, Any]]:
    """Mean of ``values`` (N,) of any measure above, apart for prompts seen "never", "rarely" and "often" in training.

    ``counts`` (N,) as ``prompt_counts`` gives them; rarely is 1 to ``OFTEN`` times. Groups without a prompt are listed
    with n = 0 and NaN.
    """
    if len(values) != len(counts):
        raise ValueError(f"{len(values)} values and {len(counts)} counts")
    names = np.asarray([str(group) for group in own_groups(groups, values)])
    result = []
    for name, low, high in (("never", 0, 0), ("rarely", 1, OFTEN), ("often", OFTEN + 1, None)):
        rows = np.flatnonzero((counts >= low) & (counts <= (counts if high is None else high)))
        found: dict[str, Any] = {"value": math.nan, "ci": NOTHING, "n": 0}
        if len(rows):
            found = bootstrap.mean(values[rows], names[rows])
        result.append({"seen": name, "from": low, "to": high, **found})
    return result


def _plain(prompt: Hashable) -> Hashable:
    return " ".join(prompt.split()).rstrip(".").casefold() if isinstance(prompt, str) else prompt


def rough_if_few(n: int, what: str) -> list[str]:
    return [f"{n} {what}: fewer than {FEW}, the share is rough"] if n < FEW else []


@measure(
    "nearest", "Nearer to training than to held-out", suite="quick", better="near 0.5", unit="share",
    each_extractor=True, reads=("train", VALIDATION),
    tested={DISTANCE: "Distance to the nearest training image", NEARER: "Share nearer to training"},
    noticed={"nearer": Noticed("nearer to train", 3, 1, ALL_COPIES)},
)  # fmt: skip
def measure_nearest(inputs: EvaluationInputs, extractor: Extractor) -> Result:
    """Share of generated images nearer to training images than to as many unseen ones."""
    train, groups = inputs.training(), inputs.bootstrap_groups
    queries, seen, unseen = (inputs.of(name, extractor) for name in ("synthetic", "train", "real"))
    found = nearer_to_train(queries, seen, unseen, groups, bootstrap=inputs.bootstrap)
    patients = train.patients, inputs.real.patients
    counts = prompt_counts(inputs.synthetic.table["text"].tolist(), train.table["text"].tolist())
    distances = {
        "generated to training": found.per_image[DISTANCE],
        "generated to held-out real": nearest(queries, unseen)[1][:, 0],
        "held-out real to training": nearest(unseen, seen)[1][:, 0],
    }
    details = {
        **found.details,
        "membership": membership_test(queries, seen, unseen, *patients, bootstrap=inputs.bootstrap),
        "by_frequency": by_frequency(found.per_image[NEARER], counts, groups, bootstrap=inputs.bootstrap),
        "histogram": histogram(distances),
    }
    more: dict[str, Any] = {}
    if inputs.validation is not None:
        mine = inputs.of(VALIDATION, extractor)
        control = nearer_to_train(mine, seen, unseen, inputs.validation.patients, bootstrap=inputs.bootstrap)
        more["ceiling"] = bound(control.entry, "validation images")
    return found.plus(details=details, **more)


def histogram(values: Mapping[str, Floats], bins: int = 30) -> dict[str, Any]:
    """Common edges (bins + 1,) from the least to the greatest, and for each set the per cent of it in each bin."""
    every = np.concatenate(list(values.values()))
    edges = np.linspace(every.min(), every.max() if every.max() > every.min() else every.min() + 1, bins + 1)
    shares = {name: 100 * np.histogram(found, edges)[0] / len(found) for name, found in values.items()}
    return {"edges": edges, "shares": shares, "unit": "Euclidean distance of features"}
