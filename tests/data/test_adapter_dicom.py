"""The adapter of a folder of DICOM files with a CSV of reports, on a hospital's export made by the tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from trees_b import by_image, dicom_tree, write_csv, write_dicom

from roentgen.data.manifest import read_manifest, write_manifest
from roentgen.data.sources.dicom_folder import read_dicom_folder
from roentgen.errors import UserError
from roentgen.images import read_image

COLUMNS = {"key_column": "accession", "text_column": "text"}


def test_export_becomes_a_valid_manifest(tmp_path: Path) -> None:
    root, reports = dicom_tree(tmp_path)
    table, counts = read_dicom_folder(root, csv=reports, source_name="St. Elsewhere", licence="internal", **COLUMNS)
    assert counts == {
        "files that are not DICOM": 2,
        "DICOM files without an image": 1,
        "images of a modality other than CR and DX": 1,
        "images of another body part": 1,
        "raw images (FOR PROCESSING)": 1,
        "images of views other than PA and AP": 1,
        "images that are mirrored by their PatientOrientation": 1,
        "images of unknown view": 1,
        "second copies of an image": 1,
        "images without a report": 1,
        "reports without a frontal image": 1,
        "images kept whose report has no impression": 1,
    }
    rows = by_image(table)
    assert list(rows) == ["001.dcm", "003.dcm", "004.dcm", "IM0002"]
    first = rows["001.dcm"]
    assert (first["text"], first["patient_id"], first["view"]) == ("No acute process.", "P-001", "PA")
    assert (first["sex"], first["age"], first["source"], first["licence"]) == ("F", 45, "St. Elsewhere", "internal")
    assert first["Pleural_Thickening"] == 0 and first["Effusion"] != first["Effusion"]  # -1 is blank
    assert read_image(first["image"]).shape == (4, 4)
    assert (rows["IM0002"]["view"], rows["IM0002"]["sex"], rows["IM0002"]["text"]) == ("AP", "M", "")
    assert rows["IM0002"]["Effusion"] == 1
    assert (rows["003.dcm"]["view"], rows["003.dcm"]["age"], rows["003.dcm"]["sex"]) == ("", 1, "")  # 18 months
    assert rows["004.dcm"]["age"] == 69  # the day before the birthday
    table = table[table["text"] != ""]
    read_manifest(write_manifest(table, tmp_path / "manifest.csv"))


def test_sections_splits_and_uncertain(tmp_path: Path) -> None:
    root, reports = dicom_tree(tmp_path)
    table, counts = read_dicom_folder(
        root, csv=reports, section=("impression", "findings"), split_column="set", uncertain="1", **COLUMNS
    )
    rows = by_image(table)
    assert rows["IM0002"]["text"] == "Left effusion." and rows["001.dcm"]["Effusion"] == 1
    assert [row["split"] for row in rows.values()] == ["train", "val", "test", "train"]
    assert "images kept whose report has no impression or findings" not in counts
    table, _ = read_dicom_folder(root, csv=reports, section=("report",), **COLUMNS)
    assert by_image(table)["001.dcm"]["text"].startswith("INDICATION: Cough. FINDINGS: Clear.")


@pytest.mark.parametrize("join", ["StudyInstanceUID", "SOPInstanceUID", "PatientID", "path"])
def test_other_joins(tmp_path: Path, join: str) -> None:
    import pydicom

    write_dicom(tmp_path / "export/a/001.dcm")
    write_dicom(tmp_path / "export/b/002.dcm")
    data = pydicom.dcmread(tmp_path / "export/b/002.dcm")
    key = "b\\002.dcm" if join == "path" else str(data[join].value)  # as Windows writes paths
    write_csv(tmp_path / "reports.csv.gz", f"{join},report", [{join: key, "report": "IMPRESSION: Normal chest."}])
    table, counts = read_dicom_folder(tmp_path / "export", csv=tmp_path / "reports.csv.gz", join=join)  # type: ignore[arg-type]
    assert list(by_image(table)) == ["002.dcm"] and counts["images without a report"] == 1
    assert table["text"].tolist() == ["Normal chest."]


def test_pseudonyms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, reports = dicom_tree(tmp_path)
    plain, _ = read_dicom_folder(root, csv=reports, val_share=0.4, test_share=0.3, **COLUMNS)
    salted = [
        read_dicom_folder(root, csv=reports, pseudonymise=True, salt=salt, val_share=0.4, test_share=0.3, **COLUMNS)[0]
        for salt in ("correct horse", "correct horse", "another horse", None, None)
    ]
    assert "file names, the DICOM files' own headers and the report texts are as they were" in capsys.readouterr().err
    ids = [table["patient_id"].tolist() for table in salted]
    assert ids[0] == ids[1] and len({tuple(names) for names in ids}) == 4
    for table in salted:
        assert table["patient_id"].nunique() == 4 and not table["patient_id"].str.contains("P-").any()
        assert (table["split"] == plain["split"]).all()
    with pytest.raises(UserError, match="--salt has 5 characters"):
        read_dicom_folder(root, csv=reports, pseudonymise=True, salt="short", **COLUMNS)
    with pytest.raises(UserError, match="--salt has no use"):
        read_dicom_folder(root, csv=reports, salt="correct horse", **COLUMNS)


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    root, reports = dicom_tree(tmp_path)
    (root / "2020").rename(tmp_path / "archive")
    (root / "linked").symlink_to(tmp_path / "archive")
    (tmp_path / "archive/back").symlink_to(root)
    table, counts = read_dicom_folder(root, csv=reports, **COLUMNS)
    assert len(table) == 4 and counts["second copies of an image"] == 1


def test_damaged_header_is_counted(tmp_path: Path) -> None:
    root, reports = dicom_tree(tmp_path)
    whole = (root / "2020/06/004.dcm").read_bytes()
    (root / "2020/06/004.dcm").write_bytes(whole[:200])
    table, counts = read_dicom_folder(root, csv=reports, **COLUMNS)
    assert "004.dcm" not in by_image(table)
    assert counts["unreadable DICOM files"] + counts["DICOM files without an image"] == 2


def test_blank_patient_falls_back_to_the_study(tmp_path: Path) -> None:
    write_dicom(tmp_path / "export/001.dcm", PatientID=None, StudyInstanceUID="1.2.3")
    write_csv(
        tmp_path / "r.csv", "AccessionNumber,report", [{"AccessionNumber": "A001", "report": "IMPRESSION: Normal."}]
    )
    table, counts = read_dicom_folder(tmp_path / "export", csv=tmp_path / "r.csv")
    assert table["patient_id"].tolist() == ["1.2.3"]
    assert counts["images without PatientID, whose study counts as a patient"] == 1


def test_bad_input_is_named(tmp_path: Path) -> None:
    root, reports = dicom_tree(tmp_path)
    for settings, message in (
        ({"csv": tmp_path / "none.csv", **COLUMNS}, "--csv .*does not exist"),
        (
            {"csv": reports, "text_column": "text"},
            r"--key-column: .* has no column 'AccessionNumber'; it has accession",
        ),
        ({"csv": reports, "key_column": "accession"}, "--text-column: .* has no column 'report'"),
        ({"csv": reports, **COLUMNS, "split_column": "fold"}, "--split-column: .* has no column 'fold'"),
        ({"csv": reports, **COLUMNS, "split_column": "text"}, "--split-column: .* has the split 'indication"),
        ({"csv": reports, **COLUMNS, "section": ()}, "--section is empty"),
        (
            {"csv": reports, **COLUMNS, "join": "PatientID"},
            "no image has a report: the first image's PatientID is 'P-noreport'",
        ),
        ({"csv": reports, **COLUMNS, "test_share": 1.0}, "--test-share"),
    ):
        with pytest.raises(UserError, match=message):
            read_dicom_folder(root, **settings)
    with pytest.raises(UserError, match=r"--root .* is not a folder"):
        read_dicom_folder(tmp_path / "none", csv=reports, **COLUMNS)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.txt").write_text("hello")
    with pytest.raises(UserError, match=r"no frontal chest radiograph in DICOM \(1 files that are not DICOM\)"):
        read_dicom_folder(tmp_path / "texts", csv=reports, **COLUMNS)
    reports.write_text(reports.read_text() + "A001,IMPRESSION: Another.,train,,\n")
    with pytest.raises(UserError, match="different rows for accession 'A001'"):
        read_dicom_folder(root, csv=reports, **COLUMNS)


def test_of_two_copies_the_one_with_a_report_stays(tmp_path: Path) -> None:
    write_dicom(tmp_path / "export/a/001.dcm")
    (tmp_path / "export/b").mkdir()
    (tmp_path / "export/b/001.dcm").write_bytes((tmp_path / "export/a/001.dcm").read_bytes())
    write_csv(tmp_path / "r.csv", "path,report", [{"path": "b/001.dcm", "report": "IMPRESSION: Normal."}])
    table, counts = read_dicom_folder(tmp_path / "export", csv=tmp_path / "r.csv", join="path")
    assert table["image"].tolist() == [str(tmp_path / "export/b/001.dcm")] and counts["images without a report"] == 1
