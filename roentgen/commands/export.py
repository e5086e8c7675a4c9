"""``roentgen export``, as a dataclass of its flags; nothing heavy is imported until it runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from roentgen.config import BatchSize, Count, Guidance, PathOrName, Range, Seed, Share, Short, Steps
from roentgen.devices import Process, this_process
from roentgen.errors import UserError
from roentgen.files import user_path

if TYPE_CHECKING:
    from roentgen.synthesis.engine import Draws
    from roentgen.synthesis.maker import Maker
    from roentgen.synthesis.plan import Plan
    from roentgen.synthesis.rates import Rate

DEFAULT_STAGES = "prompt,real,copies,repeats"
DEFAULT_FORMATS = "folder,webdataset"
SHARDS = 64
"""A plan is cut into about so many shards, of 16 to 1,000 rows: what is lost at most when a run is killed."""


@dataclass(frozen=True)
class Export:
    """Make a synthetic data set: planned, filtered, marked as synthetic; prints its folder.

    The same command again goes on where a killed run ended. Under `accelerate launch` or `torchrun` every process
    makes its share.

        roentgen export --per-finding 100 --out sets/balanced --dry-run
        roentgen export --like data/nih/manifest.csv --format folder,parquet --out sets/like-nih

    What is in the set:
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

    Model and sampling:
        model: mini, another name of `roentgen models`, a model folder, or a Hugging Face id (default: mini).
        lora: LoRA in diffusers' format to merge into the model.
        seed: First seed (default: 0).
        steps: Denoising steps (default: the model's).
        guidance: Guidance scale (default: the model's); lower gives more varied images that show less of the prompt.
        sampler: dpm++, unipc (both also as NAME-karras), ddim or pndm; of masked transformers halton or confidence
            (default: the model's).
        guided_share: Share of the steps that are guided, from the first; the others take half the time, and the image
            differs a little (default: the model's, else 1).

    Filter:
        filter: Stages with commas: prompt, view, sex, age, real, copies, repeats; or none. Black images never pass.
        reference: Reference of the filter, made from one's own training images by `roentgen train reference`
            (default: that of mini).
        max_tries: Seeds at most for one image before it counts as missing (default: 4).

    Output:
        out: Folder of the set.
        format: folder, parquet, webdataset, dicom, with commas; folder is read by torchxrayvision too.
        shard_size: Images that are made, kept and written together (default: by the number of images, 16 to 1,000).
        dry_run: Print the resolved plan, and the time and disk to expect by a stored rate; draw and write nothing.
        measure: With --dry-run, draw a batch of images for the rate and throw them away.

    Machine:
        batch_size: Images computed at once.
        device: auto, cpu, cuda, cuda:N or mps.
        dtype: auto (float16 on a CUDA GPU, bfloat16 on a CPU that computes in it, else float32), float32, float16 or
            bfloat16.
        compile: Compile the network first; for GPUs, on a CPU it makes images slower.
        ray: Draw on a Ray cluster: its address, auto (the one that this machine is of) or local (one on this machine).
    """

    plan: PathOrName | None = None
    per_finding: Count | None = None
    findings: str | None = None
    prompts: PathOrName | None = None
    num_images: Annotated[Count | None, Short("-n")] = None
    like: PathOrName | None = None
    balance: PathOrName | None = None
    split: str | None = None
    count: Count | None = None
    target: Count | None = None
    by: str | None = None
    demographics: str | None = None
    name: str | None = None
    model: PathOrName | None = None
    seed: Seed | None = None
    steps: Steps | None = None
    guidance: Guidance | None = None
    sampler: str | None = None
    guided_share: Share | None = None
    max_tries: Annotated[int | None, Range(1, 1000)] = None
    shard_size: Annotated[int | None, Range(1, 1_000_000)] = None
    out: Annotated[PathOrName | None, Short("-o")] = None
    format: str = DEFAULT_FORMATS
    filter: str = DEFAULT_STAGES
    reference: PathOrName | None = None
    batch_size: BatchSize = 16
    device: str = "auto"
    dtype: str = "auto"
    compile: bool = False
    lora: PathOrName | None = None
    ray: str | None = None
    dry_run: bool = False
    measure: bool = False


def export(s: Export) -> int:
    """Make the set, or with ``dry_run`` say what it will be; see ``Export``."""
    from roentgen.synthesis.describe import describe
    from roentgen.synthesis.engine import is_finished

    if s.out is None and not s.dry_run:
        raise UserError("--out is missing; name a folder for the set")
    formats = _formats(s.format)
    plan, settings = _resolve(s)
    if s.measure and not s.dry_run:
        raise UserError("--measure is for --dry-run; leave it out to make the set")
    folder = None if s.out is None else user_path(s.out)
    who, where = this_process(s.device)
    if s.ray is not None:
        from roentgen.cluster import require_ray

        require_ray(s.ray)
        if who.world > 1:
            raise UserError(f"--ray {s.ray}: Ray spreads the work itself; start one process, without a launcher")
    if who.rank == 0:
        print("\n".join(describe(plan)), file=sys.stderr)
    if folder is not None and not s.dry_run:
        _refuse_strangers(folder)

    from roentgen.synthesis.maker import Maker, open_filter

    stages, judge = open_filter(s.filter, s.reference)
    if who.rank == 0:
        print(f"filter: {', '.join(stages)}", file=sys.stderr)
    if s.dry_run and not s.measure:
        return _say_stored(plan, formats, folder, device=where, dtype=s.dtype, filtered=len(stages) > 1)
    maker = Maker.load(
        plan, stages, judge, device=where, dtype=s.dtype, compile=s.compile, lora=s.lora, batch_size=s.batch_size
    )
    if who.rank == 0:
        maker.warn()
    if s.dry_run:
        if who.rank == 0:
            _say(maker.measure(s.batch_size), plan, formats, folder)
        return 0
    assert folder is not None
    if _claim(folder, maker, formats, who) and is_finished(folder):
        if who.rank == 0:
            print(f"roentgen: {s.out} is complete already", file=sys.stderr)
            print(s.out)
        return 0
    flags = {name: getattr(s, name) for name in ("plan", "out", "format", "filter", "reference", "lora")}
    command = _command(settings, **flags)
    if s.ray is None:
        return _run(maker, folder, formats, who, command)
    from roentgen.synthesis.ray_cluster import Cluster, Recipe

    has = maker.model.info
    recipe = Recipe(
        plan, s.filter, s.reference, has.device, has.dtype, s.compile, s.lora, s.batch_size, maker.settings()
    )
    with Cluster(s.ray, recipe) as cluster:
        return _run(maker, folder, formats, who, command, draws=cluster.draw)


def _resolve(s: Export) -> tuple[Plan, dict[str, Any]]:
    """The plan, and the settings that it was made from: those of the file, with flags over them."""
    from roentgen.synthesis.plan_file import TYPES, read_plan
    from roentgen.synthesis.sources import resolve_plan

    settings = {} if s.plan is None else read_plan(s.plan)
    settings |= {key: value for key, value in vars(s).items() if key in TYPES and value is not None}
    plan = resolve_plan(**settings)
    if "shard_size" not in settings:
        plan = resolve_plan(**settings, shard_size=max(16, min(1000, -(-len(plan) // SHARDS))))
    return plan, settings


def _say_stored(
    plan: Plan, formats: Sequence[str], out: Path | None, *, device: str, dtype: str, filtered: bool
) -> int:
    """Time and disk by a rate that was measured before; nothing is loaded or drawn."""
    from roentgen.devices import pick_device, throughput_dtype
    from roentgen.models.hub import resolve
    from roentgen.synthesis.rates import stored_rate

    resolve(plan.model)  # UserError on what is no model
    where = pick_device(device)
    dtype = throughput_dtype(where) if dtype == "auto" else dtype
    dtype = {"cpu": "float32"}.get(where, "float16") if dtype == "auto" else dtype
    rate = stored_rate(plan.model, device=where, dtype=dtype, steps=plan.steps, filtered=filtered)
    if rate is None:
        print(f"no rate is stored of {plan.model} on {where} in {dtype}: --measure draws a few images for one")
    else:
        _say(rate, plan, formats, out)
    return 0


def _say(rate: Rate, plan: Plan, formats: Sequence[str], out: Path | None) -> None:
    from roentgen.synthesis.rates import estimate

    print("\n".join(estimate(rate, images=len(plan), max_tries=plan.max_tries, formats=formats, out=out)))


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


def _claim(out: Path, maker: Maker, formats: Sequence[str], who: Process) -> bool:
    """Make ``out`` the folder of this job: whether it was before. UserError where it is another's."""
    from roentgen.folders import claim
    from roentgen.provenance import __version__

    about = {
        "plan": maker.plan.as_dict(),
        "model": maker.settings(),
        "filter": {"stages": list(maker.stages), "hash": maker.filter.hash},
        "format": list(formats),
        "version": __version__,
    }
    return claim(out / PLAN_FILE, about, holds="a set of another", write=who.rank == 0)


def _run(
    maker: Maker, out: Path, formats: Sequence[str], who: Process, command: str, *, draws: Draws | None = None
) -> int:
    from tqdm import tqdm

    from roentgen.devices import meeting
    from roentgen.synthesis.engine import make_set, say_shortfalls

    plan = maker.plan
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

        counts = make_set(
            plan, maker.info(command), out, formats=formats, make=maker.make, judge=maker.filter,
            find_repeats=maker.find_repeats, who=who, wait=wait, on_image=on_image, on_kept_shard=on_shard,
            draws=draws,
        )  # fmt: skip
    if counts is not None:
        say_shortfalls(counts, plan.max_tries)
        print(f"{counts['images']} images", file=sys.stderr)
        print(out)
    return 0


def _command(settings: dict[str, Any], **flags: str | None) -> str:
    """The command line, paths as they were given but for the folders that lead to them."""
    import shlex

    from roentgen.models.hub import public_name

    usual = {"format": DEFAULT_FORMATS, "filter": DEFAULT_STAGES}
    words = ["roentgen", "export"]
    own = {} if flags["plan"] is not None else settings
    for key, value in {**own, **{k: v for k, v in flags.items() if v is not None and v != usual.get(k)}}.items():
        is_path = key in ("plan", "prompts", "like", "balance", "out", "reference", "lora")
        said = Path(str(value)).name if is_path else public_name(str(value)) if key == "model" else str(value)
        words += [f"--{key.replace('_', '-')}", said]
    return shlex.join(words)
