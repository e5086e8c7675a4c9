"""A whole evaluation: image sets in, one result file a measure out, kept as they come and never computed twice.

``roentgen eval`` and ``python eval/suite.py`` both end here. The folder holds ``evaluation.json`` (what was measured,
with what, and what could not be computed and why), a result file for each measure and extractor, the values of single
images beside it (``NAME.images.csv``, what paired tests read), and the report. A run that was killed goes on with the
measures that are missing; a folder of other inputs is refused.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from roentgen.devices import ALONE, Process
from roentgen.errors import UserError
from roentgen.files import files_sha256, read_json, sha256, write_atomic
from roentgen.folders import check_same
from roentgen.metrics.extractor import Extractor
from roentgen.metrics.extractors import load_extractor
from roentgen.metrics.features import Features, extract
from roentgen.metrics.image_set import ImageSet
from roentgen.metrics.measure import SUITES, VALIDATION, EvaluationInputs, Measure, Result, Unavailable
from roentgen.metrics.measures import MEASURES
from roentgen.metrics.reading import match_to_real
from roentgen.metrics.result import Context, is_unchanged, read_measure, write_json, write_result
from roentgen.provenance import __version__, portable, versions

DEFAULT_EXTRACTORS = ("judge", "classifier")
"""The first scores findings and sides best; the second has features, and knows more findings."""
FULL_EXTRACTORS = (*DEFAULT_EXTRACTORS, "inception", "xrv", "xrv-native", "clip", "rad-dino")
FROM_SETTINGS = ("extractors", "seed", "resamples", "device", "dual_encoder", "image_to_text", "siamese")
INDEX = "evaluation.json"
"""The file that says what a folder holds."""


@dataclass(frozen=True)
class SuiteSettings:
    """How to measure: which measures with which extractors, and what every random choice starts from.

    metrics: names of ``MEASURES``; asked: whether the user named them (then one that cannot be computed is an error).
    missing: extractors of the suite that are not on this disk, name -> reason. cache: folder for features.
    """

    out: Path
    cache: Path
    suite: str
    metrics: tuple[str, ...]
    asked: bool
    extractors: tuple[Extractor, ...]
    missing: Mapping[str, str]
    seed: int
    resamples: int
    workers: int
    batch_size: int
    skip_bad: bool
    device: str
    dual_encoder: str
    image_to_text: str | None
    siamese: str | None


@dataclass(frozen=True)
class Outcome:
    """What a run gave: results by name in the order of the report, and (name, reason) of what was not computed."""

    results: dict[str, dict[str, Any]]
    missing: list[tuple[str, str]]
    refused: list[str]
    inputs: EvaluationInputs


def choose_measures(suite: str, metrics: str | None, *, probes: bool = False) -> tuple[str, ...]:
    """Names of measures, in the order of ``MEASURES``; UserError for an unknown suite or name.

    Those of probes are in no suite unless ``probes`` are made, and can always be named.
    """
    if suite not in SUITES:
        raise UserError(f"--suite {suite}: unknown; choose one of {', '.join(SUITES)}")
    if metrics is None:
        return tuple(
            name
            for name, measure in MEASURES.items()
            if SUITES.index(measure.suite) <= SUITES.index(suite) and (probes or "probes" not in measure.reads)
        )
    named = [name.strip() for name in metrics.split(",") if name.strip()]
    for name in named:
        if name not in MEASURES:
            raise UserError(f"--metrics {name}: unknown; choose from {', '.join(MEASURES)}")
    if not named:
        raise UserError(f"--metrics is empty; choose from {', '.join(MEASURES)}")
    return tuple(name for name in MEASURES if name in named)


def choose_extractors(suite: str, extractors: str | None, device: str) -> tuple[tuple[Extractor, ...], dict[str, str]]:
    """Loaded extractors, the shipped judge and classifier first, and why others of the suite could not be loaded.

    An extractor that the user names must load; those of ``--suite full`` that are not on this disk are listed.
    """
    if extractors is not None:
        named = list(dict.fromkeys(name.strip() for name in extractors.split(",") if name.strip()))
        if not named:
            raise UserError("--extractors is empty; name at least one, such as classifier")
        return tuple(load_extractor(name, device=device) for name in named), {}
    found, missing = [], {}
    for name in FULL_EXTRACTORS if suite == "full" else DEFAULT_EXTRACTORS:
        try:
            found.append(load_extractor(name, device=device))
        except UserError as error:
            missing[name] = str(error)
    return tuple(found), missing


def set_hash(images: ImageSet, workers: int) -> str:
    """First 16 hex digits of the SHA-256 over the set's files and what the table says of them, paths left out."""
    keys = files_sha256(images.paths, workers=workers)
    # Where nothing names a patient, the path stands for one: a moved folder is the same set.
    alone = images.table["patient_id"] == images.table["image"]
    table = images.table.drop(columns=["image"]).assign(patient_id=images.table["patient_id"].where(~alone, ""))
    return sha256(*map(bytes.fromhex, keys), table.to_csv(index=False))[:16]


def run_suite(
    sets: Sequence[ImageSet],
    plan: SuiteSettings,
    *,
    command: str,
    model: Mapping[str, Any],
    settings: Mapping[str, Any],
    who: Process = ALONE,
    wait: Callable[[], None] = lambda: None,
) -> Outcome:
    """Measure ``sets`` and write the results into ``plan.out``.

    Sets are real and synthetic, and where there are any train, validation, reconstructed and probes.

    Results that are there already, of the same images, extractor and settings, are kept and not computed again. Of
    several processes one calls this; the others call ``features.extract_share`` and the barrier ``wait``.

    Raises:
        UserError: the folder holds another evaluation, or a bad image. Measures that could not be computed are in
            ``Outcome.refused``, so that the caller can report all others first.
    """
    hashes = {images.name: set_hash(images, plan.workers) for images in sets}
    key = {
        "real": hashes["real"], "synthetic": hashes["synthetic"], "seed": plan.seed, "resamples": plan.resamples,
        "version": __version__,
    }  # fmt: skip
    _claim(plan.out, key)
    began = time.monotonic()
    reading: dict[str, Any] = {
        "cache": plan.cache,
        "workers": plan.workers,
        "batch_size": plan.batch_size,
        "skip_bad": plan.skip_bad,
    }
    features = extract(sets, plan.extractors, **reading, who=who, wait=wait)
    # A run that goes on where another was killed adds to what that one took.
    seconds: dict[str, float] = dict(read_index(plan.out).get("seconds", {}))
    seconds["features"] = seconds.get("features", 0.0) + time.monotonic() - began
    inputs = _inputs(features, plan)
    described = {images.name: _described(images, hashes[images.name]) for images in features.sets}
    shared: dict[str, Any] = {
        "seed": plan.seed,
        "settings": settings,
        "model": model,
        "inputs": described,
        "command": command,
    }
    contexts = {
        one.name: Context(extractor=f"{portable(one.name)}, sha256 {one.hash}", resize=one.chain, **shared)
        for one in plan.extractors
    }
    outcome = Outcome({}, [(f"everything with {name}", reason) for name, reason in plan.missing.items()], [], inputs)
    _measure(plan, contexts, outcome, seconds)
    results = _in_order({**_earlier(plan.out, outcome.results, described), **outcome.results})
    extractors = {str(portable(e.name)): {"hash": e.hash, "chain": e.chain, "dim": e.dim} for e in plan.extractors}
    index = {
        "key": key,
        "model": model,
        "inputs": described,
        "suite": plan.suite,
        "measures": list(results),
        "missing": [{"measure": name, "reason": reason} for name, reason in outcome.missing],
        "extractors": extractors,
        "settings": settings,
        "command": command,
        "versions": versions(),
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
    }
    write_json(plan.out / INDEX, index)
    return dataclasses.replace(outcome, results=results)


def _inputs(features: Features, plan: SuiteSettings) -> EvaluationInputs:
    measured = {images.name: images for images in features.sets}
    synthetic, partner, notes = match_to_real(measured["synthetic"].table, measured["real"].table)
    return EvaluationInputs(
        real=measured["real"],
        synthetic=dataclasses.replace(measured["synthetic"], table=synthetic),
        train=measured.get("train"),
        validation=measured.get(VALIDATION),
        partner=partner,
        notes=notes,
        features=features,
        reconstructed=measured.get("reconstructed"),
        probes=measured.get("probes"),
        **{name: getattr(plan, name) for name in FROM_SETTINGS},
    )


def _measure(plan: SuiteSettings, contexts: Mapping[str, Context], outcome: Outcome, seconds: dict[str, float]) -> None:
    """Every measure of ``plan`` with its extractors, into ``outcome`` and its file as soon as it is there."""
    inputs = outcome.inputs
    jobs: list[tuple[str, Measure, Extractor]] = []
    for name in plan.metrics:
        measure = MEASURES[name]
        fit = [one for one in plan.extractors if measure.output in one.outputs or not measure.output]
        fit = fit if measure.each_extractor else fit[:1]
        jobs += [(result_name(name, extractor, fit), measure, extractor) for extractor in fit]
        if not fit:
            outcome.missing.append(
                (name, f"none of the extractors gives {measure.output}; name judge or classifier in --extractors")
            )
    bar = tqdm(jobs, desc="measures", file=sys.stderr)
    for name, measure, extractor in bar:
        bar.set_description(name)
        began = time.monotonic()
        context = contexts[extractor.name]
        path = plan.out / f"{name}.json"
        try:
            if measure.judge is not None:
                judge, chain = measure.judge(inputs) if callable(measure.judge) else measure.judge
                context = dataclasses.replace(context, extractor=judge, resize=chain)
            if kept := _kept(path, context, measure):
                outcome.results[name] = kept
                continue
            found = measure.compute(inputs, extractor)
        except Unavailable as reason:
            outcome.missing.append((name, str(reason)))
            if reason.bad_input or plan.asked:
                outcome.refused.append(f"{name} ({reason})")
            continue
        outcome.results[name] = _write(path, measure, found, context, inputs)
        seconds[name] = time.monotonic() - began
        write_json(plan.out / INDEX, {**read_index(plan.out), "seconds": seconds})
        with tqdm.external_write_mode(file=sys.stderr):
            print(f"{name}: {_line(outcome.results[name])}", file=sys.stderr)


def result_name(measure: str, extractor: Extractor, extractors: Sequence[Extractor]) -> str:
    """Stem of the result's file: the measure, and the extractor where it is not the first."""
    if extractor.name == extractors[0].name:
        return measure
    plain_name = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in Path(extractor.name).name)
    return f"{measure}-{plain_name}"


def read_index(folder: Path) -> dict[str, Any]:
    """``evaluation.json`` of a finished or broken-off evaluation; UserError if there is none."""
    if not (folder / INDEX).exists():
        raise UserError(f"{folder} holds no evaluation ({INDEX}); make one with `roentgen eval --out {folder}`")
    index = read_json(folder / INDEX, advice="run the evaluation again")
    kinds: dict[str, type] = {"key": dict, "measures": list, "missing": list, "seconds": dict}
    for key, kind in kinds.items():
        if not isinstance(index.get(key, None if key == "key" else kind()), kind):
            raise UserError(f"{folder / INDEX} is no index of an evaluation ({key}); run the evaluation again")
    index["measures"] = [name for name in index.get("measures", ()) if isinstance(name, str)]
    index["seconds"] = {k: v for k, v in index.get("seconds", {}).items() if isinstance(v, int | float)}
    return index


def read_evaluation(folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The index of an evaluation and its results by name; UserError if it holds none, or a damaged one."""
    index = read_index(folder)
    found = {name: folder / f"{name}.json" for name in index["measures"]}
    results = {name: read_measure(path) for name, path in found.items() if path.exists()}
    if not results:
        raise UserError(f"{folder} holds no results; run `roentgen eval --out {folder}` again")
    return index, results


def _claim(out: Path, key: Mapping[str, Any]) -> None:
    """Make ``out`` the folder of the evaluation ``key``, what all its results share (the training images matter to
    single measures only); UserError if it is another's."""
    if (out / INDEX).exists():
        words = {"real": "real images", "synthetic": "synthetic images", "version": "roentgen version"}
        words = {name: f"--{name}" for name in key} | words
        check_same(read_index(out)["key"], key, holds=f"--out {out} holds an evaluation with other", words=words)
        return
    strange = [name for name in MEASURES if (out / f"{name}.json").exists()]
    if strange:
        raise UserError(f"--out {out} holds {strange[0]}.json of something else; choose another folder")
    write_json(out / INDEX, {"key": key, "measures": [], "missing": []})


def _earlier(
    out: Path, results: Mapping[str, Any], inputs: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Results of earlier runs into the same folder that this one did not ask for, such as those of a larger suite."""
    found = {}
    for name in read_index(out).get("measures", []):
        path = out / f"{name}.json"
        measure = MEASURES.get(name.partition("-")[0])
        if name in results or measure is None or not path.exists():
            continue
        result = read_measure(path)
        if _still_holds(result, inputs, measure):
            found[name] = result
    return found


def _in_order(results: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    places = {name: place for place, name in enumerate(MEASURES)}
    return dict(sorted(results.items(), key=lambda item: places[item[0].partition("-")[0]]))


def _described(images: ImageSet, digest: str) -> dict[str, Any]:
    """A set as results name it: where from, how many, hash of images and labels, what was left out."""
    return {
        "source": portable(images.source.resolve()) if images.source else None,
        "n": len(images),
        "patients": len(set(images.patients)),
        "hash": digest,
        "left_out": [Path(line.partition(": ")[0]).name + ": " + line.partition(": ")[2] for line in images.bad],
    }


def _kept(path: Path, context: Context, measure: Measure) -> dict[str, Any] | None:
    """The result of an earlier run of the same evaluation, or None if it is missing, damaged or of other inputs."""
    if not path.exists():
        return None
    try:
        result = read_measure(path)
    except UserError:
        return None
    same = (result["extractor"], result["resize"], result["seed"]) == (context.extractor, context.resize, context.seed)
    return result if same and _still_holds(result, context.inputs, measure) else None


def _still_holds(result: Mapping[str, Any], inputs: Mapping[str, Mapping[str, Any]], measure: Measure) -> bool:
    """Whether a stored result is as it was written, and of these inputs."""
    sets = ("real", "synthetic", *measure.reads)
    same = [(result["inputs"].get(name) or {}).get("hash") == inputs.get(name, {}).get("hash") for name in sets]
    return is_unchanged(result) and all(same)


def _write(path: Path, measure: Measure, found: Result, context: Context, inputs: EvaluationInputs) -> dict[str, Any]:
    if found.per_image:  # before the result: a result that is there is whole
        table = pd.DataFrame(
            {
                "image": [Path(image).name for image in inputs.synthetic.table["image"]],
                "prompt": inputs.synthetic.table["text"].to_numpy(),
                "patient": inputs.bootstrap_groups,
                **{name: np.asarray(values) for name, values in found.per_image.items()},
            }
        )
        write_atomic(path.with_suffix(".images.csv"), table.to_csv(index=False).encode())
    left_out = [
        f"{len(images.bad)} bad image(s) of --{images.name} left out"
        for images in inputs.features.sets
        if images.bad and images.name in ("real", "synthetic", *measure.reads)
    ]
    return write_result(
        path,
        metric=measure.label,
        value=found.value,
        ci=found.ci,
        ci_method=found.ci_method,
        n=found.n,
        context=context,
        warnings=[*found.notes, *left_out],
        details={"better": measure.better, "unit": measure.unit, **found.written()},
    )


def _line(result: Mapping[str, Any]) -> str:
    if result["value"] is None:
        return f"no value, n = {result['n']}"
    low, high = result["ci"]
    span = "" if low is None or high is None else f" [{low:.4g}, {high:.4g}]"
    return f"{result['value']:.4g}{span}, n = {result['n']}"
