"""`roentgen eval` from end to end on made images: results, report, continuing, comparing, and bad input."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from image_sets import MARKS, chest, sentence, write_generated, write_set
from PIL import Image
from recipe import load_script

from roentgen.errors import UserError
from roentgen.images import marks_of, save_image
from roentgen.metrics.adherence.scored import shown
from roentgen.metrics.measures import MEASURES
from roentgen.metrics.reading import match_to_real
from roentgen.metrics.report import plots
from roentgen.metrics.report.compare import paired
from roentgen.metrics.report.html import Line, Panel, Picture, Plot, Report, interval, render
from roentgen.metrics.report.html import number as spelled_number

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., tuple[int, str, str]]
QUICK = [name for name, one in MEASURES.items() if one.suite == "quick" and "probes" not in one.reads]
slow = pytest.mark.slow  # what needs the evaluation of ``world``


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Real images with 24 test rows, images for their texts by two models, and one quick evaluation of the first."""
    from roentgen import cli

    folder = tmp_path_factory.mktemp("suite")
    real = write_set(folder / "real", {"train": 28, "test": 24}, 0)
    made = {"real": real, "first": write_generated(folder / "first", real, 1)}
    made["second"] = write_generated(folder / "second", real, 2)
    made["out"] = folder / "evaluation"
    assert cli.main(arguments(made, made["out"], "--train", str(real))) == 0
    return made


def arguments(world: dict[str, Path], out: Path, *more: str, synthetic: str = "first") -> list[str]:
    sets = ["--real", str(world["real"]), "--synthetic", str(world[synthetic])]
    return ["eval", *sets, "--out", str(out), "--resamples", "50", *more]


def result(folder: Path, name: str) -> dict[str, Any]:
    return dict(json.loads((folder / f"{name}.json").read_text()))


def computed(said: str) -> set[str]:
    """Measures that a run says it has just computed."""
    return set(re.findall(r"(\w+): [^|\r\n]*, n = ", said))


@slow
def test_quick_suite_writes_a_result_a_measure(world: dict[str, Path]) -> None:
    out = world["out"]
    index = json.loads((out / "evaluation.json").read_text())
    written = {name for name in QUICK if (out / f"{name}.json").exists()}
    missing = {entry["measure"] for entry in index["missing"]}
    assert written | missing == set(QUICK) and not written & missing
    assert missing == {"ms_ssim_within"}  # one image a prompt, and it says so
    for name in written:
        found = result(out, name)
        assert found["inputs"]["synthetic"]["n"] == 24 and found["inputs"]["real"]["hash"]
        assert found["resize"] and found["versions"]["numpy"] and found["ci_method"] and found["n"] > 0
        assert found["model"]["name"] == "made"
        bounds = found["details"]
        assert bounds.get("floor") or bounds.get("ceiling"), f"{name} has neither floor nor ceiling"
    assert "/" not in result(out, "fid")["inputs"]["real"]["source"]  # outside the checkout: the name alone


@slow
def test_labels_come_from_the_prompts_and_sides_are_kept(world: dict[str, Path]) -> None:
    table = pd.read_csv(world["out"] / "auroc.images.csv")
    assert table["label Effusion"].tolist() == [float(number % 2) for number in range(24)]
    sides = result(world["out"], "laterality")
    assert sides["n"] == 12 and [row["finding"] for row in sides["details"]["findings"]] == ["Effusion"]


@slow
def test_report_stands_alone(world: dict[str, Path]) -> None:
    page = (world["out"] / "report.html").read_text()
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page) and "<script" not in page and "url(" not in page
    for name in ("Summary", "Not computed", "Plots", "Images", "Conditions", "Nearest training neighbours"):
        assert name in page
    svgs = re.findall(r"data:image/svg\+xml;base64,([^\"]+)", page)
    assert len(svgs) >= 5
    for svg in svgs:
        ElementTree.fromstring(base64.b64decode(svg))
    assert page.count("data:image/png;base64,") >= 12 + 8 * 2
    assert str(world["real"].parent) not in page  # where somebody keeps data is nobody's business


@slow
def test_same_command_again_computes_nothing_and_a_lost_result_is_made_again(
    world: dict[str, Path], run_cli: Run
) -> None:
    out = world["out"]
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.json")}
    before_names = [name.removesuffix(".json") for name in before]
    kid = result(out, "kid")
    changed = result(out, "density")
    (out / "kid.json").unlink()
    (out / "density.json").write_text(json.dumps({**changed, "value": 0.123, "n": 7}))
    code, _, said = run_cli(*arguments(world, out, "--train", str(world["real"])))
    assert code == 0 and computed(said) == {"kid", "density"} and result(out, "density") == changed
    after = {path.name: path.stat().st_mtime_ns for path in out.glob("*.json")}
    assert {name for name in before if before[name] != after[name]} == {"kid.json", "density.json", "evaluation.json"}
    assert all(result(out, "kid")[key] == kid[key] for key in ("value", "ci", "n", "details", "inputs", "extractor"))
    measures = json.loads((out / "evaluation.json").read_text())["measures"]
    assert [name for name in measures if "-" not in name] == [name for name in QUICK if name in before_names]
    assert "auroc-classifier" in measures


@slow
def test_killed_run_keeps_what_is_finished(world: dict[str, Path], tmp_path: Path, run_cli: Run) -> None:
    import dataclasses

    out = tmp_path / "out"

    def killed(*_: object) -> dict[str, Any]:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MEASURES, "recall", dataclasses.replace(MEASURES["recall"], compute=killed))
        code, _, said = run_cli(*arguments(world, out, "--metrics", "precision,recall"))
        assert code == 130 and "Traceback" not in said
    assert result(out, "precision")["value"] == result(world["out"], "precision")["value"]
    code, _, said = run_cli(*arguments(world, out, "--metrics", "precision,recall"))
    assert code == 0 and computed(said) == {"recall"}
    # Another choice of measures adds to what is there.
    code, _, said = run_cli(*arguments(world, out, "--metrics", "kid"))
    assert code == 0 and computed(said) == {"kid"}
    assert json.loads((out / "evaluation.json").read_text())["measures"] == ["kid", "precision", "recall"]


@slow
def test_comparison_pairs_by_prompt(world: dict[str, Path], tmp_path: Path, run_cli: Run) -> None:
    second = tmp_path / "second"
    measures = ("--metrics", "kid,auroc,nearest", "--train", str(world["real"]))
    assert run_cli(*arguments(world, second, *measures, synthetic="second"))[0] == 0
    out = tmp_path / "both"
    code, printed, _ = run_cli("eval", "--compare", world["out"], second, "--out", out, "--resamples", "50")
    assert code == 0 and printed.strip() == str(out / "report.html")
    found = json.loads((out / "comparison.json").read_text())
    tests = found["tests"]["evaluation - second"]
    assert {"AUROC, macro", "How well the image shows what is asked"} <= set(tests)
    for test in tests.values():
        assert test["n"] > 0 and test["p"] <= test["p_holm"] <= 1 and test["p"] > 0
    assert found["measures"]["fid"]["second"] is None  # not measured there, and listed all the same
    # What the evaluations warn of stands in the comparison too: once where both say it, with a name where one does.
    warned = [warning for warning in found["warnings"] if warning.startswith("AUROC")]
    own = [result(folder, "auroc")["warnings"] for folder in (world["out"], second)]
    assert own[0] and {warning.partition(": ")[2] for warning in warned} == {*own[0], *own[1]}
    assert any("FID" in warning and " in evaluation: n = 24" in warning for warning in found["warnings"])
    assert "n = 24 is not above the feature dimension" in (out / "report.html").read_text()
    # A model against itself differs in nothing.
    code, _, _ = run_cli("eval", "--compare", world["out"], _copy(world["out"], tmp_path / "twin"), "--out", out)
    same = json.loads((out / "comparison.json").read_text())["tests"]["evaluation - twin"]
    assert code == 0 and all(test["value"] == 0 and test["p"] == 1 for test in same.values())


def _copy(folder: Path, target: Path) -> Path:
    target.mkdir()
    for path in folder.iterdir():
        if path.is_file() and not path.name.startswith("."):
            (target / path.name).write_bytes(path.read_bytes())
    return target


def test_pairs_need_the_same_prompt() -> None:
    a = pd.DataFrame({"prompt": ["x", "x", "y", ""], "value": [1, 2, 3, 4]})
    b = pd.DataFrame({"prompt": ["y", "x", "z", ""], "value": [30, 10, 50, 40]})
    x, y = paired(a, b)
    assert sorted(zip(x["value"], y["value"], strict=True)) == [(1, 10), (3, 30)]


@pytest.mark.slow
def test_generating_model_is_scored_and_continued(
    world: dict[str, Path], tmp_path: Path, make_pipeline: Callable[..., Path], run_cli: Run
) -> None:
    model = make_pipeline(tmp_path / "tiny", window=64)
    prompts = tmp_path / "prompts.csv"
    prompts.write_text("id,prompt,labels\na,left pleural effusion,Effusion:left\nb,no acute process,No Finding\n")
    out = tmp_path / "out"
    flags = [
        "--generate",
        model,
        "--prompts",
        prompts,
        "--num-images",
        "4",
        "--metrics",
        "precision,kid",
        "--seed",
        "5",
    ]
    words = ["eval", "--real", world["real"], "--out", out, "--resamples", "20", *flags]
    code, _, said = run_cli(*words)
    assert code == 0, said
    table = pd.read_csv(out / "synthetic.csv")
    assert len(table) == 8 and table["seed"].is_unique and table["seed"].min() == 5
    assert table["Effusion"].tolist() == [1.0] * 4 + [0.0] * 4 and set(table["Effusion_side"][:4]) == {"left"}
    assert result(out, "kid")["model"]["hash"] and result(out, "kid")["n"] == 8
    made = sorted((out / "images").glob("*.png"))
    kept = {path: path.stat().st_mtime_ns for path in made[1:]}
    made[0].unlink()
    assert run_cli(*words)[0] == 0
    assert made[0].exists() and all(path.stat().st_mtime_ns == time for path, time in kept.items())
    assert "another number of steps" in sentence(run_cli, *words, "--steps", "2")
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())


def test_real_images_of_which_nothing_is_known_leave_out_what_they_cannot_say(tmp_path: Path, run_cli: Run) -> None:
    rng = np.random.default_rng(0)
    for number in range(8):
        Image.fromarray(chest(rng, None)).save(tmp_path / f"real_{number}.png")
        marks = {**MARKS, "prompt": f"prompt {number // 4}", "seed": str(number)}
        save_image(chest(rng, None), tmp_path / "made" / f"{number}.png", format="png", provenance=marks)
    (tmp_path / "real").mkdir()
    for path in tmp_path.glob("real_*.png"):
        path.rename(tmp_path / "real" / path.name)
    out = tmp_path / "out"
    sets = ["--real", str(tmp_path / "real"), "--synthetic", str(tmp_path / "made"), "--out", str(out)]
    names = "ms_ssim_within,ms_ssim_across,auroc,kid"
    code, _, said = run_cli("eval", *sets, "--metrics", names, "--resamples", "20")
    assert code == 2 and "Traceback" not in said and "--real has no labels" in said  # auroc was asked for
    assert result(out, "ms_ssim_within")["n"] == 2 and "ceiling" not in result(out, "ms_ssim_within")["details"]
    assert result(out, "kid")["value"] is not None and result(out, "ms_ssim_across")["details"]["ceiling"]["n"]


def test_texts_of_a_manifest_are_prompts(world_prompts: Path) -> None:
    from roentgen.data.prompt_table import is_manifest_file, manifest_rows

    assert is_manifest_file(world_prompts)
    rows = manifest_rows(world_prompts, "test")
    assert [row["prompt_id"] for row in rows] == ["test_0", "test_1"]
    assert rows[1]["text"].endswith("left pleural effusion") and rows[1]["Effusion_side"] == "left"
    assert rows[1]["Effusion"] == 1 and rows[0]["Effusion"] == 0 and rows[0]["own_seed"] is None


@pytest.fixture
def world_prompts(tmp_path: Path) -> Path:
    return write_set(tmp_path / "prompts", {"train": 1, "test": 2}, 0)


# --------------------------------------------------------------------------------------------- bad input


@slow
def test_missing_and_contradicting_flags(world: dict[str, Path], tmp_path: Path, run_cli: Run) -> None:
    real, made = str(world["real"]), str(world["first"])
    out = ("--out", str(tmp_path / "o"))
    assert "--real" in sentence(run_cli, "eval", "--synthetic", made, *out)
    assert "--out" in sentence(run_cli, "eval", "--real", real, "--synthetic", made)
    assert "--generate" in sentence(run_cli, "eval", "--real", real, *out)
    assert "--prompts" in sentence(run_cli, "eval", "--real", real, "--generate", "mini", *out)
    both = sentence(run_cli, *arguments(world, tmp_path / "o", "--metrics", "fid,fidd"))
    assert "fidd" in both and "auroc" in both
    assert "--suite tiny" in sentence(run_cli, *arguments(world, tmp_path / "o", "--suite", "tiny"))
    assert "--resamples 0" in sentence(run_cli, *arguments(world, tmp_path / "o", "--resamples", "0"))
    assert "at least two" in sentence(run_cli, "eval", "--compare", world["out"], *out)
    assert "evaluation.json" in sentence(run_cli, "eval", "--compare", world["out"], tmp_path, *out)
    assert not (tmp_path / "o").exists()


@slow
def test_extractor_without_weights_is_named(
    world: dict[str, Path], tmp_path: Path, run_cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    said = sentence(run_cli, *arguments(world, tmp_path / "o", "--extractors", "classifier,inception"))
    assert "https://" in said and "put" in said


def test_full_suite_lists_what_is_not_on_this_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    from roentgen.errors import UserError
    from roentgen.metrics import suite

    def load(name: str, *, device: str) -> str:
        if name not in ("judge", "classifier"):
            raise UserError(f"extractor {name}: its weights are not on this disk")
        return name

    monkeypatch.setattr(suite, "load_extractor", load)
    found, missing = suite.choose_extractors("full", None, "cpu")
    assert found == ("judge", "classifier")
    assert set(missing) == set(suite.FULL_EXTRACTORS) - {"judge", "classifier"}
    assert suite.choose_extractors("quick", None, "cpu") == (("judge", "classifier"), {})


@slow
def test_folder_of_another_evaluation_is_refused(world: dict[str, Path], tmp_path: Path, run_cli: Run) -> None:
    other = sentence(run_cli, *arguments(world, world["out"], synthetic="second"))
    assert "other synthetic images" in other
    assert "--seed" in sentence(run_cli, *arguments(world, world["out"], "--seed", "1"))
    (tmp_path / "fid.json").write_text("{}")
    assert "something else" in sentence(run_cli, *arguments(world, tmp_path))


@slow
def test_two_runs_into_one_folder(world: dict[str, Path], run_cli: Run) -> None:
    from roentgen.folders import hold_folder

    with hold_folder(world["out"], "--out"):
        assert "another run" in sentence(run_cli, *arguments(world, world["out"]))


@slow
def test_bad_images_are_listed_and_left_out_only_when_asked(
    world: dict[str, Path], tmp_path: Path, run_cli: Run
) -> None:
    folder = tmp_path / "made"
    write_generated(folder, world["real"], 3, count=8)
    (folder / "zz_broken.png").write_bytes((folder / "000.png").read_bytes()[:-400])
    (folder / "zz_empty.png").write_bytes(b"")
    words = ["eval", "--real", world["real"], "--synthetic", folder, "--metrics", "kid", "--resamples", "20"]
    assert "zz_empty.png" in sentence(run_cli, *words, "--out", tmp_path / "a")
    code, _, _ = run_cli(*words, "--out", tmp_path / "b", "--skip-bad")
    found = result(tmp_path / "b", "kid")
    assert code == 0 and found["n"] == 8 and found["inputs"]["synthetic"]["n"] == 8
    assert len(found["inputs"]["synthetic"]["left_out"]) == 2
    assert any("2 bad image" in warning for warning in found["warnings"])


@slow
def test_images_without_labels(world: dict[str, Path], tmp_path: Path, run_cli: Run) -> None:
    folder = tmp_path / "plain"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(8):
        Image.fromarray(chest(rng, None)).save(folder / f"{number}.png")
    words = ["eval", "--real", world["real"], "--synthetic", folder, "--out", tmp_path / "o", "--resamples", "20"]
    said = sentence(run_cli, *words, "--metrics", "kid,auroc")
    assert "auroc" in said and "no labels" in said
    assert result(tmp_path / "o", "kid")["n"] == 8 and (tmp_path / "o" / "report.html").exists()


# ------------------------------------------------------------------------------------------- small parts


def test_partners_give_what_a_prompt_leaves_open() -> None:
    real = pd.DataFrame(
        {
            "image": ["/r/a.png", "/r/b.png", "/r/c.png"],
            "text": ["left effusion", "clear", "left effusion"],
            "Effusion": [1.0, 0.0, 1.0],
            "Edema": [0.0, np.nan, 1.0],
        }
    )
    nothing = [np.nan] * 3
    made = pd.DataFrame(
        {
            "image": ["/s/1.png", "/s/2.png", "/s/3.png"],
            "text": ["left effusion", "left effusion", "mass"],
            "prompt_id": ["", "", "evaluation-b"],
            "Effusion": [1.0, 1.0, np.nan],
            "Edema": nothing,
        }
    )
    table, partner, notes = match_to_real(made, real)
    assert partner.tolist() == [0, 2, 1] and notes == ()
    assert table["Edema"].fillna(-1).tolist() == [0, -1, -1]  # present or unknown in the real image: left open
    assert table["Effusion"].tolist() == [1, 1, 0]
    _, alone, notes = match_to_real(made.assign(text="other", prompt_id=""), real)
    assert alone.tolist() == [-1, -1, -1] and "count as absent" in notes[0]


def test_shown_is_the_share_of_controls_below() -> None:
    from roentgen.metrics.adherence.scored import ScoredImages

    mine = ScoredImages(np.array([[0.5, 0.0], [0.95, 0.0]]), np.array([[1, np.nan], [0, 0]]), ["a", "b"])
    real = ScoredImages(
        np.array([[0.1, 0], [0.4, 0], [0.6, 0], [0.9, 0]]), np.array([[0, 0], [0, 0], [0, 0], [1, 0]]), "abcd"
    )
    assert shown(mine, real).tolist()[0] == pytest.approx(2 / 3)
    assert np.isnan(shown(mine, real)[1])


def test_pictures_in_pages_keep_their_marks(run_cli: Run, tmp_path: Path) -> None:
    image = np.arange(96 * 96, dtype=np.uint16).reshape(96, 96).astype(np.uint8)
    made, real = tmp_path / "made.png", tmp_path / "real.png"
    save_image(image, made, format="png", provenance={**MARKS, "prompt": "left", "seed": "1"})
    Image.fromarray(image).save(real)
    pair = Picture([image, image], ["generated", "nearest"], "note", [made, real])
    page = render(Report("t", "", [], [], [], [], [Panel("panel", "", [pair])], [], {}, ""))
    (tmp_path / "m.csv").write_text(f"image,patient_id,split,text\n{made},1,train,a\n{made},2,test,b\n")
    checked = tmp_path / "check.html"
    run_cli("data", "check", tmp_path / "m.csv", "--out", checked)
    found = []
    for text in (page, checked.read_text()):
        for kind, data in re.findall(r"data:image/(png|jpeg);base64,([\w+/=]+)", text):
            file = tmp_path / f"{len(found)}.{kind}"
            file.write_bytes(base64.b64decode(data))
            found.append(marks_of(file).get("synthetic"))
    assert found[:2] == ["true", None] and len(found) > 2 and set(found[2:]) == {"true"}


def test_page_escapes_and_gives_no_verdict() -> None:
    bad = "<img src=x onerror=alert(1)>"
    entry = {"value": 0.1234, "ci": (0.1, 0.2), "n": 5}
    line = Line("measure", bad, entry | {"ceiling": {"value": 1.0, "what": bad}}, "lower", [bad])
    plot = Plot("title", plots.histograms([0, 1, 2], {"a": [40, 60]}, axis="distance"), bad, bad)
    panel = Panel("panel", bad, [Picture([np.zeros((4, 4), np.uint8)], [""], bad)])
    report = Report(
        "t", bad, [line], [bad], [(bad, bad)], [plot], [panel], [("t", bad, ["a"], [[bad]])], {bad: bad}, bad
    )
    page = render(report)
    assert "prefers-color-scheme: dark" in page and "color: #" not in page.partition("</style>")[0].partition("* {")[2]
    assert "<img src=x" not in page and "&lt;img src=x" in page
    assert "0.123" in page and "0.100 to 0.200" in page


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.12345, "0.123"), (145.14, "145"), (12345.6, "12,346"), (0, "0"), (None, "–"), (2e-6, "2.00e-06")],
)
def test_numbers(value: float | None, said: str) -> None:
    assert spelled_number(value) == said


def test_intervals_of_nothing() -> None:
    assert interval({"ci": (None, None)}) == "" and interval(None) == ""


def test_plots_are_the_same_twice_and_survive_missing_values() -> None:
    rows = [
        {"finding": "Effusion", "value": 0.8, "ci": (0.7, 0.9), "positives": 4, "ceiling": {"value": 0.9}},
        {"finding": "Mass", "value": None, "ci": (None, None), "positives": 0},
        {"finding": "Pleural_Thickening", "value": 0.6, "ci": (None, None), "floor": {"value": 0.5}},
    ]
    assert plots.finding_bars(rows, axis="AUROC") == plots.finding_bars(rows, axis="AUROC")
    for svg in (
        plots.finding_bars([], axis="AUROC", chance=0.5),
        plots.against_n({"a": [{"n": 5, "value": 2.0}, {"n": 900, "value": None}], "b": []}, axis="d"),
        plots.reliability({"a": [{"score": 0.5, "frequency": 0.4, "n": 3, "ci": (0.1, 0.8)}], "b": []}),
        plots.side_by_side([("a", {"value": 1.0, "ci": (0, 2)}), ("b", {})], axis="x", lines={"floor": 0.1}),
    ):
        ElementTree.fromstring(svg)


@slow
def test_script_is_the_same_command(world: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    script = load_script("eval/suite.py")
    capsys.readouterr()
    assert script.main(arguments(world, world["out"], "--train", str(world["real"]))[1:]) == 0
    assert capsys.readouterr().out.strip() == str(world["out"] / "report.html")


def test_command_imports_nothing_heavy() -> None:
    code = (
        "import sys; import roentgen.commands.evaluate; "
        "print(sorted({'torch', 'pandas', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_documents_hold_the_committed_figures() -> None:
    from roentgen.metrics.report.page import QUALITY, markdown, quality

    six = quality(ROOT / "eval/results/mini-suite")
    assert six in (ROOT / "README.md").read_text(encoding="utf-8") and len(QUALITY) == 6

    text = markdown(ROOT / "eval/results/mini-suite")
    assert text in (ROOT / "docs/evaluate.md").read_text(encoding="utf-8")
    assert "| Planted copies found, exact (pixels) |" in text and "generated at that n" in text
    assert text.count("is not above the feature dimension") == 2  # one note of many that differ in n alone


def test_a_folder_without_results_has_no_table(tmp_path: Path) -> None:
    from roentgen.metrics.report.page import markdown

    (tmp_path / "evaluation.json").write_text('{"key": {}, "measures": []}')
    with pytest.raises(UserError, match="holds no results"):
        markdown(tmp_path)
