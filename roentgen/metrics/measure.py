"""What every measure reads and gives: the inputs of an evaluation, the result, and the registry of measures.

A measure is one function that takes ``EvaluationInputs`` and an extractor, gives a ``Result``, and is decorated with
``@measure``; ``roentgen.metrics.measures`` lists the modules that hold them. The suite, the report, the comparison and
the table of what each notices read what the decorator says.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from roentgen.images import read_image, resize_center_crop
from roentgen.metrics.extractors import Extractor
from roentgen.metrics.features import Features
from roentgen.metrics.image_set import ImageSet
from roentgen.metrics.statistics import Floats
from roentgen.prompts import FINDINGS

Entry = Mapping[str, Any]
"""A figure beside another or a row: value, and where known ci, n, name, group and what it is of."""
NOTHING = (float("nan"), float("nan"))
VALIDATION = "validation"
"""Name of the set of real validation images, on which thresholds are fitted."""
PIXELS = 256
"""Shorter side at which images are compared pixel by pixel."""
SUITES = ("quick", "standard", "full")


class Unavailable(Exception):
    """A measure cannot be computed from what was given; ``bad_input`` where the user would expect that it could."""

    def __init__(self, reason: str, *, bad_input: bool = False) -> None:
        super().__init__(reason)
        self.bad_input = bad_input


@dataclass(frozen=True, eq=False)
class EvaluationInputs:
    """Everything that a measure reads; hashed by identity.

    ``partner`` (N,): row of the real image whose prompt or text each synthetic image has, -1 without one. ``notes``:
    how labels of synthetic images came about, where that needs saying. ``reconstructed``: real images after the model's
    autoencoder. ``probes``: images of prompts that differ in one word (``roentgen.metrics.adherence.probes``).
    ``dual_encoder``, ``image_to_text``, ``siamese``: names of the models that measures of text and of
    re-identification use.
    """

    real: ImageSet
    synthetic: ImageSet
    train: ImageSet | None
    validation: ImageSet | None
    partner: NDArray[np.int64]
    notes: tuple[str, ...]
    features: Features
    extractors: tuple[Extractor, ...]
    seed: int
    resamples: int
    device: str
    dual_encoder: str
    image_to_text: str | None
    siamese: str | None
    reconstructed: ImageSet | None = None
    probes: ImageSet | None = None

    def of(self, name: str, extractor: Extractor, output: str = "features") -> NDArray[np.float32]:
        return self.features.of(name, extractor.name, output)

    @property
    def bootstrap_groups(self) -> list[str]:
        """Cluster of each synthetic image: the patient of its real partner, else its prompt, else its own patient."""
        patients, texts, own = self.real.patients, self.synthetic.table["text"].tolist(), self.synthetic.patients
        return [
            patients[row] if row >= 0 else (f"prompt {text}" if text else mine)
            for row, text, mine in zip(self.partner, texts, own, strict=True)
        ]

    @property
    def bootstrap(self) -> dict[str, int]:
        """``resamples`` and ``seed``, as most functions of a metric take them."""
        return {"resamples": self.resamples, "seed": self.seed}

    def training(self) -> ImageSet:
        if self.train is None:
            raise Unavailable("no training images were given (--train)")
        return self.train


def bound(entry: Entry, what: str) -> dict[str, Any]:
    """The value, interval and n of ``entry``, as far as it has them, as a floor or ceiling that says what it is of."""
    return {**{key: entry[key] for key in ("value", "ci", "n") if key in entry}, "what": what}


@dataclass(frozen=True)
class Result:
    """What a measure found.

    value, ci, n: the figure, its 95 % interval (NaN where it has none; ``ci_method`` says how it was made) and of how
    many. floor, ceiling, reconstructed: what chance, real images, and real images after the model's autoencoder give.
    rows: the figures one by one where one line of a report does not do, each with ``name``. notes: what the reader
    must be told. details: everything else that a reader of the JSON may want. per_image: values (N,) of each synthetic
    image, by name.
    """

    value: float
    ci: tuple[float, float]
    n: int
    ci_method: str
    floor: Entry | None = None
    ceiling: Entry | None = None
    reconstructed: Entry | None = None
    rows: Sequence[Entry] = ()
    notes: Sequence[str] = ()
    details: Entry = field(default_factory=dict)
    per_image: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, found: Mapping[str, Any], *, notes: Sequence[str] = (), **more: Any) -> Result:
        """From a dictionary with value, ci, ci_method, n, warnings and details; ``notes`` are added, ``more`` wins."""
        known = {key: found[key] for key in ("value", "ci", "n", "ci_method", "details")} | more
        return cls(**known, notes=tuple(dict.fromkeys([*found["warnings"], *notes])))

    def written(self) -> dict[str, Any]:
        """``details`` of the result file: what stands beside the value first, then the rest."""
        beside = {key: getattr(self, key) for key in ("floor", "ceiling", "reconstructed")}
        kept: dict[str, Any] = {key: entry for key, entry in beside.items() if entry is not None}
        return {**kept, **({"rows": list(self.rows)} if self.rows else {}), **self.details}


@dataclass(frozen=True)
class ByFinding:
    """A measure that is drawn and listed by finding: title, axis, and what chance gives, where that is one line."""

    title: str
    axis: str
    chance: float | None = None


BLUR, NOISE, BRIGHT, JPEG = "blur", "noise", "brightness", "JPEG"
LABELS, FLIP = "shuffled labels", "left-right flip"
COLLAPSE, ONE_KIND = "mode collapse", "collapse within a kind"
COPIES, CROPPED, BLURRED, BRIGHTER = "training copies", "cropped copies", "blurred copies", "brighter copies"
LOOKS = (BLUR, NOISE, BRIGHT, JPEG)
ALL_COPIES = (COPIES, CROPPED, BLURRED, BRIGHTER)
"""Names of the damages by which it is found out what a metric notices."""


@dataclass(frozen=True)
class Noticed:
    """A column of the table of what metrics notice: its title, decimals, 1 where higher is worse (else -1), and the
    damages that it is said to measure."""

    title: str
    digits: int
    worse: int
    claims: tuple[str, ...]


Compute = Callable[[EvaluationInputs, Extractor], Result]


@dataclass(frozen=True)
class Measure:
    """A line of the report.

    ``suite``: the smallest that has it. ``reads``: sets that it reads besides real and synthetic. ``output``: what it
    reads of an extractor; one that reads none has ``judge``, which says what it looks at images with: name with hash,
    and chain. ``tested``: columns of ``Result.per_image`` that a comparison tests in pairs, by the name of the test.
    ``noticed``: columns of the table of what metrics notice, by the stem of their result file.
    """

    name: str
    label: str
    compute: Compute
    suite: str
    better: str
    unit: str = ""
    output: str = "features"
    each_extractor: bool = False
    reads: tuple[str, ...] = ()
    judge: Callable[[EvaluationInputs], tuple[str, str]] | None = None
    by_finding: ByFinding | None = None
    tested: Mapping[str, str] = field(default_factory=dict)
    noticed: Mapping[str, Noticed] = field(default_factory=dict)


REGISTRY: dict[str, Measure] = {}
"""Measures by name, filled as their modules are imported; ``roentgen.metrics.measures.MEASURES`` has all of them."""


def measure(name: str, label: str, **about: Any) -> Callable[[Compute], Compute]:
    """Register the function below as the measure ``name``; ``about`` are the other fields of ``Measure``."""

    def register(compute: Compute) -> Compute:
        if name in REGISTRY and REGISTRY[name].compute.__module__ != compute.__module__:
            raise ValueError(f"two measures have the name {name}")
        REGISTRY[name] = Measure(name, label, compute, **about)
        return compute

    return register


def match_to_real(
    synthetic: pd.DataFrame, real: pd.DataFrame
) -> tuple[pd.DataFrame, NDArray[np.int64], tuple[str, ...]]:
    """Partners of synthetic rows among real ones, by prompt id (the stem of the real image) or by equal text.

    A prompt says what is there and seldom what is not. So a finding that the prompt leaves open and the real image is
    known not to have counts as absent. Where no prompt has a partner, what no prompt mentions counts as absent, and a
    note says so.

    Returns:
        The synthetic table with labels filled in, the partners (N,) with -1 for none, and notes.
    """
    stems = {Path(image).stem: row for row, image in enumerate(real["image"])}
    by_text: dict[str, list[int]] = defaultdict(list)
    for row, text in enumerate(real["text"]):
        by_text[text].append(row)
    used: dict[str, int] = defaultdict(int)
    partner = np.full(len(synthetic), -1, dtype=np.int64)
    for number, (name, text) in enumerate(zip(synthetic["prompt_id"], synthetic["text"], strict=True)):
        found = stems.get(str(name), stems.get(str(name).partition("-")[2])) if name else None
        if found is None and text and text in by_text:
            # Several real images may share a text: their prompts come in the same order.
            found = by_text[text][used[text] % len(by_text[text])]
            used[text] += 1
        if found is not None:
            partner[number] = found
    table = synthetic.copy()
    findings = [name for name in FINDINGS if name in real and name in table]
    matched = partner >= 0
    notes: tuple[str, ...] = ()
    has_labels = bool(findings) and bool(table[findings].notna().any(axis=None))
    for name in findings:
        values = table[name].to_numpy(copy=True)
        absent = real[name].to_numpy()[np.clip(partner, 0, None)] == 0
        values[np.isnan(values) & matched & absent] = 0
        if has_labels and not matched.any():
            values[np.isnan(values)] = 0
        table[name] = values
    if has_labels and not matched.any():
        notes = (
            "no prompt has a real image of the same id or text: findings that a prompt leaves open count as absent",
        )
    elif has_labels and not matched.all():
        notes = (f"{int((~matched).sum())} of {len(matched)} synthetic images have no real image of the same prompt",)
    return table, partner, notes


def pixels(images: ImageSet, rows: Sequence[int] | NDArray[np.integer], size: int = PIXELS) -> NDArray[np.uint8]:
    """Grey images uint8 (n, size, size) of these rows, n of at least 1: shorter side resized, centre cropped."""
    paths = images.paths
    if not len(rows):
        raise Unavailable(f"no image of --{images.name} can be compared by pixels")
    return np.stack([resize_center_crop(read_image(paths[row]), size) for row in rows])


def by_pixels(inputs: EvaluationInputs) -> tuple[str, str]:
    return "pixels", f"grey uint8; shorter side to at most {PIXELS} px by antialiased bicubic, centre crop; [0, 1]"


def texts_of(images: ImageSet, flag: str) -> list[str]:
    texts = [str(text) for text in images.table["text"]]
    if not any(texts):
        raise Unavailable(f"{flag} has no texts; give a manifest with a text column", bad_input=True)
    return texts


def prompt_keys(images: ImageSet) -> list[str | None]:
    """The prompt of each image, None where there is none."""
    return [str(text) or None for text in images.table["text"]]


def one_seed(inputs: EvaluationInputs) -> list[str]:
    """A warning where all images were made from the same seed: they share their noise and so look alike."""
    seeds, texts = inputs.synthetic.table["seed"].astype(str), inputs.synthetic.table["text"]
    if len(seeds) < 2 or seeds.iloc[0] == "" or seeds.nunique() > 1 or texts.nunique() < 2:
        return []
    return [f"all images have the seed {seeds.iloc[0]}: they share their noise and are more alike than need be"]


def labels_of(inputs: EvaluationInputs, findings: Sequence[str] | None = None) -> tuple[Floats, Floats]:
    """Labels of synthetic (N, F) and real (M, F) images; Unavailable where one side has none."""
    names = inputs.real.findings if findings is None else findings
    mine, theirs = inputs.synthetic.labels(names), inputs.real.labels(names)
    for flag, matrix in (("--real", theirs), ("--synthetic", mine)):
        if not (matrix == 1).any():
            raise Unavailable(
                f"{flag} has no labels; give a manifest with finding columns, or images that roentgen generated",
                bad_input=True,
            )
    return mine, theirs
