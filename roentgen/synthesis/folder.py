"""Folders of generated images: made once, kept as PNG with provenance, made again only if that differs.

``generate_set`` makes the images of a list of prompts or of a manifest's texts, for ``roentgen eval --generate``, and a
manifest of them; ``generated_images`` gives the pixels of jobs.
"""

from __future__ import annotations

import dataclasses
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from roentgen.data.prompt_table import is_manifest_file, manifest_rows, prompt_rows
from roentgen.devices import ALONE, Process
from roentgen.errors import UserError
from roentgen.files import file_hash, sha256
from roentgen.folders import claim
from roentgen.generators import generate as generation
from roentgen.generators.base import Generator, Sampling
from roentgen.images import marks_of, read_image, save_image
from roentgen.provenance import portable

if TYPE_CHECKING:
    from roentgen.metrics.image_set import ImageSet


@dataclass(frozen=True)
class Job:
    """One image to generate."""

    prompt: str
    seed: int


def image_path(folder: Path, job: Job) -> Path:
    """Where the image of ``job`` is kept: by prompt and seed, so that lists may grow or change order."""
    return folder / f"{sha256(job.prompt)[:16]}-{job.seed}.png"


def is_made(path: Path, job: Job, model_hash: str, sampling: Sampling) -> bool:
    """Whether ``path`` holds the image of ``job`` by this model and sampling, judged by its provenance."""
    marks = marks_of(path)
    wanted = {"prompt": job.prompt, "seed": str(job.seed), "model_hash": model_hash, **sampling.provenance()}
    return all(marks.get(key, "") == value for key, value in wanted.items())


def generated_images(
    model: Generator, jobs: Sequence[Job], folder: Path, *, sampling: Sampling, batch_size: int
) -> NDArray[np.uint8]:
    """Images of ``jobs`` in order, uint8 (N, H, W); those not in ``folder`` are made and saved there."""
    make_images(model, jobs, folder, sampling=sampling, batch_size=batch_size)
    return np.stack([read_image(image_path(folder, job)) for job in jobs])


def make_images(
    model: Generator, jobs: Sequence[Job], folder: Path, *, sampling: Sampling, batch_size: int, bar: bool = True
) -> None:
    """Make the images of ``jobs`` that are not in ``folder`` (``image_path``); with a progress bar on stderr."""
    from tqdm import tqdm

    distinct = list(dict.fromkeys(jobs))
    missing = [job for job in distinct if not is_made(image_path(folder, job), job, model.info.hash, sampling)]
    if not missing:
        return
    samples = generation.generate(
        model,
        [job.prompt for job in missing],
        seeds=[job.seed for job in missing],
        batch_size=batch_size,
        **dataclasses.asdict(sampling),
    )
    done = len(distinct) - len(missing)
    shown = tqdm(samples, total=len(distinct), initial=done, desc="generating", file=sys.stderr, disable=not bar)
    for job, sample in zip(missing, shown, strict=True):
        path = image_path(folder, job)
        save_image(sample.image, path, format="png", provenance=sample.provenance, overwrite=True)


# ---------------------------------------------------------------------- a list of prompts


def generate_set(
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
    replicate: int = 0,
    who: Process = ALONE,
    wait: Callable[[], None] = lambda: None,
) -> tuple[str, dict[str, Any]]:
    """Make the images of ``prompts`` into OUT/images, those that are there already kept; manifest and model.

    Prompts are drawn by ``seed`` alone; those of ``replicate`` 1, 2, ... get the seeds that follow on the ones before.
    One of several processes (``who``) makes its share and waits for the others (``wait``, a barrier).
    """
    from_manifest = is_manifest_file(prompts)
    records = manifest_rows(prompts, split) if from_manifest else prompt_rows(prompts)
    model = generation.load_model(name, device=device, dtype=dtype)
    steps, guidance, sampler = sampling
    chosen = model.sampling(steps=steps, guidance=guidance, sampler=sampler)
    generation.check_settings(num_images=num_images, seed=seed, batch_size=batch_size)
    # A prompt of somebody's list is mended there; reports of a manifest are as long as they are.
    long = [record for record in records if from_manifest and not generation.reads(model, str(record["text"]))]
    records = [record for record in records if record not in long]
    if long and not who.rank:
        print(f"--prompts {prompts}: {len(long)} text(s) longer than {name} reads are left out", file=sys.stderr)
    # The images that --limit would leave out need not be made.
    most = min(len(records), num_prompts or len(records), -(-limit // num_images) if limit else len(records))
    if most < len(records):
        records = [records[row] for row in sorted(random.Random(seed).sample(range(len(records)), most))]
    generation.check_count(len(records) * num_images, "--num-images")
    for record in records:
        model.check(str(record["text"]), f"--prompts {prompts}, id {record['prompt_id']}:")
    about = {
        "name": portable(model.info.name),
        "hash": model.info.hash,
        "dtype": f"torch.{model.info.dtype}",
        **{key: value for key, value in dataclasses.asdict(chosen).items() if value != ""},
        "prompts": file_hash(prompts),
        "prompts_too_long": len(long),
        "prompts_used": len(records),
        "num_images": num_images,
        "first_seed": seed + replicate * len(records) * num_images,
    }
    words = {
        **{"name": "model", "hash": "model", "dtype": "number format", "steps": "number of steps"},
        **{"guidance": "guidance scale", "prompts": "list of prompts", "prompts_used": "number of prompts"},
        **{"num_images": "number of images a prompt", "first_seed": "seed"},
    }
    claim(out / "generation.json", about, holds="images of another", words=words)  # before one of them is replaced
    jobs, rows = [], []
    for number, record in enumerate(records):
        # A prompt's own seed wins; else every prompt has its own, so that equal prompts give different images.
        first = record.pop("own_seed")
        first = seed + number * num_images if first is None else first
        first += replicate * len(records) * num_images
        for index in range(num_images):
            job = Job(str(record["text"]), first + index)
            jobs.append(job)
            path = image_path(out / "images", job)
            rows.append({**record, "image": str(path), "seed": str(job.seed)})
    own = [jobs[number] for number in who.own(len(jobs))]
    make_images(model, own, out / "images", sampling=chosen, batch_size=batch_size, bar=not who.rank)
    wait()
    manifest = _write_rows(rows, out / "synthetic.csv")
    return str(manifest), about


def further_sets(
    out: Path,
    real: ImageSet,
    *,
    generate: str | None,
    autoencoder: str | None,
    probes: int,
    reconstructions: int,
    named: bool,
    seed: int,
    sampling: tuple[int | None, float | None, str | None],
    device: str,
    dtype: str,
    batch_size: int,
    skip_bad: bool = False,
    who: Process = ALONE,
    wait: Callable[[], None] = lambda: None,
) -> list[ImageSet]:
    """Image sets of an evaluation that the model itself makes: probes, and reconstructions of real images.

    ``probes``: images of each prompt of ``roentgen.metrics.adherence.probes``, by the model ``generate``; they lie
    among its other images. ``reconstructions``: real images at most that go through the model ``autoencoder``. Both
    are 0 for none, and what is there already is kept. A model without an autoencoder of grey images is an error where
    the user has ``named`` it, and else leaves the reconstructions out.
    """
    from roentgen.metrics.adherence.probes import probe_rows
    from roentgen.metrics.image_set import open_set
    from roentgen.metrics.reconstruction import reconstructed_set, write_reconstructions

    found = []
    if generate is not None and probes:
        model = generation.load_model(generate, device=device, dtype=dtype)
        steps, guidance, sampler = sampling
        chosen = model.sampling(steps=steps, guidance=guidance, sampler=sampler)
        rows = probe_rows(probes, seed)
        jobs = [Job(row["text"], row["seed"]) for row in rows]
        for text in dict.fromkeys(job.prompt for job in jobs):
            model.check(text, "--probes:")
        own = [jobs[number] for number in who.own(len(jobs))]
        make_images(model, own, out / "images", sampling=chosen, batch_size=batch_size, bar=not who.rank)
        wait()
        empty = {"split": "test", "view": "", "sex": "", "age": None}
        paths = [{"image": str(image_path(out / "images", job)), "prompt_id": "probe"} for job in jobs]
        table = _write_rows(
            [{**row, **empty, **path} for row, path in zip(rows, paths, strict=True)], out / "probes.csv"
        )
        found.append(open_set(table, name="probes", skip_bad=skip_bad))
    if autoencoder is not None and reconstructions:
        images = reconstructed_set(real, out / "reconstructed", count=reconstructions, seed=seed)
        if who.rank == 0:
            try:
                write_reconstructions(images, generation.load_model(autoencoder, device=device, dtype=dtype))
            except UserError as reason:
                if not named:
                    print(f"reconstructions are left out: {reason}", file=sys.stderr)
                else:
                    raise UserError(f"--autoencoder {autoencoder}: {reason}") from None
        wait()
        if all(path.exists() for path in images.paths):
            found.append(images)
    return found


def made_by(images: ImageSet) -> dict[str, Any]:
    """Model and sampling by roentgen's marks in the files; nothing for other files, a count where they differ."""
    keys = {"name": "model", "hash": "model_hash", "steps": "steps", "guidance": "guidance", "sampler": "sampler"}
    found = set()
    for path in images.paths:
        marks = marks_of(path)
        if not marks:  # not made by roentgen
            return {}
        found.add(tuple(marks.get(key, "") for key in keys.values()))
    if len(found) > 1:
        return {"name": f"{len(found)} different models or settings"}
    return dict(zip(keys, found.pop(), strict=True))


def on_this_disk(model: dict[str, Any]) -> str | None:
    """The name of ``model`` (as ``made_by`` gives it) where a model of that name and hash is here; else None."""
    from roentgen.models import hub

    try:
        folder = hub.resolve(str(model["name"])).folder
        return str(model["name"]) if folder is not None and hub.model_hash(folder) == model["hash"] else None
    except (KeyError, UserError):
        return None


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
