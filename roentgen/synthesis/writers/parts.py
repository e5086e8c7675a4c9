"""What the writers of a synthetic data set share: the columns of its tables, and the parts that shards leave.

A part is a small file below ``OUT/.work/parts/FORMAT/``: the SHA-256 of each file of one shard, and the shard's rows of
the tables that the whole set gets at the end. It is written last, so a shard without one is unfinished.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from roentgen.data.manifest import SIDE_SUFFIX
from roentgen.errors import UserError
from roentgen.files import has_sha256, open_atomic
from roentgen.prompts import FINDINGS, NO_FINDING
from roentgen.synthesis.plan import Row
from roentgen.synthesis.store import WORK, read_values, write_values

LICENCE = "as the model that made it; synthetic, of no patient"
FORMULA = ("=", "+", "-", "@", "\t", "\n")
"""What a cell begins with that a spreadsheet takes for a formula."""
FOLDER_SIZE = 1000  # slots a sub-folder, so that a set of a million opens in a file manager


@dataclass(frozen=True)
class Record:
    """One image that was kept.

    image: uint8 grey [H, W]. seed: of the image. attempt: 0 where the first seed of the row was kept, 1 where the
    filter rejected one before it, and so on. scores: what the filter measured, by stage. provenance: what
    ``images.save_image`` writes into the file (prompt, seed, model, model_hash, sampler, steps, guidance, ...).
    """

    row: Row
    image: np.ndarray = field(repr=False)
    seed: int
    attempt: int
    scores: Mapping[str, float]
    provenance: Mapping[str, str]

    @property
    def name(self) -> str:
        """Stem of the record's files: its slot, so that it does not depend on what else was kept.

        A letter comes first: pandas reads a column of digits as numbers, and their zeros are gone.
        """
        return f"cxr{self.row.slot:08d}"

    @property
    def patient_id(self) -> str:
        """A patient of its own for each image: there is no person behind any."""
        return f"synthetic-{self.row.slot:08d}"


@dataclass(frozen=True)
class SetInfo:
    """What the whole set shares; goes into its card and into every format.

    name: of the set. rows: images asked for. findings: columns of labels, in the vocabulary's order. model: name,
    hash, steps, guidance, sampler as in provenance. plan: the resolved plan as plain values. filter: what
    ``Filter.describe`` says, or None without a filter. command: the command line that makes it. licence: of the model,
    as the Hugging Face hub names it, or None if it is not known.
    """

    name: str
    rows: int
    findings: tuple[str, ...]
    model: Mapping[str, str]
    plan: Mapping[str, Any]
    filter: Mapping[str, Any] | None
    command: str
    licence: str | None = None


class Column(NamedTuple):
    """A column of every table: ``kind`` is a type of Arrow and Hugging Face; ``blank`` numbers may be unknown."""

    name: str
    kind: str
    blank: bool = False


def columns(info: SetInfo) -> list[Column]:
    """The columns of every format: those of ``roentgen.data.manifest``, then where the image comes from."""
    labels = []
    for finding in info.findings:
        labels.append(Column(finding, "int8", blank=True))
        if FINDINGS[finding].can_have_side:
            labels.append(Column(finding + SIDE_SUFFIX, "string"))
    return [
        *(Column(name, "string") for name in ("image", "text", "patient_id", "split", "view", "sex")),
        Column("age", "float64", blank=True),
        *(Column(name, "string") for name in ("source", "licence")),
        *labels,
        Column("group", "string"),
        *(Column(name, "int64") for name in ("slot", "seed", "attempt")),
        *(Column(name, "string") for name in ("model", "model_hash", "lora", "sampler")),
        Column("steps", "int64"),
        Column("guidance", "float64"),
        *(Column(name, "string") for name in ("negative_prompt", "version", "dtype", "scores")),
        Column("synthetic", "bool"),
    ]


def _label(record: Record, finding: str) -> int | None:
    asked = record.row.labels.findings
    if finding in asked:
        return 1
    refuted = finding == NO_FINDING and bool(asked)  # any finding that is asked for refutes it
    return 0 if refuted or finding in record.row.absent else None


def cell_text(value: Any) -> str:
    """A value as CSV holds it: blank for None, 54 for 54.0; text that a spreadsheet would run gets a quote in front."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        value = value.replace("\r\n", "\n").replace("\r", "\n")  # csv.writer quotes no \r, which ends a row to readers
        return f"'{value}" if value.startswith(FORMULA) else value
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


@dataclass(frozen=True)
class Part:
    """``files``: path below OUT -> SHA-256, in the order of paths. ``rows``: ``cells``, and what a format adds."""

    files: Mapping[str, str]
    rows: Sequence[Sequence[Any]]


class Parts:
    """The parts of one format, and its folder for unfinished files."""

    def __init__(self, out: Path, format: str) -> None:
        self.out = out
        self.folder = out / WORK / "parts" / format
        self.scratch = out / WORK / "scratch"

    def write(self, shard: int, part: Part) -> None:
        """Say that a shard is finished; all its files must be written."""
        write_values(self._path(shard), {"files": part.files, "rows": part.rows}, scratch=self.scratch)

    def read(self, shard: int) -> Part | None:
        """A shard's part; None where there is none or it is damaged."""
        found = read_values(self._path(shard))
        return None if found is None else Part(**found)

    def rows(self, shards: int) -> Iterator[Sequence[Any]]:
        """The rows of ``shards`` shards, one shard in memory; UserError where one is unfinished."""
        for shard in range(shards):
            part = self.read(shard)
            if part is None:
                raise UserError(f"{self._path(shard)}: this shard is unfinished; run the same command again")
            yield from part.rows

    def sums(self, folder: str) -> Iterator[tuple[str, str]]:
        """(path below OUT, SHA-256) of the files of finished shards in ``folder``, in the order of paths."""
        for path in sorted(self.folder.glob("*.json")):
            part = self.read(int(path.stem))
            if part is not None:
                yield from sorted(pair for pair in part.files.items() if pair[0].startswith(folder))

    def _path(self, shard: int) -> Path:
        return self.folder / f"{shard:06d}.json"


class Writer:
    """One format of a set; alone, one without tables of the whole set."""

    name: str
    folders: tuple[str, ...]
    """Folders of the set, each with files whose paths rise with the shards."""

    def __init__(self, out: Path, info: SetInfo) -> None:
        self.out = out
        self.info = info
        self.parts = Parts(out, self.name)
        self.columns = [column.name for column in columns(info)]

    def write_shard(self, shard: int, records: Sequence[Record]) -> None:
        """Write the kept records of one shard, in the order of slots. The same records give the same bytes, also over
        those of an earlier try; a killed call leaves nothing that ``is_written`` takes for finished.

        UserError where a file cannot be written, such as on a full disk; finished shards are untouched.
        """
        raise NotImplementedError

    def cells(self, record: Record, image: str) -> list[Any]:
        """One value a column, None for a number that is not known; ``image`` is the path of the record's file.

        Raises ValueError for a label that has no column, KeyError for a provenance without the model or its settings.
        """
        row, marks = record.row, record.provenance
        if missing := {*row.labels.findings, *row.absent} - set(self.info.findings):
            raise ValueError(f"slot {row.slot} has the label {min(missing)!r}, which is not among the set's findings")
        labels: list[Any] = []
        for finding in self.info.findings:
            labels.append(_label(record, finding))
            if FINDINGS[finding].can_have_side:
                labels.append(row.labels.sides.get(finding, ""))
        # Four digits: what the filter measures may differ in the last bits between batches, and the bytes must not.
        scores = {stage: float(f"{value:.4g}") for stage, value in sorted(record.scores.items())}
        return [
            *(image, row.prompt, record.patient_id, "train", row.labels.view or "", row.labels.sex or ""),
            *(row.labels.age, f"synthetic: {marks['model']}", LICENCE),
            *labels,
            *(row.group, row.slot, record.seed, record.attempt),
            *(marks["model"], marks["model_hash"], marks.get("lora", ""), marks["sampler"]),
            *(int(marks["steps"]), float(marks["guidance"])),
            *(marks.get("negative_prompt", ""), marks.get("version", "")),
            *(marks.get("dtype", ""), json.dumps(scores), True),
        ]

    @contextlib.contextmanager
    def open_table(self, path: str, header: Sequence[str]) -> Iterator[Any]:
        """A ``csv.writer`` of a new table of the set with its header written; atomic as ``open_atomic``."""
        with open_atomic(self.out / path, scratch=self.parts.scratch) as file:
            text = io.TextIOWrapper(file, "utf-8", newline="", write_through=False)
            table = csv.writer(text, lineterminator="\n")
            table.writerow(header)
            yield table
            text.flush()
            text.detach()

    def is_written(self, shard: int) -> bool:
        """Whether the shard is finished and all its files have the SHA-256 that was written."""
        part = self.parts.read(shard)
        return part is not None and all(has_sha256(self.out / path, sha) for path, sha in part.files.items())

    def finish(self, shards: int) -> None:
        """Write the files of the whole set from the parts of its shards; memory does not grow with their number.

        UserError where a shard is unfinished.
        """
        for _ in self.parts.rows(shards):
            pass  # looks that every shard is there
