"""The kinds of input: what is odd in each, and what it must come to."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from types import ModuleType

from roentgen.commands import COMMANDS
from roentgen.commands.train import RECIPES
from roentgen.config.settings import Setting, dataclass_of, settings_of
from roentgen.data.sources import SOURCES

from . import checks, damage, recipes, values
from .case import Case
from .limits import Outcome
from .states import adapter, checkpoint, model, push, reporter, request, saved
from .world import TEXTS, World, eval_words, export_flags

Kind = Callable[[World, Path, Random], Case]

HEAVY = (
    "compile",
    "dry_run",
    "ray",
    "push",
    "trackers",
    "show_steps",
    "show_words",
    "words",
    "replicates",
    "suite",
    "image_to_text",
    "host",
    "port",
    "token",
)
"""Settings that a sound value of makes slow, or that would reach out; odd values of them only."""
SLOW_EDGES = ("steps", "resamples", "workers", "probes", "reconstructions", "max_tries")


# ---------------------------------------------------------------------------------- flags and YAML


@functools.cache
def commands() -> dict[str, list[Setting]]:
    """Every command with its settings, by the tables that the program reads: new ones join by themselves."""
    found = {name: settings_of(dataclass_of(one.find())) for name, one in COMMANDS.items() if not one.raw}
    from roentgen.commands import data

    own = settings_of(dataclass_of(data.prepare))
    for name, source in SOURCES.items():
        found[f"data prepare {name}"] = own + settings_of(dataclass_of(source.reader, leave_out=data.OWN))
    for name in RECIPES:
        module = importlib.import_module(f"roentgen.recipes.{name.replace('-', '_')}")
        found[f"train {name}"] = settings_of(*_settings(module))
    for name in recipes.scripts():
        found[name] = settings_of(*_settings(recipes.script(name)))
    return found


def _settings(module: ModuleType) -> list[type]:
    """The dataclasses that a recipe or a script parses."""
    kinds = [getattr(module, kind) for kind in ("Settings", "Recipe", "Run") if hasattr(module, kind)]
    return [
        kind
        for kind in kinds
        if dataclasses.is_dataclass(kind) and kind.__module__.startswith(("roentgen.recipes", "script_"))
    ]


def sound_words(command: str, world: World) -> list[str] | None:
    """Words with which a command succeeds soon; None where there are none here, so that it must be refused."""
    manifest, tiny = str(world.set / "manifest.csv"), str(world.tiny)
    known: dict[str, list[str]] = {
        "generate": ["generate", TEXTS[0], "--model", tiny, "--steps", "1", "-o", "out"],
        "edit": ["edit", str(world.set / "i0.png"), TEXTS[0], "--model", tiny, "--steps", "2", "-o", "out"],
        "report": ["report", str(world.set / "i0.png"), "-o", "out"],
        "models": ["models"],
        "info": ["info", str(next(world.made.glob("left*.png")))],
        "export": ["export", *export_flags(world), "--dry-run", "-o", "out"],
        "eval": [*eval_words(world), "-o", "out"],
        "data check": ["data", "check", manifest, "-o", "page.html"],
        "data shard": ["data", "shard", manifest, "-o", "out"],
        "completion": ["completion", "bash"],
        "push": ["push", str(world.trained / "pipeline"), "OWNER/NAME", "--dry-run"],
        "train finetune": ["train", "finetune", *recipes.finetune_flags(world), "--dry-run"],
        "data prepare csv": ["data", "prepare", "csv", "--root", str(world.set), "--csv", manifest, "-o", "out",
                             "--text-column", "text"],
    }  # fmt: skip
    if recipes.sound(command, world) is not None:
        return recipes.sound(command, world)
    for name in SOURCES:
        if (root := world.collections / name).is_dir():
            known[f"data prepare {name}"] = ["data", "prepare", name, *_collection(name, root), "-o", "out"]
    return known.get(command)


def _collection(name: str, root: Path) -> list[str]:
    if name == "mimic-cxr-jpg":
        return ["--root", str(root / "jpg"), "--reports", str(root / "mimic-cxr-reports.zip")]
    if name == "xreport":
        return ["--root", str(root / "images"), "--csv", str(root / "XREPORT_dataset.csv")]
    if name == "chexpert":
        return ["--root", str(root / "CheXpert-v1.0-small")]
    if name == "dicom":
        return ["--root", str(root / "export"), "--csv", str(root / "reports.csv"), "--join", "AccessionNumber",
                "--key-column", "accession", "--text-column", "text"]  # fmt: skip
    return ["--root", str(root)]


def arguments(world: World, folder: Path, rng: Random) -> Case:
    """Odd values of flags."""
    table = commands()
    command = rng.choice(sorted(table))
    base = sound_words(command, world)
    settings = [one for one in table[command] if base is not None or not one.positional]
    for _ in range(200):
        chosen = [one for one in settings if one.key not in HEAVY or rng.random() < 0.1]
        words, refused = values.flags(chosen, rng)
        slow = any(f"--{key.replace('_', '-')}" in word for word in words for key in (*SLOW_EDGES, *HEAVY))
        if refused or not (slow or base is None):
            break
    start = base if base is not None else command.split()
    if refused is None and base is None:  # nothing was found that must be refused
        words, refused = ["--no-such-flag=1"], True
    check = checks.generated if command in ("generate", "edit") else lambda outcome: ""
    return Case(command, "flags", [*start, *words], refused=refused, check=check)


def yaml_file(world: World, folder: Path, rng: Random) -> Case:
    """An odd file of settings."""
    table = commands()
    command = rng.choice([name for name in sorted(table) if sound_words(name, world) is not None])
    base = sound_words(command, world) or []
    harmless = [one for one in table[command] if one.key not in (*HEAVY, *SLOW_EDGES)]
    (folder / "c.yaml").write_bytes(values.yaml_text(harmless, rng).encode("utf-8", "surrogatepass"))
    flag = "--plan" if command == "export" and rng.random() < 0.7 else "--config"
    return Case(command, "YAML", [*base, flag, "c.yaml"], what=(folder / "c.yaml").read_text("utf-8", "replace")[:200])


# --------------------------------------------------------------------------------------------- tables


def _text_damage(path: Path, rng: Random) -> tuple[str, bool | None]:
    kinds = [damage.table] * 6 if path.suffix in (".csv", ".parquet") else [damage.longer]
    kind = rng.choice([*kinds, *damage.BYTES])
    refused = kind(path, rng)
    # A text that ends early is a text; so is a prompt that looks like another file.
    return kind.__name__, refused if kind is damage.gone or (kind is damage.foreign and path.suffix != ".txt") else None


def prompt_file(world: World, folder: Path, rng: Random) -> Case:
    """An odd file of prompts."""
    path = world.copy(rng.choice(["prompts.csv", "prompts.csv", "prompts.txt", "prompts.jsonl"]), folder)
    what, refused = _text_damage(path, rng)
    model = ["--model", str(world.tiny), "--steps", "1"]
    if rng.random() < 0.5:
        words = ["export", "--prompts", str(path), *model, "--dry-run", "--filter", "none"]
        return Case("export", "prompts", words, f"{what} of {path.name}", refused)
    words = ["generate", "--prompts", str(path), *model, "-o", "out"]
    return Case("generate", "prompts", words, f"{what} of {path.name}", refused, checks.generated)


def manifest(world: World, folder: Path, rng: Random) -> Case:
    """An odd manifest."""
    world.copy("set", folder)
    path = folder / "set" / rng.choice(["manifest.csv", "manifest.csv", "manifest.parquet"])
    what, refused = _text_damage(path, rng)
    command, words, check = rng.choice(_readers(world, path, folder))
    if path.suffix == ".parquet" and command == "data prepare csv":
        refused = True
    return Case(command, "manifest", words, f"{what} of {path.name}", refused, check)


def _readers(world: World, path: Path, folder: Path) -> list[tuple[str, list[str], Callable[[Outcome], str]]]:
    """What reads a manifest or the images that it names."""
    root, nothing = str(path.parent), lambda outcome: ""
    size = ["--copy-images", "--size", "32"]
    synthetic = ["--synthetic", str(world.made), "--metrics", "repeats", "--extractors", "classifier", "-o", "ev"]
    prepare = ["data", "prepare", "csv", "--root", root, "--csv", str(path), "--text-column", "text", "-o", "out"]
    shard = ["data", "shard", str(path), "-o", "shards"]
    train = ["train", "finetune", *recipes.finetune_flags(world), "--manifest", str(path), "--dry-run"]
    plan = ["--model", str(world.tiny), "--dry-run", "--filter", "none"]
    return [
        ("data check", ["data", "check", str(path), "-o", "page.html"], checks.page(folder / "page.html")),
        ("data check", ["data", "check", str(path), "-o", "page.html"], checks.page(folder / "page.html")),
        ("data shard", shard, checks.sharded(folder / "shards")),
        ("data prepare csv", prepare, checks.prepared(folder / "out")),
        ("data prepare csv", [*prepare, *size], checks.prepared(folder / "out")),
        ("export", ["export", "--like", str(path), *plan], nothing),
        ("export", ["export", "--balance", str(path), *plan], nothing),
        ("eval", ["eval", "--real", str(path), "--real-split", "train", "--resamples", "5", *synthetic], nothing),
        ("train finetune", train, nothing),
    ]


# --------------------------------------------------------------------------------------------- images


def image(world: World, folder: Path, rng: Random) -> Case:
    """One odd image in a set."""
    world.copy("set", folder)
    path = folder / "set" / f"i{rng.randrange(10)}"
    path = next(path.parent.glob(f"{path.name}.*"))
    kind = rng.choice([*damage.BYTES, *[damage.odd_image] * 4])
    refused = kind(path, rng)
    if rng.random() < 0.2:
        command = rng.choice([name for name in ("edit", "report") if name in COMMANDS])
        words = [*(sound_words(command, world) or []), "--out", "out"]
        words[1] = str(path)
        return Case(command, "image", words, f"{kind.__name__} of {path.name}", refused)
    readers = _readers(world, folder / "set" / "manifest.csv", folder)
    command, words, check = rng.choice([one for one in readers if one[0] in ("data check", "data shard", "eval")]
                                       + [readers[4]])  # fmt: skip
    if command == "eval":  # reads one split only
        refused = None
    return Case(command, "image", words, f"{kind.__name__} of {path.name}", refused, check)


def marked(world: World, folder: Path, rng: Random) -> Case:
    """One odd image among generated ones, whose marks are read."""
    world.copy("made", folder)
    path = rng.choice(sorted((folder / "made").iterdir()))
    kinds = [*damage.BYTES, *([damage.dicom_tag] * 4 if path.suffix == ".dcm" else [damage.odd_image] * 3)]
    kind = rng.choice(kinds)
    refused = kind(path, rng)
    if rng.random() < 0.6:
        refused = True if kind is damage.foreign or kind is damage.gone else None
        return Case("info", "image", ["info", str(path), "--json"], f"{kind.__name__} of {path.name}", refused)
    words = ["eval", "--real", str(world.set / "manifest.csv"), "--real-split", "train", "--resamples", "5"]
    words += ["--synthetic", str(folder / "made"), "--metrics", "repeats", "--extractors", "classifier", "-o", "ev"]
    refused = None if path.stem == "grid" or kind is damage.gone or path.suffix == ".dcm" else refused
    return Case("eval", "image", words, f"{kind.__name__} of {path.name}", refused)


def collection(world: World, folder: Path, rng: Random) -> Case:
    """An odd file in a public collection."""
    name = rng.choice([name for name in SOURCES if (world.collections / name).is_dir()])
    root = world.copy(f"collections/{name}", folder)
    pattern = rng.choice(["*", "*.csv*", "*.dcm", "*.z*", "*.tgz", "*.json"])
    if not any(path.is_file() for path in root.rglob(pattern)):
        pattern = "*"
    what, _ = damage.in_folder(root, rng, pattern=pattern)
    words = ["data", "prepare", name, *_collection(name, root), "-o", "out"]
    more = rng.choice([[], [], ["--limit", "2"], ["--copy-images"], ["--copy-images", "--size", "32"]])
    return Case(f"data prepare {name}", "collection", [*words, *more], what, None, checks.prepared(folder / "out"))


KINDS: Sequence[tuple[Kind, float]] = (
    (arguments, 60),
    (yaml_file, 20),
    (prompt_file, 4),
    (manifest, 6),
    (image, 4),
    (marked, 2),
    (collection, 3),
    (request, 12),
    (model, 2.5),
    (adapter, 0.6),
    (reporter, 0.6),
    (push, 1),
    (saved, 1),
    (checkpoint, 0.4),
)
"""Each kind with its share."""
