"""Diversity: how unlike are the images of one prompt, and those of different prompts, beside real images?

Two views of it. MS-SSIM on pixels (4 images a prompt, 6 pairs, as the papers in this field have it): high means alike.
Distances in a classifier's feature space: low means alike. They stand where others report LPIPS (Zhang et al. 2018),
and are not LPIPS: no layer-wise network calibrated to human judgement, but cosine and Euclidean distance of one feature
vector an image, each dimension standardised by real images. Neither means anything without the same figure of real
images: those of one label set and view stand for "one prompt", and they are of different people.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from roentgen.metrics import pairing
from roentgen.metrics.statistics import cluster_weights, percentile_interval
from roentgen.prompts import labels_from_row

if TYPE_CHECKING:
    from roentgen.metrics.image_set import ImageSet

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
PER_PROMPT = 4
PAIRS = 1000
FEW = 20
"""Fewer prompts than this get a warning."""


def groups_of(
    keys: Sequence[Hashable],
    *,
    size: int = PER_PROMPT,
    apart: Sequence[object] | None = None,
    most: int | None = None,
    seed: int = 0,
) -> Ints:
    """Numbers (G, ``size``) of items with one key each, such as the prompt, or labels and view of a real image.

    Args:
        keys: (N,) what the items of a group have in common; None belongs to no group.
        size: items of a group.
        apart: (N,) such as the patient; no two items of a group share it.
        most: groups at most, one a key before there are two. None: as many as there are.
        seed: of the choice.
    """
    rng = np.random.default_rng(seed)
    members: dict[Hashable, list[int]] = defaultdict(list)
    for number in rng.permutation(len(keys)):
        if keys[number] is not None:
            members[keys[number]].append(int(number))
    rounds: dict[int, list[list[int]]] = defaultdict(list)
    for numbers in members.values():
        left, turn = numbers, 0
        while True:
            group: list[int] = []
            seen: set[str] = set()
            for number in left:
                name = str(number if apart is None else apart[number])
                if name not in seen and len(group) < size:
                    group.append(number)
                    seen.add(name)
            if len(group) < size:
                break
            rounds[turn].append(group)
            taken = set(group)
            left, turn = [number for number in left if number not in taken], turn + 1
    chosen = [group for turn in sorted(rounds) for group in rounds[turn]]
    return np.array(chosen[:most], dtype=np.int64).reshape(-1, size)


def pairs_across(keys: Sequence[Hashable], *, pairs: int = PAIRS, seed: int = 0) -> Ints:
    """Random pairs (P, 2) of items with different ``keys`` (N,), none twice; fewer if there are not more."""
    index = {key: place for place, key in enumerate(dict.fromkeys(keys))}
    code = np.array([index[key] for key in keys])
    n = len(code)
    rng = np.random.default_rng(seed)
    if n * (n - 1) // 2 <= 4 * pairs:  # few: list them all
        every = np.array([(i, j) for i, j in combinations(range(n), 2) if code[i] != code[j]], dtype=np.int64)
        return every.reshape(-1, 2)[np.sort(rng.permutation(len(every))[:pairs])]
    found: dict[tuple[int, int], None] = {}
    for _ in range(100):
        for i, j in rng.integers(n, size=(pairs, 2)).tolist():
            if code[i] != code[j] and len(found) < pairs:
                found[min(i, j), max(i, j)] = None
    return np.array(list(found), dtype=np.int64).reshape(-1, 2)


def over_groups(values: Floats, owner: Sequence[Hashable], resamples: int, seed: int) -> dict[str, Any]:
    weights = cluster_weights(owner, resamples, seed)
    draws = weights @ values / weights.sum(axis=1)
    return {
        "value": float(values.mean()),
        "ci": percentile_interval(draws),
        "sd": float(values.std(ddof=1)) if len(values) > 1 else float("nan"),
        "n": len(values),
    }


def over_pairs(values: Floats, pairs: Ints, keys: Sequence[Hashable], resamples: int, seed: int) -> dict[str, Any]:
    """Mean over pairs; in the bootstrap over keys a pair counts as often as both of its keys were drawn together."""
    if not len(values):
        return {"value": float("nan"), "ci": (float("nan"), float("nan")), "sd": float("nan"), "n": 0}
    weights = cluster_weights(keys, resamples, seed)
    both = weights[:, pairs[:, 0]] * weights[:, pairs[:, 1]]
    total = both.sum(axis=1)
    draws = np.divide(both @ values, total, out=np.full(resamples, np.nan), where=total > 0)
    return {
        "value": float(values.mean()),
        "ci": percentile_interval(draws),
        "sd": float(values.std(ddof=1)) if len(values) > 1 else float("nan"),
        "n": len(values),
    }


def diversity_result(details: dict[str, Any], warnings: list[str], resamples: int) -> dict[str, Any]:
    return {
        "value": details["within"]["value"],
        "ci": details["within"]["ci"],
        "ci_method": f"95 % percentile, bootstrap over prompts, {resamples} resamples",
        "n": details["within"]["n"],
        "warnings": warnings,
        "details": details,
    }


def kind_keys(images: ImageSet) -> list[Hashable | None]:
    """Findings and view of each real image, which stand for its prompt; None where nothing is known."""
    labels = [labels_from_row(row) for row in images.table.to_dict("records")]
    return [pairing.kind_of(one) if one.findings else None for one in labels]
