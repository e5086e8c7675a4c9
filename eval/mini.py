"""The evaluation of a shipped model: `roentgen eval` with the settings of its published figures, and no other.

    python eval/mini.py --manifest MANIFEST
    python eval/table.py eval/results/mini-suite README.md roentgen/models/mini/README.md

Images are made from the texts of the manifest's test rows, four each, with probes of sides and severities and with
reconstructions of real images beside them. The same command again continues a run that was stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from roentgen import errors, threads
from roentgen.commands.evaluate import Evaluation, evaluate
from roentgen.config import (
    BatchSize,
    Count,
    CountFromZero,
    Guidance,
    PathOrName,
    Resamples,
    Seed,
    Steps,
    parse_settings,
)
from roentgen.data.manifest import read_manifest


@dataclass(frozen=True)
class Settings:
    """Settings of the measurement."""

    manifest: Annotated[Path, "manifest with `train`, `val` and `test` images"]
    model: Annotated[PathOrName, "name, folder or hub id"] = "mini"
    prompts: Annotated[Path | None, "file of prompts (None: the texts of the manifest's `test` rows)"] = None
    out: Annotated[Path, "folder for images, results and report"] = Path("eval/results/mini-suite")
    suite: Annotated[Literal["quick", "standard", "full"], "which measures"] = "standard"
    images: Annotated[Count, "prompts at most, drawn at random"] = 500
    each: Annotated[Count, "images a prompt; MS-SSIM within a prompt needs four"] = 4
    sided: Annotated[CountFromZero, "images of each probe of sides and severities"] = 25
    reconstructions: Annotated[CountFromZero, "real images through the autoencoder at most"] = 1000
    steps: Annotated[Steps | None, "inference steps (None: the model's own)"] = None
    guidance: Annotated[Guidance | None, "guidance scale (None: the model's own)"] = None
    sampler: Annotated[str | None, "sampler (None: the model's own)"] = None
    seed: Annotated[Seed, "seed of the first image and of every random choice"] = 0
    batch_size: Annotated[BatchSize, "images generated or judged at a time"] = 32
    device: Annotated[str, "auto, cpu, cuda, cuda:N or mps"] = "auto"
    dtype: Annotated[str, "auto, float32, float16 or bfloat16"] = "auto"
    resamples: Annotated[Resamples, "bootstrap resamples"] = 1000


def main(argv: Sequence[str] | None = None) -> int:
    threads.settle()
    s = parse_settings(Settings, argv, prog="eval/mini.py", about=__doc__)
    splits = set(read_manifest(s.manifest, allow_empty_text=True, check_files=False)["split"])
    for split in ("train", "val", "test"):
        if split not in splits:
            raise errors.UserError(f"--manifest {s.manifest} has no image in split {split}; its figures need all three")
    own = {"manifest", "model", "prompts", "out", "images", "each", "sided"}
    flags = Evaluation(
        real=str(s.manifest), train=str(s.manifest), out=str(s.out), generate=s.model,
        prompts=str(s.prompts or s.manifest), num_prompts=s.images, num_images=s.each, probes=s.sided,
        **{name: value for name, value in vars(s).items() if name not in own},
    )  # fmt: skip
    return evaluate(flags)


if __name__ == "__main__":
    sys.exit(errors.run(main, prog="eval/mini.py"))
