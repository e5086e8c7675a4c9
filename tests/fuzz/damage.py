"""Damage: bytes, JSON, tables, images and DICOM files that are not what they should be.

Each function takes a file and a source of chance, changes the file, and says whether what reads it has to refuse it:
True, or None where it may be sound or beyond notice.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

FOREIGN = (
    b"",
    b"\0" * 300,
    b"%PDF-1.4 nothing",
    b"<html><body>404 Not Found</body></html>",
    b"PK\x03\x04" + b"\0" * 40,
    b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12\n",
    b"\x89PNG\r\n\x1a\n",
    b"\x1f\x8b\x08\x00" + b"\xff" * 60,
    b"PAR1PAR1",
    b"\xff\xd8\xff\xe0",
    b"\0" * 128 + b"DICM",
    b"null",
    b"[1, 2",
    "image,text\nä,ö\n".encode("latin-1"),
    "image,text".encode("utf-16"),
)
"""Contents of other kinds; the empty one first."""


def foreign(path: Path, rng: Random) -> bool | None:
    """Another kind of content under this name."""
    path.write_bytes(rng.choice(FOREIGN))
    return True


def cut(path: Path, rng: Random) -> bool | None:
    """The file ends early, by at least a tenth."""
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(max(1, len(data) * 9 // 10))])
    return True


def flip(path: Path, rng: Random) -> bool | None:
    """Some bytes are others."""
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 1, 4, 64])):
        if data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(bytes(data))
    return None


def blank(path: Path, rng: Random) -> bool | None:
    """A stretch of zeros, as a disk leaves them after a crash."""
    data = path.read_bytes()
    start = rng.randrange(max(1, len(data)))
    length = min(len(data) - start, rng.choice([1, 16, 512, 4096]))
    path.write_bytes(data[:start] + b"\0" * length + data[start + length :])
    return None


def longer(path: Path, rng: Random) -> bool | None:
    """Something follows the end."""
    path.write_bytes(path.read_bytes() + rng.choice([b"\n", b"\0" * 512, b"garbage", rng.randbytes(100)]))
    return None


def gone(path: Path, rng: Random) -> bool | None:
    """The file is not there, or something else is."""
    path.unlink()
    kind = rng.randrange(5)
    if kind == 1:
        path.mkdir()
    elif kind == 2:
        os.mkfifo(path)
    elif kind == 3:
        path.symlink_to(path.name)
    elif kind == 4:
        path.symlink_to("/proc/self/mem")
    return True


BYTES: tuple[Callable[[Path, Random], bool | None], ...] = (foreign, cut, flip, blank, longer, gone)


# ------------------------------------------------------------------------------------------------ JSON

ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1.5, 10**30, -(10**30), 1e308, float("nan"), float("inf"), "", "x", "\ud800", "\0"),
    *([], {}, [None], [[]], {"": {}}, "../../etc/passwd", "a" * 5000, [1, "2"], {"a": None}, "12", "true", "é"),
)


def json_value(path: Path, rng: Random) -> bool | None:
    """One value of a JSON file is another, a key is lost or new."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # one behind a seal, or lines of them
        return flip(path, rng)
    place, key = rng.choice(_places(value) or [(None, None)])
    if place is None or rng.random() < 0.05:
        value = rng.choice(ODD)
    elif rng.random() < 0.2:
        del place[key]
    elif rng.random() < 0.1 and isinstance(place, dict):
        place[rng.choice(["new", "", "\ud800", str(key) + "_"])] = place.pop(key)
    else:
        place[key] = rng.choice(ODD)
    path.write_text(json.dumps(value), encoding="utf-8")
    return None


def _places(value: Any) -> list[tuple[Any, Any]]:
    inside = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    return [(value, key) for key, _ in inside] + [place for _, item in inside[:50] for place in _places(item)]


# ---------------------------------------------------------------------------------------------- tables

CELLS = (
    *("", " ", "nan", "NaN", "None", "null", "-1", "0", "1", "2", "1e309", "inf", "9" * 400, "-1.0", "1.5", "true"),
    *("../../etc/passwd", "/etc/passwd", "a" * 400, "a" * 300 + ".png", "x\ny", "x\0y", "é", "🫁", "=1+1", "@x", "U"),
    *("left", "LEFT", "Left effusion, small", 'say "effusion"', "'", '"', ";", "\t", "\\", "train", "val", "no", "M"),
    *("Woman.", "(left:1.5)", "\ud800", "\u202e", "http://x/y.png", "s3://b/c", "045Y", "PA", "Effusion:left", "C:\\x"),
)


def table(path: Path, rng: Random) -> bool | None:
    """Cells, rows or columns of a CSV are others; Parquet is read and written by pandas."""
    import pandas as pd

    if path.suffix == ".parquet":
        frame = pd.read_parquet(path).astype(object)
    else:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False, sep=None, engine="python").astype(object)
    for _ in range(rng.choice([1, 1, 2])):
        frame = rng.choice(CHANGES)(frame, rng)
    try:
        if path.suffix == ".parquet":
            frame.to_parquet(path)
        else:
            path.write_bytes(_as_bytes(frame, rng))
    except Exception:  # no file of that kind can hold it
        return None
    return None


def _as_bytes(frame: Any, rng: Random) -> bytes:
    text = frame.to_csv(index=False, sep=rng.choice(",,,,,;\t"), lineterminator=rng.choice(["\n", "\n", "\r\n", "\r"]))
    if rng.random() < 0.08:
        text = text.replace('"', rng.choice(["", "'", '""']))
    if rng.random() < 0.05:
        text += rng.choice([",,,,\n", "\n\n\n", "x\n", '"', "a,b,c,d,e,f,g,h,i,j,k,l,m,n,o,p,q\n"])
    return text.encode(rng.choice(["utf-8"] * 8 + ["utf-8-sig", "utf-16", "latin-1"]), "surrogatepass")


def _cell(frame: Any, rng: Random) -> Any:
    if frame.size:
        frame.iloc[rng.randrange(len(frame)), rng.randrange(frame.shape[1])] = rng.choice(CELLS)
    return frame


def _column_of(frame: Any, rng: Random) -> Any:
    if frame.shape[1]:
        frame.iloc[:, rng.randrange(frame.shape[1])] = rng.choice(CELLS)
    return frame


def _no_column(frame: Any, rng: Random) -> Any:
    return frame.drop(columns=[rng.choice(list(frame.columns))]) if frame.shape[1] else frame


def _renamed(frame: Any, rng: Random) -> Any:
    if not frame.shape[1]:
        return frame
    names = list(frame.columns)
    names[rng.randrange(len(names))] = rng.choice([*names, "", " ", "Effusion", "seed", "id", "weight", "labels", "\0"])
    return frame.set_axis(names, axis=1)


def _twice(frame: Any, rng: Random) -> Any:
    import pandas as pd

    return pd.concat([frame, frame.iloc[: rng.choice([1, len(frame)])]], ignore_index=True)


def _no_rows(frame: Any, rng: Random) -> Any:
    return frame.iloc[: rng.choice([0, 0, 1])].copy()


CHANGES = (_cell, _cell, _cell, _cell, _column_of, _no_column, _renamed, _twice, _no_rows)


# ---------------------------------------------------------------------------------------------- images


def odd_image(path: Path, rng: Random) -> bool | None:
    """An image in a mode, size or format that a radiograph seldom has, under the same name; or too large a one."""
    from PIL import Image

    kind = rng.choice(["mode", "mode", "size", "format", "palette", "frames", "bomb", "deep"])
    buffer = io.BytesIO()
    shade = np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (70, 90, 4)).astype(np.uint8)
    if kind == "mode":
        mode = rng.choice(["1", "L", "LA", "RGB", "RGBA", "P", "CMYK", "I", "F", "I;16", "YCbCr", "LAB"])
        picture = Image.fromarray(shade, "RGBA")
        picture = Image.fromarray(shade[..., 0].astype(np.uint16) * 257) if mode == "I;16" else _as_mode(picture, mode)
        format = "PNG" if mode in ("1", "L", "LA", "RGB", "RGBA", "P", "I;16") else "TIFF"
        picture.save(buffer, format)
    elif kind == "size":
        size = rng.choice([(1, 1), (1, 400), (3000, 1), (7, 7), (63, 64), (64, 64), (1000, 90)])
        Image.new("L", size, rng.choice([0, 255, 128])).save(buffer, "PNG")
    elif kind == "format":
        Image.fromarray(shade[..., 0]).save(buffer, rng.choice(["BMP", "GIF", "TIFF", "WEBP", "JPEG", "PPM", "ICO"]))
    elif kind == "palette":
        picture = Image.fromarray(shade[..., 0]).quantize(rng.choice([2, 16, 256]))
        picture.save(buffer, "PNG", transparency=rng.randrange(2))
    elif kind == "frames":
        frames = [Image.fromarray(shade[..., band]) for band in range(3)]
        frames[0].save(buffer, rng.choice(["GIF", "TIFF", "PNG"]), save_all=True, append_images=frames[1:])
    elif kind == "bomb":
        side = rng.choice([13_000, 30_000, 65_535, 2**31 - 1])
        buffer.write(_png_of(side, side, bits=rng.choice([1, 8, 16])))
    else:
        Image.fromarray(shade[..., 0].astype(np.uint16) << rng.randrange(9)).save(buffer, "PNG")
    path.write_bytes(buffer.getvalue())
    return True if kind == "bomb" else None


def _as_mode(picture: Any, mode: str) -> Any:
    return picture.convert("RGB").convert("LAB") if mode == "LAB" else picture.convert(mode)


def _png_of(width: int, height: int, *, bits: int) -> bytes:
    """A PNG that says that it is so large, and holds next to nothing."""
    import struct
    import zlib

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    body = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def dicom_tag(path: Path, rng: Random) -> bool | None:
    """Elements of a DICOM file are lost, odd, or contradict its pixels."""
    import warnings

    import pydicom
    from pydicom import config

    try:
        data = pydicom.dcmread(path, force=True)
    except Exception:  # damaged before
        return flip(path, rng)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        old, config.settings.writing_validation_mode = config.settings.writing_validation_mode, config.IGNORE
        try:
            for _ in range(rng.choice([1, 1, 2, 3])):
                name = rng.choice(TAGS)
                if rng.random() < 0.3:
                    if name in data:
                        delattr(data, name)
                else:
                    setattr(data, name, rng.choice(TAG_VALUES))
            data.save_as(path, enforce_file_format=rng.random() < 0.7)
        except Exception:  # what pydicom does not write cannot be met
            return None
        finally:
            config.settings.writing_validation_mode = old
    return None


TAGS = (
    *("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel"),
    *("PhotometricInterpretation", "NumberOfFrames", "RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth"),
    *("VOILUTFunction", "PixelData", "PatientAge", "PatientSex", "PatientID", "StudyInstanceUID", "SOPInstanceUID"),
    *("ViewPosition", "Modality", "BodyPartExamined", "PatientOrientation", "AccessionNumber", "SpecificCharacterSet"),
    *("PlanarConfiguration", "StudyDate", "PatientBirthDate", "ImageComments", "ImageType", "PresentationIntentType"),
)
TAG_VALUES: tuple[Any, ...] = (
    *(
        "",
        None,
        0,
        1,
        2,
        3,
        7,
        8,
        12,
        16,
        32,
        64,
        65_535,
        -1,
        "0",
        "-1",
        "1e400",
        "nan",
        "x",
        "F",
        "a" * 70,
        b"",
        b"\0",
    ),
    *("MONOCHROME1", "RGB", "YBR_FULL_422", "PALETTE COLOR", "SIGMOID", "1\\2", ["1", "2"], "ISO_IR 999", "ä/b", "{}"),
    *("[", '{"software": "roentgen"}', "045Y", "999Y", "AP", "LL", "20250230", ["L"], ["R", "F"], "CHEST"),
)


# --------------------------------------------------------------------------------------------- folders


def in_folder(folder: Path, rng: Random, *, pattern: str = "*") -> tuple[str, bool | None]:
    """Damage to one file of a folder: its name with the kind, and what it must come to."""
    files = sorted(path for path in folder.rglob(pattern) if path.is_file() and not path.is_symlink())
    path = rng.choice(files)
    kinds: list[Callable[[Path, Random], bool | None]] = list(BYTES)
    if path.suffix == ".json":
        kinds += [json_value] * 8
    elif path.suffix in (".csv", ".parquet"):
        kinds += [table] * 8
    elif path.suffix in (".png", ".jpg"):
        kinds += [odd_image] * 6
    elif path.suffix == ".dcm":
        kinds += [dicom_tag] * 12
    kind = rng.choice(kinds)
    refused = kind(path, rng)
    return f"{kind.__name__} of {path.relative_to(folder)}", refused


def lose_folder(folder: Path, rng: Random) -> str:
    """A whole folder inside is lost."""
    inner = rng.choice(sorted(path for path in folder.rglob("*") if path.is_dir()))
    shutil.rmtree(inner)
    return f"without {inner.relative_to(folder)}"
