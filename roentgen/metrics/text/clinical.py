"""Clinical agreement of reports, offline: findings and sides that roentgen's own reader finds in a text, with negation.

Word overlap rewards the normal sentence that most reports hold, and a flipped negation hardly costs it anything. So a
text is judged by what it says: each finding that ``roentgen.prompts.parse`` reads off it, against labels or against
what the same reader finds in a reference. Beside every figure stand reporters that do not look at the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roentgen.metrics.statistics import USUAL, Bootstrap, Drawn, Floats, ratio_estimate
from roentgen.prompts import NO_FINDING, parse
from roentgen.prompts.vocabulary import NARROWER

LEAST = 10
"""Positive and negative images of a finding below which it does not count in a macro mean."""
NORMAL_REPORT = "The lungs are clear. No acute cardiopulmonary abnormality."


def read_labels(texts: Sequence[str], findings: Sequence[str]) -> Floats:
    """What each text says is there, (N, F) in {0, 1}; a narrower diagnosis says the wider one as well."""
    rows = np.zeros((len(texts), len(findings)))
    for row, text in enumerate(texts):
        said = set(parse(text).findings)
        said |= {wide for wide, narrow in NARROWER.items() if said & narrow}
        rows[row] = [name in said for name in findings]
    return rows


def read_sides(texts: Sequence[str], findings: Sequence[str]) -> list[list[str]]:
    """The side that each text gives each finding, (N, F): left, right, bilateral or "" ."""
    return [[parsed.get(name, "") for name in findings] for parsed in (parse(text).sides for text in texts)]


def f1_draws(said: Floats, truth: Floats, weights: Floats) -> tuple[Floats, Floats, Floats]:
    """Hits, false and missed calls (B, F) of ``said`` (N, F) under B sets of ``weights`` (B, N).

    ``truth`` is in {0, 1, NaN}; what is not known counts nowhere.
    """
    known = np.isfinite(truth)
    true = np.nan_to_num(truth)
    hits = weights @ (said * true * known)
    false = weights @ (said * (1 - true) * known)
    missed = weights @ ((1 - said) * true * known)
    return hits, false, missed


def _f1(hits: Floats, false: Floats, missed: Floats) -> Floats:
    below = 2 * hits + false + missed
    return np.asarray(np.divide(2 * hits, below, out=np.zeros_like(below), where=below > 0))


def enough(truth: Floats) -> NDArray[np.bool_]:
    """Which findings (F,) have ``LEAST`` images with and ``LEAST`` without them, by ``truth`` (N, F)."""
    return np.asarray(np.minimum((truth == 1).sum(0), (truth == 0).sum(0)) >= LEAST)


def clinical_scores(
    said: Floats,
    truth: Floats,
    findings: Sequence[str],
    groups: Sequence[object],
    *,
    bootstrap: Bootstrap = USUAL,
) -> dict[str, Any]:
    """F1 micro, macro and by finding, precision and recall, with intervals from a bootstrap by patient.

    Args:
        said: what reports say (N, F) in {0, 1}; see ``read_labels``.
        truth: labels (N, F) in {0, 1, NaN}.
        findings: names (F,).
        groups: patient of each report (N,).
        bootstrap: by patient.

    Returns:
        ``macro`` and ``micro`` ({value, ci, precision, recall}), ``findings`` (rows), and the macro F1 as ``drawn`` for
        differences between reporters.
    """
    if said.shape != truth.shape or said.shape != (len(groups), len(findings)):
        raise ValueError(f"shapes differ: {said.shape}, {truth.shape}, {len(groups)} groups, {len(findings)} findings")
    one, many = np.ones((1, len(said))), bootstrap.weights(groups)
    counts, draws = f1_draws(said, truth, one), f1_draws(said, truth, many)
    value, spread = _f1(*counts)[0], _f1(*draws)
    positives, negatives = (truth == 1).sum(0), (truth == 0).sum(0)
    usable = enough(truth)
    if not usable.any():
        raise ValueError(f"no finding has {LEAST} cases with and without it")
    rows = [
        {
            "finding": name,
            **Drawn(float(value[column]), spread[:, column]).entry,
            "precision": _share(counts[0][0, column], counts[1][0, column]),
            "recall": _share(counts[0][0, column], counts[2][0, column]),
            "positives": int(positives[column]),
            "negatives": int(negatives[column]),
            "called": float(said[np.isfinite(truth[:, column]), column].mean()) if positives[column] else float("nan"),
            "in_macro": bool(usable[column]),
        }
        for column, name in enumerate(findings)
    ]
    hits, false, missed = (part[:, usable].sum(1) for part in counts)
    micro = _f1(*(part[:, usable].sum(1) for part in draws))
    macro = Drawn(float(value[usable].mean()), spread[:, usable].mean(1))
    return {
        "macro": macro.entry,
        "micro": {
            **Drawn(float(_f1(hits, false, missed)[0]), micro).entry,
            "precision": _share(hits[0], false[0]),
            "recall": _share(hits[0], missed[0]),
        },
        "findings": rows,
        "drawn": macro,
    }


def _share(hits: float, others: float) -> float:
    return float(hits / (hits + others)) if hits + others else 0.0


def side_scores(
    said: Sequence[Sequence[str]], true: Sequence[Sequence[str]], groups: Sequence[object]
) -> dict[str, Any]:
    """Share of findings with a known side that the text names on just that side; what it does not name is wrong.

    ``named``: the same among those that the text gives a side at all.
    """
    right, asked, named = (np.zeros(len(true)) for _ in range(3))
    for row, (mine, theirs) in enumerate(zip(said, true, strict=True)):
        for one, other in zip(mine, theirs, strict=True):
            if other:
                asked[row] += 1
                named[row] += bool(one)
                right[row] += one == other
    return {
        **ratio_estimate(right, asked, USUAL.weights(groups)),
        "n": int(asked.sum()),
        "of_named": float(right.sum() / named.sum()) if named.sum() else float("nan"),
    }


def normal_and_abnormal(texts: Sequence[str], normal: Sequence[bool | None]) -> dict[str, Any]:
    """How often normal images are called normal, and abnormal ones abnormal; ``normal`` is None where not known."""
    called = [NO_FINDING in (found := parse(text).findings) or not found for text in texts]
    pairs = [(mine, bool(true)) for mine, true in zip(called, normal, strict=True) if true is not None]
    calm = [mine for mine, true in pairs if true]
    ill = [not mine for mine, true in pairs if not true]
    return {
        "normal_called_normal": float(np.mean(calm)) if calm else float("nan"),
        "abnormal_called_abnormal": float(np.mean(ill)) if ill else float("nan"),
        "normal": len(calm),
        "abnormal": len(ill),
    }


def distinct_share(texts: Sequence[str]) -> float:
    """Share of different texts: a reporter that says one sentence for all images has 1 / N."""
    return len(set(texts)) / len(texts)
