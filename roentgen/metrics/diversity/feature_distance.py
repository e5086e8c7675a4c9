"""Distance among images of one prompt in a feature space, standardised by real images: what LPIPS stands for."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from roentgen.metrics.diversity.grouping import (
    FEW,
    PAIRS,
    PER_PROMPT,
    diversity_result,
    groups_of,
    kind_keys,
    over_groups,
    over_pairs,
    pairs_across,
)
from roentgen.metrics.measure import EvaluationInputs, Floats, Result, Unavailable, measure, prompt_keys
from roentgen.metrics.statistics import RESAMPLES

if TYPE_CHECKING:
    from roentgen.metrics.extractors import Extractor
    from roentgen.metrics.neighbours import Ints


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
            kind: over_groups(values.reshape(len(chosen), -1).mean(axis=1), owner, resamples, seed)
            for kind, values in pair_distances(x, inside).items()
        }
        across = {
            kind: over_pairs(values, apart_pairs, names, resamples, seed)
            for kind, values in pair_distances(x, apart_pairs).items()
        }
        for place, entry in (("within", within), ("across", across)):
            details[prefix + place] = {**entry["cosine"], "l2": entry["l2"]}
    return diversity_result(details, warnings, resamples)


@measure("feature_within", "Feature distance within a prompt", suite="standard", better="as real", each_extractor=True)
def measure_feature_within(inputs: EvaluationInputs, extractor: Extractor) -> Result:
    """Distance in feature space among the images of a prompt, standardised by real images: what LPIPS stands for."""
    keys, kinds = prompt_keys(inputs.synthetic), kind_keys(inputs.real)
    if not len(groups_of(keys, seed=inputs.seed)):
        raise Unavailable(f"no prompt has {PER_PROMPT} images; generate them with --num-images 4")
    real = inputs.of("real", extractor)
    enough = len(groups_of(kinds, apart=inputs.real.patients, seed=inputs.seed)) > 0
    found = feature_diversity(
        inputs.of("synthetic", extractor),
        keys,
        real,
        real=(real, kinds, inputs.real.patients) if enough else None,
        resamples=inputs.resamples,
        seed=inputs.seed,
    )
    more: dict[str, Any] = {}
    if enough:
        more["ceiling"] = {**found["details"].pop("real_within"), "what": "real images of the same findings and view"}
    return Result.of(found, **more)
