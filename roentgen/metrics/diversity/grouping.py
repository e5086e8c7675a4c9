"""Diversity: how unlike are the images of one prompt, and those of different prompts, beside real images?

Two views of it. MS-SSIM on pixels (4 images a prompt, 6 pairs, as the papers in this field have it): high means alike.
Distances in a classifier's feature space: low means alike. They stand where others report LPIPS (Zhang et al. 2018),
and are not LPIPS: no layer-wise network calibrated to human judgement, but cosine and Euclidean distance of one feature
vector an image, each dimension standardised by real images. Neither means anything without the same figure of real
images: those of one label set and view stand for "one prompt", and they are of different people.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roentgen.metrics.image_set import ImageSet
from roentgen.metrics.measure import EvaluationInputs, Result, Unavailable
from roentgen.metrics.pairing import kind_of
from roentgen.metrics.reading import prompt_keys
from roentgen.metrics.statistics import USUAL, Bootstrap, Floats, estimate
from roentgen.prompts import labels_from_row

Ints = NDArray[np.int64]
Entry = dict[str, Any]
Figures = Callable[[Ints], dict[str, Floats]]
"""Pairs (P, 2) of rows -> figures (P,) of them by name; the first is the value."""
METHOD = "95 % percentile, bootstrap over prompts, {} resamples"
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


def within_groups(figures: Figures, groups: Ints, keys: Sequence[Hashable], *, bootstrap: Bootstrap = USUAL) -> Entry:
    """Mean over all pairs of each of ``groups`` (G, K), then over the groups, by bootstrap over their keys."""
    inside = np.array([pair for group in groups for pair in combinations(group, 2)])
    weights = bootstrap.weights([keys[group[0]] for group in groups])
    return _entry({kind: v.reshape(len(groups), -1).mean(axis=1) for kind, v in figures(inside).items()}, weights)


def across_groups(
    figures: Figures, keys: Sequence[Hashable], pairs: int = PAIRS, *, bootstrap: Bootstrap = USUAL
) -> Entry:
    """Mean over pairs of different keys; in the bootstrap over keys a pair counts as often as both were drawn."""
    chosen = pairs_across(keys, pairs=pairs, seed=bootstrap.seed)
    weights = bootstrap.weights(keys)
    return _entry(figures(chosen), weights[:, chosen[:, 0]] * weights[:, chosen[:, 1]])


def _entry(figures: dict[str, Floats], weights: Floats) -> Entry:
    """``estimate`` of each figure with its standard deviation; the others by name within the first."""
    first, *others = (
        estimate(values, weights) | {"sd": float(values.std(ddof=1)) if len(values) > 1 else float("nan")}
        for values in figures.values()
    )
    return {**first, **dict(zip(list(figures)[1:], others, strict=True))}


def within_prompt(
    inputs: EvaluationInputs, figures_of: Callable[[ImageSet], Figures], *, most: int | None = None
) -> Result:
    """Figures within a prompt, in ``details["within"]`` whole, beside real images of other people with one set of
    findings and view; ``most``: prompts at most."""
    found: dict[str, Entry] = {}
    sets: dict[str, tuple[ImageSet, Sequence[Hashable], list[str] | None]] = {
        "": (inputs.synthetic, prompt_keys(inputs.synthetic), None),
        "real_": (inputs.real, kind_keys(inputs.real), inputs.real.patients),
    }
    for prefix, (images, keys, apart) in sets.items():
        groups = groups_of(keys, apart=apart, most=most, seed=inputs.seed)
        if most is not None:  # of the images that were drawn, groups are drawn anew
            rows = groups.ravel()
            others = apart and [apart[int(row)] for row in rows]
            groups = rows[groups_of([keys[int(row)] for row in rows], apart=others, seed=inputs.seed)]
        if len(groups):
            found[f"{prefix}within"] = within_groups(figures_of(images), groups, keys, bootstrap=inputs.bootstrap)
        elif not prefix:
            raise Unavailable(f"no prompt has {PER_PROMPT} images; generate them with --num-images 4")
    made, real = found["within"], found.get("real_within")
    return Result(
        **{key: made[key] for key in ("value", "ci", "n")},
        ci_method=METHOD.format(inputs.resamples),
        ceiling=None if real is None else {**real, "what": "real images of the same findings and view"},
        notes=few_prompts(found),
        details={"within": made},
    )


def kind_keys(images: ImageSet) -> list[Hashable]:
    """Findings and view of each real image, which stand for its prompt; None where nothing is known."""
    labels = [labels_from_row(row) for row in images.table.to_dict("records")]
    return [kind_of(one) if one.findings else None for one in labels]


def few_prompts(found: Mapping[str, Entry]) -> list[str]:
    few = {what: entry["n"] for what, entry in found.items() if entry["n"] < FEW}
    return [f"{what}: {n} prompts: use at least {FEW}" for what, n in few.items()]
