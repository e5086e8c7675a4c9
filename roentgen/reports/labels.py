"""The ``labels`` reporter: a classifier with sides and places, thresholds that were calibrated on real images, and
sentences composed from what it finds. Its prose is plain; what it says, it can be held to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from roentgen.errors import UserError
from roentgen.files import explained, file_hash
from roentgen.models.own import CONFIG, WEIGHTS
from roentgen.models.trial import blamed
from roentgen.prompts import FINDINGS
from roentgen.reports import screen, sentences
from roentgen.reports.base import NOTHING_KNOWN, Context, Finding, Image, Info, Report, contexts_of, unread
from roentgen.reports.finding_net import FindingNet, Predictions, load_net, predict, squash
from roentgen.reports.grounding import boxes_of, on_side

SCREEN = "screen.npz"
NOT_FRONTAL = (
    "this does not look like an upright frontal chest radiograph (turned, inverted, cut, a lateral view, another body "
    "part, or no radiograph): nothing is reported"
)


@dataclass(frozen=True)
class Rules:
    """How predictions become findings; ``config.json`` holds it, and calibration on validation images makes it.

    calibration: slope and offset a finding, by which logits become probabilities (Platt 1999). thresholds: of these
    probabilities. prevalence: share of the validation images with the finding; below it, absence is sure enough to be
    said. side_margins: difference of the sides' logits below which a finding is bilateral, by finding, "" for all
    others. severities: bounds a finding
    between its words. places: see ``grounding.boxes_of``.
    """

    findings: tuple[str, ...]
    calibration: Mapping[str, Sequence[float]]
    thresholds: Mapping[str, float]
    prevalence: Mapping[str, float]
    side_margins: Mapping[str, float]
    severities: Mapping[str, Sequence[float]]
    places: Mapping[str, Any]
    abnormal: Mapping[str, float] = field(default_factory=dict)


def rules_of(info: Mapping[str, Any]) -> Rules:
    """The rules in a ``config.json``."""
    return Rules(
        findings=tuple(info["findings"]),
        calibration=info["calibration"],
        thresholds=info["thresholds"],
        prevalence=info["prevalence"],
        side_margins=info["side_margins"],
        severities=info.get("severities", {}),
        places=info.get("places", {}),
        abnormal=info.get("abnormal", {}),
    )


def logit(p: Any) -> Any:
    """Log odds of probabilities, finite."""
    p = np.clip(np.asarray(p, dtype=np.float64), 1e-6, 1 - 1e-6)
    return np.log(p / (1 - p))


def calibrated(rules: Rules, raw: np.ndarray) -> np.ndarray:
    """Probabilities (N, F) as validation images say that they should be."""
    slope, offset = (np.array([rules.calibration[name][i] for name in rules.findings]) for i in (0, 1))
    return np.asarray(1 / (1 + np.exp(-(slope * logit(raw) + offset))))


def abnormal(rules: Rules, probabilities: np.ndarray) -> np.ndarray:
    """Probability (N,) that an image shows any finding, from those of the findings (N, F); 1 where none was fitted."""
    if not rules.abnormal:
        return np.ones(len(probabilities))
    weights = np.array([rules.abnormal[name] for name in rules.findings])
    return np.asarray(1 / (1 + np.exp(-(logit(probabilities) @ weights + rules.abnormal[""]))))


def found_in(rules: Rules, seen: Predictions, row: int) -> tuple[list[Finding], list[str]]:
    """What is found in image ``row``, without sentences, and which labels are sure to be absent."""
    probabilities = calibrated(rules, seen.image[row : row + 1])[0]
    # Fourteen thresholds, each passed by chance now and then, would call most normal images abnormal: where the image
    # as a whole is more likely normal than not, only what is itself more likely there than not is said.
    least = 0.5 if abnormal(rules, probabilities[None])[0] < 0.5 else 0.0
    found, absent = [], []
    for column, name in enumerate(rules.findings):
        probability = float(probabilities[column])
        if probability < max(least, rules.thresholds[name]):
            if probability < rules.prevalence[name]:
                absent.append(name)
            continue
        side = side_said(rules, name, seen.sides[row, column])
        boxes = boxes_of(name, seen.maps[row, column], seen.edges[row], rules.places)
        found.append(
            Finding(
                text="",
                label=name,
                probability=probability,
                boxes=on_side(boxes, side),
                side=side,
                severity=severity_said(rules, name, float(seen.severity[row, column])),
            )
        )
    return found, absent


def side_said(rules: Rules, name: str, sides: np.ndarray) -> str | None:
    """The patient's side from the probabilities (2,) of right and left; None for a finding without sides."""
    if not FINDINGS[name].can_have_side:
        return None
    difference = float(logit(sides[1]) - logit(sides[0]))
    if abs(difference) < rules.side_margins.get(name, rules.side_margins[""]):
        return "bilateral"
    return "left" if difference > 0 else "right"


def severity_said(rules: Rules, name: str, value: float) -> str | None:
    """The word between whose bounds ``value`` lies; None where severities were not learned."""
    bounds = rules.severities.get(name)
    if not bounds:
        return None
    return FINDINGS[name].qualifiers[int(np.searchsorted(bounds, value, side="right"))]


class LabelsReporter:
    """Reads frontal images by a ``FindingNet``; see ``roentgen.reports.base.Reporter``.

    Args:
        net: the network.
        info: what ``config.json`` says.
        strange: what ``screen.refused`` reads; None leaves all images to be read.
        about: of the reporter.
        device: where it runs.
        folder: where it comes from.
    """

    def __init__(
        self,
        net: FindingNet,
        info: Mapping[str, Any],
        *,
        strange: Mapping[str, Any] | None,
        about: Info,
        device: str,
        folder: Path,
    ) -> None:
        self.folder = folder
        self.net = net.to(device)
        self.rules = rules_of(info)
        self.size = int(info["size"])
        self.strange = strange
        self.device = device
        self._about = about

    @property
    def info(self) -> Info:
        """See ``Reporter``."""
        return self._about

    def predict(self, images: Sequence[Image]) -> Predictions:
        """What the network says of grey images uint8 [H, W] of any sizes; UserError where that is no number."""
        seen = predict(self.net, np.stack([squash(image, self.size) for image in images]), device=self.device)
        if not all(np.isfinite(values).all() for values in vars(seen).values()):
            raise UserError(f"{self.folder / WEIGHTS}: damaged, the network gives no numbers; fetch them again")
        return seen

    def report(self, image: Image, context: Context = NOTHING_KNOWN) -> Report:
        """See ``Reporter``."""
        return self.report_many([image], [context])[0]

    def report_many(self, images: Sequence[Image], contexts: Sequence[Context] = ()) -> list[Report]:
        """See ``Reporter``."""
        return self.read(images, contexts)[0] if len(images) else []

    def read(self, images: Sequence[Image], contexts: Sequence[Context] = ()) -> tuple[list[Report], Predictions]:
        """The reports of at least one image, and what the network said of each."""
        with blamed(self.folder, self.trial):
            return self._read(images, contexts)

    def trial(self) -> None:
        """A report of an even image, and one that finds everything: fails where the folder's settings do not work."""
        seen = self.predict([np.zeros((64, 64), np.uint8)])
        everything = replace(self.rules, thresholds=dict.fromkeys(self.rules.findings, 0.0), abnormal={})
        for rules in (self.rules, everything):
            sentences.compose_report(*found_in(rules, seen, 0))

    def _read(self, images: Sequence[Image], contexts: Sequence[Context]) -> tuple[list[Report], Predictions]:
        seen = self.predict(images)
        strange = np.zeros(len(images), bool) if self.strange is None else screen.refused(seen.deep, self.strange)
        reports = []
        for row, (image, context) in enumerate(zip(images, contexts_of(images, contexts), strict=True)):
            wrong = screen.blank(image) or (NOT_FRONTAL if strange[row] else None)
            if wrong:
                reports.append(Report((), "", (wrong,), unread(context, self.info), refused=True))
                continue
            found, absent = found_in(self.rules, seen, row)
            said = sentences.compose_report(found, absent)
            reports.append(Report(tuple(said), sentences.text_of(said), (), unread(context, self.info)))
        return reports, seen


def load_labels(folder: Path, *, device: str = "cpu", name: str = "", flag: str = "--model") -> LabelsReporter:
    """The reporter in a folder that ``roentgen train report --arch labels`` wrote; UserError where it is none."""
    net, info = load_net(folder, flag=flag)
    strange = None
    if (folder / SCREEN).is_file():
        with (
            explained(f"{folder / SCREEN}: cannot be read", "fetch the reporter again"),
            np.load(folder / SCREEN, allow_pickle=False) as arrays,
        ):
            strange = {key: arrays[key] for key in arrays.files}
    with explained(f"{flag} {folder}: {CONFIG} is not that of a labels reporter", "fetch it again"):
        about = Info(
            name=name or folder.name,
            hash=file_hash(folder / WEIGHTS),
            kind="labels",
            licence=str(info.get("licence", "")),
            findings=tuple(info["findings"]),
            placed=tuple(info.get("places", {})),
            reads=(),
        )
        reporter = LabelsReporter(net, info, strange=strange, about=about, device=device, folder=folder)
    return reporter
