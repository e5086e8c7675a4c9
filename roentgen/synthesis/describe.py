"""A plan in words: for the screen, and of what the model has never seen."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

from roentgen.prompts.vocabulary import ADULTS, BOY_BELOW, CHILDREN
from roentgen.prompts.vocabulary import VIEWS as VIEW_WORDS
from roentgen.prompts.vocabulary import words as split_words
from roentgen.synthesis.plan import AGE_BANDS, DEMOGRAPHICS, FROM_FILES, SEXES, UNLABELLED, VIEWS, Plan, band_text

_TABLE_LINES = 40


def describe(plan: Plan) -> list[str]:
    """Lines for the screen: settings, where the rows come from, and a table of their counts."""
    own = [
        f"{name} {'as the model' if value is None else value}"
        for name, value in (("steps", plan.steps), ("guidance", plan.guidance), ("sampler", plan.sampler))
    ]
    source = [f"{key.replace('_', ' ')} {_plain(value)}" for key, value in plan.source.items() if key != "kind"]
    changing = [name for name in DEMOGRAPHICS if any(name in group.balanced for group in plan.groups)]
    values = {"sex": "M, F", "view": ", ".join(VIEWS), "age": ", ".join(map(band_text, AGE_BANDS))}
    lines = [
        f"plan {plan.name!r} ({plan.hash}): {len(plan):,} images",
        f"model {plan.model}, {', '.join(own)}, seed {plan.seed}, at most {plan.max_tries} tries an image, "
        f"shards of {plan.shard_size:,}",
        f"from {plan.source['kind'].replace('_', ' ')}" + (f": {'; '.join(source)}" if source else ""),
    ]
    if changing:
        lines.append("balanced over " + "; ".join(f"{name} ({values[name]})" for name in changing))
    return [*lines, *_table(plan)]


def _table(plan: Plan) -> list[str]:
    if plan.source["kind"] in FROM_FILES:
        nothing = sum(group.count for group in plan.groups if not group.labels.findings)
        rows = [[name, f"{count:,}"] for name, count in plan.finding_counts().items()]
        rows += [[UNLABELLED, f"{nothing:,}"]] if nothing else []
        return _columns([["finding", "images"], *rows])
    if all(group.real is None for group in plan.groups):
        rows = [[name, f"{count:,}"] for name, count in plan.counts().items()]
        return _columns([["group", "images"], *_cut(rows), ["all", f"{len(plan):,}"]])
    rows = [[group.name, *_three(group.real or 0, group.count)] for group in plan.groups]
    total = _three(sum(group.real or 0 for group in plan.groups), len(plan))
    return _columns([["group", "real", "missing", "total"], *_cut(rows), ["all", *total]])


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


def _ranges(numbers: Iterable[str]) -> list[str]:
    """ "0", "1", "2", "90" -> "0-2", "90" """
    runs = []
    for _, run in itertools.groupby(enumerate(map(int, numbers)), key=lambda pair: pair[1] - pair[0]):
        values = [number for _, number in run]
        runs.append(str(values[0]) if len(values) == 1 else f"{values[0]}-{values[-1]}")
    return runs


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
