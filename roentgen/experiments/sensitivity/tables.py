"""The tables of a run, as Markdown from its result files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from roentgen.errors import UserError
from roentgen.experiments.sensitivity.scores import METRICS
from roentgen.metrics.memorisation.copies import QUANTILE
from roentgen.metrics.report.tables import table
from roentgen.metrics.result import read_result

COLUMNS = 6
"""Metrics in one table, so that it fits on a page."""


def report(folder: Path) -> str:
    """Markdown of what ``measure`` wrote to ``folder``; UserError if a result is missing or of another run."""
    results = {metric.key: read_result(folder / f"{metric.key}.json") for metric in METRICS}
    planted = read_result(folder / "planted.json")
    commands = {str(result["command"]) for result in (*results.values(), planted)}
    if len(commands) != 1:
        raise UserError(f"{folder}: results of {len(commands)} different runs; run eval/sensitivity.py again")
    kinds = [metric.key for metric in METRICS]
    fid_result = results["fid"]
    details = fid_result["details"]
    parts = [
        f"{details['images']} real test images, damaged, against {details['compared_with']} others of other patients; "
        f"{details['train']} training images; features and scores: {fid_result['extractor']}. Bold: outside the range "
        "of undamaged images (second row) to the worse side. A dagger: outside it to the better side, so the metric "
        "praises the damage.",
        *(_table(results, kinds[start : start + COLUMNS]) for start in range(0, len(kinds), COLUMNS)),
        "Kinds are findings and view. What each metric notices, and from which dose on: first of what it is said to "
        "measure, then besides. The range of undamaged images is a 95 % one, so a few entries are there by chance.",
        _claims_table(results),
        f"Recall of the search for near-duplicates on {planted['n']} planted copies of each kind (the threshold flags "
        f"{QUANTILE:.0%} of {planted['details']['unseen']} unseen real images):",
        _planted_table(planted),
        *dict.fromkeys(f"Note, {r['details']['title']}: {w}." for r in results.values() for w in r["warnings"]),
        f"Made by `{fid_result['command']}`.",
    ]
    return "\n\n".join(parts)


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _table(results: Mapping[str, Mapping[str, Any]], keys: Sequence[str]) -> str:
    chosen = [results[key] for key in keys]
    rows = [["undamaged", "", *(_number(r["value"], r["details"]["digits"]) for r in chosen)]]
    span = []
    for result in chosen:
        low, high = (_number(edge, result["details"]["digits"]) for edge in result["ci"])
        span.append(f"{low} to {high}")
    rows.append(["range of undamaged", "", *span])
    for number, entry in enumerate(chosen[0]["details"]["damages"]):
        cells = []
        for result in chosen:
            each = result["details"]["damages"][number]
            text = _number(each["value"], result["details"]["digits"])
            cells.append({"worse": f"**{text}**", "better": f"{text} †"}.get(each["outside"], text))
        rows.append([entry["damage"], entry["label"], *cells])
    return table(["damage", "dose", *(r["details"]["title"] for r in chosen)], rows)


def _claims_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [_claims(result) for result in results.values()]
    words = table(["metric", "of what it claims to measure", "besides"], rows)
    return words.replace(" ---: |", " --- |")  # words, not numbers


def _claims(result: Mapping[str, Any]) -> list[str]:
    details = result["details"]
    strongest = {entry["damage"]: entry["label"] for entry in details["damages"]}
    claims = []
    for claim in details["claims"]:
        start = claim["noticed_from"]
        if start is None:
            claims.append(f"**does not notice {claim['damage']}** (up to {strongest[claim['damage']]})")
        else:
            claims.append(f"{claim['damage']} from {start}")
    besides = [f"{entry['damage']} from {entry['noticed_from']}" for entry in details["beyond"]]
    besides += [f"praises {name} ({', '.join(doses)})" for name, doses in details["fooled"].items()]
    return [details["title"], "; ".join(claims), "; ".join(besides) or "–"]


def _planted_table(planted: Mapping[str, Any]) -> str:
    spaces = planted["details"]["spaces"]
    rows = []
    for kind, what in planted["details"]["kinds"].items():
        cells = []
        for space in spaces.values():
            entry = space["kinds"][kind]
            low, high = entry["ci"]
            cells.append(f"{entry['value']:.2f} [{low:.2f}, {high:.2f}]")
            cells.append(f"{entry['details']['right_source']:.2f}")
        rows.append([f"{kind} ({what})", *cells])
    header = ["copy", *(cell for space in spaces.values() for cell in (f"found in {space['title']}", "right source"))]
    return table(header, rows)
