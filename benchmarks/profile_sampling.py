"""Where the time of sampling goes on a CPU, and how near it comes to what the processor can do.

    python benchmarks/profile_sampling.py --out benchmarks/results/profile-cpu.json --update docs/benchmarks.md
    python benchmarks/profile_sampling.py --result benchmarks/results/profile-cpu.json --update docs/benchmarks.md

One step of the U-Net with guidance, and one decoding, for a batch as `roentgen export` makes it, in float32. The
measure of what the processor can do is a product of two large matrices with the same threads, timed between the others.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from roentgen import errors, threads
from roentgen.config import parse_call
from roentgen.errors import UserError
from roentgen.metrics.report.tables import report, table
from roentgen.metrics.result import Context, write_result
from roentgen.provenance import Surroundings, git_state, in_words, processor

ROOT = Path(__file__).resolve().parent.parent
NAME = "profile"
SIDE = 2048  # of the large matrices
KINDS = {
    "convolutions": ("conv",),
    "matrix products": ("mm", "bmm", "linear"),
    "attention": ("attention", "softmax"),
    "normalisation": ("norm",),
}


def measure(
    *, model: str = "mini", out: str | None = None, result: str | None = None, update: str | None = None,
    batch: int = 16, repeats: int = 3,
) -> int:  # fmt: skip
    """Profile sampling on this machine's CPU, and print a table.

    Args:
        model: mini, or a diffusers folder.
        out: JSON file for the result.
        result: Measure nothing, take this JSON file of an earlier run.
        update: Document in which the region results:profile is replaced by the table.
        batch: Images at once.
        repeats: Runs of each part; the fastest counts.
    """
    if min(batch, repeats) < 1:
        raise UserError("--batch and --repeats must be at least 1")
    return report(
        NAME, out=out, result=result, update=update, table=as_table,
        measure=lambda path: measured(path, model, batch=batch, repeats=repeats),
    )  # fmt: skip


def measured(out: Path, name: str, *, batch: int, repeats: int) -> None:
    """Time and profile the parts, and write the result."""
    threads.settle()
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from roentgen.devices import keep_freed_memory
    from roentgen.generators.generate import load_model

    keep_freed_memory()
    model: Any = load_model(name, device="cpu", dtype="float32")
    a, b = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    with torch.inference_mode():
        text = model.guided_text(["left pleural effusion"] * batch, model.sampling())
        latents = torch.randn(batch, *model.latent_shape)
        pair = torch.cat([latents, latents])
        parts: dict[str, Callable[[], Any]] = {
            "a step of the U-Net": lambda: model.unet(pair, 500, encoder_hidden_states=text, return_dict=False),
            "decoding": lambda: model.decode(latents),
        }
        around = Surroundings()
        best = dict.fromkeys([*parts, "peak"], float("inf"))
        for repeat in range(-1, repeats):
            for key, run in {**parts, "peak": lambda: a @ b}.items():
                began = time.perf_counter()
                run()
                best[key] = best[key] if repeat < 0 else min(best[key], time.perf_counter() - began)
        peak = 2 * SIDE**3 / best["peak"]
        found = {}
        for key, run in parts.items():
            with FlopCounterMode(display=False) as counter:
                run()
            rate = counter.get_total_flops() / best[key]
            found[key] = {
                "seconds_per_image": best[key] / batch, "flops_per_image": counter.get_total_flops() / batch,
                "flops_per_second": rate, "share_of_peak": rate / peak, "shares": shares(run),
            }  # fmt: skip
    context = Context(
        extractor="torch.profiler", resize="none", seed=0, settings={"batch": batch, "repeats": repeats, "side": SIDE},
        model={"name": model.info.name, "hash": model.info.hash}, inputs={}, git=git_state(ROOT),
        command=f"python benchmarks/profile_sampling.py --batch {batch} --repeats {repeats}",
    )  # fmt: skip
    value = found["a step of the U-Net"]["share_of_peak"]
    write_result(
        out, metric="operations a second of the U-Net over those of a large matrix product", value=value,
        ci=(value, value), ci_method="none: the fastest run of each", n=repeats, context=context,
        details={
            "parts": found, "flops_per_second_of_a_product": peak, "threads": torch.get_num_threads(),
            "cpu": processor(), "conditions": around.facts(),
        },
    )  # fmt: skip


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
    return "\n".join(
        [
            table(head, rows),
            "",
            f"`{result['model']['name']}` ({result['model']['hash']}), batch {settings['batch']}, float32, "
            f"{details['threads']} thread(s) of {details['cpu']}; a product of two matrices of {settings['side']} x "
            f"{settings['side']}: {peak:.0f} GFLOP/s; torch {result['versions']['torch']}."
            f"{in_words(details['conditions'])} Made by `{result['command']}`.",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    return measure(**parse_call(measure, arguments, prog="benchmarks/profile_sampling.py"))


if __name__ == "__main__":
    sys.exit(errors.run(main, prog="benchmarks/profile_sampling.py"))
