"""The adapters of CheXpert and CheXpert Plus, on trees in their layout and on CheXpert's real table of train labels."""

from __future__ import annotations

import gzip
import shutil
from collections import Counter
from pathlib import Path

import pytest
from trees_b import carried, carried_rows, chexpert_tree, plus_tree, write_image

from roentgen.data.manifest import read_manifest, write_manifest
from roentgen.data.sources.chexpert import (
    DEMOGRAPHICS,
    LABELS,
    chexpert_rows,
    frontal_rows,
    read_chexpert,
    read_chexpert_plus,
)
from roentgen.data.tables import read_table
from roentgen.errors import UserError


def by_patient(table):
    return {row["patient_id"]: row for row in table.to_dict("records")}


def test_tree_becomes_a_valid_manifest(tmp_path: Path) -> None:
    folder = chexpert_tree(tmp_path)
    table, counts = read_chexpert(tmp_path)
    again, _ = read_chexpert(folder)
    assert table.equals(again)  # the root may be the folder above
    assert counts == {"images that are lateral": 13, "frontal images of a view other than PA and AP": 1}
    rows = by_patient(table)
    assert len(rows) == len(table) == 13
    first = rows["chexpert00001"]
    assert first["image"] == str(folder / "train/patient00001/study1/view1_frontal.jpg")
    assert (first["sex"], first["age"], first["view"], first["text"]) == ("F", 68, "AP", "")
    assert (first["No Finding"], first["Pneumothorax"], first["Edema"]) == (1, 0, 0)  # blank beside No Finding is 0
    second = rows["chexpert00002"]
    assert (second["Effusion"], second["Edema"], second["No Finding"], second["view"]) == (1, 0, 0, "PA")
    assert second["Cardiomegaly"] != second["Cardiomegaly"]  # uncertain is blank
    third = rows["chexpert00003"]
    assert third["sex"] == "" and third["age"] != third["age"] and third["No Finding"] == 0  # a fracture refutes it
    table["text"] = "Chest radiograph."
    read_manifest(write_manifest(table, tmp_path / "manifest.csv"))


@pytest.mark.parametrize("uncertain", ["0", "1"])
def test_uncertain_becomes_what_is_asked(tmp_path: Path, uncertain: str) -> None:
    chexpert_tree(tmp_path)
    table, _ = read_chexpert(tmp_path, uncertain=uncertain)  # type: ignore[arg-type]
    assert by_patient(table)["chexpert00002"]["Cardiomegaly"] == float(uncertain)


def test_official_valid_is_test_and_val_is_split_off_train(tmp_path: Path) -> None:
    chexpert_tree(tmp_path)
    table, _ = read_chexpert(tmp_path, val_share=0.5)
    official = table["image"].str.contains("/valid/")
    assert set(table["split"][official]) == {"test"} and official.sum() == 2
    assert set(table["split"][~official]) == {"train", "val"}
    other, _ = read_chexpert(tmp_path, val_share=0.5, seed=1)
    assert (table["split"] != other["split"]).any()


def test_official_test_set_keeps_the_official_splits(tmp_path: Path) -> None:
    chexpert_tree(tmp_path, test=True)
    table, _ = read_chexpert(tmp_path, val_share=0.5)
    assert Counter(table["split"]) == {"train": 11, "val": 2, "test": 1}
    row = by_patient(table)["chexpert64741"]  # its table has labels only; the lateral is known by its name
    assert (row["view"], row["sex"], row["Edema"], row["No Finding"], row["split"]) == ("", "", 1, 0, "test")


def test_missing_image_stops_or_is_dropped(tmp_path: Path) -> None:
    folder = chexpert_tree(tmp_path)
    (folder / "train/patient00002/study2/view1_frontal.jpg").unlink()
    (folder / "train/patient00001/study1/view2_lateral.jpg").unlink()  # nobody asks for laterals
    with pytest.raises(UserError, match=r"1 of 13 images .*patient00002.*--missing drop"):
        read_chexpert(tmp_path)
    table, counts = read_chexpert(tmp_path, missing="drop")
    assert len(table) == 12 and counts["images missing on disk"] == 1
    shutil.rmtree(folder / "train")
    shutil.rmtree(folder / "valid")
    with pytest.raises(UserError, match="13 of 13 images"):
        read_chexpert(tmp_path, missing="drop")


def test_broken_tables_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no train\.csv"):
        read_chexpert(tmp_path)
    with pytest.raises(UserError, match="is not a folder"):
        read_chexpert(tmp_path / "nowhere")
    folder = chexpert_tree(tmp_path)
    with pytest.raises(UserError, match="--val-share"):
        read_chexpert(tmp_path, val_share=1.0)
    train = (folder / "train.csv").read_text()
    (folder / "train.csv").write_text(train.replace("Pleural Other", "Pleural"))
    with pytest.raises(UserError, match=r"train\.csv lacks the column 'Pleural Other'"):
        read_chexpert(tmp_path)
    (folder / "train.csv").write_text(train.replace("CheXpert-v1.0-small/train/patient00001", "images/1"))
    with pytest.raises(UserError, match=r"path 'images/1.*must end in"):
        read_chexpert(tmp_path)
    (folder / "train.csv").write_text(train.replace("-1.0", "maybe"))
    with pytest.raises(UserError, match=r"'Cardiomegaly'.*'maybe'"):
        read_chexpert(tmp_path)
    (folder / "train.csv").write_text(train)
    (folder / "valid.csv").write_text("")
    with pytest.raises(UserError, match=r"valid\.csv cannot be read as CSV"):
        read_chexpert(tmp_path)


def test_truncated_gzip_is_named(tmp_path: Path) -> None:
    folder = chexpert_tree(tmp_path)
    whole = gzip.compress((folder / "train.csv").read_bytes())
    (folder / "train.csv").unlink()
    (folder / "train.csv.gz").write_bytes(whole)
    assert len(read_chexpert(tmp_path)[0]) == 13
    (folder / "train.csv.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"train\.csv\.gz cannot be read as CSV .*download it again"):
        read_chexpert(tmp_path)


@pytest.mark.slow
def test_real_table_gives_the_counts_of_a_plain_count() -> None:
    frontal = labelled = normal = uncertain = effusion = pa = 0
    patients = set()
    for row in carried_rows("chexpert_train.csv.gz"):
        if row["Frontal/Lateral"] != "Frontal" or row["AP/PA"] not in ("AP", "PA"):
            continue
        frontal += 1
        pa += row["AP/PA"] == "PA"
        patients.add(row["Path"].split("/")[2])
        normal += row["No Finding"] == "1.0"
        uncertain += row["Edema"] == "-1.0"
        effusion += row["Pleural Effusion"] == "1.0"
        labelled += any(row[name] in ("1.0", "0.0") for name in LABELS if name not in ("Support Devices",))
    path = carried("chexpert_train.csv.gz")
    counts: Counter[str] = Counter()
    cells = read_table(path, required=("Path", *DEMOGRAPHICS, *LABELS)).assign(split="train")
    table = chexpert_rows(frontal_rows(cells, counts, path=path), counts, path=path)
    assert len(table) == frontal == 191010
    assert table["patient_id"].nunique() == len(patients)
    assert (table["view"] == "PA").sum() == pa
    assert (table["No Finding"] == 1).sum() == normal
    assert (table["Effusion"] == 1).sum() == effusion
    cells = chexpert_rows(frontal_rows(cells, Counter(), path=path), Counter(), uncertain="1", path=path)
    assert (cells["Edema"] == 1).sum() - (table["Edema"] == 1).sum() == uncertain
    assert (table.groupby("patient_id")["split"].nunique() == 1).all()
    share = table.groupby("patient_id")["split"].first().eq("val").mean()
    assert 0.045 < share < 0.055


def test_chexpert_plus_has_the_impressions(tmp_path: Path) -> None:
    folder = plus_tree(tmp_path / "plus")
    table, counts = read_chexpert_plus(folder)
    rows = by_patient(table)
    assert counts == {"images that are lateral": 1, "images kept whose report has no impression": 1}
    first = rows["chexpert00001"]
    assert first["text"] == "NO ACUTE CARDIOPULMONARY DISEASE. RIGHT PICC LINE, UNCHANGED."
    assert first["image"] == str(folder / "PNG/train/patient00001/study1/view1_frontal.png")
    assert (first["source"], first["No Finding"], first["Effusion"]) == ("CheXpert Plus", 1, 0)
    second = rows["chexpert00002"]
    assert second["text"] == "" and second["Effusion"] == 1 and second["Edema"] != second["Edema"]
    assert rows["chexpert64541"]["split"] == "test"
    table, _ = read_chexpert_plus(folder, section=("impression", "findings"), uncertain="1")
    assert by_patient(table)["chexpert00002"]["text"] == "Small left pleural effusion."
    assert by_patient(table)["chexpert00002"]["Edema"] == 1


@pytest.mark.parametrize("images", ["PNG/PNG", ".", "../PNG"])
def test_chexpert_plus_finds_its_images(tmp_path: Path, images: str) -> None:
    folder = tmp_path / "plus"
    folder.mkdir()
    plus_tree(folder, images=images, labels=False)
    table, counts = read_chexpert_plus(folder)
    assert all(Path(image).is_file() and ".." not in image for image in table["image"])
    assert counts["images without labels, as --root has no chexbert_labels/impression_fixed.json"] == 3
    assert table["No Finding"].isna().all()


def test_chexpert_plus_takes_a_folder_and_jpeg_images(tmp_path: Path) -> None:
    folder = plus_tree(tmp_path / "plus", images="elsewhere/deep")
    with pytest.raises(UserError, match="--images"):
        read_chexpert_plus(folder)
    image = folder / "elsewhere/deep/train/patient00001/study1/view1_frontal"
    image.with_suffix(".png").unlink()
    write_image(image.with_suffix(".jpg"))
    table, _ = read_chexpert_plus(folder, images=folder / "elsewhere/deep")
    assert by_patient(table)["chexpert00001"]["image"] == str(image.with_suffix(".jpg"))


def test_chexpert_plus_names_what_is_broken(tmp_path: Path) -> None:
    folder = plus_tree(tmp_path / "plus")
    with pytest.raises(UserError, match="--section 'opinion' does not exist"):
        read_chexpert_plus(folder, section=("opinion",))
    labels = folder / "chexbert_labels/impression_fixed.json"
    whole = labels.read_text()
    labels.write_text(whole[:-20])
    with pytest.raises(UserError, match=r"impression_fixed\.json, line 4 is no label record"):
        read_chexpert_plus(folder)
    labels.write_text(whole + whole.splitlines()[0] + "\n")
    with pytest.raises(UserError, match="two records of train/patient00001"):
        read_chexpert_plus(folder)
    with pytest.raises(UserError, match=r"--labels .*cannot be read"):
        read_chexpert_plus(folder, labels=folder / "none.json")
    (folder / "df_chexpert_plus_240401.csv").unlink()
    with pytest.raises(UserError, match=r"has no df_chexpert_plus_240401\.csv"):
        read_chexpert_plus(folder)


def test_both_collections_split_alike(tmp_path: Path) -> None:
    chexpert_tree(tmp_path)
    plus_tree(tmp_path / "plus")
    small, plus = read_chexpert(tmp_path, val_share=0.5)[0], read_chexpert_plus(tmp_path / "plus", val_share=0.5)[0]
    both = small.merge(plus, on="patient_id")
    assert len(both) == 3 and (both["split_x"] == both["split_y"]).all()


@pytest.mark.parametrize("inner", ["", "train/"])
def test_the_full_size_release_is_found_in_its_batches(tmp_path: Path, inner: str) -> None:
    small = chexpert_tree(tmp_path / "small")
    full = tmp_path / "chexpertchestxrays-u20210408"
    first = full / "CheXpert-v1.0 batch 1 (validate & csv)"
    first.mkdir(parents=True)
    for name in ("train.csv", "valid.csv"):
        (first / name).write_text((small / name).read_text().replace("CheXpert-v1.0-small", "CheXpert-v1.0"))
    (small / "valid").rename(first / "valid")
    for patient in sorted((small / "train").iterdir()):
        batch = 2 if patient.name < "patient00006" else 3
        target = full / f"CheXpert-v1.0 batch {batch} (train {batch - 1})" / f"{inner}{patient.name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        patient.rename(target)
    for root in (full, first):
        table, _ = read_chexpert(root)
        paths = {Path(image).relative_to(full).as_posix() for image in table["image"]}
        assert f"CheXpert-v1.0 batch 2 (train 1)/{inner}patient00001/study1/view1_frontal.jpg" in paths
        assert f"CheXpert-v1.0 batch 3 (train 2)/{inner}patient00012/study1/view1_frontal.jpg" in paths
        assert any(path.startswith("CheXpert-v1.0 batch 1 (validate & csv)/valid/patient") for path in paths)
        assert all(Path(image).is_file() for image in table["image"])
