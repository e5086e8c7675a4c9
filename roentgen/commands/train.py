"""``roentgen train NAME``: the recipes, from an installed package as from a clone."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from roentgen import errors, threads
from roentgen.errors import UserError

RECIPES = {
    "finetune": "train or fine-tune a Stable Diffusion pipeline on chest X-rays with their texts",
    "autoencoder": "train an autoencoder of one grey channel",
    "text-encoder": "train a small CLIP text encoder with its tokenizer",
    "tokenizer": "make image tokens: codes for the latents of an autoencoder",
    "masked": "train a masked transformer on image tokens with their texts",
    "classifier": "train the classifier that judges or rewards generated images",
    "alignment": "train the small dual encoder of images and texts",
    "report": "train a reporter: images to words, with places",
    "reference": "make the reference of `roentgen export`'s quality filter from real images",
    "ship": "put parts together into the pipeline that ships",
}


def train(argv: Sequence[str], *, prog: str = "roentgen train") -> int:
    """Run a recipe; ``--list`` prints them, with the configurations that ``--config`` knows by name.

    Several processes: ``accelerate launch -m roentgen train NAME ...``.
    """
    from roentgen.config import did_you_mean

    if not argv or argv[0] in ("-h", "--help", "--list"):
        print("\n".join(_listed(prog)))
        raise SystemExit(0)
    name = argv[0].replace("_", "-")
    if name not in RECIPES:
        raise UserError(
            f"`{prog} {argv[0]}`: no such recipe; choose one of {', '.join(RECIPES)}{did_you_mean(name, [*RECIPES])}"
        )
    made: int = importlib.import_module(f"roentgen.recipes.{name.replace('-', '_')}").main(argv[1:])
    return made


def launch(name: str) -> None:
    """Run the recipe ``name`` as the program ``train/NAME.py``."""
    threads.settle()  # before torch is loaded
    main = importlib.import_module(f"roentgen.recipes.{name}").main
    sys.exit(errors.run(main, prog=f"train/{name}.py"))


def _listed(prog: str) -> list[str]:
    from roentgen.recipes import CONFIGS

    configs = [path.relative_to(CONFIGS).with_suffix("").as_posix() for path in sorted(CONFIGS.glob("*.yaml"))]
    studies = len(list(CONFIGS.glob("*/*.yaml")))
    return [
        f"usage: {prog} RECIPE [--config FILE or NAME] [flags]",
        "",
        "recipes:",
        *(f"  {name:<14} {about}" for name, about in RECIPES.items()),
        "",
        f"configurations by name: {', '.join(configs)}, and the {studies} of RoentGen's study and of RayGen",
        "",
        "examples:",
        f"  {prog} finetune --config quickstart --manifest MANIFEST",
        f"  {prog} finetune --help",
        f"  accelerate launch -m {prog} finetune --config quickstart --manifest MANIFEST",
    ]
