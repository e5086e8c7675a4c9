"""eval/steps.py and eval/guidance.py: which setting becomes the default, and the scripts whole, on a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from recipe import ROOT, load_script

from roentgen import errors
from roentgen.experiments import sampling
from roentgen.metrics.result import KEYS
from roentgen.metrics.sharpness import sharpness_of

COMMITTED = ROOT / "eval" / "results" / "mini" / "steps.json"


@pytest.fixture(scope="module")
def script() -> Any:
    return load_script("eval/steps.py")


@pytest.fixture(scope="module")
def choice() -> Any:
    return load_script("eval/guidance.py")


def point(sampler: str, steps: int, **changes: Any) -> dict[str, Any]:
    """A setting that is as good as the reference and done."""
    same = {"value": 0.0, "ci": (-0.01, 0.01)}
    return {
        "sampler": sampler,
        "steps": steps,
        "evaluations": steps + (sampler == "pndm"),
        "fid": {"value": 50.0, "ci": (45.0, 55.0)},
        "auroc_less_reference": same,
        "fid_less_reference": same,
        "change": 1.0,
    } | changes


REFERENCE = point("pndm", 75, change=0.0)


def chosen(script: Any, *points: dict[str, Any]) -> tuple[str, int]:
    found = script.choose([*points, REFERENCE])
    return found["sampler"], found["steps"]


# ---------------------------------------------------------------------------------------------- the choice


def test_fewest_network_calls_win(script: Any) -> None:
    assert chosen(script, point("ddim", 20), point("unipc", 10)) == ("unipc", 10)
    # PNDM makes one call more than its steps.
    assert chosen(script, point("pndm", 10), point("ddim", 10)) == ("ddim", 10)


def test_of_equal_calls_the_nearer_to_real_images_wins(script: Any) -> None:
    nearer = point("unipc", 10, fid={"value": 49.0, "ci": (45.0, 55.0)})
    assert chosen(script, point("dpm++", 10), nearer) == ("unipc", 10)


def test_worse_auroc_beyond_chance_is_refused(script: Any) -> None:
    worse = point("unipc", 5, auroc_less_reference={"value": -0.02, "ci": (-0.03, -0.01)})
    unsure = point("dpm++", 10, auroc_less_reference={"value": -0.02, "ci": (-0.05, 0.01)})
    assert chosen(script, worse, unsure) == ("dpm++", 10)


def test_farther_from_real_images_beyond_chance_is_refused(script: Any) -> None:
    farther = point("unipc", 5, fid_less_reference={"value": 3.0, "ci": (1.0, 5.0)})
    nearer = point("dpm++", 10, fid_less_reference={"value": -3.0, "ci": (-5.0, -1.0)})
    assert chosen(script, farther, nearer) == ("dpm++", 10)


def test_hazy_images_are_refused_however_good_their_figures(script: Any) -> None:
    hazy = point("pndm", 5, change=11.9)
    assert chosen(script, hazy, point("dpm++", 20, change=script.DONE)) == ("dpm++", 20)


def test_the_reference_is_the_default_where_nothing_else_is_done(script: Any) -> None:
    assert chosen(script, point("unipc", 5, change=99.0)) == ("pndm", 75)
    late = {**REFERENCE, "change": 9.0}  # PNDM with more steps was measured too, and still changes
    assert script.choose([point("unipc", 5, change=99.0), late])["steps"] == 75


def test_the_shipped_default_is_what_the_committed_curve_gives(script: Any) -> None:
    details = json.loads(COMMITTED.read_text())["details"]
    found = script.choose(details["curve"])
    assert {"sampler": found["sampler"], "steps": found["steps"]} == details["chosen"]
    defaults = json.loads((ROOT / "roentgen" / "models" / "mini" / "roentgen.json").read_text())["defaults"]
    assert defaults["steps"] == details["chosen"]["steps"]


def test_the_shipped_sampler_and_guidance_are_what_the_committed_choice_gives(choice: Any) -> None:
    details = json.loads((COMMITTED.parent / "guidance.json").read_text())["details"]
    found = choice.choose([point for point in details["curve"] if point["set"] == "generated"])
    defaults = json.loads((ROOT / "roentgen" / "models" / "mini" / "roentgen.json").read_text())["defaults"]
    told = {"sampler": found["sampler"], "guidance": found["guidance"], "steps": details["steps"]}
    assert told == defaults == {"sampler": details["sampler"], "guidance": details["best"], "steps": details["steps"]}


def test_the_document_shows_the_committed_curve() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert (ROOT / "docs" / "steps.svg").is_file() and "steps.svg" in text


# ---------------------------------------------------------------------------------------------- the measurement


def test_difference_of_images_does_not_wrap(script: Any) -> None:
    a, b = np.zeros((2, 3, 3), np.uint8), np.full((2, 3, 3), 255, np.uint8)
    assert script.mean_difference(a, b) == script.mean_difference(b, a) == 255
    b[0] = 10
    assert script.mean_difference(a, b) == pytest.approx((10 + 255) / 2)


def test_the_reference_differs_in_nothing_from_itself_and_worse_images_are_seen(script: Any) -> None:
    rng = np.random.default_rng(0)
    labels = np.tile([[0.0], [1.0]], (60, 1))
    good, bad = labels * 0.5 + rng.random((120, 1)) * 0.5, rng.random((120, 1))
    real, near = rng.normal(size=(150, 4)), rng.normal(size=(120, 4))
    seen = {("unipc", 5): (bad, near + 3), ("pndm", 75): (good, near)}
    patients, real_patients = [str(i) for i in range(120)], [str(i) for i in range(150)]
    worse, same = script.measured(seen, labels, ["Effusion"], patients, real, real_patients, seed=0)
    assert same["auroc_less_reference"]["value"] == 0 and same["auroc_less_reference"]["ci"] == (0.0, 0.0)
    assert same["fid_less_reference"]["ci"] == (0.0, 0.0)
    assert worse["auroc_less_reference"]["ci"][1] < 0 and worse["fid_less_reference"]["ci"][0] > 0


class Judge:
    """Sees how bright an image is."""

    def __init__(self) -> None:
        self.findings = ["No Finding", "Effusion"]

    def predict(self, images: np.ndarray) -> np.ndarray:
        bright = np.asarray(images).mean((1, 2)) / 255
        return np.stack([1 - bright, bright], axis=1)

    def features(self, images: np.ndarray) -> np.ndarray:
        values = np.asarray(images, dtype=float)
        return np.stack([values.mean((1, 2)), values.std((1, 2)), values[:, :8].mean((1, 2))], axis=1)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("steps")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(40):
        fluid = number % 2
        image = rng.integers(60 + 60 * fluid, 120 + 60 * fluid, (64, 64), dtype=np.uint8)
        Image.fromarray(image).save(folder / f"{number}.png")
        rows.append({"image": f"{number}.png", "text": "x", "patient_id": f"p{number}", "split": "val", "view": "PA"})
        rows[-1] |= {"No Finding": 1 - fluid, "Effusion": fluid}
    pd.DataFrame(rows).to_csv(folder / "manifest.csv", index=False)
    return folder / "manifest.csv"


def flags(manifest: Path, folder: Path, **changes: object) -> list[str]:
    settings = {
        "manifest": manifest,
        "classifier": folder / "classifier",
        "out": folder / "out",
        "work": folder / "work",
        "samplers": "[unipc]",
        "steps": "[2]",
        "images": 12,
        "batch_size": 4,
    } | changes
    return [f"--{name}={value}" for name, value in settings.items()]


@pytest.mark.slow
def test_it_writes_the_curve_and_puts_table_and_plot_where_they_are_asked_for(
    script: Any, manifest: Path, tmp_path: Path, make_pipeline: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "load_classifier", lambda path: Judge())
    monkeypatch.setattr(script, "REFERENCE", ("pndm", 4))
    (tmp_path / "classifier").mkdir()
    (tmp_path / "classifier" / "model.safetensors").write_bytes(b"weights")
    model = make_pipeline(tmp_path / "tiny", window=64)
    page, plot = tmp_path / "metrics.md", tmp_path / "steps.svg"
    page.write_text("Before.\n<!-- results:steps -->\n<!-- /results:steps -->\nAfter.\n")
    assert script.main(flags(manifest, tmp_path, model=model, update=page, plot=plot)) == 0
    found = json.loads((tmp_path / "out" / "steps.json").read_text())
    assert set(KEYS) <= set(found) and found["n"] == 12 and found["details"]["real_n"] == 40
    assert str(tmp_path) not in json.dumps(found)
    settings = [(p["sampler"], p["steps"], p["evaluations"]) for p in found["details"]["curve"]]
    assert settings == [("unipc", 2, 2), ("pndm", 4, 5)]
    assert "| unipc | 2 | 2 |" in page.read_text() or "| **unipc** | 2 | 2 |" in page.read_text()
    ElementTree.parse(plot)

    # From the result alone, into another document, without manifest or classifier.
    before, other = page.read_text(), tmp_path / "other.md"
    other.write_text("Before.\n<!-- results:steps -->\n<!-- /results:steps -->\nAfter.\n")
    assert script.main([f"--out={tmp_path / 'out'}", "--measure=false", f"--update={other}"]) == 0
    assert other.read_text() == before


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"images": 9}, "--images 9: must be at least 10"),
        ({"samplers": "[]"}, "--samplers: must not be empty"),
        ({"samplers": "[euler-x]"}, "euler-x"),
        ({"steps": "[0]"}, "steps"),
        ({"update": "missing.md"}, r"missing\.md"),
    ],
)
def test_settings_that_make_no_sense_are_one_sentence_before_any_work(
    script: Any, manifest: Path, tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    with pytest.raises(errors.UserError, match=said):
        script.main(flags(manifest, tmp_path, **changes))
    assert not (tmp_path / "out").exists()


def test_what_measuring_needs_is_named(script: Any, tmp_path: Path) -> None:
    with pytest.raises(errors.UserError, match="--manifest is missing"):
        script.main([f"--out={tmp_path}"])
    with pytest.raises(errors.UserError, match=r"steps\.json: no such result"):
        script.main([f"--out={tmp_path}", "--measure=false"])


# ---------------------------------------------------------------------------------------------- sampler and guidance


def setting(sampler: str, auroc: float, distance: float) -> dict[str, Any]:
    return {"sampler": sampler, "auroc": {"value": auroc}, "frechet_to_val": distance}


def test_of_settings_that_adhere_alike_the_nearest_is_chosen(choice: Any) -> None:
    good, near, far = setting("a", 0.75, 40.0), setting("b", 0.735, 30.0), setting("c", 0.6, 10.0)
    assert choice.choose([good, near, far])["sampler"] == "b"
    assert choice.choose([good, setting("b", 0.72, 30.0)])["sampler"] == "a"
    assert choice.choose([setting("a", float("nan"), 2.0), setting("b", float("nan"), 1.0)])["sampler"] == "b"


def test_cells_of_sharpness_are_those_of_the_head(choice: Any) -> None:
    sharp = sharpness_of(np.random.default_rng(0).integers(0, 255, (1, 128, 128), dtype=np.uint8))
    assert len(choice.sharpness_cells(sharp)) == len(choice.BANDS) + 3


@pytest.mark.slow
def test_samplers_and_scales_are_compared_on_the_same_prompts(
    choice: Any, manifest: Path, tmp_path: Path, make_pipeline: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "load_classifier", lambda path: Judge())
    (tmp_path / "classifier").mkdir()
    (tmp_path / "classifier" / "model.safetensors").write_bytes(b"weights")
    page = tmp_path / "page.md"
    page.write_text("<!-- results:guidance -->\n<!-- /results:guidance -->\n")
    settings = {"model": make_pipeline(tmp_path / "tiny", window=64), "samplers": "[unipc, unipc-karras]"}
    settings |= {"guidance": "[1, 2]", "steps": 2, "update": page}
    assert choice.main(flags(manifest, tmp_path, **settings)) == 0
    found = json.loads((tmp_path / "out" / "guidance.json").read_text())
    assert set(KEYS) <= set(found) and found["n"] == 12 and str(tmp_path) not in json.dumps(found)
    curve = found["details"]["curve"]
    tried = [(p["sampler"], p["guidance"]) for p in curve]
    assert tried == [("", None), ("unipc", 1), ("unipc", 2), ("unipc-karras", 1), ("unipc-karras", 2)]
    assert curve[0]["frechet_to_val"] == pytest.approx(0, abs=1e-6) and curve[1]["frechet_to_val"] > 0
    assert curve[1]["frechet_to_val"] != curve[3]["frechet_to_val"]
    assert all(point["sharpness"] is None for point in curve[1:])  # too small for it
    assert "| unipc-karras" in page.read_text() or "| **unipc-karras**" in page.read_text()
