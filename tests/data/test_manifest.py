"""The manifest: what is read, and which sentence a bad one gives."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from roentgen.data.manifest import finding_columns, read_manifest, write_manifest
from roentgen.errors import UserError


def table(**columns: list) -> pd.DataFrame:
    """Three good rows, with columns replaced or added."""
    good = {
        "image": ["images/a.png", "images/b.png", "images/c.png"],
        "text": ["clear lungs", "left pleural effusion", "nodule"],
        "patient_id": ["1", "2", "3"],
        "split": ["train", "train", "test"],
        "view": ["PA", "AP", ""],
        "sex": ["M", "", "F"],
        "age": ["54", "", "7.5"],
        "source": ["here"] * 3,
        "licence": ["CC0"] * 3,
        "No Finding": ["1", "0", ""],
        "Effusion": ["0", "1", ""],
        "Effusion_side": ["", "left", ""],
    }
    return pd.DataFrame(good | columns)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for name in "abc":
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "images" / f"{name}.png")
    return tmp_path


def written(folder: Path, name: str = "m.csv", **columns: list) -> Path:
    path = folder / name
    table(**columns).to_csv(path, index=False)
    return path


@pytest.mark.parametrize("name", ["m.csv", "m.parquet"])
def test_round_trip_keeps_values_and_types(folder: Path, name: str) -> None:
    path = folder / name
    write_manifest(read_manifest(written(folder)), path)
    frame = read_manifest(path)
    assert frame["image"].tolist() == [str(folder / "images" / f"{x}.png") for x in "abc"]
    assert frame["Effusion"].tolist()[:2] == [0.0, 1.0]
    assert np.isnan(frame["Effusion"][2]) and np.isnan(frame["age"][1])
    assert frame["age"].tolist()[::2] == [54.0, 7.5]
    assert frame["view"].tolist() == ["PA", "AP", ""]
    assert frame["Effusion_side"].tolist() == ["", "left", ""]
    assert frame["patient_id"].tolist() == ["1", "2", "3"]
    assert finding_columns(frame) == ["No Finding", "Effusion"]


def test_written_manifest_can_be_moved_with_its_images(folder: Path) -> None:
    path = write_manifest(read_manifest(written(folder)), folder / "out.csv")
    assert path.read_text().splitlines()[1].startswith("images/a.png,clear lungs,1,train,PA,M,54,")
    outside = write_manifest(read_manifest(path), folder / "sub" / "m.csv")
    assert read_manifest(outside)["image"][0] == str(folder / "images" / "a.png")


def test_write_is_atomic_and_says_why_it_fails(folder: Path) -> None:
    path = written(folder)
    frame = read_manifest(path)
    (folder / "file").write_text("")
    with pytest.raises(UserError, match=r"file/m\.csv: cannot be written"):
        write_manifest(frame, folder / "file" / "m.csv")
    write_manifest(frame, path)
    assert not list(folder.glob(".*tmp"))


def test_optional_columns_may_be_left_out(folder: Path) -> None:
    path = folder / "m.csv"
    table()[["image", "text", "patient_id", "split"]].to_csv(path, index=False)
    frame = read_manifest(path)
    assert frame["view"].tolist() == ["", "", ""] and frame["age"].isna().all()


def test_splits_select_rows(folder: Path) -> None:
    path = written(folder)
    assert read_manifest(path, splits=["test"])["text"].tolist() == ["nodule"]
    with pytest.raises(UserError, match="no row in split val"):
        read_manifest(path, splits=["val"])
    with pytest.raises(UserError, match="'dev' does not exist"):
        read_manifest(path, splits=["dev"])


@pytest.mark.parametrize("column", ["image", "text", "patient_id", "split"])
def test_missing_column_is_named(folder: Path, column: str) -> None:
    path = folder / "m.csv"
    table().drop(columns=column).to_csv(path, index=False)
    with pytest.raises(UserError, match=f"lacks the column '{column}'"):
        read_manifest(path)


BAD = [
    ({"patient_id": ["1", "3", "3"]}, "row 3: patient '3' is in splits train and test"),
    ({"patient_id": ["1", "", "3"]}, "row 2: the patient_id column is empty"),
    ({"image": ["", "images/b.png", "images/c.png"]}, "row 1: the image column is empty"),
    ({"split": ["train", "dev", "test"]}, "row 2: split is 'dev'"),
    ({"view": ["PA", "LATERAL", ""]}, "row 2: view is 'LATERAL'"),
    ({"sex": ["M", "X", ""]}, "row 2: sex is 'X'"),
    ({"age": ["54", "411", ""]}, "row 2: age is '411'"),
    ({"age": ["54", "old", ""]}, "row 2: age is 'old'"),
    ({"Effusion": ["0", "1", "-1"]}, "row 3: Effusion is '-1'"),
    ({"Effusion": ["yes", "1", ""]}, "row 1: Effusion is 'yes'"),
    ({"Effusion_side": ["", "L", ""]}, "row 2: Effusion_side is 'L'"),
    ({"Effusion_side": ["right", "left", ""]}, "row 1: Effusion_side is 'right'; Effusion is not 1"),
    ({"text": ["clear lungs", "  ", "nodule"]}, "row 2: the text is empty"),
    ({"Efusion": ["", "", ""]}, "unknown column 'Efusion'; rename it to 'Effusion'"),
    ({"Pleural Thickening": ["", "", ""]}, "rename it to 'Pleural_Thickening'"),
]


@pytest.mark.parametrize(("columns", "message"), BAD)
def test_bad_cell_is_named(folder: Path, columns: dict, message: str) -> None:
    path = written(folder, **columns)
    with pytest.raises(UserError) as caught:
        read_manifest(path)
    assert message in str(caught.value) and "m.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_splits_are_validated_and_others_counted(folder: Path) -> None:
    path = written(folder, view=["PA", "X", "Y"])
    with pytest.raises(UserError, match=r"row 2: .*and 1 more"):
        read_manifest(path, splits=["test"])


def test_empty_text_can_be_allowed(folder: Path) -> None:
    path = written(folder, text=["", "b", "c"])
    assert read_manifest(path, allow_empty_text=True)["text"][0] == ""


def test_missing_images_are_counted(folder: Path) -> None:
    path = written(folder, image=["images/a.png", "images/x.png", "images/y.png"])
    with pytest.raises(UserError, match=r"2 image file\(s\) that do not exist, the first is .*x\.png"):
        read_manifest(path)
    assert len(read_manifest(path, check_files=False)) == 3


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.csv", None, "does not exist"),
        ("empty.csv", b"", "is empty"),
        ("header.csv", b"image,text,patient_id,split\n", "has no rows"),
        ("ragged.csv", b"image,text,patient_id,split\na,b,c,train\na,b,c,train,too,many\n", "cannot be read"),
        ("binary.csv", b"\xff\xfe\x00\x81" * 9, "cannot be read"),
        ("not.parquet", b"image,text", "cannot be read as parquet"),
        ("m.txt", b"", "must be a .csv or .parquet"),
    ],
)
def test_unreadable_file_is_one_sentence(folder: Path, name: str, content: bytes | None, message: str) -> None:
    path = folder / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_manifest(path)
    assert message in str(caught.value) and name in str(caught.value) and "\n" not in str(caught.value)


def test_short_row_and_byte_order_mark(folder: Path) -> None:
    (folder / "m.csv").write_bytes(b"\xef\xbb\xbfimage,text,patient_id,split,view\nimages/a.png,clear,1,train\n")
    assert read_manifest(folder / "m.csv")["view"].tolist() == [""]


def test_parquet_whose_notes_of_pandas_are_damaged(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    from roentgen.data.manifest import load_table

    table = pa.table({"image": ["a.png"], "text": ["left"]})
    notes = b'{"columns": [{"name": "image"}], "index_columns": ["image"]}'
    parquet.write_table(table.replace_schema_metadata({b"pandas": notes}), tmp_path / "manifest.parquet")
    with pytest.raises(UserError, match="cannot be read as parquet"):
        load_table(tmp_path / "manifest.parquet")
