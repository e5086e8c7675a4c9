"""Prompts with known labels, and the real images that carry the same labels."""

from __future__ import annotations

import random
from collections.abc import Hashable
from typing import TYPE_CHECKING

import numpy as np

from roentgen.prompts import NO_FINDING, Labels, compose, labels_from_row

if TYPE_CHECKING:
    import pandas as pd


def kind_of(labels: Labels) -> Hashable:
    """Findings and view: images of one kind are alike as far as most prompts can tell."""
    return tuple(sorted(labels.findings)), labels.view


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
