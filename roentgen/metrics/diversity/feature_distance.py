"""Distance among images of one prompt in a feature space, standardised by real images: what LPIPS stands for."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from roentgen.metrics.diversity.grouping import Figures, Ints, across_groups, kind_keys, within_prompt
from roentgen.metrics.extractor import Extractor
from roentgen.metrics.image_set import ImageSet
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
    reference = inputs.of("real", extractor)

    @cache
    def figures_of(name: str) -> Figures:
        return feature_figures(inputs.of(name, extractor), reference)

    found = within_prompt(inputs, lambda images: figures_of(images.name))
    keys: dict[str, tuple[ImageSet, Sequence[Hashable]]] = {"": (inputs.synthetic, prompt_keys(inputs.synthetic))}
    if found.ceiling is not None:
        keys["real_"] = inputs.real, kind_keys(inputs.real)
    across = {
        f"{prefix}across": across_groups(figures_of(images.name), of, bootstrap=inputs.bootstrap)
        for prefix, (images, of) in keys.items()
    }
    return found.plus(details={**found.details, **across})
