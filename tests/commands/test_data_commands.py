"""``roentgen data prepare`` and ``check``, run as functions on small collections made here."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from trees_b import film, openchest_tree

from roentgen.commands.data import prepare
from roentgen.data.manifest import read_manifest
from roentgen.data.sources.openchest import sides_of_boxes
from roentgen.errors import UserError


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
