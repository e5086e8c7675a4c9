"""A small synthetic set of made-up records, and how it is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from roentgen.prompts import Labels
from roentgen.synthesis.card import add_tallies, tally, write_card
from roentgen.synthesis.plan import Row
from roentgen.synthesis.writers import FORMATS, write_sums
from roentgen.synthesis.writers.parts import Record, SetInfo

ROWS = [
    ("Normal chest, PA view, 54-year-old woman.", Labels(("No Finding",), {}, "PA", "F", 54.0), {"Effusion", "Edema"}),
    ("Left pleural effusion", Labels(("Effusion",), {"Effusion": "left"}), {"Edema"}),
    ("Bilateral effusion, mild œdema, AP", Labels(("Effusion", "Edema"), {"Effusion": "bilateral"}, "AP"), set()),
    ('COVID-19 pneumonia, "patchy",\nman', Labels(("COVID-19",), {}, "AP", "M", 0.5), set()),
    ("Chest X-ray", Labels(), set()),
]
FINDINGS_USED = ("No Finding", "COVID-19", "Effusion", "Edema", "Lung Opacity")


def make_record(slot: int, *, size: int = 16) -> Record:
    prompt, labels, absent = ROWS[slot % len(ROWS)]
    rng = np.random.default_rng(slot)
    image = rng.integers(0, 256, (size, size + 3), dtype=np.uint8)
    seed = 2**62 + slot  # beyond what a float holds
    provenance = {
        **{"prompt": prompt, "seed": str(seed), "model": "mini", "model_hash": "0123456789012345"},
        **{"sampler": "dpm++", "steps": "20", "guidance": "7.5", "version": "0.1.0"},
    }
    row = Row(slot, labels.findings[0] if labels.findings else "other", prompt, labels, frozenset(absent))
    return Record(row, image, seed, slot % 2, {"classifier": 0.123456789}, provenance)


SHARDS = [[make_record(slot) for slot in (0, 1, 3)], [], [make_record(slot) for slot in (1000, 1001, 1002, 1004)]]
INFO = SetInfo(
    name="tiny set",
    rows=9,
    findings=FINDINGS_USED,
    model={"model": "mini", "model_hash": "0123456789012345", "steps": "20"},
    plan={"name": "tiny", "groups": [{"name": "Effusion", "count": 4}]},
    filter={"classifier": {"threshold": 0.321}},
    command="roentgen export --plan tiny.yaml --out tiny",
)


def write_set(out: Path, *, formats=tuple(FORMATS), order=(0, 1, 2), card: bool = True) -> Path:
    for name in formats:
        for shard in order:
            FORMATS[name](out, INFO).write_shard(shard, SHARDS[shard])
        FORMATS[name](out, INFO).finish(len(SHARDS))
    if card:
        counts = add_tallies(tally(shard) for shard in SHARDS)
        more = {"drawn": 12, "rejected": {"classifier": 5}, "shortfalls": {"Effusion": 2, "Edema": 0}}
        write_card(out, INFO, counts | more)
        write_sums(out)
    return out
