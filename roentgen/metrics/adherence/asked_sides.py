"""Sides that prompts ask for: one finding on the left and on the right, by the classifier and by brightness."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from roentgen.data.manifest import SIDE_SUFFIX
from roentgen.metrics.adherence.laterality import LEFT, RIGHT, SideAccuracy, brightness_asymmetry, side_accuracy
from roentgen.metrics.adherence.probes import SIDED, Probe, probes_of
from roentgen.metrics.extractor import Extractor
from roentgen.metrics.image_set import ImageSet
from roentgen.metrics.measure import EvaluationInputs, Result, Unavailable, measure
from roentgen.metrics.reading import PIXELS, pixels
from roentgen.metrics.statistics import Floats
from roentgen.prompts import NO_FINDING

NORMAL = 500
"""Real images without a finding at most, whose median asymmetry is the threshold of brightness."""
CLASSIFIER, BRIGHTNESS = "the classifier", "brightness"


@measure(
    "sides_asked", "On the side that is asked for,", suite="quick", better="higher", unit="share", output="sides",
    reads=("probes",),
)  # fmt: skip
def measure_asked_sides(inputs: EvaluationInputs, extractor: Extractor) -> Result:
    """Left and right told apart, one finding a prompt: nothing but the side's word differs, and the seeds are equal.

    Brightness looks at the patient's left less right of mean grey (``laterality.REGIONS``) against the median of real
    images without a finding, as the heart makes one side brighter in everybody.
    """
    if inputs.probes is None:
        raise Unavailable("no probes were made (--generate MODEL with --probes N)")
    rows, unjudged = [], []
    for probe in SIDED:
        sets = {side: probes_of(inputs, probe, side) for side in ("left", "right")}
        asked = [side for side, images in sets.items() for _ in range(len(images))]
        seeds = [seed for images in sets.values() for seed in images.table["seed"]]
        known = np.isin(inputs.real.table.get(probe.finding + SIDE_SUFFIX, ""), ("left", "right"))
        real_rows = np.flatnonzero(np.broadcast_to(known, len(inputs.real)))
        real = inputs.real.take(real_rows)
        if probe.finding in extractor.findings:
            leftness = _leftness(inputs, extractor, probe)
            row = _row(CLASSIFIER, probe, side_accuracy(leftness, asked, groups=seeds))
            if len(real):
                theirs = _difference(inputs, extractor, "real", probe.finding)[real_rows]
                row["ceiling"] = _real(side_accuracy(theirs, _sides(real, probe), groups=real.patients))
            rows.append(row)
        else:
            unjudged.append(f"the classifier knows no {probe.finding}: judged by brightness alone")
        threshold = _usual(inputs, probe.finding)
        made = np.concatenate([_asymmetry(images, probe.finding) for images in sets.values()])
        row = _row(BRIGHTNESS, probe, side_accuracy(made, asked, threshold=threshold, groups=seeds))
        row["threshold"] = threshold
        if len(real):
            theirs = _asymmetry(real, probe.finding)
            found = side_accuracy(theirs, _sides(real, probe), threshold=threshold, groups=real.patients)
            row["ceiling"] = _real(found)
        rows.append(row)
    words = "95 % Wilson at the effective number of independent seeds or patients"
    return Result.of_rows(rows, words, notes=unjudged)


def _row(judge: str, probe: Probe, found: SideAccuracy) -> dict[str, Any]:
    return {
        "name": f"{probe.finding.lower()} by {judge}",
        "group": " / ".join(probe.prompts.values()),
        **{"value": found.accuracy, "ci": found.ci, "n": found.n},
        **{"left": found.left, "right": found.right, "auroc": found.auroc},
        "floor": {"value": 0.5, "what": "by chance"},
    }


def _real(found: SideAccuracy) -> dict[str, Any]:
    words = f"real images of known side, n = {found.n}"
    return {"value": found.accuracy, "ci": found.ci, "n": found.n, "what": words}


def _sides(real: ImageSet, probe: Probe) -> list[str]:
    return [str(side) for side in real.table[probe.finding + SIDE_SUFFIX]]


def _difference(inputs: EvaluationInputs, extractor: Extractor, name: str, finding: str) -> Floats:
    """The classifier's left less right (N,) for ``finding`` on the set ``name``."""
    both = inputs.of(name, extractor, "sides").astype(np.float64)[:, extractor.findings.index(finding)]
    return np.asarray(both[:, LEFT] - both[:, RIGHT])


def _leftness(inputs: EvaluationInputs, extractor: Extractor, probe: Probe) -> Floats:
    assert inputs.probes is not None
    whole = _difference(inputs, extractor, "probes", probe.finding)
    texts = inputs.probes.table["text"].to_numpy()
    return np.concatenate([whole[texts == prompt] for prompt in probe.prompts.values()])


def _asymmetry(images: ImageSet, finding: str) -> Floats:
    return brightness_asymmetry(pixels(images, range(len(images)), PIXELS), finding)


def _usual(inputs: EvaluationInputs, finding: str) -> float:
    """Median asymmetry of real images without a finding; 0 where none is known to have none."""
    normal: NDArray[np.int64] = np.flatnonzero(inputs.real.labels([NO_FINDING])[:, 0] == 1)
    rows = np.random.default_rng(inputs.seed).permutation(normal)[:NORMAL]
    return float(np.median(_asymmetry(inputs.real.take(rows), finding))) if len(rows) else 0.0
