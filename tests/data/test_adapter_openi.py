"""Open-i: the real reports (as torchxrayvision carries them) on small trees of images."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from trees import openi_tree

from roentgen.commands.data import check, prepare
from roentgen.data.manifest import read_manifest
from roentgen.data.sources.openi import REPORTS_ARCHIVE, carried_file, image_key, mesh_labels, openi_reports, read_openi
from roentgen.errors import UserError


@pytest.fixture(scope="module")
def reports() -> pd.DataFrame:
    path = carried_file(REPORTS_ARCHIVE)
    assert path is not None
    return openi_reports(path)


def test_all_real_reports_are_read(reports: pd.DataFrame) -> None:
    assert len(reports) == 3955 and reports["uid"].is_unique
    assert reports["uid"].tolist()[:3] == ["1", "2", "3"] and reports["uid"].iloc[-1] == "3999"
    assert (reports["impression"] == "").sum() == 34 and (reports["findings"] == "").sum() == 530
    assert set(reports["licence"]) == {"CC BY-NC-ND 4.0"}
    first = reports.iloc[0]
    assert first["impression"] == "Normal chest x-XXXX." and first["comparison"] == "None."
    assert first["images"] == ["CXR1_1_IM-0001-3001", "CXR1_1_IM-0001-4001"]


def test_every_real_image_has_its_own_key(reports: pd.DataFrame) -> None:
    images = [image for images in reports["images"] for image in images]
    assert len(images) == 7470 == len({image_key(image) for image in images})
    for name in ("CXR1_1_IM-0001-3001", "CXR1_1_IM-0001-3001.png", "1_IM-0001-3001.dcm", "1_IM-0001-3001.dcm.png"):
        assert image_key(name) == "1_IM-0001-3001"
    assert image_key("CXR11_IM-0067-1001.png") == "11_IM-0067-1001"


def test_labels_of_all_real_reports(reports: pd.DataFrame) -> None:
    table = pd.DataFrame(reports["labels"].tolist())
    positive = (table == 1).sum()
    assert positive["No Finding"] == 1391 and positive["Cardiomegaly"] == 375 and positive["Pneumothorax"] == 27
    assert table.isna().all(axis=1).sum() == 101  # not indexed
    normal = table["No Finding"] == 1
    assert (table[normal].drop(columns="No Finding") == 0).all(axis=None)


def test_mesh_terms() -> None:
    labels, sides = mesh_labels(["Opacity/lung/base/left", "Pleural Effusion/bilateral", "Nodule/breast"])
    assert labels["Lung Opacity"] == 1 and labels["Effusion"] == 1 and labels["No Finding"] == 0
    assert "Nodule" not in labels  # of the breast: whether the lung has one is not said
    assert labels["Edema"] == 0 and "COVID-19" not in labels
    assert sides == {"Lung Opacity": "left", "Effusion": "bilateral"}
    assert mesh_labels(["Pneumonia/right", "Pneumonia/left"])[1] == {"Pneumonia": "bilateral"}
    assert mesh_labels(["Pneumonia/right", "Pneumonia"])[1] == {}
    assert mesh_labels(["Cardiomegaly/mild/left"])[1] == {}  # a heart has no side
    assert mesh_labels(["Thickening/pleura/apex/bilateral"])[0]["Pleural_Thickening"] == 1
    assert mesh_labels(["Thickening/bronchi"])[0]["Pleural_Thickening"] == 0
    assert mesh_labels(["No Indexing"]) == ({}, {}) == mesh_labels([])


@pytest.mark.parametrize(("ending", "kind"), [(".png", "archive"), (".dcm.png", "folder")])
def test_frontal_images_are_found_under_both_names(tmp_path: Path, ending: str, kind: str) -> None:
    table, counts = read_openi(openi_tree(tmp_path, ending=ending, reports=kind))
    names = [image_key(Path(image).name) for image in table["image"]]
    # The first image of report 1 is the lateral one; so says Kaggle's copy, where people looked.
    assert "1_IM-0001-4001" in names and "1_IM-0001-3001" not in names
    assert "11_IM-0067-1001" in names and "11_IM-0067-2001" not in names
    assert counts["lateral images"] >= 8
    frame = table.assign(key=names).set_index("key")
    assert frame.at["11_IM-0067-1001", "text"] == "No acute cardiopulmonary findings."
    assert frame.at["11_IM-0067-1001", "patient_id"] == "CXR11" and frame.at["11_IM-0067-1001", "No Finding"] == 1
    assert set(frame["licence"]) == {"CC BY-NC-ND 4.0"} and frame["age"].isna().all()
    assert not frame["text"].str.contains("XXXX").any()


def test_views_of_kaggles_table(tmp_path: Path) -> None:
    root = openi_tree(tmp_path / "data", ending=".dcm.png")
    views = tmp_path / "indiana_projections.csv"
    lines = [f"{path.name.split('_')[0]},{path.name},Frontal" for path in sorted((root / "images").iterdir())]
    views.write_text("\n".join(["uid,filename,projection", lines[0].replace("Frontal", "Lateral"), *lines[1:]]))
    table, counts = read_openi(root, views=views)
    assert len(table) == len(lines) - 1 and counts["lateral images"] == 1
    views.write_text("uid,filename,projection\n1,1_IM-0001-4001.dcm.png,Sideways\n")
    with pytest.raises(UserError, match="projection 'sideways'"):
        read_openi(root, views=views)
    views.write_text("uid,filename\n1,1_IM-0001-4001.dcm.png\n")
    with pytest.raises(UserError, match="lacks the column 'projection'"):
        read_openi(root, views=views)


def test_without_tables_of_views_the_flag_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = openi_tree(tmp_path, count=3)
    monkeypatch.setattr("roentgen.data.sources.openi.carried_file", lambda name: None)
    with pytest.raises(UserError, match=r"--views is missing.*indiana_projections\.csv"):
        read_openi(root)
    (root / REPORTS_ARCHIVE).unlink()
    with pytest.raises(UserError, match="--reports is missing"):
        read_openi(root)


def test_section_is_chosen(tmp_path: Path) -> None:
    root = openi_tree(tmp_path, count=12)
    text = read_openi(root, section=("findings", "impression"))[0]["text"]
    assert text.str.startswith("Cardiomediastinal silhouette").any() and (text != "").all()
    with pytest.raises(UserError, match="--section 'history'"):
        read_openi(root, section=("history",))


def test_from_tree_to_manifest_to_check(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = openi_tree(tmp_path / "data", count=16)
    out = tmp_path / "m.parquet"
    assert prepare("openi", root=str(root), out=str(out), copy_images=True, size=80, test_share=0.3) == 0
    assert "lateral images" in capsys.readouterr().err
    frame = read_manifest(out)
    assert len(frame) > 8 and set(frame["view"]) <= {"PA", "AP", ""} and len(set(frame["split"])) > 1
    assert all(Path(image).parent == tmp_path / "images" for image in frame["image"])
    assert check(str(out)) == 0


def test_broken_trees(tmp_path: Path) -> None:
    root = openi_tree(tmp_path / "data", count=8)
    gone = sorted((root / "images").glob("CXR1_1_IM-0001-4001*"))[0]
    gone.unlink()
    with pytest.raises(UserError, match=rf"1 of \d+ images .*{gone.name}.*--missing drop"):
        read_openi(root)
    assert read_openi(root, missing="drop")[1]["images missing on disk"] == 1
    archive = root / REPORTS_ARCHIVE
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"NLMCXR_reports\.tgz is broken"):
        read_openi(root)
    (root / "notes.xml").write_text("<eCitation><uId id='42'")
    with pytest.raises(UserError, match=r"notes\.xml is not valid XML"):
        read_openi(root, reports=root)
    (root / "notes.xml").write_text("<note/>")
    with pytest.raises(UserError, match=r"notes\.xml has no uId"):
        read_openi(root, reports=root)
    (root / "notes.xml").unlink()
    with tarfile.open(archive, "w:gz") as tar:
        for kind, target in ((tarfile.SYMTYPE, "gone.xml"), (tarfile.LNKTYPE, "a.xml"), (tarfile.FIFOTYPE, "")):
            link = tarfile.TarInfo("a.xml")
            link.type, link.linkname = kind, target
            tar.addfile(link)
    with pytest.raises(UserError, match=r"has no report \(\.xml\)"):
        read_openi(root)
    with tarfile.open(archive, "w:gz") as tar:
        for name in ("1.xml", "copy/1.xml"):
            content = b'<eCitation><uId id="CXR1"/></eCitation>'
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    with pytest.raises(UserError, match=r"NLMCXR_reports\.tgz has two reports CXR1"):
        read_openi(root)
    with tarfile.open(archive, "w:gz"):
        pass
    with pytest.raises(UserError, match=r"has no report \(\.xml\)"):
        read_openi(root)
    with pytest.raises(UserError, match="has no image"):
        (tmp_path / "empty").mkdir()
        read_openi(tmp_path / "empty")


def test_real_views_give_one_frontal_image_a_report(reports: pd.DataFrame) -> None:
    from roentgen.data.sources.openi import _carried_projections

    found = _carried_projections(reports)
    frontal = [sum(found[image_key(image)][0] == "frontal" for image in images) for images in reports["images"]]
    assert np.max(frontal) == 1 and sum(frontal) > 3600
