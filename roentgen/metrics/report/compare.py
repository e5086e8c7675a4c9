"""Finished evaluations side by side: each measure with its interval, and paired tests where the prompts are the same.

Values of single images pair by prompt and place among the images of that prompt. AUROC by finding pairs through the
same bootstrap over patients. Everything tested of a pair of models is corrected together (Holm; Benjamini-Hochberg
beside it). Frechet and kernel distances have no value of a single image: their intervals stand side by side, no more.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from roentgen.errors import UserError
from roentgen.files import explained, write_atomic
from roentgen.metrics.adherence.auroc import by_auroc, macro_auroc
from roentgen.metrics.adherence.scored import MIN_CASES, by_finding
from roentgen.metrics.measures import MEASURES
from roentgen.metrics.report import plots
from roentgen.metrics.report.html import Plot, Report, number, render, spelled
from roentgen.metrics.result import write_json
from roentgen.metrics.statistics import (
    Bootstrap,
    correct,
    paired_bootstrap,
    permutation_test,
    verdict,
)
from roentgen.metrics.suite import INDEX, read_evaluation
from roentgen.prompts import NO_FINDING
from roentgen.provenance import portable, versions

COMPARISON = "comparison.json"
LEVEL = 0.05


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation: its index, results by name, and tables of single images by measure."""

    name: str
    index: Mapping[str, Any]
    results: Mapping[str, Mapping[str, Any]]
    images: Mapping[str, pd.DataFrame]


def compare_folders(folders: Sequence[Path], out: Path, *, seed: int = 0, resamples: int = 1000) -> Path:
    """Write ``comparison.json`` and ``report.html`` into ``out``; return the report's path.

    Raises:
        UserError: fewer than two folders, one that holds no evaluation, or ``out`` holds an evaluation itself.
    """
    if len(folders) < 2:
        raise UserError("--compare needs at least two evaluations, as in --compare DIR DIR --out DIR")
    if len({folder.resolve() for folder in folders}) != len(folders):
        raise UserError("--compare names a folder twice; name each evaluation once")
    if (out / INDEX).exists():
        raise UserError(f"--out {out} holds an evaluation; choose another folder for the comparison")
    evaluations = _load(folders)
    warnings = [*_differences(evaluations), *_own_warnings(evaluations)]
    tests: dict[str, dict[str, Any]] = {}
    missing: list[tuple[str, str]] = []
    for a, b in combinations(evaluations, 2):
        try:
            tests[f"{a.name} - {b.name}"] = paired_tests(a, b, seed=seed, resamples=resamples)
        except UserError as reason:
            missing.append((f"paired tests of {a.name} and {b.name}", str(reason)))
    result = {
        "evaluations": {
            e.name: {"inputs": e.index.get("inputs"), "model": e.index.get("model"), "command": e.index.get("command")}
            for e in evaluations
        },
        "measures": {name: {e.name: _entry(e.results.get(name)) for e in evaluations} for name in _names(evaluations)},
        "tests": tests,
        "warnings": warnings,
        "not_computed": dict(missing),
        "seed": seed,
        "resamples": resamples,
        "versions": versions(),
    }
    write_json(out / COMPARISON, result)
    report = _report(evaluations, tests, warnings, missing, seed=seed, resamples=resamples, folders=folders, out=out)
    write_atomic(out / "report.html", render(report).encode())
    return out / "report.html"


def paired_tests(a: Evaluation, b: Evaluation, *, seed: int, resamples: int) -> dict[str, Any]:
    """Differences a - b on the same prompts, each with interval, p and corrected p.

    UserError (a reason for the report, no mistake) where no prompt is in both.
    """
    tests: dict[str, Any] = {}
    tested = [(m.name, column, name) for m in MEASURES.values() for column, name in m.tested.items()]
    for measure, column, name in tested:
        if measure in a.images and measure in b.images:
            x, y = paired(a.images[measure], b.images[measure])
            if len(x) >= 2 and column in x and column in y:
                mine, theirs = (part[column].to_numpy(dtype=np.float64) for part in (x, y))
                if (np.isfinite(mine) & np.isfinite(theirs)).sum() < 2:
                    continue
                groups = x["patient"].tolist()
                found = paired_bootstrap(mine, theirs, groups, bootstrap=Bootstrap(resamples, seed))
                swapped = permutation_test(mine, theirs, groups, seed=seed)
                tests[name] = {**found, "p": swapped["p"], "p_method": "permutation within patients"}
    if "auroc" in a.images and "auroc" in b.images:
        tests |= _auroc_tests(*paired(a.images["auroc"], b.images["auroc"]), seed=seed, resamples=resamples)
    if not tests:
        raise UserError("no prompt with values of single images is in both")
    known = {name: test for name, test in tests.items() if math.isfinite(test["p"])}
    corrected = correct(known, level=LEVEL)
    for test in corrected.values():
        test["said"] = verdict(test["value"], tuple(test["ci"]), a=a.name, b=b.name)
    return {**corrected, **{name: test for name, test in tests.items() if name not in known}}


def paired(a: pd.DataFrame, b: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of both tables that belong together: the same prompt, and the same place among its images."""
    places: list[dict[tuple[str, int], int]] = []
    for table in (a, b):
        seen: dict[str, int] = defaultdict(int)
        rows: dict[tuple[str, int], int] = {}
        for row, prompt in enumerate(table["prompt"].fillna("").astype(str)):
            if prompt:  # images without a prompt are no pairs
                rows[prompt, seen[prompt]] = row
                seen[prompt] += 1
        places.append(rows)
    common = [key for key in places[0] if key in places[1]]
    first, second = ([rows[key] for key in common] for rows in places)
    return a.iloc[first].reset_index(drop=True), b.iloc[second].reset_index(drop=True)


def _auroc_tests(a: pd.DataFrame, b: pd.DataFrame, *, seed: int, resamples: int) -> dict[str, Any]:
    """Difference of AUROC, macro and by finding, on the same prompts under the same bootstrap weights."""
    names = [str(c).removeprefix("score ") for c in a if str(c).startswith("score ") and c in b]
    names = [name for name in names if f"label {name}" in a and f"label {name}" in b]
    if len(a) < 2 or not names:
        return {}
    weights = Bootstrap(resamples, seed).weights(a["patient"].tolist())

    def matrix(table: pd.DataFrame, kind: str) -> NDArray[np.float64]:
        return table[[f"{kind} {name}" for name in names]].to_numpy(dtype=np.float64)

    labels = matrix(a, "label").copy()  # what pandas gives may be read-only
    other = matrix(b, "label")
    labels[~((labels == other) | (np.isnan(labels) & np.isnan(other)))] = np.nan  # the two must ask for the same
    both = [macro_auroc(matrix(t, "score"), labels, names, weights, leave_out=(NO_FINDING,)) for t in (a, b)]
    found: dict[str, Any] = {}
    if both[0].names:
        found["AUROC, macro"] = {**both[0].less(both[1]).test(), "n": len(a)}
    each = [by_finding(by_auroc, matrix(table, "score"), labels, names, weights) for table in (a, b)]
    for mine, theirs in zip(*each, strict=True):
        if mine.cases >= MIN_CASES:
            test = mine.less(theirs).test() | {"n": int(mine.known.sum())}
            found[f"AUROC, {mine.finding.replace('_', ' ')}"] = test
    return found


def _load(folders: Sequence[Path]) -> list[Evaluation]:
    found: list[Evaluation] = []
    for folder in folders:
        index, results = read_evaluation(folder)
        images = {}
        for table in (folder / f"{name}.images.csv" for name in results):
            if table.exists():
                with explained(f"{table} cannot be read", "run the evaluation again", ValueError):
                    images[table.name.partition(".")[0]] = pd.read_csv(table, dtype={"prompt": str, "patient": str})
        name = _unused(folder.resolve().name, [e.name for e in found])
        found.append(Evaluation(name, index, results, images))
    return found


def _unused(name: str, taken: Sequence[str]) -> str:
    number, chosen = 2, name
    while chosen in taken:
        chosen, number = f"{name} ({number})", number + 1
    return chosen


def _size(index: Mapping[str, Any]) -> Any:
    """Images of the synthetic set; None where a damaged index does not say."""
    inputs = index.get("inputs")
    synthetic = inputs.get("synthetic") if isinstance(inputs, dict) else None
    return synthetic.get("n") if isinstance(synthetic, dict) else None


def _differences(evaluations: Sequence[Evaluation]) -> list[str]:
    """What keeps values from being comparable at all."""
    first = evaluations[0]
    found = []
    for other in evaluations[1:]:
        for key, words in (("real", "other real images"), ("version", "another version of roentgen")):
            if first.index["key"].get(key) != other.index["key"].get(key):
                found.append(f"{other.name} was measured with {words} than {first.name}: its values do not compare")
        sizes = [_size(e.index) for e in (first, other)]
        if sizes[0] != sizes[1]:
            found.append(
                f"{first.name} has {sizes[0]} images and {other.name} {sizes[1]}: Fréchet distances, precision and "
                "recall depend on n and do not compare"
            )
        for name in set(first.results) & set(other.results):
            if first.results[name]["extractor"] != other.results[name]["extractor"]:
                found.append(f"{name} was measured with other extractors in {first.name} and {other.name}")
    return found


def _own_warnings(evaluations: Sequence[Evaluation]) -> list[str]:
    """What the evaluations warn of, measure by measure; once where all of them say the same."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for evaluation in evaluations:
        for result in evaluation.results.values():
            for warning in result["warnings"]:
                found[_title(result), warning].append(evaluation.name)
    return [
        f"{title}{'' if len(who) == len(evaluations) else ' in ' + ', '.join(who)}: {warning}"
        for (title, warning), who in found.items()
    ]


def _title(result: Mapping[str, Any]) -> str:
    return f"{result['metric']} · {result['extractor'].partition(', sha256')[0]}"


def _names(evaluations: Sequence[Evaluation]) -> list[str]:
    return list(dict.fromkeys(name for e in evaluations for name in e.results))


def _entry(result: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if result is None:
        return None
    bounds = {key: result["details"].get(key) for key in ("floor", "ceiling")}
    return {key: result[key] for key in ("value", "ci", "n", "warnings")} | bounds


def _report(
    evaluations: Sequence[Evaluation],
    tests: Mapping[str, Mapping[str, Any]],
    warnings: Sequence[str],
    missing: Sequence[tuple[str, str]],
    *,
    seed: int,
    resamples: int,
    folders: Sequence[Path],
    out: Path,
) -> Report:
    header = ["measure", *(e.name for e in evaluations), "floor", "ceiling", "better"]
    body, drawn = [], []
    for name in _names(evaluations):
        entries = [_entry(e.results.get(name)) for e in evaluations]
        first, result = next((e.name, e.results[name]) for e in evaluations if name in e.results)
        label, known = _title(result), _entry(result) or {}
        bounds = [number((known.get(key) or {}).get("value")) for key in ("floor", "ceiling")]
        body.append([label, *(spelled(entry) for entry in entries), *bounds, result["details"].get("better", "")])
        lines = {
            key: float(known[key]["value"])
            for key in ("floor", "ceiling")
            if (known.get(key) or {}).get("value") is not None
        }
        rows = [(e.name, entry or {}) for e, entry in zip(evaluations, entries, strict=True)]
        drawn.append(
            Plot(
                label,
                plots.side_by_side(rows, axis=label, lines=lines),
                f"95 % intervals; better: {result['details'].get('better', '')}. Floor and ceiling of {first}.",
                "; ".join(f"{who} {spelled(entry)}" for who, entry in rows),
            )
        )
    about = (
        "Brackets: 95 % intervals. The floor of a distance is between two halves of the real images, so at half of "
        "their number, where distances are larger; the report of each evaluation has both at equal n"
    )
    tables: list[Any] = [("Side by side", about, header, body)]
    for pair, found in tests.items():
        lines_of = [
            [
                name,
                spelled(test),
                _p(test.get("p")),
                _p(test.get("p_holm")),
                _p(test.get("p_bh")),
                str(test.get("n", "–")),
            ]
            for name, test in found.items()
        ]
        about = (
            "Differences on the same prompts, paired bootstrap by patient; p: permutation or bootstrap, then corrected "
            "over all lines of this table (Holm; Benjamini-Hochberg)"
        )
        tables.append((pair, about, ["measure", "difference", "p", "p, Holm", "p, BH", "n"], lines_of))
    return Report(
        title="Evaluations side by side",
        subtitle=f"{', '.join(e.name for e in evaluations)}. Research only, not for diagnosis.",
        lines=[],
        warnings=list(warnings),
        missing=list(missing),
        plots=drawn,
        panels=[],
        tables=tables,
        conditions={
            **{e.name: e.index.get("command", "") for e in evaluations},
            "seed": seed,
            "resamples": resamples,
            "versions": versions(),
        },
        command=f"roentgen eval --compare {' '.join(str(portable(f.resolve())) for f in folders)} "
        f"--out {portable(out.resolve())}",
    )


def _p(value: Any) -> str:
    if value is None or not math.isfinite(value):
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
