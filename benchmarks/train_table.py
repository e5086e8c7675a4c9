"""The result of benchmarks/train.py: figures of each arm, what they are divided by, and the table."""

from __future__ import annotations

import os
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from timing import summarised
from train_arms import ARMS, PEER, Comparison, Run, command

from roentgen.errors import UserError
from roentgen.files import file_hash
from roentgen.metrics.report.tables import table as markdown
from roentgen.metrics.result import Context, write_result
from roentgen.provenance import in_words
from roentgen.threads import cores

GOALS = {"ours-online": 1.5, "ours-cached": 2.0}
# Dense bfloat16 operations a second, from NVIDIA's data sheets; the first name found in the device's counts.
PEAK_FLOPS = {
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
    "A10": 125e12,
    "L4": 121e12,
}


def summarise(
    job: Comparison, runs: Mapping[str, list[list[Run]]], s: Any, out: Path, conditions: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The result of all runs with the settings ``s`` of benchmarks/train.py, written to ``out``."""
    short, long = s.short, s.long
    images = (long - short) * job.batch
    operations = flops_per_image(job)
    speeds = [each.speed for arm in runs if not arm.startswith(PEER) for part in runs[arm] for each in part]
    device = next(speed["device"] for speed in speeds if speed is not None)
    arms = {
        arm: arm_figures(arm, part, images=images, short=short * job.batch, operations=operations, device=device)
        for arm, part in runs.items()
    }
    best = max((arm for arm in arms if arm.startswith(PEER)), key=lambda arm: median(arms, arm))
    ratios = {arm: median(arms, arm) / median(arms, best) for arm in arms if not arm.startswith(PEER)}
    headline = "ours-cached"
    mine, theirs = (arms[arm]["images_per_second"]["values"] for arm in (headline, best))
    each = [a / b for a, b in zip(mine, theirs, strict=True)]
    missed = [f"{arm}: {ratios[arm]:.2f} times, goal {goal}" for arm, goal in GOALS.items() if ratios[arm] < goal]
    return write_result(
        out,
        metric="train-speed",
        value=ratios[headline],
        ci=(min(each), max(each)),
        ci_method="smallest and largest ratio of the repeats",
        n=len(each),
        context=context_of(job, arms, s),
        goal="images a second: 1.5 times the peer's faster arm with latents and text online, 2 times with caches",
        warnings=missed,
        details={
            "arms": arms,
            "ratio": ratios,
            "compared_with": best,
            "flops_per_image": operations,
            "machine": {
                "device": device,
                "cores": cores(),
                "threads": os.environ.get("OMP_NUM_THREADS", "one a core"),
            },
            "conditions": dict(conditions or {}) or None,
        },
    )


def arm_figures(
    arm: str, runs: Sequence[Sequence[Run]], *, images: int, short: int, operations: int, device: str
) -> dict[str, Any]:
    """Figures of an arm's pairs of runs, the longer of ``images`` images more than the shorter, which has ``short``."""
    warm_up, *repeats = runs
    rates = [images / (longer.seconds - shorter.seconds) for shorter, longer in repeats]
    if min(rates) <= 0:
        raise UserError(f"{arm}: the long run was not longer than the short one; raise --long")
    waits = [longer.speed["data_wait_share"] for _, longer in repeats if longer.speed is not None]
    known = [share for share in waits if share is not None]
    found = {
        "images_per_second": summarised(rates),
        "seconds_to_start_and_end": summarised(
            [shorter.seconds - short / rate for (shorter, _), rate in zip(repeats, rates, strict=True)]
        ),
        "cpu_seconds_per_image": summarised([(longer.cpu - shorter.cpu) / images for shorter, longer in repeats]),
        "peak_memory_bytes": summarised([longer.memory for _, longer in repeats]),
        "mfu": utilisation(statistics.median(rates), operations, device),
        "data_wait_share": summarised(known) if known else None,
    }
    if arm == "ours-cached":
        made = warm_up[0].seconds - statistics.median(shorter.seconds for shorter, _ in repeats)
        found["seconds_to_make_caches"] = made
    return found


def context_of(job: Comparison, arms: Collection[str], s: Any) -> Context:
    """What the result says of how it was made."""
    settings = {
        "model": s.model, "resolution": job.resolution, "batch": job.batch, "precision": job.precision,
        "workers": job.workers, "steps": [s.short, s.long], "trained": "U-Net, EMA",
        "flags": {arm: shown_flags(job, arm) for arm in arms},
    }  # fmt: skip
    return Context.of(
        "benchmarks/train.py", replace(s, out=None, update=None, scratch=None), extractor="wall clock",
        resize=f"stored JPEG to {job.resolution} px, short side and centre crop", settings=settings,
        model={"name": s.model, "hash": file_hash(job.model / "unet" / "config.json")},
        inputs={"peer": {"name": job.peer.name, "sha256": file_hash(job.peer)}},
    )  # fmt: skip


def shown_flags(job: Comparison, arm: str) -> list[str]:
    """Flags as they were, without the benchmark's folders and lengths."""
    words = command(job, arm, 0, job.folder / "run")[2:]
    return [Path(word).name if word.startswith("/") else word for word in words]


def flops_per_image(job: Comparison) -> int:
    """Operations of forward and backward of the U-Net for one image."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from roentgen.training.estimate import estimate

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(job.model / "unet"))
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(job.model / "vae")).requires_grad_(False)
        text = CLIPTextModel(CLIPTextConfig.from_pretrained(job.model / "text_encoder"))
    side, window = unet.config.sample_size, text.config.max_position_embeddings
    found = estimate(
        unet,
        text,
        vae,
        batch_per_device=1,
        latent_shape=(unet.config.in_channels, side, side),
        text_shape=(1, window),
        train_unet=True,
        train_text_encoder=False,
        text_online=False,
    )
    return found.flops


def utilisation(rate: float, operations: int, device: str) -> float | None:
    """Share of the device's peak that the model's own operations take (MFU); None where the peak is not known."""
    peak = next((value for name, value in PEAK_FLOPS.items() if name in device), None)
    return None if peak is None else rate * operations / peak


def median(arms: Mapping[str, Any], arm: str) -> float:
    """Median images a second of an arm."""
    return float(arms[arm]["images_per_second"]["median"])


def table(result: Mapping[str, Any]) -> str:
    """The Markdown table of a result, with its conditions below."""
    details, settings = result["details"], result["settings"]
    arms, best = details["arms"], details["compared_with"]
    rows = []
    for arm, found in arms.items():
        rate = found["images_per_second"]
        cells = [
            ARMS[arm],
            f"{rate['median']:.2f} ({rate['min']:.2f} to {rate['max']:.2f})",
            f"{rate['median'] / arms[best]['images_per_second']['median']:.2f}",
            f"{found['peak_memory_bytes']['median'] / 1e9:.2f}",
            "" if found["data_wait_share"] is None else f"{found['data_wait_share']['median']:.1%}",
            "" if found["mfu"] is None else f"{found['mfu']:.1%}",
        ]
        rows.append(cells)
    versions = ", ".join(f"{name} {result['versions'][name]}" for name in ("torch", "diffusers"))
    machine = details["machine"]
    made = arms["ours-cached"].get("seconds_to_make_caches")
    steps = settings["steps"]
    return markdown(
        ["", "images/s", "times the peer", "memory (GB)", "waiting for data", "MFU"], rows,
        f"`{settings['model']}` at {settings['resolution']} px, batch {settings['batch']}, {settings['precision']}, "
        f"U-Net trained with EMA, {settings['workers']} workers, on {machine['device']} ({machine['cores']} cores, "
        f"threads: {machine['threads']}); {versions}. Medians (extremes) of {result['n']} pairs of runs of {steps[0]} "
        f'and {steps[1]} steps, taking turns; "times the peer" is against its faster arm. Making the caches of '
        f"{steps[1] * settings['batch']} images took {made:.0f} s, once and outside these rates."
        f"{in_words(details.get('conditions'))}",
    )  # fmt: skip
