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
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roentgen.metrics.bootstrap import RESAMPLES, cluster_weights, percentile_interval
from roentgen.metrics.diversity.ms_ssim import pair_ms_ssim, within_group_ms_ssim

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


def standardised(features: NDArray[np.floating], reference: NDArray[np.floating]) -> Floats:
    """``features`` (N, D) less mean and over standard deviation of ``reference`` (M, D), which is real images.

    Dimensions that do not vary among the reference are left out: no scale makes them comparable.
    """
    x, r = np.asarray(features, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if x.ndim != 2 or r.ndim != 2 or x.shape[1] != r.shape[1] or len(r) < 2:
        raise ValueError(f"expected (N, D) and at least two rows (M, D), got {x.shape} and {r.shape}")
    if not (np.isfinite(x).all() and np.isfinite(r).all()):
        raise ValueError("features hold NaN or infinity")
    scale = r.std(axis=0)
    varies = scale > 1e-12 * np.maximum(np.abs(r).max(axis=0), 1e-300)
    if not varies.any():
        raise ValueError("no dimension varies among the reference images")
    return np.asarray((x[:, varies] - r[:, varies].mean(axis=0)) / scale[varies])


def pair_distances(features: Floats, pairs: Ints) -> dict[str, Floats]:
    """``cosine`` 1 - cos in [0, 2], and ``l2`` root mean squared difference over dimensions, (P,) of ``pairs`` (P, 2).

    Of standardised features, unrelated real images are at about 1 by cosine and 1.4 by ``l2``.
    """
    a, b = features[pairs[:, 0]], features[pairs[:, 1]]
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosine = np.divide((a * b).sum(axis=1), lengths, out=np.zeros(len(pairs)), where=lengths > 0)
    return {"cosine": 1 - cosine, "l2": np.sqrt(((a - b) ** 2).mean(axis=1))}


def ms_ssim_diversity(
    images: NDArray[np.uint8],
    keys: Sequence[Hashable],
    *,
    real: tuple[NDArray[np.uint8], Sequence[Hashable], Sequence[object]] | None = None,
    size: int = PER_PROMPT,
    groups: int | None = None,
    pairs: int = PAIRS,
    resamples: int = RESAMPLES,
    seed: int = 0,
    batch_size: int = 32,
) -> dict[str, Any]:
    """MS-SSIM within a prompt (the value) and across prompts, beside real images.

    Args:
        images: uint8 (N, H, W) of at least 176 pixels.
        keys: (N,) prompt of each image.
        real: images (of the same size), what stands for their prompt (labels and view), patients.
        size: images a prompt.
        groups: prompts at most; None: all that have ``size`` images.
        pairs: pairs across prompts.
        resamples: of the bootstrap over prompts.
        seed: of every choice.
        batch_size: pairs at a time.

    Returns:
        The metric's dictionary; ``details`` has ``within`` (with the standard deviation over prompts) and ``across``,
        and for real images ``real_within`` and ``real_across``.
    """
    if real is not None and real[0].shape[1:] != images.shape[1:]:
        raise ValueError(f"real images must have the size of the others: {real[0].shape[1:]} and {images.shape[1:]}")
    details: dict[str, Any] = {"edges": "valid, as pytorch-msssim and the paper have it (torchmetrics mirrors)"}
    warnings: list[str] = []
    sets = {"": (images, keys, None)} | ({} if real is None else {"real_": real})
    for prefix, (pixels, names, apart) in sets.items():
        chosen = groups_of(names, size=size, apart=apart, most=groups, seed=seed)
        if not len(chosen):
            raise ValueError(f"no prompt has {size} {prefix.rstrip('_') or 'generated'} images")
        if len(chosen) < FEW:
            warnings.append(f"{prefix}within: {len(chosen)} prompts: use at least {FEW}")
        values = within_group_ms_ssim(pixels[chosen], batch_size=batch_size)
        owner = [names[group[0]] for group in chosen]
        details[f"{prefix}within"] = _over_groups(values, owner, resamples, seed)
        apart_pairs = pairs_across(names, pairs=pairs, seed=seed)
        likeness = pair_ms_ssim(pixels, apart_pairs, batch_size=batch_size)
        details[f"{prefix}across"] = _over_pairs(likeness, apart_pairs, names, resamples, seed)
    return _result(details, warnings, resamples)


def feature_diversity(
    features: NDArray[np.floating],
    keys: Sequence[Hashable],
    reference: NDArray[np.floating],
    *,
    real: tuple[NDArray[np.floating], Sequence[Hashable], Sequence[object]] | None = None,
    size: int = PER_PROMPT,
    groups: int | None = None,
    pairs: int = PAIRS,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Distance in feature space within a prompt (cosine, the value) and across prompts, beside real images.

    ``features`` (N, D) and those of ``real`` are standardised by ``reference`` (M, D), features of real images. The
    other arguments and the result are those of ``ms_ssim_diversity``, with ``cosine`` and ``l2`` in every entry.
    """
    details, warnings = {}, []
    sets = {"": (features, keys, None)} | ({} if real is None else {"real_": real})
    for prefix, (vectors, names, apart) in sets.items():
        x = standardised(vectors, reference)
        chosen = groups_of(names, size=size, apart=apart, most=groups, seed=seed)
        if not len(chosen):
            raise ValueError(f"no prompt has {size} {prefix.rstrip('_') or 'generated'} images")
        if len(chosen) < FEW:
            warnings.append(f"{prefix}within: {len(chosen)} prompts: use at least {FEW}")
        inside = np.array([pair for group in chosen for pair in combinations(group, 2)])
        owner = [names[group[0]] for group in chosen]
        apart_pairs = pairs_across(names, pairs=pairs, seed=seed)
        within = {
            kind: _over_groups(values.reshape(len(chosen), -1).mean(axis=1), owner, resamples, seed)
            for kind, values in pair_distances(x, inside).items()
        }
        across = {
            kind: _over_pairs(values, apart_pairs, names, resamples, seed)
            for kind, values in pair_distances(x, apart_pairs).items()
        }
        for place, entry in (("within", within), ("across", across)):
            details[prefix + place] = {**entry["cosine"], "l2": entry["l2"]}
    return _result(details, warnings, resamples)


def _over_groups(values: Floats, owner: Sequence[Hashable], resamples: int, seed: int) -> dict[str, Any]:
    weights = cluster_weights(owner, resamples, seed)
    draws = weights @ values / weights.sum(axis=1)
    return {
        "value": float(values.mean()),
        "ci": percentile_interval(draws),
        "sd": float(values.std(ddof=1)) if len(values) > 1 else float("nan"),
        "n": len(values),
    }


def _over_pairs(values: Floats, pairs: Ints, keys: Sequence[Hashable], resamples: int, seed: int) -> dict[str, Any]:
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


def _result(details: dict[str, Any], warnings: list[str], resamples: int) -> dict[str, Any]:
    return {
        "value": details["within"]["value"],
        "ci": details["within"]["ci"],
        "ci_method": f"95 % percentile, bootstrap over prompts, {resamples} resamples",
        "n": details["within"]["n"],
        "warnings": warnings,
        "details": details,
    }
