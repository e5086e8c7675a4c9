"""The augmentation-gain experiment for readers: Markdown tables and a plot, from the entries of its JSON."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from roentgen.experiments.augmentation.arms import ARMS
from roentgen.metrics.report.plots import BLUE, COLOURS, INK, LINES, MARKERS, STYLE, WIDTH
from roentgen.metrics.report.tables import figure, table

Entry = Mapping[str, Any]
MINUS = "−"


def markdown(result: Entry) -> str:
    """The tables and notes of ``augmentation_gain.json``."""
    details = result["details"]
    entries, test, recipe = details["entries"], details["test"], details["recipe"]
    subsets = list(dict.fromkeys(entry["subset"] for entry in entries))
    by_place = {(entry["arm"], entry["subset"]): entry for entry in entries}
    baseline, primary = details["baseline"], details["primary"]["arm"]
    labels = list(dict.fromkeys(entry["arm"] for entry in entries))
    parts = [
        f"{recipe['net']} classifier, {recipe['size']} px, {recipe['images']:,} images seen by every arm "
        "but where its name says half, "
        f"{details['seeds']} seed{'s' * (details['seeds'] != 1)}; "
        f"{test['images']} test images of {test['patients']} patients that no training saw. "
        f"First row: macro AUROC over {len(details['findings'])} findings; below: the difference to it at the same "
        "real n (bold: significant after Holm's correction over the whole table).",
        _gains(labels, subsets, by_place, baseline, "gain", "auroc"),
    ]
    if any("rare_gain" in entry for entry in entries):
        parts += [
            f"The same over the rare findings alone ({', '.join(details['rare'])}):",
            _gains(labels, subsets, by_place, baseline, "rare_gain", "rare"),
        ]
    parts += [
        f"By finding, {primary} (AUROC of {baseline}, and the difference; bold: significant after correction over the "
        "findings of a column):",
        _findings(primary, subsets, by_place, baseline, test["positives"]),
    ]
    if any(entry["groups"] for entry in entries):
        parts += [
            "Gaps in macro AUROC between groups, best minus worst, with the change against "
            f"{baseline} (an interval of a gap is never below 0: noise alone makes one), {subsets[-1]}:",
            _groups(labels, subsets[-1], by_place),
        ]
    if any(entry["synthetic"] for entry in entries):
        parts += [
            "Synthetic images trained on (in brackets how many of them are distinct, where a set was repeated):",
            _amounts(labels, subsets, by_place),
        ]
    parts += [
        "Arms:\n\n" + "\n".join(f"- `{name}`: {what}" for name, what in details["arms"].items()),
        f"Brackets: 95 % intervals over patients and seeds. {details['selection']}",
        *(f"Left out: {reason}." for reason in details["left_out"]),
        *(f"Note: {warning}." for warning in result["warnings"]),
        f"Made by `{result['command']}`.",
    ]
    return "\n\n".join(parts)


def signed(entry: Entry | None) -> str:
    """``+0.012 [−0.003, +0.027]``, bold where significant; an en dash where nothing was measured."""
    if entry is None or entry["value"] is None:
        return "–"
    numbers = [f"{number:+.3f}".replace("-", MINUS) for number in (entry["value"], *entry["ci"])]
    text = f"{numbers[0]} [{numbers[1]}, {numbers[2]}]"
    return f"**{text}**" if entry.get("significant") else text


def _gains(
    labels: Sequence[str],
    subsets: Sequence[str],
    by_place: Mapping[tuple[str, str], Entry],
    baseline: str,
    gain: str,
    level: str,
) -> str:
    rows = [[baseline, *(figure(by_place[baseline, subset][level], digits=3) for subset in subsets)]]
    rows += [
        [label, *(signed(by_place.get((label, subset), {}).get(gain)) for subset in subsets)]
        for label in labels
        if label != baseline
    ]
    return table(["arm", *map(_subset, subsets)], rows)


def _findings(
    arm: str,
    subsets: Sequence[str],
    by_place: Mapping[tuple[str, str], Entry],
    baseline: str,
    positives: Mapping[str, int],
) -> str:
    here = [subset for subset in subsets if (arm, subset) in by_place]
    rows: list[list[str]] = []
    for number, entry in enumerate(by_place[baseline, here[0]]["findings"]):
        name = entry["finding"]
        cells = []
        for subset in here:
            real = by_place[baseline, subset]["findings"][number]["auroc"]
            cells.append(f"{real['value']:.3f}, {signed(by_place[arm, subset]['findings'][number].get('gain'))}")
        rows.append([name.replace("_", " "), str(positives[name]), *cells])
    return table(["finding", "test positives", *map(_subset, here)], rows)


def _groups(labels: Sequence[str], subset: str, by_place: Mapping[tuple[str, str], Entry]) -> str:
    here = [by_place[label, subset] for label in labels if (label, subset) in by_place]
    groupings = list(here[0]["groups"])
    rows = []
    for entry in here:
        cells = []
        for grouping in groupings:
            found = entry["groups"][grouping]
            change = f"; {signed(found['change'])}" if "gain" in entry else ""
            cells.append(figure(found["gap"], digits=3) + change)
        rows.append([entry["arm"], *cells])
    header = [f"{name} ({', '.join(here[0]['groups'][name]['groups'])})" for name in groupings]
    return table(["arm", *header], rows)


def _amounts(labels: Sequence[str], subsets: Sequence[str], by_place: Mapping[tuple[str, str], Entry]) -> str:
    def cell(entry: Entry | None) -> str:
        if entry is None:
            return "–"
        used, distinct = entry["synthetic"], entry["synthetic_distinct"]
        return f"{used:,}" + (f" ({distinct:,})" if distinct < used else "")

    made = [label for label in labels if any(by_place.get((label, s), {}).get("synthetic") for s in subsets)]
    rows = [[label, *(cell(by_place.get((label, subset))) for subset in subsets)] for label in made]
    return table(["arm", *map(_subset, subsets)], rows)


def _subset(name: str) -> str:
    """ "n5000-cut20" as "n = 5,000, rare cut to 20"."""
    size, _, cut = name.removeprefix("n").partition("-cut")
    return f"n = {int(size):,}" + (f", rare cut to {cut}" if cut else "")


def in_words(label: str) -> str:
    """An arm as plots name it: "real+x1@g4" as "real + 1 × synthetic (g4)"."""
    name, _, source = label.partition("@")
    return ARMS[name].short + (f" ({source})" if source else "")


FAMILIES = ("without synthetic images", "synthetic images alone", "mixed", "pretraining, rare findings")


def family(label: str) -> str:
    """Which of ``FAMILIES`` an arm is drawn with."""
    name = label.partition("@")[0].removeprefix("classic-")
    if name.startswith("synthetic"):
        return FAMILIES[1]
    if name.startswith(("pretrain", "rare")):
        return FAMILIES[3]
    return FAMILIES[2] if "+" in name else FAMILIES[0]


def plot(result: Entry) -> bytes:
    """PNG: AUROC against real n, arms of a family in a panel with the baseline; beside it all gains with intervals."""
    details = result["details"]
    entries, baseline = details["entries"], details["baseline"]
    labels = [name for name in dict.fromkeys(entry["arm"] for entry in entries) if name != baseline]
    subsets = list(dict.fromkeys(entry["subset"] for entry in entries))
    by_place = {(entry["arm"], entry["subset"]): entry for entry in entries}
    shown = [name for name in FAMILIES if any(family(label) == name for label in labels)]
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        height = max(2.5 * len(shown), 1.5 + 0.1 * len(labels) * max(2, len(subsets)))
        drawing = Figure(figsize=(2 * WIDTH, height), layout="constrained")
        panels = drawing.subplot_mosaic([[name, "gains"] for name in shown], width_ratios=(1.3, 1.15))
        first = panels[shown[0]]
        for name in shown:
            panel = panels[name]
            if panel is not first:
                panel.sharey(first)
                panel.sharex(first)
            _levels(panel, [label for label in labels if family(label) == name], subsets, by_place, baseline)
            panel.set_title(name, loc="left", fontsize=9)
        panels[shown[-1]].set_xlabel("real training images")
        _forest(panels["gains"], labels, subsets, by_place)
        panels["gains"].set_xlabel(f"macro AUROC minus {baseline}'s (filled: significant)")
        drawing.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()


def _levels(
    panel: Axes,
    labels: Sequence[str],
    subsets: Sequence[str],
    by_place: Mapping[tuple[str, str], Entry],
    baseline: str,
) -> None:
    """AUROC of the baseline, with its band, and of ``labels`` against real n."""
    plain = [subset for subset in subsets if "-cut" not in subset]
    for number, label in enumerate([baseline, *labels]):
        points = [(s, by_place[label, s]["auroc"]) for s in plain if (label, s) in by_place]
        if not points:
            continue
        real = label == baseline
        # A little apart, or the intervals would lie on each other; the scale is logarithmic.
        apart = 1.0 if real else 1.025 ** (number - (len(labels) + 1) / 2)
        x = [int(subset[1:]) * apart for subset, _ in points]
        y = [entry["value"] for _, entry in points]
        style: Any = LINES[number // len(COLOURS) % len(LINES)]
        colour, marker = (INK, "o") if real else (COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)])
        width = 2.0 if real else 1.0
        panel.plot(
            x, y, linestyle=style, marker=marker, markersize=4, color=colour, linewidth=width, label=in_words(label)
        )
        low, high = zip(*(entry["ci"] for _, entry in points), strict=True)
        if real:
            panel.fill_between(x, low, high, color=INK, alpha=0.1, linewidth=0)
        else:
            panel.vlines(x, low, high, color=colour, linewidth=0.6, alpha=0.7)
    sizes = [int(subset[1:]) for subset in plain]
    panel.set_xscale("log")
    panel.set_xticks(sizes, [f"{n:,}" for n in sizes])
    panel.set_xticks([], minor=True)
    panel.set_ylabel("macro AUROC on test")
    panel.grid(color="#dddddd", linewidth=0.6)
    panel.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _forest(
    panel: Axes, labels: Sequence[str], subsets: Sequence[str], by_place: Mapping[tuple[str, str], Entry]
) -> None:
    """The gain of every arm at every subset with its interval."""
    for number, subset in enumerate(subsets):
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        named = False
        for place, label in enumerate(labels):
            gain = by_place.get((label, subset), {}).get("gain")
            if gain is None:
                continue
            y = -place - (number - (len(subsets) - 1) / 2) * 0.8 / len(subsets)
            panel.hlines(y, *gain["ci"], color=colour, linewidth=1)
            fill = colour if gain["significant"] else "white"
            text = None if named else _subset(subset)
            panel.plot(gain["value"], y, marker, color=colour, markerfacecolor=fill, markersize=4, label=text)
            named = True
    for place in range(len(labels) - 1):
        panel.axhline(-place - 0.5, color="#eeeeee", linewidth=0.6)
    panel.axvline(0, color=BLUE, linewidth=0.8)
    panel.set_yticks([-float(place) for place in range(len(labels))], [in_words(label) for label in labels])
    panel.set_ylim(0.5 - len(labels), 0.5)
    panel.grid(axis="x", color="#dddddd", linewidth=0.6)
    panel.legend(fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=min(3, len(subsets)))
