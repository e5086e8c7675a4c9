"""DICOM as viewers show it: the values here are those of dcmtk's dcm2pnm and dcmj2pnm, to one level of rounding."""

from __future__ import annotations

import io
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels import convert_color_space
from pydicom.uid import JPEGBaseline8Bit, JPEGLosslessSV1, JPEGLSLossless
from test_images import write_dicom

from roentgen import images
from roentgen.errors import UserError
from roentgen.metrics import image_set

# 0, 5/63, ... of 4095: enough to see which way a window runs.
RAMP = np.linspace(0, 4095, 64).astype(int).reshape(8, 8)
COLOURS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [200, 200, 200]]], np.uint8).repeat(16, 0).repeat(16, 1)
GREYS = (76, 150, 29, 200)  # of COLOURS: 0.299 R + 0.587 G + 0.114 B


def corners(grey: NDArray[np.uint8]) -> list[int]:
    """One pixel of each of the four patches of ``COLOURS``."""
    return [int(grey[y, x]) for y in (8, 24) for x in (8, 24)]


def write_colour(path: Path, photometric: str, data: bytes, **attributes: Any) -> Path:
    write_dicom(path, np.zeros((32, 32)), photometric=photometric, bits=8)
    file = pydicom.dcmread(path)
    file.SamplesPerPixel, file.PlanarConfiguration, file.BitsAllocated = 3, 0, 8
    file.PixelData = data
    file["PixelData"].VR = "OB"
    for name, value in attributes.items():
        setattr(file, name, value)
    file.save_as(path, enforce_file_format=True)
    return path


def compressed(path: Path, photometric: str, frame: bytes, syntax: str) -> Path:
    write_colour(path, photometric, encapsulate([frame]))
    file = pydicom.dcmread(path)
    file["PixelData"].is_undefined_length = True
    file.file_meta.TransferSyntaxUID = syntax
    file.save_as(path, enforce_file_format=True)
    return path


# ------------------------------------------------------------------------------------------- grey


@pytest.mark.parametrize(
    ("settings", "first", "middle", "last"),
    [
        ({"RescaleSlope": -1, "RescaleIntercept": 4095, "WindowCenter": 2048, "WindowWidth": 4096}, 255, 126, 0),
        ({"RescaleSlope": -2, "RescaleIntercept": 100, "WindowCenter": -3000, "WindowWidth": 2400}, 255, 15, 0),
        ({"RescaleSlope": 1.5, "RescaleIntercept": -1000, "WindowCenter": 2000, "WindowWidth": 3000}, 0, 138, 255),
        ({"RescaleSlope": -1, "RescaleIntercept": 4095}, 255, 126, 0),  # no window: its own range
        ({"RescaleSlope": -1, "RescaleIntercept": 4095, "VOILUTFunction": "SIGMOID", "WindowCenter": 2048,
          "WindowWidth": 1000}, 255, 119, 0),
        ({"VOILUTFunction": "LINEAR_EXACT", "WindowCenter": 2048, "WindowWidth": 2048}, 0, 132, 255),
        ({"WindowCenter": [2048, 40], "WindowWidth": [1, 80]}, 0, 255, 255),  # the first of two, a threshold
    ],
)  # fmt: skip
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_windows_whichever_way_the_rescale_slope_runs(
    tmp_path: Path, photometric: str, settings: dict[str, Any], first: int, middle: int, last: int
) -> None:
    """Stored 0, 2080 (rank 32) and 4095; "middle" is computed by hand from PS3.3 C.11.2.1."""
    found = images.read_image(write_dicom(tmp_path / "a.dcm", RAMP, photometric=photometric, **settings)).flatten()
    wanted = np.array([first, middle, last])
    got = found[[0, 32, 63]].astype(int)
    assert np.abs(got - (wanted if photometric == "MONOCHROME2" else 255 - wanted)).max() <= 1, got


def test_signed_values_with_a_negative_slope(tmp_path: Path) -> None:
    settings = {"PixelRepresentation": 1, "RescaleSlope": -1, "RescaleIntercept": 0}
    path = write_dicom(tmp_path / "a.dcm", RAMP - 2048, WindowCenter=0, WindowWidth=2000, **settings)
    found = images.read_image(path).flatten()
    assert found[0] == 255 and found[63] == 0 and abs(int(found[32]) - 123) <= 1


@pytest.mark.parametrize("window", [{}, {"WindowCenter": 32768, "WindowWidth": 65536}])
def test_a_modality_table_that_runs_backwards(tmp_path: Path, window: dict[str, Any]) -> None:
    table = Dataset()
    table.LUTDescriptor, table.ModalityLUTType = [4096, 0, 16], "US"
    table.LUTData = (65535 - 16 * np.arange(4096)).astype("<u2").tobytes()
    table["LUTData"].VR = "OW"
    found = images.read_image(write_dicom(tmp_path / "a.dcm", RAMP, ModalityLUTSequence=[table], **window)).flatten()
    assert found[0] == 255 and found[63] == 0 and abs(int(found[32]) - 126) <= 1


def table(entries: NDArray[Any], first: int, bits: int, *, padded: bool = True) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(entries), first, bits])
    item.add_new("LUTData", "OW", entries.astype("<u2" if padded else "u1").tobytes())
    return item


def as_dcmtk(path: Path) -> NDArray[np.int64]:
    """dcmtk's picture of a file, where it is installed."""
    if shutil.which("dcmj2pnm") is None:
        pytest.skip("dcmtk is not installed")
    flags = ["+Wl", "1"] if "VOILUTSequence" in pydicom.dcmread(path) else ["+Wi", "1"]
    subprocess.run(["dcmj2pnm", *flags, "+op", path, path.with_suffix(".pgm")], check=True, capture_output=True)
    return np.asarray(Image.open(path.with_suffix(".pgm"))).astype(int)


TABLES: dict[str, tuple[dict[str, Any], list[int]]] = {
    # Settings, and the grey of the stored values at ranks 0, 32 and 63 of RAMP - 2048 (-2048, 32, 2047).
    "entries of 8 bits in 16": ({"VOILUTSequence": [table(np.arange(256), 0, 8)]}, [0, 32, 255]),
    "entries of 8 bits in 8": ({"VOILUTSequence": [table(np.arange(256), 0, 8, padded=False)]}, [0, 32, 255]),
    "entries that use half of their range": (
        {"VOILUTSequence": [table(np.arange(4096) * 8, -2048, 16)]}, [0, 65, 127],
    ),
    "descending entries": ({"VOILUTSequence": [table(4095 - np.arange(4096), -2048, 12)]}, [255, 125, 0]),
    "a first value far below": (
        {"ModalityLUTSequence": [table(65535 - 16 * np.arange(4096), -32768, 16)], "WindowCenter": 32768,
         "WindowWidth": 65536}, [0, 0, 0],
    ),
    "negative values after the rescale": (
        {"RescaleSlope": -1, "RescaleIntercept": -1000, "VOILUTSequence": [table(np.arange(4096), -3047, 12)]},
        [255, 126, 0],
    ),
}  # fmt: skip


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("name", TABLES)
def test_tables_have_the_range_of_their_bits(tmp_path: Path, name: str, photometric: str) -> None:
    settings, wanted = TABLES[name]
    settings = {**settings, "PixelRepresentation": 1}
    path = write_dicom(tmp_path / "a.dcm", RAMP - 2048, photometric=photometric, **settings)
    found = images.read_image(path).astype(int)
    grey = np.array(wanted) if photometric == "MONOCHROME2" else 255 - np.array(wanted)
    assert np.abs(found.flatten()[[0, 32, 63]] - grey).max() <= 1
    assert np.abs(found - as_dcmtk(path)).max() <= 1


def test_a_table_that_is_too_short_and_a_slope_of_nothing(tmp_path: Path) -> None:
    short = table(np.arange(100), 0, 16)
    short.LUTDescriptor = [4096, 0, 16]
    with pytest.raises(UserError, match=r"a\.dcm"):
        images.read_image(write_dicom(tmp_path / "a.dcm", RAMP, VOILUTSequence=[short]))
    with pytest.raises(UserError, match=r"a\.dcm"):
        images.read_image(write_dicom(tmp_path / "a.dcm", RAMP, RescaleSlope=0, RescaleIntercept=0))


def test_signed_bytes_without_a_window(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", np.zeros((8, 8)), bits=8)
    file = pydicom.dcmread(path)
    file.BitsAllocated, file.PixelRepresentation = 8, 1
    file.PixelData = np.linspace(-128, 127, 64).astype("i1").tobytes()
    file["PixelData"].VR = "OB"
    file.save_as(path)
    assert images.read_image(path).flatten()[[0, 63]].tolist() == [0, 255]


def test_bits_above_those_stored_are_no_pixels(tmp_path: Path) -> None:
    """Overlays of old lie there."""
    plain = images.read_image(write_dicom(tmp_path / "a.dcm", RAMP, WindowCenter=2048, WindowWidth=4096))
    marked = images.read_image(write_dicom(tmp_path / "a.dcm", RAMP | 0x8000, WindowCenter=2048, WindowWidth=4096))
    assert np.array_equal(plain, marked)


# ------------------------------------------------------------------------------------------- colour


def as_422(ybr: NDArray[np.uint8]) -> bytes:
    both = np.empty((32, 16, 4), np.uint8)
    both[..., 0], both[..., 1], both[..., 2:] = ybr[:, ::2, 0], ybr[:, 1::2, 0], ybr[:, ::2, 1:]
    return both.tobytes()


@pytest.mark.parametrize("form", ["RGB", "RGB planar", "RGB 16", "YBR_FULL", "YBR_FULL_422", "JPEG", "JPEG 422"])
def test_colour_is_converted_once(tmp_path: Path, form: str) -> None:
    path, ybr = tmp_path / "a.dcm", convert_color_space(COLOURS, "RGB", "YBR_FULL")
    if form.startswith("JPEG"):
        buffer = io.BytesIO()
        Image.fromarray(COLOURS).save(buffer, "JPEG", quality=98, subsampling=1 if form == "JPEG 422" else 0)
        name = "YBR_FULL_422" if form == "JPEG 422" else "YBR_FULL"
        compressed(path, name, buffer.getvalue(), JPEGBaseline8Bit)
    elif form == "RGB 16":  # 12 of 16 bits
        deep = (COLOURS.astype(int) * 4095 // 255).astype("<u2").tobytes()
        write_colour(path, "RGB", deep, BitsAllocated=16, BitsStored=12, HighBit=11)
    else:
        data, planar = {
            "RGB": (COLOURS.tobytes(), 0),
            "RGB planar": (COLOURS.transpose(2, 0, 1).tobytes(), 1),
            "YBR_FULL": (ybr.tobytes(), 0),
            "YBR_FULL_422": (as_422(ybr), 0),
        }[form]
        write_colour(path, form.split()[0], data, PlanarConfiguration=planar)
    assert np.abs(np.subtract(corners(images.read_image(path)), GREYS)).max() <= 1


@pytest.mark.parametrize("bits", [8, 16])
def test_a_palette_is_applied(tmp_path: Path, bits: int) -> None:
    """Entries of 16 bits would wrap if they were taken for 8."""
    index = np.arange(4).reshape(2, 2).repeat(16, 0).repeat(16, 1)
    write_dicom(tmp_path / "a.dcm", index, photometric="PALETTE COLOR")
    file = pydicom.dcmread(tmp_path / "a.dcm")
    for place, colour in enumerate(("Red", "Green", "Blue")):
        entries = COLOURS[::16, ::16, place].flatten().astype("<u2") * (257 if bits == 16 else 1)
        file.add_new(f"{colour}PaletteColorLookupTableDescriptor", "US", [4, 0, bits])
        data = entries.astype("<u2" if bits == 16 else "u1").tobytes()
        file.add_new(f"{colour}PaletteColorLookupTableData", "OW", data)
    file.save_as(tmp_path / "a.dcm")
    assert corners(images.read_image(tmp_path / "a.dcm")) == list(GREYS)


@pytest.mark.parametrize(
    ("photometric", "samples"), [("HSV", 3), ("CMYK", 4), ("MONOCHROME2", 3), ("RGB", 1), ("WHAT EVER", 1)]
)
def test_what_the_samples_mean_is_never_guessed(tmp_path: Path, photometric: str, samples: int) -> None:
    data = bytes(32 * 32 * samples)
    path = write_colour(tmp_path / "a.dcm", photometric, data, SamplesPerPixel=samples)
    with pytest.raises(UserError, match=rf"{samples} sample\(s\) a pixel .* {photometric} are not supported"):
        images.read_image(path)


# ---------------------------------------------------------------------------- decoders, damage, size


@pytest.mark.parametrize("syntax", [JPEGLosslessSV1, JPEGLSLossless])
def test_a_missing_decoder_is_told_from_damage(tmp_path: Path, monkeypatch: Any, syntax: Any) -> None:
    decoder = pydicom.pixels.get_decoder(syntax)
    monkeypatch.setattr(type(decoder), "is_available", property(lambda _: False))
    path = compressed(tmp_path / "a.dcm", "RGB", b"\xff\xd8\xff\xd9", syntax)
    with pytest.raises(UserError, match=r"no decoder .*may be sound.*roentgen-cxr\[dicom\].*gdcm") as caught:
        images.read_image(path)
    assert "replace" not in str(caught.value) and "\n" not in str(caught.value)


def test_damaged_pixels(tmp_path: Path) -> None:
    path = compressed(tmp_path / "a.dcm", "YBR_FULL_422", b"\xff\xd8\xff\xd9", JPEGBaseline8Bit)
    with pytest.raises(UserError, match=r"cannot be read as an image .*replace it or leave it out"):
        images.read_image(path)


@pytest.mark.parametrize("name", ["a.dcm", "a.png", "a.jpg"])
def test_an_empty_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    for give in ({}, {"data": b""}):
        with pytest.raises(UserError, match=rf"{name}: empty file"):
            images.read_image(tmp_path / name, **give)


def test_a_file_without_preamble_is_read(tmp_path: Path) -> None:
    """As old archives wrote them: the data set alone."""
    path = write_dicom(tmp_path / "a.dcm", RAMP, WindowCenter=2048, WindowWidth=4096)
    whole, wanted = path.read_bytes(), images.read_image(path)
    look_of_whole = image_set.look(path)[1]
    path.write_bytes(whole[132:])  # with the header
    assert np.array_equal(images.read_image(path), wanted)
    file = pydicom.dcmread(io.BytesIO(whole))
    for implicit in (True, False):
        buffer = io.BytesIO()
        plain = Dataset()
        plain.update(file)
        pydicom.dcmwrite(buffer, plain, implicit_vr=implicit, little_endian=True, enforce_file_format=False)
        path.write_bytes(buffer.getvalue())
        assert np.array_equal(images.read_image(path), wanted)
        assert np.array_equal(images.read_image("b.dcm", data=buffer.getvalue()), wanted)
    assert image_set.look(path) == ((8, 8), look_of_whole)
    path.write_bytes(b"this is no DICOM file, whatever it is called; " * 10)
    with pytest.raises(UserError, match=r"not a DICOM file, although its name says so|cannot be read as an image"):
        images.read_image(path)


def test_huge_images_are_refused_before_memory_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compressed(tmp_path / "a.dcm", "YBR_FULL_422", b"\xff\xd8\xff\xd9", JPEGBaseline8Bit)
    file = pydicom.dcmread(tmp_path / "a.dcm")
    file.Rows = file.Columns = 65535
    file.save_as(tmp_path / "a.dcm")
    Image.fromarray(np.zeros((40, 50), np.uint8)).save(tmp_path / "a.png")
    decoded: list[Any] = []
    monkeypatch.setattr(PngImageFile, "load", decoded.append)
    monkeypatch.setattr("pydicom.pixels.decoders.base.Decoder.as_array", lambda *_, **__: decoded.append(1))
    with pytest.raises(UserError, match=r"a\.dcm: 65535 x 65535 pixels, more than 89,478,485.*ROENTGEN_MAX_PIXELS"):
        images.read_image(tmp_path / "a.dcm")
    monkeypatch.setenv("ROENTGEN_MAX_PIXELS", "1999")
    with pytest.raises(UserError, match=r"a\.png: 50 x 40 pixels, more than 1,999"):
        images.read_image(tmp_path / "a.png")
    monkeypatch.setenv("ROENTGEN_MAX_PIXELS", "much")
    with pytest.raises(UserError, match="ROENTGEN_MAX_PIXELS=much: must be a whole number"):
        images.read_image(tmp_path / "a.png")
    assert not decoded


def test_the_limit_can_be_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    monkeypatch.setattr("roentgen.images.MAX_PIXELS", 500)
    monkeypatch.setattr("roentgen.dicom.MAX_PIXELS", 500)
    Image.fromarray(np.full((40, 50), 7, np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.png: .*exceeds limit.*set ROENTGEN_MAX_PIXELS"):
        images.read_image(tmp_path / "a.png")
    monkeypatch.setenv("ROENTGEN_MAX_PIXELS", "2000")
    assert images.read_image(tmp_path / "a.png").tolist() == [[7] * 50] * 40


def test_sizes_asked_for_have_a_limit_too() -> None:
    with pytest.raises(UserError, match="--size 100000: 100000 x 100000 pixels, more than"):
        images.resize_center_crop(np.zeros((4, 4), np.uint8), 100_000)


def test_a_very_long_image_costs_no_more_than_its_square(monkeypatch: pytest.MonkeyPatch) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (4, 3000), dtype=np.uint8)
    whole = images.resize_center_crop(grey, 64)
    monkeypatch.setattr("roentgen.images.MAX_PIXELS", 1000)
    assert np.abs(images.resize_center_crop(grey, 64).astype(int) - whole).max() <= 1


@pytest.mark.parametrize("mode", ["I;16", "L"])
def test_whole_images_are_not_copied_wide(tmp_path: Path, mode: str) -> None:
    """16-bit PNG and DICOM of 16 megapixels: less than 5 bytes a pixel at any time, of which the result takes one."""
    import tracemalloc

    side = 4000
    deep = np.add.outer(np.arange(side), np.zeros(side, int)).astype("<u2")
    path = tmp_path / "a.dcm"
    if mode == "I;16":
        write_dicom(path, deep, RescaleSlope=-1, RescaleIntercept=4095, WindowCenter=2048, WindowWidth=4096)
    else:
        path = tmp_path / "a.png"
        Image.fromarray(deep).save(path, compress_level=0)
    del deep
    tracemalloc.start()
    grey = images.read_image(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert grey.shape == (side, side) and peak < 8 * side * side
