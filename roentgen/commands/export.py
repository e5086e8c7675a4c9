"""``roentgen export``, as a function of its flags; nothing heavy is imported until it runs."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from roentgen.config import BatchSize, Count, Guidance, PathOrName, Range, Seed, Short, Steps
from roentgen.devices import Process, this_process
from roentgen.errors import UserError

if TYPE_CHECKING:
    from roentgen.generators.base import Generator, Sample
    from roentgen.synthesis.filters import Filter
    from roentgen.synthesis.filters.repeats import Repeats
    from roentgen.synthesis.plan import Plan
    from roentgen.synthesis.writers.parts import SetInfo

DEFAULT_STAGES = "prompt,real,copies,repeats"
DEFAULT_FORMATS = "folder,webdataset"
SHARDS = 64
"""A plan is cut into about so many shards, of 16 to 1,000 rows: what is lost at most when a run is killed."""


def export(
    plan: PathOrName | None = None,
    per_finding: Count | None = None,
    findings: str | None = None,
    prompts: PathOrName | None = None,
    num_images: Annotated[Count | None, Short("-n")] = None,
    like: PathOrName | None = None,
    balance: PathOrName | None = None,
    split: str | None = None,
    count: Count | None = None,
    target: Count | None = None,
    by: str | None = None,
    demographics: str | None = None,
    name: str | None = None,
    model: PathOrName | None = None,
    seed: Seed | None = None,
    steps: Steps | None = None,
    guidance: Guidance | None = None,
    sampler: str | None = None,
    max_tries: Annotated[int | None, Range(1, 1000)] = None,
    shard_size: Annotated[int | None, Range(1, 1_000_000)] = None,
    out: Annotated[PathOrName | None, Short("-o")] = None,
    format: str = DEFAULT_FORMATS,
    filter: str = DEFAULT_STAGES,
    reference: PathOrName | None = None,
    batch_size: BatchSize = 16,
    device: str = "auto",
    dtype: str = "auto",
    compile: bool = False,
    lora: PathOrName | None = None,
    dry_run: bool = False,
) -> int:
    """Make a synthetic data set: planned, filtered, marked as synthetic; prints its folder.

    The same command again goes on where a killed run ended. Under `accelerate launch` or `torchrun` every process
    makes its share.

    Args:
        plan: YAML file with any of the settings down to shard_size; flags win over it.
        per_finding: So many images of each finding, balanced by sex, view and age.
        findings: With --per-finding or --balance, only these, with commas.
        prompts: File of prompts (.txt, .csv, .jsonl); a CSV may have the columns labels, view, sex and age.
        num_images: With --prompts, images for each (default: 1).
        like: Manifest of real images whose labels, views, sexes and ages the set shall have.
        balance: Manifest of real images: make what each finding lacks to be as frequent as the commonest.
        split: With --like or --balance, which rows of the manifest (default: train).
        count: With --like, number of images (default: as many as real ones).
        target: With --balance, images that each finding shall have in all.
        by: With --balance, level each finding within these, with commas: sex, view, age.
        demographics: balanced, none, or those of sex, view, age that prompts shall say in equal shares (default:
            balanced).
        name: Of the set (default: synthetic).
        model: mini, another name of `roentgen models`, a diffusers folder, or a Hugging Face id (default: mini).
        seed: First seed (default: 0).
        steps: Denoising steps (default: the model's).
        guidance: Guidance scale (default: the model's); lower gives more varied images that show less of the prompt.
        sampler: dpm++, unipc, ddim or pndm (default: the model's).
        max_tries: Seeds at most for one image before it counts as missing (default: 4).
        shard_size: Images that are made, kept and written together (default: by the number of images, 16 to 1,000).
        out: Folder of the set.
        format: folder, parquet, webdataset, dicom, with commas; folder is read by torchxrayvision too.
        filter: Stages with commas: prompt, view, sex, age, real, copies, repeats; or none. Black images never pass.
        reference: Reference of the filter, made by train/reference.py from one's own training images (default: that of
            mini).
        batch_size: Images computed at once.
        device: auto, cpu, cuda, cuda:N or mps.
        dtype: auto (float16 on a CUDA GPU, bfloat16 on a CPU that computes in it, else float32), float32, float16 or
            bfloat16.
        compile: Compile the network first; pays off for thousands of images.
        lora: LoRA in diffusers' format to merge into the model.
        dry_run: Print the resolved plan, and the time and disk that a few images let expect; write nothing.
    """
    from roentgen.synthesis.describe import describe
    from roentgen.synthesis.sources import read_plan, resolve_plan

    given = {
        "per_finding": per_finding, "findings": findings, "prompts": prompts, "num_images": num_images, "like": like,
        "balance": balance, "split": split, "count": count, "target": target, "by": by, "demographics": demographics,
        "name": name, "model": model, "seed": seed, "steps": steps, "guidance": guidance, "sampler": sampler,
        "max_tries": max_tries, "shard_size": shard_size,
    }  # fmt: skip
    settings = {} if plan is None else read_plan(plan)
    settings |= {key: value for key, value in given.items() if value is not None}
    formats = _formats(format)
    if out is None and not dry_run:
        raise UserError("--out is missing; name a folder for the set")
    resolved = resolve_plan(**settings)
    if "shard_size" not in settings:
        resolved = resolve_plan(**settings, shard_size=max(16, min(1000, -(-len(resolved) // SHARDS))))

    from roentgen.synthesis.engine import is_finished

    target_folder = None if out is None else Path(out).expanduser()
    who, where = this_process(device)
    if who.rank == 0:
        print("\n".join(describe(resolved)), file=sys.stderr)
    if target_folder is not None and not dry_run:
        _refuse_strangers(target_folder)
    job = _load(resolved, filter=filter, reference=reference, device=where, dtype=dtype, compile=compile, lora=lora,
                batch_size=batch_size)  # fmt: skip
    if who.rank == 0:
        job.say()
    if dry_run:
        if who.rank == 0:
            print("\n".join(job.estimate(formats, target_folder)))
        return 0
    assert target_folder is not None
    if _claim(target_folder, job, formats, who) and is_finished(target_folder):
        if who.rank == 0:
            print(f"roentgen: {out} is complete already", file=sys.stderr)
            print(out)
        return 0
    command = _command(settings, plan=plan, out=out, format=format, filter=filter, reference=reference)
    return _run(job, target_folder, formats, who, command)


# ------------------------------------------------------------------------------------------------ the job


@dataclass(frozen=True)
class Job:
    """A plan with everything that makes it: model, filter, and how they are run."""

    plan: Plan
    model: Generator
    filter: Filter
    stages: tuple[str, ...]
    find_repeats: Repeats | None
    batch_size: int

    def make(self, prompts: Sequence[str], seeds: Sequence[int]) -> Iterator[Sample]:
        """Images of prompts and seeds, in order."""
        from roentgen.generators.generate import generate

        return generate(
            self.model,
            prompts,
            seeds=seeds,
            steps=self.plan.steps,
            guidance=self.plan.guidance,
            sampler=self.plan.sampler,
            batch_size=self.batch_size,
        )

    def say(self) -> None:
        """Warnings and the filter, on stderr."""
        from roentgen.generators.generate import warn_unknown_words
        from roentgen.synthesis.describe import unknown_demographics

        few = range(min(len(self.plan), 1000))
        warn_unknown_words(self.model, [self.plan.row(slot).prompt for slot in few])
        info = self.model.info
        for name in unknown_demographics(self.plan, info.vocabulary):
            print(f"roentgen: warning: {info.name} has never seen words of {name} in training", file=sys.stderr)
        print(f"filter: {', '.join(self.stages)}", file=sys.stderr)

    def settings(self) -> dict[str, str]:
        """Model and sampling, as in the provenance of its images."""
        info = self.model.info
        chosen = self.model.sampling(
            steps=self.plan.steps, guidance=self.plan.guidance, sampler=self.plan.sampler
        ).provenance()
        return {
            "name": info.name,
            "hash": info.hash,
            **({} if info.lora is None else {"lora": info.lora}),
            **{key: value for key, value in chosen.items() if value},
            "dtype": info.dtype,
        }

    def describe_filter(self) -> dict[str, Any] | None:
        """What the card says of the filter."""
        if self.stages == ("broken",):
            return None
        described = dict(self.filter.describe())
        if self.find_repeats is not None:
            described["stages"] = {**described["stages"], "repeats": self.find_repeats.describe()}
        return described

    def estimate(self, formats: Sequence[str], out: Path | None) -> list[str]:
        """Time and disk, from one batch that is made, judged and thrown away."""
        from roentgen.images import encode_image

        rows = [self.plan.row(slot) for slot in range(min(self.batch_size, len(self.plan)))]
        seeds = [self.plan.seed_of(row.slot, 0) for row in rows]
        list(self.make([row.prompt for row in rows[:1]], seeds[:1]))  # the first call is slower than all others
        began = time.perf_counter()
        samples = list(self.make([row.prompt for row in rows], seeds))
        import numpy as np

        verdicts = self.filter.judge(np.stack([sample.image for sample in samples]), [row.labels for row in rows])
        size = sum(len(encode_image(sample.image, "png", sample.provenance)) for sample in samples) / len(samples)
        seconds = (time.perf_counter() - began) / len(samples)
        kept = sum(not verdict.stage for verdict in verdicts)
        # Draws go on until one is kept, at most max_tries: the mean of a geometric distribution that is cut off.
        share = kept / len(samples)
        tries = self.plan.max_tries if share == 0 else (1 - (1 - share) ** self.plan.max_tries) / share
        images = len(self.plan)
        disk = images * size * (len(formats) + 1)
        lines = [
            f"from {len(samples)} images: {seconds:.2f} s and {size / 1e3:.0f} kB each, {kept} of them kept; so about "
            f"{tries:.1f} draws an image",
            f"time: about {_duration(images * tries * seconds)} in one process; disk: about {_size(disk)} while it is "
            f"made, {_size(images * size * len(formats))} afterwards",
        ]
        existing = next((p for p in [out, *out.parents] if p.exists()), None) if out is not None else None
        if existing is not None and (free := shutil.disk_usage(existing).free) < disk:
            lines.append(f"only {_size(free)} are free where --out {out} is: choose another place or fewer --format")
        return lines


def _load(
    plan: Plan,
    *,
    filter: str,
    reference: str | None,
    device: str,
    dtype: str,
    compile: bool,
    lora: str | None,
    batch_size: int,
) -> Job:
    from roentgen.devices import throughput_dtype
    from roentgen.generators.generate import load_model
    from roentgen.synthesis.filters import load_filter, load_repeats
    from roentgen.training.speed import keep_freed_memory

    stages = () if filter == "none" else tuple(name.strip() for name in filter.split(",") if name.strip())
    if not stages and filter != "none":
        raise UserError("--filter is empty; name stages, such as prompt,repeats, or none")
    where = None if reference is None else Path(reference)
    judge = load_filter(stages, reference=where)
    if dtype == "auto":
        dtype = throughput_dtype(device)
    keep_freed_memory()
    model = load_model(plan.model, device=device, dtype=dtype, compile=compile, lora=lora)
    repeats = load_repeats(judge, plan_rows=len(plan)) if "repeats" in stages else None
    return Job(plan, model, judge, (*judge.stages, *(("repeats",) if repeats else ())), repeats, batch_size)


def _formats(format: str) -> tuple[str, ...]:
    from roentgen.synthesis.writers import FORMATS

    named = tuple(dict.fromkeys(name.strip() for name in format.split(",") if name.strip()))
    for name in named:
        if name not in FORMATS:
            raise UserError(f"--format {name}: unknown; choose from {', '.join(FORMATS)}, with commas")
    if not named:
        raise UserError(f"--format is empty; choose from {', '.join(FORMATS)}, with commas")
    return named


# --------------------------------------------------------------------------------------------- the folder


PLAN_FILE = "plan.json"


def _refuse_strangers(out: Path) -> None:
    """Refuse a folder with anything that is no part of a set, before a model is loaded."""
    if out.is_file():
        raise UserError(f"--out {out} is a file; name a folder")
    if out.is_dir() and not (out / PLAN_FILE).exists() and any(out.iterdir()):
        raise UserError(f"--out {out} holds other files; name a new or an empty folder")


def _claim(out: Path, job: Job, formats: Sequence[str], who: Process) -> bool:
    """Make ``out`` the folder of this job: whether it was before. UserError where it is another's."""
    from roentgen.files import claim
    from roentgen.provenance import __version__

    about = {
        "plan": job.plan.as_dict(),
        "model": job.settings(),
        "filter": {"stages": list(job.stages), "hash": job.filter.hash},
        "format": list(formats),
        "version": __version__,
    }
    return claim(out / PLAN_FILE, about, holds="a set of another", write=who.rank == 0)


def _run(job: Job, out: Path, formats: Sequence[str], who: Process, command: str) -> int:
    from tqdm import tqdm

    from roentgen.devices import meeting
    from roentgen.synthesis.engine import make_set, say_shortfalls

    plan = job.plan
    info = _info(job, command)
    drawn = kept = 0
    bar = tqdm(total=len(plan) // who.world, desc="images", file=sys.stderr, disable=who.rank > 0)
    with meeting(who) as wait, bar:

        def on_image(is_kept: bool) -> None:
            nonlocal drawn, kept
            drawn, kept = drawn + 1, kept + is_kept
            bar.set_postfix_str(f"{kept} of {drawn} kept", refresh=False)
            bar.update(min(is_kept, bar.total - bar.n))

        def on_shard(rows: int) -> None:
            bar.update(min(rows, bar.total - bar.n))

        outcome = make_set(
            plan, info, out, formats=formats, make=job.make, judge=job.filter, find_repeats=job.find_repeats,
            who=who, wait=wait, on_image=on_image, on_kept_shard=on_shard,
        )  # fmt: skip
    if outcome is not None:
        say_shortfalls(outcome.counts, plan.max_tries)
        print(f"{outcome.images} images", file=sys.stderr)
        print(out)
    return 0


def _info(job: Job, command: str) -> SetInfo:
    from roentgen.synthesis.card import model_licence
    from roentgen.synthesis.writers.parts import SetInfo

    plan = job.plan
    return SetInfo(
        name=plan.name,
        rows=len(plan),
        findings=plan.findings,
        model=job.settings(),
        plan=plan.as_dict(),
        filter=job.describe_filter(),
        command=command,
        licence=model_licence(job.model.info.folder),
    )


def _command(settings: dict[str, Any], **flags: str | None) -> str:
    """The command line, paths as they were given but for the folders that lead to them."""
    import shlex

    usual = {"format": DEFAULT_FORMATS, "filter": DEFAULT_STAGES}
    words = ["roentgen", "export"]
    own = {} if flags["plan"] is not None else settings
    for key, value in {**own, **{k: v for k, v in flags.items() if v is not None and v != usual.get(k)}}.items():
        is_path = key in ("plan", "prompts", "like", "balance", "out", "reference")
        words += [f"--{key.replace('_', '-')}", Path(str(value)).name if is_path else str(value)]
    return shlex.join(words)


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds"


def _size(count: float) -> str:
    for unit, length in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= length:
            return f"{count / length:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"
