"""``roentgen eval``, as a dataclass of its flags; nothing heavy is imported until it runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
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
    from roentgen.devices import Process
    from roentgen.metrics.image_set import ImageSet
    from roentgen.metrics.suite import Outcome, SuiteSettings

GENERATED_AT_ONCE = 16
"""Images a forward pass of the generating model at most: memory grows with it."""
UNSAID = {"folders", "out", "workers", "batch_size", "device", "compare"}  # what changes no figure


@dataclass(frozen=True)
class Evaluation:
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

    folders: Annotated[tuple[str, ...], Positional()] = ()
    real: PathOrName | None = None
    synthetic: PathOrName | None = None
    train: PathOrName | None = None
    out: Annotated[PathOrName | None, Short("-o")] = None
    suite: str = "quick"
    metrics: str | None = None
    extractors: str | None = None
    dual_encoder: PathOrName = "roentgen"
    image_to_text: PathOrName | None = None
    siamese: PathOrName | None = None
    autoencoder: PathOrName | None = None
    real_split: str = "test"
    limit: Count | None = None
    skip_bad: bool = False
    seed: Seed = 0
    resamples: Resamples = 1000
    workers: Workers = 2
    batch_size: BatchSize = 32
    device: str = "auto"
    compare: PathOrName | None = None
    generate: PathOrName | None = None
    prompts: PathOrName | None = None
    num_images: Annotated[Count, Short("-n")] = 1
    num_prompts: Count | None = None
    replicates: Annotated[int, Range(1, 1000)] = 1
    probes: Annotated[int, Range(0, 10_000)] = 0
    reconstructions: CountFromZero = 200
    steps: Steps | None = None
    guidance: Guidance | None = None
    sampler: str | None = None
    dtype: str = "auto"


def evaluate(s: Evaluation) -> int:
    """Carry out an evaluation; see ``Evaluation``."""
    if s.compare is not None:
        return _compare([s.compare, *s.folders], s.out, seed=s.seed, resamples=s.resamples)
    _check_flags(s)
    _need("matplotlib")
    assert s.out is not None

    from roentgen.devices import meeting
    from roentgen.folders import hold_folder
    from roentgen.metrics.report.page import write_report
    from roentgen.metrics.report.replicates import write_replicates

    target = Path(s.out)
    run = _Run.open(s, target)
    draws = [target, *(target / f"replicate-{number + 1}" for number in range(1, s.replicates))]
    with hold_folder(target, "--out") if run.who.rank == 0 else nullcontext(), meeting(run.who) as wait:
        first, *_ = [run.measure(draw, number, wait) for number, draw in enumerate(draws)]
        if first is None:
            return 0
        outcome, subject = first
        spread = None if s.replicates == 1 else write_replicates(target, draws)
        title = f"Evaluation of {subject}"
        report = write_report(target, outcome, command=run.command, title=title, spread=spread)
    for name, reason in outcome.missing:
        print(f"not computed: {name}: {reason}", file=sys.stderr)
    print(report)
    if outcome.refused:
        raise UserError(
            f"{len(outcome.refused)} measure(s) could not be computed, the others are in {s.out}: "
            f"{'; '.join(outcome.refused)}; mend this or leave them out with --metrics"
        )
    return 0


@dataclass(frozen=True)
class _Run:
    """An evaluation whose flags are checked and whose real images are open."""

    s: Evaluation
    plan: SuiteSettings
    real: list[ImageSet]  # real images, and those of training where they are known
    validation: list[ImageSet]
    wanted: set[str]  # what the measures read
    who: Process
    device: str
    settings: dict[str, Any]
    command: str

    @classmethod
    def open(cls, s: Evaluation, out: Path) -> _Run:
        """Open the real images and choose measures and networks; UserError on what is wrong with them."""
        from roentgen.devices import keep_freed_memory, pick_device, this_process
        from roentgen.files import require_writable
        from roentgen.metrics.image_set import open_set
        from roentgen.metrics.measure import VALIDATION
        from roentgen.metrics.measures import MEASURES
        from roentgen.metrics.suite import SuiteSettings, choose_extractors, choose_measures

        assert s.real is not None
        names = choose_measures(s.suite, s.metrics, probes=s.probes > 0)
        wanted = {name for measure in names for name in MEASURES[measure].reads}
        split = s.real_split if _is_manifest(s.real) else None
        sets = [open_set(Path(s.real), name="real", split=split, **_reading(s))]
        if s.train is not None:
            split = "train" if _is_manifest(s.train) else None
            sets.append(open_set(Path(s.train), name="train", split=split, **_reading(s)))
        validation = _validation(s.real, s.real_split, skip_bad=s.skip_bad) if VALIDATION in wanted else None
        who, device = this_process(s.device)
        where = pick_device(device)
        if where == "cpu":
            keep_freed_memory()
        chosen, missing = choose_extractors(s.suite, s.extractors, where)
        if who.rank == 0:
            require_writable(out, "--out")
        shared = ("suite", "seed", "resamples", "workers", "batch_size", "skip_bad", "dual_encoder", "image_to_text",
                  "siamese")  # fmt: skip
        plan = SuiteSettings(
            out=out, cache=out / "cache", metrics=names, asked=s.metrics is not None, extractors=chosen,
            missing=missing, device=where, **{name: getattr(s, name) for name in shared},
        )  # fmt: skip
        settings = _settings(s)
        held = [] if validation is None else [validation]
        return cls(s, plan, sets, held, wanted, who, device, settings, _command(settings, str(s.out)))

    def measure(self, folder: Path, replicate: int, wait: Callable[[], None]) -> tuple[Outcome, str] | None:
        """The evaluation of one draw of images, into ``folder``, and what it is of; None in all processes but one."""
        from roentgen.metrics.features import extract_share
        from roentgen.metrics.image_set import open_set
        from roentgen.metrics.suite import run_suite
        from roentgen.synthesis.folder import further_sets, generate_set, made_by, on_this_disk

        s, who = self.s, self.who
        drawing: dict[str, Any] = {
            "seed": s.seed, "sampling": (s.steps, s.guidance, s.sampler), "device": self.device, "dtype": s.dtype,
            "batch_size": min(s.batch_size, GENERATED_AT_ONCE), "who": who, "wait": wait,
        }  # fmt: skip
        model: dict[str, Any] = {}
        source: Path | str | None = s.synthetic
        if s.generate is not None:
            assert s.prompts is not None
            source, model = generate_set(
                folder, Path(s.prompts), name=s.generate, num_images=s.num_images, num_prompts=s.num_prompts,
                split=s.real_split, limit=s.limit, replicate=replicate, **drawing,
            )  # fmt: skip
        assert source is not None
        made = open_set(Path(source), name="synthetic", **_reading(s))
        model = model or made_by(made)
        case = [self.real[0], made, *self.real[1:], *self.validation]
        of = (s.autoencoder or s.generate or on_this_disk(model)) if "reconstructed" in self.wanted else None
        case += further_sets(
            folder, self.real[0], generate=s.generate if "probes" in self.wanted else None, autoencoder=of,
            probes=s.probes, reconstructions=s.reconstructions, named=s.autoencoder is not None, skip_bad=s.skip_bad,
            **drawing,
        )  # fmt: skip
        plan = self.plan
        if who.rank:
            chosen, workers, size = plan.extractors, plan.workers, plan.batch_size
            extract_share(case, chosen, cache=plan.cache, workers=workers, batch_size=size, who=who)
            wait()
            return None
        here = replace(plan, out=folder)
        found = run_suite(case, here, command=self.command, model=model, settings=self.settings, who=who, wait=wait)
        return found, str(model.get("name") or Path(source).resolve().name)


def _reading(s: Evaluation) -> dict[str, Any]:
    return {"skip_bad": s.skip_bad, "limit": s.limit, "seed": s.seed}


def _check_flags(s: Evaluation) -> None:
    if s.folders:
        raise UserError(
            f"{s.folders[0]}: what is it? name images with --real and --synthetic, or use --compare DIR DIR"
        )
    if s.real is None:
        raise UserError("--real is missing; name a manifest or a folder of real images")
    if s.out is None:
        raise UserError("--out is missing; name a folder for the results")
    if (s.synthetic is None) == (s.generate is None):
        raise UserError("give either --synthetic MANIFEST_OR_FOLDER or --generate MODEL --prompts FILE")
    if (s.generate is None) != (s.prompts is None):
        lacking = "--prompts" if s.prompts is None else "--generate"
        raise UserError(f"{lacking} is missing; --generate MODEL and --prompts FILE belong together")
    if s.generate is None:
        for given, said in (
            (
                s.num_prompts is not None,
                "--num-prompts is for --generate MODEL; with --synthetic, --limit cuts the sets",
            ),
            (
                s.replicates > 1,
                "--replicates is for --generate MODEL; evaluate folders of other seeds, then use --compare",
            ),
            (s.probes > 0, "--probes is for --generate MODEL, which makes the images of the probes"),
        ):
            if given:
                raise UserError(said)


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


def _settings(s: Evaluation) -> dict[str, Any]:
    """What was asked for, paths made portable, unset flags left out."""
    from roentgen.provenance import portable

    def said(value: Any) -> Any:
        try:
            return portable(str(Path(value).resolve())) if isinstance(value, str) and Path(value).exists() else value
        except OSError:  # a list of many measures is longer than any name of a file
            return value

    values = {key: value for key, value in vars(s).items() if key not in UNSAID}
    values |= {
        "siamese": None if s.siamese is None else portable(s.siamese),  # FILE.py:FUNCTION is no path that exists
        "skip_bad": s.skip_bad or None,
        "num_images": s.num_images if s.generate else None,
        "replicates": s.replicates if s.replicates > 1 else None,
        "probes": s.probes or None,
        "reconstructions": None if s.reconstructions == 200 else s.reconstructions,
        "dtype": s.dtype if s.generate else None,
    }
    return {name: said(value) for name, value in values.items() if value is not None}


def _command(settings: dict[str, Any], out: str) -> str:
    """The command line that measures the same again."""
    import shlex

    from roentgen.provenance import portable

    usual = {field.name: field.default for field in fields(Evaluation)}
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
