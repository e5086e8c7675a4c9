"""eval/mini.py and eval/table.py run for real: tiny random model, tiny manifest, a judge that sees."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from roentgen import errors
from roentgen.generators import generate as generation
from roentgen.generators.diffusion.sampling import Sampling
from roentgen.metrics import study
from roentgen.metrics.result import KEYS
from roentgen.synthesis import folder

ROOT = Path(__file__).resolve().parents[1]
SIDE = 176
METRICS = ("classifier_auroc", "laterality", "fid", "memorisation", "ms_ssim")


class Judge:
    """Sees fluid at the bases: what ``picture`` paints."""

    findings = ("No Finding", "Effusion", "Pneumothorax")

    def bases(self, images: np.ndarray) -> np.ndarray:
        assert images.dtype == np.uint8 and images.ndim == 3
        low = images[:, images.shape[1] * 2 // 3 :] / 255.0
        width = images.shape[2] // 6
        return np.stack([low[:, :, :width].mean((1, 2)), low[:, :, -width:].mean((1, 2))], axis=1)

    def predict(self, images: np.ndarray) -> np.ndarray:
        fluid = self.bases(images).max(axis=1)
        return np.stack([1 - fluid, fluid, np.zeros_like(fluid)], axis=1).astype(np.float32)

    def predict_sides(self, images: np.ndarray) -> np.ndarray:
        return np.repeat(self.bases(images)[:, None], 3, axis=1).astype(np.float32)

    def features(self, images: np.ndarray) -> np.ndarray:
        mean = images.mean((1, 2))[:, None] / 255
        return np.concatenate([self.bases(images), mean], axis=1).astype(np.float32)


def picture(rng: np.random.Generator, side: str | None) -> np.ndarray:
    image = rng.integers(60, 120, (SIDE, SIDE), dtype=np.uint8)
    if side is not None:
        columns = slice(SIDE * 5 // 6, None) if side == "left" else slice(None, SIDE // 6)
        image[SIDE * 2 // 3 :, columns] += 80
    return image


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, make_pipeline: Callable[..., Path]) -> dict[str, Path]:
    """Manifest of 36 train, 8 val and 24 test images, prompts of its test rows, a model that makes 176 px."""
    folder = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(0)
    rows, prompts = [], []
    for split, count in (("train", 36), ("val", 8), ("test", 24)):
        for number in range(count):
            side = (None, "left", None, "right")[number % 4]
            name = f"{split}_{number}.png"
            Image.fromarray(picture(rng, side)).save(folder / name)
            rows.append(
                {
                    "image": name,
                    "text": "x",
                    "patient_id": f"{split}{number // 2}",
                    "split": split,
                    "view": "PA",
                    "No Finding": int(side is None),
                    "Effusion": int(side is not None),
                    "Effusion_side": side or "",
                    "source": "made",
                    "licence": "CC0-1.0",
                }
            )
            if split == "test":
                labels = "No Finding" if side is None else f"Effusion:{side}"
                words = "no acute process" if side is None else f"{side} pleural effusion"
                name = f"evaluation-{split}_{number}"
                prompts.append({"id": name, "prompt": words, "labels": labels, "view": "PA"})
    pd.DataFrame(rows).to_csv(folder / "manifest.csv", index=False)
    pd.DataFrame(prompts).to_csv(folder / "prompts.csv", index=False)
    (folder / "judge").mkdir()
    (folder / "judge" / "config.json").write_text("{}")
    model = make_pipeline(folder / "model")
    config = json.loads((model / "unet" / "config.json").read_text())
    config["sample_size"] = SIDE // 4
    (model / "unet" / "config.json").write_text(json.dumps(config))
    return {
        name: folder / path
        for name, path in (
            ("manifest", "manifest.csv"),
            ("prompts", "prompts.csv"),
            ("classifier", "judge"),
            ("model", "model"),
            ("folder", "."),
        )
    }


def script(name: str, **replaced: Any) -> Callable[[list[str]], int]:
    """``main`` of a script, with names of its module replaced, behind the exit codes of a command."""
    spec = importlib.util.spec_from_file_location(f"script_{Path(name).stem}", ROOT / "eval" / name)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up type hints there
    spec.loader.exec_module(module)
    for key, value in replaced.items():
        assert hasattr(module, key)
        setattr(module, key, value)
    return lambda argv: errors.run(lambda: module.main(argv), prog=f"eval/{name}")


def flags(world: dict[str, Path], out: Path, **more: Any) -> list[str]:
    values: dict[str, Any] = {
        **{key: world[key] for key in ("manifest", "prompts", "classifier", "model")},
        "out": out / "results",
        "work": out / "work",
        "images": 24,
        "sided": 2,
        "groups": 2,
        "steps": 1,
        "device": "cpu",
        "resamples": 50,
        "fid_resamples": 5,
        "batch_size": 8,
    }
    return [f"--{key}={value}" for key, value in {**values, **more}.items()]


def perfect() -> Callable[..., np.ndarray]:
    """Generation that does what it is told, so that every figure has a known answer."""

    def make(model: Any, jobs: Any, folder: Path, *, sampling: Any, batch_size: int) -> np.ndarray:
        images = []
        for job in jobs:
            side = next((side for side in ("left", "right") if side in job.prompt), None)
            images.append(picture(np.random.default_rng(1000 + job.seed), side))
        return np.stack(images)

    return make


def read(folder: Path) -> dict[str, dict[str, Any]]:
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in METRICS}


@pytest.mark.slow
def test_a_model_that_obeys_gets_the_figures_it_deserves(
    world: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torchmetrics")
    monkeypatch.setattr(study, "generated_images", perfect())
    run = script("mini.py", load_classifier=lambda path: Judge(), generated_images=perfect())
    assert run(flags(world, tmp_path)) == 0
    results = read(tmp_path / "results")
    for name, found in results.items():
        assert set(KEYS) <= set(found), name
        text = json.dumps(found)
        assert str(tmp_path) not in text and str(world["folder"]) not in text, f"{name}: a local path"

    judged = results["classifier_auroc"]
    conditions = {entry["condition"]: entry for entry in judged["details"]["conditions"]}
    assert judged["value"] == 1.0 and conditions["real"]["value"] == 1.0
    assert 0.2 < conditions["shuffled"]["value"] < 0.8
    assert judged["details"]["macro_findings"] == ["Effusion"]
    listed = {entry["finding"]: entry for entry in conditions["generated"]["findings"]}
    assert listed["No Finding"]["value"] == 1.0 and not listed["No Finding"]["in_macro"]
    assert listed["Pneumothorax"]["positives"] == 0 and listed["Pneumothorax"]["value"] is None

    effusion, _, opacity = results["laterality"]["details"]["findings"]
    assert results["laterality"]["value"] == 1.0 and results["laterality"]["n"] == 4
    assert effusion["brightness"]["accuracy"] == 1.0
    assert effusion["brightness_real"] == {**effusion["brightness_real"], "accuracy": 1.0, "n": 34}
    assert effusion["classifier_real_test"]["n"] == 12
    assert opacity["classifier"] is None and "Lung Opacity" in results["laterality"]["warnings"][0]

    distances = {entry["condition"]: entry["value"] for entry in results["fid"]["details"]["conditions"]}
    assert distances["generated"] < 0.01 < distances["reconstructed"]  # the autoencoder is random
    assert 0.2 < results["memorisation"]["value"] < 0.8
    likeness = {entry["condition"]: entry["value"] for entry in results["ms_ssim"]["details"]["conditions"]}
    assert likeness["generated"] == pytest.approx(likeness["real"], abs=0.1)
    assert (tmp_path / "results" / "grid.png").is_file() and (tmp_path / "results" / "nearest.png").is_file()

    # The table takes its figures from there, and from nowhere else.
    page = tmp_path / "README.md"
    page.write_text("# x\n<!-- results:mini -->\n<!-- /results:mini -->\n")
    table = script("table.py")
    assert table([str(tmp_path / "results"), str(page), "--check"]) == 2
    assert table([str(tmp_path / "results"), str(page)]) == 0
    assert table([str(tmp_path / "results"), str(page), "--check"]) == 0
    assert "| Macro AUROC, 1 findings | 1.00 [1.00, 1.00] | 1.00 [1.00, 1.00] |" in page.read_text()
    assert "python eval/mini.py --manifest=manifest.csv" in page.read_text()
    page.write_text("# no markers\n")
    capsys.readouterr()
    assert table([str(tmp_path / "results"), str(page)]) == 2
    assert "<!-- results:mini -->" in capsys.readouterr().err


@pytest.mark.slow
def test_it_runs_on_a_real_pipeline_and_continues(
    world: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torchmetrics")
    run = script("mini.py", load_classifier=lambda path: Judge())
    # One at a time: in another batch an image may differ by a grey level, and figures with it.
    small = {"images": 6, "sided": 1, "groups": 1, "batch_size": 1}
    assert run(flags(world, tmp_path, **small)) == 0
    first = read(tmp_path / "results")
    made = sorted((tmp_path / "work" / "images").iterdir())
    made[0].unlink()
    requested: list[str] = []
    original = generation.generate

    def counted(model: Any, prompts: list[str], **options: Any) -> Any:
        requested.extend(prompts)
        return original(model, prompts, **options)

    monkeypatch.setattr(generation, "generate", counted)
    assert run(flags(world, tmp_path, **small)) == 0
    assert len(requested) == 1  # only the image that was lost
    again = read(tmp_path / "results")
    for name, found in first.items():
        differing = {key for key in found if found[key] != again[name][key]}
        assert differing <= {"git_commit", "git_modified"}, name
    assert first["classifier_auroc"]["value"] is None  # six prompts are too few for a macro


def test_images_are_made_again_when_their_provenance_differs(tmp_path: Path, tiny_model: Any) -> None:
    jobs = [folder.Job(*job) for job in (("left effusion", 3), ("normal heart", 4), ("left effusion", 3))]
    sampling = tiny_model.sampling(steps=1, guidance=1.0, sampler="ddim")
    images = folder.generated_images(tiny_model, jobs, tmp_path, sampling=sampling, batch_size=2)
    assert images.shape == (3, 32, 32) and images.dtype == np.uint8
    assert np.array_equal(images[0], images[2]) and not np.array_equal(images[0], images[1])
    path = folder.image_path(tmp_path, jobs[0])
    assert folder.is_made(path, jobs[0], tiny_model.info.hash, sampling)
    assert not folder.is_made(path, jobs[0], "another", sampling)
    for changed in ((2, 1.0, "ddim"), (1, 2.0, "ddim"), (1, 1.0, "unipc")):
        assert not folder.is_made(path, jobs[0], tiny_model.info.hash, Sampling(*changed))
    shutil.copy(folder.image_path(tmp_path, jobs[1]), path)  # a wrong image under the right name
    again = folder.generated_images(tiny_model, jobs, tmp_path, sampling=sampling, batch_size=1)
    assert np.abs(again.astype(int) - images.astype(int)).max() <= 1


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"images": 25}, "--images 25"),
        ({"classifier": "nowhere"}, "--classifier nowhere"),
        ({"steps": 0}, "--steps 0"),
        ({"resamples": 0}, "--resamples"),
        ({"prompts": "none.csv"}, "none.csv"),
        ({"colour": 1}, "colour"),
    ],
)
def test_bad_settings_are_one_sentence(
    world: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changed: dict[str, Any],
    named: str,
) -> None:
    run = script("mini.py", load_classifier=lambda path: Judge())
    assert run(flags(world, tmp_path, **changed)) == 2
    error = capsys.readouterr().err
    assert named in error and len(error.strip().splitlines()) == 1
