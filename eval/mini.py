"""Measure a shipped model on prompts with known labels, beside real images, reconstructions and floors.

    python eval/mini.py --model mini --classifier PATH --manifest MANIFEST --out eval/results/mini

Writes one JSON a metric and two picture grids under OUT. Generated images are kept under WORK, so the same
command again continues a run that was stopped. ``python eval/table.py OUT`` puts the figures into documents.
"""

from __future__ import annotations

import dataclasses
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd

from roentgen import errors
from roentgen.config import BatchSize, Count, Guidance, PathOrName, Range, Seed, Steps, as_dict, parse_settings, require
from roentgen.data.images import CHAIN, load_pixels
from roentgen.data.manifest import read_manifest
from roentgen.data.prompt_table import LabelledPrompt, read_labelled_prompts
from roentgen.files import file_hash, require_writable
from roentgen.generators.generate import load_model
from roentgen.metrics import neighbours, pairing
from roentgen.metrics.adherence import auroc, laterality
from roentgen.metrics.distribution import frechet
from roentgen.metrics.diversity import ms_ssim
from roentgen.metrics.memorisation import nearness as memorisation
from roentgen.metrics.result import Context, write_result
from roentgen.metrics.statistics import cluster_weights, mean_interval, percentile_interval
from roentgen.metrics.study import Study, write_grids
from roentgen.models.classifier import load_classifier
from roentgen.prompts import labels_from_row
from roentgen.provenance import command_line, portable
from roentgen.synthesis.folder import (
    Job,
    generated_images,
    in_batches,
)

FIVE = ("Effusion", "Pneumothorax", "Cardiomegaly", "Atelectasis", "Consolidation")
SIDED = {"Effusion": "pleural effusion", "Pneumothorax": "pneumothorax", "Lung Opacity": "lung opacity"}
PER_GROUP = 4  # images a prompt for MS-SSIM, six pairs, as the papers in this field have it
BY_PATIENT = "95 % percentile, bootstrap by patient of the prompt's real image"


@dataclass(frozen=True)
class Settings:
    """Settings of the measurement."""

    manifest: Annotated[Path, "manifest with `train`, `val` and `test` images"]
    classifier: Annotated[Path, "the judge, a classifier that took no part in training the model"]
    model: Annotated[PathOrName, "name, folder or hub id"] = "mini"
    prompts: Annotated[Path, "CSV of id, prompt, labels made from `test` rows"] = Path("prompts/evaluation.csv")
    out: Annotated[Path, "folder for the results"] = Path("eval/results/mini")
    work: Annotated[Path, "folder for generated images and caches"] = Path("runs/eval-mini")
    images: Annotated[int, Range(2, 10**12), "how many prompts of the list to use, from the first"] = 1000
    sided: Annotated[Count, "images for each of 'left' and 'right' of each finding"] = 100
    groups: Annotated[Count, "prompts for MS-SSIM, four images each"] = 20
    steps: Annotated[Steps | None, "inference steps (None: the model's own)"] = None
    guidance: Annotated[Guidance | None, "guidance scale (None: the model's own)"] = None
    sampler: Annotated[Literal["dpm++", "unipc", "ddim", "pndm"] | None, "sampler (None: the model's own)"] = None
    seed: Annotated[Seed, "seed of the first image and of every random choice"] = 0
    batch_size: Annotated[BatchSize, "images generated at a time"] = 4
    judge_batch_size: Annotated[BatchSize, "images judged or reconstructed at a time"] = 32
    device: Annotated[str | None, "auto, cpu, cuda or mps (None: auto)"] = None
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"] | None,
        "float32, float16 or bfloat16 (None: float16 on a GPU, else float32)",
    ] = None
    resamples: Annotated[int, Range(1, 1_000_000), "bootstrap resamples"] = 1000
    fid_resamples: Annotated[int, Range(1, 1_000_000), "bootstrap resamples of the Frechet distances"] = 100


def main(argv: Sequence[str] | None = None) -> int:
    s = parse_settings(Settings, argv, prog="eval/mini.py", about=__doc__)
    prompts = read_labelled_prompts(s.prompts)
    require(s.images <= len(prompts), f"--images {s.images}: {s.prompts} holds {len(prompts)} prompts")
    require(s.classifier.exists(), f"--classifier {s.classifier} does not exist; see train/classifier.py")
    table = read_manifest(s.manifest, allow_empty_text=True)
    splits = {split: rows.reset_index(drop=True) for split, rows in table.groupby("split")}
    for split in ("train", "val", "test"):
        require(split in splits, f"--manifest {s.manifest} has no image in split {split}")
    require_writable(s.out, "--out")
    require_writable(s.work, "--work")

    # Each prompt with the real image whose labels it has; the few without one are left out and counted.
    matched = pairing.match_rows(prompts[: s.images], splits["test"])
    kept = [index for index, row in enumerate(matched) if row is not None]
    require(len(kept) >= 2, f"--prompts {s.prompts}: its labels fit no `test` image of {s.manifest}")
    notes = []
    if len(kept) < s.images:
        lost = s.images - len(kept)
        notes.append(f"{lost} of {s.images} prompts have no test image of the same labels: left out")
        print(f"eval/mini.py: {notes[-1]}", file=sys.stderr)

    study = prepare(s, splits, [prompts[i] for i in kept], kept, [matched[i] for i in kept], notes)
    for measure in (measure_auroc, measure_laterality, measure_fid, measure_memorisation, measure_ms_ssim):
        result = measure(s, study)
        print(f"{result['metric']}: {result['value']} {result['ci']}, n = {result['n']}", file=sys.stderr)
    print(s.out)
    return 0


def prepare(
    s: Settings,
    splits: dict[str, pd.DataFrame],
    prompts: list[LabelledPrompt],
    numbers: Sequence[int],
    test_rows: Sequence[int | None],
    notes: list[str],
) -> Study:
    """Load, generate (``numbers`` are the places in the list, and so the seeds), read and reconstruct."""
    judge = load_classifier(s.classifier)
    require("Effusion" in judge.findings, f"--classifier {s.classifier} knows no Effusion; its sides are needed")
    model = load_model(s.model, device=s.device, dtype=s.dtype)
    sampling = model.sampling(steps=s.steps, guidance=s.guidance, sampler=s.sampler)
    jobs = [Job(prompt.prompt, s.seed + number) for prompt, number in zip(prompts, numbers, strict=True)]
    generated = generated_images(model, jobs, s.work / "images", sampling=sampling, batch_size=s.batch_size)
    size = generated.shape[1]
    require(
        generated.shape[2] == size >= ms_ssim.MIN_SIDE,
        f"--model {s.model}: square images of at least {ms_ssim.MIN_SIDE} pixels can be measured",
    )
    pixels = {
        split: load_pixels(rows["image"].tolist(), size=size, cache=s.work / "cache").pixels
        for split, rows in splits.items()
    }
    places = np.array(test_rows, dtype=np.int64)
    real = np.asarray(pixels["test"][places])
    rebuilt = in_batches(model.reconstruct, real, batch_size=s.judge_batch_size, name="reconstructing").astype(np.uint8)
    context = Context(
        extractor=f"roentgen classifier {s.classifier.name}, sha256 {file_hash(s.classifier)}",
        resize=f"files: {CHAIN}, shorter side to {size} px by antialiased bicubic, centre crop; generated: "
        "as made (8-bit PNG); then the classifier's own input size",
        seed=s.seed,
        settings={key: portable(value) for key, value in as_dict(s).items()},
        model={
            "name": portable(model.info.name),
            "hash": model.info.hash,
            "dtype": f"torch.{model.info.dtype}",
            **dataclasses.asdict(sampling),
        },
        inputs={str(portable(p.resolve())): file_hash(p) for p in (s.manifest, s.prompts, s.classifier)},
        command=command_line("eval/mini.py", s),
    )
    return Study(
        model=model,
        sampling=sampling,
        judge=judge,
        context=context,
        splits=splits,
        pixels=pixels,
        prompts=prompts,
        rows=splits["test"].iloc[places].reset_index(drop=True),
        generated=generated,
        real=real,
        rebuilt=rebuilt,
        notes=notes,
        work=s.work,
        train_key=f"{file_hash(s.classifier)}-{file_hash(s.manifest)}-{size}",
        batch_size=s.batch_size,
        judge_batch_size=s.judge_batch_size,
    )


def measure_auroc(s: Settings, study: Study) -> dict[str, Any]:
    """The judge's AUROC on generated images by their prompts' labels, and on what bounds it."""
    findings = list(study.judge.findings)
    labels = pairing.label_matrix(study.prompts, study.rows, findings)
    weights = cluster_weights(study.rows["patient_id"].tolist(), s.resamples, s.seed)
    sets = {"generated": study.generated, "real": study.real, "reconstructed": study.rebuilt}
    scores = {name: study.scores(images, name) for name, images in sets.items()}
    order = np.random.default_rng(s.seed).permutation(len(labels))
    cases = {name: (score, labels) for name, score in scores.items()}
    cases["shuffled"] = (scores["generated"], labels[order])

    conditions, macros = [], {}
    for name, (score, label) in cases.items():
        over_all = auroc.macro_auroc(score, label, findings, weights, leave_out=("No Finding",))
        beyond = [finding for finding in findings if finding not in FIVE]
        over_five = auroc.macro_auroc(score, label, findings, weights, leave_out=beyond)
        macros[name] = over_all
        conditions.append(
            {
                "condition": name,
                "value": over_all.value,
                "ci": over_all.ci,
                "n": len(score),
                "five": {"value": over_five.value, "ci": over_five.ci, "findings": over_five.names},
                "findings": [dataclasses.asdict(finding) for finding in over_all.findings],
            }
        )
    chosen = macros["generated"]
    gaps = {
        f"{a} - {b}": {
            "value": macros[a].value - macros[b].value,
            "ci": percentile_interval(macros[a].draws - macros[b].draws),
        }
        for a, b in (("real", "generated"), ("real", "reconstructed"))
    }
    return write_result(
        s.out / "classifier_auroc.json",
        metric="macro AUROC of the classifier on generated images",
        value=chosen.value,
        ci=chosen.ci,
        ci_method=f"{BY_PATIENT}, {s.resamples} resamples",
        n=len(study.prompts),
        context=study.context,
        warnings=study.notes,
        goal="at least 0.75 on generated images; reconstructed at most 0.02 below real",
        details={
            "macro_findings": chosen.names,
            "left_out": f"'No Finding', and findings with fewer than {auroc.MIN_CASES} positives or "
            "negatives are listed but not in the macro",
            "five_findings": list(FIVE),
            "labels": "1: the prompt names it; 0: its real image is known not to have it; else unknown",
            "shuffled": "labels of the prompts permuted: the floor",
            "conditions": conditions,
            "gaps": gaps,
        },
    )


def measure_laterality(s: Settings, study: Study) -> dict[str, Any]:
    """Left and right told apart, by the judge and by brightness alone, on sided prompts and real sides."""
    everything = pd.concat(study.splits.values(), ignore_index=True)
    all_pixels = [(split, number) for split, rows in study.splits.items() for number in range(len(rows))]
    normal = np.flatnonzero(study.splits["test"].get("No Finding", pd.Series(dtype=float)).to_numpy() == 1)

    entries = []
    for finding, words in SIDED.items():
        asked = [side for side in ("left", "right") for _ in range(s.sided)]
        seeds = [s.seed + i for i in range(s.sided)] * 2
        made = study.make([Job(f"{side} {words}", seed) for side, seed in zip(asked, seeds, strict=True)])
        column = everything.get(f"{finding}_side", pd.Series("", index=everything.index))
        known = np.flatnonzero(column.isin(["left", "right"]).to_numpy())
        shape = study.generated.shape[1:]
        real = np.stack(
            [study.pixels[split][number] for split, number in (all_pixels[i] for i in known)]
            or [np.zeros(shape, np.uint8)]
        )[: len(known)]
        sides = column.iloc[known].tolist()
        unseen = np.array([all_pixels[i][0] == "test" for i in known], dtype=bool)
        # The heart makes one side brighter in everybody: the threshold is the median of normal test images.
        normals = np.asarray(study.pixels["test"][normal])
        middle = laterality.brightness_asymmetry(normals, finding)
        threshold = float(np.median(middle)) if len(middle) else 0.0
        asymmetry = {
            "generated": laterality.brightness_asymmetry(made, finding),
            "real": laterality.brightness_asymmetry(real, finding),
        }
        entry: dict[str, Any] = {
            "finding": finding,
            "prompts": [f"left {words}", f"right {words}"],
            "classifier": None,
            "classifier_real_test": None,
            "brightness": laterality.side_accuracy(asymmetry["generated"], asked, threshold=threshold),
            "brightness_real": laterality.side_accuracy(asymmetry["real"], sides, threshold=threshold),
            "brightness_threshold": threshold,
        }
        if finding in study.judge.findings:
            entry["classifier"] = laterality.side_accuracy(study.leftness(made, finding, f"{words}"), asked)
            test_sides = [side for side, is_test in zip(sides, unseen, strict=True) if is_test]
            if test_sides:
                entry["classifier_real_test"] = laterality.side_accuracy(
                    study.leftness(real[unseen], finding, f"real {words}"), test_sides
                )
        entries.append(
            {
                key: dataclasses.asdict(value) if isinstance(value, laterality.SideAccuracy) else value
                for key, value in entry.items()
            }
        )
    effusion = entries[0]["classifier"]
    unjudged = [entry["finding"] for entry in entries if entry["classifier"] is None]
    return write_result(
        s.out / "laterality.json",
        metric="left and right pleural effusion told apart by the classifier",
        value=effusion["accuracy"],
        ci=effusion["ci"],
        ci_method="95 % Wilson",
        n=effusion["n"],
        context=study.context,
        goal="at least 0.80",
        warnings=[f"the classifier knows no {name}: judged by brightness alone" for name in unjudged],
        details={
            "brightness": "patient's left less right of mean grey in the lateral thirds (effusion: "
            "lower third; pneumothorax: upper half, sign turned; opacity: all rows), against the median of "
            "normal test images. Real sides are from all splits, as nothing was fitted to them",
            "findings": entries,
        },
    )


def measure_fid(s: Settings, study: Study) -> dict[str, Any]:
    """Frechet distances to the real test images, of generated ones and of what bounds them."""
    rng = random.Random(s.seed)
    train = study.splits["train"].to_dict("records")
    n = min(len(study.rows), len(train))
    alike = pairing.look_alikes(study.rows.to_dict("records")[:n], train)
    same_kind, others = pairing.draw_look_alikes(alike, len(train), rng)
    by_chance = rng.sample(range(len(train)), n)
    test = study.features(study.real, "test")
    train_features = study.train_features()
    sets = {
        "generated": study.features(study.generated, "generated"),
        "reconstructed": study.features(study.rebuilt, "reconstructions"),
        "train, same findings and view": train_features[same_kind],
        "train, at random": train_features[by_chance],
    }
    conditions = []
    for name, features in sets.items():
        paired = name == "reconstructed"
        print(f"Frechet distance: {name}", file=sys.stderr, flush=True)
        conditions.append(
            {
                "condition": name,
                "n": len(features),
                "value": frechet.frechet_distance(frechet.moments(features), frechet.moments(test)),
                "ci": frechet.frechet_interval(features, test, paired=paired, resamples=s.fid_resamples, seed=s.seed),
            }
        )
    warnings = list(study.notes)
    if len(test) < test.shape[1]:
        warnings.append(
            f"n = {len(test)} is below the feature dimension {test.shape[1]}: covariances are "
            "singular and the distances too high; compare only at equal n"
        )
    if others:
        warnings.append(f"{others} of {n} train images of the floor are not of the same findings and view")
    return write_result(
        s.out / "fid.json",
        metric="Frechet distance in the classifier's features, generated to real test",
        value=conditions[0]["value"],
        ci=conditions[0]["ci"],
        n=len(study.generated),
        context=study.context,
        ci_method=f"95 % bootstrap over images, {s.fid_resamples} resamples, shifted to the value",
        warnings=warnings,
        goal="reported beside the real-against-real floor and the reconstructions",
        details={
            "reference": "the real test images of the same prompts",
            "reference_n": len(test),
            "feature_dimension": test.shape[1],
            "conditions": conditions,
        },
    )


def measure_memorisation(s: Settings, study: Study) -> dict[str, Any]:
    """Share of generated images nearer to train than to test, with real unseen (val) images as control."""
    images = {"generated": study.generated, **study.pixels}
    spaces = {
        "classifier features": {
            name: study.train_features() if name == "train" else study.features(each, name)
            for name, each in images.items()
        },
        "pixels 32x32": {name: neighbours.thumbnails(each) for name, each in images.items()},
    }
    entries, nearest = [], {}
    for space, points in spaces.items():
        for name, condition in (("generated", "generated"), ("val", "control: real val images")):
            found = memorisation.nearer_to_train(
                points[name], points["train"], points["test"], resamples=s.resamples, seed=s.seed
            )
            if name == "generated":
                nearest[space] = found
            entries.append(
                {
                    "space": space,
                    "condition": condition,
                    "value": found.share,
                    "ci": found.ci,
                    "n": found.n,
                    "pool": found.pool,
                    "subsets": found.subsets,
                    "subset_sd": found.subset_sd,
                    "median_distance": float(np.median(found.distance)),
                }
            )
    write_grids(study, nearest["classifier features"], s.out, seed=s.seed)
    return write_result(
        s.out / "memorisation.json",
        metric="share of generated images nearer to train than to test",
        value=entries[0]["value"],
        ci=entries[0]["ci"],
        n=entries[0]["n"],
        context=study.context,
        ci_method=f"95 % percentile over images and train subsets, {s.resamples} resamples",
        goal="from 0.45 to 0.60",
        details={
            "pools": "the whole test split against random subsets of train of the same size",
            "conditions": entries,
        },
    )


def measure_ms_ssim(s: Settings, study: Study) -> dict[str, Any]:
    """Likeness of images of one prompt, beside that of real test images of the same findings and view."""
    rng = random.Random(s.seed)
    test = study.splits["test"].to_dict("records")
    alike = pairing.look_alikes(study.rows.to_dict("records"), test)
    eligible = [i for i, numbers in enumerate(alike) if len(numbers) >= PER_GROUP]
    require(bool(eligible), f"--manifest: MS-SSIM needs {PER_GROUP} test images of equal findings and view")
    rng.shuffle(eligible)
    # One prompt of each kind first, so that normal images, most of the list, are not most of the groups.
    first: dict[Any, int] = {}
    for i in eligible:
        first.setdefault(pairing.kind_of(labels_from_row(study.rows.iloc[i].to_dict())), i)
    chosen = [*first.values(), *(i for i in eligible if i not in set(first.values()))][: s.groups]
    jobs = [Job(study.prompts[i].prompt, s.seed + k) for i in chosen for k in range(PER_GROUP)]
    shape = (len(chosen), PER_GROUP, *study.generated.shape[1:])
    groups = {
        "generated": study.make(jobs).reshape(shape),
        "real": np.stack([study.pixels["test"][rng.sample(alike[i], PER_GROUP)] for i in chosen]),
    }
    conditions = []
    for name, images in groups.items():
        values = ms_ssim.within_group_ms_ssim(images, edges="mirror")  # as torchmetrics, and as the committed figures
        conditions.append(
            {
                "condition": name,
                "n": len(values),
                "value": float(values.mean()),
                "sd": float(values.std(ddof=1)) if len(values) > 1 else None,
                "ci": mean_interval(values, resamples=s.resamples, seed=s.seed),
            }
        )
    short = len(chosen) < s.groups
    return write_result(
        s.out / "ms_ssim.json",
        metric="MS-SSIM within a prompt, mean over prompts",
        value=conditions[0]["value"],
        ci=conditions[0]["ci"],
        n=len(chosen),
        context=study.context,
        ci_method=f"95 % percentile, bootstrap by prompt, {s.resamples} resamples",
        warnings=[f"only {len(chosen)} prompts have {PER_GROUP} real look-alikes"] if short else [],
        extractor="torchmetrics MS-SSIM, 5 scales, 11 x 11 Gaussian window, grey in [0, 1]",
        goal="at most 0.1 above that of real images",
        details={
            "images_a_prompt": PER_GROUP,
            "prompts": [study.prompts[i].id for i in chosen],
            "real": "four random test images of the same findings and view",
            "conditions": conditions,
        },
    )


if __name__ == "__main__":
    sys.exit(errors.run(main, prog="eval/mini.py"))
