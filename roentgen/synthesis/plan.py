"""A resolved plan: which images a synthetic data set is to have, row by row.

A plan is groups of rows that are alike. Nothing is kept for a single row: ``Plan.row`` works it out from the plan and
the row's slot, so that a plan of a hundred million rows takes no more memory than its groups. Rows come in rounds:
each group that still lacks rows gives one a round, in an order of its own each round, so that every beginning of the
set is as even as the whole. ``synthesis.sources`` makes plans from files and flags; ``write_rows`` makes of a plan the
table, one row an image, that an export works from.
"""

from __future__ import annotations

import hashlib
import json
import random
from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from roentgen.files import open_atomic, sha256
from roentgen.models.hub import public_name
from roentgen.prompts import FINDINGS, Labels, compose
from roentgen.prompts.vocabulary import NARROWER, OPAQUE
from roentgen.prompts.vocabulary import VIEWS as VIEW_WORDS

if TYPE_CHECKING:
    import pyarrow

VIEWS = tuple(VIEW_WORDS)
SEXES = ("M", "F")
AGE_BANDS = ((18, 39), (40, 59), (60, 79))
"""Years, both ends included; ages that `mini` has seen in training."""
DEMOGRAPHICS = ("sex", "view", "age")
MAX_ROWS = 10**8
"""Files are named by eight digits."""
FROM_FILES = ("like", "prompts")
"""Kinds of plans whose groups are the rows of a file, and so too many to be written into the resolved plan."""

UNLABELLED = "without a finding"
_VIEW_TURNS = (0, 1, 1, 0)


@dataclass(frozen=True)
class Row:
    """One image that a plan asks for.

    slot: its place in the plan, from 0; names its files. group: the plan's own name for where it belongs, such as a
    finding, by which counts and shortfalls are reported. labels: what the prompt says, and with it what the image is
    labelled. absent: findings known to be absent (label 0); the rest is unknown (blank).
    """

    slot: int
    group: str
    prompt: str
    labels: Labels
    absent: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Group:
    """Rows of a plan that are alike.

    name: by which rows are counted; groups of a file may share one. labels: what all rows have; None in view, sex and
    age where they are drawn or unknown. absent: as in ``Row``. ages: first and last year of ages that are drawn evenly.
    balanced: which of ``DEMOGRAPHICS`` change from row to row, as evenly as can be. prompt: the text of all rows, or
    None to compose one for each. real: images that the real set has already, where it is to be balanced.
    """

    name: str
    count: int
    labels: Labels
    absent: frozenset[str] = frozenset()
    ages: tuple[int, int] | None = None
    balanced: tuple[str, ...] = ()
    prompt: str | None = None
    real: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values; what is blank is left out."""
        values = {
            "name": self.name,
            "count": self.count,
            "real": self.real,
            "findings": list(self.labels.findings),
            "sides": dict(sorted(self.labels.sides.items())),
            "view": self.labels.view,
            "sex": self.labels.sex,
            "age": self.labels.age if self.ages is None else list(self.ages),
            "absent": in_order(self.absent),
            "balanced": list(self.balanced),
            "prompt": self.prompt,
        }
        return {key: value for key, value in values.items() if value not in (None, [], {})}


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How the images of a set are drawn, whatever they show.

    name: of the set. model: name, folder or hub id. seed: of the first image. steps, guidance, sampler, guided_share:
    None is the model's own. max_tries: seeds a row may use up before it counts as missing. shard_size: rows a shard.
    """

    name: str = "synthetic"
    model: str = "mini"
    seed: int = 0
    steps: int | None = None
    guidance: float | None = None
    sampler: str | None = None
    guided_share: float | None = None
    max_tries: int = 4
    shard_size: int = 1000


@dataclass(frozen=True, kw_only=True)
class Plan(Drawing):
    """What ``roentgen export`` is asked to make, with nothing left to be decided.

    findings: columns of labels, in the vocabulary's order. source: where the plan comes from, as plain values.
    """

    findings: tuple[str, ...]
    source: Mapping[str, Any]
    groups: tuple[Group, ...] = field(repr=False)

    @property
    def sampling(self) -> dict[str, Any]:
        """Settings of sampling, for ``generate``."""
        usual = {"steps": self.steps, "guidance": self.guidance, "sampler": self.sampler}
        return usual if self.guided_share is None else usual | {"guided_share": self.guided_share}

    def __len__(self) -> int:
        """Number of rows."""
        return self._length

    def row(self, slot: int) -> Row:
        """The row of a slot, from the plan and the slot alone; IndexError outside 0 to ``len(plan) - 1``."""
        if not 0 <= slot < len(self):
            raise IndexError(f"slot {slot} of a plan of {len(self)} rows")
        number, turn = self._place(slot)
        group = self.groups[number]
        rng = random.Random(f"{self.seed}/{slot}")
        labels = _labels(group, number=number, turn=turn, rng=rng)
        prompt = compose(labels, rng, complete=True) if group.prompt is None else group.prompt
        return Row(slot, group.name, prompt, labels, group.absent)

    def seed_of(self, slot: int, attempt: int) -> int:
        """Seed of an attempt (from 0) at a row; no two share one. ValueError for an attempt beyond ``max_tries``."""
        if not 0 <= attempt < self.max_tries:
            raise ValueError(f"attempt {attempt} of at most {self.max_tries}")
        return self.seed + slot * self.max_tries + attempt

    def counts(self) -> dict[str, int]:
        """Name of a group -> rows asked for; adds up to ``len(plan)``."""
        return _summed((group.name, group.count) for group in self.groups)

    def finding_counts(self) -> dict[str, int]:
        """Finding -> rows that ask for it, in the order of ``findings``; a row of two findings counts for both."""
        found = _summed((name, group.count) for group in self.groups for name in group.labels.findings)
        return {name: found.get(name, 0) for name in self.findings}

    def as_dict(self) -> dict[str, Any]:
        """Plain values; of groups that are a file's rows only the counts and a hash."""
        values = {
            "name": self.name,
            "model": public_name(self.model),
            "seed": self.seed,
            "steps": self.steps,
            "guidance": self.guidance,
            "sampler": self.sampler,
            **({} if self.guided_share is None else {"guided_share": self.guided_share}),
            "max_tries": self.max_tries,
            "shard_size": self.shard_size,
            "rows": len(self),
            "findings": list(self.findings),
            "source": dict(self.source),
        }
        if self.source["kind"] in FROM_FILES:
            return values | {"counts": self.counts(), "groups_sha256": self._groups_sha256}
        return values | {"groups": [group.as_dict() for group in self.groups]}

    @cached_property
    def hash(self) -> str:
        """16 hex digits that change with anything in the plan."""
        return sha256(_canonical(self.as_dict()))[:16]

    @cached_property
    def _length(self) -> int:
        return sum(group.count for group in self.groups)

    @cached_property
    def _groups_sha256(self) -> str:
        return sha256(*(_canonical(group.as_dict()) + b"\n" for group in self.groups))

    @cached_property
    def _by_count(self) -> list[int]:
        """Numbers of the groups, the smallest first: in any round those that still lack rows are the last ones."""
        return sorted(range(len(self.groups)), key=lambda number: self.groups[number].count)

    @cached_property
    def _stretches(self) -> tuple[list[int], list[tuple[int, int]]]:
        """Stretches of rounds in which the same groups give rows.

        The first slot of each; its first round and the place in ``_by_count`` from which the groups give rows.
        """
        starts, stretches = [], []
        slot = done = 0
        for place, number in enumerate(self._by_count):
            count = self.groups[number].count
            if count > done:
                starts.append(slot)
                stretches.append((done, place))
                slot += (count - done) * (len(self.groups) - place)
                done = count
        return starts, stretches

    def _place(self, slot: int) -> tuple[int, int]:
        """Number of the slot's group, and how many rows the group gave before."""
        starts, stretches = self._stretches
        stretch = bisect_right(starts, slot) - 1
        first_round, first = stretches[stretch]
        active = len(self.groups) - first
        rounds, place = divmod(slot - starts[stretch], active)
        turn = first_round + rounds
        return self._by_count[first + shuffled(place, active, key=f"{self.seed}/{turn}")], turn


def _labels(group: Group, *, number: int, turn: int, rng: random.Random) -> Labels:
    """The labels of a group's row.

    Sex alternates, views come as 0110 and age bands as 012, so that after any number of rows each is within one of
    even, and twelve rows hold each combination once. The group's number turns all three in the same way, so that
    the first rows of the groups are balanced among themselves too.
    """
    view, sex, age, ages = group.labels.view, group.labels.sex, group.labels.age, group.ages
    if "sex" in group.balanced:
        sex = SEXES[(turn + number) % len(SEXES)]
    if "view" in group.balanced:
        view = VIEWS[(_VIEW_TURNS[turn % 4] + _VIEW_TURNS[number % 4]) % len(VIEWS)]
    if "age" in group.balanced:
        ages = AGE_BANDS[(turn + number) % len(AGE_BANDS)]
    if ages is not None:
        age = float(rng.randint(*ages))
    return replace(group.labels, view=view, sex=sex, age=age)


def shuffled(place: int, size: int, *, key: str) -> int:
    """Where ``place`` goes in the permutation of range(``size``) that ``key`` names, without making the others.

    A Feistel network over a power of four, walked until it is below ``size`` (Black and Rogaway, CT-RSA 2002): a
    list for each round would grow with the real set, and libraries may change their shuffles between versions.
    """
    bits = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << bits) - 1
    while True:
        left, right = place >> bits, place & mask
        for step in range(4):
            digest = hashlib.blake2b(f"{key}/{step}/{right}".encode(), digest_size=8).digest()
            left, right = right, left ^ (int.from_bytes(digest) & mask)
        place = left << bits | right
        if place < size:
            return place


def absent_beside(findings: Collection[str], columns: Collection[str]) -> frozenset[str]:
    """The columns that are absent in an image of ``findings``: a prompt that asks for some is meant to show no other.

    What they may include stays unknown: a wider or narrower diagnosis, and the opacity that most of them are.
    """
    asked = set(findings)
    unknown = set(asked)
    for wide, narrow in NARROWER.items():
        unknown |= {wide} if asked & narrow else set()
        unknown |= narrow if wide in asked else set()
    unknown |= {"Lung Opacity"} if asked & OPAQUE else set()
    unknown |= OPAQUE if "Lung Opacity" in asked else set()
    return frozenset(columns) - unknown


def name_of(findings: Collection[str]) -> str:
    """ "Atelectasis + Effusion": a name for rows of these findings, whatever their order."""
    return " + ".join(in_order(findings)) or UNLABELLED


def band_text(band: tuple[int, int]) -> str:
    """ "18-39" """
    return f"{band[0]}-{band[1]}"


def in_order(findings: Collection[str]) -> list[str]:
    """The findings in the vocabulary's order, each once."""
    return [name for name in FINDINGS if name in findings]


def _summed(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for name, count in pairs:
        counts[name] += count
    return dict(counts)


def _canonical(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


# ------------------------------------------------------------------------------------------------ the table


def write_rows(plan: Plan, path: Path, *, scratch: Path | None = None) -> None:
    """The plan as a Parquet table: one row an image, a row group a shard, settings in the metadata; written atomically.

    Columns: slot, group, prompt, seed (of the first attempt), findings, sides (one a finding, "" without), view, sex,
    age, absent. The same plan gives the same bytes; memory does not grow with the rows.
    """
    import pyarrow
    import pyarrow.parquet

    schema = _schema().with_metadata({"roentgen": _canonical(plan.as_dict())})
    with open_atomic(path, scratch=scratch) as file, pyarrow.parquet.ParquetWriter(file, schema) as table:
        for start in range(0, len(plan), plan.shard_size):
            rows = [plan.row(slot) for slot in range(start, min(start + plan.shard_size, len(plan)))]
            cells = [_cells(row) | {"seed": plan.seed_of(row.slot, 0)} for row in rows]
            table.write_table(pyarrow.Table.from_pylist(cells, schema), row_group_size=plan.shard_size)


class PlannedRows:
    """The rows of a table that ``write_rows`` wrote, a shard at a time."""

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet

        self._file = pyarrow.parquet.ParquetFile(path)

    def shard(self, number: int) -> dict[int, Row]:
        """Slot -> row, of one shard, slots rising."""
        return {cells["slot"]: _row(cells) for cells in self._file.read_row_group(number).to_pylist()}


def _schema() -> pyarrow.Schema:
    import pyarrow

    text, texts = pyarrow.string(), pyarrow.list_(pyarrow.string())
    return pyarrow.schema(
        {"slot": pyarrow.int64(), "group": text, "prompt": text, "seed": pyarrow.int64(), "findings": texts}
        | {"sides": texts, "view": text, "sex": text, "age": pyarrow.float64(), "absent": texts}
    )


def _cells(row: Row) -> dict[str, Any]:
    labels = row.labels
    return {
        "slot": row.slot,
        "group": row.group,
        "prompt": row.prompt,
        "findings": list(labels.findings),
        "sides": [labels.sides.get(name, "") for name in labels.findings],
        "view": labels.view,
        "sex": labels.sex,
        "age": labels.age,
        "absent": in_order(row.absent),
    }


def _row(cells: Mapping[str, Any]) -> Row:
    findings = tuple(cells["findings"])
    sides = {name: side for name, side in zip(findings, cells["sides"], strict=True) if side}
    labels = Labels(findings, sides, cells["view"], cells["sex"], cells["age"])
    return Row(cells["slot"], cells["group"], cells["prompt"], labels, frozenset(cells["absent"]))
