"""The spread over generation seeds: one figure a measure from evaluations of the same prompts drawn anew.

Each evaluation's own interval holds the luck of which prompts and real images there are, and of one draw of images;
the sd over replicates holds the luck of the draw alone, real images and prompts being the same in all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from roentgen.metrics.result import rows_of, write_json
from roentgen.metrics.statistics import over_seeds
from roentgen.metrics.suite import read_evaluation, read_index
from roentgen.provenance import versions

REPLICATES = "replicates.json"


def write_replicates(out: Path, folders: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Write ``replicates.json`` into ``out`` from the finished evaluations in ``folders``; the entries by name.

    An entry has the mean as ``value``, its t interval over seeds, ``n`` replicates, ``sd`` and the ``values``; measures
    that some replicate lacks are left out.
    """
    values: dict[str, list[float]] = {}
    first: dict[str, dict[str, Any]] = {}
    indexes = []
    for folder in folders:
        index, results = read_evaluation(folder)
        indexes.append(index)
        for name, result in results.items():
            extractor = name.partition("-")[2]
            label = result["metric"] + (f" ({extractor})" if extractor else "")
            for row in rows_of(result):
                key, words = (f"{one} {row['name']}" if "name" in row else one for one in (name, label))
                if row["value"] is not None:
                    values.setdefault(key, []).append(float(row["value"]))
                    own = {part: row.get(part) for part in ("value", "ci", "n")}
                    first.setdefault(key, {"metric": words, "first": own})
    found = {}
    for name, each in values.items():
        if len(each) == len(folders):
            spread = over_seeds(each)
            about = {key: spread[key] for key in ("value", "ci", "ci_method", "n", "sd", "warnings")}
            found[name] = {**about, "values": spread["details"]["values"], **first[name]}
    index = read_index(out)
    result = {
        "measures": found,
        "replicates": len(folders),
        **{key: [index.get(key) for index in indexes] for key in ("model", "inputs")},
        **{key: index.get(key) for key in ("command", "settings")},
        "versions": versions(),
    }
    write_json(out / REPLICATES, result)
    return found
