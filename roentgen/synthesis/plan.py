"""A resolved plan: which images a synthetic data set is to have, row by row.

A plan is groups of rows that are alike. Nothing is kept for a single row: ``Plan.row`` works it out from the plan and
the row's slot, so that a plan of a hundred million rows takes no more memory than its groups. Rows come in rounds:
each group that still lacks rows gives one a round, in an order of its own each round, so that every beginning of the
set is as even as the whole. ``roentgen.synthesis.plan_sources`` makes plans from files and flags.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from roentgen.files import sha256
from roentgen.prompts import FINDINGS, Labels, compose
from roentgen.prompts.vocabulary import ADULTS, BOY_BELOW, CHILDREN, NARROWER, OPAQUE
from roentgen.prompts.vocabulary import VIEWS as VIEW_WORDS
from roentgen.prompts.vocabulary import words as split_words
from roentgen.synthesis.records import Row

VIEWS = tuple(VIEW_WORDS)
SEXES = ("M", "F")
AGE_BANDS = ((18, 39), (40, 59), (60, 79))
"""Years, both ends included; ages that `mini` has seen in training."""
DEMOGRAPHICS = ("sex", "view", "age")
MAX_ROWS = 10**8
"""Files are named by eight digits."""
FROM_FILES = ("like", "prompts")
"""Kinds of plans whose groups are the rows of a file, and so too many to be written into the resolved plan."""

_UNLABELLED = "without a finding"
_TABLE_LINES = 40
_VIEW_TURNS = (0, 1, 1, 0)


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


@dataclass(frozen=True)
class Plan:
    """What ``roentgen export`` is asked to make, with nothing left to be decided.

    steps, guidance, sampler: None is the model's own. max_tries: seeds a row may use up before it counts as missing.
    shard_size: rows a shard. findings: columns of labels, in the vocabulary's order. source: where the plan comes from,
    as plain values.
    """

    name: str
    model: str
    seed: int
    steps: int | None
    guidance: float | None
    sampler: str | None
    max_tries: int
    shard_size: int
    findings: tuple[str, ...]
    source: Mapping[str, Any]
    groups: tuple[Group, ...] = field(repr=False)

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
            "model": self.model,
            "seed": self.seed,
            "steps": self.steps,
            "guidance": self.guidance,
            "sampler": self.sampler,
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

    def describe(self) -> list[str]:
        """Lines for the screen: settings, where the rows come from, and a table of their counts."""
        own = [
            f"{name} {'as the model' if value is None else value}"
            for name, value in (("steps", self.steps), ("guidance", self.guidance), ("sampler", self.sampler))
        ]
        source = [f"{key.replace('_', ' ')} {_plain(value)}" for key, value in self.source.items() if key != "kind"]
        changing = [name for name in DEMOGRAPHICS if any(name in group.balanced for group in self.groups)]
        values = {"sex": "M, F", "view": ", ".join(VIEWS), "age": ", ".join(map(band_text, AGE_BANDS))}
        lines = [
            f"plan {self.name!r} ({self.hash}): {len(self):,} images",
            f"model {self.model}, {', '.join(own)}, seed {self.seed}, at most {self.max_tries} tries an image, "
            f"shards of {self.shard_size:,}",
            f"from {self.source['kind'].replace('_', ' ')}" + (f": {'; '.join(source)}" if source else ""),
        ]
        if changing:
            lines.append("balanced over " + "; ".join(f"{name} ({values[name]})" for name in changing))
        return [*lines, *self._table()]

    def _table(self) -> list[str]:
        if self.source["kind"] in FROM_FILES:
            nothing = sum(group.count for group in self.groups if not group.labels.findings)
            rows = [[name, f"{count:,}"] for name, count in self.finding_counts().items()]
            rows += [[_UNLABELLED, f"{nothing:,}"]] if nothing else []
            return _columns([["finding", "images"], *rows])
        if all(group.real is None for group in self.groups):
            rows = [[name, f"{count:,}"] for name, count in self.counts().items()]
            return _columns([["group", "images"], *_cut(rows), ["all", f"{len(self):,}"]])
        rows = [[group.name, *_three(group.real or 0, group.count)] for group in self.groups]
        total = _three(sum(group.real or 0 for group in self.groups), len(self))
        return _columns([["group", "real", "missing", "total"], *_cut(rows), ["all", *total]])

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


def unknown_demographics(plan: Plan, vocabulary: frozenset[str] | None) -> list[str]:
    """Words for view, sex and age that composed prompts may use and the model has never seen, one line an attribute.

    ``vocabulary`` is ``Model.vocabulary``: lower-case words, None where it is not known (no lines). Ages are judged
    only where it has numbers, and single letters ("x-ray") never, because ``Model.vocabulary`` leaves both out.
    """
    if vocabulary is None:
        return []
    views: set[str | None] = set()
    sexes: set[str | None] = set()
    ages: set[int] = set()
    for group in plan.groups:
        if group.prompt is not None:
            continue
        labels = group.labels
        views |= set(VIEWS) if "view" in group.balanced else {labels.view}
        sexes |= set(SEXES) if "sex" in group.balanced else {labels.sex}
        bands = AGE_BANDS if "age" in group.balanced else (group.ages,)
        ages |= {age for band in bands if band is not None for age in range(band[0], band[1] + 1)}
        ages |= {int(labels.age)} if labels.age is not None else set()
    people = [ADULTS] if not ages or max(ages) >= BOY_BELOW else []
    people += [CHILDREN] if ages and min(ages) < BOY_BELOW else []
    texts = {
        "view": [text for view in VIEWS if view in views for text in VIEW_WORDS[view]],
        "sex": [text for sex in SEXES if sex in sexes for words in people for text in words[sex]],
        "age": [str(age) for age in sorted(ages)] if any(word.isdigit() for word in vocabulary) else [],
    }
    lines = []
    for attribute, phrases in texts.items():
        words = dict.fromkeys(word for text in phrases for word in split_words(text) if len(word) > 1 or word.isdigit())
        unknown = [word for word in words if word not in vocabulary]
        if unknown:
            lines.append(f"{attribute}: {', '.join(_ranges(unknown) if attribute == 'age' else unknown)}")
    return lines


def name_of(findings: Collection[str]) -> str:
    """ "Atelectasis + Effusion": a name for rows of these findings, whatever their order."""
    return " + ".join(in_order(findings)) or _UNLABELLED


def band_text(band: tuple[int, int]) -> str:
    """ "18-39" """
    return f"{band[0]}-{band[1]}"


def in_order(findings: Collection[str]) -> list[str]:
    """The findings in the vocabulary's order, each once."""
    return [name for name in FINDINGS if name in findings]


def _ranges(numbers: Iterable[str]) -> list[str]:
    """ "0", "1", "2", "90" -> "0-2", "90" """
    runs = []
    for _, run in itertools.groupby(enumerate(map(int, numbers)), key=lambda pair: pair[1] - pair[0]):
        values = [number for _, number in run]
        runs.append(str(values[0]) if len(values) == 1 else f"{values[0]}-{values[-1]}")
    return runs


def _summed(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for name, count in pairs:
        counts[name] += count
    return dict(counts)


def _canonical(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _three(real: int, missing: int) -> list[str]:
    return [f"{number:,}" for number in (real, missing, real + missing)]


def _cut(rows: list[list[str]]) -> list[list[str]]:
    """The first lines of a long table, and a line that says how many are left out."""
    left = len(rows) - _TABLE_LINES
    return rows if left <= 1 else [*rows[:_TABLE_LINES], [f"... and {left} more groups"]]


def _columns(rows: list[list[str]]) -> list[str]:
    """Rows of cells as lines: the first column to the left, numbers to the right; short rows are allowed."""
    widths = [max(map(len, column)) for column in itertools.zip_longest(*rows, fillvalue="")]
    return [
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=False))
        ).rstrip()
        for row in rows
    ]
