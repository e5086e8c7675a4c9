"""Small directory trees in exactly the layouts of CheXpert, CheXpert Plus, NIH, PadChest and a hospital's DICOM."""

from __future__ import annotations

import csv
import gzip
import importlib.util
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

CHEXPERT_HEADER = (
    "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,"
    "Edema,Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices"
)
CHEXPERT_LABELS = CHEXPERT_HEADER.split(",")[5:]
PLUS_HEADER = (
    "path_to_image,path_to_dcm,frontal_lateral,ap_pa,deid_patient_id,patient_report_date_order,report,section_narrative,"
    "section_clinical_history,section_history,section_comparison,section_technique,section_procedure_comments,"
    "section_findings,section_impression,section_end_of_impression,section_summary,section_accession_number,age,sex,"
    "race,ethnicity,interpreter_needed,insurance_type,recent_bmi,deceased,split"
)
NIH_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
PADCHEST_HEADER = (
    ",ImageID,ImageDir,StudyDate_DICOM,StudyID,PatientID,PatientBirth,PatientSex_DICOM,ViewPosition_DICOM,Projection,"
    "MethodProjection,Pediatric,Modality_DICOM,Manufacturer_DICOM,PhotometricInterpretation_DICOM,"
    "PixelRepresentation_DICOM,PixelAspectRatio_DICOM,SpatialResolution_DICOM,BitsStored_DICOM,WindowCenter_DICOM,"
    "WindowWidth_DICOM,Rows_DICOM,Columns_DICOM,XRayTubeCurrent_DICOM,Exposure_DICOM,ExposureInuAs_DICOM,ExposureTime,"
    "RelativeXRayExposure_DICOM,ReportID,Report,MethodLabel,Labels,Localizations,LabelsLocalizationsBySentence,"
    "labelCUIS,LocalizationsCUIS"
)
PADCHEST_TABLE = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"


def by_image(table: pd.DataFrame) -> dict[str, dict]:
    """A manifest table's rows by the names of their files."""
    return {Path(row["image"]).name: row for row in table.to_dict("records")}


def carried(name: str) -> Path:
    """A real table that comes with torchxrayvision, found without importing the package."""
    spec = importlib.util.find_spec("torchxrayvision")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "data" / name


def carried_rows(name: str) -> Iterable[dict[str, str]]:
    """The rows of such a table, read without pandas, so that counts are independent of the adapters' reading."""
    with gzip.open(carried(name), "rt", encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def write_image(path: Path, *, bits: int = 8) -> None:
    """A grey image of 8 x 8 pixels, PNG (8 or 16 bits) or JPEG by its ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ramp = np.arange(64).reshape(8, 8)
    pixels = (ramp * 4).astype(np.uint8) if bits == 8 else (ramp * 1000).astype(np.uint16)
    Image.fromarray(pixels).save(path)


def write_csv(path: Path, header: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """A CSV with this header; cells that a row lacks are blank; gzip by the ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=next(csv.reader([header])), restval="")
    writer.writeheader()
    writer.writerows(rows)
    content = text.getvalue().encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def chexpert_row(path: str, *, sex: str = "Male", age: int = 60, view: str = "AP", **labels: str) -> dict[str, Any]:
    """One row of CheXpert's ``train.csv``; labels with "_" for the space of their name."""
    frontal = "Lateral" if "lateral" in path else "Frontal"
    row = {
        "Path": path,
        "Sex": sex,
        "Age": age,
        "Frontal/Lateral": frontal,
        "AP/PA": "" if frontal == "Lateral" else view,
    }
    return row | {name.replace("_", " "): value for name, value in labels.items()}


def chexpert_tree(parent: Path, *, test: bool = False) -> Path:
    """``CheXpert-v1.0-small`` below ``parent``: 12 train patients with a lateral each, two valid, one test patient."""
    folder = parent / "CheXpert-v1.0-small"
    start = folder.name
    train = [
        chexpert_row(
            f"{start}/train/patient00001/study1/view1_frontal.jpg",
            sex="Female",
            age=68,
            No_Finding="1.0",
            Pneumothorax="0.0",
            Support_Devices="1.0",
        ),
        chexpert_row(
            f"{start}/train/patient00002/study2/view1_frontal.jpg",
            view="PA",
            Cardiomegaly="-1.0",
            Pleural_Effusion="1.0",
            Edema="0.0",
        ),
        chexpert_row(f"{start}/train/patient00003/study1/view1_frontal.jpg", sex="Unknown", age=0, Fracture="1.0"),
        chexpert_row(f"{start}/train/patient00004/study1/view1_frontal.jpg", view="LL", Edema="1.0"),
        *(
            chexpert_row(f"{start}/train/patient{number:05d}/study1/view1_frontal.jpg", Lung_Opacity="1.0")
            for number in range(5, 13)
        ),
        *(chexpert_row(f"{start}/train/patient{number:05d}/study1/view2_lateral.jpg") for number in range(1, 13)),
    ]
    valid = [
        chexpert_row(f"{start}/valid/patient64541/study1/view1_frontal.jpg", Cardiomegaly="1.0", Atelectasis="0.0"),
        chexpert_row(f"{start}/valid/patient64542/study1/view1_frontal.jpg", view="PA", No_Finding="1.0"),
        chexpert_row(f"{start}/valid/patient64542/study1/view2_lateral.jpg", No_Finding="1.0"),
    ]
    write_csv(folder / "train.csv", CHEXPERT_HEADER, train)
    write_csv(folder / "valid.csv", CHEXPERT_HEADER, valid)
    for row in train + valid:
        write_image(parent / row["Path"])
    if test:
        labels = [name for name in CHEXPERT_LABELS if name != "No Finding"]
        rows = [
            {"Path": f"test/patient64741/study1/{view}.jpg", **dict.fromkeys(labels, "0.0"), "Edema": "1.0"}
            for view in ("view1_frontal", "view2_lateral")
        ]
        write_csv(folder / "test_labels.csv", ",".join(["Path", *labels]), rows)
        for row in rows:
            write_image(folder / row["Path"])
    return folder


def plus_row(
    path: str, *, impression: str = "", findings: str = "", split: str = "train", **cells: Any
) -> dict[str, Any]:
    """One row of CheXpert Plus' table."""
    patient = path.split("/")[1]
    return {
        "path_to_image": path,
        "path_to_dcm": path.replace(".jpg", ".dcm"),
        "frontal_lateral": "Lateral" if "lateral" in path else "Frontal",
        "ap_pa": "" if "lateral" in path else "AP",
        "deid_patient_id": patient,
        "patient_report_date_order": 1,
        "report": f"NARRATIVE: RADIOGRAPHIC EXAMINATION OF THE CHEST\n \nIMPRESSION: {impression}",
        "section_impression": impression,
        "section_findings": findings,
        "age": 60,
        "sex": "Male",
        "split": split,
    } | cells


def plus_tree(folder: Path, *, images: str = "PNG", labels: bool = True) -> Path:
    """CheXpert Plus: the table, ``chexbert_labels/impression_fixed.json`` and PNG images below ``images``."""
    rows = [
        plus_row(
            "train/patient00001/study1/view1_frontal.jpg",
            impression="1. NO ACUTE CARDIOPULMONARY DISEASE.\n \n2. RIGHT PICC LINE,\nUNCHANGED.",
            sex="Female",
        ),
        plus_row("train/patient00001/study1/view2_lateral.jpg", impression="1. NO ACUTE DISEASE."),
        plus_row("train/patient00002/study1/view1_frontal.jpg", findings="Small left pleural effusion."),
        plus_row("valid/patient64541/study1/view1_frontal.jpg", impression="Cardiomegaly.", split="valid"),
    ]
    write_csv(folder / "df_chexpert_plus_240401.csv", PLUS_HEADER, rows)
    for row in rows:
        write_image(folder / images / row["path_to_image"].replace(".jpg", ".png"))
    if labels:
        present = [
            {"No Finding": 1.0},
            {"No Finding": 1.0},
            {"Pleural Effusion": 1.0, "Edema": -1.0},
            {"Cardiomegaly": 1.0},
        ]
        path = folder / "chexbert_labels" / "impression_fixed.json"
        path.parent.mkdir()
        blank = dict.fromkeys(CHEXPERT_LABELS)
        records = [
            {"path_to_image": row["path_to_image"], **blank, **given} for row, given in zip(rows, present, strict=True)
        ]
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def nih_row(image: str, labels: str, *, age: str = "057", sex: str = "M", view: str = "PA") -> dict[str, Any]:
    """One row of the older table, in which ages are written as "057Y"."""
    return {
        "Image Index": image,
        "Finding Labels": labels,
        "Follow-up #": int(image[9:12]),
        "Patient ID": int(image[:8]),
        "Patient Age": f"{age}Y",
        "Patient Gender": sex,
        "View Position": view,
        "OriginalImage[Width": 2682,
        "Height]": 2749,
        "OriginalImagePixelSpacing[x": 0.143,
        "y]": 0.143,
    }


def nih_tree(folder: Path, *, old: bool = False, flat: bool = False) -> Path:
    """NIH ChestX-ray14: table, lists, boxes, and images in ``images_001/images`` and ``images_002/images``, or flat."""
    rows = [
        nih_row("00000001_000.png", "Cardiomegaly|Effusion"),
        nih_row("00000001_001.png", "Effusion", view="AP"),
        nih_row("00000002_000.png", "No Finding", age="414", sex="F"),
        *(nih_row(f"{number:08d}_000.png", "Infiltration") for number in range(3, 13)),
        nih_row("00000013_000.png", "Nodule|Mass|Pleural_Thickening"),
    ]
    if not old:
        rows = [row | {"Patient Age": int(row["Patient Age"][:-1])} for row in rows]
    header = NIH_HEADER + ("," if old else "")  # the older table ends every line with a comma
    write_csv(folder / ("Data_Entry_2017.csv" if old else "Data_Entry_2017_v2020.csv"), header, rows)
    names = [row["Image Index"] for row in rows]
    (folder / "train_val_list.txt").write_text("\n".join(names[:-1]))  # no line break at the end, as in the real one
    (folder / "test_list.txt").write_text(names[-1])
    boxes = [
        ("00000001_000.png", "Effusion", 600.0, 100.0),
        ("00000001_000.png", "Cardiomegaly", 300.0, 400.0),
        ("00000001_001.png", "Effusion", 100.0, 200.0),
        ("00000003_000.png", "Infiltrate", 500.0, 100.0),
        ("00000004_000.png", "Infiltrate", 100.0, 200.0),
        ("00000004_000.png", "Infiltrate", 700.0, 200.0),
        ("00000013_000.png", "Nodule", 512.0, 30.0),
        ("00000013_000.png", "Mass", 412.0, 100.0),
    ]
    lines = [f"{name},{finding},{x},500.0,{width},80.0,,,\n" for name, finding, x, width in boxes]
    (folder / "BBox_List_2017.csv").write_text("Image Index,Finding Label,Bbox [x,y,w,h],,,\n" + "".join(lines))
    for number, name in enumerate(names):
        write_image(folder / ("images" if flat else f"images_{number // 8 + 1:03d}/images") / name)
    return folder


def padchest_row(
    image: str, labels: Sequence[str], sentences: Sequence[Sequence[str]] = (), *, projection: str = "PA", **cells: Any
) -> dict[str, Any]:
    """One row of PadChest's table; lists are written as Python writes them."""
    return {
        "ImageID": image,
        "ImageDir": "0",
        "StudyDate_DICOM": "20140915",
        "StudyID": image.split("_")[0],
        "PatientID": f"8398604886{image.split('_')[0]}",
        "PatientBirth": "1930.0",
        "PatientSex_DICOM": "F",
        "ViewPosition_DICOM": "POSTEROANTERIOR",
        "Projection": projection,
        "Report": " sin hallazg patolog edad pacient .",
        "MethodLabel": "Physician",
        "Labels": str(list(labels)),
        "LabelsLocalizationsBySentence": str([list(sentence) for sentence in sentences]),
    } | cells


def padchest_tree(folder: Path, *, flat: bool = False, compressed: bool = True) -> Path:
    """PadChest: the table (gzip as downloaded) and 16-bit PNG images in ``0`` and ``1``, or all in one folder."""
    rows = [
        padchest_row("20536_k6ga29.png", ["normal"], [["normal"], ["normal"]]),
        padchest_row(
            "20537_a.png",
            ["pleural effusion", " laminar atelectasis", "cardiomegaly", "scoliosis"],
            [
                ["pleural effusion", "loc pleural", "loc left"],
                ["laminar atelectasis", "loc subsegmental", "loc right lower lobe"],
                ["laminar atelectasis", "loc lingula"],
                ["cardiomegaly", "loc cardiac"],
            ],
            projection="AP_horizontal",
            MethodLabel="RNN_model",
        ),
        padchest_row(
            "20538_b.png",
            ["nodule", "infiltrates", "unchanged"],
            [["nodule", "infiltrates", "loc right"], ["unchanged"]],
            PatientBirth="",
            PatientSex_DICOM="O",
            ImageDir="1",
        ),
        padchest_row("20539_c.png", ["normal"], projection="L"),
        padchest_row("20540_d.png", ["unchanged"]),
        padchest_row("20541_e.png", ["exclude"]),
        padchest_row("20542_f.png", [], Labels="nan", Report="nan", LabelsLocalizationsBySentence="nan"),
        padchest_row(
            "20543_g.png",
            ["pneumonia"],
            Report="nan",
            LabelsLocalizationsBySentence="[nan, ['pneumonia', 'loc middle lobe'], []]",
            projection="AP",
            ImageDir="1",
        ),
    ]
    write_csv(folder / (PADCHEST_TABLE + (".gz" if compressed else "")), PADCHEST_HEADER, rows)
    for row in rows:
        write_image(folder / ("." if flat else row["ImageDir"]) / row["ImageID"], bits=16)
    return folder


def write_dicom(path: Path, **tags: Any) -> None:
    """A DICOM file of 4 x 4 pixels, a frontal chest radiograph unless ``tags`` say otherwise; None leaves a tag out."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

    name = path.stem
    cells = {
        "Modality": "DX",
        "ViewPosition": "PA",
        "BodyPartExamined": "CHEST",
        "PatientID": f"P-{name}",
        "PatientSex": "F",
        "PatientAge": "045Y",
        "StudyDate": "20200601",
        "AccessionNumber": f"A{name}",
        "StudyInstanceUID": generate_uid(entropy_srcs=["study", name]),
        "SOPInstanceUID": generate_uid(entropy_srcs=["image", name]),
        "PatientOrientation": ["L", "F"],
        "Rows": 4,
        "Columns": 4,
    } | tags
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["file", str(path)])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = Dataset()
    data.file_meta = meta
    data.SOPClassUID = DigitalXRayImageStorageForPresentation
    for tag, value in cells.items():
        if value is not None:
            setattr(data, tag, value)
    if cells["Rows"] is not None:
        data.SamplesPerPixel, data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = (
            1,
            16,
            12,
            11,
            0,
        )
        data.PhotometricInterpretation = "MONOCHROME2"
        data.PixelData = np.arange(16, dtype=np.uint16).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)


def dicom_tree(folder: Path) -> tuple[Path, Path]:
    """A hospital's export: (folder of DICOM files with and without ending, CSV of reports beside it)."""
    root = folder / "export"
    write_dicom(root / "2020/06/001.dcm", AccessionNumber="A001")
    write_dicom(root / "2020/06/IM0002", ViewPosition="AP", Modality="CR", PatientSex="M", AccessionNumber="A002")
    write_dicom(root / "2020/06/003.dcm", ViewPosition=None, PatientAge="018M", PatientSex="O", AccessionNumber="A003")
    write_dicom(root / "2020/06/004.dcm", PatientAge=None, PatientBirthDate="19500602", AccessionNumber="A004")
    write_dicom(root / "lateral.dcm", ViewPosition="LL", AccessionNumber="A001", PatientOrientation=["A", "F"])
    write_dicom(root / "ct.dcm", Modality="CT", ViewPosition=None)
    write_dicom(root / "hand.dcm", BodyPartExamined="HAND")
    write_dicom(root / "raw.dcm", PresentationIntentType="FOR PROCESSING")
    write_dicom(root / "mirrored.dcm", PatientOrientation=["R", "F"])
    write_dicom(root / "unknown.dcm", ViewPosition=None, PatientOrientation=None)
    write_dicom(root / "noreport.dcm", BodyPartExamined="PORT CHEST")
    write_dicom(root / "report.sr", Rows=None, Modality="SR")
    (root / "copy").mkdir()
    (root / "copy/001.dcm").write_bytes((root / "2020/06/001.dcm").read_bytes())
    (root / "notes.txt").write_text("exported on Monday")
    (root / "empty.dcm").write_bytes(b"")
    reports = folder / "reports.csv"
    rows = [
        {
            "accession": "A001",
            "text": "INDICATION: Cough.\nFINDINGS: Clear.\nIMPRESSION:\n1. No acute process.",
            "set": "training",
            "Pleural Thickening": "0",
            "effusion": "-1",
        },
        {"accession": "A002", "text": "FINDINGS: Left effusion.", "set": "train", "effusion": "1"},
        {"accession": "A003", "text": "IMPRESSION: Viral pneumonia.", "set": "validation"},
        {"accession": "A004", "text": "IMPRESSION: Large hiatal hernia.", "set": "test"},
        {"accession": "A999", "text": "IMPRESSION: No image.", "set": "test"},
    ]
    write_csv(reports, "accession,text,set,effusion,Pleural Thickening", rows)
    return root, reports


NIH, COVID = "NIH ChestX-ray14", "Hannover COVID-19 Image Repository"


def film(seed: int, size: tuple[int, int] = (80, 80)) -> np.ndarray:
    """A picture with what the frontal test looks for: two dark lungs beside a bright middle, and noise."""
    height, width = size
    x = np.linspace(-1, 1, width)[None, :]
    y = np.linspace(-1, 1, height)[:, None]
    lungs = np.exp(-(((np.abs(x) - 0.45) / 0.25) ** 2) - (y / 0.5) ** 2)
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 60, (10, 10), dtype=np.uint8)).resize((width, height))
    return np.clip(180 - 130 * lungs + np.asarray(coarse) - 30, 0, 255).astype(np.uint8)


def openchest_tree(root: Path) -> Path:
    """Two parts of openchest, with their metadata."""
    columns = "file,split,source,licence,patient_id,view,sex,age,findings,laterality,region,boxes,report"
    rows: dict[str, list[tuple]] = {
        "nih128": [
            ("n1.png", "train", NIH, "nih1", "No Finding", "", ""),
            ("n2.png", "train", NIH, "nih2", "Effusion;Infiltration", "left", "Effusion:left lower"),
            ("n3.png", "test", NIH, "nih3", "Infiltration", "right", "Lung Opacity:right mid"),
            ("n4.png", "test", NIH, "nih4", "Effusion", "right", "Lung Opacity:right mid"),
            ("n5.png", "val", NIH, "nih5", "No Finding", "left", "Lung Opacity:left mid"),
        ],
        "cxr320": [
            ("c1.png", "train", COVID, "han1", "COVID-19;ARDS", "bilateral", ""),
            ("c2.png", "train", COVID, "han2", "No Finding", "", ""),
        ],
    }
    for number, (folder, records) in enumerate(rows.items()):
        (root / folder / "images").mkdir(parents=True)
        table = []
        for index, (name, split, source, patient, findings, laterality, region) in enumerate(records):
            Image.fromarray(film(10 * number + index)).save(root / folder / "images" / name)
            age = "paediatric (1-5 y)" if name == "c2.png" else "54"
            report = "with co-infection" if name == "c1.png" else ""
            row = (f"images/{name}", split, source, "free", patient, "PA", "F", age, findings, laterality)
            table.append((*row, region, "", report))
        frame = pd.DataFrame(table, columns=columns.split(","))
        frame.to_csv(root / folder / "metadata.csv", index=False)
    return root
