"""Distance among images of one prompt in a feature space, standardised by real images: what LPIPS stands for."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from roentgen.metrics.diversity.grouping import (
    METHOD,
    OF_REAL,
    Figures,
    Ints,
    across_groups,
    few_prompts,
    groups_of,
    kind_keys,
    no_group,
    within_groups,
)
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


def feature_figures(features: NDArray[np.floating], reference: NDArray[np.floating]) -> Figures:
    """Distances of pairs of rows of ``features``, standardised by ``reference``."""
    x = standardised(features, reference)
    return lambda pairs: pair_distances(x, pairs)


@measure("feature_within", "Feature distance within a prompt", suite="standard", better="as real", each_extractor=True)
def measure_feature_within(inputs: EvaluationInputs, extractor: Extractor) -> Result:
    """Distance in feature space among the images of a prompt, standardised by real images: what LPIPS stands for."""
    reference, ceiling = inputs.of("real", extractor), None
    details: dict[str, Any] = {}
    for prefix, images, keys, apart in (
        ("", inputs.synthetic, prompt_keys(inputs.synthetic), None),
        ("real_", inputs.real, kind_keys(inputs.real), inputs.real.patients),
    ):
        groups = groups_of(keys, apart=apart, seed=inputs.seed)
        if not len(groups) and not prefix:
            raise no_group()
        if len(groups):
            figures = feature_figures(inputs.of(images.name, extractor), reference)
            details[f"{prefix}within"] = within_groups(figures, groups, keys, **inputs.bootstrap)
            details[f"{prefix}across"] = across_groups(figures, keys, **inputs.bootstrap)
    notes = few_prompts(within=details["within"], real_within=details.get("real_within"))
    if "real_within" in details:
        ceiling = {**details.pop("real_within"), "what": OF_REAL}
    return Result(
        **{key: details["within"][key] for key in ("value", "ci", "n")},
        ci_method=METHOD.format(inputs.resamples),
        ceiling=ceiling,
        notes=notes,
        details=details,
    )
