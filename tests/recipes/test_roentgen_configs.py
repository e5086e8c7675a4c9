"""train/configs/roentgen: the rows of RoentGen's study, each read, dry-run and trained 20 steps from tiny models."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from forks import Done
from recipe import ROOT, few_rows, finetune

FOLDER = ROOT / "train" / "configs" / "roentgen"
SAMPLE = ROOT / "data" / "sample" / "manifest.csv"
CONFIGS = {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}
GRID = {
    f"unet-{encoder}-{state}_{steps}-steps_{rate}": (encoder, state == "trained", steps, float(rate))
    for encoder, state, steps, rate in product(
        ("clip", "radbert", "sapbert"), ("frozen", "trained"), (1_000, 12_500, 60_000), ("5e-5", "1e-4")
    )
}
STEPS, BATCH = 20, 2
SAMPLED = ("roentgen-v2", "unet-radbert-trained_1000-steps_5e-5")
"""Draw their sample grid; all others have the same settings of sampling, which a test holds."""


def read(name: str) -> dict[str, Any]:
    """What the file says, and its base below it."""
    found: dict[str, Any] = yaml.safe_load(CONFIGS[name].read_text())
    if (base := found.pop("base", None)) is None:
        return found
    below: dict[str, Any] = yaml.safe_load((FOLDER / "shared" / f"{base}.yaml").read_text())
    return below | found | {"train": below["train"] | found["train"]}


def test_files_are_the_grid() -> None:
    assert set(CONFIGS) == {*GRID, "roentgen-v2"}
    assert len(GRID) == 36


@pytest.mark.parametrize("name", GRID)
def test_row_says_what_its_name_says(name: str) -> None:
    encoder, trained, steps, rate = GRID[name]
    row = read(name)
    assert row["name"] == name and row["model"] == "sd-1.4" and row["text_encoder"] == encoder
    assert row["train"] == {"unet": True, "text_encoder": trained}
    assert row["batch_size"] == 256 and row["images"] == 256 * steps and row["rate"] == rate
    assert row.get("text_rate") == (rate if trained else None)
    assert ("text_window" in row) == (encoder != "clip")
    assert row["images"] % row["checkpoint_every"] == 0 and row["warmup"] < row["images"]
    assert (row["sampler"], row["steps"], row["guidance"]) == ("pndm", 75, 4.0)
    first = CONFIGS[name].read_text().splitlines()[0]
    for word in (
        encoder,
        "frozen" if not trained else "trained",
        f"{steps / 1000:g}k",
        f"{rate:.0e}".replace("-0", "-"),
    ):
        assert word in first.lower()


def test_rows_differ_in_nothing_else() -> None:
    """Once encoder, training, length, rate and what follows from them are taken away, one configuration is left."""
    own = {"name", "text_encoder", "text_window", "text_states", "train", "images", "rate", "text_rate"}
    own |= {"checkpoint_every", "validate_every", "sample_every"}
    common = {json.dumps({k: v for k, v in read(name).items() if k not in own}, sort_keys=True) for name in GRID}
    assert len(common) == 1


def test_table_lists_every_row() -> None:
    page = (FOLDER / "README.md").read_text()
    assert [name for name in CONFIGS if f"`{name}.yaml`" not in page] == []


@pytest.fixture(scope="module")
def tiny(make_pipeline: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A three-channel CLIP pipeline, a BERT, and a manifest of 24 training and 8 validation images."""
    from tiny import write_bert

    folder = tmp_path_factory.mktemp("tiny")
    return {
        "model": make_pipeline(folder / "model", channels=3, window=77, prediction="epsilon"),
        "bert": write_bert(folder / "bert", window=128),
        "manifest": few_rows(folder),
        "folder": folder,
    }


def run(tiny: dict[str, Path], label: str, *flags: object) -> dict[str, Done]:
    """Every configuration with ``flags``; what each came to, by name: one that fails does not stop the others."""
    results = {}
    for name, path in CONFIGS.items():
        clip = read(name)["text_encoder"] == "clip"
        given = {"--config": path, "--model": tiny["model"], "--manifest": tiny["manifest"]}
        given |= {"--out": tiny["folder"] / label / name, "--text_encoder": "clip" if clip else tiny["bert"]}
        words = [word for pair in given.items() for word in pair]
        if name not in SAMPLED:
            words += ["--sample_every", 10**6]  # grids take most of the time of so short a training
        try:
            done = finetune(*words, *flags)
        except (Exception, SystemExit):
            results[name] = Done(1, "", traceback.format_exc())
        else:
            results[name] = done
    return results


@pytest.fixture(scope="module")
def dry(tiny: dict[str, Path]) -> dict[str, Done]:
    return run(tiny, "dry", "--dry-run")


@pytest.fixture(scope="module")
def trained(tiny: dict[str, Path]) -> dict[str, Done]:
    return run(tiny, "runs", "--images", STEPS * BATCH, "--batch_size", BATCH, "--accumulate", 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_dry_run(name: str, dry: dict[str, Done], tiny: dict[str, Path]) -> None:
    assert dry[name].code == 0, dry[name].err
    said, row = dry[name].out, read(name)
    assert f"{row['images']} images to see" in said and f"{row['images'] // 256} steps of 256" in said
    for word in ("epochs", "are cut", "M trained", "memory", "disk", "hours"):
        assert word in said
    assert not (tiny["folder"] / "dry" / name).exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_twenty_steps(name: str, trained: dict[str, Done], tiny: dict[str, Path]) -> None:
    assert trained[name].code == 0, trained[name].err
    out, row = tiny["folder"] / "runs" / name, read(name)
    assert json.loads((out / "training.json").read_text())["images"] == STEPS * BATCH
    start = tiny["model"] / "text_encoder" if row["text_encoder"] == "clip" else tiny["bert"]
    assert differs(out / "pipeline" / "unet", tiny["model"] / "unet")
    assert differs(out / "pipeline" / "text_encoder", start) == row["train"]["text_encoder"]
    assert not differs(out / "pipeline" / "vae", tiny["model"] / "vae")
    defaults = json.loads((out / "pipeline" / "roentgen.json").read_text())["defaults"]
    assert defaults == {"steps": row["steps"], "guidance": row["guidance"], "sampler": "pndm"}


def differs(one: Path, other: Path) -> bool:
    """Whether two modules on disk have different weights."""
    import torch
    from safetensors.torch import load_file

    first, second = (
        # What is saved has the prefix that every version of transformers knows; what transformers 5 writes has none.
        {k.removeprefix("text_model."): v for f in folder.glob("*.safetensors") for k, v in load_file(f).items()}
        for folder in (one, other)
    )
    assert first and set(first) <= set(second)  # a BERT pooler, which nothing uses, may be left out
    return any(not torch.equal(first[key], second[key]) for key in first)
