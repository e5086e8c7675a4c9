"""Estimated memory of fine-tuning Stable Diffusion 1.x on one GPU, by walking through a step without weights.

    python benchmarks/memory.py --out benchmarks/results/memory-sd1.json --update docs/training.md
    python benchmarks/memory.py --result benchmarks/results/memory-sd1.json --update docs/training.md

Nothing is computed and nothing downloaded: the networks are built from their configurations on PyTorch's meta device.
What a GPU really takes is more by the device's context, workspaces and fragmentation.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from roentgen import errors
from roentgen.config import BatchSize, Count, parse_settings
from roentgen.metrics.report.tables import Reported
from roentgen.metrics.report.tables import table as markdown
from roentgen.metrics.result import write_result

SETUPS = {
    "neither": {"gradient_checkpointing": False, "optimizer": "adamw"},
    "gradient checkpointing": {"gradient_checkpointing": True, "optimizer": "adamw"},
    "gradient checkpointing, 8-bit AdamW": {"gradient_checkpointing": True, "optimizer": "adamw8bit"},
}


@dataclass(frozen=True, kw_only=True)
class Settings(Reported):
    """Estimate the memory of training the U-Net and CLIP of Stable Diffusion 1.x in bf16 with an EMA."""

    batch: Annotated[BatchSize, "images that the GPU holds at once"] = 8
    side: Annotated[Count, "side of the latents; 64 is 512 pixels"] = 64


def estimate_all(s: Settings, out: Path) -> None:
    """One estimate a setup; written to ``out``."""
    import torch
    from made_models import stable_diffusion

    from roentgen.training.estimate import estimate

    batch, side = s.batch, s.side
    with torch.device("meta"):
        networks = stable_diffusion(side)
    unet, text, vae = (networks[name] for name in ("unet", "text_encoder", "vae"))
    vae.requires_grad_(False)
    setups: dict[str, dict[str, Any]] = {}
    for name, options in SETUPS.items():
        needs = estimate(
            unet,
            text,
            vae,
            batch_per_device=batch,
            latent_shape=(4, side, side),
            text_shape=(1, 77),
            train_unet=True,
            train_text_encoder=True,
            **options,  # type: ignore[arg-type]
        )
        setups[name] = {"bytes": needs.memory_total, "items": needs.memory, "flops_per_image": needs.flops}
    last: Any = list(setups.values())[-1]["bytes"]
    context = s.context(
        "benchmarks/memory.py", extractor="roentgen.training.estimate: one step on PyTorch's meta device",
        settings={"pixels": 8 * side, "precision": "bf16", "ema": True, "trained": "U-Net and CLIP"},
        model={"name": "Stable Diffusion 1.x", "hash": "none (no weights)"},
    )  # fmt: skip
    write_result(
        out, metric="estimated device memory of training, bytes (checkpointing, 8-bit AdamW)", value=last,
        ci=(last, last), ci_method="none: computed, not sampled", n=1, context=context, details={"setups": setups},
        warnings=["an estimate: without the device's context, workspaces and fragmentation; not measured on a GPU"],
    )  # fmt: skip


def table(result: Mapping[str, Any]) -> str:
    """The Markdown table of a result."""
    settings = result["settings"]
    rows = [[name, f"{one['bytes'] / 1e9:.1f}"] for name, one in result["details"]["setups"].items()]
    return markdown(
        ["saving memory by", "estimate (GB)"], rows,
        f"Stable Diffusion 1.x, U-Net and CLIP trained at {settings['pixels']} px, batch {settings['batch']}, "
        f"{settings['precision']}, EMA, cached latents; GB are 10^9 bytes, so a 24 GiB card has 25.8. "
        f"{result['warnings'][0][0].upper()}{result['warnings'][0][1:]}. Made by `{result['command']}`.",
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    s = parse_settings(Settings, argv, prog="benchmarks/memory.py", about=__doc__)
    return s.report("memory", measure=estimate_all, table=table)


if __name__ == "__main__":
    sys.exit(errors.run(main, prog="benchmarks/memory.py"))
