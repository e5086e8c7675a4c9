"""``roentgen eval``, as a function of its flags; nothing heavy is imported until it runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from roentgen.config import (
    BatchSize,
    Count,
    CountFromZero,
    Guidance,
    PathOrName,
    Positional,
    Range,
    Resamples,
    Seed,
    Short,
    Steps,
    Workers,
)
from roentgen.errors import UserError, install

if TYPE_CHECKING:
    from roentgen.metrics.image_set import ImageSet

GENERATED_AT_ONCE = 16
"""Images a forward pass of the generating model at most: memory grows with it."""


def evaluate(
    folders: Annotated[tuple[str, ...], Positional()] = (),
    real: PathOrName | None = None,
    synthetic: PathOrName | None = None,
    train: PathOrName | None = None,
    out: Annotated[PathOrName | None, Short("-o")] = None,
    suite: str = "quick",
    metrics: str | None = None,
    extractors: str | None = None,
    dual_encoder: PathOrName = "roentgen",
    image_to_text: PathOrName | None = None,
    siamese: PathOrName | None = None,
    autoencoder: PathOrName | None = None,
    real_split: str = "test",
    limit: Count | None = None,
    skip_bad: bool = False,
    seed: Seed = 0,
    resamples: Resamples = 1000,
    workers: Workers = 2,
    batch_size: BatchSize = 32,
    device: str = "auto",
    compare: PathOrName | None = None,
    generate: PathOrName | None = None,
    prompts: PathOrName | None = None,
    num_images: Annotated[Count, Short("-n")] = 1,
    num_prompts: Count | None = None,
    replicates: Annotated[int, Range(1, 1000)] = 1,
    probes: Annotated[int, Range(0, 10_000)] = 0,
    reconstructions: CountFromZero = 200,
    steps: Steps | None = None,
    guidance: Guidance | None = None,
    sampler: str | None = None,
    dtype: str = "auto",
) -> int:
    """Measure generated images against real ones: one JSON file a measure and an HTML report; prints the report's path.

    The same command again continues a run that was broken off, and measures only what is missing. Under `accelerate
    launch`, processes share the generation and the features.

        roentgen eval --real data/nih/manifest.csv --synthetic out --out results/out
        roentgen eval --real data/nih/manifest.csv --generate mini --prompts data/nih/manifest.csv --out results/mini
        roentgen eval --compare results/mini results/out --out results/both

    What is measured:
        real: Real images: a manifest (.csv, .parquet) or a folder of PNG, JPEG or DICOM files.
        synthetic: Generated images: a folder that `roentgen generate` wrote, any other folder, or a manifest.
        train: Manifest of the images that the model was trained on (its rows in split train), for memorisation.
        real_split: Split of the real manifest to measure against.
        limit: At most so many images of each set, drawn at random.
        skip_bad: Leave out images that cannot be read, and say so in the results.
        compare: Set finished evaluations side by side, as in --compare DIR DIR --out DIR.
        folders: Further evaluations to set beside the one of --compare.

    How it is measured:
        suite: quick (offline, minutes), standard, or full (every extractor whose weights are on this disk).
        metrics: Only these measures, with commas, such as fid,kid,auroc.
        extractors: Only these networks, with commas: judge, classifier, inception, xrv, xrv-native, clip, rad-dino, a
            hub id or a folder.
        dual_encoder: Of the image-text measures: roentgen (ships), biovil-t, biomedclip, or a CLIPModel's folder.
        image_to_text: Model that describes images, for report-based scores (--suite full): a folder or hub id.
        siamese: Function that tells patients apart, for re-identification (--suite full, with --train), as
            FILE.py:FUNCTION; it takes two lists of grey images and gives a score a pair, higher for the same patient.
        autoencoder: Model whose autoencoder reconstructs real images, for sharpness (default: the model that made the
            images, where it is on this disk).
        seed: Of every random choice, and of the first image with --generate.
        resamples: Bootstrap resamples of the intervals.

    Images that are generated first:
        generate: Model to generate the synthetic images with, into OUT/images: a name, folder or hub id.
        prompts: With --generate, a file of prompts (.txt, .csv, .jsonl; a CSV may have labels), or a manifest, whose
            texts in --real-split are the prompts.
        num_images: With --generate, images for each prompt.
        num_prompts: With --generate, at most so many prompts, drawn at random by --seed; the other sets stay whole.
        replicates: With --generate, draw and measure the same prompts so many times from other seeds, for the spread
            over seeds; the first goes to OUT, the others to OUT/replicate-2, OUT/replicate-3, ...
        probes: With --generate, images of each of ten further prompts that differ in one word (left and right, small
            and large, mild and severe), from the same seeds; 0 for none.
        reconstructions: Real images that go through the model's autoencoder and are measured as the best that it can
            do, at most; 0 for none.
        steps: With --generate, denoising steps (default: the model's).
        guidance: With --generate, guidance scale (default: the model's).
        sampler: With --generate, the sampler (default: the model's).
        dtype: With --generate, number format of the model.

    Output:
        out: Folder for the results.

    Machine:
        workers: Threads that read and decode images.
        batch_size: Images a forward pass at most (16 of --generate, 8 of the other networks on a CPU).
        device: auto, cpu, cuda, cuda:N or mps.
    """
    if compare is not None:
        return _compare([compare, *folders], out, seed=seed, resamples=resamples)
    if folders:
        raise UserError(f"{folders[0]}: what is it? name images with --real and --synthetic, or use --compare DIR DIR")
    _check_flags(real=real, synthetic=synthetic, out=out, generate=generate, prompts=prompts)
    if num_prompts is not None and generate is None:
        raise UserError("--num-prompts is for --generate MODEL; with --synthetic, --limit cuts the sets")
    if replicates > 1 and generate is None:
        raise UserError("--replicates is for --generate MODEL; evaluate folders of other seeds, then use --compare")
    _need("matplotlib")
    assert real is not None and out is not None

    from dataclasses import replace

    from roentgen.devices import keep_freed_memory, meeting, pick_device, this_process
    from roentgen.files import hold_folder, require_writable
    from roentgen.metrics.features import extract_share
    from roentgen.metrics.image_set import open_set
    from roentgen.metrics.measure import VALIDATION
    from roentgen.metrics.measures import MEASURES
    from roentgen.metrics.report.page import write_report
    from roentgen.metrics.report.replicates import write_replicates
    from roentgen.metrics.suite import Outcome, SuiteSettings, choose_extractors, choose_measures, run_suite
    from roentgen.provenance import portable
    from roentgen.synthesis.folder import further_sets, generate_set, made_by, on_this_disk

    if probes and generate is None:
        raise UserError("--probes is for --generate MODEL, which makes the images of the probes")
    names = choose_measures(suite, metrics, probes=probes > 0)
    wanted = {name for measure in names for name in MEASURES[measure].reads}
    target = Path(out)
    options: dict[str, Any] = {"skip_bad": skip_bad, "limit": limit, "seed": seed}
    sets = [open_set(Path(real), name="real", split=real_split if _is_manifest(real) else None, **options)]
    if train is not None:
        split = "train" if _is_manifest(train) else None
        sets.append(open_set(Path(train), name="train", split=split, **options))
    validation = _validation(real, real_split, skip_bad=skip_bad) if VALIDATION in wanted else None
    who, own_device = this_process(device)
    where = pick_device(own_device)
    if where == "cpu":
        keep_freed_memory()
    chosen, missing = choose_extractors(suite, extractors, where)
    if who.rank == 0:
        require_writable(target, "--out")
    settings = _settings(
        real=real,
        synthetic=synthetic,
        train=train,
        suite=suite,
        metrics=metrics,
        extractors=extractors,
        dual_encoder=dual_encoder,
        image_to_text=image_to_text,
        siamese=None if siamese is None else portable(siamese),  # FILE.py:FUNCTION is no path that exists
        autoencoder=autoencoder,
        real_split=real_split,
        limit=limit,
        skip_bad=skip_bad or None,
        seed=seed,
        resamples=resamples,
        generate=generate,
        prompts=prompts,
        num_images=num_images if generate else None,
        num_prompts=num_prompts,
        replicates=replicates if replicates > 1 else None,
        probes=probes or None,
        reconstructions=None if reconstructions == 200 else reconstructions,
        steps=steps,
        guidance=guidance,
        sampler=sampler,
        dtype=dtype if generate else None,
    )
    plan = SuiteSettings(
        out=target,
        cache=target / "cache",
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
        siamese=siamese,
    )
    command = _command(settings, out)

    def measured(folder: Path, replicate: int, wait: Callable[[], None]) -> tuple[Outcome, str] | None:
        """The evaluation of one draw of images, into ``folder``, and what it is of; None in all processes but one."""
        model: dict[str, Any] = {}
        source = synthetic
        if generate is not None:
            assert prompts is not None
            source, model = generate_set(
                folder,
                Path(prompts),
                name=generate,
                num_images=num_images,
                num_prompts=num_prompts,
                seed=seed,
                split=real_split,
                limit=limit,
                sampling=(steps, guidance, sampler),
                device=own_device,
                dtype=dtype,
                batch_size=min(batch_size, GENERATED_AT_ONCE),
                replicate=replicate,
                who=who,
                wait=wait,
            )
        assert source is not None
        made = open_set(Path(source), name="synthetic", **options)
        model = model or made_by(made)
        case = [sets[0], made, *sets[1:], *([] if validation is None else [validation])]
        case += further_sets(
            folder,
            sets[0],
            generate=generate if "probes" in wanted else None,
            autoencoder=(autoencoder or generate or on_this_disk(model)) if "reconstructed" in wanted else None,
            probes=probes,
            reconstructions=reconstructions,
            named=autoencoder is not None,
            seed=seed,
            sampling=(steps, guidance, sampler),
            device=own_device,
            dtype=dtype,
            batch_size=min(batch_size, GENERATED_AT_ONCE),
            skip_bad=skip_bad,
            who=who,
            wait=wait,
        )
        if who.rank:
            extract_share(case, chosen, cache=plan.cache, workers=workers, batch_size=batch_size, who=who)
            wait()
            return None
        here = replace(plan, out=folder)
        found = run_suite(case, here, command=command, model=model, settings=settings, who=who, wait=wait)
        return found, str(model.get("name") or Path(source).resolve().name)

    draws = [target, *(target / f"replicate-{number + 1}" for number in range(1, replicates))]
    with hold_folder(target, "--out") if who.rank == 0 else nullcontext(), meeting(who) as wait:
        first, *_ = [measured(draw, number, wait) for number, draw in enumerate(draws)]
        if first is None:
            return 0
        outcome, subject = first
        spread = None if replicates == 1 else write_replicates(target, draws)
        report = write_report(target, outcome, command=command, title=f"Evaluation of {subject}", spread=spread)
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
        raise UserError(f"roentgen eval needs {package}: {install('eval')}")


def _is_manifest(path: str) -> bool:
    from roentgen.metrics.image_set import manifest_in

    return not Path(path).is_dir() or manifest_in(Path(path)) is not None


def _validation(real: str, real_split: str, *, skip_bad: bool) -> ImageSet | None:
    """The real manifest's rows in split val, where it has any and they are not measured themselves."""
    from roentgen.data.manifest import read_manifest
    from roentgen.metrics.image_set import manifest_in, open_set
    from roentgen.metrics.measure import VALIDATION

    if not _is_manifest(real) or real_split == "val":
        return None
    table = read_manifest(manifest_in(Path(real)) or Path(real), allow_empty_text=True, check_files=False)
    if (table["split"] == "val").sum() < 2:
        return None
    return open_set(Path(real), name=VALIDATION, split="val", skip_bad=skip_bad)


def _settings(**values: Any) -> dict[str, Any]:
    """What was asked for, paths made portable, unset flags left out."""
    from roentgen.provenance import portable

    def said(value: Any) -> Any:
        return portable(str(Path(value).resolve())) if isinstance(value, str) and Path(value).exists() else value

    return {name: said(value) for name, value in values.items() if value is not None}


def _command(settings: dict[str, Any], out: str) -> str:
    """The command line that measures the same again."""
    import inspect
    import shlex

    from roentgen.provenance import portable

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
    from roentgen.metrics.report.compare import compare_folders

    print(compare_folders([Path(folder) for folder in folders], Path(out), seed=seed, resamples=resamples))
    return 0
