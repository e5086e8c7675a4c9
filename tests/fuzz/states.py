"""Models, adapters, reporters, saved state that are damaged; requests to the server."""

from __future__ import annotations

import shutil
from pathlib import Path
from random import Random

from . import asks, checks, damage, recipes
from .case import Case
from .world import TEXTS, World, eval_words, export_flags


def model(world: World, folder: Path, rng: Random) -> Case:
    """A damaged model folder, of either family."""
    name = rng.choice(["tiny", "tiny", "masked"])
    copied = world.copy(name, folder)
    if rng.random() < 0.1:
        what, refused = damage.lose_folder(copied, rng), True
    else:
        what, refused = damage.in_folder(copied, rng)
        needed = what.endswith((".safetensors", "model_index.json"))
        refused = refused if needed else None
    what = f"{name}: {what}"
    chance = rng.random()
    if chance < 0.2:
        recipe = "finetune" if name == "tiny" else "masked"
        words = ["train", recipe, *recipes.RUNS[recipe](world), "--model", str(copied), "--dry-run"]
        if recipe == "masked":  # these come with the model
            words = [word for word in words if word not in _start(world)]
            words = [word for word in words if not word.startswith("--shape")]
        return Case(f"train {recipe}", "model", words, what, None if "tokenizer" in what else refused)
    if chance < 0.3:
        words = ["edit", str(world.set / "i0.png"), TEXTS[0], "--model", str(copied), "--steps", "2", "-o", "out"]
        return Case("edit", "model", words, what, refused, checks.generated)
    if chance < 0.35 and name == "tiny":
        words = ["train", "ship", "--pipeline", str(copied), "--out", "out"]
        return Case("train ship", "model", words, what)
    words = ["generate", TEXTS[0], "--model", str(copied), "--steps", "1", "-o", "out"]
    return Case("generate", "model", words, what, refused, checks.generated)


def _start(world: World) -> tuple[str, ...]:
    return ("--codes", str(world.tokens / "tokenizer"), "--text-encoder", str(world.tiny), "--pixels", "32")


def adapter(world: World, folder: Path, rng: Random) -> Case:
    """A damaged adapter."""
    path = world.copy("lora", folder)
    what, refused = damage.in_folder(path, rng)
    command = rng.choice(["generate", "generate", "edit"])
    start = ["generate", TEXTS[0]] if command == "generate" else ["edit", str(world.set / "i0.png"), TEXTS[0]]
    given = path if rng.random() < 0.7 else path / "pytorch_lora_weights.safetensors"
    words = [*start, "--model", str(world.tiny), "--steps", "2", "--lora", str(given), "-o", "out"]
    return Case(command, "model", words, what, refused, checks.generated)


def reporter(world: World, folder: Path, rng: Random) -> Case:
    """A damaged reporter, of any kind."""
    kinds = sorted(path.name for path in world.reporters.iterdir())
    path = world.copy(f"reporters/{rng.choice(kinds)}", folder)
    if (path / "checkpoints").is_dir():
        shutil.rmtree(path / "checkpoints")
    what, refused = damage.in_folder(path, rng)
    refused = refused if what.endswith((".safetensors", " config.json")) else None
    words = ["report", str(world.set / "i0.png"), "--model", str(path), "-o", "out"]
    if rng.random() < 0.2:
        words += ["--places", str(path)]
    return Case("report", "model", words, f"{path.name}: {what}", refused)


def push(world: World, folder: Path, rng: Random) -> Case:
    """A damaged folder that is to be published."""
    name = rng.choice(["exported", "trained/pipeline", "lora", "masked", "reporters/labels"])
    path = world.copy(name, folder)
    what, _ = damage.in_folder(path, rng)
    words = ["push", str(path), "OWNER/NAME", "--dry-run"]
    if rng.random() < 0.3:
        words += ["--results", str(world.evaluated)]
    return Case("push", "published", words, f"{name}: {what}")


def request(world: World, folder: Path, rng: Random) -> Case:
    """An odd request to the server."""
    ask, what = asks.odd(world, rng)
    words = ["request", ask.method, ask.path.decode("latin-1")[:200]]
    check = asks.answered(world, ask)
    return Case("serve", "requests", words, what, None, check, call=lambda: asks.call(world, ask))


# ---------------------------------------------------------------------------------------- saved state


def saved(world: World, folder: Path, rng: Random) -> Case:
    """What an earlier run wrote is damaged, and the same command runs again."""
    kind = rng.choice(["exported", "begun", "drawn", "shards", "unfinished", "evaluated"])
    if kind in ("exported", "begun", "drawn"):
        out = world.copy(kind, folder).rename(folder / "exported")  # its card names the folder
        what, _ = damage.in_folder(out, rng)
        words = ["export", *export_flags(world), "-o", str(out)]
        return Case("export", "saved state", words, f"{kind}: {what}", None, checks.same_files(out, world.exported))
    if kind in ("shards", "unfinished"):
        out = world.copy("shards", folder)
        if kind == "unfinished":
            (out / "shards.json").unlink()
        what, _ = damage.in_folder(out, rng)
        words = ["data", "shard", str(world.set / "manifest.csv"), "-o", str(out)]
        return Case("data shard", "saved state", words, f"{kind}: {what}", None, checks.same_files(out, world.shards))
    out = world.copy("evaluated", folder)
    what, _ = damage.in_folder(out, rng)
    words = [*eval_words(world), "-o", str(out)]
    if rng.random() < 0.3:
        words = ["eval", "--compare", str(out), str(world.evaluated), "-o", "both"]
        return Case("eval", "saved state", words, f"compared: {what}")
    return Case("eval", "saved state", words, f"evaluated: {what}", None, checks.same_results(out, world.evaluated))


def checkpoint(world: World, folder: Path, rng: Random) -> Case:
    """A damaged checkpoint or cache of a training, which goes on."""
    name = rng.choice(sorted(recipes.RUNS))
    shutil.copytree(world.runs / name, folder / "out")
    what, _ = damage.in_folder(folder / "out", rng)
    words = ["train", name, *recipes.RUNS[name](world)]
    check = checks.trained(folder / "out") if name == "finetune" else checks.opens(folder / "out")
    return Case(f"train {name}", "saved state", words, f"{name}: {what}", None, check)
