"""The spread over generation seeds: one figure a measure from evaluations of the same prompts drawn anew.

Each evaluation's own interval holds the luck of which prompts and real images there are, and of one draw of images;
the sd over replicates holds the luck of the draw alone, real images and prompts being the same in all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from roentgen.metrics.result import read_measure, write_json
from roentgen.metrics.statistics import over_seeds
from roentgen.metrics.suite import read_index
from roentgen.provenance import versions

REPLICATES = "replicates.json"


def write_replicates(out: Path, folders: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Write ``replicates.json`` into ``out`` from the finished evaluations in ``folders``; the entries by name.

    An entry has the mean as ``value``, its t interval over seeds, ``n`` replicates, ``sd`` and the ``values``; measures
    that some replicate lacks are left out.
    """
    values: dict[str, list[float]] = {}
    first: dict[str, Mapping[str, Any]] = {}
    for folder in folders:
        for name, label, entry in _figures(folder):
            if entry["value"] is not None:
                values.setdefault(name, []).append(float(entry["value"]))
                first.setdefault(name, {**entry, "label": label})
    found = {}
    for name, each in values.items():
        if len(each) == len(folders):
            spread = over_seeds(each)
            own = {key: first[name].get(key) for key in ("value", "ci", "n")}
            found[name] = {
                "metric": first[name]["label"],
                **{key: spread[key] for key in ("value", "ci", "ci_method", "n", "sd", "warnings")},
                "values": spread["details"]["values"],
                "first": own,
            }
    index = read_index(out)
    result = {
        "measures": found,
        "replicates": len(folders),
        "model": [read_index(folder).get("model") for folder in folders],
        "inputs": [read_index(folder).get("inputs") for folder in folders],
        "command": index.get("command"),
        "settings": index.get("settings"),
        "versions": versions(),
    }
    write_json(out / REPLICATES, result)
    return found


def _figures(folder: Path) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Name, label and entry of each line of a finished evaluation."""
    for name in read_index(folder)["measures"]:
        result = read_measure(folder / f"{name}.json")
        extractor = name.partition("-")[2]
        label = result["metric"] + (f" ({extractor})" if extractor else "")
        rows = result["details"].get("rows")
        if rows:
            for row in rows:
                yield f"{name} {row['name']}", f"{label} {row['name']}", row
        else:
            yield name, label, result
