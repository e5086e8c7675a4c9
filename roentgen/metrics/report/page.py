"""From the results of a suite to its report: which lines, plots and pictures, and how pictures were chosen."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from roentgen.errors import UserError
from roentgen.files import write_atomic
from roentgen.images import read_image
from roentgen.metrics.adherence.scored import SHOWN
from roentgen.metrics.measures import MEASURES
from roentgen.metrics.memorisation.nearness import DISTANCE, NEAREST
from roentgen.metrics.report import plots
from roentgen.metrics.report.html import Line, Panel, Picture, Plot, Report, number, render, spelled
from roentgen.metrics.report.tables import table
from roentgen.metrics.result import BOUNDS, read_measure, rows_of
from roentgen.metrics.suite import Outcome, read_evaluation

if TYPE_CHECKING:
    from roentgen.metrics.image_set import ImageSet
    from roentgen.metrics.measure import ByFinding

REPORT = "report.html"
SHOWING = 12  # pictures of a panel
ALIKE = 2  # of the same findings in the panels of best and worst
PAIRS = 8  # pairs of a panel
Written = Mapping[str, Any]


def write_report(
    out: Path, outcome: Outcome, *, command: str, title: str, spread: Mapping[str, Written] | None = None
) -> Path:
    """Write ``report.html`` into ``out`` and return its path; ``spread`` as ``write_replicates`` gives it."""
    inputs = outcome.inputs
    first = next(iter(outcome.results.values()), None)
    counted = f"{len(inputs.synthetic):,} generated images against {len(inputs.real):,} real ones"
    if inputs.train is not None:
        counted += f"; {len(inputs.train):,} training images"
    report = Report(
        title=title,
        subtitle=f"{counted}. Research only, not for diagnosis.",
        lines=lines(outcome.results),
        warnings=inputs.notes,
        missing=[(_label(name), reason) for name, reason in outcome.missing],
        plots=drawings(outcome.results),
        panels=panels(out, outcome),
        tables=[*([] if spread is None else [spread_table(spread)]), *tables(outcome.results)],
        conditions={} if first is None else conditions(outcome, first),
        command=command,
    )
    path = out / REPORT
    write_atomic(path, render(report).encode())
    return path


def lines(results: Mapping[str, Written]) -> list[Line]:
    """Lines of the summary: one a result, or one for each of its rows (such as precision at 5, 10 and 50)."""
    return [
        Line(
            measure=f"{result['metric']} {row['name']}" if "name" in row else result["metric"],
            group=row.get("group", name.partition("-")[2] or _short(result["extractor"])),
            entry=row,
            better=result["details"].get("better", ""),
            warnings=result["warnings"],
        )
        for name, result in results.items()
        for row in rows_of(result)
    ]


def markdown(folder: Path) -> str:
    """The summary of a finished evaluation in ``folder`` for a document: each value with its floor and ceiling."""
    results = read_evaluation(folder)[1]
    first = next(iter(results.values()))
    summary = lines(results)
    shown = [name for name in BOUNDS if name != "reconstructed" or any(line.entry.get(name) for line in summary)]
    often = Counter(line.measure for line in summary)
    rows = [
        [
            f"{line.measure} ({line.group})" if often[line.measure] > 1 else line.measure,
            spelled(line.entry),
            *(
                spelled(bound) + (f" ({bound['what']})" if bound and bound.get("what") else "")
                for bound in map(line.entry.get, shown)
            ),
        ]
        for line in summary
    ]
    # One note of several that differ in numbers alone.
    notes = {re.sub(r"\d+", "", note): note for result in reversed(results.values()) for note in result["warnings"]}
    model, drawn = first["model"], ""
    if (folder / "generation.json").is_file():
        how = json.loads((folder / "generation.json").read_text(encoding="utf-8"))
        drawn = (
            f", {how['steps']} steps of {how['sampler']}, guidance {how['guidance']:g}, "
            f"{how['dtype'].removeprefix('torch.')}"
        )
    findings = [
        [row["finding"].replace("_", " "), str(row["positives"]), spelled(row), spelled(row.get("ceiling"))]
        for row in results.get("auroc", {}).get("details", {}).get("findings", [])
        if row.get("value") is not None
    ]
    return "\n\n".join(
        [
            table(["measure", "generated", *shown], rows),
            *([table(["AUROC", "images that ask for it", "generated", "real"], findings)] if findings else []),
            f"Brackets: 95 % intervals. Model {model['name']}, hash `{model['hash']}`{drawn}; features "
            f"{', '.join(dict.fromkeys(_short(result['extractor']) for result in results.values()))}.",
            *(f"Note: {note}." for note in reversed(notes.values())),
            f"Made by `{first['command']}`.",
        ]
    )


# Six figures that stand for the rest: measure, what a reader calls it, which way is better.
QUALITY = {
    "auroc": ("Findings of the prompt seen by a classifier (AUROC)", "higher"),
    "laterality": ("Findings on the side that the prompt names", "higher"),
    "fid": ("Fréchet distance to real images (classifier features)", "lower"),
    "coverage": ("Real images with a generated neighbour (coverage)", "higher"),
    "ms_ssim_within": ("Likeness of images of one prompt (MS-SSIM)", "as real"),
    "near_copies": ("Near-copies of training images (share)", "lower"),
}


def quality(folder: Path) -> str:
    """The six figures of ``QUALITY`` of a finished evaluation in ``folder``, as a Markdown table of a front page."""
    results = {name: read_measure(folder / f"{name}.json") for name in QUALITY}
    rows = []
    for name, (words, better) in QUALITY.items():
        details = results[name]["details"]
        bounds = [spelled(details.get(bound)) for bound in ("ceiling", "floor")]
        if better == "lower":  # the floor of a distance is what real images score
            bounds = [bounds[1], "–"]
        rows.append([words, better, spelled(results[name]), *bounds])
    first = results["auroc"]
    return "\n\n".join(
        [
            table(["measure", "better", "generated", "real images", "by chance"], rows),
            f"{first['n']:,} images of `{first['model']['name']}` ({first['model']['hash']}) beside real images of "
            f"patients that it was not trained on; brackets: 95 % intervals.",
        ]
    )


def drawings(results: Mapping[str, Written]) -> list[Plot]:
    """All plots that the results have data for, in their order."""
    found: list[Plot] = []
    curves: dict[str, Any] = {}
    for name, result in results.items():
        details, how = result["details"], _by_finding(name)
        features = _short(result["extractor"])
        of = "" if "-" not in name else f", {features}"
        if how is not None and details.get("findings"):
            found.append(_finding_plot(how, result, of))
        if details.get("by_n"):
            curves = details["by_n"]
            limit = results.get(name.replace("fid", "fd_infinity", 1), {}).get("value")
            limits = {"generated": limit} if limit is not None else {}
            axis = f"Fréchet distance ({features} features)"
            found.append(
                Plot(
                    f"Fréchet distance against n{of}",
                    plots.against_n(curves, axis=axis, limits=limits),
                    "Random subsets of n images on each side. The distance falls with n for real images too: what lies "
                    "between the curves at one n is the model's. Distances at different n cannot be compared.",
                    "; ".join(
                        f"{curve}: {number(points[-1]['value'])} at n = {points[-1]['n']}"
                        for curve, points in curves.items()
                    ),
                )
            )
        if details.get("reliability"):
            found.append(
                Plot(
                    f"Reliability of the classifier{of}",
                    plots.reliability(details["reliability"]),
                    "All findings together, in ten bins of the predicted probability; vertical lines: 95 % intervals "
                    "(Wilson). Below: how many labels are in each bin. On generated images a label is what the prompt "
                    "says.",
                    "observed share of positives against predicted probability",
                )
            )
        if histogram := details.get("histogram"):
            found.append(
                Plot(
                    f"Distance to the nearest image{of}",
                    plots.histograms(
                        histogram["edges"], histogram["shares"], axis=f"{histogram['unit']} ({features} features)"
                    ),
                    "Copies of training images would show as generated images far to the left of the others. A "
                    "training set larger than the held-out one has nearer neighbours by chance; the share in the "
                    "summary is taken at equal size.",
                    f"share nearer to training {number(result['value'])}",
                )
            )
    return found


def _finding_plot(how: ByFinding, result: Written, of: str) -> Plot:
    rows = result["details"]["findings"]
    known = [row for row in rows if row.get("value") is not None]
    without = [row["finding"].replace("_", " ") for row in rows if row.get("value") is None]
    caption = "Bars: generated images; lines: 95 % intervals; n: images with the finding."
    if any(row.get("ceiling") for row in known):
        caption += " Diamonds: real images."
    if any(row.get("floor") for row in known):
        caption += " Ticks: two halves of the real images."
    if without:
        caption += f" Without a value (no cases or no controls): {', '.join(without)}."
    told = "; ".join(f"{row['finding']} {number(row['value'])}" for row in known)
    return Plot(f"{how.title}{of}", plots.finding_bars(known, axis=how.axis, chance=how.chance), caption, told)


def tables(results: Mapping[str, Written]) -> list[tuple[str, str, Sequence[str], Sequence[Sequence[str]]]]:
    """Figures by finding, and memorisation by how often a prompt was seen."""
    found: list[tuple[str, str, Sequence[str], Sequence[Sequence[str]]]] = []
    for name, result in results.items():
        rows = result["details"].get("findings")
        if rows and _by_finding(name):
            body = [
                [
                    row["finding"].replace("_", " "),
                    spelled(row),
                    spelled(row.get("ceiling")),
                    str(row.get("positives", row.get("n", "–"))),
                ]
                for row in rows
                if row.get("value") is not None
            ]
            about = f"By finding; brackets: {result['ci_method'].replace('none for the mean; by finding: ', '')}"
            title = f"{result['metric']}, {_short(result['extractor'])}"
            found.append((title, about, ["finding", "generated", "real images", "n"], body))
        if seen := result["details"].get("by_frequency"):
            body = [[row["seen"], spelled(row), str(row["n"])] for row in seen]
            about = "By how often the prompt's text occurs among the training texts (rarely: up to ten times)"
            found.append((result["metric"], about, ["prompt seen", "share", "n"], body))
    return found


def spread_table(spread: Mapping[str, Written]) -> tuple[str, str, Sequence[str], Sequence[Sequence[str]]]:
    """Mean and spread over generation seeds, beside the first draw's own interval."""
    body = [
        [entry["metric"], number(entry["value"]), number(entry["sd"]), spelled(entry), spelled(entry["first"])]
        for entry in spread.values()
    ]
    n = next((entry["n"] for entry in spread.values()), 0)
    about = (
        f"The same prompts drawn {n} times from different seeds. The interval over seeds is Student's t of the mean: "
        "it holds the luck of the draw, not that of which prompts and real images there are, which is in the first "
        "draw's own interval. Everything else in this report is of the first draw."
    )
    return "Over generation seeds", about, ["measure", "mean", "sd", "over seeds", "first draw"], body


def panels(out: Path, outcome: Outcome) -> list[Panel]:
    """Random images, the best and the worst by adherence, and the nearest training images."""
    inputs = outcome.inputs
    images, texts = inputs.synthetic.paths, [str(text) for text in inputs.synthetic.table["text"]]
    rng = np.random.default_rng(inputs.seed)
    chosen = np.sort(rng.permutation(len(images))[:SHOWING])

    def one(row: int, note: str = "") -> Picture:
        said = texts[row] or images[row].name
        return Picture([read_image(images[row])], [""], f"{said} {note}".strip(), [images[row]])

    found = [
        Panel("Random", f"{len(chosen)} generated images, drawn with seed {inputs.seed}.", [one(i) for i in chosen])
    ]
    shown = _column(out / "auroc.images.csv", SHOWN, len(images))
    if shown is not None:
        known = np.flatnonzero(np.isfinite(shown))
        order = known[np.argsort(-shown[known], kind="stable")]
        half = len(order) // 2
        asked = [tuple(np.flatnonzero(labels == 1)) for labels in inputs.synthetic.labels(inputs.synthetic.findings)]
        about = (
            "By the share of real images without the finding that the classifier scores lower, mean over the findings "
            f"that the prompt names (in brackets); at most {ALIKE} of the same findings. The classifier can be wrong, "
            "so look."
        )
        for title, rows in (("Best by adherence", order[:half]), ("Worst by adherence", order[::-1][:half])):
            picked = _varied(rows, asked)
            if picked:
                found.append(Panel(title, about, [one(i, f"[{shown[i]:.2f}]") for i in picked]))
    gap = _column(out / "nearest.images.csv", DISTANCE, len(images))
    place = _column(out / "nearest.images.csv", NEAREST, len(images))
    if inputs.train is not None and gap is not None and place is not None:
        found.append(_neighbours(inputs.synthetic, inputs.train, gap, place.astype(int)))
    return found


def _varied(rows: NDArray[np.integer], kinds: Sequence[Hashable]) -> list[int]:
    """The first ``SHOWING`` of ``rows`` with no more than ``ALIKE`` of a kind."""
    taken: Counter[Hashable] = Counter()
    chosen: list[int] = []
    for row in rows.tolist():
        if taken[kinds[row]] < ALIKE and len(chosen) < SHOWING:
            taken[kinds[row]] += 1
            chosen.append(row)
    return chosen


def _neighbours(synthetic: ImageSet, train: ImageSet, gap: Any, place: Any) -> Panel:
    pictures = []
    for row in np.argsort(gap, kind="stable")[:PAIRS]:
        near = int(place[row])
        paths = [synthetic.paths[row], train.paths[near]]
        said, other = (str(images.table["text"].iloc[i]) for images, i in ((synthetic, row), (train, near)))
        note = f"Distance {number(gap[row])} · prompt: {said or '–'} · training text: {other or '–'}"
        pair = [read_image(path) for path in paths]
        pictures.append(Picture(pair, ["generated", "nearest training image"], note, paths))
    about = f"The {len(pictures)} generated images that are nearest to a training image in the classifier's features."
    return Panel("Nearest training neighbours", about, pictures)


def _column(path: Path, name: str, n: int) -> NDArray[np.float64] | None:
    """Values (N,) of single images from a measure's table; None where that measure was not computed."""
    if not path.exists():
        return None
    try:
        values = pd.read_csv(path)[name].to_numpy(dtype=np.float64)
    except (OSError, ValueError, KeyError):
        raise UserError(f"{path} is damaged; delete it and {path.name.partition('.')[0]}.json, and run again") from None
    return values if len(values) == n else None


def conditions(outcome: Outcome, first: Written) -> dict[str, Any]:
    """What a reader needs to repeat the run."""
    found: dict[str, Any] = {}
    for name, said in first["inputs"].items():
        found[name] = f"{said['source']}; {said['n']:,} images of {said['patients']:,} patients; sha256 {said['hash']}"
        if said["left_out"]:
            found[f"{name}, left out"] = said["left_out"]
    if first["model"]:
        found["model"] = first["model"]
    for extractor in outcome.inputs.extractors:
        found[f"extractor {_base(extractor.name)}"] = (
            f"sha256 {extractor.hash}; {extractor.dim:,} features; {extractor.chain}"
        )
    found["intervals"] = {
        MEASURES[name.partition("-")[0]].label: result["ci_method"]
        for name, result in outcome.results.items()
        if "-" not in name
    }
    commit = first["git_commit"] or "not from a checkout"
    found |= {
        "settings": first["settings"],
        "seed": first["seed"],
        "git commit": f"{commit}{' (with changes)' if first['git_modified'] else ''}",
        "versions": first["versions"],
    }
    return found


def _by_finding(name: str) -> ByFinding | None:
    """How the result ``name`` is drawn by finding; None where its measure is not."""
    measure = MEASURES.get(name.partition("-")[0])
    return None if measure is None else measure.by_finding


def _label(name: str) -> str:
    measure, _, extractor = name.partition("-")
    if measure not in MEASURES:
        return name
    return MEASURES[measure].label.rstrip(",") + (f", {extractor}" if extractor else "")


def _base(name: str) -> str:
    return Path(name).name if "/" in name and Path(name).is_absolute() else name


def _short(extractor: str) -> str:
    return extractor.partition(", sha256")[0]
