"""The formats of a synthetic set, each opened by the package that it is for."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import resource
import shutil
import subprocess
import tarfile
import tracemalloc
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from roentgen.data.manifest import read_manifest
from roentgen.errors import UserError
from roentgen.images import read_provenance
from roentgen.metrics.image_set import open_set
from roentgen.models.card import model_licence
from roentgen.models.hub import MINI
from roentgen.prompts import FINDINGS, Labels
from roentgen.synthesis.card import add_tallies, tally, write_card
from roentgen.synthesis.plan import Row
from roentgen.synthesis.writers import FORMATS, check_sums, write_sums
from roentgen.synthesis.writers.parts import Part, Parts, Record, SetInfo

ROWS = [
    ("Normal chest, PA view, 54-year-old woman.", Labels(("No Finding",), {}, "PA", "F", 54.0), {"Effusion", "Edema"}),
    ("Left pleural effusion", Labels(("Effusion",), {"Effusion": "left"}), {"Edema"}),
    ("Bilateral effusion, mild œdema, AP", Labels(("Effusion", "Edema"), {"Effusion": "bilateral"}, "AP"), set()),
    ('COVID-19 pneumonia, "patchy",\nman', Labels(("COVID-19",), {}, "AP", "M", 0.5), set()),
    ("Chest X-ray", Labels(), set()),
]
FINDINGS_USED = ("No Finding", "COVID-19", "Effusion", "Edema", "Lung Opacity")


def make_record(slot: int, *, size: int = 16) -> Record:
    prompt, labels, absent = ROWS[slot % len(ROWS)]
    rng = np.random.default_rng(slot)
    image = rng.integers(0, 256, (size, size + 3), dtype=np.uint8)
    seed = 2**62 + slot  # beyond what a float holds
    provenance = {
        **{"prompt": prompt, "seed": str(seed), "model": "mini", "model_hash": "0123456789012345"},
        **{"sampler": "dpm++", "steps": "20", "guidance": "7.5", "version": "0.1.0"},
    }
    row = Row(slot, labels.findings[0] if labels.findings else "other", prompt, labels, frozenset(absent))
    return Record(row, image, seed, slot % 2, {"classifier": 0.123456789}, provenance)


SHARDS = [[make_record(slot) for slot in (0, 1, 3)], [], [make_record(slot) for slot in (1000, 1001, 1002, 1004)]]
RECORDS = [record for shard in SHARDS for record in shard]
INFO = SetInfo(
    name="tiny set",
    rows=9,
    findings=FINDINGS_USED,
    model={"model": "mini", "model_hash": "0123456789012345", "steps": "20"},
    plan={"name": "tiny", "groups": [{"name": "Effusion", "count": 4}]},
    filter={"classifier": {"threshold": 0.321}},
    command="roentgen export --plan tiny.yaml --out tiny",
)


def write_set(out: Path, *, formats=tuple(FORMATS), order=(0, 1, 2), card: bool = True) -> Path:
    for name in formats:
        for shard in order:
            FORMATS[name](out, INFO).write_shard(shard, SHARDS[shard])
        FORMATS[name](out, INFO).finish(len(SHARDS))
    if card:
        counts = add_tallies(tally(shard) for shard in SHARDS)
        more = {"drawn": 12, "rejected": {"classifier": 5}, "shortfalls": {"Effusion": 2, "Edema": 0}}
        write_card(out, INFO, counts | more)
        write_sums(out)
    return out


def files_of(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def finished(out: Path) -> dict[str, bytes]:
    return {name: data for name, data in files_of(out).items() if not name.startswith(".work/")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """All formats, as the engine leaves them: without the work folder. Read only."""
    out = write_set(tmp_path_factory.mktemp("whole") / "set")
    shutil.rmtree(out / ".work")
    return out


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch) -> None:
    """Hugging Face's caches below the test's folder."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()


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
    old = Path(__file__).parent / "data" / "exported"
    check_sums(old)
    images = open_set(old, name="synthetic")
    assert [path.name for path in images.paths] == ["00000000.png", "00000001.png", "00000003.png"]
    assert images.table["text"].iloc[1] == "Left pleural effusion"
    studies = open_set(old / "dicom" / "index.csv", name="synthetic")
    assert len(studies) == 3 and len(open_set(old / "dicom", name="synthetic")) == 3  # not the reports
    assert read_provenance(images.paths[1])["prompt"] == read_provenance(studies.paths[1])["prompt"]


# ------------------------------------------------------------------------------------------- the same bytes each time


@pytest.mark.parametrize("name", FORMATS)
def test_bytes_do_not_depend_on_order_or_tries(tmp_path, name):
    one = write_set(tmp_path / "one", formats=(name,))
    other = write_set(tmp_path / "other", formats=(name,), order=(2, 0, 1, 2, 0))
    assert finished(one) == finished(other)
    before = finished(one)
    writer = FORMATS[name](one, INFO)
    writer.write_shard(2, SHARDS[2])
    writer.finish(len(SHARDS))
    assert finished(one) == before


@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_shard_is_noticed_and_written_again(tmp_path, name):
    out = write_set(tmp_path / "set", formats=(name,))
    writer = FORMATS[name](out, INFO)
    assert all(writer.is_written(shard) for shard in range(3)) and not writer.is_written(3)
    before = files_of(out)
    part = Parts(out, name).read(2)
    paths = [*part.files, f".work/parts/{name}/000002.json"]
    for path in paths:
        data = bytearray(before[path])
        for damaged in (bytes(data[:-1]), bytes(data[:50] + bytes([data[50] ^ 1]) + data[51:]), b"", None):
            (out / path).unlink() if damaged is None else (out / path).write_bytes(damaged)
            assert not writer.is_written(2)
            assert writer.is_written(0)
            writer.write_shard(2, SHARDS[2])
            assert writer.is_written(2) and files_of(out) == before


@pytest.mark.parametrize("name", FORMATS)
def test_finish_wants_every_shard(tmp_path, name):
    writer = FORMATS[name](tmp_path, INFO)
    writer.write_shard(0, SHARDS[0])
    with pytest.raises(UserError, match=r"000001\.json: this shard is unfinished; run the same command again"):
        writer.finish(2)
    assert not finished(tmp_path).keys() & {"manifest.csv", "metadata.csv", "dicom/index.csv"}


@pytest.mark.parametrize("name", FORMATS)
def test_all_shards_empty(tmp_path, name):
    writer = FORMATS[name](tmp_path, INFO)
    for shard in range(2):
        writer.write_shard(shard, [])
        assert writer.is_written(shard)
    writer.finish(2)
    write_card(tmp_path, INFO, tally([]))
    write_sums(tmp_path)
    assert "0 images of the 9" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("name", FORMATS)
def test_a_disk_that_fills_up_leaves_what_is_finished(tmp_path, name):
    """The kernel refuses to write on past a file's first kilobytes."""
    writer = FORMATS[name](tmp_path, INFO)
    writer.write_shard(0, SHARDS[0])
    before = files_of(tmp_path)
    large = [make_record(1000, size=16), make_record(1001, size=400)]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(UserError, match=r"cannot be written \(File too large\); choose another --out"):
            writer.write_shard(1, large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not writer.is_written(1) and writer.is_written(0)
    after = files_of(tmp_path)
    assert {path: after[path] for path in before} == before
    assert not [path for path in after if "scratch" in path or path.endswith(("1001.png", "01.parquet", "01.tar"))]
    writer.write_shard(1, large)
    assert writer.is_written(1)


def test_a_full_disk_is_said_in_one_sentence(tmp_path, monkeypatch):
    import errno
    import os

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for name in FORMATS:
        with pytest.raises(UserError, match=r"no space left on the disk; free some or choose another --out"):
            FORMATS[name](tmp_path / name, INFO).write_shard(0, SHARDS[0])


def test_a_label_without_a_column_is_refused(tmp_path):
    info = replace(INFO, findings=("No Finding", "Effusion"))
    with pytest.raises(ValueError, match="slot 2 has the label 'Edema'"):
        FORMATS["folder"](tmp_path, info).write_shard(0, [make_record(2)])


# ------------------------------------------------------------------------------------------------------ card and sums


def test_card_counts(whole):
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["images"] == len(RECORDS) == 7 and summary["asked_images"] == 9
    assert {one["name"]: one["images"] for one in summary["categories"]} == {
        **{"No Finding": 2, "COVID-19": 1, "Effusion": 3, "Edema": 1, "Lung Opacity": 0}
    }
    assert summary["counts"]["views"] == {"AP": 2, "PA": 2, "unknown": 3}
    assert summary["counts"]["sexes"] == {"F": 2, "M": 1, "unknown": 4}
    assert summary["counts"]["ages"] == {"0-17": 1, "40-59": 2, "unknown": 4}
    assert summary["counts"]["groups"] == {"COVID-19": 1, "Effusion": 3, "No Finding": 2, "other": 1}
    assert summary["counts"]["sides"] == {"Effusion, bilateral": 1, "Effusion, left": 2}
    assert summary["filter"] == INFO.filter and summary["plan"] == INFO.plan
    text = (whole / "README.md").read_text()
    header = yaml.safe_load(text.split("---\n")[1])
    assert header["license"] == "other" and "synthetic" in header["tags"]
    assert header["task_categories"] == ["text-to-image", "image-classification"]
    assert header["size_categories"] == ["n<1K"]
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert len(pictures) == 4 and all((whole / picture).is_file() for picture in pictures)
    for piece in (
        *("of no patient", "not for diagnosis", "0123456789012345", INFO.command, "threshold: 0.321"),
        *("| classifier | 5 |", "Drawn 12, kept 7", "| Effusion | 2 |", "7 images of the 9", "| Effusion | 3 |"),
    ):
        assert piece.lower() in text.lower(), piece
    assert "| Edema | 0 |" not in text  # a shortfall of none is none
    assert not re.search(r"\b20\d\d-\d\d-\d\d\b", text)


def test_age_bands():
    ages = [0, 17.9, 18, 39.5, 40, 79.9, 80, 100]
    record = make_record(0)
    made = [replace(record, row=replace(record.row, labels=Labels(age=age))) for age in ages]
    assert tally(made)["ages"] == {"0-17": 2, "18-39": 2, "40-59": 1, "60-79": 1, "80+": 2}


def test_card_of_a_model_with_a_licence(tmp_path):
    assert model_licence(MINI) == "apache-2.0" and model_licence(tmp_path) is None
    write_card(tmp_path, replace(INFO, licence="apache-2.0"), tally(RECORDS))
    text = (tmp_path / "README.md").read_text()
    assert yaml.safe_load(text.split("---\n")[1])["license"] == "apache-2.0"
    assert "Licence: apache-2.0, as the model that made it" in text and "@software{roentgen" in text
    assert json.loads((tmp_path / "summary.json").read_text())["licenses"][0]["name"].startswith("apache-2.0")


def test_card_without_filter(tmp_path):
    write_card(tmp_path, replace(INFO, filter=None, rows=7), tally(RECORDS))
    text = (tmp_path / "README.md").read_text()
    assert "No filter" in text and "the plan's counts are reached" in text


@pytest.mark.parametrize(
    ("formats", "number"),
    [(tuple(FORMATS), 5), (("folder",), 3), (("parquet",), 1), (("webdataset",), 2), (("dicom",), 1)],
    ids=lambda value: "+".join(value) if isinstance(value, tuple) else "",
)
def test_cards_code_runs(tmp_path, capsys, formats, number):
    out = write_set(tmp_path / "set", formats=formats)
    text = (out / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text.replace("path/of/this/folder", str(out)), re.S)
    assert len(blocks) == number
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
        assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("parts", [True, False], ids=["sums of the parts", "read again"])
def test_sums(tmp_path, parts):
    out = write_set(tmp_path / "set")
    for odd in ("images-x", "images/00000.txt", "images/a b", "Z"):
        (out / odd).write_text(odd)
    if not parts:
        shutil.rmtree(out / ".work")
    write_sums(out)
    lines = (out / "SHA256SUMS").read_text().splitlines()
    listed = {line[66:]: line[:64] for line in lines}
    expected = {name: hashlib.sha256(data).hexdigest() for name, data in finished(out).items() if name != "SHA256SUMS"}
    assert listed == expected and list(listed) == sorted(expected) and len(lines) == len(expected)
    assert subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=out).returncode == 0


@pytest.mark.parametrize("lost", ["images/00000/cxr00000001.png", "webdataset/shard-000002.tar"])
def test_a_set_that_has_lost_a_file_gets_no_sums(tmp_path, lost):
    out = write_set(tmp_path / "set", card=False)
    (out / lost).unlink()
    with pytest.raises(UserError, match=rf"{lost} is gone; run the same command again"):
        write_sums(out)
    assert not (out / "SHA256SUMS").exists()


@pytest.mark.parametrize("harm", ["gone", "spoiled"])
def test_a_set_passes_its_own_check_only_if_whole(tmp_path, harm):
    out = write_set(tmp_path / "set")
    check_sums(out)
    path = out / "dicom/images/00001/cxr00001001/image.dcm"
    path.unlink() if harm == "gone" else path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"is not whole: 1 of its files are gone or damaged, such as dicom/images"):
        check_sums(out)


def test_sums_tell_what_was_meant(tmp_path):
    """A file that the disk spoiled after its shard was finished must not get the sum of its spoiled bytes."""
    out = write_set(tmp_path / "set")
    (out / "images/00000/cxr00000001.png").write_bytes(b"spoiled")
    write_sums(out)
    assert subprocess.run(["sha256sum", "--check", "--status", "SHA256SUMS"], cwd=out).returncode == 1


# ------------------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("name", ["folder", "dicom"])
def test_finish_does_not_grow_with_the_set(tmp_path, name):
    def peak(shards: int) -> int:
        out = tmp_path / str(shards)
        writer = FORMATS[name](out, INFO)
        writer.write_shard(0, [make_record(slot) for slot in range(20)])
        part = Parts(out, name).read(0)
        for shard in range(1, shards):
            Parts(out, name).write(shard, Part({}, part.rows))
        tracemalloc.start()
        writer.finish(shards)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        table = out / ("manifest.csv" if name == "folder" else "dicom/index.csv")
        assert len(pd.read_csv(table)) == 20 * shards
        return found

    few, many = peak(10), peak(400)
    assert many < few + 100_000, (few, many)


def test_sums_do_not_grow_with_the_set(tmp_path):
    def peak(files: int) -> int:
        out = tmp_path / str(files)
        for start in range(0, files, 100):
            names = [f"images/{start // 100:05d}/{slot:08d}.png" for slot in range(start, start + 100)]
            (out / names[0]).parent.mkdir(parents=True)
            for path in names:
                (out / path).touch()
            Parts(out, "folder").write(start // 100, Part(dict.fromkeys(names, "0" * 64), []))
        tracemalloc.start()
        write_sums(out)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len((out / "SHA256SUMS").read_text().splitlines()) == files
        return found

    few, many = peak(500), peak(5000)
    assert many < few + 100_000, (few, many)
