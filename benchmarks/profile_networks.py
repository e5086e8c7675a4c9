"""Where the time of sampling, training or FID goes on a CPU, and how near it comes to what the processor can do.

    python benchmarks/profile_networks.py --out benchmarks/results/profile-cpu.json --update docs/benchmarks.md
    python benchmarks/profile_networks.py --part training --out benchmarks/results/profile-training-cpu.json \\
        --update docs/benchmarks.md
    python benchmarks/profile_networks.py --part evaluation --out benchmarks/results/profile-evaluation-cpu.json \\
        --update docs/benchmarks.md
    python benchmarks/profile_networks.py --result benchmarks/results/profile-cpu.json --update docs/benchmarks.md

Sampling is one step of the U-Net with guidance, and one decoding, for a batch as `roentgen export` makes it, in
float32. Training is what `train/finetune.py` does with a batch from its caches: passes of the U-Net under bfloat16
autocast, then what is done to the weights. Evaluation is the Inception-v3 of FID, with random weights, in float32.
The measure of what the processor can do is a product of two large matrices
in the same numbers with the same threads, timed between the others.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from roentgen import errors, threads
from roentgen.config import BatchSize, Count, PathOrName, parse_settings
from roentgen.metrics.report.tables import Reported, table
from roentgen.metrics.result import write_result
from roentgen.provenance import Surroundings, in_words, processor

NAMES = {"sampling": "profile", "training": "profile-training", "evaluation": "profile-evaluation"}
BATCHES = {"sampling": 16, "training": 8, "evaluation": 32}
SIDE = 2048  # of the large matrices
KINDS = {
    "convolutions": ("conv",),
    "matrix products": ("mm", "bmm", "linear"),
    "attention": ("attention", "softmax"),
    "normalisation": ("norm",),
}


@dataclass(frozen=True, kw_only=True)
class Settings(Reported):
    """Profile sampling, training or FID on this machine's CPU, and print a table."""

    model: Annotated[PathOrName, "mini, or a diffusers folder"] = "mini"
    part: Annotated[Literal["sampling", "training", "evaluation"], "what is profiled"] = "sampling"
    batch: Annotated[BatchSize | None, "images at once (default: 16 in sampling, 8 in training, 32 in evaluation)"] = (
        None
    )
    repeats: Annotated[Count, "runs of each step; the fastest counts"] = 3


def measured(s: Settings, out: Path) -> None:
    """Time and profile the steps of a part, and write the result."""
    threads.settle()
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from roentgen.devices import keep_freed_memory
    from roentgen.generators.generate import load_model

    keep_freed_memory()
    repeats, batch = s.repeats, s.batch or BATCHES[s.part]
    if s.part == "evaluation":
        network, steps = evaluation_steps(batch)
        dtype = torch.float32
    else:
        model: Any = load_model(s.model, device="cpu", dtype="float32", trainable=s.part == "training")
        network = {"name": model.info.name, "hash": model.info.hash}
        dtype, steps = (sampling_steps if s.part == "sampling" else training_steps)(model, batch)
    a, b = torch.randn(SIDE, SIDE, dtype=dtype), torch.randn(SIDE, SIDE, dtype=dtype)
    around = Surroundings()
    best = dict.fromkeys([*steps, "peak"], float("inf"))
    for repeat in range(-1, repeats):
        for key, run in {**steps, "peak": lambda: a @ b}.items():
            began = time.perf_counter()
            run()
            best[key] = best[key] if repeat < 0 else min(best[key], time.perf_counter() - began)
    peak = 2 * SIDE**3 / best["peak"]
    found = {}
    for key, run in steps.items():
        with FlopCounterMode(display=False) as counter:
            run()
        rate = counter.get_total_flops() / best[key]
        found[key] = {
            "seconds_per_image": best[key] / batch, "flops_per_image": counter.get_total_flops() / batch,
            "flops_per_second": rate, "share_of_peak": rate / peak, "shares": shares(run),
        }  # fmt: skip
    context = s.context(
        "benchmarks/profile_networks.py", extractor="torch.profiler",
        model=network,
        settings={"batch": batch, "side": SIDE, "dtype": str(dtype).split(".")[-1]},
    )  # fmt: skip
    value = next(iter(found.values()))["share_of_peak"]
    write_result(
        out, metric="operations a second of the network over those of a large matrix product", value=value,
        ci=(value, value), ci_method="none: the fastest run of each", n=repeats, context=context,
        details={
            "parts": found, "flops_per_second_of_a_product": peak, "threads": torch.get_num_threads(),
            "cpu": processor(), "conditions": around.facts(),
        },
    )  # fmt: skip


def sampling_steps(model: Any, batch: int) -> tuple[Any, dict[str, Callable[[], Any]]]:
    """What sampling computes, and the type of its numbers."""
    import torch

    text = model.guided_text(["left pleural effusion"] * batch, model.sampling())
    latents = torch.randn(batch, *model.latent_shape)
    pair = torch.cat([latents, latents])

    def unet() -> None:
        with torch.inference_mode():
            model.unet(pair, 500, encoder_hidden_states=text, return_dict=False)

    def decode() -> None:
        with torch.inference_mode():
            model.decode(latents)

    return torch.float32, {"a step of the U-Net": unet, "decoding": decode}


def training_steps(model: Any, batch: int) -> tuple[Any, dict[str, Callable[[], Any]]]:
    """What a step of training computes from cached latents and text, and the type of its numbers."""
    import torch

    from roentgen.training.schedule import EMA
    from roentgen.training.setup import make_optimizer

    with torch.inference_mode():
        text = model.guided_text(["left pleural effusion"] * batch, model.sampling())[:batch]
    text, latents = text.clone(), torch.randn(batch, *model.latent_shape)
    network = model.unet.train().requires_grad_(True)
    optimizer = make_optimizer("adamw", [{"params": list(network.parameters()), "lr": 0.0}], torch.device("cpu"))
    average = EMA([network], halflife=1000)

    def passes() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            guess = network(latents, 500, encoder_hidden_states=text, return_dict=False)[0]
        (guess.float() - latents).square().mean().backward()

    def weights() -> None:
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        average.update(batch, batch)

    return torch.bfloat16, {"forward and backward pass": passes, "clipping, AdamW, average": weights}


def evaluation_steps(batch: int) -> tuple[dict[str, str], dict[str, Callable[[], Any]]]:
    """What FID computes of images, and the name and hash of its network."""
    import torch
    from inception_weights import write_random_inception

    from roentgen.metrics.extractors import INCEPTION_SIDE, inception_extractor

    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "inception.pth"
        write_random_inception(weights, seed=0)
        extractor = inception_extractor(weights=weights)
    images = torch.rand(batch, 1, INCEPTION_SIDE, INCEPTION_SIDE) * 2 - 1

    def network() -> None:
        with torch.inference_mode():
            extractor.forward(images)

    return {"name": "Inception-v3, random weights", "hash": extractor.hash[:16]}, {"Inception-v3": network}


def shares(run: Callable[[], Any]) -> dict[str, float]:
    """Share of the time by kind of operator."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        run()
    times = {event.key: event.self_cpu_time_total for event in recorded.key_averages()}
    found = dict.fromkeys([*KINDS, "the rest"], 0.0)
    for key, each in times.items():
        kind = next((kind for kind, words in KINDS.items() if any(word in key for word in words)), "the rest")
        found[kind] += each / sum(times.values())
    return found


def as_table(result: Mapping[str, Any]) -> str:
    """The Markdown table of a result, with its conditions below."""
    details = result["details"]
    rows = [
        [
            name, f"{1000 * part['seconds_per_image']:.0f}", f"{part['flops_per_image'] / 1e9:.1f}",
            f"{part['flops_per_second'] / 1e9:.0f}", f"{part['share_of_peak']:.0%}",
            *(f"{share:.0%}" for share in part["shares"].values()),
        ]
        for name, part in details["parts"].items()
    ]  # fmt: skip
    head = ["", "ms an image", "GFLOP an image", "GFLOP/s", "of a matrix product's", *KINDS, "the rest"]
    peak, settings = details["flops_per_second_of_a_product"] / 1e9, result["settings"]
    return table(
        head, rows,
        f"`{result['model']['name']}` ({result['model']['hash']}), batch {settings['batch']}, "
        f"{settings.get('dtype', 'float32')}, "
        f"{details['threads']} thread(s) of {details['cpu']}; a product of two matrices of {settings['side']} x "
        f"{settings['side']}: {peak:.0f} GFLOP/s; torch {result['versions']['torch']}."
        f"{in_words(details['conditions'])} Made by `{result['command']}`.",
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    s = parse_settings(Settings, argv, prog="benchmarks/profile_networks.py", about=__doc__)
    return s.report(NAMES[s.part], measure=measured, table=as_table)


if __name__ == "__main__":
    sys.exit(errors.run(main, prog="benchmarks/profile_networks.py"))
