"""The formats of a synthetic set, each opened by the package that it is for."""

from __future__ import annotations

import csv
import importlib.util
import json
import re
import shutil
import subprocess
import tarfile
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from records import FINDINGS_USED, INFO, SHARDS, make_record, write_set

from roentgen.data.manifest import read_manifest
from roentgen.images import read_provenance
from roentgen.metrics.image_set import open_set
from roentgen.prompts import FINDINGS
from roentgen.synthesis.writers import FORMATS, check_sums
from roentgen.synthesis.writers.parts import Record

RECORDS = [record for shard in SHARDS for record in shard]


pytestmark = pytest.mark.usefixtures("own_cache")


def check_row(row: dict, record: Record, *, number=lambda value: value) -> None:
    """The columns of one image as a format's reader gives them; ``number`` turns its numbers into Python's."""
    labels = record.row.labels
    assert row["text"] == record.row.prompt
    assert (row["patient_id"], row["split"]) == (f"synthetic-{record.row.slot:08d}", "train")
    assert ((row["view"] or None), (row["sex"] or None)) == (labels.view, labels.sex)
    assert number(row["age"]) == labels.age
    numbers = [int(row[name]) for name in ("slot", "seed", "attempt")]
    assert numbers == [record.row.slot, record.seed, record.attempt]
    assert (row["model"], row["model_hash"], row["sampler"]) == ("mini", "0123456789012345", "dpm++")
    assert (int(row["steps"]), float(row["guidance"])) == (20, 7.5)
    assert json.loads(row["scores"]) == {"classifier": 0.1235}
    assert row["synthetic"] in (True, "true") and row["source"] == "synthetic: mini"
    expected = dict.fromkeys(FINDINGS_USED)
    expected |= dict.fromkeys(record.row.absent, 0)
    if labels.findings and "No Finding" not in labels.findings:
        expected["No Finding"] = 0
    expected |= dict.fromkeys(labels.findings, 1)
    assert {name: number(row[name]) for name in FINDINGS_USED} == expected
    sided = [name for name in FINDINGS_USED if FINDINGS[name].can_have_side]
    assert {name: row[f"{name}_side"] or None for name in sided} == {name: labels.sides.get(name) for name in sided}


# ------------------------------------------------------------------------------------------ opened by their packages


def test_manifest_is_roentgens(whole):
    table = read_manifest(whole / "manifest.csv")
    assert len(table) == len(RECORDS)
    for row, record in zip(table.to_dict("records"), RECORDS, strict=True):
        check_row(row, record, number=lambda value: None if np.isnan(value) else value)
        assert Path(row["image"]).parent.name == f"{record.row.slot // 1000:05d}"
        marks = read_provenance(row["image"])
        assert (marks["prompt"], marks["seed"], marks["synthetic"]) == (record.row.prompt, str(record.seed), "true")


@pytest.mark.parametrize("unique", [False, True])
def test_torchxrayvision_opens_the_folder(whole, unique):
    xrv = pytest.importorskip("torchxrayvision")
    found = xrv.datasets.NIH_Dataset(
        imgpath=str(whole / "images"),
        csvpath=str(whole / "Data_Entry_synthetic.csv"),
        views=["*"],
        unique_patients=unique,
    )
    assert len(found) == len(RECORDS)
    for number, record in enumerate(RECORDS):
        sample = found[number]
        pixels = (sample["img"][0] / 1024 + 1) / 2 * 255
        assert np.abs(pixels - record.image).max() < 1e-3
        asked = set(record.row.labels.findings) | ({"Pneumonia"} if "COVID-19" in record.row.labels.findings else set())
        assert {name for name, label in zip(found.pathologies, sample["lab"], strict=True) if label} == (
            asked & set(found.pathologies)
        )
    assert found.csv["patientid"].tolist() == [record.patient_id for record in RECORDS]
    assert found.csv["sex_female"].tolist() == [record.row.labels.sex == "F" for record in RECORDS]
    ages = [record.row.labels.age for record in RECORDS]
    assert [None if np.isnan(age) else age for age in found.csv["age_years"]] == ages
    frontal = xrv.datasets.NIH_Dataset(
        imgpath=str(whole / "images"), csvpath=str(whole / "Data_Entry_synthetic.csv"), views=["PA"]
    )
    assert len(frontal) == sum(record.row.labels.view == "PA" for record in RECORDS)


def check_images(found, *, column: str = "image") -> None:
    assert len(found) == len(RECORDS)
    for row, record in zip(found, RECORDS, strict=True):
        assert np.array_equal(np.asarray(row[column]), record.image)


def test_datasets_opens_a_folder_set(tmp_path):
    import datasets

    out = write_set(tmp_path / "set", formats=("folder", "dicom"))
    found = datasets.load_dataset(str(out), split="train")
    assert isinstance(found.features["image"], datasets.Image)
    check_images(found)
    for row, record in zip(found, RECORDS, strict=True):
        check_row(row, record)


@pytest.mark.parametrize("formats", [("parquet",), tuple(FORMATS)])
def test_datasets_opens_parquet(tmp_path, formats):
    import datasets

    out = write_set(tmp_path / "set", formats=formats)
    found = datasets.load_dataset(str(out), split="train")
    assert found.features["image"] == datasets.Image() and found.features["Effusion"] == datasets.Value("int8")
    check_images(found)
    for row, record in zip(found, RECORDS, strict=True):
        check_row(row, record)


def test_datasets_streams_parquet(whole):
    import datasets

    files = sorted(str(path) for path in (whole / "parquet").iterdir())
    found = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)
    check_images(list(found))


def test_datasets_types_the_folders_table_past_its_first_piece(tmp_path):
    """It reads 10,000 lines at a time, and takes the types from the first: where labels and sides may be blank."""
    import datasets

    out = write_set(tmp_path / "set", formats=("folder",))
    with (out / "metadata.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    with (out / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *[rows[0]] * 10_000, *rows[1:]])
    found = datasets.load_dataset(str(out), split="train")
    assert len(found) == 10_000 + len(rows) - 1
    check_row(found[10_000], RECORDS[1])
    assert np.array_equal(np.asarray(found[10_000]["image"]), RECORDS[1].image)


@pytest.mark.parametrize("formats", [("folder", "webdataset"), tuple(FORMATS)], ids="+".join)
def test_datasets_opens_the_image_folder_whatever_lies_beside(tmp_path, formats):
    import datasets

    out = write_set(tmp_path / "set", formats=formats)
    shutil.rmtree(out / ".work")
    found = datasets.load_dataset("imagefolder", data_dir=str(out), split="train")
    check_images(found)
    assert [row["text"] for row in found] == [record.row.prompt for record in RECORDS]


@pytest.mark.parametrize("formats", [("folder", "dicom"), ("dicom",)], ids="+".join)
def test_an_exported_set_is_measured_by_its_manifest(tmp_path, formats):
    records = [make_record(slot, size=40) for slot in range(4)]
    for name in formats:
        writer = FORMATS[name](tmp_path, INFO)
        writer.write_shard(0, records)
        writer.finish(1)
    images = open_set(tmp_path, name="synthetic")
    assert images.table["text"].tolist() == [record.row.prompt for record in records] and images.bad == []
    assert images.table["patient_id"].nunique() == 4


def test_datasets_opens_the_folder_of_each_format(whole):
    import datasets

    for name, column in (("webdataset", "png"), ("parquet", "image")):
        found = datasets.load_dataset(name, data_dir=str(whole / name), split="train")
        check_images(found, column=column)


def test_stems_stay_text_in_pandas(whole):
    table = pd.read_csv(whole / "manifest.csv")
    stems = pd.DataFrame({"id": [Path(image).stem for image in table["image"]]})
    stems.to_csv(whole.parent / "ids.csv", index=False)
    assert pd.read_csv(whole.parent / "ids.csv")["id"].tolist() == [record.name for record in RECORDS]


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_a_spreadsheet_runs_no_cell(tmp_path, start):
    record = make_record(0)
    prompt = f"{start}HYPERLINK(1) effusion,\r\nor\rnot"
    evil = replace(record, row=replace(record.row, prompt=prompt, group=f"{start}x"))
    for name in ("folder", "dicom"):
        writer = FORMATS[name](tmp_path, INFO)
        writer.write_shard(0, [evil])
        writer.finish(1)
    for name in ("manifest.csv", "metadata.csv", "Data_Entry_synthetic.csv", "dicom/index.csv"):
        with (tmp_path / name).open(newline="") as file:
            header, *rows = csv.reader(file)
            assert len(rows) == 1 and len(rows[0]) == len(header), name
            for row in rows:
                assert not [cell for cell in row if cell.startswith(("=", "+", "-", "@", "\t", "\r"))], name


def test_datasets_opens_webdataset(tmp_path):
    import datasets

    out = write_set(tmp_path / "set", formats=("webdataset",))
    for found in (
        datasets.load_dataset(str(out), split="train"),
        datasets.load_dataset("webdataset", data_files=f"{out}/webdataset/*.tar", split="train"),
    ):
        check_images(found, column="png")
        for row, record in zip(found, RECORDS, strict=True):
            assert row["txt"] == record.row.prompt
            check_row(row["json"], record)


def test_webdataset_opens_the_tars(whole):
    wds = pytest.importorskip("webdataset")
    tars = sorted(str(path) for path in (whole / "webdataset").iterdir())
    assert [Path(tar).name for tar in tars] == ["shard-000000.tar", "shard-000002.tar"]
    found = list(wds.WebDataset(tars, shardshuffle=False).decode("l8"))
    assert [sample["__key__"] for sample in found] == [record.name for record in RECORDS]
    for sample, record in zip(found, RECORDS, strict=True):
        assert np.array_equal(sample["png"], record.image)
        assert sample["txt"] == record.row.prompt
        check_row(sample["json"], record)
        numbers = [sample["json"][name] for name in ("age", "slot", "seed", "steps", "guidance", *FINDINGS_USED)]
        assert all(value is None or isinstance(value, int | float) for value in numbers)


def test_tars_have_no_dates(whole):
    with tarfile.open(whole / "webdataset" / "shard-000000.tar") as tar:
        assert {(member.mtime, member.uid, member.uname) for member in tar} == {(0, 0, "")}


def test_pydicom_opens_the_studies(whole):
    pydicom = pytest.importorskip("pydicom")
    index = read_manifest(whole / "dicom" / "index.csv")
    assert len(index) == len(RECORDS)
    uids = []
    for row, record in zip(index.to_dict("records"), RECORDS, strict=True):
        check_row(row, record, number=lambda value: None if np.isnan(value) else value)
        image = pydicom.dcmread(row["image"])
        report = pydicom.dcmread(whole / "dicom" / row["report"])
        assert np.array_equal(image.pixel_array, record.image)
        marks = read_provenance(row["image"])
        assert read_provenance(whole / "dicom" / row["report"]) == marks
        assert (marks["prompt"], marks["model_hash"]) == (record.row.prompt, "0123456789012345")
        assert image.SeriesDescription == f"{' '.join(record.row.prompt.split())} (Synthetic)"
        assert image.PatientSex == (record.row.labels.sex or "") and image.get("ViewPosition") == record.row.labels.view
        assert image.get("PatientAge") == {54.0: "054Y", 0.5: "006M", None: None}[record.row.labels.age]
        assert report.SOPClassUID == report.file_meta.MediaStorageSOPClassUID == "1.2.840.10008.5.1.4.1.1.88.11"
        assert image.PatientID == record.patient_id
        for keyword in ("PatientID", "PatientName", "PatientComments", "DeidentificationMethod", "StudyInstanceUID"):
            assert image[keyword] == report[keyword]
        assert image.StudyDate == report.StudyDate == "19700101"
        assert "synthetic" in report.PatientComments.lower() and report.PatientIdentityRemoved == "YES"
        evidence = report.CurrentRequestedProcedureEvidenceSequence[0]
        assert evidence.StudyInstanceUID == image.StudyInstanceUID == row["study_instance_uid"]
        referenced = evidence.ReferencedSeriesSequence[0]
        assert referenced.SeriesInstanceUID == image.SeriesInstanceUID != report.SeriesInstanceUID
        assert referenced.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == image.SOPInstanceUID
        impression = report.ContentSequence[-1].ContentSequence[0]
        assert impression.TextValue == record.row.prompt
        source = impression.ContentSequence[0].ReferencedSOPSequence[0]
        assert source.ReferencedSOPInstanceUID == image.SOPInstanceUID == row["sop_instance_uid"]
        said = [
            item.TextValue
            for section in report.ContentSequence
            if section.ConceptNameCodeSequence[0].CodeMeaning == "Findings"
            for item in section.ContentSequence
        ]
        sides = record.row.labels.sides
        assert said == [f"{n}, {sides[n]}" if n in sides else n for n in record.row.labels.findings]
        uids += [image.SOPInstanceUID, report.SOPInstanceUID, image.SeriesInstanceUID, report.SeriesInstanceUID]
        uids.append(image.StudyInstanceUID)
        for data in (image, report):
            dates = {element.keyword: element.value for element in data if element.VR in ("DA", "TM", "DT")}
            assert set(dates.values()) <= {"", "19700101", "000000"}
    assert len(set(uids)) == 5 * len(RECORDS)
    assert all(uid.is_valid and uid.startswith("1.2.826.0.1.3680043.8.498.") for uid in uids)


def test_readers_of_series_find_one_image_a_folder(whole):
    sitk = pytest.importorskip("SimpleITK")
    folders = sorted(path.parent for path in (whole / "dicom" / "images").rglob("*.dcm"))
    assert len(folders) == len(RECORDS)
    for folder, record in zip(folders, RECORDS, strict=True):
        names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
        assert len(names) == len(list(folder.iterdir())) == 1
        assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(names))[0], record.image)


def test_monai_opens_images_and_studies(whole):
    """By the manifest, as its dictionary transforms take it: pictures by PIL, DICOM by pydicom and, if there, ITK."""
    transforms = pytest.importorskip("monai.transforms")
    table = read_manifest(whole / "manifest.csv")[["image", "text"]].to_dict("records")
    index = read_manifest(whole / "dicom" / "index.csv")[["image", "text"]].to_dict("records")
    readers = {"PILReader": table, "PydicomReader": index}
    if importlib.util.find_spec("itk"):
        readers["ITKReader"] = index
    for reader, rows in readers.items():
        load = transforms.Compose(
            [transforms.LoadImaged(keys="image", reader=reader), transforms.EnsureChannelFirstd(keys="image")]
        )
        assert len(rows) == len(RECORDS)
        for row, record in zip(load(rows), RECORDS, strict=True):
            pixels = np.asarray(row["image"])  # MONAI's first axis in space is x
            assert row["text"] == record.row.prompt
            assert np.array_equal(pixels.reshape(pixels.shape[1:3]).T, record.image), reader


def test_dicom_values_respect_their_vr(tmp_path):
    pydicom = pytest.importorskip("pydicom")
    prompt = "left\\right \x1b[31m effusion\x00, \x85" + "very " * 20 + "large"
    model = "C:\\models\\mini\n" + "x" * 80
    record = make_record(0)
    odd = replace(
        record,
        row=replace(record.row, prompt=prompt),
        provenance={**record.provenance, "prompt": prompt, "model": model, "version": "1\\2"},
    )
    writer = FORMATS["dicom"](tmp_path, INFO)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # pydicom warns of values that their VR does not allow
        writer.write_shard(0, [odd])
    for path in sorted((tmp_path / "dicom").rglob("*.dcm")):
        data = pydicom.dcmread(path)
        texts = [element for element in data.iterall() if element.VR in ("LO", "SH", "PN", "ST", "LT", "UT", "CS")]
        for element in texts:
            for value in element.value if isinstance(element.value, pydicom.multival.MultiValue) else [element.value]:
                most = {"LO": 64, "SH": 16, "CS": 16}.get(element.VR, 10240)
                assert len(str(value)) <= most, element
                assert not re.search(r"[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f]", str(value)), element
            if element.VR in ("LO", "SH", "PN"):
                assert element.VM <= 1, element
        marks = read_provenance(path)
        assert (marks["model"], marks["prompt"]) == (model, prompt) and marks["synthetic"] == "true"
    said = data.ContentSequence[-1].ContentSequence[0].TextValue
    assert "effusion" in said and "\\" in said and "very large" in said


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="needs dciodvfy, of dicom3tools")
def test_studies_are_valid_dicom(whole):
    for path in sorted((whole / "dicom").rglob("*.dcm")):
        said = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True)
        kind = {"image.dcm": "SCImage", "report.dcm": "BasicTextSR"}[path.name]
        assert said.returncode == 0 and kind in said.stderr and "Error" not in said.stderr, said.stderr
        assert "DICOMDIR" not in said.stderr, said.stderr


def test_uids_follow_from_all_that_the_image_depends_on():
    from roentgen.synthesis.writers.dicom import make_image

    record = make_record(1)
    uid = make_image(record).SOPInstanceUID
    assert make_image(make_record(1)).SOPInstanceUID == uid
    other_steps = replace(record, provenance={**record.provenance, "steps": "21"})
    others = [replace(record, seed=record.seed + 1), replace(record, row=replace(record.row, slot=2)), other_steps]
    assert uid not in {make_image(other).SOPInstanceUID for other in others}


def sized_set(out: Path) -> list[Record]:
    """A folder of four images of 40 pixels."""
    records = [make_record(slot, size=40) for slot in range(4)]
    writer = FORMATS["folder"](out, INFO)
    writer.write_shard(0, records)
    writer.finish(1)
    return records


@pytest.mark.parametrize("size", [None, 32])
def test_marks_survive_shards(tmp_path, run_cli, size):
    records = sized_set(tmp_path / "set")
    flags = () if size is None else ("--size", size)
    code, _, shown = run_cli("data", "shard", tmp_path / "set" / "manifest.csv", "--out", tmp_path / "shards", *flags)
    assert code == 0, shown
    table = pd.read_parquet(tmp_path / "shards" / "manifest.parquet")
    assert set(table["source"]) == {"synthetic: mini"} and set(table["synthetic"].astype(str)) == {"true"}
    with tarfile.open(tmp_path / "shards" / "train-000000.tar") as tar:
        pictures = [member for member in tar if member.name.endswith(".png")]
        assert len(pictures) == 4
        for member in pictures:
            (tmp_path / "one.png").write_bytes(tar.extractfile(member).read())
            marks = read_provenance(tmp_path / "one.png")
            assert marks["synthetic"] == "true" and marks["prompt"] in {record.row.prompt for record in records}
            assert marks.get("resized_to") == (None if size is None else str(size))


@pytest.mark.parametrize("flags", [(), ("--copy-images",), ("--copy-images", "--size", 32)], ids=str)
def test_marks_survive_a_manifest_of_ones_own(tmp_path, run_cli, flags):
    records = sized_set(tmp_path / "set")
    Image.fromarray(records[0].image).save(tmp_path / "set" / "real.png")
    pd.DataFrame({"path": [*(f"images/00000/{record.name}.png" for record in records), "real.png"]}).assign(
        text="Effusion."
    ).to_csv(tmp_path / "mine.csv", index=False)
    code, _, shown = run_cli(
        *("data", "prepare", "csv", "--root", tmp_path / "set", "--csv", tmp_path / "mine.csv"),
        *("--image-column", "path", "--text-column", "text", "--val-share", 0, "--out", tmp_path / "new" / "m.csv"),
        *flags,
    )
    assert code == 0, shown
    table = read_manifest(tmp_path / "new" / "m.csv").set_index("image")
    for image, row in table.iterrows():
        if Path(image).name == "real.png":
            assert row["synthetic"] == "" and "synthetic" not in row["source"]
            continue
        assert row["synthetic"] == "true" and row["source"] == "synthetic: mini"
        assert read_provenance(image)["synthetic"] == "true"


def test_a_set_of_before_letters_and_reports_apart_still_opens():
    old = Path(__file__).parents[1] / "files" / "exported"
    check_sums(old)
    images = open_set(old, name="synthetic")
    assert [path.name for path in images.paths] == ["00000000.png", "00000001.png", "00000003.png"]
    assert images.table["text"].iloc[1] == "Left pleural effusion"
    studies = open_set(old / "dicom" / "index.csv", name="synthetic")
    assert len(studies) == 3 and len(open_set(old / "dicom", name="synthetic")) == 3  # not the reports
    assert read_provenance(images.paths[1])["prompt"] == read_provenance(studies.paths[1])["prompt"]
