"""eval/mini.py and eval/table.py run for real: tiny random model, tiny manifest, an extractor that sees fluid."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from image_sets import write_set
from recipe import load_script

from roentgen import errors
from roentgen.generators import generate as generation
from roentgen.generators.diffusion.sampling import Sampling
from roentgen.images import save_image
from roentgen.metrics import suite
from roentgen.metrics.extractor import Extractor
from roentgen.metrics.result import KEYS
from roentgen.synthesis import folder

SIDE = 176
FINDINGS = ("No Finding", "Effusion", "Pneumothorax")


def judge(name: str = "classifier", *, device: str = "cpu") -> Extractor:
    """Sees fluid at the bases: what ``picture`` paints. Its findings lack Lung Opacity."""

    def prepare(image: np.ndarray) -> np.ndarray:
        low = image[image.shape[0] * 2 // 3 :].astype(np.float32) / 255
        width = image.shape[1] // 6
        return np.array([[low[:, :width].mean(), low[:, -width:].mean(), image.mean() / 255]], np.float32)

    def forward(batch: torch.Tensor) -> dict[str, torch.Tensor]:
        bases = batch[:, 0, :2]
        fluid = bases.amax(1)
        scores = torch.stack([1 - fluid, fluid, torch.zeros_like(fluid)], dim=1)
        return {"features": batch[:, 0], "probabilities": scores, "sides": bases[:, None].repeat(1, 3, 1)}

    return Extractor(
        name="toy",
        chain="as it is",
        dim=3,
        hash="0" * 16,
        outputs=("features", "probabilities", "sides"),
        findings=FINDINGS,
        device=device,
        prepare=prepare,
        forward=forward,
    )


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
    counts, made = {"train": 36, "val": 8, "test": 24}, {"source": "made", "licence": "CC0-1.0"}
    manifest = write_set(folder, counts, 0, draw=picture, text="{says}", patient=2, **made)
    rows = pd.read_csv(manifest, keep_default_na=False)
    rows = rows[rows["split"] == "test"]
    labels = ["No Finding" if not side else f"Effusion:{side}" for side in rows["Effusion_side"]]
    names = [f"evaluation-{Path(image).stem}" for image in rows["image"]]
    prompts = pd.DataFrame({"id": names, "prompt": rows["text"], "labels": labels, "view": "PA"})
    prompts.to_csv(folder / "prompts.csv", index=False)
    model = make_pipeline(folder / "model")
    config = json.loads((model / "unet" / "config.json").read_text())
    config["sample_size"] = SIDE // 4
    (model / "unet" / "config.json").write_text(json.dumps(config))
    return {
        name: folder / path
        for name, path in (
            ("manifest", "manifest.csv"),
            ("prompts", "prompts.csv"),
            ("model", "model"),
            ("folder", "."),
        )
    }


def script(name: str, **replaced: Any) -> Callable[[list[str]], int]:
    """``main`` of a script, with names of its module replaced, behind the exit codes of a command."""
    module = load_script(f"eval/{name}")
    for key, value in replaced.items():
        assert hasattr(module, key)
        setattr(module, key, value)
    return lambda argv: errors.run(lambda: module.main(argv), prog=f"eval/{name}")


def flags(world: dict[str, Path], out: Path, **more: Any) -> list[str]:
    values: dict[str, Any] = {
        **{key: world[key] for key in ("manifest", "prompts", "model")},
        "out": out / "results",
        "each": 4,
        "sided": 2,
        "steps": 1,
        "device": "cpu",
        "resamples": 50,
        "batch_size": 8,
    }
    return [f"--{key}={value}" for key, value in {**values, **more}.items()]


def obey(model: Any, jobs: Sequence[folder.Job], out: Path, **how: Any) -> None:
    """Generation that does what it is told, so that every figure has a known answer."""
    for job in jobs:
        side = next((side for side in ("left", "right") if side in job.prompt), None)
        image = picture(np.random.default_rng(1000 + job.seed), side)
        if "large" in job.prompt:
            image[SIDE * 2 // 3 :] = 250
        marks = {"model": "obeys", "model_hash": "0" * 16, "prompt": job.prompt, "seed": str(job.seed)}
        save_image(image, folder.image_path(out, job), format="png", provenance=marks, overwrite=True)


def read(out: Path) -> dict[str, dict[str, Any]]:
    names = json.loads((out / "evaluation.json").read_text())["measures"]
    return {name: json.loads((out / f"{name}.json").read_text()) for name in names}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], int]:
    monkeypatch.setattr(suite, "load_extractor", judge)
    monkeypatch.setattr(suite, "DEFAULT_EXTRACTORS", ("judge",))
    return script("mini.py")


@pytest.mark.slow
def test_a_model_that_obeys_gets_the_figures_it_deserves(
    world: dict[str, Path],
    tmp_path: Path,
    run: Callable[[list[str]], int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(folder, "make_images", obey)
    # The fifth prompts of each kind would be a draw: all 24 are taken.
    assert run(flags(world, tmp_path)) in (0, 2)  # what needs texts of a dual encoder may be refused
    results = read(tmp_path / "results")
    for name, found in results.items():
        assert set(KEYS) <= set(found), name
        text = json.dumps(found)
        assert str(tmp_path) not in text and str(world["folder"]) not in text, f"{name}: a local path"

    judged = results["auroc"]
    details = judged["details"]
    assert judged["value"] == 1.0 and details["ceiling"]["value"] == 1.0
    assert 0.2 < details["floor"]["value"] < 0.8 and details["macro_findings"] == ["Effusion"]
    listed = {entry["finding"]: entry for entry in details["findings"]}
    assert listed["No Finding"]["value"] == 1.0 and not listed["No Finding"]["in_macro"]
    rebuilt = details["reconstructed"]
    assert rebuilt["n"] == 24 and "unchanged: 1.000" in rebuilt["what"] and 0 <= rebuilt["value"] <= 1

    sides = {row["name"]: row for row in results["sides_asked"]["details"]["rows"]}
    for by in ("effusion by the classifier", "effusion by brightness"):
        assert sides[by]["value"] == 1.0 and sides[by]["n"] == 4
        assert sides[by]["ceiling"]["value"] == 1.0 and sides[by]["ceiling"]["n"] == 12
    assert sides["lung opacity by brightness"]["n"] == 4 and "lung opacity by the classifier" not in sides
    assert "Lung Opacity" in results["sides_asked"]["warnings"][0]
    severity = {row["name"].partition(":")[0]: row for row in results["severity"]["details"]["rows"]}
    assert severity["effusion"]["value"] == 1.0 and severity["effusion"]["n"] == 2
    assert severity["effusion"]["little"] < severity["effusion"]["much"]
    assert (
        severity["effusion"]["ceiling"]["n"] == 24
    )  # paint is beside the zones: what it is worth here does not matter

    distance = results["fid"]
    assert distance["value"] < 0.01 < distance["details"]["reconstructed"]["value"]  # the autoencoder is random
    for name in ("nearest", "nearest_pixels"):
        assert 0.2 < results[name]["value"] < 0.8 and results[name]["details"]["ceiling"]["n"] == 8
    likeness = results["ms_ssim_within"]
    assert likeness["value"] == pytest.approx(likeness["details"]["ceiling"]["value"], abs=0.1)
    assert results["sharpness"]["details"]["rows"][0]["reconstructed"]["n"] == 24

    # The table takes its figures from there, and from nowhere else.
    page = tmp_path / "README.md"
    page.write_text("# x\n<!-- results:mini -->\n<!-- /results:mini -->\n")
    table = script("table.py")
    assert table([str(tmp_path / "results"), str(page), "--check"]) == 2
    assert table([str(tmp_path / "results"), str(page)]) == 0
    assert table([str(tmp_path / "results"), str(page), "--check"]) == 0
    assert "| AUROC, macro over findings | 1.00 [1.00, 1.00] |" in page.read_text()
    assert "| Effusion | 48 | 1.00 [1.00, 1.00] | 1.00 [1.00, 1.00] |" in page.read_text()
    assert "Made by `roentgen eval --real manifest.csv --train manifest.csv" in page.read_text()
    page.write_text("# no markers\n")
    capsys.readouterr()
    assert table([str(tmp_path / "results"), str(page)]) == 2
    assert "<!-- results:mini -->" in capsys.readouterr().err


@pytest.mark.slow
def test_it_runs_on_a_real_pipeline_and_continues(
    world: dict[str, Path], tmp_path: Path, run: Callable[[list[str]], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    # One at a time: in another batch an image may differ by a grey level, and figures with it.
    small = {"images": 3, "each": 2, "sided": 1, "reconstructions": 4, "batch_size": 1, "suite": "quick"}
    assert run(flags(world, tmp_path, **small)) in (0, 2)
    first = read(tmp_path / "results")
    assert len(list((tmp_path / "results" / "reconstructed").iterdir())) == 4
    made = sorted((tmp_path / "results" / "images").iterdir())
    tables = [pd.read_csv(tmp_path / "results" / f"{name}.csv") for name in ("synthetic", "probes")]
    assert [len(table) for table in tables] == [6, 10]
    assert {path.name for path in made} == {Path(image).name for table in tables for image in table["image"]}
    made[0].unlink()
    requested: list[str] = []
    original = generation.generate

    def counted(model: Any, prompts: list[str], **options: Any) -> Any:
        requested.extend(prompts)
        return original(model, prompts, **options)

    monkeypatch.setattr(generation, "generate", counted)
    assert run(flags(world, tmp_path, **small)) in (0, 2)
    assert len(requested) == 1  # only the image that was lost
    again = read(tmp_path / "results")
    assert set(first) == set(again)
    for name, found in first.items():
        differing = {key for key in found if found[key] != again[name][key]}
        assert differing <= {"git_commit", "git_modified"}, name
    assert "auroc" not in first or first["auroc"]["value"] is None  # six images are too few for a macro


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
        ({"steps": 0}, "--steps 0"),
        ({"resamples": 0}, "--resamples"),
        ({"prompts": "none.csv"}, "none.csv"),
        ({"manifest": "none.csv"}, "none.csv"),
        ({"colour": 1}, "colour"),
        ({"sided": -1}, "--sided"),
    ],
)
def test_bad_settings_are_one_sentence(
    world: dict[str, Path],
    tmp_path: Path,
    run: Callable[[list[str]], int],
    capsys: pytest.CaptureFixture[str],
    changed: dict[str, Any],
    named: str,
) -> None:
    assert run(flags(world, tmp_path, **changed)) == 2
    error = capsys.readouterr().err
    assert named in error and len(error.strip().splitlines()) == 1


def test_a_manifest_without_a_split_is_named(
    world: dict[str, Path], tmp_path: Path, run: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    table = pd.read_csv(world["manifest"], keep_default_na=False)
    table["image"] = [str(world["manifest"].parent / image) for image in table["image"]]
    table[table["split"] != "val"].to_csv(tmp_path / "few.csv", index=False)
    assert run(flags(world, tmp_path, manifest=tmp_path / "few.csv")) == 2
    assert "has no image in split val" in capsys.readouterr().err
