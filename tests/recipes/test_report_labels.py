"""The labels reporter: its network's halves and maps, calibration, training in small, and `roentgen report`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import reporters
import torch

from roentgen.data.boxes import read_boxes
from roentgen.errors import UserError
from roentgen.images import read_image, read_provenance, save_image
from roentgen.models.efficientnet_lite import EfficientNetLite0
from roentgen.recipes.report_calibration import any_finding, best_threshold, platt
from roentgen.recipes.report_features import Jitter, folded, jitter_of, see
from roentgen.recipes.report_targets import box_loss, read_targets
from roentgen.reports import load_reporter
from roentgen.reports.finding_net import FindingNet, Outputs, Predictions, load_net, sides_of
from roentgen.reports.grounding import on_side, peak_box, regressed_boxes
from roentgen.reports.labels import LabelsReporter, Rules, found_in

SIDE = 64


# --------------------------------------------------------------------------------------------- the network


def test_halves_of_a_map_are_the_patients_sides() -> None:
    maps = torch.full((1, 1, 4, 6), -5.0)
    maps[0, 0, 1, 1] = 5  # in the image's left half: the patient's right
    right, left = sides_of(maps)[0, 0]
    assert right > 0 > left
    assert torch.allclose(sides_of(maps.flip(-1))[0, 0], torch.stack([left, right]))


def test_folded_norms_change_nothing() -> None:
    torch.manual_seed(0)
    features = EfficientNetLite0()
    for module in features.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    features.eval()
    x = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        assert torch.allclose(folded(features)(x), features.trunk(x), atol=1e-4)
        assert features.tail(features.trunk(x)).shape == (2, 320, 2, 2)


def test_a_view_moves_image_and_box_alike() -> None:
    image = np.zeros((1, 64, 64), np.uint8)
    image[0, 16:32, 32:48] = 255  # x from .5 to .75, y from .25 to .5
    view = Jitter(left=0.1, top=0.05, width=0.9, height=0.85)
    x1, y1, x2, y2 = (round(value * 64) for value in view.box((0.5, 0.25, 0.75, 0.5)))
    seen = see(image, [view])[0, 0]
    inside, outside = seen[y1 + 1 : y2 - 1, x1 + 1 : x2 - 1], seen.clone()
    outside[y1 - 1 : y2 + 1, x1 - 1 : x2 + 1] = -1
    assert inside.min() > 0.9 and outside.max() < -0.9
    assert jitter_of("ab", 1) == jitter_of("ab", 1) != jitter_of("ab", 2)
    assert jitter_of("ab", 0) == Jitter()


# ------------------------------------------------------------------------------------------------- places


def test_boxes_from_maps() -> None:
    places, edges = np.full((8, 8), 0.01, np.float32), np.full((4, 8, 8), 0.2, np.float32)
    places[2:4, 5:7] = 0.9
    (box,) = regressed_boxes(places, edges, threshold=0.5)
    assert box[2] - box[0] == pytest.approx(0.4, abs=0.01) and 0.6 < (box[0] + box[2]) / 2 < 0.9
    places[6, 1] = 0.8
    assert len(regressed_boxes(places, edges, threshold=0.5)) == 2
    assert len(regressed_boxes(places, edges, threshold=0.99)) == 1  # the highest cell in any case
    ((x1, y1, x2, y2),) = peak_box(places, (0.3, 0.2))
    assert x2 - x1 == pytest.approx(0.3) and y2 - y1 == pytest.approx(0.2) and x1 >= 0 and x2 <= 1
    both = ((0.6, 0.1, 0.9, 0.4), (0.1, 0.1, 0.3, 0.4))
    assert on_side(both, "left") == both[:1] and on_side(both, "right") == both[1:] and on_side(both, None) == both


def test_box_loss_falls_to_nothing_for_the_right_boxes() -> None:
    table = pd.DataFrame({"image": ["a.png"], "Lung Opacity": [1.0], "Pneumonia": [1.0]})
    targets = read_targets(table, ["Lung Opacity", "Pneumonia"], {"a.png": [("Lung Opacity", (0.5, 0.25, 0.25, 0.5))]})
    assert set(targets.boxes[0]) == {0, 1}  # readers boxed the opacity of what the label calls pneumonia
    cells = (torch.arange(16) + 0.5) / 16
    inside = ((cells > 0.25) & (cells < 0.75))[:, None] & ((cells > 0.5) & (cells < 0.75))[None]
    maps = torch.where(inside, 12.0, -12.0).expand(1, 2, 16, 16)
    x, y = cells[None].expand(16, 16), cells[:, None].expand(16, 16)
    edges = torch.stack([x - 0.5, y - 0.25, 0.75 - x, 0.75 - y])[None].clamp(min=0)
    nothing = torch.zeros(1)
    right = Outputs(nothing, nothing, maps, edges, nothing, nothing, nothing)
    wrong = Outputs(nothing, nothing, -maps, edges + 0.2, nothing, nothing, nothing)
    views = [Jitter()]
    assert box_loss(right, targets, [0], views, [0, 1]) < 0.01
    assert box_loss(wrong, targets, [0], views, [0, 1]) > 5


def test_normal_images_have_no_finding() -> None:
    table = pd.DataFrame({"image": ["a", "b"], "No Finding": [1.0, 0.0], "Lung Opacity": [np.nan, np.nan]})
    labels = read_targets(table, ["Lung Opacity"], {}).labels[:, 0]
    assert labels[0] == 0 and labels[1].isnan()


# -------------------------------------------------------------------------------------------- calibration


def test_platt_finds_the_curve() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(0, 2, 4000)
    labels = (rng.random(4000) < 1 / (1 + np.exp(-(1.5 * scores - 1)))).astype(float)
    slope, offset = platt(scores, labels)
    assert slope == pytest.approx(1.5, abs=0.2) and offset == pytest.approx(-1, abs=0.2)
    few = platt(np.array([-1.0, 0.0, 3.0]), np.array([0.0, 0.0, 1.0]))
    assert 0.3 < few[0] < 1.7  # three images do not make a step


def test_threshold_of_the_best_expected_f1() -> None:
    assert best_threshold(np.array([0.9, 0.8, 0.1, 0.05])) == 0.8
    flat = np.full(100, 0.1)
    assert best_threshold(flat) == pytest.approx(0.1)


# ------------------------------------------------------------------------------------------------- boxes


@pytest.mark.parametrize(
    ("row", "names"),
    [
        ("a.png,Effusion,0.5,0.5,0.6,0.1", "line 2"),
        ("a.png,Effusion,0.5,0.5,0,0.1", "line 2"),
        ("a.png,Effuson,0.5,0.5,0.1,0.1", "Effuson"),
        ("a.png,Effusion,x,0.5,0.1,0.1", "line 2"),
        ("a.png,Effusion,nan,0.5,0.1,0.1", "line 2"),
        ("a.png,Effusion,0.5,0.5,inf,0.1", "line 2"),
    ],
)
def test_bad_boxes_are_named(row: str, names: str, tmp_path: Path) -> None:
    path = tmp_path / "boxes.csv"
    path.write_text(f"image,label,x,y,width,height\n{row}\n")
    with pytest.raises(UserError, match=names):
        read_boxes([path])


def test_boxes_in_both_forms(tmp_path: Path) -> None:
    (tmp_path / "boxes.csv").write_text("image,label,x,y,width,height\na.png,lung_opacity,0.1,0.2,0.3,0.4\n")
    entries = json.dumps([["Lung Opacity", 0.1, 0.2, 0.3, 0.4]]).replace('"', '""')
    (tmp_path / "metadata.csv").write_text(f'file,boxes\na.png,"{entries}"\nb.png,\n')
    one, other = read_boxes([tmp_path / "boxes.csv"]), read_boxes([tmp_path / "metadata.csv"])
    assert one == other == {str(tmp_path / "a.png"): [("Lung Opacity", (0.1, 0.2, 0.3, 0.4))]}


# ------------------------------------------------------------------------------------ training in small


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and a reporter that was trained for a few steps from a random trunk."""
    folder = tmp_path_factory.mktemp("labels")
    rng = np.random.default_rng(0)
    rows, boxes = [], ["image,label,x,y,width,height"]
    for number in range(48):
        pixels = rng.integers(60, 120, (SIDE, SIDE)).astype(np.uint8)
        side = ("", "left", "right")[number % 3]
        if side:
            x = 40 if side == "left" else 8
            pixels[20:44, x : x + 16] = 240
            boxes.append(f"{number}.png,Lung Opacity,{x / SIDE},{20 / SIDE},{16 / SIDE},{24 / SIDE}")
        save_image(pixels, folder / f"{number}.png", format="png", provenance={})
        rows.append(
            {
                "image": f"{number}.png", "text": "x", "patient_id": number, "split": "train" if number < 36 else "val",
                "view": "PA", "No Finding": int(not side), "Lung Opacity": int(bool(side)), "Lung Opacity_side": side,
            }
        )  # fmt: skip
    pd.DataFrame(rows).to_csv(folder / "manifest.csv", index=False)
    (folder / "boxes.csv").write_text("\n".join(boxes) + "\n")
    reporters.good(*flags(folder), "--out", folder / "whole")
    return folder


def flags(folder: Path) -> list[object]:
    return [
        *("--arch", "labels", "--manifest", folder / "manifest.csv", "--boxes", folder / "boxes.csv", "--images", 96),
        *("--batch-size", 8, "--eval-every", 32, "--warmup", 8, "--cache", folder / "cache", "--no-labels.imagenet"),
        *("--labels.size", 64, "--labels.views", 2, "--labels.min-positive", 5, "--labels.halflife", 16),
    ]


def test_a_stopped_run_goes_on_as_if_it_had_not(trained: Path) -> None:
    reporters.good(*flags(trained), "--out", trained / "parts")
    sorted((trained / "parts" / "checkpoints").glob("state-*.pt"))[-1].unlink()
    for name in ("model.safetensors", "config.json"):
        (trained / "parts" / name).unlink()
    said = reporters.good(*flags(trained), "--out", trained / "parts")
    assert "continuing at 64 images" in said
    states = [torch.load(trained / name / "checkpoints/state-0000000096.pt") for name in ("whole", "parts")]
    assert all(torch.equal(states[0]["model"][name], states[1]["model"][name]) for name in states[0]["model"])
    assert all(torch.equal(a, b) for a, b in zip(*(s["ema"]["shadow"] for s in states), strict=True))


def test_the_folder_is_a_reporter(trained: Path) -> None:
    reporter = load_reporter(str(trained / "whole"))
    assert isinstance(reporter, LabelsReporter)
    assert reporter.info.findings == ("Lung Opacity",) == reporter.info.placed
    images = [read_image(trained / f"{n}.png") for n in range(36, 48)]  # those of validation
    # Whether one is refused is not asked: a random trunk sees hardly a difference between these images.
    assert all(one.refused or one.text for one in reporter.report_many(images))
    for name in ("image", "sides", "maps", "deep"):  # each image is read as if it were alone
        many, one = (getattr(reporter.predict(part), name) for part in (images, images[3:4]))
        assert np.allclose(many[3], one[0], atol=1e-3), name
    black = reporter.report(np.zeros((64, 64), np.uint8))
    assert black.refused and black.text == "" and black.warnings


def test_weights_of_another_shape_are_refused(trained: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((trained / "whole" / name).read_bytes())
    about = json.loads((tmp_path / "config.json").read_text())
    about["findings"] = ["Lung Opacity", "Effusion"]
    (tmp_path / "config.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match=r"model\.safetensors"):
        load_reporter(str(tmp_path))


def test_boxes_of_other_images_are_refused(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "boxes.csv").write_text("image,label,x,y,width,height\nz.png,Mass,0.1,0.1,0.1,0.1\n")
    words = [*flags(trained), "--boxes", tmp_path / "boxes.csv", "--out", tmp_path / "out"]
    words.remove(trained / "boxes.csv")
    words.remove("--boxes")
    assert "--boxes" in reporters.refused(*words)


# ---------------------------------------------------------------------------------------- the command


def test_report_writes_what_is_asked_for(
    trained: Path, tmp_path: Path, run_cli: Callable[..., tuple[int, str, str]]
) -> None:
    import pydicom

    rng = np.random.default_rng(0)
    pixels = read_image(trained / "1.png")
    save_image(pixels, tmp_path / "in" / "study.dcm", format="dicom", provenance={"prompt": "x", "model": "m"})
    save_image(np.zeros((64, 64), np.uint8), tmp_path / "in" / "black.dcm", format="dicom", provenance={})
    out = tmp_path / "out"
    code, said, err = run_cli(
        "report", tmp_path / "in", "--model", trained / "whole", "-o", out,
        "--format", "json", "text", "picture", "cxrreportgen", "dicom", "--indication", "cough",
    )  # fmt: skip
    assert code == 0, err
    assert "study.dcm" in said and "indication" in said
    lines = [json.loads(line) for line in (out / "reports.jsonl").read_text().splitlines()]
    assert [Path(line["path"]).name for line in lines] == ["black.dcm", "study.dcm"]
    assert lines[0]["refused"] and lines[0]["warnings"] and lines[1]["synthetic"]
    assert (
        json.loads(json.loads((out / "study.cxrreportgen.json").read_text())[0]["output"]) == lines[1]["cxrreportgen"]
    )
    picture = out / "study.png"
    from PIL import Image

    with Image.open(picture) as shown:
        assert shown.mode == "RGB" and shown.width >= 640 and "research" in shown.text["note"]  # type: ignore[attr-defined]
    with pytest.raises(UserError):
        read_provenance(picture)  # it is no generated image
    written, source = (pydicom.dcmread(path) for path in (out / "study.report.dcm", tmp_path / "in" / "study.dcm"))
    assert written.StudyInstanceUID == source.StudyInstanceUID and written.VerificationFlag == "UNVERIFIED"
    assert written.SOPClassUID == pydicom.uid.ComprehensiveSRStorage
    reference = written.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
    assert reference.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
    regions = [item for item in walk(written) if item.get("ValueType") == "SCOORD"]
    boxes = [box for finding in lines[1]["findings"] for box in finding["boxes"]]
    assert len(regions) == len(boxes)
    for item, box in zip(regions, boxes, strict=True):
        assert np.allclose(item.GraphicData[:2], [box[0] * SIDE, box[1] * SIDE], atol=0.01)
    del rng


def test_highdicom_reads_the_structured_report(
    trained: Path, tmp_path: Path, run_cli: Callable[..., tuple[int, str, str]]
) -> None:
    sr = pytest.importorskip("highdicom.sr")
    save_image(read_image(trained / "1.png"), tmp_path / "in" / "study.dcm", format="dicom", provenance={})
    words = ["report", tmp_path / "in", "--model", trained / "whole", "-o", tmp_path / "out"]
    code, _, err = run_cli(*words, "--format", "json", "dicom")
    assert code == 0, err
    read = sr.srread(str(tmp_path / "out" / "study.report.dcm"))
    assert isinstance(read, sr.ComprehensiveSR)
    line = json.loads((tmp_path / "out" / "reports.jsonl").read_text())
    boxes = [box for finding in line["findings"] for box in finding["boxes"]]
    find = sr.utils.find_content_items
    regions = find(read, value_type=sr.ValueTypeValues.SCOORD, recursive=True)
    assert len(regions) == len(boxes)
    for item, box in zip(regions, boxes, strict=True):
        assert item.graphic_type == sr.GraphicTypeValues.POLYLINE
        corners = item.value / SIDE
        assert np.allclose([*corners.min(0), *corners.max(0)], box, atol=0.01)
    texts = " ".join(item.value for item in find(read, value_type=sr.ValueTypeValues.TEXT, recursive=True))
    assert "algorithm" in texts and all(finding["text"] in texts for finding in line["findings"])


def walk(item: object) -> list[object]:
    found = []
    for child in getattr(item, "ContentSequence", ()):
        found += [child, *walk(child)]
    return found


def test_report_keeps_what_was_read_before_a_bad_file(
    trained: Path, tmp_path: Path, run_cli: Callable[..., tuple[int, str, str]]
) -> None:
    (tmp_path / "bad.png").write_bytes(b"nothing")
    code, _, err = run_cli("report", trained / "1.png", tmp_path / "bad.png", "--model", trained / "whole",
                           "-o", tmp_path / "out")  # fmt: skip
    assert code == 2 and "bad.png" in err and "Traceback" not in err
    assert len((tmp_path / "out" / "reports.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ([], "no image"),
        (["nowhere.png"], "nowhere.png"),
        (["1.png", "--format", "pdf"], "--format pdf"),
        (["1.png", "--model", "nowhere"], "--model nowhere"),
        (["1.png", "-o", "1.png"], "--out"),
        (["1.png", "-o", ".", "--format", "picture"], "--out"),
        (["1.png", "-o", "out", "--format", "dicom"], "--format dicom"),
        (["whole/log"], "whole/log"),
    ],
)
def test_what_cannot_be_reported_is_named(
    words: list[str], names: str, trained: Path, monkeypatch: pytest.MonkeyPatch,
    run_cli: Callable[..., tuple[int, str, str]],
) -> None:  # fmt: skip
    monkeypatch.chdir(trained)
    code, _, err = run_cli("report", *words)
    assert code == 2 and names in err and "Traceback" not in err


def test_overlays_grow_with_the_image() -> None:
    from roentgen.reports import Finding, Report
    from roentgen.reports.overlay import COLOURS, draw_report

    found = Finding("There is a nodule.", "Nodule", 0.5, ((0.4, 0.4, 0.6, 0.6),))
    report = Report((found, Finding("No effusion.", present=False)), "", ("look out",))
    for side in (256, 1500):
        grey = np.full((side, side), 128, np.uint8)
        picture = np.asarray(draw_report(grey, report, title="t"))
        width = picture.shape[1]
        assert width == max(side, 640) and picture.shape[0] > width
        row = picture[width // 2]
        line = (row == COLOURS[0]).all(1)
        assert line[: width // 2].sum() >= 0.004 * width  # the edge is as wide for the eye at every size
        assert (picture[: width // 4, : width // 4] == 128).all()  # nothing is drawn elsewhere


def test_no_tag_covers_another() -> None:
    from roentgen.reports.overlay import tag_corners

    boxes = [(100, 100, 200, 180), (104, 95, 204, 178), (98, 104, 196, 176), (0, 0, 30, 20), (0, 0, 40, 25)]
    sizes = [(20, 28), (20, 28), (60, 28), (20, 28), (20, 28)]
    corners = tag_corners(boxes, sizes, (256, 256))
    drawn = np.zeros((256, 256), int)
    for (x, y), (width, height) in zip(corners, sizes, strict=True):
        drawn[y : y + height, x : x + width] += 1
    assert drawn.max() == 1 and drawn.sum() == sum(width * height for width, height in sizes)
    assert corners[0] == (100, 72)  # above the left edge where nothing is in the way


def test_a_grounding_head_places_what_another_reporter_says(trained: Path, tmp_path: Path) -> None:
    folder = reporters.git(tmp_path / "git")
    both = load_reporter(str(folder), places=str(trained / "whole"))
    plain = load_reporter(str(folder))
    image = read_image(trained / "1.png")
    assert both.report(image).text == plain.report(image).text
    assert both.info.placed == ("Lung Opacity",) and "whole" in both.info.name


def test_networks_of_any_findings() -> None:
    net = FindingNet(3).eval()
    with torch.no_grad():
        out = net(torch.zeros(2, 1, 64, 64))
    assert out.image.shape == (2, 3) and out.maps.shape == (2, 3, 4, 4) and out.edges.shape == (2, 4, 4, 4)
    assert (out.edges > 0).all() and out.sides.shape == (2, 3, 2)


# ------------------------------------------------------------------------------------------ calibration


def test_an_image_that_is_likelier_normal_says_only_what_is_likely() -> None:
    """Two findings above their thresholds; the image as a whole decides whether the unlikely one is said."""
    rules = Rules(
        findings=("Effusion", "Nodule"),
        calibration={"Effusion": (1, 0), "Nodule": (1, 0)},
        thresholds={"Effusion": 0.1, "Nodule": 0.1},
        prevalence={"Effusion": 0.05, "Nodule": 0.05},
        side_margins={"": 0.0},
        severities={},
        places={},
    )
    seen = Predictions(
        image=np.array([[0.6, 0.2], [0.2, 0.2]], np.float32),
        sides=np.full((2, 2, 2), 0.5, np.float32),
        maps=np.zeros((2, 2, 2, 2), np.float32),
        edges=np.zeros((2, 4, 2, 2), np.float32),
        ap=np.zeros(2, np.float32),
        severity=np.zeros((2, 2), np.float32),
        deep=np.zeros((2, 3), np.float32),
    )

    def said(rules: Rules) -> list[list[str | None]]:
        return [[one.label for one in found_in(rules, seen, row)[0]] for row in (0, 1)]

    assert said(rules) == [["Effusion", "Nodule"], ["Effusion", "Nodule"]]
    normal = {"Effusion": 0.0, "Nodule": 0.0, "": -1.0}
    assert said(dataclasses.replace(rules, abnormal=normal)) == [["Effusion"], []]
    assert said(dataclasses.replace(rules, abnormal={**normal, "": 1.0})) == said(rules)


def test_abnormal_images_are_told_from_logits() -> None:
    rng = np.random.default_rng(0)
    normal = np.repeat([0.0, 1.0], 60)
    logits = np.stack([rng.normal(size=120) - 3 * normal, rng.normal(size=120)], 1)
    fitted = any_finding(logits, normal, ("Effusion", "Nodule"))
    assert fitted["Effusion"] > 3 * abs(fitted["Nodule"])
    chances = logits @ [fitted["Effusion"], fitted["Nodule"]] + fitted[""]
    assert ((chances > 0) == (normal == 0)).mean() > 0.85
    assert any_finding(logits, np.where(np.arange(120) < 70, normal, np.nan), ("Effusion", "Nodule")) == {}


def test_a_trained_reporter_is_calibrated_again(trained: Path) -> None:
    manifest = pd.read_csv(trained / "manifest.csv")
    manifest.loc[manifest["split"] == "val", "Lung Opacity"] = 1  # another hospital, where all are ill
    manifest.to_csv(trained / "other.csv", index=False)
    arguments = ["--arch", "labels", "--model", trained / "whole", "--manifest", trained / "other.csv"]
    reporters.good(*arguments, "--boxes", trained / "boxes.csv", "--out", trained / "again")
    old, new = (json.loads((trained / name / "config.json").read_text()) for name in ("whole", "again"))
    assert new["prevalence"]["Lung Opacity"] == 1 > old["prevalence"]["Lung Opacity"]
    names = ("model.safetensors", "screen.npz")
    assert all((trained / "whole" / n).read_bytes() == (trained / "again" / n).read_bytes() for n in names)


def test_more_of_the_network_can_be_trained(trained: Path) -> None:
    reporters.good(*flags(trained), "--labels.frozen", 9, "--images", 16, "--eval-every", 16, "--out", trained / "deep")
    state = load_net(trained / "deep", fold=False)[0].state_dict()
    begun = load_net(trained / "whole", fold=False)[0].state_dict()  # of the same seed, with 11 blocks frozen
    assert torch.equal(state["features.blocks.8.narrow.0.weight"], begun["features.blocks.8.narrow.0.weight"])
    assert not torch.equal(state["features.blocks.9.narrow.0.weight"], begun["features.blocks.9.narrow.0.weight"])


# ----------------------------------------------------------------------------------------------- int8


def test_int8_reads_as_float_does_but_for_rounding(trained: Path) -> None:
    from roentgen.reports.quantised import quantise, weight_bytes

    reporter = load_reporter(str(trained / "whole"))
    assert isinstance(reporter, LabelsReporter)
    small = quantise(reporter)
    assert isinstance(small, LabelsReporter) and weight_bytes(small) < 0.5 * weight_bytes(reporter)
    images = [read_image(trained / f"{n}.png") for n in range(36, 48)]
    one, other = reporter.predict(images), small.predict(images)
    assert 0 < np.abs(one.image - other.image).max() < 0.1
    assert np.abs(one.maps - other.maps).max() < 0.15
    with pytest.raises(UserError, match="--int8"):
        quantise(type("Other", (), {"info": reporter.info})())


def test_the_command_reads_in_int8(trained: Path, run_cli: Callable[..., tuple[int, str, str]]) -> None:
    words = ["report", trained / "40.png", "--model", trained / "whole", "--json", "--int8"]
    code, out, err = run_cli(*words)
    assert code == 0 and json.loads(out)["path"].endswith("40.png"), err
    code, _, err = run_cli(*words, "--device", "cuda")
    assert code == 2 and "--int8" in err
