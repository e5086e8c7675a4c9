"""What a fine-tuning run will do, and with ``--dry-run`` what it will need, in a few lines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from roentgen.data.images import ImageSource
from roentgen.generators.diffusion.model import Diffusion
from roentgen.training import estimate

if TYPE_CHECKING:
    from roentgen.recipes.finetune import Recipe, Run

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def describe(model: Diffusion) -> None:
    """Print parameters and what is predicted."""
    counts = []
    for name, module in (("U-Net", model.unet), ("text encoder", model.text_encoder), ("autoencoder", model.vae)):
        total, learning = (
            sum(p.numel() for p in module.parameters() if wanted(p)) / 1e6
            for wanted in (lambda p: True, lambda p: p.requires_grad)
        )
        counts.append(f"{name} {total:.1f} M ({learning:.1f} M trained)")
    print(f"{', '.join(counts)}; {model.scheduler.config.prediction_type}", flush=True)


def describe_needs(model: Diffusion, source: ImageSource, recipe: Recipe, run: Run, processes: int) -> None:
    """Print memory, disk, operations and hours."""
    cuda = torch.cuda.is_available()
    needs = estimate.estimate(
        model.unet,
        model.text_encoder,
        model.vae,
        batch_per_device=recipe.batch_size // processes // run.accumulate,
        latent_shape=model.latent_shape,
        text_shape=(model.reader.chunks, model.reader.window),
        precision=recipe.precision,
        optimizer=recipe.optimizer,
        gradient_checkpointing=run.gradient_checkpointing,
        latents_online=recipe.latents == "online",
        text_online=recipe.text_states == "online" or recipe.composed > 0,
        accumulate=run.accumulate,
        processes=processes,
        images=len(source.table),
        texts=source.table["text"].nunique(),
    )
    device = estimate.device_name(torch.device("cuda" if cuda else "cpu"))
    rate = estimate.measured_rate(RESULTS, device=device, flops=needs.flops, processes=processes)
    memory = torch.cuda.get_device_properties(0).total_memory if cuda else None
    print("\n".join(estimate.describe(needs, images=recipe.images, rate=rate, device_memory=memory)))
