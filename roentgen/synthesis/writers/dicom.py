"""DICOM studies of nobody: a Secondary Capture image and a Basic Text SR that says what the image was asked to show."""

from __future__ import annotations

import json
from collections.abc import Sequence

from pydicom.dataset import Dataset
from pydicom.uid import BasicTextSRStorage, generate_uid

from roentgen.dicom import dicom_bytes, dicom_dataset, marks_text
from roentgen.dicom_report import container, language, of_study, text_item
from roentgen.files import sha256, write_atomic
from roentgen.provenance import as_marks
from roentgen.synthesis.writers.parts import FOLDER_SIZE, Part, Record, Writer, cell_text

_ADDED = ("report", "study_instance_uid", "sop_instance_uid")
_NO_DATE, _NO_TIME = "19700101", "000000"  # reports and DICOMDIR need a date, and files made twice must be the same
# Of the image, for its report: the patient, the study and what both were made by (PS3.3 C.7.1.1, C.7.2.1, C.7.5.1).
_SHARED = (
    *("SpecificCharacterSet", "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "PatientAge"),
    *("PatientIdentityRemoved", "DeidentificationMethod", "PatientComments"),
    *("StudyInstanceUID", "StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID", "AccessionNumber"),
    *("StudyDescription", "Manufacturer", "SoftwareVersions", "ContributingEquipmentSequence"),
)


class DicomWriter(Writer):
    """A study an image, and ``dicom/index.csv``; see ``Writer``."""

    name = "dicom"
    folders = ("dicom/images/", "dicom/reports/")

    def write_shard(self, shard: int, records: Sequence[Record]) -> None:
        """See ``Writer``."""
        files, rows = {}, []
        for record in records:
            study = f"{record.row.slot // FOLDER_SIZE:05d}/{record.name}"
            image = make_image(record)
            # Folders of their own: readers of series take all files of a folder for one.
            paths = {"images": f"images/{study}/image.dcm", "reports": f"reports/{study}/report.dcm"}
            for name, dataset in (("images", image), ("reports", make_report(record, image))):
                path = f"dicom/{paths[name]}"
                data = dicom_bytes(dataset)
                write_atomic(self.out / path, data, scratch=self.parts.scratch)
                files[path] = sha256(data)
            added = [paths["reports"], str(image.StudyInstanceUID), str(image.SOPInstanceUID)]
            rows.append([*self.cells(record, paths["images"]), *added])
        self.parts.write(shard, Part(files, rows))

    def finish(self, shards: int) -> None:
        """See ``Writer``."""
        header = [*self.columns, *_ADDED]
        with self.open_table("dicom/index.csv", header) as table:
            for row in self.parts.rows(shards):
                table.writerow([cell_text(value) for value in row])


def make_image(record: Record) -> Dataset:
    """The record's image with UIDs that follow from it, and ``_NO_DATE``."""
    labels = record.row.labels
    data: Dataset = dicom_dataset(record.image, record.provenance)
    data.PatientName, data.PatientID = f"Synthetic^CXR {record.name}", record.patient_id
    data.PatientSex = labels.sex or ""
    if labels.age is not None:
        data.PatientAge = f"{int(labels.age):03d}Y" if labels.age >= 1 else f"{int(labels.age * 12):03d}M"
    if labels.view is not None:
        data.ViewPosition = labels.view
    data.StudyInstanceUID = _uid(record, "study")
    data.SeriesInstanceUID = _uid(record, "series of the image")
    data.SOPInstanceUID = _uid(record, "image")
    data.StudyDate, data.StudyTime, data.StudyID = _NO_DATE, _NO_TIME, record.name
    for keyword in ("ContentDate", "ContentTime", "InstanceCreationDate", "InstanceCreationTime"):
        delattr(data, keyword)
    return data


def make_report(record: Record, image: Dataset) -> Dataset:
    """A Basic Text SR (PS3.3 A.35.1) of the image's patient and study, built like a report of TID 2000.

    Findings has one text a finding that the prompt asks for, Impressions the prompt itself, inferred from the image.
    """
    data = Dataset()
    instance = of_study(data, image, _SHARED)
    data.SOPClassUID, data.SOPInstanceUID = BasicTextSRStorage, _uid(record, "report")
    data.Modality, data.SeriesInstanceUID = "SR", _uid(record, "series of the report")
    data.SeriesNumber, data.InstanceNumber = 2, 1
    data.SeriesDescription = "Prompt of a synthetic chest X-ray, not for diagnosis"
    data.ReferencedPerformedProcedureStepSequence = []
    data.PerformedProcedureCodeSequence = []
    data.ContentDate, data.ContentTime = _NO_DATE, _NO_TIME
    data.CompletionFlag, data.VerificationFlag = "COMPLETE", "UNVERIFIED"

    source = Dataset()
    source.RelationshipType, source.ValueType = "INFERRED FROM", "IMAGE"
    source.ReferencedSOPSequence = [instance]
    impression = text_item("Impression", record.row.prompt)
    impression.ContentSequence = [source]
    labels = record.row.labels
    findings = [
        text_item("Finding", f"{name}, {labels.sides[name]}" if name in labels.sides else name)
        for name in labels.findings
    ]
    origin = marks_text(as_marks(record.provenance))
    comment = text_item("Comment", f"Synthetic, of no patient; not for diagnosis. {origin}")
    sections = [container("Findings", findings)] if findings else []
    sections.append(container("Impressions", [impression]))
    root = container("Diagnostic imaging report", [language(), comment, *sections])
    del root.RelationshipType
    data.update(root)
    return data


def _uid(record: Record, kind: str) -> str:
    """A UID, the same each time: from the slot and all that the image depends on."""
    origin = [kind, str(record.row.slot), str(record.seed), json.dumps(sorted(record.provenance.items()))]
    return str(generate_uid(entropy_srcs=origin))
