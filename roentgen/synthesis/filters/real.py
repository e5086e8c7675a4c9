"""Does the image look like a chest radiograph?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roentgen.prompts import Labels
from roentgen.synthesis.filters.appearance import MEASURES
from roentgen.synthesis.filters.inputs import FilterInputs, Floats


@dataclass(frozen=True)
class Real:
    """Does the image look like a chest radiograph? The score is the largest of the distances over their thresholds."""

    rule: Mapping[str, Any]

    def scores(self, inputs: FilterInputs, labels: Sequence[Labels]) -> Floats:
        return np.max([inputs.measures[name] / self.rule["most"][name] for name in MEASURES], axis=0)

    def keeps(self, scores: Floats) -> NDArray[np.bool_]:
        return scores <= 1

    def describe(self) -> dict[str, Any]:
        share = self.rule["quantile"]
        return {
            "measure": "largest of four distances from real images, each over its threshold",
            "most": 1.0,
            "thresholds": ", ".join(f"{name} {value:.3f}" for name, value in self.rule["most"].items()),
            "threshold_from": f"at least {share:.1%} of real images that were not used for the fit pass all four",
        }


def real_rule(measures: Mapping[str, Floats], share: float) -> dict[str, Any]:
    """What ``Real`` compares with: each measure (N,) its own quantile, so that by Bonferroni ``share`` pass."""
    quantile = 1 - (1 - share) / len(MEASURES)
    return {"quantile": share, "most": {name: float(np.quantile(measures[name], quantile)) for name in MEASURES}}
