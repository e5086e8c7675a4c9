"""The adapter of NIH ChestX-ray14, on trees in its layout and on the real tables."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from trees_b import by_image, carried, carried_rows, nih_tree, write_image

from roentgen.data.labels import NIH_14
from roentgen.data.manifest import as_cells, read_manifest, row_problems, write_manifest
from roentgen.data.sources.common import ages, manifest_columns
from roentgen.data.sources.nih import BOX_COLUMNS, COLUMNS, SEX_COLUMNS, nih_rows, read_nih
from roentgen.data.tables import read_table
from roentgen.errors import UserError


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("flat", [False, True])
def test_tree_becomes_a_valid_manifest(tmp_path: Path, old: bool, flat: bool) -> None:
    folder = nih_tree(tmp_path, old=old, flat=flat)
    table, counts = read_nih(folder)
    assert counts == {"impossible ages left blank": 1}
    rows = by_image(table)
    assert len(table) == 14
    first = rows["00000001_000.png"]
    assert first["image"] == str(folder / ("images" if flat else "images_001/images") / "00000001_000.png")
    assert (first["patient_id"], first["age"], first["sex"], first["view"]) == ("nih00001", 57, "M", "PA")
    assert (first["Cardiomegaly"], first["Effusion"], first["Mass"], first["No Finding"]) == (1, 1, 0, 0)
    assert first["Lung Opacity"] != first["Lung Opacity"]  # NIH has no such label
    normal = rows["00000002_000.png"]
    assert normal["No Finding"] == 1 and normal["age"] != normal["age"]  # 414 years
    table["text"] = "Chest radiograph."
    read_manifest(write_manifest(table, tmp_path / "manifest.csv"))


@pytest.mark.parametrize(
    ("cell", "age"),
    [
        ("058Y", 58),
        ("58", 58),
        ("0.5", 0.5),
        ("005M", 0.42),
        ("026D", 0.07),
        ("010W", 0.19),
        ("018M", 1.5),
        ("000D", 0),
    ],
)
def test_ages_in_months_weeks_and_days(tmp_path: Path, cell: str, age: float) -> None:
    folder = nih_tree(tmp_path, old=True)
    path = folder / "Data_Entry_2017.csv"
    path.write_text(path.read_text().replace("414Y", cell))
    table, counts = read_nih(folder)
    assert by_image(table)["00000002_000.png"]["age"] == age and not counts


@pytest.mark.parametrize("cell", ["5X", "M", "121Y", "1500M", "-3", "5 M"])
def test_what_is_no_age_is_blank_and_counted(cell: str) -> None:
    counts: Counter[str] = Counter()
    assert ages(pd.Series([cell, "7"]), counts).isna().tolist() == [True, False]
    assert counts == {"impossible ages left blank": 1}


def test_sides_are_the_patients(tmp_path: Path) -> None:
    rows = by_image(read_nih(nih_tree(tmp_path))[0])
    # The patient's left is on the image's right, which is where x is large.
    assert rows["00000001_000.png"]["Effusion_side"] == "left"
    assert rows["00000001_001.png"]["Effusion_side"] == "right"
    assert rows["00000003_000.png"]["Infiltration_side"] == ""  # across the midline
    assert rows["00000004_000.png"]["Infiltration_side"] == "bilateral"
    assert rows["00000013_000.png"]["Nodule_side"] == "left"  # begins at the midline
    assert rows["00000013_000.png"]["Mass_side"] == "right"  # ends there
    assert rows["00000013_000.png"]["Pleural_Thickening_side"] == ""
    assert "Cardiomegaly_side" not in rows["00000001_000.png"]


def test_without_boxes_no_side_is_known_and_said(tmp_path: Path) -> None:
    folder = nih_tree(tmp_path)
    (folder / "BBox_List_2017.csv").unlink()
    table, counts = read_nih(folder)
    assert counts["images without a side, as --root has no BBox_List_2017.csv"] == 14
    assert (table["Effusion_side"] == "").all()


def test_box_of_another_finding_is_not_used(tmp_path: Path) -> None:
    folder = nih_tree(tmp_path)
    boxes = folder / "BBox_List_2017.csv"
    boxes.write_text(boxes.read_text() + "00000002_000.png,Mass,1.0,1.0,9.0,9.0,,,\n")
    table, counts = read_nih(folder)
    assert counts["boxes of a finding that the image is not labelled with, left unused"] == 1
    assert by_image(table)["00000002_000.png"]["Mass_side"] == ""


def test_official_lists_are_kept(tmp_path: Path) -> None:
    folder = nih_tree(tmp_path)
    table, _ = read_nih(folder, val_share=0.5)
    splits = by_image(table)
    assert splits["00000013_000.png"]["split"] == "test"
    assert Counter(table["split"])["test"] == 1 and set(table["split"]) == {"train", "val", "test"}
    assert splits["00000001_000.png"]["split"] == splits["00000001_001.png"]["split"]
    listed = folder / "train_val_list.txt"
    listed.write_text(listed.read_text().replace("00000002_000.png\n", ""))
    table, counts = read_nih(folder)
    assert len(table) == 13
    assert counts["images in neither train_val_list.txt nor test_list.txt dropped"] == 1


def test_missing_images_and_second_copies(tmp_path: Path) -> None:
    folder = nih_tree(tmp_path)
    (folder / "images_002/images/00000012_000.png").unlink()
    with pytest.raises(UserError, match=r"1 of 14 images .*00000012_000\.png.*--missing drop"):
        read_nih(folder)
    table, counts = read_nih(folder, missing="drop")
    assert len(table) == 13 and counts["images missing on disk"] == 1
    write_image(folder / "images-224/00000001_000.png")
    with pytest.raises(UserError, match=r"00000001_000\.png'? is there twice"):
        read_nih(folder, missing="drop")


def test_broken_tables_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no Data_Entry_2017_v2020\.csv"):
        read_nih(tmp_path)
    folder = nih_tree(tmp_path)
    path = folder / "Data_Entry_2017_v2020.csv"
    whole = path.read_text()
    for broken, message in (
        (whole.replace("View Position", "View"), "lacks the column 'View Position'"),
        (whole.replace("Patient Gender", "Gender"), "lacks the column 'Patient Gender'"),
        (whole.replace("No Finding", "Normal"), "label 'Normal'"),
        (whole.replace(",PA,", ",LL,"), "View Position 'LL'"),
        (whole.splitlines()[0] + "\n", "has no rows"),
    ):
        path.write_text(broken)
        with pytest.raises(UserError, match=message):
            read_nih(folder)
    path.write_text(whole)
    boxes = (folder / "BBox_List_2017.csv").read_text()
    (folder / "BBox_List_2017.csv").write_text(boxes.replace("600.0", "wide"))
    with pytest.raises(UserError, match=r"BBox_List_2017\.csv, row 1"):
        read_nih(folder)
    (folder / "test_list.txt").unlink()
    with pytest.raises(UserError, match=r"test_list\.txt is missing"):
        read_nih(folder)


@pytest.mark.slow
def test_real_tables_give_the_counts_of_a_plain_count() -> None:
    findings: Counter[str] = Counter()
    views: Counter[str] = Counter()
    names = []
    for row in carried_rows("Data_Entry_2017_v2020.csv.gz"):
        names.append(row["Image Index"])
        findings.update(row["Finding Labels"].split("|"))
        views[row["View Position"]] += 1
    sides: Counter[tuple[str, str]] = Counter()
    for row in carried_rows("BBox_List_2017.csv.gz"):
        finding = row["Finding Label"].replace("Infiltrate", "Infiltration")
        left, right = float(row["Bbox [x"]), float(row["Bbox [x"]) + float(row["w"])
        sides[finding, "left" if left >= 512 else "right" if right <= 512 else ""] += 1
    counts: Counter[str] = Counter()
    table = nih_rows(
        read_table(carried("Data_Entry_2017_v2020.csv.gz"), required=COLUMNS, optional=SEX_COLUMNS),
        read_table(carried("BBox_List_2017.csv.gz"), required=BOX_COLUMNS),
        counts,
        official=dict.fromkeys(names, "train"),
    )
    assert len(table) == len(names) == 112120 and not counts
    assert Counter(table["view"]) == views
    assert table["patient_id"].nunique() == 30805  # as the authors say
    assert {name: int((table[name] == 1).sum()) for name in (*NIH_14, "No Finding")} == findings
    for finding in ("Atelectasis", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax"):
        of_side = Counter(table[f"{finding}_side"])
        assert (of_side["left"], of_side["right"]) == (sides[finding, "left"], sides[finding, "right"])
    assert "Cardiomegaly_side" not in table
    assert not row_problems(as_cells(manifest_columns(table.head(3000))))
