"""DICOM: stored values to grey as a viewer shows them, and images of nobody as Secondary Captures."""

from __future__ import annotations

import datetime
import io
import json
import os
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from roentgen.errors import UserError, install
from roentgen.files import regular
from roentgen.provenance import SOFTWARE, as_marks, read_marks

MAX_PIXELS = Image.MAX_IMAGE_PIXELS or 2**26  # 89 million: the largest radiographs have 30
LIMIT = "ROENTGEN_MAX_PIXELS"
"""Environment variable that raises ``MAX_PIXELS``."""
GREY, PALETTE = ("MONOCHROME1", "MONOCHROME2"), "PALETTE COLOR"
KNOWN = (*GREY, PALETTE, "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_422", "YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT")
COMMENT = "121106"
"""DCM code of a comment in a structured report; ours begins with words and ends with the marks as JSON."""


def check_pixels(what: str, width: int, height: int) -> None:
    """UserError where an image of this size would take more memory than any radiograph needs; nothing is read yet."""
    most = pixel_limit()
    if width * height > most:
        raise UserError(
            f"{what}: {width} x {height} pixels, more than {most:,}; make it smaller, or set {LIMIT} to allow it"
        )


def pixel_limit() -> int:
    """Pixels of an image at most: ``MAX_PIXELS``, or what the environment variable ``LIMIT`` says."""
    said = os.environ.get(LIMIT) or str(MAX_PIXELS)
    if not (said.isascii() and said.isdecimal()) or len(said) > 18:
        raise UserError(f"{LIMIT}={said[:40]}: must be a whole number of pixels")
    return int(said)


def by_rows(pixels: np.ndarray, shade: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """uint8 [H, W] of ``shade`` applied to some rows of ``pixels`` [H, W, ...] at a time, since it may take float64."""
    out = np.empty(pixels.shape[:2], dtype=np.uint8)
    step = max(1, 2**20 // max(1, pixels.shape[1]))
    for start in range(0, len(out), step):
        out[start : start + step] = shade(pixels[start : start + step])
    return out


def read_dicom(path: Path, source: Path | io.BytesIO) -> np.ndarray:
    """A DICOM file of one frame as uint8 grey [H, W], as a viewer shows it; ``path`` is its name for errors.

    Grey goes through the modality transform, then the VOI LUT or window, then the inversion of MONOCHROME1 (PS3.4
    N.2). What the samples mean is decided by the photometric interpretation alone, and colour is converted once.

    Raises:
        UserError: no pixels, several frames, an interpretation that is not known, a decoder that is not installed.
    """
    data = open_dicom(path, source)
    if "PixelData" not in data:
        raise UserError(f"{path}: this DICOM file has no pixels of whole numbers; leave it out")
    if int(data.get("NumberOfFrames") or 1) != 1:
        raise UserError(f"{path}: DICOM files with several frames are not supported; export one frame")
    photometric, samples = str(data.get("PhotometricInterpretation")), int(data.get("SamplesPerPixel") or 1)
    if samples != (1 if photometric in GREY or photometric == PALETTE else 3) or photometric not in KNOWN:
        raise UserError(
            f"{path}: {samples} sample(s) a pixel with the photometric interpretation {photometric} are not supported; "
            "export it as MONOCHROME2 or RGB"
        )
    check_pixels(str(path), int(data.Columns), int(data.Rows))
    pixels, photometric = _decode(path, data)
    if photometric == PALETTE:
        from pydicom.pixels import apply_color_lut

        entries = int(data.RedPaletteColorLookupTableDescriptor[2])
        return by_rows(pixels, lambda rows: _luma(apply_color_lut(rows, data), entries))
    if photometric not in GREY:
        return by_rows(pixels, lambda rows: _luma(rows, int(data.BitsStored)))
    return by_rows(pixels, _grey_of(data, pixels))


def open_dicom(path: Path, source: Path | io.BytesIO, **options: Any) -> Any:
    """The data set of a file, with or without the preamble and the header that a file should begin with.

    ``options`` are those of ``pydicom.dcmread``. UserError for a file that is no DICOM.
    """
    import pydicom
    from pydicom.errors import InvalidDicomError
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    try:
        return pydicom.dcmread(source, **options)
    except InvalidDicomError:
        pass
    if isinstance(source, io.BytesIO):
        source.seek(0)
    data = pydicom.dcmread(source, force=True, **options)
    if "Rows" not in data and "SOPClassUID" not in data:
        raise UserError(f"{path}: not a DICOM file, although its name says so; leave it out or correct its name")
    if "TransferSyntaxUID" not in data.file_meta:
        implicit, little = data.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        data.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    return data


def _decode(path: Path, data: Any) -> tuple[np.ndarray, str]:
    """Stored values [H, W] or [H, W, 3], and their photometric interpretation once they are decoded."""
    from pydicom.pixels import get_decoder

    syntax = data.file_meta.TransferSyntaxUID
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise UserError(f"{path}: compressed in a way that is not known here ({syntax.name}); decompress it") from None
    if not decoder.is_available:
        raise UserError(
            f"{path}: compressed as {syntax.name}, and no decoder for it is installed (the file may be sound): "
            f"{install('dicom')}, or one of: {'; '.join(decoder.missing_dependencies)}"
        )
    pixels, said = decoder.as_array(data, raw=False)  # YBR becomes RGB here, once, whatever the transfer syntax
    photometric = str(said["photometric_interpretation"])
    if photometric.startswith("YBR"):
        raise UserError(f"{path}: colours of {photometric} cannot be converted here; export it as RGB or MONOCHROME2")
    bits = int(data.BitsStored)
    if photometric in GREY and pixels.dtype.kind == "u" and bits < 8 * pixels.dtype.itemsize:
        pixels = pixels & pixels.dtype.type(2**bits - 1)  # what lies above are overlays of old
    return pixels, photometric


def _luma(colour: np.ndarray, bits: int) -> np.ndarray:
    """Grey (ITU-R 601, as Pillow) of RGB [H, W, 3] with ``bits`` bits a sample."""
    if bits != 8 or colour.dtype != np.uint8:
        colour = np.rint(colour * (255.0 / (2**bits - 1))).clip(0, 255).astype(np.uint8)
    return np.asarray(Image.fromarray(np.ascontiguousarray(colour)).convert("L"))


def _grey_of(data: Any, pixels: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """What turns stored values [H, W] into uint8 grey."""
    inverse = str(data.PhotometricInterpretation) == "MONOCHROME1"
    bits, signed = int(data.BitsStored), bool(data.get("PixelRepresentation"))
    lowest = -float(2 ** (bits - 1)) if signed else 0.0
    modality, lowest = _modality_of(data, lowest, lowest + 2.0**bits - 1)
    tables = data.get("VOILUTSequence")
    table = _table_of(tables[0], signed=lowest < 0, little=_is_little(data)) if tables else None
    window = None not in (data.get("WindowWidth"), data.get("WindowCenter"))
    low, high = np.inf, -np.inf
    if table is not None:
        low, high = 0.0, 2.0**table.bits - 1
    elif not window and bits == 8 and data.get("RescaleSlope") is None and not data.get("ModalityLUTSequence"):
        low, high = lowest, lowest + 255.0  # made for display, as secondary captures are: nothing to stretch
    elif not window:

        def look(rows: np.ndarray) -> int:
            nonlocal low, high
            values = modality(rows)
            low, high = min(low, float(values.min())), max(high, float(values.max()))
            return 0

        by_rows(pixels, look)  # type: ignore[arg-type]

    def shade(rows: np.ndarray) -> np.ndarray:
        values = modality(rows)
        if table is None and window:
            scaled = _window(values, data)
        else:
            values = values if table is None else table(values)
            scaled = np.clip((values - low) / (high - low), 0.0, 1.0) if high > low else np.zeros_like(values)
        return np.rint((1.0 - scaled if inverse else scaled) * 255.0).astype(np.uint8)

    return shade


def _modality_of(data: Any, low: float, high: float) -> tuple[Callable[[np.ndarray], np.ndarray], float]:
    """The modality transform (PS3.3 C.11.1) of stored values to float64, and the lowest that it may give of those from
    ``low`` to ``high``."""
    if tables := data.get("ModalityLUTSequence"):
        return _table_of(tables[0], signed=low < 0, little=_is_little(data)), 0.0
    slope, intercept = (
        float(default if (value := data.get(name)) is None else value)
        for name, default in (("RescaleSlope", 1), ("RescaleIntercept", 0))
    )
    if slope == 0 or not np.isfinite([slope, intercept]).all():
        raise ValueError(f"rescale slope {slope:g} with intercept {intercept:g}")
    return lambda rows: rows * slope + intercept, min(low * slope, high * slope) + intercept


@dataclass(frozen=True)
class _Table:
    """A table of a modality or VOI LUT: what lies before ``first`` has its first entry, what lies behind has its last.

    entries: of ``bits`` bits, whose range is the table's, whether its entries use all of it or not.
    """

    entries: np.ndarray
    first: int
    bits: int

    def __call__(self, values: np.ndarray) -> np.ndarray:
        index = np.rint(values).astype(np.int64) - self.first
        return self.entries[index.clip(0, len(self.entries) - 1)].astype(np.float64)


def _table_of(item: Any, *, signed: bool, little: bool) -> _Table:
    """The table of a sequence's item (PS3.3 C.11.1.1.1); ``signed``: whether its input may be negative.

    Entries of 8 bits may lie in 8 or 16, which only their length tells; ValueError where there are too few.
    """
    count, first, bits = (int(value) for value in item.LUTDescriptor)
    count = count % 2**16 or 2**16
    first = (first + 2**15) % 2**16 - 2**15 if signed else first % 2**16  # of the wrong sign in many files
    data, order = item.LUTData, "<" if little else ">"
    if not isinstance(data, bytes):
        data, order = np.array(data, np.int64).astype("<u2").tobytes(), "<"
    if not (1 <= bits <= 16 and len(data) >= count):
        raise ValueError(f"a table of {count} entries of {bits} bits in {len(data)} bytes")
    entries = np.frombuffer(data, f"{order}u2" if len(data) >= 2 * count else "u1")[:count]
    return _Table(entries.clip(0, 2**bits - 1), first, bits)


def _is_little(data: Any) -> bool:
    return bool(data.original_encoding[1] is not False)


def _window(values: np.ndarray, data: Any) -> np.ndarray:
    """The first window of ``data`` (PS3.3 C.11.2.1.2 and C.11.2.1.3) on float64 values after the modality transform.

    Goes to [0, 1] at once. pydicom goes to the range of the stored values taken through the rescale slope, which runs
    backwards where that is negative, and with it the picture.
    """
    center, width = (
        float(value if isinstance(value, str) or not hasattr(value, "__getitem__") else value[0])
        for value in (data.WindowCenter, data.WindowWidth)
    )
    function = str(data.get("VOILUTFunction") or "LINEAR").upper()
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID") or width <= 0:
        raise ValueError(f"window of width {width:g} with the function {function}")
    if function == "SIGMOID":
        return 1.0 / (1.0 + np.exp(np.clip(-4.0 * (values - center) / width, -700.0, 700.0)))
    if function == "LINEAR":
        center, width = center - 0.5, width - 1.0
    if width <= 0:  # a threshold
        return (values > center).astype(np.float64)
    return np.clip((values - center) / width + 0.5, 0.0, 1.0)


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
    if written.get("edited") == "true":
        _say_edited(data, f"{SOFTWARE} {version}, model {model}")
    pixels = image.tobytes()
    data.PixelData = pixels + b"\0" * (len(pixels) % 2)
    data["PixelData"].VR = "OB"
    return data


def _say_edited(data: Any, by: str) -> None:
    """Correct what is not so of an edited image: the rest of its pixels may be those of a patient."""
    data.DeidentificationMethod = "New header; pixels outside the edited region are the source's"
    data.PatientComments = "Edited image: partly synthetic, the rest may be of a patient; not for diagnosis"
    data.StudyDescription = "Edited chest radiograph"
    data.DerivationDescription = long_text(f"Partly synthetic: edited by {by}")[:1024]
    data.ContributingEquipmentSequence[0].ContributionDescription = "Edited a region of the image by a text"
    del data.BurnedInAnnotation  # nobody has looked


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
    data = open_dicom(path, path, stop_before_pixels=True)
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
        return "Rows" not in pydicom.dcmread(regular(path), stop_before_pixels=True, specific_tags=["Rows"])
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
