"""The adapter of PadChest, on trees in its layout and on the real table."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest
from trees_b import PADCHEST_TABLE, by_image, carried, carried_rows, padchest_tree, write_image

from roentgen.data.manifest import as_cells, read_manifest, row_problems, write_manifest
from roentgen.data.sources.common import manifest_columns
from roentgen.data.sources.padchest import COLUMNS, padchest_rows, read_padchest, sentence_sides
from roentgen.data.tables import read_table
from roentgen.errors import UserError


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("compressed", [False, True])
def test_tree_becomes_a_valid_manifest(tmp_path: Path, flat: bool, compressed: bool) -> None:
    folder = padchest_tree(tmp_path, flat=flat, compressed=compressed)
    table, counts = read_padchest(folder)
    assert counts == {
        "images of views other than PA and AP": 1,
        "images without a label dropped": 2,
        "images marked 'exclude' dropped": 1,
        "labels outside the vocabulary left out (1 kinds, most often 'scoliosis')": 1,
    }
    rows = by_image(table)
    assert list(rows) == ["20536_k6ga29.png", "20537_a.png", "20538_b.png", "20543_g.png"]
    normal = rows["20536_k6ga29.png"]
    assert normal["image"] == str(folder / ("" if flat else "0") / "20536_k6ga29.png")
    assert (normal["sex"], normal["age"], normal["view"], normal["text"]) == ("F", 84, "PA", "")
    assert (normal["No Finding"], normal["Effusion"]) == (1, 0)
    ill = rows["20537_a.png"]
    assert (ill["view"], ill["No Finding"], ill["Mass"]) == ("AP", 0, 0)  # AP_horizontal is AP
    assert (ill["Effusion"], ill["Atelectasis"], ill["Cardiomegaly"]) == (1, 1, 1)
    unchanged = rows["20538_b.png"]
    assert (unchanged["Nodule"], unchanged["No Finding"]) == (1, 0)
    assert unchanged["Effusion"] != unchanged["Effusion"]  # may be among what is unchanged
    assert unchanged["sex"] == "" and unchanged["age"] != unchanged["age"]
    table["text"] = "Chest radiograph."
    read_manifest(write_manifest(table, tmp_path / "manifest.csv"))


def test_sides_are_taken_where_unambiguous(tmp_path: Path) -> None:
    rows = by_image(read_padchest(padchest_tree(tmp_path))[0])
    assert rows["20537_a.png"]["Effusion_side"] == "left"
    assert rows["20537_a.png"]["Atelectasis_side"] == "bilateral"  # right lower lobe and lingula
    assert rows["20538_b.png"]["Nodule_side"] == rows["20538_b.png"]["Infiltration_side"] == ""
    assert rows["20543_g.png"]["Pneumonia_side"] == "right"  # the middle lobe is


@pytest.mark.parametrize(
    ("sentences", "sides"),
    [
        ([["nodule", "loc left"]], {"Nodule": "left"}),
        ([["nodule", "loc left"], ["nodule"]], {}),  # the second may be on either side
        ([["nodule", "loc left"], ["nodule", "loc left upper lobe"]], {"Nodule": "left"}),
        ([["pneumonia", "loc right", "loc left"]], {"Pneumonia": "bilateral"}),
        ([["pleural effusion", "loc basal bilateral"]], {"Effusion": "bilateral"}),
        ([["pleural effusion", "suture material", "loc right"]], {}),  # the right one may be the other
        ([["pleural effusion", "normal", "loc right"]], {"Effusion": "right"}),
        ([["hydropneumothorax", "loc right"]], {}),
        ([["cardiomegaly", "loc left"]], {}),
        ([None, [], ["normal", "loc left"]], {}),
    ],
)
def test_sentence_sides(sentences: list[list[str]], sides: dict[str, str]) -> None:
    assert sentence_sides(sentences) == sides


def test_report_and_physician_options(tmp_path: Path) -> None:
    folder = padchest_tree(tmp_path)
    table, counts = read_padchest(folder, text="report")
    rows = by_image(table)
    assert rows["20536_k6ga29.png"]["text"] == "sin hallazg patolog edad pacient ."
    assert rows["20543_g.png"]["text"] == "" and counts["images kept without a report"] == 1
    table, counts = read_padchest(folder, labelled_by="physician")
    assert "20537_a.png" not in by_image(table) and counts["images labelled by a network dropped"] == 1


def test_split_is_by_patient_and_seed(tmp_path: Path) -> None:
    folder = padchest_tree(tmp_path)
    table, _ = read_padchest(folder, val_share=0.0, test_share=0.0)
    assert set(table["split"]) == {"train"}
    table, _ = read_padchest(folder, val_share=0.01, test_share=0.98)
    assert "test" in set(table["split"])
    with pytest.raises(UserError, match="--val-share and --test-share"):
        read_padchest(folder, val_share=0.5, test_share=0.5)


def test_missing_images_and_another_folder(tmp_path: Path) -> None:
    folder = padchest_tree(tmp_path / "padchest")
    write_image(folder / "images-224/20536_k6ga29.png")
    with pytest.raises(UserError, match=r"there twice.*--images"):
        read_padchest(folder)
    (folder / "images-224/20536_k6ga29.png").rename(tmp_path / "20536_k6ga29.png")
    (folder / "images-224").rmdir()
    (folder / "1/20543_g.png").unlink()
    with pytest.raises(UserError, match=r"1 of 4 images .*20543_g\.png"):
        read_padchest(folder)
    table, counts = read_padchest(folder, missing="drop")
    assert len(table) == 3 and counts["images missing on disk"] == 1
    table, _ = read_padchest(folder, images=folder / "0", missing="drop")
    assert list(by_image(table)) == ["20536_k6ga29.png", "20537_a.png"]


def test_broken_tables_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no PADCHEST_chest_x_ray"):
        read_padchest(tmp_path)
    folder = padchest_tree(tmp_path)
    path = folder / f"{PADCHEST_TABLE}.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[:-200])
    with pytest.raises(UserError, match=r"\.csv\.gz cannot be read as CSV"):
        read_padchest(folder)
    path.unlink()
    plain = padchest_tree(tmp_path / "plain", compressed=False) / PADCHEST_TABLE
    text = plain.read_text()
    for broken, message in (
        (
            text.replace("LabelsLocalizationsBySentence", "Sentences"),
            "lacks the column 'LabelsLocalizationsBySentence'",
        ),
        (text.replace("['pneumonia']", "__import__('os')"), r"__import__.*where a list of labels must be"),
        (text.replace("['pneumonia']", "['pneumonia'"), "where a list of labels must be"),
    ):
        plain.write_text(broken)
        with pytest.raises(UserError, match=message):
            read_padchest(plain.parent)


@pytest.mark.slow
def test_real_table_gives_the_counts_of_a_plain_count() -> None:
    views: Counter[str] = Counter()
    found: Counter[str] = Counter()
    normal = excluded = unlabelled = 0
    for row in carried_rows("PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz"):
        if row["Projection"] not in ("PA", "AP", "AP_horizontal"):
            views["other"] += 1
            continue
        cell = row["Labels"].replace("[nan", "[''").replace(", nan", ", ''")
        labels = set() if cell == "nan" else {label.strip() for label in ast.literal_eval(cell)} - {""}
        if "exclude" in labels:
            excluded += 1
        if not labels - {"unchanged", "suboptimal study"}:
            unlabelled += 1
        if "exclude" in labels or not labels - {"unchanged", "suboptimal study"}:
            continue
        views["PA" if row["Projection"] == "PA" else "AP"] += 1
        normal += labels <= {"normal", "unchanged", "suboptimal study"}
        found["Cardiomegaly"] += "cardiomegaly" in labels
        found["Hernia"] += "hiatal hernia" in labels
        found["Pneumothorax"] += bool(labels & {"pneumothorax", "hydropneumothorax"})
        found["Nodule"] += bool(labels & {"nodule", "multiple nodules"})
    counts: Counter[str] = Counter()
    path = carried("PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz")
    table = padchest_rows(read_table(path, required=COLUMNS), counts, path=path)
    assert Counter(table["view"]) == {"PA": views["PA"], "AP": views["AP"]}
    assert len(table) == 106151
    assert counts["images of views other than PA and AP"] == views["other"]
    assert counts["images marked 'exclude' dropped"] == excluded
    assert counts["images without a label dropped"] == unlabelled
    assert (table["No Finding"] == 1).sum() == normal
    assert {name: int((table[name] == 1).sum()) for name in found} == found
    sided = table[table.filter(like="_side").ne("").any(axis=1)]
    assert len(sided) > 1000
    assert not row_problems(as_cells(manifest_columns(sided.reset_index(drop=True))))
