"""Images that clients send: refused by their headers before a pixel is decoded, read in memory, never kept."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from roentgen.errors import UserError
from roentgen.images import is_dicom, read_image

FORMATS = ("PNG", "JPEG")
MODALITIES = ("", "CR", "DX", "RG", "RF", "OT", "XA", "PX")
"""Of projection radiographs, and OT, which synthetic and converted ones have."""
DEFLATED = "1.2.840.10008.1.2.1.99"


def read_upload(what: str, data: bytes, *, pixels: int) -> np.ndarray:
    """uint8 grey [H, W] of a PNG, JPEG or DICOM file; ``what`` is what errors call it.

    Raises:
        UserError: another format, more than ``pixels`` pixels, a DICOM file that is no single projection image or is
            deflated (its size cannot be known without inflating it), a file that cannot be read.
    """
    if is_dicom(Path(what), data[:132]):
        _check_dicom(what, data, pixels)
    elif data:
        _check_raster(what, data, pixels)
    return read_image(what, data=data)


def read_mask(what: str, data: bytes, *, pixels: int) -> np.ndarray:
    """uint8 [H, W] of a mask, 255 where an image may change: where it is transparent, or white if it is opaque."""
    _check_raster(what, data, pixels)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if "A" in image.getbands() or "transparency" in image.info:
                return np.array(255 - np.asarray(image.convert("RGBA"))[:, :, 3])
    except Exception:  # Pillow raises many kinds
        raise UserError(f"{what}: cannot be read as an image; send a PNG") from None
    return read_image(what, data=data)


def _check_raster(what: str, data: bytes, pixels: int) -> None:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
    except Image.DecompressionBombError:
        raise UserError(f"{what}: has far too many pixels; the most are {pixels:,}") from None
    except Exception:  # Pillow raises many kinds
        raise UserError(f"{what}: is no PNG, JPEG or DICOM image that can be read; send one of these") from None
    _check_size(what, width, height, pixels)


def _check_dicom(what: str, data: bytes, pixels: int) -> None:
    import pydicom

    try:
        if DEFLATED.encode() in data[:2048]:  # within the header, which is never compressed
            raise UserError(f"{what}: is a deflated DICOM file; send it with another transfer syntax")
        head = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True)
        width, height = int(head.get("Columns") or 0), int(head.get("Rows") or 0)
        modality = str(head.get("Modality") or "")
    except UserError:
        raise
    except Exception:  # pydicom raises many kinds
        raise UserError(f"{what}: cannot be read as DICOM; send the file as the archive has it") from None
    if modality not in MODALITIES:
        raise UserError(f"{what}: its modality is {modality[:16]}, not a radiograph's; send a chest X-ray")
    _check_size(what, width, height, pixels)


def _check_size(what: str, width: int, height: int, pixels: int) -> None:
    if width * height > pixels:
        raise UserError(f"{what}: {width} x {height} pixels, more than {pixels:,}; make it smaller")
