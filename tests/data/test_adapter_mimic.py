"""MIMIC-CXR-JPG: from a tree in the real layout to a manifest, and what a broken download says."""

import gzip
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from trees import mimic_dicom_id, mimic_tree, write_csv_gz

from roentgen.commands.data import check, prepare
from roentgen.data.manifest import read_manifest
from roentgen.data.sources.mimic import read_mimic
from roentgen.errors import UserError

FRONTAL = {
    (50414267, 0): "PA",
    (53189527, 0): "AP",
    (57375967, 0): "PA",  # ViewPosition is blank, the view code is not
    (50000001, 0): "AP",
    (50000002, 0): "PA",
    (50000003, 1): "AP",
    (50000004, 0): "PA",
    (50000005, 0): "PA",
    (58621812, 0): "AP",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return mimic_tree(tmp_path)


def by_study(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(study=[int(Path(image).parent.name[1:]) for image in table["image"]]).set_index("study")


def test_frontal_images_with_impressions(root: Path) -> None:
    table, counts = read_mimic(root)
    assert {Path(image).stem: view for image, view in zip(table["image"], table["view"], strict=True)} == {
        mimic_dicom_id(study, number): view for (study, number), view in FRONTAL.items()
    }
    assert all(Path(image).is_file() for image in table["image"])
    assert counts["images of unknown view"] == 1
    assert counts["images of views other than PA and AP"] == 3  # LATERAL, LL and AP AXIAL
    frame = by_study(table)
    assert frame.at[50414267, "text"].startswith("No acute cardiopulmonary process.")
    assert "___" not in "".join(frame["text"])
    assert frame.at[57375967, "text"] == ""
    assert frame.at[50414267, "patient_id"] == "p10000032"
    assert set(frame["source"]) == {"MIMIC-CXR-JPG"} and "PhysioNet" in frame["licence"].iloc[0]


def test_findings_are_the_next_choice_of_section(root: Path) -> None:
    frame = by_study(read_mimic(root, section=("impression", "findings"))[0])
    assert frame.at[57375967, "text"].startswith("The lungs of study 57375967.")
    assert frame.at[53189527, "text"] == "Small left pleural effusion."


def test_labels_and_uncertain_ones(root: Path) -> None:
    frame = by_study(read_mimic(root)[0])
    assert frame.at[53189527, "Effusion"] == 1 and frame.at[53189527, "No Finding"] == 0
    assert frame.at[50414267, "No Finding"] == 1 and frame.at[50414267, "Pneumonia"] == 0
    assert frame.at[50000001, "No Finding"] == 0  # a fracture is a finding, though not of the vocabulary
    assert frame.at[50000002, "Edema"] == 0 and np.isnan(frame.at[50000002, "Pneumonia"])
    assert np.isnan(frame.at[57375967, "Pneumonia"])
    for choice, value in (("0", 0.0), ("1", 1.0)):
        assert by_study(read_mimic(root, uncertain=choice)[0]).at[57375967, "Pneumonia"] == value
    assert by_study(read_mimic(root, labels="none")[0])["Effusion"].isna().all()


def test_both_splits(root: Path) -> None:
    ours = by_study(read_mimic(root, val_share=0.0)[0])
    held_out = [patient.startswith("p19") for patient in ours["patient_id"]]
    assert (ours["split"] == "test").tolist() == held_out and sum(held_out) == 2
    assert set(ours["split"]) == {"train", "test"}
    half = by_study(read_mimic(root, val_share=0.5)[0])
    assert (half["split"] == "val").any() and (half["split"] == "test").tolist() == held_out
    official = by_study(read_mimic(root, split="official")[0])
    assert official.at[57375967, "split"] == "val" and official.at[50000002, "split"] == "test"
    assert official.at[58621812, "split"] == "train"


def test_sex_and_age_from_mimic_iv(root: Path) -> None:
    table, counts = read_mimic(root, patients=root.parent / "patients.csv.gz")
    frame = by_study(table)
    assert frame.at[50414267, "age"] == 54 and frame.at[50414267, "sex"] == "M"  # 52 in 2178, the study in 2180
    assert np.isnan(frame.at[50000003, "age"]) and frame.at[50000003, "sex"] == ""
    assert counts["images kept without sex and age, as --patients lacks the patient"] == 1


@pytest.mark.parametrize("where", ["given", "beside the images", "zip below the root"])
def test_reports_are_found_in_the_usual_places(tmp_path: Path, where: str) -> None:
    root = mimic_tree(tmp_path, zipped=where.startswith("zip"), version="2.1.0")
    expected = by_study(read_mimic(mimic_tree(tmp_path / "other"))[0])["text"]
    reports = None
    if where == "given":
        reports = tmp_path / "reports"
    elif where == "beside the images":
        for path in (tmp_path / "reports").rglob("*.txt"):
            path.rename(root / path.relative_to(tmp_path / "reports"))
    else:
        (tmp_path / "mimic-cxr-reports.zip").rename(root / "mimic-cxr-reports.zip")
    assert by_study(read_mimic(root, reports=reports)[0])["text"].equals(expected)


def test_from_tree_to_manifest_to_check(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The README's command."""
    out = tmp_path / "out" / "manifest.csv"
    assert prepare("mimic-cxr-jpg", root=str(root), out=str(out), val_share=0.3) == 0
    err = capsys.readouterr().err
    assert "3 images of views other than PA and AP" in err
    assert "1 of 9 image(s) left out: no text in --section impression" in err
    frame = read_manifest(out)
    assert len(frame) == 8 and (frame["text"] != "").all()
    assert check(str(out), out=str(tmp_path / "page.html")) == 0


def test_without_reports_texts_are_composed(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "mimic-cxr-reports.zip").unlink()
    out = str(tmp_path / "m.csv")
    with pytest.raises(UserError, match=r"--reports is missing.*--reports none"):
        prepare("mimic-cxr-jpg", root=str(root), out=out)
    prepare("mimic-cxr-jpg", root=str(root), out=out, reports="none")
    frame = by_study(read_manifest(Path(out)))
    # Study 57375967 has nothing but an uncertain label, from which no text can be composed.
    assert len(frame) == 8 and (frame["text"] != "").all() and 57375967 not in frame.index
    assert "1 of 9 image(s) left out: neither text nor findings" in capsys.readouterr().err


def test_limit_keeps_the_same_patients(root: Path) -> None:
    two = set(read_mimic(root, limit=2)[0]["patient_id"])
    three = set(read_mimic(root, limit=3)[0]["patient_id"])
    assert len(two) == 2 and len(three) == 3 and two < three
    assert set(read_mimic(root, limit=2, seed=1)[0]["patient_id"]) != two


def test_missing_images_stop_or_are_dropped(root: Path) -> None:
    gone = root / f"files/p12/p12000002/s50000002/{mimic_dicom_id(50000002, 0)}.jpg"
    gone.unlink()
    with pytest.raises(UserError, match=rf"1 of 9 images .*{gone.name}.*--missing drop"):
        read_mimic(root)
    table, counts = read_mimic(root, missing="drop")
    assert len(table) == 8 and counts["images missing on disk"] == 1
    (root / "files").rename(root / "elsewhere")
    with pytest.raises(UserError, match="9 of 9 images"):
        read_mimic(root, missing="drop")


def test_most_reports_without_the_section(root: Path, tmp_path: Path) -> None:
    """The issue's bad input: a manifest where most texts would be empty."""
    out = str(tmp_path / "m.csv")
    with pytest.raises(UserError, match=r"--section wet read: all 9 texts are blank"):
        prepare("mimic-cxr-jpg", root=str(root), out=out, section="wet read")
    with zipfile.ZipFile(tmp_path / "mimic-cxr-reports.zip") as archive:
        reports = {name: archive.read(name).decode() for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "mimic-cxr-reports.zip", "w") as archive:
        for index, (name, report) in enumerate(reports.items()):
            archive.writestr(name, report if index < 2 else report.partition("IMPRESSION")[0])
    with pytest.raises(UserError, match=r"--section impression: most texts are blank \(7 of 9") as caught:
        prepare("mimic-cxr-jpg", root=str(root), out=out)
    assert "--blank-text drop" in str(caught.value) and not Path(out).exists()
    prepare("mimic-cxr-jpg", root=str(root), out=out, blank_text="drop")
    assert len(read_manifest(Path(out))) == 2
    prepare("mimic-cxr-jpg", root=str(root), out=out, blank_text="compose", uncertain="1", overwrite=True)
    assert len(read_manifest(Path(out))) == 9


def test_reports_that_are_missing_are_counted(tmp_path: Path) -> None:
    root = mimic_tree(tmp_path, zipped=False)
    (tmp_path / "reports/files/p12/p12000002/s50000002.txt").unlink()
    table, counts = read_mimic(root, reports=tmp_path / "reports")
    assert by_study(table).at[50000002, "text"] == "" and counts["studies without a report file"] == 1
    for path in (tmp_path / "reports").rglob("s*.txt"):
        path.rename(path.with_name("s9" + path.name[2:]))
    with pytest.raises(UserError, match="none of the 9 reports"):
        read_mimic(root, reports=tmp_path / "reports")


def truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def members_say(path: Path, offset: int, value: int) -> None:
    """Set flags (6; 1: encrypted) or method (8) of every member, in its own header and in the list at the end."""
    content = bytearray(path.read_bytes())
    for mark, shift in ((b"PK\x03\x04", 0), (b"PK\x01\x02", 2)):
        at = content.find(mark)
        while at >= 0:
            content[at + offset + shift] = value
            at = content.find(mark, at + 4)
    path.write_bytes(content)


def flip_inside(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        places = [
            (info.header_offset + 30 + len(info.filename), info.compress_size)
            for info in archive.infolist()
            if info.filename.endswith(".txt")
        ]
    content = bytearray(path.read_bytes())
    for start, size in places:
        for at in range(start, start + size):
            content[at] ^= 0xFF
    path.write_bytes(content)


def twice(path: Path, folder: str) -> None:
    with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        name = next(name for name in archive.namelist() if name.endswith(".txt"))
        archive.writestr(folder + name, "IMPRESSION: Another one.")


BROKEN = [
    ("mimic-cxr-2.0.0-metadata.csv.gz", Path.unlink, r"no mimic-cxr-2\.0\.0-metadata\.csv"),
    ("mimic-cxr-2.0.0-metadata.csv.gz", truncate, r"metadata\.csv\.gz cannot be read"),
    ("mimic-cxr-2.0.0-split.csv.gz", Path.unlink, r"no mimic-cxr-2\.0\.0-split\.csv"),
    ("mimic-cxr-2.0.0-chexpert.csv.gz", truncate, r"chexpert\.csv\.gz cannot be read"),
    (
        "mimic-cxr-2.0.0-chexpert.csv.gz",
        lambda p: p.write_bytes(gzip.compress(b"a,b\n1,2\n")),
        "lacks the column 'study",
    ),
    ("mimic-cxr-2.0.0-metadata.csv.gz", lambda p: p.write_bytes(b"not gzip"), "cannot be read"),
    ("../mimic-cxr-reports.zip", truncate, r"mimic-cxr-reports\.zip is broken"),
    ("../mimic-cxr-reports.zip", lambda p: members_say(p, 6, 1), r"mimic-cxr-reports\.zip: .* is damaged.*encrypted"),
    ("../mimic-cxr-reports.zip", lambda p: members_say(p, 8, 99), r"mimic-cxr-reports\.zip: .* is damaged"),
    ("../mimic-cxr-reports.zip", flip_inside, r"mimic-cxr-reports\.zip: .* is damaged"),
    ("../mimic-cxr-reports.zip", lambda p: twice(p, "copy/"), r"mimic-cxr-reports\.zip has two reports named s"),
    ("../mimic-cxr-reports.zip", lambda p: twice(p, ""), r"mimic-cxr-reports\.zip has two reports named s"),
]


@pytest.mark.parametrize(("name", "harm", "message"), BROKEN)
def test_broken_downloads_are_one_sentence(root: Path, name: str, harm, message: str) -> None:
    harm(root / name)
    with pytest.raises(UserError, match=message) as caught:
        read_mimic(root, split="official")
    assert "\n" not in str(caught.value) and Path(name).name.split(".csv")[0] in str(caught.value)


def test_unknown_split_and_label(root: Path) -> None:
    path = root / "mimic-cxr-2.0.0-split.csv.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()).replace(b"validate", b"dev")))
    with pytest.raises(UserError, match="the split 'dev'"):
        read_mimic(root, split="official")
    write_csv_gz(path, ("dicom_id", "split"), [(mimic_dicom_id(50414267, 0), "train")])
    with pytest.raises(UserError, match="lacks 8 image"):
        read_mimic(root, split="official")
    labels = root / "mimic-cxr-2.0.0-chexpert.csv.gz"
    labels.write_bytes(gzip.compress(gzip.decompress(labels.read_bytes()).replace(b"-1.0", b"maybe")))
    with pytest.raises(UserError, match=r"chexpert\.csv\.gz, column 'Pneumonia', row 3: a label is 'maybe'"):
        read_mimic(root)
    with pytest.raises(UserError, match="--labels 'chexbert'"):
        read_mimic(root, labels="chexbert")


def test_labels_of_a_plain_csv_and_its_order_do_not_matter(root: Path) -> None:
    before = read_mimic(root)[0]
    for path in root.glob("*.csv.gz"):
        header, *rows = gzip.decompress(path.read_bytes()).decode().splitlines()
        path.unlink()
        path.with_suffix("").write_text("\n".join([header, *reversed(rows)]) + "\n")
    after = read_mimic(root)[0].iloc[::-1].reset_index(drop=True)
    pd.testing.assert_frame_equal(after, before)
