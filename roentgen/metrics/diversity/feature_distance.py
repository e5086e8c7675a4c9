"""Distance among images of one prompt in a feature space, standardised by real images: what LPIPS stands for."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roentgen.metrics.diversity.grouping import OF_REAL, Figures, Ints, diversity, groups_of, kind_keys, no_group
from roentgen.metrics.extractor import Extractor
from roentgen.metrics.measure import EvaluationInputs, Result, measure
from roentgen.metrics.reading import prompt_keys
from roentgen.metrics.statistics import Floats, feature_rows


def standardised(features: NDArray[np.floating], reference: NDArray[np.floating]) -> Floats:
    """``features`` (N, D) less mean and over standard deviation of ``reference`` (M, D), which is real images.

    Dimensions that do not vary among the reference are left out: no scale makes them comparable.
    """
    x, r = feature_rows(features), feature_rows(reference, least=2)
    if x.shape[1] != r.shape[1]:
        raise ValueError(f"feature dimensions differ: {x.shape[1]} and {r.shape[1]}")
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
    **options: Any,
) -> dict[str, Any]:
    """Distance in feature space within a prompt (cosine, the value) and across prompts, beside real images.

    ``features`` (N, D) and those of ``real`` are standardised by ``reference`` (M, D), features of real images.
    ``options`` and the result are those of ``diversity``, with ``l2`` beside the cosine in every entry.
    """

    def figures(vectors: NDArray[np.floating]) -> Figures:
        x = standardised(vectors, reference)
        return lambda pairs: pair_distances(x, pairs)

    sets: dict[str, Any] = {"": (figures(features), keys, None)}
    if real is not None:
        sets["real_"] = (figures(real[0]), *real[1:])
    return diversity(sets, **options)


@measure("feature_within", "Feature distance within a prompt", suite="standard", better="as real", each_extractor=True)
def measure_feature_within(inputs: EvaluationInputs, extractor: Extractor) -> Result:
    """Distance in feature space among the images of a prompt, standardised by real images: what LPIPS stands for."""
    keys, kinds = prompt_keys(inputs.synthetic), kind_keys(inputs.real)
    if not len(groups_of(keys, seed=inputs.seed)):
        raise no_group()
    real, patients = inputs.of("real", extractor), inputs.real.patients
    enough = len(groups_of(kinds, apart=patients, seed=inputs.seed)) > 0
    beside = (real, kinds, patients) if enough else None
    found = feature_diversity(inputs.of("synthetic", extractor), keys, real, real=beside, **inputs.bootstrap)
    if not enough:
        return Result.of(found)
    return Result.of(found, ceiling={**found["details"].pop("real_within"), "what": OF_REAL})
