"""Opening a manifest or a folder of images, and what is said of bad ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from roentgen.data.manifest import write_manifest
from roentgen.errors import UserError
from roentgen.images import save_image
from roentgen.metrics.image_set import open_set

SAMPLE = Path(__file__).resolve().parents[2] / "data" / "sample" / "manifest.csv"


def picture(seed: int, size: int = 40) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty images of one size, three of them roentgen's own, in two folders and three formats."""
    place = tmp_path / "made"
    prompts = ["left pleural effusion", "Normal chest. PA view", "cardiomegaly, 60 year old male"]
    for number, (prompt, format, ending) in enumerate(
        zip(prompts, ("png", "jpeg", "dicom"), (".png", ".jpg", ".dcm"), strict=True)
    ):
        marks = {"prompt": prompt, "seed": str(number), "prompt_id": f"p{number}"}
        save_image(picture(number), place / "b" / f"{number}{ending}", format=format, provenance=marks)
    (place / "a").mkdir()
    for number in range(17):
        Image.fromarray(picture(number + 3)).save(place / "a" / f"{number:02}.png")
    return place


def test_folder_is_sorted_and_labelled_by_provenance(folder: Path) -> None:
    images = open_set(folder, name="synthetic")
    names = [path.relative_to(folder).as_posix() for path in images.paths]
    assert names == sorted(names) and len(images) == 20 and images.bad == []
    effusion, normal, heart = (images.table.iloc[number] for number in (17, 18, 19))
    assert (effusion["text"], effusion["seed"], effusion["prompt_id"]) == ("left pleural effusion", "0", "p0")
    assert effusion["Effusion"] == 1 and effusion["Effusion_side"] == "left" and effusion["No Finding"] == 0
    assert np.isnan(effusion["Cardiomegaly"])  # the prompt does not say
    assert normal["No Finding"] == 1 and normal["Effusion"] == 0 and normal["view"] == "PA"
    assert heart["Cardiomegaly"] == 1 and heart["sex"] == "M" and heart["age"] == 60
    stranger = images.table.iloc[0]
    assert stranger["text"] == "" and np.isnan(stranger["Effusion"])
    assert images.patients == [str(path) for path in images.paths]
    assert images.labels(["Effusion", "Unheard Of"]).shape == (20, 2)


def test_paths_are_made_once(folder: Path) -> None:
    """Whoever asks for one path after the other must not take time that grows with the square of the images."""
    images = open_set(folder, name="real")
    assert images.paths is images.paths
    assert images.take([1]).paths == images.paths[1:2]


def test_manifest_with_split_and_limit() -> None:
    test = open_set(SAMPLE, name="real", split="test")
    assert set(test.table["split"]) == {"test"}
    few = open_set(SAMPLE, name="real", limit=30, seed=1)
    assert len(few) == 30
    assert few.table["image"].tolist() == open_set(SAMPLE, name="real", limit=30, seed=1).table["image"].tolist()
    assert few.table["image"].tolist() != open_set(SAMPLE, name="real", limit=30, seed=2).table["image"].tolist()
    order = open_set(SAMPLE, name="real").table["image"].tolist()
    places = [order.index(image) for image in few.table["image"]]
    assert places == sorted(places)


def spoil(folder: Path) -> list[str]:
    """Add one bad file of each kind; their names in sorted order."""
    (folder / "a" / "empty.png").touch()
    (folder / "a" / "letter.jpg").write_text("Dear Sir")
    Image.fromarray(picture(0, 16)).save(folder / "a" / "thumb.png")
    Image.fromarray(picture(0, 64)).save(folder / "a" / "wide.png")
    return ["empty.png", "letter.jpg", "thumb.png", "wide.png"]


def test_bad_files_are_listed_by_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = spoil(folder)
    with pytest.raises(UserError, match="--synthetic: 4 of 24 images are bad") as caught:
        open_set(folder, name="synthetic")
    message = str(caught.value)
    assert "\n" not in message and "--skip-bad" in message
    assert all(name in message for name in names) and "empty file" in message and "not an image" in message
    assert "16 x 16" in message and "64 x 64 where the others have 40 x 40" in message
    assert capsys.readouterr().err == ""

    images = open_set(folder, name="synthetic", skip_bad=True)
    assert (
        len(images) == 20 and len(images.bad) == 4 and all(n in line for n, line in zip(names, images.bad, strict=True))
    )
    said = capsys.readouterr().err
    assert "4 of 24 images left out" in said and all(name in said for name in names)
    assert len(open_set(folder, name="real", skip_bad=True)) == 21  # real images may differ in size


def test_missing_file_of_a_manifest(tmp_path: Path) -> None:
    Image.fromarray(picture(0)).save(tmp_path / "here.png")
    rows = [{"image": name, "text": "", "patient_id": name, "split": "test"} for name in ("here.png", "gone.png")]
    manifest = write_manifest(pd.DataFrame(rows), tmp_path / "m.csv")
    with pytest.raises(UserError, match=r"gone\.png: no such file"):
        open_set(manifest, name="real")
    with pytest.raises(UserError, match=r"holds 1 usable image\(s\) and at least 2"):
        open_set(manifest, name="real", skip_bad=True)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: p / "none", "does not exist"),
        (lambda p: p, "holds no images"),
        (lambda p: SAMPLE.with_name("README.md"), "no .csv or .parquet"),
    ],
)
def test_no_images(tmp_path: Path, make, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        open_set(make(tmp_path), name="real")
    assert str(caught.value).startswith("--real")


def test_limit_must_be_positive(folder: Path) -> None:
    with pytest.raises(UserError, match="--limit 0"):
        open_set(folder, name="real", limit=0)


def test_a_folder_with_a_manifest_is_read_by_it() -> None:
    found, listed = open_set(SAMPLE.parent, name="real", split="test"), open_set(SAMPLE, name="real", split="test")
    assert found.table.equals(listed.table) and np.nansum(found.labels(["Effusion"])) > 5


def test_reports_and_hidden_files_do_not_count_and_dicom_without_an_ending_does(tmp_path: Path, folder: Path) -> None:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import BasicTextSRStorage, ExplicitVRLittleEndian

    (folder / "b" / "2.dcm").rename(folder / "b" / "2")
    (folder / ".thumbnails").mkdir()
    Image.fromarray(picture(1)).save(folder / ".thumbnails" / "x.png")
    Image.fromarray(picture(1)).save(folder / "a" / ".x.png")
    (folder / "notes").write_text("x" * 300)
    report = Dataset()
    report.SOPClassUID, report.SOPInstanceUID, report.Modality = BasicTextSRStorage, "1.2.3", "SR"
    report.file_meta = FileMetaDataset()
    report.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    for name in ("report.dcm", "report"):
        report.save_as(folder / name, enforce_file_format=True)
    images = open_set(folder, name="synthetic")
    assert len(images) == 20 and images.bad == []
    assert images.paths[-1] == folder / "b" / "2"
    assert images.table["text"].iloc[-1] == "cardiomegaly, 60 year old male"
