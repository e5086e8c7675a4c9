"""Reports: boxes and their conventions, sentences that are read back, and CXRReportGen's format."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest

from roentgen.errors import UserError
from roentgen.images import encode_image
from roentgen.prompts import FINDINGS, parse, statement
from roentgen.prompts.labels import NO_FINDING
from roentgen.reports import (
    Context,
    Finding,
    Report,
    from_cxrreportgen,
    from_pixels,
    read_reply,
    read_request,
    to_cxrreportgen,
    to_pixels,
    write_reply,
    write_request,
)
from roentgen.reports import boxes as conventions
from roentgen.reports.screen import blank, fit, strangeness
from roentgen.reports.sentences import compose_report, split_sentences, text_of

SIZES = [(320, 320), (500, 320), (320, 500), (3000, 2500)]


def random_boxes(count: int = 50) -> list[tuple[float, float, float, float]]:
    rng = np.random.default_rng(0)
    corners = np.sort(rng.uniform(0, 1, (count, 2, 2)), axis=1)
    return [tuple(map(float, (a[0], a[1], b[0], b[1]))) for a, b in corners if (b - a).min() > 0.02]  # type: ignore[misc]


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_boxes_go_to_pixels_and_back(width: int, height: int) -> None:
    for box in random_boxes():
        pixels = to_pixels(box, width, height)
        assert 0 <= pixels[0] < pixels[2] <= width and 0 <= pixels[1] < pixels[3] <= height
        assert from_pixels(pixels, width, height) == pytest.approx(box)


def padded_square(width: int, height: int) -> tuple[float, float, float, float]:
    """The square of the longer side, padded alike on both sides, as a window of an image ``width`` x ``height``."""
    side = max(width, height)
    x, y = (side / width - 1) / 2, (side / height - 1) / 2
    return -x, -y, 1 + x, 1 + y


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("window", [conventions.centre_square, padded_square])
def test_boxes_go_into_a_window_and_back(width: int, height: int, window: object) -> None:
    square = window(width, height)  # type: ignore[operator]
    # The square is one: as wide as high in pixels.
    assert (square[2] - square[0]) * width == pytest.approx((square[3] - square[1]) * height)
    for box in random_boxes():
        inside = conventions.into_window(box, square)
        visible = (
            max(box[0], square[0]),
            max(box[1], square[1]),
            min(box[2], square[2]),
            min(box[3], square[3]),
        )
        if visible[2] <= visible[0] or visible[3] <= visible[1]:
            assert inside is None
            continue
        assert inside is not None
        assert conventions.out_of_window(inside, square) == pytest.approx(visible)


def test_cxrreportgen_counts_in_the_centre_square() -> None:
    # 500 x 320: the square begins at x = 90. A box from its left edge to its middle, over its whole height.
    box = from_pixels((90, 0, 250, 320), 500, 320)
    assert conventions.to_cxrreportgen(box, 500, 320) == pytest.approx((0.005, 0.005, 0.505, 0.995))
    back = conventions.from_cxrreportgen((0.0, 0.0, 0.5, 1.0), 500, 320)
    assert back == pytest.approx(box)
    # 320 x 500: the square begins at y = 90.
    assert conventions.from_cxrreportgen((0, 0, 1, 1), 320, 500) == pytest.approx((0, 0.18, 1, 0.82))
    assert conventions.to_cxrreportgen(from_pixels((0, 0, 80, 320), 500, 320), 500, 320) is None  # outside the square


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_cxrreportgen_repeats_after_one_rounding(width: int, height: int) -> None:
    for box in random_boxes():
        said = conventions.to_cxrreportgen(box, width, height)
        if said is None:
            continue
        back = conventions.from_cxrreportgen(said, width, height)
        assert back is not None
        assert conventions.to_cxrreportgen(back, width, height) == pytest.approx(said)
        inside = conventions.into_window(box, conventions.centre_square(width, height))
        assert inside is not None
        assert np.abs(np.subtract(said, inside)).max() <= 0.5 / conventions.BINS + 1e-9


@pytest.mark.parametrize(
    "box", [(0.2, 0.1, 0.2, 0.5), (-0.1, 0, 0.5, 0.5), (0, 0, 1.2, 1), (0.5, 0, 0.4, 1), (0, 0, 1)]
)
def test_boxes_outside_the_image_or_without_area_are_refused(box: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match="row 3"):
        conventions.check_box(box, what="row 3")


def test_overlap_of_boxes() -> None:
    assert conventions.iou((0, 0, 0.5, 1), (0.25, 0, 0.75, 1)) == pytest.approx(1 / 3)
    assert conventions.iou((0, 0, 0.5, 1), (0.5, 0, 1, 1)) == 0
    boxes = [(0.0, 0.0, 0.5, 0.5), (0.02, 0.0, 0.5, 0.5), (0.6, 0.6, 0.9, 0.9)]
    assert conventions.suppress(boxes, [0.5, 0.9, 0.1], most=0.3, keep=5) == [1, 2]
    inside = [(0.0, 0.0, 0.8, 0.8), (0.3, 0.3, 0.4, 0.4)]  # a small IoU, and one in the middle of the other
    assert conventions.suppress(inside, [0.5, 0.4], most=0.3, keep=5) == [0]
    assert conventions.side_of([(0.6, 0.1, 0.9, 0.4)]) == "left"  # the patient's left is on the image's right
    assert conventions.side_of([(0.6, 0.1, 0.9, 0.4), (0.1, 0.1, 0.3, 0.4)]) == "bilateral"


# -------------------------------------------------------------------------------------------- sentences


@pytest.mark.parametrize("name", [name for name in FINDINGS if name != NO_FINDING])
def test_a_statement_is_read_back(name: str) -> None:
    finding = FINDINGS[name]
    sides = (None, "left", "right", "bilateral") if finding.can_have_side else (None,)
    for side in sides:
        for severity in (None, *finding.qualifiers):
            text = statement(name, side=side, severity=severity)
            labels = parse(text)
            assert labels.findings == (name,), text
            assert labels.sides == ({name: side} if side else {}), text


def test_a_report_denies_what_is_absent_and_nothing_else() -> None:
    found = [Finding("", "Effusion", 0.8, side="left", severity="small"), Finding("", "Atelectasis", 0.9)]
    said = compose_report(found, {"Pneumothorax", "Consolidation", "Cardiomegaly", "Effusion"})
    text = text_of(said)
    assert parse(text).findings == ("Atelectasis", "Effusion")
    assert parse(text).sides == {"Effusion": "left"}
    assert [one.label for one in said if not one.present] == ["Pneumothorax", "Cardiomegaly"]
    assert "consolidation" not in text.lower()  # beside an opaque lung, nobody denies it
    normal = text_of(compose_report([], {"Effusion", "Pneumothorax"}))
    assert parse(normal).findings == (NO_FINDING,)


def test_sentences_are_split_at_their_ends() -> None:
    text = "There is a 3.5 cm mass. No effusion.\nHeart size is normal."
    assert split_sentences(text) == ["There is a 3.5 cm mass.", "No effusion.", "Heart size is normal."]


# ------------------------------------------------------------------------------------------ CXRReportGen


def report() -> Report:
    finding = Finding("There is a left pleural effusion.", "Effusion", 0.9, ((0.6, 0.5, 0.8, 0.9),), side="left")
    denied = Finding("No pneumothorax.", "Pneumothorax", present=False)
    return Report((finding, denied), f"{finding.text} {denied.text}")


def test_cxrreportgen_reply_and_back() -> None:
    image = np.zeros((320, 500), np.uint8)
    reply = write_reply([report()], [image])
    assert json.loads(reply[0]["output"])[1] == ["No pneumothorax.", None]
    rows = read_reply(reply)[0]
    back = from_cxrreportgen(rows, 500, 320)
    assert [one.label for one in back.findings] == ["Effusion", None] and back.findings[0].side == "left"
    assert not back.findings[1].present
    assert np.abs(np.subtract(back.findings[0].boxes[0], report().findings[0].boxes[0])).max() < 0.01
    refused = Report((), "", ("the image is black",), refused=True)
    assert to_cxrreportgen(refused, 10, 10) == [["the image is black", None]]


def test_cxrreportgen_request_and_back() -> None:
    image = np.random.default_rng(0).integers(0, 255, (80, 100)).astype(np.uint8)
    png = encode_image(image, "png", {})
    payload = write_request([{"frontal_image": png, "indication": "cough", "prior_image": png}])
    payload["input_data"]["data"][0][0] = base64.encodebytes(png).decode()  # lines of 76, as the public example sends
    (row,) = read_request(json.loads(json.dumps(payload)))
    assert np.array_equal(row.image, image)
    assert row.context.given() == ("indication", "prior_image")
    assert isinstance(row.context, Context) and row.context.lateral_image is None


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"input_data": None}, "input_data"),
        ({"input_data": {"columns": ["x"], "data": [["y"]]}}, "frontal_image"),
        ({"input_data": {"columns": ["frontal_image"], "data": []}}, "data"),
        ({"input_data": {"columns": ["frontal_image"], "data": [["a", "b"]]}}, "row 0"),
        ({"input_data": {"columns": ["frontal_image"], "data": [["***"]]}}, "frontal_image of row 0"),
        ({"input_data": {"columns": ["frontal_image"], "data": [["aGVsbG8="]]}}, "frontal_image of row 0"),
        ({"input_data": {"columns": ["frontal_image"], "data": [[""]]}}, "frontal_image of row 0"),
        ({"input_data": {"columns": ["frontal_image"], "data": [[3]]}}, "frontal_image of row 0"),
        ([], "input_data"),
    ],
)
def test_bad_requests_are_named(change: object, names: str) -> None:
    with pytest.raises(UserError, match=names):
        read_request(change)


# ----------------------------------------------------------------------------------------------- screen


def test_blank_images_are_said_to_be_blank() -> None:
    rng = np.random.default_rng(0)
    assert "black" in str(blank(np.zeros((256, 256), np.uint8)))
    assert "white" in str(blank(np.full((256, 256), 255, np.uint8)))
    assert "small" in str(blank(rng.integers(0, 255, (20, 300)).astype(np.uint8)))
    assert blank(rng.integers(0, 255, (256, 256)).astype(np.uint8)) is None


def test_strange_features_are_far_away() -> None:
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(8, 40))
    near = (rng.normal(size=(400, 8)) @ mixing + 0.1 * rng.normal(size=(400, 40))).astype(np.float32)
    about = fit(near[:300], near[300:], axes=8, share=0.99)
    assert (strangeness(near, about) <= about["limit"]).mean() > 0.95
    assert (strangeness(near + 3 * rng.normal(size=(400, 40)).astype(np.float32), about) > about["limit"]).all()


def test_rules_that_are_not_whole_are_named(tmp_path, run_cli) -> None:
    import shutil

    from recipe import ROOT

    from roentgen.reports.load import MINI_REPORT, SHIPPED

    folder = shutil.copytree(SHIPPED[MINI_REPORT], tmp_path / "reporter")
    said = json.loads((folder / "config.json").read_text())
    del said["prevalence"]
    (folder / "config.json").write_text(json.dumps(said))
    image = next((ROOT / "data" / "sample" / "images").glob("*.jpg"))
    code, out, err = run_cli("report", image, "--model", folder, "-o", tmp_path / "out")
    assert code == 2 and not out and "prevalence" in err and "config.json" in err
