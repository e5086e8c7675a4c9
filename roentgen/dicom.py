"""DICOM: stored values to grey as a viewer shows them, and images of nobody as Secondary Captures."""

from __future__ import annotations

import datetime
import io
import json
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from roentgen.errors import UserError
from roentgen.provenance import SOFTWARE, as_marks, read_marks

COMMENT = "121106"
"""DCM code of a comment in a structured report; ours begins with words and ends with the marks as JSON."""


def read_dicom(path: Path, source: Path | io.BytesIO) -> np.ndarray:
    import pydicom
    from pydicom.pixels import apply_modality_lut, apply_voi_lut, convert_color_space

    data = pydicom.dcmread(source)
    if "PixelData" not in data:
        raise UserError(f"{path}: this DICOM file has no pixels; leave it out")
    if int(data.get("NumberOfFrames") or 1) != 1:
        raise UserError(f"{path}: DICOM files with several frames are not supported; export one frame")
    pixels = data.pixel_array
    photometric = str(data.PhotometricInterpretation)
    if pixels.ndim == 3:
        if photometric.startswith("YBR"):
            pixels = convert_color_space(pixels, photometric, "RGB")
        return np.array(Image.fromarray(pixels.astype(np.uint8)).convert("L"), dtype=np.uint8)

    # DICOM PS3.4 N.2: stored values -> modality LUT -> VOI LUT (or window) -> display; MONOCHROME1 last.
    modality = apply_modality_lut(pixels, data)
    values = np.asarray(apply_voi_lut(modality, data, prefer_lut=True), dtype=np.float64)
    low, high = _voi_range(data, values)
    scaled = np.clip((values - low) / (high - low), 0.0, 1.0) if high > low else np.zeros_like(values)
    if photometric == "MONOCHROME1":
        scaled = 1.0 - scaled
    return np.rint(scaled * 255.0).astype(np.uint8)


def _voi_range(data: Any, values: np.ndarray) -> tuple[float, float]:
    """Lowest and highest value of pydicom's VOI output: the LUT's, the window's, or the image's own."""
    if "VOILUTSequence" in data and len(data.VOILUTSequence) > 0:
        entries = data.VOILUTSequence[0].LUTData
        if isinstance(entries, bytes):  # OW rather than US
            entries = np.frombuffer(entries, "<u2" if data.VOILUTSequence[0].LUTDescriptor[2] > 8 else "u1")
        return float(np.min(entries)), float(np.max(entries))
    if data.get("WindowWidth") is None or data.get("WindowCenter") is None:
        if int(data.BitsStored) == 8 and data.get("RescaleSlope") is None:
            return 0.0, 255.0  # made for display, as secondary captures are: nothing to stretch
        return float(values.min()), float(values.max())
    # pydicom maps the window onto the full range of the stored type, taken through the modality transform.
    bits = int(data.BitsStored)
    signed = int(data.PixelRepresentation) == 1
    low, high = (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if signed else (0.0, 2.0**bits - 1)
    if "ModalityLUTSequence" in data and len(data.ModalityLUTSequence) > 0:
        return 0.0, 2.0 ** int(data.ModalityLUTSequence[0].LUTDescriptor[2]) - 1
    if data.get("RescaleSlope") is not None and data.get("RescaleIntercept") is not None:
        slope, intercept = float(data.RescaleSlope), float(data.RescaleIntercept)
        low, high = low * slope + intercept, high * slope + intercept
    return low, high


def dicom_dataset(image: np.ndarray, provenance: Mapping[str, str]) -> Any:
    """A Secondary Capture Image (PS3.3 A.8.1) of nobody: synthetic in every place the standard has for it.

    A ``pydicom.Dataset`` of uint8 grey [H, W] with new random UIDs, dated now, for ``dicom_bytes``.
    """
    from pydicom.dataset import Dataset
    from pydicom.uid import SecondaryCaptureImageStorage, generate_uid

    if image.dtype != np.uint8 or image.ndim != 2 or 0 in image.shape:
        raise ValueError(f"expected a uint8 [H, W] image, got {image.dtype} {image.shape}")
    written = as_marks(provenance)
    now = datetime.datetime.now()
    date, time = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    version, model = written.get("version", ""), written.get("model", "")
    data = Dataset()
    data.SpecificCharacterSet = "ISO_IR 192"
    data.SOPClassUID = SecondaryCaptureImageStorage
    data.SOPInstanceUID = generate_uid()
    # Patient and study: type 2 attributes are present and empty, there is no person behind them.
    data.PatientName, data.PatientID = "Synthetic^CXR", "SYNTHETIC"
    data.PatientBirthDate = data.PatientSex = ""
    data.PatientIdentityRemoved = "YES"
    data.DeidentificationMethod = "Synthetic image of no person"
    data.PatientComments = "Synthetic image, not of a patient; not for diagnosis"
    data.StudyInstanceUID, data.SeriesInstanceUID = generate_uid(), generate_uid()
    data.StudyDate = data.ContentDate = data.InstanceCreationDate = date
    data.StudyTime = data.ContentTime = data.InstanceCreationTime = time
    data.ReferringPhysicianName = data.StudyID = data.AccessionNumber = ""
    data.StudyDescription = "Synthetic chest radiograph"
    data.Modality, data.ConversionType = "OT", "SYN"
    data.SeriesNumber, data.InstanceNumber = 1, 1
    series = written.get("prompt") or "Chest X-ray, not for diagnosis"
    data.SeriesDescription = short_text(series, ending=" (Synthetic)")
    data.BodyPartExamined = "CHEST"
    data.PatientOrientation = ["L", "F"]  # rows run to the patient's left, columns to the feet
    data.Manufacturer = data.SecondaryCaptureDeviceManufacturer = SOFTWARE
    data.SoftwareVersions = data.SecondaryCaptureDeviceSoftwareVersions = short_text(version) or "unknown"
    data.ImageType = ["DERIVED", "SECONDARY"]
    data.DerivationDescription = long_text(f"Synthetic: made from text by {SOFTWARE} {version}, model {model}")[:1024]
    data.ImageComments = marks_text(written)
    data.BurnedInAnnotation = data.RecognizableVisualFeatures = "NO"
    data.LossyImageCompression = "00"
    purpose = Dataset()
    purpose.CodeValue, purpose.CodingSchemeDesignator = "109102", "DCM"
    purpose.CodeMeaning = "Processing Equipment"
    equipment = Dataset()
    equipment.PurposeOfReferenceCodeSequence = [purpose]
    equipment.Manufacturer, equipment.ManufacturerModelName = SOFTWARE, short_text(model)
    equipment.SoftwareVersions = short_text(version) or "unknown"
    equipment.ContributionDescription = "Generated the synthetic image from text"
    data.ContributingEquipmentSequence = [equipment]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.Rows, data.Columns = image.shape
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 8, 8, 7, 0
    pixels = image.tobytes()
    data.PixelData = pixels + b"\0" * (len(pixels) % 2)
    data["PixelData"].VR = "OB"
    return data


def short_text(text: str, *, ending: str = "") -> str:
    """``text`` as VR LO takes it (PS3.5 6.2): one line of 64 characters, without the backslash that separates values.

    What is longer ends in "..."; ``ending`` always fits. What must not be cut belongs into a comment as well.
    """
    line = " ".join(long_text(text).replace("\\", "/").split())
    most = 64 - len(ending)
    return (line if len(line) <= most else f"{line[: most - 3].rstrip()}...") + ending


def long_text(text: str) -> str:
    """``text`` as VRs ST, LT and UT take it: no control characters but those of lines, tabs and pages."""
    return "".join(c for c in text if c in "\t\n\f\r" or unicodedata.category(c) not in ("Cc", "Cs"))


def marks_text(marks: Mapping[str, str]) -> str:
    """Marks as JSON that a text VR takes and that reads back unchanged: control characters are escaped."""
    text = json.dumps(marks, ensure_ascii=False)
    return "".join(c if unicodedata.category(c) not in ("Cc", "Cs") else f"\\u{ord(c):04x}" for c in text)


def dicom_marks(path: Path) -> dict[str, str]:
    """What roentgen wrote into an image or the report beside it; nothing of a file that it did not make."""
    import pydicom

    data = pydicom.dcmread(path, stop_before_pixels=True)
    texts = [str(data.get("ImageComments", ""))]
    for item in data.get("ContentSequence") or ():
        codes = item.get("ConceptNameCodeSequence") or ()
        if any(code.get("CodeValue") == COMMENT for code in codes):
            texts.append("{" + str(item.get("TextValue", "")).partition("{")[2])
    return next(filter(None, map(read_marks, texts)), {})


def has_no_pixels(path: Path) -> bool:
    """Whether a DICOM file is none of an image, such as a report; False where it cannot be read."""
    import pydicom

    try:
        return "Rows" not in pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["Rows"])
    except Exception:  # pydicom raises many kinds; who reads the image will say what is wrong
        return False


def dicom_bytes(data: Any) -> bytes:
    """A ``pydicom.Dataset`` as a DICOM file, Explicit VR Little Endian."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
