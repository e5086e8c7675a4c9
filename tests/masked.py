"""A tiny masked transformer, made by its own recipes: 32 x 32 images, 8 x 8 positions, two groups of codes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from recipe import few_rows, good

SHAPE = ("--shape.width", 16, "--shape.layers", 1, "--shape.heads", 2, "--shape.hidden", 32, "--shape.stem", 8,
         "--shape.head", 8)  # fmt: skip


@dataclass(frozen=True)
class Tiny:
    """The manifest, the pipeline that gave autoencoder and text encoder, the tokenizer, and flags that train on it."""

    manifest: Path
    pipeline: Path
    tokenizer: Path
    flags: tuple[object, ...]


def make_tiny(folder: Path, make_pipeline: Callable[..., Path]) -> Tiny:
    """A product tokenizer on the tiny pipeline's autoencoder."""
    manifest, pipeline = few_rows(folder / "few"), make_pipeline(folder / "tiny", window=77)
    good(
        *("--manifest", manifest, "--vae", pipeline, "--size", 32, "--groups", "1,3", "--codes", "8,16"),
        *("--out", folder / "product"),
        name="tokenizer",
    )
    flags = (
        *("--manifest", manifest, "--codes", folder / "product" / "tokenizer", "--text-encoder", pipeline),
        *("--pixels", 32, "--precision", "no", "--batch-size", 4, "--images", 16, "--warmup", 4, "--log-every", 4),
        *("--steps", 2, "--sample-every", 10**6, "--validate-every", 8, "--checkpoint-every", 8),
        *("--cache", folder / "cache", *SHAPE),
    )
    return Tiny(manifest, pipeline, folder / "product" / "tokenizer", flags)
