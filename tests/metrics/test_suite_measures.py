"""Measures of the suite that need more than two folders: calibration, planted copies, a siamese model, replicates."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from image_sets import sentence, write_generated, write_set
from PIL import Image

from roentgen.errors import UserError
from roentgen.metrics.adherence import calibration, round_trip
from roentgen.metrics.memorisation.reidentification import load_siamese
from roentgen.metrics.report.replicates import write_replicates
from roentgen.metrics.statistics import Bootstrap
from roentgen.prompts import statement
from roentgen.reports import Finding, Info, Report

Run = Callable[..., tuple[int, str, str]]
SIAMESE = '''
import numpy as np


def same_patient(first, second):
    """Alike in grey levels, pixel by pixel."""
    return [-float(np.abs(a.astype(float) - b).mean()) for a, b in zip(first, second)]


def blind(first, second):
    return np.random.default_rng(0).random(len(first))


def broken(first, second):
    raise RuntimeError("no weights")


def short(first, second):
    return [1.0]
'''


def result(folder: Path, name: str) -> dict[str, Any]:
    return dict(json.loads((folder / f"{name}.json").read_text()))


# ------------------------------------------------------------------------------------------------- calibration


def test_calibrated_scores_have_the_error_that_their_n_gives() -> None:
    rng = np.random.default_rng(0)
    scores = rng.random((400, 2))
    labels = (rng.random((400, 2)) < scores).astype(float)
    names = ["Effusion", "Mass"]
    found = calibration.calibration(scores, labels, names, range(400), bootstrap=Bootstrap(100))
    floor = calibration.calibrated_error(scores, labels, names, names)
    assert floor["ci"][0] < found.value < floor["ci"][1] and floor["value"] > 0.02
    # Ten times as many: the floor falls with 1 / sqrt(n).
    many = np.tile(scores, (10, 1))
    less = calibration.calibrated_error(many, np.zeros_like(many), names, names)
    assert less["value"] == pytest.approx(floor["value"] / np.sqrt(10), rel=0.15)


def test_overconfident_scores_lie_above_the_floor() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random((400, 1))
    labels = (rng.random((400, 1)) < truth).astype(float)
    sure = np.where(truth > 0.5, 0.95, 0.05)
    found = calibration.calibration(sure, labels, ["Effusion"], range(400), bootstrap=Bootstrap(100))
    floor = calibration.calibrated_error(sure, labels, ["Effusion"], ["Effusion"])
    assert found.ci[0] > floor["ci"][1]
    # By hand: in the upper bin a score of 0.95 meets 0.75 of positives, in the lower 0.05 meets 0.25.
    assert found.value == pytest.approx(0.2, abs=0.05)


# ------------------------------------------------------------------------------------------------- the suite


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A manifest in which each training patient has two images nearly alike, and generated images."""
    folder = tmp_path_factory.mktemp("measures")
    real = write_set(folder / "real", {"train": 24, "test": 24}, 0)
    table = pd.read_csv(real, keep_default_na=False)
    rng = np.random.default_rng(5)
    rows = []
    for row in table[table["split"] == "train"].to_dict("records"):
        image = np.array(Image.open(real.parent / row["image"])).astype(float)
        name = f"again_{row['image']}"
        noisy = np.clip(image + rng.normal(0, 3, image.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(real.parent / name)
        rows.append({**row, "image": name})
    pd.concat([table, pd.DataFrame(rows)]).to_csv(real, index=False)
    made = write_generated(folder / "made", real, 1)
    copied = folder / "copied"
    copied.mkdir()
    for number, path in enumerate(sorted(real.parent.glob("train_*.png"))):
        Image.open(path).save(copied / f"{number:03d}.png")
    siamese = folder / "pairs.py"
    siamese.write_text(SIAMESE)
    (folder / "features").mkdir()
    return {"real": real, "made": made, "copied": copied, "siamese": siamese, "features": folder / "features"}


def arguments(world: dict[str, Path], out: Path, *more: str, synthetic: str = "made") -> list[str]:
    """An evaluation into ``out``; the features of its images are computed once for all of these tests."""
    out.mkdir(exist_ok=True)
    (out / "cache").symlink_to(world["features"])
    sets = ["--real", str(world["real"]), "--train", str(world["real"]), "--synthetic", str(world[synthetic])]
    return ["eval", *sets, "--out", str(out), "--resamples", "50", *more]


@pytest.mark.slow
def test_a_siamese_model_is_measured_and_tells_copies_from_new_images(
    world: dict[str, Path], tmp_path: Path, run_cli: Run
) -> None:
    flags = ("--metrics", "reidentification", "--siamese", f"{world['siamese']}:same_patient")
    found = {}
    for name in ("made", "copied"):
        assert run_cli(*arguments(world, tmp_path / name, *flags, synthetic=name))[0] == 0
        found[name] = result(tmp_path / name, "reidentification")
    assert found["copied"]["value"] == 1 and found["copied"]["details"]["reidentified"]["value"] == 1
    assert 0.1 < found["made"]["value"] < 0.9
    details = found["made"]["details"]
    assert details["power"]["value"] == 1 and details["same_pairs"] == 24 and details["ceiling"]["value"] == 1
    assert found["made"]["extractor"].startswith("siamese pairs.py:same_patient, sha256 ")
    assert str(world["siamese"].parent) not in json.dumps(found)
    page = (tmp_path / "copied" / "report.html").read_text()
    assert "Re-identification, AUROC" in page and "real pairs of one patient" in page


@pytest.mark.slow
def test_a_siamese_model_that_knows_nothing_is_said_to(world: dict[str, Path], tmp_path: Path, run_cli: Run) -> None:
    flags = ("--metrics", "reidentification", "--siamese", f"{world['siamese']}:blind")
    assert run_cli(*arguments(world, tmp_path / "out", *flags))[0] == 0
    assert any("means nothing" in warning for warning in result(tmp_path / "out", "reidentification")["warnings"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "said"),
    [("broken", "no weights"), ("short", "one finite score a pair"), ("absent", "has no function absent")],
)
def test_a_siamese_model_that_fails_is_one_sentence(
    world: dict[str, Path], tmp_path: Path, run_cli: Run, function: str, said: str
) -> None:
    flags = ("--metrics", "kid,reidentification", "--siamese", f"{world['siamese']}:{function}")
    assert said in sentence(run_cli, *arguments(world, tmp_path / "out", *flags))
    assert (tmp_path / "out" / "kid.json").exists()  # what was finished is kept


@pytest.mark.parametrize("name", ["pairs.py", ":f", "pairs.py:", "missing.py:f", "no.such.module:f", "pairs.py:a b"])
def test_a_siamese_model_that_is_not_there_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--siamese"):
        load_siamese(name)


@pytest.mark.slow
def test_planted_copies_are_searched_in_features_and_in_pixels(
    world: dict[str, Path], tmp_path: Path, run_cli: Run
) -> None:
    assert run_cli(*arguments(world, tmp_path / "out", "--metrics", "planted_copies,calibration"))[0] == 0
    found = result(tmp_path / "out", "planted_copies")
    rows = {(row["name"], row["group"].partition(" ")[2] or row["group"]): row for row in found["details"]["rows"][1:]}
    whole = found["details"]["rows"][0]
    assert len(rows) == 2 * 4 and found["details"]["sources"] == 48 and found["n"] == 4 * 48
    for space in ("features", "pixels"):
        assert rows["exact", space]["value"] == 1
        assert rows["exact", space]["right_source"] > 0.9
    kinds = ("exact", "cropped", "blurred", "brighter")
    best = sum(max(rows[kind, space]["value"] for space in ("features", "pixels")) for kind in kinds) / 4
    assert whole["name"] == "any kind" and whole["value"] == found["value"]
    assert best - 1e-9 <= found["value"] <= 1
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Planted copies found, cropped" in page

    # Calibration stands beside real images and beside what n alone gives, with its curve.
    error = result(tmp_path / "out", "calibration")
    assert 0 <= error["ci"][0] <= error["value"] <= error["ci"][1] <= 1
    assert error["details"]["floor"]["value"] > 0 and error["details"]["ceiling"]["value"] > 0
    assert set(error["details"]["reliability"]) == {"generated", "real"}
    assert "Reliability of the classifier" in page and "Calibration error by finding" in page


@pytest.mark.slow
def test_replicates_draw_the_same_prompts_from_other_seeds(
    world: dict[str, Path], tmp_path: Path, make_pipeline: Callable[..., Path], run_cli: Run
) -> None:
    model = make_pipeline(tmp_path / "tiny", window=64)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("left pleural effusion\nno acute process\nright pleural effusion\n")
    out = tmp_path / "out"
    words = ["eval", "--real", world["real"], "--generate", model, "--prompts", prompts, "--num-images", "3"]
    words += ["--num-prompts", "2", "--metrics", "kid", "--resamples", "20", "--seed", "4", "--out", out]
    assert run_cli(*words)[0] == 0
    alone = result(out, "kid")
    assert run_cli(*words, "--replicates", "3")[0] == 0
    assert result(out, "kid") == alone  # the first draw is the one that was there
    folders = [out, out / "replicate-2", out / "replicate-3"]
    drawn = [pd.read_csv(folder / "synthetic.csv") for folder in folders]
    assert [table["seed"].tolist() for table in drawn] == [list(range(4 + 6 * r, 10 + 6 * r)) for r in range(3)]
    assert all(table["text"].tolist() == drawn[0]["text"].tolist() for table in drawn)
    spread = json.loads((out / "replicates.json").read_text())["measures"]["kid"]
    values = [result(folder, "kid")["value"] for folder in folders]
    assert spread["values"] == pytest.approx(values) and len(set(values)) == 3
    assert spread["value"] == pytest.approx(np.mean(values)) and spread["sd"] == pytest.approx(np.std(values, ddof=1))
    assert "Over generation seeds" in (out / "report.html").read_text()
    assert not list((out / "replicate-2").glob("cache"))  # real images are looked at once


def test_measures_that_a_replicate_lacks_have_no_spread(tmp_path: Path) -> None:
    for name, measures in (("a", {"kid": 1.0, "fid": 2.0}), ("b", {"kid": 3.0})):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "evaluation.json").write_text(json.dumps({"key": {}, "measures": list(measures)}))
        for measure, value in measures.items():
            write_plain(folder / f"{measure}.json", measure, value)
    found = write_replicates(tmp_path / "a", [tmp_path / "a", tmp_path / "b"])
    assert list(found) == ["kid"] and found["kid"]["value"] == 2 and found["kid"]["sd"] == pytest.approx(np.sqrt(2))
    assert any("at least 3" in warning for warning in found["kid"]["warnings"])


def write_plain(path: Path, metric: str, value: float) -> None:
    from roentgen.metrics.result import Context, write_result

    context = Context(extractor="x", resize="x", seed=0, settings={}, model={}, inputs={}, command="x")
    write_result(path, metric=metric, value=value, ci=(value, value), ci_method="x", n=1, context=context)


def test_replicates_are_for_generated_images(run_cli: Run, tmp_path: Path) -> None:
    words = ["eval", "--real", "r.csv", "--synthetic", "s", "--out", tmp_path / "out"]
    assert "--replicates is for --generate" in sentence(run_cli, *words, "--replicates", "2")
    assert "--replicates 0" in sentence(run_cli, *words, "--replicates", "0")


class Looker:
    """A reporter that sees a bright base of one lung."""

    info = Info("looker", "0", "test", findings=("Effusion",))

    def report_many(self, images: list[np.ndarray], contexts: object = ()) -> list[Report]:
        reports = []
        for image in images:
            half = image.shape[1] // 2
            bases = image[image.shape[0] // 2 :].astype(float)
            difference = bases[:, half:].mean() - bases[:, :half].mean()
            text, found = "The lungs are clear.", tuple[Finding, ...]()
            if abs(difference) > 5:  # the image's right half is the patient's left
                text = statement("Effusion", side="left" if difference > 0 else "right")
                box = (0.5, 0.5, 1.0, 1.0) if difference > 0 else (0.0, 0.5, 0.5, 1.0)
                found = (Finding(text, "Effusion", boxes=(box,)),)
            reports.append(Report(found, text))
        return reports


@pytest.mark.slow
def test_the_round_trip_reads_back_what_was_asked_for(
    world: dict[str, Path], tmp_path: Path, run_cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(round_trip, "load_reporter", lambda name, **_: Looker())
    code, _, err = run_cli(*arguments(world, tmp_path, "--metrics", "round_trip", "--image-to-text", "looker"))
    assert code == 0, err
    found = result(tmp_path, "round_trip")
    assert found["value"] == 1 and found["details"]["ceiling"]["value"] == 1
    assert found["details"]["floor"]["value"] < 0.9
    places = [found["details"][key] for key in ("places", "places_of_real_images", "places_of_shuffled_prompts")]
    assert [one["value"] for one in places[:2]] == [1, 1] and places[0]["n"] > 0 and places[2]["value"] < 0.9
    assert found["details"]["sides"]["value"] == 1 and found["details"]["findings"][0]["finding"] == "Effusion"
    assert found["extractor"] == "reporter looker"
