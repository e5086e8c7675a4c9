"""What every reporter takes and gives: an image with its context in, findings with their places and a text out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from roentgen.reports.boxes import Box

Image = NDArray[np.uint8]
"""Grey uint8 [H, W] as ``roentgen.images.read_image`` gives it; the patient's left is on the image's right."""
SECTIONS = ("indication", "technique", "comparison")


@dataclass(frozen=True, kw_only=True)
class Context:
    """What may be known beside the frontal image; each is optional, and ``Info.reads`` says what a reporter reads.

    indication, technique, comparison: sections of the request. prior_image, prior_report: of an earlier study.
    lateral_image: of the same study.
    """

    indication: str = ""
    technique: str = ""
    comparison: str = ""
    prior_image: Image | None = None
    prior_report: str = ""
    lateral_image: Image | None = None

    def given(self) -> tuple[str, ...]:
        """Names of what is there."""
        names = [field.name for field in dataclasses.fields(self)]
        return tuple(name for name in names if getattr(self, name) is not None and len(getattr(self, name)))


NOTHING_KNOWN = Context()


@dataclass(frozen=True)
class Finding:
    """One sentence of a report and what it says.

    text: the sentence. label: a name of ``roentgen.prompts.FINDINGS``, None where it names none of them.
    probability: in [0, 1], None where the reporter gives none. boxes: where it is, in fractions of the whole image
    (see ``roentgen.reports.boxes``), none where the reporter does not say. side: left, right or bilateral, the
    patient's. severity: a word such as "small". present: False in a sentence that denies the finding.
    """

    text: str
    label: str | None = None
    probability: float | None = None
    boxes: tuple[Box, ...] = ()
    side: str | None = None
    severity: str | None = None
    present: bool = True


@dataclass(frozen=True)
class Report:
    """Findings in the order of the text, the text itself, and what the reader must be told first.

    warnings: such as "this does not look like a frontal chest radiograph"; a report with ``refused`` has no findings.
    unread: parts of the context that were given and that this reporter does not read.
    """

    findings: tuple[Finding, ...]
    text: str
    warnings: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    refused: bool = False

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON values; the boxes are lists."""
        found = dataclasses.asdict(self)
        for finding in found["findings"]:
            finding["boxes"] = [[round(value, 4) for value in box] for box in finding["boxes"]]
            if finding["probability"] is not None:
                finding["probability"] = round(finding["probability"], 4)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in found.items()}


@dataclass(frozen=True)
class Info:
    """What a reporter is: ``name`` and ``hash`` of its weights, ``kind``, ``licence``, the findings that it can name,
    those that it can place, and which fields of ``Context`` it reads."""

    name: str
    hash: str
    kind: str
    licence: str = ""
    findings: tuple[str, ...] = ()
    placed: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()


class Reporter(Protocol):
    """Reads images; make one with ``roentgen.reports.load_reporter``."""

    @property
    def info(self) -> Info: ...

    def report(self, image: Image, context: Context = NOTHING_KNOWN) -> Report:
        """The report of a grey image uint8 [H, W] of any size."""
        ...

    def report_many(self, images: Sequence[Image], contexts: Sequence[Context] = ()) -> list[Report]:
        """Reports of several images, the same as one by one but for rounding; contexts: none, or one an image."""
        ...


def contexts_of(images: Sequence[Image], contexts: Sequence[Context]) -> list[Context]:
    """One context an image; ValueError where there are some, and not as many as images."""
    if contexts and len(contexts) != len(images):
        raise ValueError(f"{len(contexts)} contexts for {len(images)} images")
    return list(contexts) or [NOTHING_KNOWN] * len(images)


def unread(context: Context, info: Info) -> tuple[str, ...]:
    """What was given and will not be read."""
    return tuple(name for name in context.given() if name not in info.reads)
