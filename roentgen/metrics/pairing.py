"""Prompts with known labels, and the real images that carry the same labels."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from roentgen.data.prompt_table import LabelledPrompt
from roentgen.prompts import NO_FINDING, Labels, compose, labels_from_row

if TYPE_CHECKING:
    import pandas as pd


def match_rows(prompts: Sequence[LabelledPrompt], table: pd.DataFrame) -> list[int | None]:
    """Row number in ``table`` of the real image that belongs to each prompt, no row twice; None without one.

    By the stem of the image's file name where the prompt's id is that (or ends in "-STEM"); else the first
    free row with the same findings, view, sex and age; else one with the same view, sex and age that has
    these findings among others (a manifest may know more than the list did when it was made).
    """
    labels = [labels_from_row(row) for row in table.to_dict("records")]
    by_stem = {Path(image).stem: number for number, image in enumerate(table["image"])}
    matched: list[int | None] = [by_stem.get(prompt.id, by_stem.get(prompt.id.partition("-")[2])) for prompt in prompts]
    free = [number for number in range(len(labels)) if number not in set(matched)]
    for exact in (True, False):
        pool: dict[Hashable, list[int]] = defaultdict(list)
        for number in free:
            pool[_person(labels[number])].append(number)
        for index, prompt in enumerate(prompts):
            if matched[index] is not None:
                continue
            wanted = set(prompt.labels.findings)
            candidates = pool[_person(prompt.labels)]
            for number in candidates:
                has = set(labels[number].findings)
                if has == wanted if exact else has >= wanted:
                    matched[index] = number
                    candidates.remove(number)
                    break
        free = [number for numbers in pool.values() for number in numbers]
    return matched


def _person(labels: Labels) -> Hashable:
    age = None if labels.age is None else int(labels.age)
    return labels.view or None, labels.sex or None, age


def label_matrix(prompts: Sequence[LabelledPrompt], rows: pd.DataFrame, findings: Sequence[str]) -> NDArray[np.float64]:
    """Labels (N, F): 1 where the prompt names the finding, 0 where the real row denies it, else NaN.

    A source that was never read for a finding says nothing about it, so neither does a prompt made from it.
    """
    matrix = np.full((len(prompts), len(findings)), np.nan)
    for column, finding in enumerate(findings):
        if finding in rows:
            matrix[rows[finding].to_numpy(dtype=np.float64) == 0, column] = 0
    for row, prompt in enumerate(prompts):
        for column, finding in enumerate(findings):
            if finding in prompt.labels.findings:
                matrix[row, column] = 1
    return matrix


def look_alikes(rows: Sequence[dict[Any, Any]], pool: Sequence[dict[Any, Any]]) -> list[list[int]]:
    """For each of ``rows`` the numbers of those in ``pool`` with the same findings and view, in order."""
    index: dict[Hashable, list[int]] = defaultdict(list)
    for number, row in enumerate(pool):
        index[kind_of(labels_from_row(row))].append(number)
    return [index[kind_of(labels_from_row(row))] for row in rows]


def kind_of(labels: Labels) -> Hashable:
    """Findings and view: images of one kind are alike as far as most prompts can tell."""
    return frozenset(labels.findings), labels.view


def draw_look_alikes(choices: Sequence[Sequence[int]], pool: int, rng: random.Random) -> tuple[list[int], int]:
    """One number a row of ``choices`` without repetition, any of range(``pool``) where none is left.

    Returns the numbers and how many of them are no look-alikes.
    """
    if len(choices) > pool:
        raise ValueError(f"cannot draw {len(choices)} of {pool}")
    used: set[int] = set()
    result: list[int | None] = []
    for options in choices:
        left = [number for number in options if number not in used]
        result.append(rng.choice(left) if left else None)
        if left:
            used.add(result[-1])  # type: ignore[arg-type]
    rest = [number for number in range(pool) if number not in used]
    rng.shuffle(rest)
    others = sum(number is None for number in result)
    return [rest.pop() if number is None else number for number in result], others


def draw_prompts(table: pd.DataFrame, count: int, seed: int) -> tuple[pd.DataFrame, list[str]]:
    """At most ``count`` rows of a manifest, two thirds with findings where there are enough, and a prompt for each.

    Rows (N, ...) are drawn by ``seed``, those with findings first; their prompts say all that the labels do.
    """
    rng = random.Random(seed)
    normal = table[NO_FINDING] == 1
    ill, well = (np.flatnonzero(mask).tolist() for mask in (~normal, normal))
    rng.shuffle(ill)
    rng.shuffle(well)
    chosen = ill[: count * 2 // 3]
    chosen += well[: count - len(chosen)]
    rows = table.iloc[chosen].reset_index(drop=True)
    return rows, [compose(labels_from_row(row), rng, complete=True) for row in rows.to_dict("records")]
