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
from PIL import Image, ImageDraw, ImageFont, ImageOps, PngImagePlugin, UnidentifiedImageError

from roentgen.dicom import (
    LIMIT,
    MAX_PIXELS,
    by_rows,
    check_pixels,
    dicom_bytes,
    dicom_dataset,
    dicom_marks,
    pixel_limit,
    read_dicom,
)
from roentgen.errors import UserError
from roentgen.files import regular, write_atomic
from roentgen.provenance import SOFTWARE, as_marks, read_marks

if TYPE_CHECKING:
    import torch

FRAME = 300  # milliseconds of a frame of an animation
FORMATS = {"png": ".png", "jpeg": ".jpg", "dicom": ".dcm"}
SUFFIXES = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".dcm": "dicom", ".dicom": "dicom"}


# ---------------------------------------------------------------------------------------- reading


def read_image(path: str | os.PathLike[str], *, data: bytes | None = None) -> np.ndarray:
    """Read an 8/16-bit PNG, a JPEG or a DICOM file as uint8 grey [H, W]; UserError if it cannot be.

    ``data`` is the file's content where it is at hand; ``path`` is then its name only.
    """
    path = Path(path)
    try:
        if data is None:
            with regular(path).open("rb") as file:
                head = file.read(132)
            source: Path | io.BytesIO = path
        else:
            head, source = data[:132], io.BytesIO(data)
        if not head:
            raise UserError(f"{path}: empty file; fetch it again or leave it out")
        return read_dicom(path, source) if is_dicom(path, head) else _read_raster(path, source)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: no such image file") from None
    except Image.DecompressionBombError as error:
        raise UserError(f"{path}: {_first_line(error).partition(',')[0]}; set {LIMIT} to allow it") from None
    except Exception as error:  # decoders raise everything from SyntaxError to struct.error on a bad file
        raise UserError(
            f"{path}: cannot be read as an image ({_first_line(error)}); replace it or leave it out"
        ) from error


def is_dicom(path: Path, head: bytes) -> bool:
    """Whether a file is DICOM, by its first 132 bytes, else (files without a preamble) by its name."""
    return head[128:132] == b"DICM" or SUFFIXES.get(path.suffix.lower()) == "dicom"


def _read_raster(path: Path, source: Path | io.BytesIO) -> np.ndarray:
    if (most := pixel_limit()) > MAX_PIXELS:
        Image.MAX_IMAGE_PIXELS = most  # Pillow's own limit is twice this one, and would come first
    with Image.open(source) as image:
        check_pixels(str(path), *image.size)
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
    largest = int(pixels.max())
    if pixels.min() < 0 or largest > 65535:
        raise ValueError("pixel values outside 0..65535")
    top = next(2**bits - 1 for bits in (8, 10, 12, 14, 16) if largest < 2**bits)
    return by_rows(pixels, lambda rows: np.rint(rows * (255.0 / top)))


# --------------------------------------------------------------------------------- shape and range


def resize_center_crop(image: np.ndarray, size: int) -> np.ndarray:
    """uint8 [H, W] -> uint8 [size, size]: shorter side to ``size`` (antialiased bicubic), then the centre.

    Keeps the aspect and never pads, so no black bars.
    """
    _check_grey(image)
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    check_pixels(f"--size {size}", size, size)
    height, width = image.shape
    scale = size / min(height, width)
    new_width, new_height = max(size, round(width * scale)), max(size, round(height * scale))
    resized = Image.fromarray(image)
    left, top = (new_width - size) // 2, (new_height - size) // 2
    if new_width * new_height > MAX_PIXELS:  # very long: only the square that is kept
        x, y = width / new_width, height / new_height
        box = (left * x, top * y, (left + size) * x, (top + size) * y)
        return np.array(resized.resize((size, size), Image.Resampling.BICUBIC, box=box), dtype=np.uint8)
    if (new_width, new_height) != (width, height):
        resized = resized.resize((new_width, new_height), Image.Resampling.BICUBIC)
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


def save_gif(
    frames: Sequence[np.ndarray], path: Path, *, provenance: Mapping[str, str], overwrite: bool = False
) -> Path:
    """Write uint8 [H, W] frames of one size as an animated GIF that repeats, the last frame five times as long.

    Marked as ``save_image`` marks; ``read_provenance`` reads it. UserError as there.
    """
    for frame in frames:
        _check_grey(frame)
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists already; pass --overwrite to replace it, or choose another --out")
    first, *rest = [Image.fromarray(frame) for frame in frames]
    buffer = io.BytesIO()
    times = [FRAME] * len(rest) + [5 * FRAME]
    comment = json.dumps(as_marks(provenance)).encode("ascii")
    first.save(buffer, "GIF", save_all=True, append_images=rest, duration=times, loop=0, comment=comment)
    write_atomic(path, buffer.getvalue())
    return path


def encode_image(image: np.ndarray, format: str, provenance: Mapping[str, str]) -> bytes:
    """The file that ``save_image`` writes. PNG and JPEG repeat for the same arguments; DICOM has new UIDs and the time
    (see ``dicom_dataset``)."""
    _check_grey(image)
    if format == "dicom":
        return dicom_bytes(dicom_dataset(image, provenance))
    return {"png": png_bytes, "jpeg": jpeg_bytes}[format](image, as_marks(provenance))


def resized_png(path: Path, size: int, *, data: bytes | None = None) -> bytes:
    """An image file as a PNG of shorter side ``size``, centre cropped, with the marks of the original if it has any.

    ``data`` is the file's content where it is at hand. UserError if it cannot be read.
    """
    pixels = resize_center_crop(read_image(path, data=data), size)
    marks = marks_of(path)
    return png_bytes(pixels, marks | {"resized_to": str(size)} if marks else {})


def marks_of(path: Path) -> dict[str, str]:
    """``read_provenance`` of an image that may be real, or another program's: then nothing."""
    try:
        return read_provenance(path)
    except UserError:
        return {}


def png_bytes(image: np.ndarray, marks: Mapping[str, str]) -> bytes:
    """uint8 [H, W] as a PNG with ``marks`` as they are."""
    chunks = PngImagePlugin.PngInfo()
    for key, value in marks.items():
        chunks.add_text(key, value)  # becomes iTXt (UTF-8) by itself where Latin-1 is not enough
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", pnginfo=chunks, optimize=False)
    return buffer.getvalue()


def jpeg_bytes(image: np.ndarray, marks: Mapping[str, str], *, quality: int = 95) -> bytes:
    """uint8 [H, W] as a JPEG with ``marks`` as they are; without any, nothing says that it is synthetic."""
    exif = Image.Exif()
    edited = marks.get("edited") == "true"
    exif[0x010E] = (  # ImageDescription
        "Edited chest X-ray, partly synthetic, the rest may be of a patient"
        if edited
        else "Synthetic chest X-ray, not of a patient"
    )
    exif[0x0131] = f"{SOFTWARE} {marks.get('version', '')}".strip()  # Software
    buffer = io.BytesIO()
    said = {"comment": json.dumps(marks).encode("ascii"), "exif": exif} if marks else {}
    Image.fromarray(image).save(buffer, "JPEG", quality=quality, **said)
    return buffer.getvalue()


def read_provenance(path: str | os.PathLike[str]) -> dict[str, str]:
    """The provenance that ``save_image`` wrote; UserError where the file has none or cannot be read."""
    path = Path(path)
    try:
        with regular(path).open("rb") as file:
            head = file.read(132)
        if is_dicom(path, head):
            marks = dicom_marks(path)
        else:
            with Image.open(path) as image:
                if isinstance(image, PngImagePlugin.PngImageFile):
                    marks = {key: str(value) for key, value in image.text.items()}
                else:
                    comment = image.info.get("comment", b"")  # bytes in JPEG, text in GIF
                    marks = read_marks(comment.decode() if isinstance(comment, bytes) else str(comment))
    except FileNotFoundError:
        raise UserError(f"{path}: no such image file") from None
    except Exception as error:  # see read_image
        raise UserError(f"{path}: cannot be read as an image ({_first_line(error)})") from error
    if marks.get("software") != SOFTWARE:
        raise UserError(f"{path}: no provenance: not made by {SOFTWARE}, or its marks were stripped")
    return marks


def _first_line(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # Pillow names the object that it read from
        return "it is none that is known here"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).splitlines() or [type(error).__name__])[0][:200].rstrip(".")


# ------------------------------------------------------------------------------------------- grids


def lit(image: np.ndarray, map: np.ndarray, dark: float = 0.25) -> np.ndarray:
    """Grey ``image``, uint8 (H, W), as it is where ``map`` is highest, and darkened to ``dark`` where it is lowest.

    ``map``: float (h, w) of any size that covers the whole image.
    """
    _check_grey(image)
    low, high = float(map.min()), float(map.max())
    shares = (map - low) / (high - low) if high > low else np.ones_like(map)
    whole = Image.fromarray(shares.astype(np.float32)).resize(image.shape[::-1], Image.Resampling.BICUBIC)
    return np.rint(image * (dark + (1 - dark) * np.clip(np.asarray(whole), 0, 1))).astype(np.uint8)


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


def wrapped(text: str, font: Any, width: int) -> list[str]:
    """``text`` in lines that fit ``width`` pixels, nothing left out; a longer word is a line of its own."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _wrap(text: str, font: Any, width: int) -> list[str]:
    """``text`` in at most three lines that fit ``width`` pixels; the rest becomes an ellipsis."""
    lines = wrapped(text, font, width)
    if len(lines) > 3:
        lines = [*lines[:2], lines[2] + "…"]
    for index, line in enumerate(lines):
        while line.rstrip("…") and font.getlength(line) > width:
            line = line.rstrip("…")[:-1] + "…"
        lines[index] = line
    return lines
