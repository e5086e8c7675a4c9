"""Sound words for the recipes and the scripts, and the runs that inputs start from."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from recipe import load_script

from .world import World

ROOT = Path(__file__).parents[2]
FOLDERS = ("train", "eval")
SHAPE = ("--shape.width=16", "--shape.layers=1", "--shape.heads=2", "--shape.hidden=32", "--shape.stem=8",
         "--shape.head=8")  # fmt: skip


def finetune_flags(world: World) -> list[str]:
    """Two steps of the tiny model."""
    flags = ["--manifest", str(world.set / "manifest.csv"), "--model", str(world.tiny), "--images", "4"]
    return [*flags, "--batch-size", "2", "--precision", "no", "--steps", "1", "--out", "out", "--prompts", "left"]


def masked_flags(world: World) -> list[str]:
    """Two steps of a tiny masked transformer."""
    start = ["--manifest", str(world.set / "manifest.csv"), "--codes", str(world.tokens / "tokenizer")]
    counts = ["--images", "4", "--batch-size", "2", "--warmup", "0", "--steps", "1", "--checkpoint-every", "2"]
    flags = [*start, "--text-encoder", str(world.tiny), "--pixels", "32", "--precision", "no", *SHAPE, *counts]
    return [*flags, "--validate-every", "4", "--prompts", "left", "--out", "out"]


def captions_flags(world: World) -> list[str]:
    """Two steps of a tiny reporter."""
    shape = ["--xreport.image-shape=32", "--xreport.embedding-dims=16", "--xreport.num-heads=2"]
    layers = ["--xreport.num-encoders=1", "--xreport.num-decoders=1", "--max-tokens", "24", "--eval-every", "4"]
    flags = ["--arch", "xreport", "--manifest", str(world.set / "manifest.csv"), *shape, *layers, "--images", "8"]
    return [*flags, "--batch-size", "4", "--warmup", "0", "--validate", "2", "--no-augment", "--out", "out"]


def labels_flags(world: World) -> list[str]:
    """Two steps of a tiny classifier that reports."""
    shape = ["--no-labels.imagenet", "--labels.size", "64", "--labels.views", "1", "--labels.min-positive", "1"]
    flags = [
        "--arch",
        "labels",
        "--manifest",
        str(world.set / "manifest.csv"),
        "--boxes",
        str(world.set / "boxes.csv"),
    ]
    return [*flags, *shape, "--images", "8", "--batch-size", "4", "--eval-every", "4", "--warmup", "0", "--out", "out"]


def autoencoder_flags(world: World) -> list[str]:
    """Two steps of a tiny autoencoder."""
    shape = ["--size", "32", "--crop", "32", "--channels", "8,8", "--groups", "4", "--latent-channels", "4"]
    counts = ["--images", "4", "--batch-size", "2", "--warmup", "0", "--sample-every", "4", "--checkpoint-every", "2"]
    return ["--manifest", str(world.set / "manifest.csv"), *shape, *counts, "--precision", "no", "--out", "out"]


def tokenizer_flags(world: World) -> list[str]:
    """Tokens of the tiny model's latents."""
    flags = ["--manifest", str(world.set / "manifest.csv"), "--vae", str(world.tiny), "--size", "32"]
    return [*flags, "--groups", "1,3", "--codes", "8,16", "--out", "out"]


RUNS = {
    "finetune": finetune_flags,
    "masked": masked_flags,
    "report": captions_flags,
    "autoencoder": autoencoder_flags,
    "tokenizer": tokenizer_flags,
}
"""Recipes that are run here, with their flags."""


def sound(name: str, world: World) -> list[str] | None:
    """Words with which a recipe succeeds soon; None where there are none."""
    manifest = ["--manifest", str(world.set / "manifest.csv"), "--out", "out"]
    known = {
        **{f"train {name}": ["train", name, *flags(world)] for name, flags in RUNS.items()},
        "train text-encoder": ["train", "text-encoder", *manifest],
        "train classifier": ["train", "classifier", *manifest, "--min-positive", "1", "--precision", "no"],
        "train alignment": ["train", "alignment", *manifest, "--batch-size", "4"],
        "train ship": ["train", "ship", "--pipeline", str(world.trained / "pipeline"), "--out", "out"],
    }
    if name not in known:
        return None
    dry = ("tokenizer", "ship")  # they have no --dry-run, and take a moment
    return [*known[name], *([] if name.split()[1] in dry else ["--dry-run"])]


def scripts() -> list[str]:
    """Scripts with settings of their own, such as eval/steps.py."""
    found = [path.relative_to(ROOT).as_posix() for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.py"))]
    return [name for name in found if "class Settings" in (ROOT / name).read_text(encoding="utf-8")]


script = cache(load_script)
