"""Sides that prompts ask for: one finding on the left and on the right, by the classifier and by brightness."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from roentgen.metrics.adherence.laterality import SIDES, brightness_asymmetry, leftness_of, side_accuracy
from roentgen.metrics.adherence.probes import SIDED, probes_of
from roentgen.metrics.extractor import Extractor
from roentgen.metrics.image_set import ImageSet
from roentgen.metrics.measure import CHANCE, EvaluationInputs, Result, bound, measure
from roentgen.metrics.reading import PIXELS, pixels, sides_of
from roentgen.metrics.statistics import Floats
from roentgen.prompts import NO_FINDING

NORMAL = 500
"""Real images without a finding at most, whose median asymmetry is the threshold of brightness."""
BRIGHTNESS = "brightness"


@measure(
    "sides_asked", "On the side that is asked for,", suite="quick", better="higher", unit="share", output="sides",
    reads=("probes",),
)  # fmt: skip
def measure_asked_sides(inputs: EvaluationInputs, extractor: Extractor) -> Result:
    """Left and right told apart, one finding a prompt: nothing but the side's word differs, and the seeds are equal.

    Brightness looks at the patient's left less right of mean grey (``laterality.REGIONS``) against the median of real
    images without a finding, as the heart makes one side brighter in everybody.
    """
    probes, rows, unjudged = inputs.made_probes(), [], []
    for probe in SIDED:
        found = {side: probes_of(inputs, probe, side) for side in SIDES}
        asked = [side for side, of_side in found.items() for _ in of_side]
        made = np.concatenate(list(found.values()))
        seeds = probes.table["seed"].iloc[made].tolist()
        true = np.array(sides_of(inputs.real.table, [probe.finding])).ravel()
        known = np.flatnonzero(np.isin(true, SIDES))
        patients = inputs.real.take(known).patients
        judges: dict[str, tuple[float, Floats, Floats]] = {}  # threshold, generated and real images
        if probe.finding in extractor.findings:
            column = extractor.findings.index(probe.finding)
            seen = [leftness_of(inputs, extractor, name)[:, column] for name in ("probes", "real")]
            judges["the classifier"] = 0.0, seen[0][made], seen[1][known]
        else:
            unjudged.append(f"the classifier knows no {probe.finding}: judged by brightness alone")
        bright = [_asymmetry(of, chosen, probe.finding) for of, chosen in ((probes, made), (inputs.real, known))]
        judges[BRIGHTNESS] = _usual(inputs, probe.finding), bright[0], bright[1]
        for judge, (threshold, mine, theirs) in judges.items():
            row = {
                "name": f"{probe.finding.lower()} by {judge}",
                "group": " / ".join(probe.prompts.values()),
                **side_accuracy(mine, asked, threshold=threshold, groups=seeds),
                "floor": CHANCE,
            }
            if judge == BRIGHTNESS:
                row["threshold"] = threshold
            if len(known):
                real = side_accuracy(theirs, true[known].tolist(), threshold=threshold, groups=patients)
                row["ceiling"] = bound(real, f"real images of known side, n = {len(known)}")
            rows.append(row)
    return Result.of_rows(rows, "95 % Wilson at the effective number of independent seeds or patients", notes=unjudged)


def _asymmetry(images: ImageSet, rows: NDArray[np.int64], finding: str) -> Floats:
    return brightness_asymmetry(pixels(images, rows, PIXELS), finding) if len(rows) else np.empty(0)


def _usual(inputs: EvaluationInputs, finding: str) -> float:
    """Median asymmetry of real images without a finding; 0 where none is known to have none."""
    normal: NDArray[np.int64] = np.flatnonzero(inputs.real.labels([NO_FINDING])[:, 0] == 1)
    rows = np.random.default_rng(inputs.seed).permutation(normal)[:NORMAL]
    return float(np.median(_asymmetry(inputs.real, rows, finding))) if len(rows) else 0.0
