"""Retrieval: of the k images or texts nearest to an image, how many belong to it? Precision at 5, 10 and 50.

What belongs to what is said by a matrix of relevance: the same set of findings (``same_findings``). Precision depends
on how common the findings are and on the size of the gallery, so it is never given without its chance level (the share
of relevant items), a floor from shuffled labels, and the best that any ranking could reach.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roentgen.metrics.extractor import Extractor
from roentgen.metrics.measure import NOTHING, EvaluationInputs, Result, Unavailable, bound, measure
from roentgen.metrics.reading import labels_of
from roentgen.metrics.statistics import (
    USUAL,
    Bootstrap,
    Floats,
    estimate,
    feature_rows,
    known_mean,
    percentile_interval,
)
from roentgen.metrics.text.vectors import by_dual_encoder, vectors

Bools = NDArray[np.bool_]
KS = (5, 10, 50)
FLOOR_SHUFFLES = 20
FEW = 100
"""Fewer queries than this get a warning."""


def unit_rows(vectors: NDArray[np.floating]) -> Floats:
    """Rows of ``vectors`` (N, D) scaled to length 1, in float64.

    Raises:
        ValueError: no matrix, NaN or infinity, or a row of zeros.
    """
    x = feature_rows(vectors)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    if (length == 0).any():
        raise ValueError("a vector of zeros has no direction")
    return x / length


def same_findings(queries: Floats, gallery: Floats) -> Bools:
    """(Q, G): whether query and gallery item have the same set of findings, of labels (Q, F), (G, F); NaN is absent.

    Items without any finding, "No Finding" counting as one, say nothing and are relevant to none.
    """
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1]:
        raise ValueError(f"labels must be (Q, F) and (G, F), got {queries.shape} and {gallery.shape}")
    q, g = (np.asarray(labels == 1, dtype=np.float64) for labels in (queries, gallery))
    both, counts = q @ g.T, q.sum(axis=1)[:, None]
    return np.asarray((both == counts) & (both == g.sum(axis=1)[None]) & (counts > 0))


def ranking(similarity: Floats, depth: int, *, exclude: Bools | None = None) -> NDArray[np.int64]:
    """Gallery numbers (Q, depth) by falling ``similarity`` (Q, G), ties by number; -1 where nothing is left.

    ``exclude`` (Q, G): items that a query must not find, such as images of its own patient.
    """
    scores = np.array(similarity, dtype=np.float64)
    if scores.ndim != 2 or not np.isfinite(scores).all():
        raise ValueError(f"similarity must be finite (Q, G), got {scores.shape}")
    if exclude is not None:
        scores[exclude] = -np.inf
    depth = min(depth, scores.shape[1])
    order = np.argsort(-scores, axis=1, kind="stable")[:, :depth]
    left = np.isfinite(np.take_along_axis(scores, order, axis=1))
    return np.where(left, order, -1)


def precision_at(order: NDArray[np.int64], relevant: Bools, ks: Sequence[int] = KS) -> Floats:
    """(Q, len(ks)): share of the first k of ``order`` (Q, depth) that ``relevant`` (Q, G) marks.

    NaN where a query has fewer than k items to find.
    """
    found = np.take_along_axis(relevant, np.clip(order, 0, None), axis=1) & (order >= 0)
    there = np.cumsum(order >= 0, axis=1)
    hits = np.cumsum(found, axis=1)
    result = np.full((len(order), len(ks)), np.nan)
    for column, k in enumerate(ks):
        if 1 <= k <= order.shape[1]:
            result[:, column] = np.where(there[:, k - 1] == k, hits[:, k - 1] / k, np.nan)
    return result


def self_retrieval(vectors: NDArray[np.floating]) -> float:
    """Share of items of (N, D) that are their own nearest by cosine, copies of them counting as themselves.

    1.0 for any sound extractor: a check of the pipeline, not a result.
    """
    x = unit_rows(vectors)
    similarity = x @ x.T
    own = np.diagonal(similarity)
    return float((similarity.max(axis=1) - own <= 1e-9).mean())


def retrieval(
    queries: NDArray[np.floating],
    gallery: NDArray[np.floating],
    relevant: Bools,
    groups: Sequence[object],
    *,
    gallery_groups: Sequence[object] | None = None,
    bootstrap: Bootstrap = USUAL,
) -> Result:
    """Precision at ``KS`` of ``gallery`` (G, D) ranked by cosine for ``queries`` (Q, D).

    Args:
        queries: vectors of images; of any length.
        gallery: vectors of images, or of texts from the same dual encoder.
        relevant: (Q, G), see ``same_findings``.
        groups: (Q,) patient of each query, for the intervals.
        gallery_groups: (G,) patients; a query then never finds an item of its own patient. None: all are found.
        bootstrap: by ``groups``; its seed is the floor's too.

    Returns:
        The precision at the first of ``KS`` that could be computed. ``details``:
        ``at`` (one entry a k with ``value``, ``ci``, ``chance``, ``floor``, ``floor_range``, ``best``), queries without
        any relevant item (left out), gallery size.
    """
    if relevant.shape != (len(queries), len(gallery)) or len(groups) != len(queries):
        raise ValueError(
            f"{len(queries)} queries, {len(gallery)} items, relevance {relevant.shape}, {len(groups)} groups"
        )
    exclude = np.zeros(relevant.shape, dtype=bool)
    if gallery_groups is not None:
        exclude = np.array([str(group) for group in groups])[:, None] == [str(group) for group in gallery_groups]
    possible = relevant & ~exclude
    kept = np.flatnonzero(possible.any(axis=1)).tolist()
    left_out = len(queries) - len(kept)
    notes: list[str] = []
    if left_out:
        notes.append(f"{left_out} of {len(queries)} queries have no relevant item: left out")
    if 0 < len(kept) < FEW:
        notes.append(f"n = {len(kept)} queries: intervals are wide; use at least {FEW}")
    entries: list[dict[str, Any]] = []
    if kept:
        similarity = unit_rows(queries)[kept] @ unit_rows(gallery).T
        order = ranking(similarity, max(KS), exclude=exclude[kept])
        precision = precision_at(order, possible[kept])
        rng = np.random.default_rng(bootstrap.seed)
        floors = np.empty((FLOOR_SHUFFLES, len(KS)))
        for number in range(FLOOR_SHUFFLES):
            moved = relevant[kept][:, rng.permutation(len(gallery))]
            floors[number] = known_mean(precision_at(order, moved))
        weights = bootstrap.weights([groups[i] for i in kept])
        left, right = (~exclude[kept]).sum(axis=1), possible[kept].sum(axis=1)
        for k, values, floor in zip(KS, precision.T, floors.T, strict=True):
            known = np.isfinite(values)
            if not known.any():
                notes.append(f"precision at {k}: the gallery holds fewer than {k} items")
                continue
            entries.append(
                {
                    "k": int(k),
                    **estimate(values, weights),
                    "chance": float((right[known] / left[known]).mean()),
                    "floor": float(floor.mean()),
                    "floor_range": percentile_interval(floor),
                    "best": float(np.minimum(right[known] / k, 1).mean()),
                }
            )
    first: dict[str, Any] = entries[0] if entries else {"value": math.nan, "ci": NOTHING}
    return Result(
        first["value"],
        first["ci"],
        len(kept),
        bootstrap.said("patient of the query"),
        notes=notes,
        details={"at": entries, "gallery": len(gallery), "left_out": left_out},
    )


@measure(
    "retrieval", "Image retrieval, precision", suite="standard", better="higher", unit="share", each_extractor=True
)
def measure_retrieval(inputs: EvaluationInputs, extractor: Extractor) -> Result:
    """Precision at 5, 10 and 50 of real images found for a generated one: same findings as it was asked for."""
    (mine, theirs), patients = labels_of(inputs), inputs.real.patients
    made, real = inputs.of("synthetic", extractor), inputs.of("real", extractor)
    found = retrieval(made, real, same_findings(mine, theirs), inputs.bootstrap_groups, bootstrap=inputs.bootstrap)
    same = same_findings(theirs, theirs)
    ceiling = retrieval(real, real, same, patients, gallery_groups=patients, bootstrap=inputs.bootstrap)
    return with_rows(found, ceiling, "real images, other patients found")


def with_rows(found: Result, real: Result, what: str) -> Result:
    """Rows by depth, each with the floor of shuffled labels and what real images reach."""
    if not found.details["at"]:
        raise Unavailable("no generated image has a real one of the same findings, or the real images are too few")
    reached = {entry["k"]: bound(entry, what) for entry in real.details["at"]}
    rows = []
    for entry in found.details["at"]:
        row = {"name": f"at {entry['k']}", **entry}
        row["floor"] = {"value": entry["floor"], "ci": entry["floor_range"], "what": "labels shuffled"}
        rows.append(row | ({"ceiling": reached[entry["k"]]} if entry["k"] in reached else {}))
    details = {key: value for key, value in found.details.items() if key != "at"}
    return found.plus(rows=rows, floor=rows[0]["floor"], ceiling=rows[0].get("ceiling"), details=details)


@measure(
    "text_retrieval", "Text retrieval, precision", suite="standard", better="higher", unit="share", output="",
    judge=by_dual_encoder,
)  # fmt: skip
def measure_text_retrieval(inputs: EvaluationInputs, extractor: Extractor) -> Result:
    """Precision at 5, 10 and 50 of real texts found for a generated image."""
    mine, theirs = labels_of(inputs)
    images, _, rows = vectors(inputs, inputs.synthetic)
    real_images, texts, real_rows = vectors(inputs, inputs.real)
    of_texts = theirs[real_rows]
    groups, patients = inputs.bootstrap_groups, inputs.real.patients
    groups, own = [groups[row] for row in rows], [patients[row] for row in real_rows]
    found = retrieval(images, texts, same_findings(mine[rows], of_texts), groups, bootstrap=inputs.bootstrap)
    same = same_findings(of_texts, of_texts)
    real = retrieval(real_images, texts, same, own, gallery_groups=own, bootstrap=inputs.bootstrap)
    return with_rows(found, real, "real images, texts of other patients found")
