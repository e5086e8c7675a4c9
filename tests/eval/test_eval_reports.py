"""eval/reports.py, int8.py and report_ceiling.py run for real: a tiny random reporter, manifest, boxes, documents."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from recipe import load_script

from roentgen import errors
from roentgen.images import save_image
from roentgen.models.own import save_network
from roentgen.reports.finding_net import KIND, FindingNet

SIDE = 64
FINDINGS = ["Effusion", "Lung Opacity"]
INT8_DOCUMENT = "<!-- results:reports-int8 -->\n<!-- /results:reports-int8 -->\n"
TABLES = ("clinical", "findings", "places", "radfact", "text")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of train and test, of which each third has an effusion and a boxed opacity; and a random reporter."""
    pytest.importorskip("sacrebleu"), pytest.importorskip("rouge_score"), pytest.importorskip("nltk")
    folder = tmp_path_factory.mktemp("reports")
    rng = np.random.default_rng(0)
    rows, boxes = [], ["image,label,x,y,width,height"]
    for number in range(48):
        pixels = rng.integers(60, 120, (SIDE, SIDE)).astype(np.uint8)
        ill = number % 3 == 0
        if ill:
            pixels[20:44, 40:56] = 240
            boxes.append(f"{number}.png,Lung Opacity,{40 / SIDE},{20 / SIDE},{16 / SIDE},{24 / SIDE}")
        save_image(pixels, folder / f"{number}.png", format="png", provenance={})
        rows.append(
            {
                "image": f"{number}.png", "text": "Left effusion." if ill else "Clear lungs.", "patient_id": number,
                "split": "train" if number < 12 else "test", "view": "PA", "No Finding": int(not ill),
                "Effusion": int(ill), "Effusion_side": "left" if ill else "", "Lung Opacity": int(ill),
            }
        )  # fmt: skip
    pd.DataFrame(rows).to_csv(folder / "manifest.csv", index=False)
    (folder / "boxes.csv").write_text("\n".join(boxes) + "\n")
    torch.manual_seed(0)
    same = {name: 0.5 for name in FINDINGS}
    rules = {
        "calibration": {name: [1.0, 3.0] for name in FINDINGS}, "thresholds": same, "prevalence": same,
        "side_margins": {"": 0.0}, "places": {"Lung Opacity": {"how": "peak", "size": [0.3, 0.4]}},
    }  # fmt: skip
    save_network(folder / "reporter", FindingNet(2), {"kind": KIND, "findings": FINDINGS, "size": SIDE, **rules})
    return folder


def flags(world: Path, out: Path, **more: object) -> list[str]:
    given = {"manifest": world / "manifest.csv", "boxes": world / "boxes.csv", "model": world / "reporter", "out": out}
    return [str(word) for name, value in (given | more).items() for word in (f"--{name}", value)]


def run(name: str) -> Callable[[list[str]], int]:
    module = load_script(f"eval/{name}")
    return lambda argv: errors.run(lambda: module.main(argv), prog=f"eval/{name}")


def test_int8_is_measured_beside_float_in_one_run(world: Path, tmp_path: Path) -> None:
    document = tmp_path / "doc.md"
    document.write_text(INT8_DOCUMENT)
    assert run("int8.py")(flags(world, tmp_path / "out", documents=document)) == 0
    result = json.loads((tmp_path / "out" / "int8.json").read_text())
    kinds = result["details"]["kinds"]
    assert set(kinds) == {"float32", "int8"} and result["n"] == 36
    assert kinds["int8"]["weight_bytes"] < 0.5 * kinds["float32"]["weight_bytes"]
    assert all(row["seconds"] > 0 and 0 <= row["macro"]["value"] <= 1 for row in kinds.values())
    assert kinds["int8"]["pointing"]["n"] == 12  # boxes included: the boxed images of test
    assert 0 <= result["details"]["agreement"]["equal_texts"] <= 1
    assert "| int8 |" in document.read_text()
    assert str(world) not in (tmp_path / "out" / "int8.json").read_text()


def test_reports_are_measured_beside_those_that_do_not_look(world: Path, tmp_path: Path) -> None:
    document = tmp_path / "doc.md"
    document.write_text("".join(f"<!-- results:reports-{n} -->\n<!-- /results:reports-{n} -->\n" for n in TABLES))
    assert run("reports.py")(flags(world, tmp_path / "out", documents=document)) == 0
    clinic = json.loads((tmp_path / "out" / "clinical.json").read_text())["details"]["reporters"]
    assert clinic["always normal"]["macro"]["value"] == 0 and len(clinic) == 5
    assert clinic["every finding"]["normal"]["normal_called_normal"] == 0
    assert clinic["this reporter"]["nih_only"] is None  # the manifest names no sources
    places = json.loads((tmp_path / "out" / "grounding.json").read_text())["details"]["findings"]["Lung Opacity"]
    assert places["prior"]["pointing"]["value"] == 1  # all boxes of this manifest lie in one place
    assert {"asked", "reported"} < set(places)
    written = document.read_text()
    assert "| always normal |" in written and "| Lung Opacity, prior |" in written and "nan" not in written


def test_the_highest_f1_of_a_classifier() -> None:
    module = load_script("eval/report_ceiling.py")
    assert module.binormal_f1(0.5, 0.3) == pytest.approx(2 * 0.3 / 1.3, abs=1e-3)  # by chance: call everything
    assert module.binormal_f1(1.0, 0.01) == pytest.approx(1, abs=0.01)
    # Drawn from the model itself: no threshold of many images is better, and the best is as good.
    rng = np.random.default_rng(0)
    truth = (rng.random(200_000) < 0.05).astype(float)
    scores = rng.normal(size=len(truth)) + 1.5 * truth
    area = module.auroc(scores, truth)
    assert module.best_f1(scores, truth) == pytest.approx(module.binormal_f1(area, truth.mean()), abs=0.01)
    goal = module.auroc_for(0.5, 0.05)
    assert module.binormal_f1(goal, 0.05) >= 0.5 > module.binormal_f1(goal - 0.01, 0.05)
    assert module.best_f1(np.array([0.9, 0.5, 0.5, 0.1]), np.array([1.0, 1, 0, 0])) == pytest.approx(0.8)


def test_the_ceiling_is_measured_on_val(world: Path, tmp_path: Path) -> None:
    table = pd.read_csv(world / "manifest.csv").replace({"split": {"test": "val"}})
    table.to_csv(world / "val.csv", index=False)
    document = tmp_path / "doc.md"
    document.write_text("<!-- results:reports-ceiling -->\n<!-- /results:reports-ceiling -->\n")
    words = ["--manifest", world / "val.csv", "--model", world / "reporter", "--out", tmp_path, "--documents", document]
    assert run("report_ceiling.py")([str(word) for word in words]) == 0
    rows = json.loads((tmp_path / "ceiling.json").read_text())["details"]["findings"]
    assert [row["finding"] for row in rows] == FINDINGS
    assert all(row["f1"]["value"] <= row["best_threshold"] + 1e-9 for row in rows)
    assert "| Lung Opacity |" in document.read_text()


@pytest.mark.parametrize("name", ["reports.py", "int8.py"])
def test_what_cannot_be_measured_is_one_sentence(
    name: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = pd.read_csv(world / "manifest.csv").iloc[:20]
    few["image"] = [str(world / image) for image in few["image"]]
    few.to_csv(tmp_path / "few.csv", index=False)
    plain = pd.read_csv(world / "manifest.csv")[["image", "text", "patient_id", "split"]]
    plain.to_csv(world / "plain.csv", index=False)
    for manifest in (tmp_path / "few.csv", world / "plain.csv"):
        assert run(name)(flags(world, tmp_path / "out", manifest=manifest)) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if ": error: " in line]
        assert "--manifest" in line
