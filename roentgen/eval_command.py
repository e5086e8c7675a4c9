"""``roentgen eval``, as a function of its flags; nothing heavy is imported until it runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from roentgen.errors import UserError

if TYPE_CHECKING:
    from roentgen.metrics.image_set import ImageSet

GENERATED_AT_ONCE = 16
"""Images a forward pass of the generating model at most: memory grows with it."""


def evaluate(
    folders: list[str],
    real: str | None = None,
    synthetic: str | None = None,
    train: str | None = None,
    out: str | None = None,
    suite: str = "quick",
    metrics: str | None = None,
    extractors: str | None = None,
    dual_encoder: str = "roentgen",
    image_to_text: str | None = None,
    real_split: str = "test",
    limit: int | None = None,
    skip_bad: bool = False,
    seed: int = 0,
    resamples: int = 1000,
    workers: int = 2,
    batch_size: int = 32,
    device: str = "auto",
    compare: str | None = None,
    generate: str | None = None,
    prompts: str | None = None,
    num_images: int = 1,
    num_prompts: int | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    sampler: str | None = None,
    dtype: str = "auto",
) -> int:
    """Measure generated images against real ones: one JSON file a measure and an HTML report; prints the report's path.

    The same command again continues a run that was broken off, and measures only what is missing.

    Args:
        folders: Further evaluations to set beside the one of --compare.
        real: Real images: a manifest (.csv, .parquet) or a folder of PNG, JPEG or DICOM files.
        synthetic: Generated images: a folder that `roentgen generate` wrote, any other folder, or a manifest.
        train: Manifest of the images that the model was trained on (its rows in split train), for memorisation.
        out: Folder for the results.
        suite: quick (offline, minutes), standard, or full (every extractor whose weights are on this disk).
        metrics: Only these measures, with commas, such as fid,kid,auroc.
        extractors: Only these networks, with commas: classifier, inception, xrv, xrv-native, clip, rad-dino, a hub id
            or a folder.
        dual_encoder: Of the image-text measures: roentgen (ships), biovil-t, biomedclip, or a CLIPModel's folder.
        image_to_text: Model that describes images, for report-based scores (--suite full): a folder or hub id.
        real_split: Split of the real manifest to measure against.
        limit: At most so many images of each set, drawn at random.
        skip_bad: Leave out images that cannot be read, and say so in the results.
        seed: Of every random choice, and of the first image with --generate.
        resamples: Bootstrap resamples of the intervals.
        workers: Threads that read and decode images.
        batch_size: Images a forward pass (at most 16 at once with --generate).
        device: auto, cpu, cuda, cuda:N or mps.
        compare: Set finished evaluations side by side, as in --compare DIR DIR --out DIR.
        generate: Model to generate the synthetic images with, into OUT/images: a name, folder or hub id.
        prompts: With --generate, a file of prompts (.txt, .csv, .jsonl; a CSV may have labels), or a manifest, whose
            texts in --real-split are the prompts.
        num_images: With --generate, images for each prompt.
        num_prompts: With --generate, at most so many prompts, drawn at random by --seed; the other sets stay whole.
        steps: With --generate, denoising steps (default: the model's).
        guidance: With --generate, guidance scale (default: the model's).
        sampler: With --generate, the sampler (default: the model's).
        dtype: With --generate, number format of the model.
    """
    if compare is not None:
        return _compare([compare, *folders], out, seed=seed, resamples=resamples)
    if folders:
        raise UserError(f"{folders[0]}: what is it? name images with --real and --synthetic, or use --compare DIR DIR")
    _check_flags(real=real, synthetic=synthetic, out=out, generate=generate, prompts=prompts)
    for flag, value, least in (
        ("--resamples", resamples, 1),
        ("--workers", workers, 1),
        ("--batch-size", batch_size, 1),
        ("--num-images", num_images, 1),
        ("--num-prompts", num_prompts, 1),
        ("--limit", limit, 1),
        ("--seed", seed, 0),
    ):
        if value is not None and value < least:
            raise UserError(f"{flag} {value}: must be at least {least}")
    if num_prompts is not None and generate is None:
        raise UserError("--num-prompts is for --generate MODEL; with --synthetic, --limit cuts the sets")
    _need("matplotlib")
    assert real is not None and out is not None

    from roentgen.metrics.image_set import open_set
    from roentgen.metrics.measures import VALIDATION
    from roentgen.metrics.suite import Plan, choose_extractors, choose_measures, run_suite
    from roentgen.metrics.suite_report import write_report
    from roentgen.pipeline import pick_device
    from roentgen.training.settings import require_writable
    from roentgen.training.state import hold_folder

    names = choose_measures(suite, metrics)
    target = Path(out)
    options: dict[str, Any] = {"skip_bad": skip_bad, "limit": limit, "seed": seed}
    sets = [open_set(Path(real), name="real", split=real_split if _is_manifest(real) else None, **options)]
    if train is not None:
        split = "train" if _is_manifest(train) else None
        sets.append(open_set(Path(train), name="train", split=split, **options))
    validation = _validation(real, real_split, skip_bad=skip_bad) if "f1" in names else None
    where = pick_device(device)
    chosen, missing = choose_extractors(suite, extractors, where)
    require_writable(target, "--out")
    lock = hold_folder(target, "--out")
    with lock:
        model: dict[str, Any] = {}
        source = synthetic
        if generate is not None:
            assert prompts is not None
            source, model = _generate(
                target,
                Path(prompts),
                name=generate,
                num_images=num_images,
                num_prompts=num_prompts,
                seed=seed,
                split=real_split,
                limit=limit,
                sampling=(steps, guidance, sampler),
                device=device,
                dtype=dtype,
                batch_size=min(batch_size, GENERATED_AT_ONCE),
            )
        assert source is not None
        sets.insert(1, open_set(Path(source), name="synthetic", **options))
        model = model or made_by(sets[1])
        if validation is not None:
            sets.append(validation)
            assert validation.name == VALIDATION
        settings = _settings(
            real=real,
            synthetic=synthetic,
            train=train,
            suite=suite,
            metrics=metrics,
            extractors=extractors,
            dual_encoder=dual_encoder,
            image_to_text=image_to_text,
            real_split=real_split,
            limit=limit,
            skip_bad=skip_bad or None,
            seed=seed,
            resamples=resamples,
            generate=generate,
            prompts=prompts,
            num_images=num_images if generate else None,
            num_prompts=num_prompts,
            steps=steps,
            guidance=guidance,
            sampler=sampler,
        )
        plan = Plan(
            out=target,
            suite=suite,
            metrics=names,
            asked=metrics is not None,
            extractors=chosen,
            missing=missing,
            seed=seed,
            resamples=resamples,
            workers=workers,
            batch_size=batch_size,
            skip_bad=skip_bad,
            device=where,
            dual_encoder=dual_encoder,
            image_to_text=image_to_text,
        )
        command = _command(settings, out)
        outcome = run_suite(sets, plan, command=command, model=model, settings=settings)
        subject = model.get("name") or Path(source).resolve().name
        report = write_report(target, outcome, command=command, title=f"Evaluation of {subject}")
    for name, reason in outcome.missing:
        print(f"not computed: {name}: {reason}", file=sys.stderr)
    print(report)
    if outcome.refused:
        raise UserError(
            f"{len(outcome.refused)} measure(s) could not be computed, the others are in {out}: "
            f"{'; '.join(outcome.refused)}; mend this or leave them out with --metrics"
        )
    return 0


def _check_flags(
    *, real: str | None, synthetic: str | None, out: str | None, generate: str | None, prompts: str | None
) -> None:
    if real is None:
        raise UserError("--real is missing; name a manifest or a folder of real images")
    if out is None:
        raise UserError("--out is missing; name a folder for the results")
    if (synthetic is None) == (generate is None):
        raise UserError("give either --synthetic MANIFEST_OR_FOLDER or --generate MODEL --prompts FILE")
    if (generate is None) != (prompts is None):
        lacking = "--prompts" if prompts is None else "--generate"
        raise UserError(f"{lacking} is missing; --generate MODEL and --prompts FILE belong together")


def _need(package: str) -> None:
    import importlib.util

    if importlib.util.find_spec(package) is None:
        raise UserError(f"roentgen eval needs {package}; pip install 'roentgen[eval]'")


def _is_manifest(path: str) -> bool:
    return not Path(path).is_dir()


def _validation(real: str, real_split: str, *, skip_bad: bool) -> ImageSet | None:
    """The real manifest's rows in split val, where it has any and they are not measured themselves."""
    from roentgen.data.manifest import read_manifest
    from roentgen.metrics.image_set import open_set
    from roentgen.metrics.measures import VALIDATION

    if not _is_manifest(real) or real_split == "val":
        return None
    table = read_manifest(Path(real), allow_empty_text=True, check_files=False)
    if (table["split"] == "val").sum() < 2:
        return None
    return open_set(Path(real), name=VALIDATION, split="val", skip_bad=skip_bad)


def _generate(
    out: Path,
    prompts: Path,
    *,
    name: str,
    num_images: int,
    num_prompts: int | None,
    seed: int,
    split: str,
    limit: int | None,
    sampling: tuple[int | None, float | None, str | None],
    device: str,
    dtype: str,
    batch_size: int,
) -> tuple[str, dict[str, Any]]:
    """Make the images of ``prompts`` into OUT/images, those that are there already kept; manifest and model."""
    import dataclasses

    from roentgen import pipeline
    from roentgen.metrics.generated import Job, generated_images, image_path, resolve_sampling
    from roentgen.metrics.result import file_hash, portable

    from_manifest = _is_manifest_file(prompts)
    records = _manifest_rows(prompts, split) if from_manifest else _prompt_rows(prompts)
    model = pipeline.load_model(name, device=device, dtype=dtype)
    chosen = resolve_sampling(model, *sampling)
    pipeline.check_settings(
        num_images=num_images,
        seed=seed,
        steps=chosen.steps,
        guidance=chosen.guidance,
        sampler=chosen.sampler,
        batch_size=batch_size,
    )
    # A prompt of somebody's list is mended there; reports of a manifest are as long as they are.
    long = [record for record in records if from_manifest and model.reader.count([str(record["text"])]).cut]
    records = [record for record in records if record not in long]
    if long:
        print(f"--prompts {prompts}: {len(long)} text(s) longer than {name} reads are left out", file=sys.stderr)
    # The images that --limit would leave out need not be made.
    most = min(len(records), num_prompts or len(records), -(-limit // num_images) if limit else len(records))
    if most < len(records):
        import random

        records = [records[row] for row in sorted(random.Random(seed).sample(range(len(records)), most))]
    for record in records:
        model.check_prompt(str(record["text"]), f"--prompts {prompts}, id {record['prompt_id']}:")
    about = {
        "name": portable(model.name),
        "hash": model.hash,
        "dtype": str(model.dtype),
        **dataclasses.asdict(chosen),
        "prompts": file_hash(prompts),
        "prompts_too_long": len(long),
        "prompts_used": len(records),
        "num_images": num_images,
        "first_seed": seed,
    }
    _claim_images(out, about)
    jobs, rows = [], []
    for number, record in enumerate(records):
        # A prompt's own seed wins; else every prompt has its own, so that equal prompts give different images.
        first = record.pop("own_seed")
        first = seed + number * num_images if first is None else first
        for index in range(num_images):
            job = Job(str(record["text"]), first + index)
            jobs.append(job)
            path = image_path(out / "images", job)
            rows.append({**record, "image": str(path), "seed": str(job.seed)})
    generated_images(model, jobs, out / "images", sampling=chosen, batch_size=batch_size)
    manifest = _write_rows(rows, out / "synthetic.csv")
    return str(manifest), about


def _claim_images(out: Path, about: dict[str, Any]) -> None:
    """Refuse a folder with another model's images before one of them is replaced."""
    import json

    from roentgen.images import write_atomic

    path = out / "generation.json"
    text = json.dumps(about, indent=1) + "\n"
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise UserError(f"--out {out} holds images of another model, prompts or settings; choose another folder")
    write_atomic(path, text.encode())


def _is_manifest_file(path: Path) -> bool:
    if path.suffix.lower() == ".parquet":
        return True
    return path.suffix.lower() == ".csv" and {"image", "text", "split"} <= set(_header(path))


def _header(path: Path) -> list[str]:
    """Column names of a CSV; none where it cannot be read, which its reader will say."""
    try:
        first = path.read_text(encoding="utf-8-sig").partition("\n")[0]
    except (OSError, UnicodeDecodeError):
        return []
    return [name.strip().strip('"') for name in first.split(",")]


def _manifest_rows(path: Path, split: str) -> list[dict[str, Any]]:
    """Texts of a manifest's split as prompts; labels are those of the images that the texts belong to."""
    from roentgen.data.manifest import CORE, read_manifest

    table = read_manifest(path, splits=[split], allow_empty_text=True, check_files=False)
    table = table[table["text"] != ""]
    rows = []
    for row in table.to_dict("records"):
        kept = {str(key): value for key, value in row.items() if key not in CORE}
        known = {key: row[key] for key in ("text", "patient_id", "view", "sex", "age")}
        rows.append({**kept, **known, "split": "test", "prompt_id": Path(str(row["image"])).stem, "own_seed": None})
    if not rows:
        raise UserError(f"--prompts {path} has no text in split {split}; give a file of prompts")
    return rows


def _prompt_rows(prompts: Path) -> list[dict[str, Any]]:
    """A manifest row a prompt: labels from the file's column where it has one, else as the prompt itself says."""
    from roentgen.metrics.pairing import read_labelled_prompts
    from roentgen.prompt_files import read_prompts
    from roentgen.prompts import NO_FINDING, parse

    records = read_prompts(prompts)
    if prompts.suffix.lower() == ".csv" and "labels" in _header(prompts):
        labels = [prompt.labels for prompt in read_labelled_prompts(prompts)]
    else:
        labels = [parse(record.prompt) for record in records]
    rows: list[dict[str, Any]] = []
    for record, said in zip(records, labels, strict=True):
        row: dict[str, Any] = {
            "text": record.prompt,
            "patient_id": f"prompt {record.id}",
            "split": "test",
            "view": said.view or "",
            "sex": said.sex or "",
            "age": said.age,
            "prompt_id": record.id,
            "own_seed": record.seed,
        }
        row |= {name: 1.0 for name in said.findings}
        row |= {f"{name}_side": side for name, side in said.sides.items()}
        if said.findings and NO_FINDING not in said.findings:
            row[NO_FINDING] = 0.0
        rows.append(row)
    return rows


def made_by(images: ImageSet) -> dict[str, Any]:
    """Model and sampling by roentgen's marks in the files; nothing for other files, a count where they differ."""
    from roentgen.images import read_provenance

    keys = {"name": "model", "hash": "model_hash", "steps": "steps", "guidance": "guidance", "sampler": "sampler"}
    found = set()
    for path in images.paths:
        try:
            marks = read_provenance(path)
        except UserError:  # not made by roentgen
            return {}
        found.add(tuple(marks.get(key, "") for key in keys.values()))
    if len(found) > 1:
        return {"name": f"{len(found)} different models or settings"}
    return dict(zip(keys, found.pop(), strict=True))


def _write_rows(rows: list[dict[str, Any]], path: Path) -> Path:
    """Rows as a manifest: one that asks for no finding has 0 in all of them."""
    import pandas as pd

    from roentgen.data.manifest import write_manifest
    from roentgen.prompts import FINDINGS, NO_FINDING

    table = pd.DataFrame(rows)
    for name in FINDINGS:
        if name not in table:
            table[name] = float("nan")
    normal = table[NO_FINDING] == 1
    for name in FINDINGS:
        if name != NO_FINDING:
            table.loc[normal, name] = 0.0
    for column in [column for column in table if str(column).endswith("_side")]:
        table[column] = table[column].fillna("")
    table["image"] = [str(Path(image).resolve()) for image in table["image"]]
    return write_manifest(table, path.resolve())


def _settings(**values: Any) -> dict[str, Any]:
    """What was asked for, paths made portable, unset flags left out."""
    from roentgen.metrics.result import portable

    def said(value: Any) -> Any:
        return portable(str(Path(value).resolve())) if isinstance(value, str) and Path(value).exists() else value

    return {name: said(value) for name, value in values.items() if value is not None}


def _command(settings: dict[str, Any], out: str) -> str:
    """The command line that measures the same again."""
    import inspect
    import shlex

    from roentgen.metrics.result import portable

    usual = {name: p.default for name, p in inspect.signature(evaluate).parameters.items()}
    words = ["roentgen", "eval"]
    for name, value in {**settings, "out": portable(str(Path(out).resolve()))}.items():
        if value != usual.get(name):
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return shlex.join(words)


def _compare(folders: list[str], out: str | None, *, seed: int, resamples: int) -> int:
    if out is None:
        raise UserError("--out is missing; name a folder for the comparison")
    _need("matplotlib")
    from roentgen.metrics.compare import compare_folders

    print(compare_folders([Path(folder) for folder in folders], Path(out), seed=seed, resamples=resamples))
    return 0
