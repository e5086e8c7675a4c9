"""What every measure reads and gives: the inputs of an evaluation, the result, and the registry of measures.

A measure is one function that takes ``EvaluationInputs`` and an extractor, gives a ``Result``, and is decorated with
``@measure``; ``roentgen.metrics.measures`` lists the modules that hold them. The suite, the report, the comparison and
the table of what each notices read what the decorator says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roentgen.metrics.extractor import Extractor
from roentgen.metrics.features import Features
from roentgen.metrics.image_set import ImageSet
from roentgen.metrics.noticed import Noticed
from roentgen.metrics.statistics import Bootstrap, Floats

Entry = Mapping[str, Any]
"""A figure beside another or a row: value, and where known ci, n, name, group and what it is of."""
NOTHING = (float("nan"), float("nan"))
VALIDATION = "validation"
"""Name of the set of real validation images, on which thresholds are fitted."""
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

    def scores(self, name: str, extractor: Extractor, findings: Sequence[str]) -> Floats:
        """The classifier's probabilities (N, F) of these of its findings."""
        columns = [extractor.findings.index(finding) for finding in findings]
        return self.of(name, extractor, "probabilities")[:, columns].astype(np.float64)

    @property
    def bootstrap_groups(self) -> list[str]:
        """Cluster of each synthetic image: the patient of its real partner, else its prompt, else its own patient."""
        patients, texts, own = self.real.patients, self.synthetic.table["text"].tolist(), self.synthetic.patients
        return [
            patients[row] if row >= 0 else (f"prompt {text}" if text else mine)
            for row, text, mine in zip(self.partner, texts, own, strict=True)
        ]

    @property
    def bootstrap(self) -> Bootstrap:
        return Bootstrap(self.resamples, self.seed)

    def training(self) -> ImageSet:
        if self.train is None:
            raise Unavailable("no training images were given (--train)")
        return self.train

    def made_probes(self) -> ImageSet:
        if self.probes is None:
            raise Unavailable("no probes were made (--generate MODEL with --probes N)")
        return self.probes


CHANCE: Entry = {"value": 0.5, "what": "by chance"}


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

    @property
    def entry(self) -> dict[str, Any]:
        """The value, its interval and n."""
        return {"value": self.value, "ci": self.ci, "n": self.n}

    def as_dict(self) -> dict[str, Any]:
        """As it stands among the details of another result."""
        return {**self.entry, "ci_method": self.ci_method, "warnings": list(self.notes), "details": self.written()}

    def plus(self, *, notes: Sequence[str] = (), **fields: Any) -> Result:
        """With further notes, and other ``fields``."""
        return replace(self, notes=tuple(dict.fromkeys([*self.notes, *notes])), **fields)

    @classmethod
    def of_rows(cls, rows: Sequence[Entry], ci_method: str, **more: Any) -> Result:
        """Of figures one by one, the first of which is the value; ``more`` are the other fields."""
        first: dict[str, Any] = {
            key: rows[0].get(key) for key in ("value", "ci", "n", "floor", "ceiling", "reconstructed")
        }
        return cls(**first, ci_method=ci_method, rows=rows, **more)

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


Compute = Callable[[EvaluationInputs, Extractor], Result]
Judge = tuple[str, str]


@dataclass(frozen=True)
class Measure:
    """A line of the report.

    ``suite``: the smallest that has it. ``reads``: sets that it reads besides real and synthetic. ``output``: what it
    reads of an extractor; one that reads none has ``judge``, what it looks at images with: name with hash, and chain;
    a function of the inputs where it depends on them. ``tested``: columns of ``Result.per_image`` that a comparison
    tests in pairs, by the name of the test. ``noticed``: columns of the table of what metrics notice, by the stem of
    their result file.
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
    judge: Judge | Callable[[EvaluationInputs], Judge] | None = None
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
