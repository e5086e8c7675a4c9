"""Which doses a metric notices, and one result file a metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from roentgen.experiments.sensitivity.samples import SIDE, KnownImages, Reader, World, changed
from roentgen.experiments.sensitivity.scores import SPACES, Metric, in_space, train_in_space
from roentgen.metrics.adherence.scored import MIN_CASES
from roentgen.metrics.memorisation import damage
from roentgen.metrics.memorisation.copies import near_duplicate_threshold
from roentgen.metrics.memorisation.planted import planted_recall
from roentgen.metrics.result import Context, write_result


def judge_doses(entries: Sequence[dict[str, Any]], noise: tuple[float, float], worse: int) -> list[dict[str, Any]]:
    """``entries`` with ``outside``: "worse", "better" or "" (within the noise of undamaged images)."""
    low, high = noise
    judged = []
    for entry in entries:
        value = entry["value"]
        side = 1 if value > high else -1 if value < low else 0
        judged.append({**entry, "outside": "" if side == 0 else "worse" if side == worse else "better"})
    return judged


def noticed_from(entries: Sequence[Mapping[str, Any]], name: str) -> int | None:
    """Place of the first dose of damage ``name`` from which on all are noticed; None if the strongest is not."""
    doses = [entry for entry in entries if entry["damage"] == name]
    place = None
    for number in reversed(range(len(doses))):
        if doses[number]["outside"] != "worse":
            break
        place = number
    return place


def write_metric(
    out: Path,
    metric: Metric,
    entries: list[dict[str, Any]],
    undamaged: float,
    noise: tuple[float, float],
    start: KnownImages,
    world: World,
    context: Context,
) -> None:
    judged = judge_doses(entries, noise, metric.about.worse)
    n = len(start)
    warnings = []
    if metric.key == "fid" and n < start.features.shape[1]:
        warnings.append(f"n = {n} is below the feature dimension {start.features.shape[1]}: distances are too high")
    if metric.key == "laterality":
        n = int((start.sides != 0).sum())
        if n < 30:
            warnings.append(f"{n} findings with a side: too few to notice a part of them on the wrong side")
    if metric.key == "auroc":
        counts = [(int((column == 1).sum()), int((column == 0).sum())) for column in start.labels.T]
        in_macro = [f for f, c in zip(world.findings, counts, strict=True) if min(c) >= MIN_CASES and f != "No Finding"]
        warnings.append(f"{len(in_macro)} finding(s) with {MIN_CASES} cases in the macro: {', '.join(in_macro)}")
    if not np.isfinite(undamaged):
        warnings.append("not measurable on these images")
    methods = {
        "halves": "central 95 % over random halves of the undamaged images by patient, moved to the value",
        "lookup": "central 95 % over random halves of the undamaged images by patient, moved to the value",
        "patients": "95 % bootstrap by patient of the undamaged images, moved to the value",
        "rows": "95 % bootstrap by patient of the undamaged images, moved to the value",
        "pairs": "95 % bootstrap over undamaged image pairs, moved to the value",
    }
    write_result(
        out / f"{metric.key}.json",
        metric=f"{metric.about.title} of undamaged images, and under known damage",
        value=undamaged,
        ci=noise,
        ci_method=methods[metric.noise],
        n=n,
        context=context,
        warnings=warnings,
        details={
            "title": metric.about.title,
            "digits": metric.about.digits,
            "higher_is_worse": metric.about.worse == 1,
            "images": len(start),
            "compared_with": len(world.real),
            "train": len(world.train),
            "damages": judged,
            "claims": [
                {"damage": name, "noticed_from": _label(judged, name)}
                for name in metric.about.claims
                if any(entry["damage"] == name for entry in judged)
            ],
            "beyond": [
                {"damage": name, "noticed_from": _label(judged, name)}
                for name in dict.fromkeys(entry["damage"] for entry in judged)
                if name not in metric.about.claims and noticed_from(judged, name) is not None
            ],
            "fooled": {
                name: [e["label"] for e in judged if e["damage"] == name and e["outside"] == "better"]
                for name in dict.fromkeys(e["damage"] for e in judged if e["outside"] == "better")
            },
        },
    )


def _label(entries: Sequence[Mapping[str, Any]], name: str) -> str | None:
    place = noticed_from(entries, name)
    return None if place is None else str([entry for entry in entries if entry["damage"] == name][place]["label"])


def write_planted(out: Path, world: World, reader: Reader, context: Context, *, count: int, seed: int) -> None:
    """Recall of the search for near-duplicates on copies of training images, in features and in pixels."""
    train, real = world.train, world.real
    numbers = np.random.default_rng([seed, 2]).choice(len(train), min(count, len(train)), replace=False)
    copies = {}
    for kind, make in damage.PLANTED.items():
        pixels = changed(train.pixels[numbers], lambda image, row, make=make: make(image))  # type: ignore[misc]
        copies[kind] = reader.again(train.take(numbers), pixels, f"{kind} copies")
    spaces: dict[str, dict[str, Any]] = {}
    for space, title in SPACES.items():
        pool = train_in_space(space, world)
        threshold = near_duplicate_threshold(in_space(space, real), pool)
        kinds = planted_recall(
            {kind: in_space(space, sample) for kind, sample in copies.items()},
            numbers,
            pool,
            threshold=threshold,
            views=len(pool) // len(train),
        )
        spaces[space] = {
            "title": title,
            "threshold": threshold,
            "kinds": {kind: found.as_dict() for kind, found in kinds.items()},
        }
    first = spaces["features"]["kinds"]["exact"]
    write_result(
        out / "planted.json",
        metric="recall of the search for near-duplicates on planted copies of training images",
        value=first["value"],
        ci=first["ci"],
        ci_method="95 % Wilson",
        n=first["n"],
        context=context,
        details={
            "kinds": {
                "exact": "unchanged",
                "cropped": f"central {damage.CROPPED:.0%} of each side, brought back to size",
                "blurred": f"Gaussian, sigma {damage.BLURRED:g} px of {SIDE}",
                "brighter": f"+{damage.BRIGHTER:g} grey levels",
            },
            "spaces": spaces,
            "unseen": len(real),
            "train": len(train),
        },
    )
