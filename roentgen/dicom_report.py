"""Content items of DICOM structured reports (PS3.3 C.17.3), for what is asked of an image and what is read off one."""

from __future__ import annotations

from collections.abc import Sequence

from pydicom.dataset import Dataset

from roentgen.dicom import COMMENT, long_text

# Concept names: LOINC's and those of PS3.16 CID 7000, 7001, 7002, TID 1002 and 1004.
_CONCEPTS = {
    "Diagnostic imaging report": ("18748-4", "LN"),
    "Language of Content Item and Descendants": ("121049", "DCM"),
    "Comment": (COMMENT, "DCM"),
    "Findings": ("121070", "DCM"),
    "Finding": ("121071", "DCM"),
    "Impressions": ("121072", "DCM"),
    "Impression": ("121073", "DCM"),
    "Observer Type": ("121005", "DCM"),
    "Device": ("121007", "DCM"),
    "Device Observer UID": ("121012", "DCM"),
    "Device Observer Name": ("121013", "DCM"),
    "Image Region": ("111030", "DCM"),
}


def of_study(made: Dataset, image: Dataset, keywords: Sequence[str]) -> Dataset:
    """Put a report ``made`` of ``image`` into its study: the attributes ``keywords`` and the evidence.

    Returns:
        The item that refers to the image.
    """
    for keyword in keywords:
        if keyword in image:
            made[keyword] = image[keyword]
    instance, series, study = Dataset(), Dataset(), Dataset()
    instance.ReferencedSOPClassUID, instance.ReferencedSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
    series.SeriesInstanceUID, series.ReferencedSOPSequence = image.SeriesInstanceUID, [instance]
    study.StudyInstanceUID, study.ReferencedSeriesSequence = image.StudyInstanceUID, [series]
    made.CurrentRequestedProcedureEvidenceSequence = [study]
    return instance


def code(value: str, scheme: str, meaning: str) -> Dataset:
    """An item of a code sequence."""
    made = Dataset()
    made.CodeValue, made.CodingSchemeDesignator, made.CodeMeaning = value, scheme, meaning
    return made


def concept(name: str) -> Dataset:
    """The code of a concept that is known here."""
    return code(*_CONCEPTS[name], name)


def item(kind: str, relationship: str, name: str | None = None) -> Dataset:
    """A content item of value type ``kind``; ``name`` is its concept."""
    made = Dataset()
    made.RelationshipType, made.ValueType = relationship, kind
    if name is not None:
        made.ConceptNameCodeSequence = [concept(name)]
    return made


def text_item(name: str, text: str, *, relationship: str = "CONTAINS") -> Dataset:
    """A text."""
    made = item("TEXT", relationship, name)
    made.TextValue = long_text(text)
    return made


def container(name: str, items: list[Dataset]) -> Dataset:
    """A heading with what stands below it."""
    made = item("CONTAINER", "CONTAINS", name)
    made.ContinuityOfContent = "SEPARATE"
    made.ContentSequence = items
    return made


def language() -> Dataset:
    """The report is in English."""
    made = item("CODE", "HAS CONCEPT MOD", "Language of Content Item and Descendants")
    made.ConceptCodeSequence = [code("en", "RFC5646", "English")]
    return made


def device_observer(uid: str, name: str) -> list[Dataset]:
    """Who observed: a device (PS3.16 TID 1002, 1004), not a person."""
    kind = item("CODE", "HAS OBS CONTEXT", "Observer Type")
    kind.ConceptCodeSequence = [concept("Device")]
    identity = item("UIDREF", "HAS OBS CONTEXT", "Device Observer UID")
    identity.UID = uid
    return [kind, identity, text_item("Device Observer Name", name, relationship="HAS OBS CONTEXT")]


def region(pixels: Sequence[float], image: Dataset) -> Dataset:
    """A closed rectangle of edges (x1, y1, x2, y2) in pixels on ``image``, a reference of C.10.6."""
    x1, y1, x2, y2 = pixels
    made = item("SCOORD", "INFERRED FROM", "Image Region")
    made.GraphicType = "POLYLINE"
    made.GraphicData = [float(v) for v in (x1, y1, x2, y1, x2, y2, x1, y2, x1, y1)]
    source = item("IMAGE", "SELECTED FROM")
    source.ReferencedSOPSequence = [image]
    made.ContentSequence = [source]
    return made
