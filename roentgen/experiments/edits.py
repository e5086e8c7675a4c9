"""Edits of real images and what a classifier says of them: see eval/edit.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from roentgen.generators.edit import Region, region_of
from roentgen.metrics.neighbours import nearest, standardise, thumbnails
from roentgen.metrics.statistics import Bootstrap, estimate
from roentgen.models.classifier import Classifier
from roentgen.prompts.vocabulary import NORMAL_NOUNS

HEART = (0.2, 0.35, 0.9, 0.9)
SIZE = 256
OTHERS_OUT = ("No Finding",)


@dataclass(frozen=True)
class Task:
    """What is asked: text (``{side}`` alternates), what is to go, where, and the finding that the judge looks at.

    ``opposite``: what an added finding may be steered away from.
    """

    title: str
    finding: str
    text: str
    remove: str = ""
    region: Region | Literal["side"] = None
    opposite: str = ""

    @property
    def sign(self) -> int:
        return -1 if self.remove else 1


TASKS = (
    Task("effusion added", "Effusion", "{side} pleural effusion", region="side", opposite="no pleural effusion"),
    Task("cardiomegaly added", "Cardiomegaly", "cardiomegaly", region=HEART, opposite="normal heart size"),
    Task("consolidation added", "Consolidation", "{side} consolidation", region="side", opposite="clear lungs"),
    Task("effusion removed", "Effusion", NORMAL_NOUNS[0], "pleural effusion"),
    Task("cardiomegaly removed", "Cardiomegaly", NORMAL_NOUNS[0], "cardiomegaly", HEART),
)


@dataclass(frozen=True)
class Case:
    """The real images of a task, uint8 (H, W) each, with text and region of each."""

    task: Task
    rows: pd.DataFrame
    before: list[np.ndarray]
    texts: list[str]
    sides: list[str]

    def region(self, number: int, whole: bool) -> NDArray[np.bool_]:
        asked = self.sides[number] if self.task.region == "side" else self.task.region
        return region_of(self.before[number].shape, None if whole else asked)


class Judged:
    """What the classifier and two spaces of neighbours say, against the real images ``names``, (M, SIZE, SIZE)."""

    def __init__(self, judge: Classifier, pool: NDArray[np.uint8], names: list[str], seed: int) -> None:
        self.judge, self.names, self.seed = judge, names, seed
        deep = judge.features(pool)
        self.centre = deep.mean(0), deep.std(0) + 1e-6
        self.features = self._standard(deep)
        self.small = standardise(thumbnails(pool))
        self.before = judge.predict(pool)
        self.sides = judge.predict_sides(pool)

    def _standard(self, deep: NDArray[np.float32]) -> NDArray[np.float32]:
        mean, spread = self.centre
        return np.asarray((deep - mean) / spread, dtype=np.float32)

    def row(self, case: Case, after: NDArray[np.uint8]) -> dict[str, Any]:
        """Every figure of one task in one way, with intervals by bootstrap over patients."""
        source = np.array([self.names.index(name) for name in case.rows["image"]])
        weights = Bootstrap(seed=self.seed).weights(case.rows["patient_id"].tolist())
        target = self.judge.findings.index(case.task.finding)
        left_out = [self.judge.findings.index(name) for name in OTHERS_OUT if name in self.judge.findings]
        change = self.judge.predict(after) - self.before[source]
        others = np.delete(np.abs(change), [target, *left_out], axis=1).mean(1)

        def share(hits: NDArray[np.bool_]) -> dict[str, Any]:
            return estimate(hits.astype(float), weights)

        row: dict[str, Any] = {
            "n": len(after),
            "before": float(self.before[source, target].mean()),
            "after": float(self.judge.predict(after)[:, target].mean()),
            "gain": estimate(case.task.sign * change[:, target].astype(float), weights),
            "moved": share(case.task.sign * change[:, target] > 0),
            "others": estimate(others.astype(float), weights),
            "same_by_features": share(
                nearest(self._standard(self.judge.features(after)), self.features)[0][:, 0] == source
            ),
            "same_by_pixels": share(nearest(standardise(thumbnails(after)), self.small)[0][:, 0] == source),
            "side": None,
        }
        if "{side}" in case.task.text:
            asked = np.array([side == "left" for side in case.sides]).astype(int)
            rise = self.judge.predict_sides(after)[:, target] - self.sides[source, target]
            numbers = np.arange(len(after))
            row["side"] = share(rise[numbers, asked] > rise[numbers, 1 - asked])
        return row


def mean_row(rows: Sequence[Mapping[str, Any]], way: str) -> dict[str, Any]:
    """Means over the tasks of one way, without intervals."""
    mine = [row for row in rows if row["way"] == way]

    def mean(key: str) -> float:
        return float(np.mean([row[key]["value"] for row in mine if row[key] is not None]))

    keys = ("gain", "moved", "others", "same_by_features", "same_by_pixels", "side")
    outside = [row["outside"] for row in mine]
    return {
        "way": way,
        "n": sum(row["n"] for row in mine),
        **{key: mean(key) for key in keys},
        "outside": None if None in outside else max(outside),
    }
