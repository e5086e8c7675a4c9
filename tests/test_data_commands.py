"""``roentgen data prepare`` and ``check``, run as functions on small collections made here."""

import inspect
import json
import re
import typing
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from trees import xreport_tree
from trees_b import chexpert_tree, dicom_tree, film, nih_tree, openchest_tree, padchest_tree, plus_tree

from roentgen.commands.data import OWN, Name, check, prepare, prepare_main
from roentgen.config.settings import dataclass_of, settings_of
from roentgen.data.check import (
    MIN_CONTRAST,
    MIN_SYMMETRY,
    check_manifest,
    frontal_measures,
    severity_of,
)
from roentgen.data.labels import CHEXPERT_14, CHEXPERT_OUTSIDE, MESH, NIH_14, PADCHEST, label_value
from roentgen.data.manifest import finding_columns, read_manifest
from roentgen.data.sources import SOURCES
from roentgen.data.sources.common import hashed_split
from roentgen.data.sources.openchest import sides_of_boxes
from roentgen.errors import UserError
from roentgen.images import read_image
from roentgen.prompts import FINDINGS

SAMPLE = Path(__file__).parents[1] / "data" / "sample" / "manifest.csv"


@pytest.fixture
def openchest(tmp_path: Path) -> Path:
    return openchest_tree(tmp_path / "openchest")


def prepared(openchest: Path, out: Path, **flags) -> pd.DataFrame:
    assert prepare("openchest", root=str(openchest), out=str(out), **flags) == 0
    return read_manifest(out / "manifest.csv").set_index(
        pd.Index(Path(image).stem for image in read_manifest(out / "manifest.csv")["image"])
    )


def test_openchest_findings(openchest: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    frame = prepared(openchest, tmp_path / "out")
    captured = capsys.readouterr()
    assert captured.out.strip().endswith("manifest.csv") and "ARDS" in captured.err
    assert frame.at["n2", "Effusion"] == 1 and frame.at["n2", "Mass"] == 0 and frame.at["n2", "No Finding"] == 0
    assert np.isnan(frame.at["n2", "COVID-19"])  # NIH's authors did not look for it
    assert frame.at["n1", "No Finding"] == 1 and frame.at["n1", "Effusion"] == 0
    assert frame.at["c1", "COVID-19"] == 1 and np.isnan(frame.at["c1", "Effusion"])
    assert frame.at["c2", "No Finding"] == 1 and frame.at["c2", "Effusion"] == 0
    assert frame.at["c2", "age"] == 3
    assert frame.at["n5", "Lung Opacity"] == 1 and np.isnan(frame.at["n5", "No Finding"])


def test_openchest_sides(openchest: Path, tmp_path: Path) -> None:
    frame = prepared(openchest, tmp_path / "out")
    assert frame.at["n2", "Effusion_side"] == "left" and frame.at["n2", "Infiltration_side"] == ""
    assert frame.at["n3", "Lung Opacity_side"] == "right" and frame.at["n3", "Infiltration_side"] == "right"
    # A box of an opacity says nothing about an effusion.
    assert frame.at["n4", "Lung Opacity_side"] == "right" and frame.at["n4", "Effusion_side"] == ""
    assert frame.at["c1", "COVID-19_side"] == "bilateral"
    assert sides_of_boxes("Mass:midline mid;Nodule:left upper;Nodule:right mid;bilateral lung") == {
        "Mass": "",
        "Nodule": "bilateral",
    }


def test_openchest2_replaces_older_copies_and_children_weigh_less(openchest: Path, tmp_path: Path) -> None:
    """The second collection beside the first: its images take the place of those that they name."""
    second = tmp_path / "openchest2"
    (second / "images").mkdir(parents=True)
    old = pd.read_csv(openchest / "nih128" / "metadata.csv", dtype=str, keep_default_na=False)
    rows = old.iloc[[1, 2]].assign(replaces=["nih128/images/n2.png;cxr320/images/c2.png", ""])
    child = rows.iloc[[1]].assign(source="Kermany 2018 paediatric", file="images/k.png", patient_id="k")
    for name in ("n2", "n3", "k"):
        Image.fromarray(film(50)).save(second / "images" / f"{name}.png")
    pd.concat([rows.iloc[[0]], child]).to_csv(second / "metadata.csv", index=False)
    assert prepare("openchest", root=str(tmp_path), out=str(tmp_path / "out")) == 0
    frame = read_manifest(tmp_path / "out" / "manifest.csv")
    places = {Path(image).relative_to(tmp_path).as_posix() for image in frame["image"]}
    assert places == {
        *(f"openchest/nih128/images/n{i}.png" for i in (1, 3, 4, 5)), "openchest/cxr320/images/c1.png",
        "openchest2/images/n2.png", "openchest2/images/k.png",
    }  # fmt: skip
    assert frame.set_index("patient_id")["weight"].to_dict()["k"] == 0.35
    assert set(frame.loc[frame["patient_id"] != "k", "weight"]) == {1.0}


def test_severities_come_from_measured_ratios_and_from_a_csv(openchest: Path, tmp_path: Path) -> None:
    metadata = openchest / "cxr320" / "metadata.csv"
    table = pd.read_csv(metadata, dtype=str, keep_default_na=False)
    table.assign(findings="Cardiomegaly", expert=["ctr:0.584", "ctr:0.51"]).to_csv(metadata, index=False)
    weak = tmp_path / "weak.csv"
    weak.write_text("file,finding,side,severity\nn2.png,Effusion,,large\nn4.png,Effusion,right,small\n")
    frame = prepared(openchest, tmp_path / "out", sides=str(weak))
    assert frame["Cardiomegaly_severity"].to_dict() | {} == {
        **dict.fromkeys(frame.index, ""), "c1": "moderate", "c2": "mild"
    }  # fmt: skip
    assert frame.at["n2", "Effusion_severity"] == "large" and frame.at["n2", "Effusion_side"] == "left"
    assert frame.at["n4", "Effusion_severity"] == "small" and frame.at["n4", "Effusion_side"] == "right"
    for line, said in (("n2.png,Effusion,,severe", "severity 'severe'"), ("n2.png,No Finding,,large", "No Finding")):
        weak.write_text(f"file,finding,side,severity\n{line}\n")
        with pytest.raises(UserError, match=said):
            prepare("openchest", root=str(openchest), out=str(tmp_path / "bad"), sides=str(weak))


def test_a_severity_needs_its_finding_and_a_word_that_suits_it(openchest: Path, tmp_path: Path) -> None:
    prepared(openchest, tmp_path / "out")
    manifest = tmp_path / "out" / "manifest.csv"
    table = pd.read_csv(manifest, dtype=str, keep_default_na=False)
    for finding, word, said in (("Effusion", "severe", "small, moderate, large"), ("Mass", "large", "is not 1")):
        table.assign(**{f"{finding}_severity": word}).to_csv(manifest, index=False)
        with pytest.raises(UserError, match=said):
            read_manifest(manifest)
    table.assign(Efusion_severity="").to_csv(manifest, index=False)
    with pytest.raises(UserError, match="'Effusion_severity'"):
        read_manifest(manifest)


@pytest.mark.parametrize("weight", ["0", "-1", "heavy", "inf", "nan", ""])
def test_weights_of_rows_are_positive_numbers(weight: str, openchest: Path, tmp_path: Path) -> None:
    prepared(openchest, tmp_path / "out")
    manifest = tmp_path / "out" / "manifest.csv"
    table = pd.read_csv(manifest, dtype=str, keep_default_na=False)
    table.assign(weight=weight).to_csv(manifest, index=False)
    with pytest.raises(UserError, match="weight"):
        read_manifest(manifest)


def test_openchest_texts_depend_on_image_and_seed_only(openchest: Path, tmp_path: Path) -> None:
    first = prepared(openchest, tmp_path / "a")
    alone = prepared(openchest / "cxr320", tmp_path / "b")
    other = prepared(openchest, tmp_path / "c", seed=1)
    assert (first["text"] != "").all() and first.at["c1", "text"] != "with co-infection"
    assert first.loc[alone.index, "text"].tolist() == alone["text"].tolist()
    assert first["text"].tolist() != other["text"].tolist()


def test_copied_and_resized_images(openchest: Path, tmp_path: Path) -> None:
    Image.fromarray(film(3, (60, 100))).save(openchest / "nih128" / "images" / "n1.png")
    exact = prepared(openchest, tmp_path / "exact", copy_images=True)
    source = openchest / "nih128" / "images" / "n1.png"
    assert Path(exact.at["n1", "image"]).read_bytes() == source.read_bytes()
    assert exact.at["n1", "image"] == str(tmp_path / "exact" / "images" / "n1.png")
    small = prepared(openchest, tmp_path / "small", copy_images=True, size=32)
    with Image.open(small.at["n1", "image"]) as image:
        assert image.size == (32, 32) and np.asarray(image)[:, 0].min() > 0  # cropped, not padded
    with pytest.raises(UserError, match="--size"):
        prepare("openchest", root=str(openchest), out=str(tmp_path / "x"), size=32)


def test_same_file_name_in_two_folders_is_kept_apart(openchest: Path, tmp_path: Path) -> None:
    metadata = openchest / "cxr320" / "metadata.csv"
    metadata.write_text(metadata.read_text().replace("images/c2.png", "images/n1.png"))
    (openchest / "cxr320" / "images" / "c2.png").rename(openchest / "cxr320" / "images" / "n1.png")
    prepare("openchest", root=str(openchest), out=str(tmp_path / "out"), copy_images=True)
    images = read_manifest(tmp_path / "out" / "manifest.csv")["image"]
    assert images.is_unique and str(tmp_path / "out/images/cxr320/n1.png") in set(images)


def test_unreadable_image_stops_resizing_but_keeps_the_others(openchest: Path, tmp_path: Path) -> None:
    (openchest / "nih128" / "images" / "n2.png").write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"n2\.png"):
        prepare("openchest", root=str(openchest), out=str(tmp_path / "o"), copy_images=True, size=32)
    assert len(list((tmp_path / "o" / "images").iterdir())) == 6
    assert not (tmp_path / "o" / "manifest.csv").exists()


def test_weak_sides(openchest: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    sides = tmp_path / "sides.csv"
    sides.write_text(
        "file,finding,side\nn4.png,Effusion,left\nn2.png,Effusion,right\nn1.png,Effusion,left\nx.png,Mass,left\n"
    )
    frame = prepared(openchest, tmp_path / "out", sides=str(sides))
    assert frame.at["n4", "Effusion_side"] == "left"
    assert frame.at["n2", "Effusion_side"] == "left"  # the box stands
    assert "1 finding not present, 1 no image, 1 side already known, 1 used" in capsys.readouterr().err
    for bad, message in (
        ("file,finding\na,b\n", "'side'"),
        ("file,finding,side\nn4.png,Effusion,L\n", "line 2: side 'L'"),
        ("file,finding,side\nn4.png,Cardiomegaly,left\n", "'Cardiomegaly' is unknown or has no side"),
        ("file,finding,side\nzz.png,Effusion,left\n", "fits no image"),
    ):
        sides.write_text(bad)
        with pytest.raises(UserError, match=message):
            prepare("openchest", root=str(openchest), out=str(tmp_path / "y"), sides=str(sides))


def test_openchest_bad_roots(openchest: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--root"):
        prepare("openchest", root=str(openchest / "nih128" / "images"), out=str(tmp_path / "o"))
    (openchest / "nih128" / "images" / "n1.png").unlink()
    with pytest.raises(UserError, match=r"1 image file.*n1\.png"):
        prepare("openchest", root=str(openchest), out=str(tmp_path / "o"))


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


# ------------------------------------------------------------------------------------------- check


def broken_set(folder: Path) -> Path:
    """A manifest with one of everything; the comments give the row."""
    arrays = {f"good{index}": film(index) for index in range(4)}  # 1 to 4
    arrays["tiny"] = np.full((1, 1), 128, np.uint8)  # 5
    arrays["black"] = np.zeros((80, 80), np.uint8)  # 6
    arrays["copy"] = arrays["good0"]  # 7
    arrays["leak"] = arrays["good1"]  # 8
    arrays["near"] = np.clip(arrays["good2"].astype(int) + 2, 0, 255).astype(np.uint8)  # 9
    arrays["wide"] = film(9, (80, 160))  # 10
    arrays["turned"] = np.rot90(film(11)).copy()  # 11
    colour = np.stack([film(12), film(12) // 2, film(12) // 4], axis=2)  # 12
    for name, pixels in (arrays | {"colour": colour}).items():
        Image.fromarray(pixels).save(folder / f"{name}.png")
    (folder / "bad.png").write_bytes((folder / "good0.png").read_bytes()[:200])  # 13
    names = [*arrays, "colour", "bad", "gone"]  # gone: 14
    count = len(names)
    table = pd.DataFrame(
        {
            "image": [f"{name}.png" for name in names],
            "text": ["clear lungs"] * count,
            "patient_id": [f"p{index}" for index in range(count)],
            "split": ["train"] * count,
            "view": ["PA"] * count,
            "No Finding": ["1"] * count,
            "Effusion": ["0"] * count,
            "ward": ["x"] * count,
        }
    )
    table.loc[7, "split"] = "test"
    table.loc[1, "text"] = ""
    table.loc[2, "text"] = "word " * 61
    table.loc[3, "Effusion"] = "1"
    table.loc[8, "Effusion"] = "maybe"
    table.loc[9, ["patient_id", "split"]] = ["p0", "val"]
    path = folder / "manifest.csv"
    table.to_csv(path, index=False)
    return path


def test_check_lists_every_problem_and_only_those(tmp_path: Path) -> None:
    report = check_manifest(broken_set(tmp_path), max_words=60)
    found = {kind: [problem.row for problem in problems] for kind, problems in report.problems.items()}
    assert found == {
        "empty text": [2],
        "over-long text": [3],
        "contradicting labels": [4],
        "image too small": [5],
        "near-constant image": [6],
        "same image twice": [7],
        "same image in two splits": [8],
        "bad finding value": [9],
        "near-duplicate image": [9],
        "does not look frontal": [10, 11],
        "patient in two splits": [10],
        "colour image": [12],
        "unreadable image": [13],
        "image file missing": [14],
    }
    assert report.errors == 8 and report.notes == ["columns that are not read: ward"]
    assert severity_of("patient in two splits") == "error"


def test_check_command_exit_codes_and_page(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    manifest = broken_set(tmp_path)
    assert check(str(manifest), out=str(tmp_path / "look")) == 1
    out = capsys.readouterr().out
    assert "8 errors" in out and "error: unreadable image: 1, the first in row 13" in out
    page = (tmp_path / "look" / "check.html").read_text()
    assert page.count("data:image/jpeg;base64,") >= 20 and "http" not in page  # needs no network
    assert "patient in two splits" in page and "Effusion" in page
    with pytest.raises(UserError, match="--overwrite"):
        check(str(manifest), out=str(tmp_path / "look"))
    with pytest.raises(UserError, match="does not exist"):
        check(str(tmp_path / "none.csv"))


def test_check_escapes_texts(tmp_path: Path) -> None:
    Image.fromarray(film(0)).save(tmp_path / "a.png")
    (tmp_path / "m.csv").write_text("image,text,patient_id,split\na.png,<script>alert(1)</script>,1,train\n")
    assert check(str(tmp_path / "m.csv")) == 0
    assert "<script" not in (tmp_path / "m.check.html").read_text()


def test_frontal_heuristic_finds_most_turned_films() -> None:
    images = read_manifest(SAMPLE)["image"].tolist()[::12]
    turned = [frontal_measures(np.rot90(read_image(image)).copy()) for image in images]
    found = sum(symmetry < MIN_SYMMETRY or contrast < MIN_CONTRAST for symmetry, contrast in turned)
    assert found > 0.7 * len(images)


# ------------------------------------------------------------------------------------ data/sample


def test_sample_is_clean(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert check(str(SAMPLE), out=str(tmp_path / "sample.html")) == 0
    said = capsys.readouterr().out
    # One of the reports that were published with their image names the day it was taken.
    assert "0 errors, 1 warnings, 0 notes" in said
    assert "warning: identifier in text: 1, the first in row 463: it seems to hold a date;" in said


def test_sample_is_what_its_readme_says() -> None:
    frame = read_manifest(SAMPLE)
    size = sum(Path(image).stat().st_size for image in frame["image"])
    assert size < 9_000_000 and 600 < len(frame) < 900
    assert len(list((SAMPLE.parent / "images").iterdir())) == len(frame)
    shares = frame["split"].value_counts(normalize=True)
    assert 0.65 < shares["train"] < 0.75 and 0.15 < shares["test"] < 0.25
    for finding in ("Effusion", "Pneumothorax", "Cardiomegaly", "COVID-19", "No Finding"):
        assert (frame[frame["split"] == "train"][finding] == 1).sum() >= 10, finding
        assert (frame[frame["split"] == "test"][finding] == 1).sum() >= 5, finding
    text = (SAMPLE.parent / "LICENCES.md").read_text()
    for source, licence in set(zip(frame["source"], frame["licence"], strict=True)):
        assert f"| {source} | {licence} |" in text
    readme = (SAMPLE.parent / "README.md").read_text()
    assert readme.startswith(f"# Sample data\n\n{len(frame)} openly licensed")
    assert json.dumps(frame["text"].tolist()).isascii()


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
    assert np.isnan(label_value("-1.0")) and label_value("-1", "0") == 0 and label_value(" -1.0", "1") == 1
    assert label_value("1.0") == 1 == label_value("1") and label_value("0.0") == 0 and np.isnan(label_value(""))
    with pytest.raises(UserError, match="a label is '2'"):
        label_value("2")
    assert set(CHEXPERT_14.values()) | set(NIH_14.values()) <= set(FINDINGS)
    for findings in (*PADCHEST.values(), *MESH.values()):
        assert set(findings) <= set(FINDINGS)
    assert len(CHEXPERT_14) + len(CHEXPERT_OUTSIDE) == 14 == len(NIH_14)
