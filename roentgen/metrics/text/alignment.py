"""Image-text alignment: does an image lie closer to its own text than to others, for a dual encoder?

The mean cosine is what papers report (BioViL-T in CheXGenBench). Its scale is each encoder's own: 0.6 by one and 0.3 by
another may mean the same. So it comes with the cosine of shuffled pairs, with that of real images and their texts, and
with the share of other texts that the own one beats, which does not depend on the scale: 0.5 by chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roentgen.metrics.extractor import Extractor
from roentgen.metrics.measure import EvaluationInputs, Result, measure
from roentgen.metrics.statistics import USUAL, Bootstrap, Drawn, Floats, estimate, resampled_means
from roentgen.metrics.text.retrieval import FEW, unit_rows
from roentgen.metrics.text.vectors import by_dual_encoder, vectors

COSINE = "cosine of image and prompt"
"""Column of single images."""


def own_and_other(
    images: Floats, texts: Floats, *, same: NDArray[np.bool_] | None = None
) -> tuple[Floats, Floats, Floats]:
    """Of N pairs of unit vectors (N, D): own cosine, mean cosine with other texts, share of others beaten; each (N,).

    ``same`` (N, N): texts that describe an image as well as its own and are no others (its diagonal is ignored). Equal
    cosines, as of equal texts, count half. NaN where an image has no other text.
    """
    similarity = images @ texts.T
    own = np.diagonal(similarity).copy()
    other = ~np.eye(len(own), dtype=bool)
    if same is not None:
        other &= ~same
    counts = other.sum(axis=1)
    empty = np.full(len(own), np.nan)
    ahead = (own[:, None] > similarity) + 0.5 * (own[:, None] == similarity)
    mean = np.divide((similarity * other).sum(axis=1), counts, out=empty.copy(), where=counts > 0)
    share = np.divide((ahead * other).sum(axis=1), counts, out=empty, where=counts > 0)
    return own, mean, share


def alignment(
    image_vectors: NDArray[np.floating],
    text_vectors: NDArray[np.floating],
    groups: Sequence[object],
    *,
    same: NDArray[np.bool_] | None = None,
    real: tuple[NDArray[np.floating], NDArray[np.floating], Sequence[object]] | None = None,
    bootstrap: Bootstrap = USUAL,
) -> Result:
    """Mean cosine of images with their own texts, beside other texts and real pairs.

    Args:
        image_vectors: (N, D) of one dual encoder, any length.
        text_vectors: (N, D) of the texts that belong to the images, row by row.
        groups: (N,) patient or prompt, for the intervals.
        same: (N, N) texts that are no others, see ``own_and_other``.
        real: image vectors, text vectors and patients of real pairs: the ceiling.
        bootstrap: by ``groups``.

    Returns:
        The mean cosine; its floor is the mean cosine with other texts. ``details`` holds ``gain`` (value less floor)
        and ``beats`` (share of other texts beaten, chance 0.5), each with its interval; with ``real`` the ceiling, and
        ``gain_over_real`` (difference of the gains, independent bootstraps).
    """
    measured, gain = _measure(image_vectors, text_vectors, groups, same, bootstrap)
    n, ceiling = measured["n"], None
    details = {key: measured[key] for key in ("gain", "beats")}
    details["chance"] = "floor: mean cosine with the other texts of the set; beats: 0.5"
    if real is not None:
        beside, real_gain = _measure(*real, None, bootstrap.apart())
        ceiling = {**beside, "what": "real images and their texts"}
        details["gain_over_real"] = gain.less(real_gain).entry
    return Result(
        **{key: measured[key] for key in ("value", "ci", "n")},
        ci_method=bootstrap.said(),
        floor={**measured["floor"], "what": "other prompts of the set"},
        ceiling=ceiling,
        notes=[f"n = {n}: use at least {FEW} pairs"] if n < FEW else [],
        details=details,
    )


def _measure(
    image_vectors: NDArray[np.floating],
    text_vectors: NDArray[np.floating],
    groups: Sequence[object],
    same: NDArray[np.bool_] | None,
    bootstrap: Bootstrap,
) -> tuple[dict[str, Any], Drawn]:
    images, texts = unit_rows(image_vectors), unit_rows(text_vectors)
    if images.shape != texts.shape or len(groups) != len(images):
        raise ValueError(f"pairs need equal shapes, got {images.shape}, {texts.shape} and {len(groups)} groups")
    own, other, share = own_and_other(images, texts, same=same)
    weights = bootstrap.weights(groups)

    figures = {"floor": other, "gain": own - other, "beats": share}
    result = estimate(own, weights) | {name: estimate(values, weights) for name, values in figures.items()}
    return result, Drawn(result["gain"]["value"], resampled_means(own - other, weights))


@measure(
    "alignment", "Image-text alignment, cosine", suite="standard", better="higher", unit="cosine", output="",
    judge=by_dual_encoder, tested={COSINE: "Cosine of image and prompt"},
)  # fmt: skip
def measure_alignment(inputs: EvaluationInputs, extractor: Extractor) -> Result:
    """Mean cosine of images and prompts, beside other prompts and real pairs."""
    images, texts, rows = vectors(inputs, inputs.synthetic)
    real_images, real_texts, real_rows = vectors(inputs, inputs.real)
    groups, patients = inputs.bootstrap_groups, inputs.real.patients
    said = [str(text) for text in inputs.synthetic.table["text"].iloc[rows]]
    found = alignment(
        images,
        texts,
        [groups[row] for row in rows],
        same=np.array([[a == b for b in said] for a in said]),
        real=(real_images, real_texts, [patients[row] for row in real_rows]),
        bootstrap=inputs.bootstrap,
    )
    cosine = np.full(len(inputs.synthetic), np.nan)
    cosine[rows] = (images * texts).sum(axis=1)
    return found.plus(per_image={COSINE: cosine})
