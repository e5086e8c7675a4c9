"""XREPORT's CSV of ids and texts beside a folder of images."""

from pathlib import Path

import pytest
from trees import write_film, xreport_tree

from roentgen.commands.data import check, prepare
from roentgen.data.manifest import read_manifest
from roentgen.data.sources.xreport import read_xreport
from roentgen.errors import UserError


@pytest.mark.parametrize(("separator", "column"), [(";", "id"), (",", "id"), (";", "image")])
def test_every_dialect_gives_the_same_manifest(tmp_path: Path, separator: str, column: str) -> None:
    root = xreport_tree(tmp_path, separator=separator, column=column)
    out = tmp_path / "m.csv"
    prepare("xreport", root=str(root), csv=str(root / "XREPORT_dataset.csv"), out=str(out), source_name="ward")
    frame = read_manifest(out)
    assert len(frame) == 8 and set(frame["source"]) == {"ward"}
    assert Path(frame["image"][3]).name == "00000003-2a3c.jpg"
    assert frame["text"][3] == "Film 3: the lungs are clear, no effusion. Unchanged."
    assert check(str(out)) == 0


def test_ids_with_an_ending_and_images_in_subfolders(tmp_path: Path) -> None:
    write_film(tmp_path / "images" / "part" / "1.2.840.7.png")
    write_film(tmp_path / "images" / "b.png")
    csv = tmp_path / "x.csv"
    csv.write_text("id,text\n1.2.840.7,clear\nb.png,nodule\n")
    table, _ = read_xreport(tmp_path / "images", csv)
    assert [Path(image).name for image in table["image"]] == ["1.2.840.7.png", "b.png"]
    write_film(tmp_path / "images" / "part" / "b.png")
    with pytest.raises(UserError, match=r"'b\.png' is there twice"):
        read_xreport(tmp_path / "images", csv)


BAD = [
    ("id;label\n1;x\n", r"lacks the column 'text' \(it has id;label\); it needs the columns id and text"),
    ("key;text\n1;x\n", "lacks the column 'id'; it needs the columns id and text"),
    ("id;text\n", "has no rows"),
    ("", "it is empty; it needs the columns id and text"),
    ("id;text\n00000001-2a3c;clear\n00000001-2a3c;nodule\n", "the id '00000001-2a3c' twice"),
    ("id;text\n;clear\n", "row 1: the id is empty"),
    ("id;text\n00000001-2a3c;clear\nnone;nodule\n", "1 of 2 images .*none.*--missing drop"),
]


@pytest.mark.parametrize(("content", "message"), BAD)
def test_bad_tables_are_one_sentence(tmp_path: Path, content: str, message: str) -> None:
    root = xreport_tree(tmp_path)
    (root / "XREPORT_dataset.csv").write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        read_xreport(root, root / "XREPORT_dataset.csv")
    assert "\n" not in str(caught.value)


def test_blank_texts_stop(tmp_path: Path) -> None:
    root = xreport_tree(tmp_path)
    csv = root / "XREPORT_dataset.csv"
    csv.write_text(csv.read_text() + "none;gone\n")
    assert len(read_xreport(root, csv, missing="drop")[0]) == 8
    csv.write_text("id;text\n00000001-2a3c;clear\n00000002-2a3c;___\n")
    flags = {"root": str(root), "csv": str(csv), "out": str(tmp_path / "m.csv")}
    with pytest.raises(UserError, match=r"--csv .*: 1 of 2 text\(s\) are blank"):
        prepare("xreport", **flags)
    prepare("xreport", **flags, blank_text="drop")
    assert len(read_manifest(tmp_path / "m.csv")) == 1
