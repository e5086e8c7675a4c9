"""Generated images for measuring: made once, kept as PNG with provenance, made again only if that differs."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from roentgen import pipeline
from roentgen.errors import UserError
from roentgen.images import read_image, read_provenance, save_image


@dataclass(frozen=True)
class Sampling:
    """How a model is sampled; every value is given, none is a default to be looked up later."""

    steps: int
    guidance: float
    sampler: str


@dataclass(frozen=True)
class Job:
    """One image to generate."""

    prompt: str
    seed: int


def resolve_sampling(model: pipeline.Model, steps: int | None, guidance: float | None, sampler: str | None) -> Sampling:
    """Fill what is None from the model's own defaults."""
    return Sampling(
        int(model.defaults["steps"]) if steps is None else steps,
        float(model.defaults["guidance"]) if guidance is None else guidance,
        str(model.defaults["sampler"]) if sampler is None else sampler,
    )


def image_path(folder: Path, job: Job) -> Path:
    """Where the image of ``job`` is kept: by prompt and seed, so that lists may grow or change order."""
    return folder / f"{hashlib.sha256(job.prompt.encode()).hexdigest()[:16]}-{job.seed}.png"


def is_made(path: Path, job: Job, model_hash: str, sampling: Sampling) -> bool:
    """Whether ``path`` holds the image of ``job`` by this model and sampling, judged by its provenance."""
    if not path.exists():
        return False
    try:
        marks = read_provenance(path)
    except UserError:
        return False
    wanted = {
        "prompt": job.prompt,
        "seed": str(job.seed),
        "model_hash": model_hash,
        "steps": str(sampling.steps),
        "guidance": f"{sampling.guidance:g}",
        "sampler": sampling.sampler,
        "negative_prompt": "",
    }
    return all(marks.get(key, "") == value for key, value in wanted.items())


def generated_images(
    model: pipeline.Model, jobs: Sequence[Job], folder: Path, *, sampling: Sampling, batch_size: int
) -> NDArray[np.uint8]:
    """Images of ``jobs`` in order, uint8 (N, H, W); those not in ``folder`` are made and saved there."""
    make_images(model, jobs, folder, sampling=sampling, batch_size=batch_size)
    return np.stack([read_image(image_path(folder, job)) for job in jobs])


def make_images(
    model: pipeline.Model, jobs: Sequence[Job], folder: Path, *, sampling: Sampling, batch_size: int, bar: bool = True
) -> None:
    """Make the images of ``jobs`` that are not in ``folder`` (``image_path``); with a progress bar on stderr."""
    from tqdm import tqdm

    distinct = list(dict.fromkeys(jobs))
    missing = [job for job in distinct if not is_made(image_path(folder, job), job, model.hash, sampling)]
    if not missing:
        return
    samples = pipeline.generate(
        model,
        [job.prompt for job in missing],
        seeds=[job.seed for job in missing],
        steps=sampling.steps,
        guidance=sampling.guidance,
        sampler=sampling.sampler,
        batch_size=batch_size,
    )
    done = len(distinct) - len(missing)
    shown = tqdm(samples, total=len(distinct), initial=done, desc="generating", file=sys.stderr, disable=not bar)
    for job, sample in zip(missing, shown, strict=True):
        path = image_path(folder, job)
        save_image(sample.image, path, format="png", provenance=sample.provenance, overwrite=True)


def in_batches(
    function: Callable[[NDArray[np.uint8]], NDArray[np.floating]],
    images: NDArray[np.uint8],
    *,
    batch_size: int,
    name: str,
) -> NDArray[np.floating]:
    """``function`` over ``images`` (N, H, W), ``batch_size`` at a time, joined; with a progress bar."""
    from tqdm import tqdm

    starts: Iterable[int] = range(0, len(images), batch_size)
    bar = tqdm(starts, desc=name, unit="batch", file=sys.stderr, leave=False)
    parts = [np.asarray(function(np.array(images[s : s + batch_size]))) for s in bar]
    return np.concatenate(parts)


def reconstruct(model: pipeline.Model, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 (N, H, W) through the model's autoencoder (posterior mean) and back."""
    import torch

    from roentgen.images import from_autoencoder, to_autoencoder

    if model.vae.config.in_channels != 1:
        raise UserError(f"--model {model.name}: its autoencoder takes colour; a grey one is needed")
    with torch.inference_mode():
        pixels = to_autoencoder(images).to(model.device, model.dtype)
        latents = model.vae.encode(pixels).latent_dist.mode()
        return from_autoencoder(model.vae.decode(latents, return_dict=False)[0].float())
