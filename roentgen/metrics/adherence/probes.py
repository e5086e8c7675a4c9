"""Probes: pairs of prompts that differ in one word, so that what the word does can be seen, with the same seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roentgen.metrics.measure import EvaluationInputs, Unavailable

LITTLE, MUCH = "little", "much"


@dataclass(frozen=True)
class Probe:
    """``prompts``: answer (left and right, or little and much of ``finding``) -> prompt."""

    finding: str
    prompts: Mapping[str, str]


def _sides(finding: str, words: str) -> Probe:
    return Probe(finding, {side: f"{side} {words}" for side in ("left", "right")})


SIDED = (
    _sides("Effusion", "pleural effusion"),
    _sides("Pneumothorax", "pneumothorax"),
    _sides("Lung Opacity", "lung opacity"),
)
SEVERITIES = (
    Probe("Effusion", {LITTLE: "small pleural effusion", MUCH: "large pleural effusion"}),
    Probe("Cardiomegaly", {LITTLE: "mild cardiomegaly", MUCH: "severe cardiomegaly"}),
)


def probe_rows(count: int, seed: int) -> list[dict[str, Any]]:
    """``count`` rows of each prompt, as text, seed and cluster: every prompt gets the same seeds."""
    return [
        {"text": text, "seed": seed + number, "patient_id": f"seed {seed + number}"}
        for probe in (*SIDED, *SEVERITIES)
        for text in probe.prompts.values()
        for number in range(count)
    ]


def probes_of(inputs: EvaluationInputs, probe: Probe, answer: str) -> NDArray[np.int64]:
    """Rows (n,) of the probes that are images of one of this probe's prompts, in the order of their seeds.

    Raises:
        Unavailable: no probes were made, or none of this prompt is left.
    """
    rows = np.flatnonzero(inputs.made_probes().table["text"] == probe.prompts[answer])
    if not len(rows):
        raise Unavailable(f"no image of the prompt {probe.prompts[answer]!r} is left")
    return rows
