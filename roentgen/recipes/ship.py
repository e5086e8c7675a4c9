"""Put a trained pipeline and its autoencoder together in half precision, as a folder that ships.

    roentgen train ship --pipeline runs/mini-reward/pipeline --vae runs/mini-autoencoder/vae --out roentgen/models/mini
    roentgen train ship --pipeline runs/finetune/pipeline --out shipped --steps 10 --guidance 2

With the `pca` encoder the latents are final before the decoder is: the pipeline may have been trained around an earlier
decoder. The encoders must be the same to the last bit, or the latents would not be.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch

from roentgen.config import Count, Guidance, Short, Steps, parse_settings, require
from roentgen.files import fingerprint
from roentgen.generators.base import roentgen_json
from roentgen.generators.diffusion.build import start
from roentgen.generators.diffusion.sampling import SAMPLERS, stock_scheduler
from roentgen.generators.generate import load_model
from roentgen.models.autoencoder.channels import with_channels
from roentgen.models.loading import load_vae
from roentgen.recipes import CONFIGS


@dataclass(frozen=True)
class Settings:
    """Settings of shipping."""

    pipeline: Annotated[Path, "trained pipeline folder (roentgen train finetune)"]
    out: Annotated[Path, Short("-o"), "folder to write; a model card and training.json that are there are kept"]
    vae: Annotated[Path | None, "finished autoencoder (roentgen train autoencoder); left out, the pipeline's own"] = (
        None
    )
    version: Annotated[str, "version of the weights"] = "1"
    images_seen: Annotated[Count | None, "images seen over all runs; left out, those of the pipeline's own run"] = None
    licence: Annotated[str, "licence of the weights"] = "Apache-2.0"
    steps: Annotated[Steps | None, "default sampling steps; left out, the pipeline's own"] = None
    guidance: Annotated[Guidance | None, "default guidance scale; left out, the pipeline's own"] = None
    sampler: Annotated[str | None, "default sampler, one of the family's; left out, the pipeline's own"] = None
    sampling: Annotated[
        dict[str, Any] | None, "further defaults of sampling, of the family's own, such as '{temperature: 0.8}'"
    ] = None


def main(argv: Sequence[str] | None = None) -> int:
    s = parse_settings(Settings, argv, prog="roentgen train ship", about=__doc__, configs=CONFIGS)
    require(
        (s.pipeline / "roentgen.json").is_file(), f"--pipeline {s.pipeline}: not a pipeline of roentgen train finetune"
    )
    if roentgen_json(s.pipeline).get("family") == "masked":
        require(s.vae is None, "--vae: a masked transformer keeps the autoencoder that its codes were made for")
        return ship(load_model(str(s.pipeline), device="cpu", dtype="float32", trainable=True), s)
    parts = start(model=str(s.pipeline), vae=None, text=None, unet=None, prediction_type=None)
    if s.vae is not None:
        vae = with_channels(load_vae(s.vae), parts.vae.config.in_channels)
        same = fingerprint(vae.encoder) == fingerprint(parts.vae.encoder)
        require(same, f"--vae {s.vae}: its encoder is not the one that --pipeline was trained with; use that run's")
        parts = dataclasses.replace(parts, vae=vae)
    # Three equal channels, so that other people's tools run on it; the pixels stay the same.
    parts = dataclasses.replace(parts, vae=with_channels(parts.vae, 3))
    parts.scheduler.register_to_config(steps_offset=1)  # what stock diffusers expects; no matter with "trailing"
    if parts.scheduler.config.get("rescale_betas_zero_snr"):
        # Trained down to pure noise, sampled from all but pure noise: PNDM cannot divide by a signal of zero, and with
        # betas that end at a signal of 0.006 the two schedules are within 0.6 % of each other.
        parts.scheduler.register_to_config(rescale_betas_zero_snr=False)
    if s.sampler in SAMPLERS:  # what stock diffusers samples with
        parts = dataclasses.replace(parts, scheduler=stock_scheduler(parts.scheduler.config, s.sampler))
    return ship(parts, s)


def ship(model: Any, s: Settings) -> int:
    """Save ``model`` of any family in half precision, with the facts of its run and what ``s`` says."""
    facts = roentgen_json(s.pipeline)
    missing = [key for key in ("name", "defaults") if key not in facts]
    missing += ["images_seen (or pass --images-seen)"] if s.images_seen is None and "images_seen" not in facts else []
    require(not missing, f"--pipeline {s.pipeline}: its roentgen.json does not say {', '.join(missing)}")
    chosen = {key: value for key in ("steps", "guidance", "sampler") if (value := getattr(s, key)) is not None}
    model_defaults = {**facts["defaults"], **chosen, **(s.sampling or {})}
    model.sampling(**model_defaults)  # a UserError for what it could not be sampled with
    said = {"version": s.version, "licence": s.licence, "images_seen": s.images_seen or facts["images_seen"]}
    facts = {
        **{key: facts[key] for key in ("family", "name") if key in facts}, **said,
        **{key: value for key, value in facts.items() if key not in said}, "defaults": model_defaults,
    }  # fmt: skip
    kept = {p.name: p.read_bytes() for p in (*s.out.glob("*.md"), *s.out.glob("training.json"))}
    model.save(s.out, facts, dtype=torch.float16)
    for name, text in kept.items():
        (s.out / name).write_bytes(text)
    size = sum(p.stat().st_size for p in s.out.rglob("*") if p.is_file())
    print(f"{s.out}: {size / 1e6:.1f} MB")
    return 0
