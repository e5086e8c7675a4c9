"""The sound files that inputs start from, made once: a tiny model, images, and what commands made of them."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .limits import as_new, run

TESTS = Path(__file__).parents[1]
if str(TESTS) not in sys.path:  # the builders of the tests
    sys.path.insert(0, str(TESTS))

SIDE = 72
TEXTS = ("left pleural effusion", "no acute process", "heart is normal in size", "small right effusion")


@dataclass(frozen=True)
class World:
    """Folders below ``root``; nothing in them is changed, inputs work on copies."""

    root: Path

    def __getattr__(self, name: str) -> Path:
        return self.root / name

    def scratch(self, number: int) -> Path:
        """An empty folder with odd files in it, to run in."""
        folder = self.root / "scratch" / f"{number}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        odd_files(folder)
        return folder

    def copy(self, name: str, folder: Path) -> Path:
        """A copy of something of the world."""
        source, target = self.root / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, symlinks=True)
        else:
            shutil.copyfile(source, target)
        return target


def odd_files(folder: Path) -> None:
    """What a path may lead to instead of a file."""
    endings = ("", ".csv", ".png", ".txt", ".jsonl", ".parquet", ".yaml", ".dcm")
    for ending in endings:
        (folder / f"binary{ending}").write_bytes(bytes(range(256)) * 4)
        (folder / f"empty{ending}").touch()
    for ending in ("", ".csv", ".txt", ".jsonl", ".parquet", ".yaml"):
        os.mkfifo(folder / f"pipe{ending}")
    for ending in ("", ".csv"):
        (folder / f"loop{ending}").symlink_to(f"loop{ending}")
        with contextlib.suppress(OSError):  # only root makes devices
            os.mknod(folder / f"device{ending}", 0o666 | stat.S_IFCHR, os.makedev(1, 7))  # /dev/full
    for name in ("folder", "folder.csv", "folder.png"):
        (folder / name).mkdir()
    (folder / "text.txt").write_text("left pleural effusion\nno acute process\n")
    (folder / "é ü.csv").write_text("id,prompt\na,left pleural effusion\n")


def build(root: Path) -> World:
    """Make the world below ``root``; a sound command that fails here is an error of the harness."""
    from conftest import write_pipeline

    world = World(root)
    write_pipeline(root / "tiny", window=77)
    _images(root / "set")
    (root / "prompts.csv").write_text(
        "id,prompt,seed,labels,view,sex,age\n"
        "a,left pleural effusion,3,Effusion:left,PA,M,60\nb,heart is normal in size,,No Finding,,,\n"
    )
    (root / "prompts.txt").write_text("left pleural effusion\nno acute process\n")
    (root / "prompts.jsonl").write_text('{"id": "a", "prompt": "left effusion", "seed": 3}\n{"prompt": "heart"}\n')
    model = ["--model", str(root / "tiny"), "--steps", "1"]
    sound(["generate", *TEXTS[:2], *model, "-o", str(root / "made"), "--grid"])
    for kind in ("jpeg", "dicom"):
        sound(["generate", TEXTS[0], *model, "-o", str(root / "made"), "--format", kind])
    sound(["export", *export_flags(world), "-o", str(root / "exported")])
    begin(["export", *export_flags(world), "-o", str(root / "begun")])
    begin(["export", *export_flags(world), "-o", str(root / "drawn")], "roentgen.synthesis.engine._Shards.write")
    sound(["data", "shard", str(root / "set" / "manifest.csv"), "-o", str(root / "shards")])
    sound([*eval_words(world), "-o", str(root / "evaluated")])
    _runs(world)
    _lora(root / "lora")
    _collections(root / "collections")
    return world


def _runs(world: World) -> None:
    """Runs of recipes that were stopped half way or are finished, and the models that they made."""
    from . import recipes

    root = world.root
    (root / "runs").mkdir()
    boxes = ["image,label,x,y,width,height", *(f"i{n}.png,Effusion,0.6,0.4,0.2,0.3" for n in (0, 4, 6))]
    (root / "set" / "boxes.csv").write_text("\n".join(boxes) + "\n")
    with contextlib.chdir(root):
        for name in ("tokenizer", "finetune", "masked", "report", "autoencoder"):
            words = ["train", name, *recipes.RUNS[name](world)]
            more = ["--checkpoint-every", "2", "--until", "2"] if name == "finetune" else []
            sound([*words, *more])
            shutil.copytree(root / "out", root / "runs" / name)
            if name == "tokenizer":
                shutil.copytree(root / "out", root / "tokens")
            (root / "out").rename(root / f"made-{name}")
        sound(["train", "report", *recipes.labels_flags(world)])
        (root / "out").rename(root / "made-labels")
    shutil.copytree(root / "made-masked" / "model", root / "masked")
    shutil.copytree(root / "made-finetune", root / "trained")
    import reporters

    for name, maker in reporters.MAKERS.items():
        maker(root / "reporters" / name)
    for name in ("report", "labels"):
        kept = [path for path in (root / f"made-{name}").iterdir() if path.is_file()]
        (root / "reporters" / name).mkdir()
        for path in kept:
            shutil.copyfile(path, root / "reporters" / name / path.name)


def export_flags(world: World) -> list[str]:
    """The plan of the exported set: four images in all formats."""
    flags = ["--per-finding", "2", "--findings", "Effusion,Edema", "--filter", "none", "--shard-size", "2"]
    return [*flags, "--model", str(world.tiny), "--steps", "1", "--format", "folder,webdataset,parquet,dicom"]


def eval_words(world: World) -> list[str]:
    """An evaluation that takes part of a second."""
    sets = ["--real", str(world.set / "manifest.csv"), "--synthetic", str(world.made), "--real-split", "train"]
    return ["eval", *sets, "--metrics", "repeats", "--resamples", "5", "--extractors", "classifier"]


def sound(words: list[str]) -> None:
    """Run a command line that has to succeed."""
    from roentgen import cli

    as_new()
    found = run(lambda: cli.main(words), prog="roentgen")
    assert found.code == 0 and not found.problem, (words, found)


def begin(words: list[str], before: str = "roentgen.synthesis.engine._finish") -> None:
    """Run an export that is stopped before this function of it."""
    from unittest.mock import patch

    from roentgen import cli

    with patch(before, side_effect=KeyboardInterrupt):
        found = run(lambda: cli.main(words), prog="roentgen")
    assert found.code == 130, found


def _images(folder: Path) -> None:
    from PIL import Image
    from trees import film

    folder.mkdir(parents=True)
    rows = ["image,text,patient_id,split,view,sex,age,Effusion,Edema,Effusion_side"]
    for number in range(10):
        ending = ".jpg" if number % 3 == 2 else ".png"
        Image.fromarray(film(number, (SIDE, SIDE))).save(folder / f"i{number}{ending}")
        split = ("train", "train", "train", "val", "test")[number % 5]
        side = ("left", "", "right", "")[number % 4]
        cells = [split, ("PA", "AP")[number % 2], ("M", "F")[number % 2], str(30 + number)]
        rows.append(
            f"i{number}{ending},{TEXTS[number % 4]} {number},p{number},{','.join(cells)},{int(bool(side))},0,{side}"
        )
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
    import pandas as pd

    pd.read_csv(folder / "manifest.csv").to_parquet(folder / "manifest.parquet")


def _lora(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    name = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    folder.mkdir()
    state = {f"{name}.lora_A.weight": torch.ones(2, 8), f"{name}.lora_B.weight": torch.ones(8, 2)}
    save_file(state, folder / "pytorch_lora_weights.safetensors", metadata={"format": "pt"})


def _collections(folder: Path) -> None:
    import trees
    import trees_b

    trees.mimic_tree(folder / "mimic-cxr-jpg")
    trees.xreport_tree(folder / "xreport")
    trees.openi_tree(folder / "openi", count=4)
    trees_b.chexpert_tree(folder / "chexpert")
    trees_b.plus_tree(folder / "chexpert-plus")
    trees_b.nih_tree(folder / "nih")
    trees_b.padchest_tree(folder / "padchest")
    trees_b.dicom_tree(folder / "dicom")
    trees_b.openchest_tree(folder / "openchest")


def grey(path: Path) -> np.ndarray:
    """An image as Pillow alone reads it."""
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("L"))
