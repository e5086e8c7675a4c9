"""`roentgen generate`, `models` and `info`, run as a user runs them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from roentgen import cli, images
from roentgen.commands.generate import slug
from roentgen.provenance import __version__

ROOT = Path(__file__).parents[2]


@pytest.fixture
def make(run_cli, tiny_pipeline, tmp_path):
    """Run generate with the tiny model into ``tmp_path / "out"`` and return stdout lines and stderr."""

    def run(*argv):
        code, out, err = run_cli(
            "generate",
            *argv,
            *([] if "--out" in argv else ["--out", tmp_path / "out"]),
            "--model",
            tiny_pipeline,
        )
        assert code == 0, err
        return out.splitlines(), err

    return run


def test_one_path_a_line_and_names(make, tmp_path):
    lines, err = make("left pleural effusion", "Heart is normal.", "--num-images", "2", "--seed", "5")
    names = [Path(line).name for line in lines]
    assert names == [
        "left-pleural-effusion_5.png",
        "left-pleural-effusion_6.png",
        "heart-is-normal_5.png",
        "heart-is-normal_6.png",
    ]
    assert all(images.read_image(line).shape == (32, 32) for line in lines)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(names)
    assert "100%" in err
    assert "warning" not in err


def test_cli_makes_the_images_of_the_api(make, tiny_model):
    from roentgen import generate

    lines, _ = make("left pleural effusion", "--seed", "9", "--steps", "4", "--guidance", "2", "--sampler", "ddim")
    sample = next(generate(tiny_model, "left pleural effusion", seed=9, steps=4, guidance=2, sampler="ddim"))
    assert (images.read_image(lines[0]) == sample.image).all()
    assert images.read_provenance(lines[0]) == sample.provenance


def test_json_lines(make):
    lines, err = make("left zebra", "--json", "--num-images", "2", "--grid")
    first, second, grid = (json.loads(line) for line in lines)
    assert (first["prompt"], first["seed"], second["seed"]) == ("left zebra", 0, 1)
    assert (first["steps"], first["guidance"], first["sampler"]) == (3, 3.0, "dpm++")
    assert (first["width"], first["height"], first["model"]) == (32, 32, "tiny")
    assert re.fullmatch(r"[0-9a-f]{16}", first["model_hash"])
    assert first["warnings"] == ["word never seen in training: zebra"]
    assert grid["path"].endswith("grid.png")
    assert len(re.findall(r"warning: .*zebra", err)) == 1


def test_grid_holds_the_images(make, tmp_path):
    lines, _ = make("left effusion", "right effusion", "--num-images", "3", "--grid")
    picture = images.read_image(lines[-1])
    assert lines[-1].endswith("grid.png")
    made = [images.read_image(line) for line in lines[:-1]]
    assert (picture == images.make_grid(made, ["left effusion", "right effusion"], columns=3)).all()
    assert images.read_provenance(lines[-1])["synthetic"] == "true"


@pytest.mark.parametrize("name", images.FORMATS)
def test_formats_and_info(make, run_cli, tmp_path, name):
    lines, _ = make("left effusion", "--format", name)
    assert Path(lines[0]).suffix == images.FORMATS[name]
    code, out, _ = run_cli("info", lines[0])
    assert code == 0
    assert "prompt: left effusion\n" in out
    assert "synthetic: true\n" in out
    code, out, _ = run_cli("info", lines[0], "--json")
    assert json.loads(out)["seed"] == "0"


def test_out_file_decides_the_format(make, tmp_path):
    lines, _ = make("left effusion", "--out", tmp_path / "new" / "a.dcm")
    assert lines == [str(tmp_path / "new" / "a.dcm")]
    assert images.read_provenance(lines[0])["prompt"] == "left effusion"


def test_prompts_file_gives_ids_and_seeds(make, tmp_path):
    table = tmp_path / "list.csv"
    table.write_text("id,prompt,seed\nA1,left effusion,40\nB2,right effusion,\n")
    lines, _ = make("--prompts", table, "--num-images", "2", "--seed", "3")
    assert [Path(line).name for line in lines] == ["a1_40.png", "a1_41.png", "b2_5.png", "b2_6.png"]
    lines, _ = make("--prompts", table, "--num-images", "2", "--seed", "3", "--same-seed", "--overwrite")
    assert [Path(line).name for line in lines] == ["a1_40.png", "a1_41.png", "b2_3.png", "b2_4.png"]
    assert images.read_provenance(lines[2])["seed"] == "3"


def test_yaml_config_and_flags(make, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("steps: 2\nguidance: 1\nnum_images: 2\nprompt: [left effusion]\n")
    lines, _ = make("--config", config, "--guidance", "2", "--json")
    assert [(json.loads(line)["steps"], json.loads(line)["guidance"]) for line in lines] == [(2, 2.0)] * 2


def test_overwrite(make, tmp_path):
    first, _ = make("left effusion")
    before = images.read_image(first[0])
    second, _ = make("left effusion", "--overwrite", "--guidance", "9")
    assert first == second
    assert (images.read_image(second[0]) != before).any()


def test_slugs_stay_apart():
    assert slug("Left pleural effusion.") == "left-pleural-effusion"
    long = "left pleural effusion with adjacent atelectasis and a normal heart size in "
    assert slug(long + "men") != slug(long + "women")
    assert len(slug(long)) < 70
    assert slug("左側胸水") != slug("右側胸水")
    assert re.fullmatch(r"[0-9a-f]{6}", slug("左側胸水"))
    assert slug("../../etc/passwd") == "etc-passwd"


def test_models_lists_all(run_cli, hub_cache, tiny_pipeline):
    hub_cache("CompVis/stable-diffusion-v1-4", tiny_pipeline)
    code, out, _ = run_cli("models", "--json")
    rows = {row["name"]: row for row in map(json.loads, out.splitlines())}
    assert code == 0
    assert set(rows) == {"mini", "mini-masked", "roentgen-v2", "sd-1.4", "sd-1.5", "sd-2.1-base"}
    assert rows["roentgen-v2"]["hub_ids"] == ["stanfordmimi/RoentGen-v2"]
    assert rows["sd-1.4"]["on_disk"]
    assert rows["sd-1.5"]["on_disk"] is None
    code, out, _ = run_cli("models")
    assert all(name in out for name in rows)


def test_info_of_a_real_image(run_cli, tmp_path):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "real.png")
    code, out, err = run_cli("info", tmp_path / "real.png")
    assert (code, out) == (2, "")
    assert "no provenance: not made by roentgen" in err


def test_help_and_version():
    done = subprocess.run(
        [sys.executable, "-m", "roentgen", "--help"], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert all(f"\n  {name} " in done.stdout for name in cli.COMMANDS)
    version = subprocess.run(
        [sys.executable, "-m", "roentgen", "--version"], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert version.stdout == f"roentgen {__version__}\n"


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help(run_cli, name, capsys):
    with pytest.raises(SystemExit) as stopped:
        run_cli(*name.split(), "--help")
    assert stopped.value.code == 0
    assert f"usage: roentgen {name}" in capsys.readouterr().out


def test_help_needs_no_heavy_import():
    heavy = {"torch", "numpy", "pandas", "diffusers", "transformers", "PIL"}
    code = f"import sys; from roentgen import cli; cli.main(['--help']); print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.endswith("set()\n")
