"""``roentgen data prepare SOURCE``: a CSV of the user's own, and what all sources share."""

import inspect
import re
import typing
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from trees import xreport_tree
from trees_b import chexpert_tree, dicom_tree, film, nih_tree, padchest_tree, plus_tree

from roentgen.commands.data import OWN, Name, prepare, prepare_main
from roentgen.config.settings import dataclass_of, settings_of
from roentgen.data.check import (
    check_manifest,
    severity_of,
)
from roentgen.data.labels import CHEXPERT_14, CHEXPERT_OUTSIDE, MESH, NIH_14, PADCHEST, label_column
from roentgen.data.manifest import finding_columns, read_manifest
from roentgen.data.sources import SOURCES
from roentgen.data.sources.common import hashed_split
from roentgen.errors import UserError
from roentgen.prompts import FINDINGS

# ------------------------------------------------------------------------------------------- csv


@pytest.fixture
def users(tmp_path: Path) -> Path:
    """A folder of 40 images of 20 patients and a CSV with columns of its own."""
    (tmp_path / "films").mkdir()
    rows = []
    for index in range(40):
        Image.fromarray(film(index)).save(tmp_path / "films" / f"{index}.png")
        rows.append(
            {
                "path": f"{index}.png",
                "impression": f"Text {index}.",
                "subject": f"s{index // 2}",
                "position": "pa",
                "gender": "Female",
                "years": "045Y",
                "Pleural Effusion": "-1" if index == 0 else str(index % 2),
                "pneumothorax": "0",
            }
        )
    pd.DataFrame(rows).to_csv(tmp_path / "users.csv", index=False)
    return tmp_path


def csv_flags(users: Path, **more) -> dict:
    return {
        "root": str(users / "films"),
        "csv": str(users / "users.csv"),
        "out": str(users / "out.csv"),
        "image_column": "path",
        "text_column": "impression",
        "patient_column": "subject",
        "view_column": "position",
        "sex_column": "gender",
        "age_column": "years",
        "finding_columns": {"Pleural Effusion": "Effusion"},
        "overwrite": True,
    } | more


def test_csv_columns_are_mapped(users: Path) -> None:
    assert prepare("csv", **csv_flags(users, source_name="ward", licence="CC0", val_share=0.2, test_share=0.3)) == 0
    frame = read_manifest(users / "out.csv")
    assert frame["text"][3] == "Text 3." and set(frame["view"]) == {"PA"} and set(frame["sex"]) == {"F"}
    assert set(frame["age"]) == {45.0} and set(frame["source"]) == {"ward"}
    assert np.isnan(frame["Effusion"][0]) and frame["Effusion"][1] == 1  # -1 is unknown
    assert (frame["Pneumothorax"] == 0).all()
    assert set(frame["split"]) == {"train", "val", "test"}
    assert frame.groupby("patient_id")["split"].nunique().max() == 1


def test_other_peoples_columns_in_one_flag(users: Path) -> None:
    table = pd.read_csv(users / "users.csv", dtype=str)
    names = ["Effusion|Hiatal thing", "No Finding", "", "Pleural_Effusion;mass", "lung opacity"]
    table["finding_labels"] = [names[row % 5] for row in range(len(table))]
    table["dicom_id"] = table["path"].str.removesuffix(".png")
    table[["dicom_id", "impression", "finding_labels", "subject"]].to_csv(users / "users.csv", index=False)
    column = {"image": "dicom_id", "text": "impression", "findings": "finding_labels", "patient": "subject"}
    flags = {"root": str(users / "films"), "csv": str(users / "users.csv"), "out": str(users / "out.csv")}
    assert prepare("csv", **flags, column=column) == 0
    frame = read_manifest(users / "out.csv")
    assert frame["text"][3] == "Text 3." and Path(frame["image"][3]).name == "3.png"
    assert finding_columns(frame) == ["No Finding", "Effusion", "Mass", "Lung Opacity"]
    assert frame["Effusion"][:5].fillna(-1).tolist() == [1, 0, -1, 1, 0]
    assert frame["No Finding"][:5].fillna(-1).tolist() == [0, 1, -1, 0, 0]
    assert frame["Mass"][:5].fillna(-1).tolist() == [0, 0, -1, 1, 0]
    flags["overwrite"] = True
    for more, message in [
        ({"column": {"pixels": "dicom_id"}}, "--column: 'pixels' is none of image, text"),
        ({"column": {"image": "file"}}, "--column, image: .* has no column 'file'"),
        ({"column": {"image": "dicom_id"}, "image_column": "subject"}, "two columns for image"),
        ({"column": column | {"findings": "subject"}}, "no cell names a finding"),
    ]:
        with pytest.raises(UserError, match=message):
            prepare("csv", **flags, **more)
    Image.fromarray(film(0)).save(users / "films" / "3.jpg")
    with pytest.raises(UserError, match=r"is there twice, as .*3\.png and .*3\.jpg"):
        prepare("csv", **flags, column=column)


def test_random_split_has_the_shares_and_does_not_move() -> None:
    splits = [hashed_split(f"p{index}", 0.1, 0.2, seed=0) for index in range(4000)]
    assert abs(splits.count("val") / 4000 - 0.1) < 0.02 and abs(splits.count("test") / 4000 - 0.2) < 0.02
    assert [hashed_split(f"p{i}", 0.1, 0.2, seed=0) for i in (7, 3999)] == [splits[7], splits[3999]]
    assert splits != [hashed_split(f"p{index}", 0.1, 0.2, seed=1) for index in range(4000)]


def test_csv_without_text_composes_from_findings(users: Path) -> None:
    prepare("csv", **csv_flags(users, text_column=None, uncertain="1"))
    frame = read_manifest(users / "out.csv")
    assert frame["Effusion"][0] == 1 and (frame["text"] != "").all()


def test_csv_blank_texts_are_the_users_choice(users: Path) -> None:
    table = pd.read_csv(users / "users.csv", dtype=str)
    table.loc[5, "impression"] = ""
    table.to_csv(users / "users.csv", index=False)
    with pytest.raises(UserError, match=r"1 of 40 text\(s\) are blank, the first is of image 5\.png"):
        prepare("csv", **csv_flags(users))
    prepare("csv", **csv_flags(users, blank_text="drop"))
    assert len(read_manifest(users / "out.csv")) == 39
    prepare("csv", **csv_flags(users, blank_text="compose"))
    composed = read_manifest(users / "out.csv")
    assert composed["text"][5] != "" and composed["text"][4] == "Text 4."


def test_csv_bad_input(users: Path) -> None:
    bad = [
        ({"csv": None}, "--csv is missing"),
        ({"csv": str(users / "no.csv")}, r"no\.csv does not exist"),
        ({"root": str(users / "none")}, "--root"),
        ({"image_column": "file"}, "--image-column: .* no column 'file'"),
        ({"finding_columns": {"Pleural Effusion": "Fluid"}}, "unknown finding 'Fluid'"),
        ({"finding_columns": {"Fluid": "Effusion"}}, "no column 'Fluid'"),
        ({"finding_columns": {"gender": "Effusion"}}, "Effusion is 'Female'"),
        ({"view_column": "gender"}, "view is 'FEMALE'"),
        ({"val_share": 0.5, "test_share": 0.5}, "--val-share"),
        ({"root": str(users)}, "40 image file"),
        ({"overwrite": False}, "--overwrite"),
    ]
    (users / "out.csv").write_text("mine")
    for flags, message in bad:
        with pytest.raises(UserError, match=message):
            prepare("csv", **csv_flags(users, **flags))
    assert (users / "out.csv").read_text() == "mine"
    (users / "users.csv").write_text("")
    with pytest.raises(UserError, match="is empty"):
        prepare("csv", **csv_flags(users))


# --------------------------------------------------------------------------------------- all sources


def test_every_reader_is_a_source_and_every_parameter_a_flag_with_help() -> None:
    assert set(SOURCES) == set(typing.get_args(Name))
    assert set(OWN) == set(inspect.signature(prepare).parameters) - {"flags"}
    for name, source in SOURCES.items():
        assert "root" in inspect.signature(source.reader).parameters
        for one in settings_of(dataclass_of(source.reader, leave_out=OWN)):
            assert one.help, f"{name} {one.flag}: no line in the Args of {source.path}"


@pytest.mark.parametrize("source", SOURCES)
def test_help_of_a_source_shows_its_own_flags_only(source: str, run_cli, capsys) -> None:
    with pytest.raises(SystemExit):
        run_cli("data", "prepare", source, "--help")
    shown = set(re.findall(r"^  (?:-\w, )?--([\w-]+)", capsys.readouterr().out, flags=re.MULTILINE))
    theirs = set(inspect.signature(SOURCES[source].reader).parameters)
    assert shown == {name.replace("_", "-") for name in (set(OWN) - {"source"}) | theirs | {"config", "help"}}


def test_source_is_asked_for_and_may_stand_in_a_file(run_cli, tmp_path: Path) -> None:
    assert "did you mean chexpert?" in run_cli("data", "prepare", "chexprt", "--root", "x")[2]
    assert "--patients is not for nih" in run_cli("data", "prepare", "nih", "--patients", "x")[2]
    assert "did you mean --missing?" in run_cli("data", "prepare", "nih", "--mising", "x")[2]
    (tmp_path / "c.yaml").write_text("source: nih\nmissing: drop\nval-share: 2\n")
    assert (
        "val-share 2: must be below 1"
        in run_cli("data", "prepare", "--config", tmp_path / "c.yaml", "--root", "x", "-o", "y")[2]
    )


def chexpert(folder: Path) -> dict[str, str]:
    return {"root": str(chexpert_tree(folder))}


def chexpert_plus(folder: Path) -> dict[str, str]:
    return {"root": str(plus_tree(folder))}


def nih(folder: Path) -> dict[str, str]:
    return {"root": str(nih_tree(folder))}


def padchest(folder: Path) -> dict[str, str]:
    return {"root": str(padchest_tree(folder))}


def xreport(folder: Path) -> dict[str, str]:
    return {"root": str(xreport_tree(folder)), "csv": str(folder / "XREPORT_dataset.csv")}


def dicom(folder: Path) -> dict[str, str]:
    root, reports = dicom_tree(folder)
    return {"root": str(root), "csv": str(reports), "key_column": "accession", "text_column": "text"}


TREES = (chexpert, chexpert_plus, nih, padchest, xreport, dicom)


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: tree.__name__)
def test_from_tree_to_manifest(tree: typing.Callable, tmp_path: Path) -> None:
    """mimic-cxr-jpg and openi have a test of their own."""
    source = tree.__name__.replace("_", "-")
    out = tmp_path / "out" / "m.csv"
    assert prepare(source, **tree(tmp_path / "data"), out=str(out), copy_images=True, size=64) == 0
    frame = read_manifest(out)
    assert len(frame) >= 2 and (frame["text"] != "").all()
    assert (frame["source"] != "").all() == (source not in ("xreport", "dicom"))
    # The trees' pictures are one and the same; everything else is as it should be.
    same = {"same image in two splits", "same image twice", "image too small", "near-constant image"}
    assert not [kind for kind in check_manifest(out).problems if severity_of(kind) == "error" and kind not in same]
    assert frame["image"].is_unique
    assert all(Path(image).is_relative_to(tmp_path / "out" / "images") for image in frame["image"])


def test_flag_of_another_source_is_named(tmp_path: Path, users: Path) -> None:
    with pytest.raises(UserError, match="--patients is not for csv, only for mimic-cxr-jpg; leave it out"):
        prepare("csv", **csv_flags(users, patients="p.csv"))
    with pytest.raises(UserError, match="--source-name is not for nih, only for csv, dicom, xreport"):
        prepare("nih", root=str(tmp_path), out=str(tmp_path / "m.csv"), source_name="NIH")
    with pytest.raises(UserError, match="--val-share is not for openchest"):
        prepare("openchest", root=str(tmp_path), out=str(tmp_path / "m.csv"), val_share=0.0)
    with pytest.raises(UserError, match="--blank-text is not for openchest"):
        prepare("openchest", root=str(tmp_path), out=str(tmp_path / "m.csv"), blank_text="drop")
    with pytest.raises(UserError, match="--csv is missing; dicom needs it"):
        prepare("dicom", root=str(tmp_path), out=str(tmp_path / "m.csv"))
    with pytest.raises(UserError, match="--section is blank"):
        prepare("openi", root=str(tmp_path), out=str(tmp_path / "m.csv"), section=" ,")


@pytest.mark.parametrize(
    "source, shares", [("nih", {"val_share": 1.0}), ("padchest", {"val_share": 0.6, "test_share": 0.5})]
)
def test_shares_that_leave_nothing_are_refused_before_a_table_is_read(
    source: str, shares: dict[str, float], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="--val-share"):  # and not that the folder lacks the collection's tables
        prepare(source, root=str(tmp_path), out=str(tmp_path / "out"), **shares)


def test_limit_keeps_whole_patients_and_is_nested(users: Path) -> None:
    def patients(limit: int, **more) -> pd.Series:
        prepare("csv", **csv_flags(users, limit=limit, **more))
        return read_manifest(users / "out.csv")["patient_id"]

    three, nine = patients(3), patients(9)
    assert three.nunique() == 3 and len(three) == 6 and nine.nunique() == 9
    assert set(three) < set(nine) and set(patients(3, seed=1)) != set(three)
    with pytest.raises(UserError, match="--limit 0"):
        prepare_main(["csv", "--root", str(users), "--csv", "a.csv", "--out", "b", "--limit", "0"], "prepare")


def test_most_texts_blank_is_said_with_the_count(users: Path) -> None:
    """The issue's bad input, in the user's own CSV and in a finished manifest."""
    table = pd.read_csv(users / "users.csv", dtype=str)
    table.loc[5:, "impression"] = ""
    table.to_csv(users / "users.csv", index=False)
    with pytest.raises(UserError, match=r"--text-column: 35 of 40 text\(s\) are blank"):
        prepare("csv", **csv_flags(users))
    table["impression"] = ""
    table.to_csv(users / "users.csv", index=False)
    with pytest.raises(UserError, match="--text-column: all 40 texts are blank"):
        prepare("csv", **csv_flags(users, blank_text="drop"))
    table["impression"] = [f"text {index}" for index in range(40)]
    table.to_csv(users / "users.csv", index=False)
    prepare("csv", **csv_flags(users))
    manifest = pd.read_csv(users / "out.csv", dtype=str)
    manifest.loc[5:, "text"] = ""
    manifest.to_csv(users / "out.csv", index=False)
    with pytest.raises(UserError, match="text") as caught:
        read_manifest(users / "out.csv")
    assert "34" in str(caught.value) or "35" in str(caught.value)


def test_uncertain_words_of_the_collections() -> None:
    cells = pd.Series(["-1.0", "-1", " -1.0", "1.0", "1", "0.0", "0", ""])
    for uncertain, number in (("blank", np.nan), ("0", 0.0), ("1", 1.0)):
        labels = label_column(cells, uncertain).to_numpy()
        assert np.array_equal(labels, [*[number] * 3, 1, 1, 0, 0, np.nan], equal_nan=True)
    with pytest.raises(UserError, match="a label is '2'"):
        label_column(pd.Series(["1", "2"]))
    assert set(CHEXPERT_14.values()) | set(NIH_14) <= set(FINDINGS)
    for findings in (*PADCHEST.values(), *MESH.values()):
        assert set(findings) <= set(FINDINGS)
    assert len(CHEXPERT_14) + len(CHEXPERT_OUTSIDE) == 14 == len(NIH_14)
