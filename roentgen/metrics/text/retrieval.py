"""Retrieval: of the k images or texts nearest to an image, how many belong to it? Precision at 5, 10 and 50.

What belongs to what is said by a matrix of relevance: the same set of findings (``same_findings``), or one finding in
common (``share_finding``). Precision depends on how common the findings are and on the size of the gallery, so it is
never given without its chance level (the share of relevant items), a floor from shuffled labels, and the best that any
ranking could reach.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from roentgen.metrics.measure import EvaluationInputs, Result, Unavailable, labels_of, measure
from roentgen.metrics.statistics import RESAMPLES, cluster_weights, percentile_interval
from roentgen.metrics.text.vectors import by_dual_encoder, vectors

if TYPE_CHECKING:
    from roentgen.metrics.extractors import Extractor

Floats = NDArray[np.float64]
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
    x = np.asarray(vectors, dtype=np.float64)
    if x.ndim != 2 or not len(x):
        raise ValueError(f"expected vectors (N, D), got {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError("vectors hold NaN or infinity")
    length = np.linalg.norm(x, axis=1, keepdims=True)
    if (length == 0).any():
        raise ValueError("a vector of zeros has no direction")
    return x / length


def same_findings(queries: Floats, gallery: Floats) -> Bools:
    """(Q, G): whether query and gallery item have the same set of findings, of labels (Q, F), (G, F); NaN is absent.

    Items without any finding, "No Finding" counting as one, say nothing and are relevant to none.
    """
    q, g = _present(queries, gallery)
    both = q.astype(np.float64) @ g.T.astype(np.float64)
    counts = q.sum(axis=1)[:, None]
    return np.asarray((both == counts) & (both == g.sum(axis=1)[None]) & (counts > 0))


def share_finding(queries: Floats, gallery: Floats) -> Bools:
    """(Q, G): whether query and gallery item have at least one finding in common; NaN is absent."""
    q, g = _present(queries, gallery)
    return np.asarray(q.astype(np.float64) @ g.T.astype(np.float64) > 0)


def _present(queries: Floats, gallery: Floats) -> tuple[Bools, Bools]:
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1]:
        raise ValueError(f"labels must be (Q, F) and (G, F), got {queries.shape} and {gallery.shape}")
    return np.asarray(queries == 1), np.asarray(gallery == 1)


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
    columns = []
    for k in ks:
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        if k > order.shape[1]:
            columns.append(np.full(len(order), np.nan))
        else:
            columns.append(np.where(there[:, k - 1] == k, hits[:, k - 1] / k, np.nan))
    return np.stack(columns, axis=1)


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
    ks: Sequence[int] = KS,
    resamples: int = RESAMPLES,
    shuffles: int = FLOOR_SHUFFLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Precision at ``ks`` of ``gallery`` (G, D) ranked by cosine for ``queries`` (Q, D).

    Args:
        queries: vectors of images; of any length.
        gallery: vectors of images, or of texts from the same dual encoder.
        relevant: (Q, G), see ``same_findings``.
        groups: (Q,) patient of each query, for the intervals.
        gallery_groups: (G,) patients; a query then never finds an item of its own patient. None: all are found.
        ks: depths.
        resamples: of the bootstrap.
        shuffles: permutations of the gallery's labels for the floor.
        seed: of bootstrap and floor.

    Returns:
        The metric's dictionary; ``value`` is the precision at the first of ``ks`` that could be computed. ``details``:
        ``at`` (one entry a k with ``value``, ``ci``, ``chance``, ``floor``, ``floor_range``, ``best``), queries without
        any relevant item (left out), gallery size.
    """
    if relevant.shape != (len(queries), len(gallery)) or len(groups) != len(queries):
        raise ValueError(
            f"{len(queries)} queries, {len(gallery)} items, relevance {relevant.shape}, {len(groups)} groups"
        )
    exclude = None
    if gallery_groups is not None:
        exclude = _names(groups)[:, None] == _names(gallery_groups)[None]
    possible = relevant if exclude is None else relevant & ~exclude
    kept = np.flatnonzero(possible.any(axis=1)).tolist()
    warnings: list[str] = []
    if len(kept) < len(queries):
        warnings.append(f"{len(queries) - len(kept)} of {len(queries)} queries have no relevant item: left out")
    details: dict[str, Any] = {"at": [], "gallery": len(gallery), "left_out": len(queries) - len(kept)}
    result: dict[str, Any] = {
        "value": float("nan"),
        "ci": (float("nan"), float("nan")),
        "ci_method": f"95 % percentile, bootstrap by patient of the query, {resamples} resamples",
        "n": len(kept),
        "warnings": warnings,
        "details": details,
    }
    if not len(kept):
        return result
    if len(kept) < FEW:
        warnings.append(f"n = {len(kept)} queries: intervals are wide; use at least {FEW}")
    out = None if exclude is None else exclude[kept]
    order = ranking(unit_rows(queries)[kept] @ unit_rows(gallery).T, max(ks), exclude=out)
    marks = possible[kept]
    precision = precision_at(order, marks, ks)
    rng = np.random.default_rng(seed)
    floors = np.full((shuffles, len(ks)), np.nan)
    for number in range(shuffles):
        moved = relevant[kept][:, rng.permutation(len(gallery))]
        floors[number] = _means(precision_at(order, moved, ks))
    weights = cluster_weights([groups[i] for i in kept], resamples, seed)
    left = np.full(len(kept), len(gallery)) if out is None else (~out).sum(axis=1)
    number_relevant = marks.sum(axis=1)
    for column, k in enumerate(ks):
        values = precision[:, column]
        known = np.isfinite(values)
        if not known.any():
            warnings.append(f"precision at {k}: the gallery holds fewer than {k} items")
            continue
        used = weights[:, known]
        total = used.sum(axis=1)
        draws = np.divide(used @ values[known], total, out=np.full(len(used), np.nan), where=total > 0)
        entry = {
            "k": int(k),
            "value": float(values[known].mean()),
            "ci": percentile_interval(draws),
            "n": int(known.sum()),
            "chance": float((number_relevant[known] / left[known]).mean()),
            "floor": float(floors[:, column].mean()) if shuffles else float("nan"),
            "floor_range": percentile_interval(floors[:, column]),
            "best": float(np.minimum(number_relevant[known] / k, 1).mean()),
        }
        details["at"].append(entry)
    if details["at"]:
        result |= {key: details["at"][0][key] for key in ("value", "ci")}
    return result


def _means(columns: Floats) -> Floats:
    known = np.isfinite(columns)
    total = np.where(known, columns, 0.0).sum(axis=0)
    counts = known.sum(axis=0)
    return np.asarray(np.divide(total, counts, out=np.full(columns.shape[1], np.nan), where=counts > 0))


def _names(groups: Sequence[object]) -> NDArray[np.str_]:
    return np.array([str(group) for group in groups])


def by_finding(
    queries: NDArray[np.floating],
    gallery: NDArray[np.floating],
    query_labels: Floats,
    gallery_labels: Floats,
    findings: Sequence[str],
    groups: Sequence[object],
    **options: Any,
) -> list[dict[str, Any]]:
    """``retrieval`` for the queries that have each finding, relevant being the items that have it too.

    Labels are (Q, F) and (G, F) in {0, 1, NaN}; findings that no query or no item has are left out. ``options`` are
    those of ``retrieval``.
    """
    q, g = _present(query_labels, gallery_labels)
    entries = []
    for column, finding in enumerate(findings):
        rows = np.flatnonzero(q[:, column]).tolist()
        if len(rows) and g[:, column].any():
            relevant = np.broadcast_to(g[:, column], (len(rows), len(g)))
            found = retrieval(queries[rows], gallery, relevant, [groups[i] for i in rows], **options)
            entries.append({"finding": finding, **found})
    return entries


@measure(
    "retrieval", "Image retrieval, precision", suite="standard", better="higher", unit="share", each_extractor=True
)
def measure_retrieval(inputs: EvaluationInputs, extractor: Extractor) -> Result:
    """Precision at 5, 10 and 50 of real images found for a generated one: same findings as it was asked for."""
    mine, theirs = labels_of(inputs)
    found = retrieval(
        inputs.of("synthetic", extractor),
        inputs.of("real", extractor),
        same_findings(mine, theirs),
        inputs.bootstrap_groups,
        resamples=inputs.resamples,
        seed=inputs.seed,
    )
    real = retrieval(
        inputs.of("real", extractor),
        inputs.of("real", extractor),
        same_findings(theirs, theirs),
        inputs.real.patients,
        gallery_groups=inputs.real.patients,
        resamples=inputs.resamples,
        seed=inputs.seed,
    )
    return retrieval_result(found, real, "real images, other patients found")


def retrieval_result(found: dict[str, Any], real: dict[str, Any], what: str) -> Result:
    """Rows by depth, each with the floor of shuffled labels and what real images reach."""
    if not found["details"]["at"]:
        raise Unavailable("no generated image has a real one of the same findings, or the real images are too few")
    reached = {entry["k"]: entry for entry in real["details"]["at"]}
    rows = []
    for entry in found["details"].pop("at"):
        row = {"name": f"at {entry['k']}", **entry}
        row["floor"] = {"value": entry["floor"], "ci": entry["floor_range"], "what": "labels shuffled"}
        if entry["k"] in reached:
            other = reached[entry["k"]]
            row["ceiling"] = {"value": other["value"], "ci": other["ci"], "n": other["n"], "what": what}
        rows.append(row)
    return Result.of(found, rows=rows, floor=rows[0]["floor"], ceiling=rows[0].get("ceiling"))


@measure(
    "text_retrieval",
    "Text retrieval, precision",
    suite="standard",
    better="higher",
    unit="share",
    output="",
    judge=by_dual_encoder,
)
def measure_text_retrieval(inputs: EvaluationInputs, extractor: Extractor) -> Result:
    """Precision at 5, 10 and 50 of real texts found for a generated image."""
    labels_of(inputs)
    images, _, rows = vectors(inputs, inputs.synthetic, "--synthetic")
    real_images, real_texts, real_rows = vectors(inputs, inputs.real, "--real")
    mine, theirs = labels_of(inputs)
    groups, patients = inputs.bootstrap_groups, inputs.real.patients
    own = [patients[row] for row in real_rows]
    found = retrieval(
        images,
        real_texts,
        same_findings(mine[rows], theirs[real_rows]),
        [groups[row] for row in rows],
        resamples=inputs.resamples,
        seed=inputs.seed,
    )
    real = retrieval(
        real_images,
        real_texts,
        same_findings(theirs[real_rows], theirs[real_rows]),
        own,
        gallery_groups=own,
        resamples=inputs.resamples,
        seed=inputs.seed,
    )
    return retrieval_result(found, real, "real images, texts of other patients found")
