"""Pixels: the one owner of image ranges and of image files (PNG, JPEG and DICOM, in and out).

Ranges: uint8 grey [0, 255] on disk and between functions, float32 [-1, 1] for autoencoders,
float32 [-1024, 1024] for torchxrayvision. No function flips an image: the patient's left stays on
the image's right.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps, PngImagePlugin

from roentgen.errors import UserError
from roentgen.files import write_atomic

if TYPE_CHECKING:
    import torch

FORMATS = {"png": ".png", "jpeg": ".jpg", "dicom": ".dcm"}
SUFFIXES = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".dcm": "dicom", ".dicom": "dicom"}
_SOFTWARE = "roentgen"


# ---------------------------------------------------------------------------------------- reading


def read_image(path: str | os.PathLike[str], *, data: bytes | None = None) -> np.ndarray:
    """Read an 8/16-bit PNG, a JPEG or a DICOM file as uint8 grey [H, W]; UserError if it cannot be.

    ``data`` is the file's content where it is at hand; ``path`` is then its name only.
    """
    path = Path(path)
    try:
        if data is None:
            with path.open("rb") as file:
                head = file.read(132)
            source: Path | io.BytesIO = path
        else:
            head, source = data[:132], io.BytesIO(data)
        return _read_dicom(path, source) if is_dicom(path, head) else _read_raster(path, source)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: no such image file") from None
    except Exception as error:  # decoders raise everything from SyntaxError to struct.error on a bad file
        raise UserError(
            f"{path}: cannot be read as an image ({_first_line(error)}); replace it or leave it out"
        ) from error


def is_dicom(path: Path, head: bytes) -> bool:
    """Whether a file is DICOM, by its first 132 bytes, else (files without a preamble) by its name."""
    return head[128:132] == b"DICM" or SUFFIXES.get(path.suffix.lower()) == "dicom"


def _read_raster(path: Path, source: Path | io.BytesIO) -> np.ndarray:
    with Image.open(source) as image:
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith("I"):
            return _shrink_depth(np.asarray(image))
        if image.mode == "F":
            raise UserError(f"{path}: floating-point pixels are not supported; save it as 8- or 16-bit PNG")
        return np.array(image.convert("L"), dtype=np.uint8)


def _shrink_depth(pixels: np.ndarray) -> np.ndarray:
    """Bring more than 8 bits to uint8; the depth is the smallest detector depth that holds the maximum.

    PNG knows 16 bits only, and X-ray archives store 10-, 12- and 14-bit detector values in them unscaled
    (PadChest, for one): dividing those by 65535 would give a nearly black picture.
    """
    values = pixels.astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("pixel values outside 0..65535")
    top = next(2**bits - 1 for bits in (8, 10, 12, 14, 16) if values.max() < 2**bits)
    return np.rint(values * (255.0 / top)).astype(np.uint8)


def _read_dicom(path: Path, source: Path | io.BytesIO) -> np.ndarray:
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


# --------------------------------------------------------------------------------- shape and range


def resize_center_crop(image: np.ndarray, size: int) -> np.ndarray:
    """uint8 [H, W] -> uint8 [size, size]: shorter side to ``size`` (antialiased bicubic), then the centre.

    Keeps the aspect and never pads, so no black bars.
    """
    _check_grey(image)
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    height, width = image.shape
    scale = size / min(height, width)
    new_width, new_height = max(size, round(width * scale)), max(size, round(height * scale))
    resized = Image.fromarray(image)
    if (new_width, new_height) != (width, height):
        resized = resized.resize((new_width, new_height), Image.Resampling.BICUBIC)
    left, top = (new_width - size) // 2, (new_height - size) // 2
    return np.array(resized.crop((left, top, left + size, top + size)), dtype=np.uint8)


def to_autoencoder(images: np.ndarray | torch.Tensor) -> torch.Tensor:
    """uint8 [N, H, W] -> float32 [N, 1, H, W] in [-1, 1] (same device for a tensor)."""
    return _uint8_batch(images).float().div(127.5).sub(1.0).unsqueeze(1)


def from_autoencoder(images: torch.Tensor) -> np.ndarray:
    """float [N, 1, H, W], nominally [-1, 1] -> uint8 [N, H, W]; clamps and rounds.

    Raises ValueError on a wrong shape or dtype, FloatingPointError on NaN or infinity.
    """
    import torch

    if images.ndim != 4 or images.shape[1] != 1 or not images.is_floating_point():
        raise ValueError(f"expected float [N, 1, H, W], got {images.dtype} {tuple(images.shape)}")
    values = images.detach().float()
    if not bool(torch.isfinite(values).all()):
        raise FloatingPointError("the image has NaN or infinite pixels")
    return values[:, 0].clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8).cpu().numpy()


def to_xrv(images: np.ndarray | torch.Tensor) -> torch.Tensor:
    """uint8 [N, H, W] -> float32 [N, 1, H, W] in [-1024, 1024], torchxrayvision's range."""
    return _uint8_batch(images).float().mul(2 / 255).sub(1.0).mul(1024).unsqueeze(1)


def _uint8_batch(images: np.ndarray | torch.Tensor) -> torch.Tensor:
    import torch

    batch = images if isinstance(images, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(images))
    if batch.dtype != torch.uint8 or batch.ndim != 3:
        raise ValueError(f"expected uint8 [N, H, W] in [0, 255], got {batch.dtype} {tuple(batch.shape)}")
    return batch


def _check_grey(image: np.ndarray) -> None:
    if image.dtype != np.uint8 or image.ndim != 2 or 0 in image.shape:
        raise ValueError(f"expected a uint8 [H, W] image, got {image.dtype} {image.shape}")


# ---------------------------------------------------------------------------------------- writing


def save_image(
    image: np.ndarray,
    path: str | os.PathLike[str],
    *,
    format: str,
    provenance: Mapping[str, str],
    overwrite: bool = False,
) -> Path:
    """Write uint8 [H, W] as ``png``, ``jpeg`` or ``dicom`` with its provenance, atomically; return the path.

    ``provenance`` maps names to strings (prompt, seed, model, ...); ``software=roentgen`` and
    ``synthetic=true`` are added. UserError if the file exists (unless ``overwrite``) or cannot be written.
    """
    _check_grey(image)
    path = Path(path)
    if format not in FORMATS:
        raise UserError(f"--format {format}: unknown image format; choose one of {', '.join(FORMATS)}")
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists already; pass --overwrite to replace it, or choose another --out")
    write_atomic(path, encode_image(image, format, provenance))
    return path


def encode_image(image: np.ndarray, format: str, provenance: Mapping[str, str]) -> bytes:
    """The file that ``save_image`` writes. PNG and JPEG repeat for the same arguments; DICOM has new UIDs and the time
    (see ``dicom_dataset``)."""
    _check_grey(image)
    if format == "dicom":
        return dicom_bytes(dicom_dataset(image, provenance))
    return {"png": _png_bytes, "jpeg": _jpeg_bytes}[format](image, _marks(provenance))


def _marks(provenance: Mapping[str, str]) -> dict[str, str]:
    """What is written into a file: the provenance as text, and where it comes from."""
    return {key: str(value) for key, value in provenance.items()} | {"software": _SOFTWARE, "synthetic": "true"}


def _png_bytes(image: np.ndarray, marks: Mapping[str, str]) -> bytes:
    chunks = PngImagePlugin.PngInfo()
    for key, value in marks.items():
        chunks.add_text(key, value)  # becomes iTXt (UTF-8) by itself where Latin-1 is not enough
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", pnginfo=chunks, optimize=False)
    return buffer.getvalue()


def _jpeg_bytes(image: np.ndarray, marks: Mapping[str, str]) -> bytes:
    exif = Image.Exif()
    exif[0x010E] = "Synthetic chest X-ray, not of a patient"  # ImageDescription
    exif[0x0131] = f"{_SOFTWARE} {marks.get('version', '')}".strip()  # Software
    buffer = io.BytesIO()
    comment = json.dumps(marks).encode("ascii")
    Image.fromarray(image).save(buffer, "JPEG", quality=95, comment=comment, exif=exif)
    return buffer.getvalue()


def dicom_dataset(image: np.ndarray, provenance: Mapping[str, str]) -> Any:
    """A Secondary Capture Image (PS3.3 A.8.1) of nobody: synthetic in every place the standard has for it.

    A ``pydicom.Dataset`` of uint8 grey [H, W] with new random UIDs, dated now, for ``dicom_bytes``.
    """
    import datetime

    from pydicom.dataset import Dataset
    from pydicom.uid import SecondaryCaptureImageStorage, generate_uid

    _check_grey(image)
    marks = _marks(provenance)
    now = datetime.datetime.now()
    date, time = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    version, model = marks.get("version", ""), marks.get("model", "")
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
    data.SeriesDescription = "Synthetic chest X-ray, not for diagnosis"
    data.BodyPartExamined = "CHEST"
    data.PatientOrientation = ["L", "F"]  # rows run to the patient's left, columns to the feet
    data.Manufacturer = data.SecondaryCaptureDeviceManufacturer = _SOFTWARE
    data.SoftwareVersions = data.SecondaryCaptureDeviceSoftwareVersions = version or "unknown"
    data.ImageType = ["DERIVED", "SECONDARY"]
    data.DerivationDescription = f"Synthetic: made from text by {_SOFTWARE} {version}, model {model}"[:1024]
    data.ImageComments = json.dumps(marks, ensure_ascii=False)
    data.BurnedInAnnotation = data.RecognizableVisualFeatures = "NO"
    data.LossyImageCompression = "00"
    purpose = Dataset()
    purpose.CodeValue, purpose.CodingSchemeDesignator = "109102", "DCM"
    purpose.CodeMeaning = "Processing Equipment"
    equipment = Dataset()
    equipment.PurposeOfReferenceCodeSequence = [purpose]
    equipment.Manufacturer, equipment.ManufacturerModelName = _SOFTWARE, model[:64]
    equipment.SoftwareVersions = version or "unknown"
    equipment.ContributionDescription = "Generated the synthetic image from text"
    data.ContributingEquipmentSequence = [equipment]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.Rows, data.Columns = image.shape
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 8, 8, 7, 0
    pixels = image.tobytes()
    data.PixelData = pixels + b"\0" * (len(pixels) % 2)
    data["PixelData"].VR = "OB"
    return data


def dicom_bytes(data: Any) -> bytes:
    """A ``pydicom.Dataset`` as a DICOM file, Explicit VR Little Endian."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def read_provenance(path: str | os.PathLike[str]) -> dict[str, str]:
    """The provenance that ``save_image`` wrote; UserError where the file has none or cannot be read."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            head = file.read(132)
        if is_dicom(path, head):
            import pydicom

            marks = _from_json(str(pydicom.dcmread(path, stop_before_pixels=True).get("ImageComments", "")))
        else:
            with Image.open(path) as image:
                if isinstance(image, PngImagePlugin.PngImageFile):
                    marks = {key: str(value) for key, value in image.text.items()}
                else:
                    comment = image.info.get("comment", b"")  # bytes in JPEG, text in GIF
                    marks = _from_json(comment.decode() if isinstance(comment, bytes) else str(comment))
    except FileNotFoundError:
        raise UserError(f"{path}: no such image file") from None
    except Exception as error:  # see read_image
        raise UserError(f"{path}: cannot be read as an image ({_first_line(error)})") from error
    if marks.get("software") != _SOFTWARE:
        raise UserError(f"{path}: no provenance: not made by {_SOFTWARE}, or its marks were stripped")
    return marks


def _from_json(text: str) -> dict[str, str]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return {str(key): str(item) for key, item in value.items()} if isinstance(value, dict) else {}


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200].rstrip(".")


# ------------------------------------------------------------------------------------------- grids


def make_grid(images: Sequence[np.ndarray], captions: Sequence[str], columns: int) -> np.ndarray:
    """uint8 [h, w] images, row by row, as one uint8 [H, W] picture with captions above them.

    ``captions``: one a row (written across it), one an image, or none. The last row may be short.
    """
    if not images or columns < 1:
        raise ValueError("a grid needs at least one image and one column")
    for image in images:
        _check_grey(image)
    if len({image.shape for image in images}) != 1:
        raise ValueError("the images of a grid must have the same size")
    rows = -(-len(images) // columns)
    per_row = len(captions) == rows
    if captions and not per_row and len(captions) != len(images):
        raise ValueError(f"{len(captions)} captions for {len(images)} images in {rows} rows")

    height, width = images[0].shape
    gap = max(2, width // 64)
    font = ImageFont.load_default(size=max(10, width // 16))
    spans = columns * width + (columns - 1) * gap if per_row else width
    texts = [_wrap(caption, font, spans - 2 * gap) for caption in captions]
    ascent_descent = font.getbbox("Ágjy")
    line = int(ascent_descent[3]) + 2
    strip = line * max((len(text) for text in texts), default=0) + (gap if texts else 0)

    grid = Image.new("L", (columns * width + (columns + 1) * gap, rows * (strip + height + gap) + gap), 0)
    draw = ImageDraw.Draw(grid)
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        left, top = gap + column * (width + gap), gap + row * (strip + height + gap)
        grid.paste(Image.fromarray(image), (left, top + strip))
        if texts and (not per_row or column == 0):
            for index, text in enumerate(texts[row if per_row else number]):
                draw.text((left + gap, top + index * line), text, fill=255, font=font)
    return np.array(grid, dtype=np.uint8)


def _wrap(text: str, font: Any, width: int, most: int = 3) -> list[str]:
    """Break ``text`` into at most ``most`` lines that fit ``width`` pixels; the rest becomes an ellipsis."""
    lines: list[str] = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    if len(lines) > most:
        lines = [*lines[: most - 1], lines[most - 1] + "…"]
    for index, line in enumerate(lines):
        while line.rstrip("…") and font.getlength(line) > width:
            line = line.rstrip("…")[:-1] + "…"
        lines[index] = line
    return lines
