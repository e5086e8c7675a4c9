"""train ship: what the shipped folder tells stock diffusers of the sampler that was chosen."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from roentgen.errors import UserError
from roentgen.generators.diffusion.sampling import SAMPLERS
from roentgen.recipes import ship


def test_defaults_that_the_model_cannot_be_sampled_with_are_refused(tiny_pipeline: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_pipeline, tmp_path / "pipeline")
    facts = json.loads((folder / "roentgen.json").read_text())
    (folder / "roentgen.json").write_text(json.dumps({"images_seen": 1, "defaults": {}, **facts}))
    for flag in ("--sampler=sharpest", "--sampling={temprature: 0.8}"):
        with pytest.raises(UserError):
            ship.main([f"--pipeline={folder}", f"--out={tmp_path / 'out'}", flag])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("sampler", ["unipc-karras", "dpm++", "ddim"])
def test_stock_diffusers_samples_with_the_chosen_sampler(tiny_pipeline: Path, tmp_path: Path, sampler: str) -> None:
    folder = shutil.copytree(tiny_pipeline, tmp_path / "pipeline")
    facts = json.loads((folder / "roentgen.json").read_text())
    (folder / "roentgen.json").write_text(json.dumps({"images_seen": 1, "defaults": {}, **facts}))
    before = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    out = tmp_path / "shipped"
    assert ship.main([f"--pipeline={folder}", f"--out={out}", f"--sampler={sampler}", "--steps=2", "--guidance=1"]) == 0
    after = json.loads((out / "scheduler" / "scheduler_config.json").read_text())
    name, changes = SAMPLERS[sampler]
    assert after["_class_name"] == name and {key: after[key] for key in changes} == changes
    for key in ("beta_start", "beta_end", "beta_schedule", "prediction_type", "timestep_spacing"):
        assert after.get(key) == before.get(key, after.get(key))
    assert json.loads((out / "model_index.json").read_text())["scheduler"] == ["diffusers", name]
    assert json.loads((out / "roentgen.json").read_text())["defaults"]["sampler"] == sampler


def test_a_shipped_model_that_ships_again_says_its_new_version(tiny_pipeline: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_pipeline, tmp_path / "pipeline")
    facts = json.loads((folder / "roentgen.json").read_text())
    (folder / "roentgen.json").write_text(json.dumps({"images_seen": 1, "defaults": {}, **facts}))
    again = tmp_path / "again"
    for source, out, version in ((folder, tmp_path / "one", "1"), (tmp_path / "one", again, "2")):
        flags = [f"--version={version}", f"--licence=licence {version}", f"--images-seen={version}00"]
        assert ship.main([f"--pipeline={source}", f"--out={out}", *flags]) == 0
    said = json.loads((again / "roentgen.json").read_text())
    assert (said["version"], said["licence"], said["images_seen"]) == ("2", "licence 2", 200)
