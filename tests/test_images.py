"""Image files and pixel ranges: what goes out comes back, and what a DICOM viewer shows is what we read."""

from __future__ import annotations

import json

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    ExplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from roentgen import images
from roentgen.errors import UserError

PROVENANCE = {"prompt": 'Łeft "effusion", 左\\', "seed": "3", "version": "0.1.0", "model": "mini"}


def write_dicom(path, pixels, *, photometric="MONOCHROME2", bits=12, **attributes):
    data = Dataset()
    data.SOPClassUID, data.SOPInstanceUID = ComputedRadiographyImageStorage, generate_uid()
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, photometric
    data.Rows, data.Columns = pixels.shape
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, bits, bits - 1, 0
    data.PixelData = pixels.astype("<u2").tobytes()
    for name, value in attributes.items():
        setattr(data, name, value)
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.save_as(path, enforce_file_format=True)
    return path


# ---------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("name", images.FORMATS)
def test_round_trip_with_provenance(tmp_path, grey, name):
    smooth = np.add.outer(np.arange(37), np.arange(41)).astype(np.uint8)
    path = images.save_image(smooth, tmp_path / f"a{images.FORMATS[name]}", format=name, provenance=PROVENANCE)
    back = images.read_image(path)
    assert back.dtype == np.uint8
    assert np.abs(back.astype(int) - smooth).max() <= (2 if name == "jpeg" else 0)
    assert images.read_provenance(path) == {**PROVENANCE, "software": "roentgen", "synthetic": "true"}
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_png_is_plain_8_bit_grey(tmp_path, grey):
    path = images.save_image(grey, tmp_path / "a.png", format="png", provenance={})
    with Image.open(path) as image:
        assert (image.mode, image.size) == ("L", (41, 37))


def test_dicom_is_a_synthetic_secondary_capture_of_nobody(tmp_path, grey):
    paths = [
        images.save_image(grey, tmp_path / f"{number}.dcm", format="dicom", provenance=PROVENANCE)
        for number in range(2)
    ]
    first, second = (pydicom.dcmread(path) for path in paths)
    assert first.SOPClassUID == SecondaryCaptureImageStorage == first.file_meta.MediaStorageSOPClassUID
    for uid in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
        assert first[uid].value != second[uid].value
        assert first[uid].value.is_valid
    assert (first.Modality, first.ConversionType, first.BurnedInAnnotation) == ("OT", "SYN", "NO")
    assert list(first.ImageType) == ["DERIVED", "SECONDARY"]
    assert (str(first.PatientName), first.PatientID) == ("Synthetic^CXR", "SYNTHETIC")
    assert (first.PatientBirthDate, first.PatientSex, first.AccessionNumber) == ("", "", "")
    assert first.PatientIdentityRemoved == "YES"
    assert list(first.PatientOrientation) == ["L", "F"]
    assert json.loads(first.ImageComments)["prompt"] == PROVENANCE["prompt"]
    for text in (first.SeriesDescription, first.DerivationDescription, first.StudyDescription):
        assert "Synthetic" in text
    for element in first.iterall():  # every value fits its VR: lengths, characters, UIDs
        values = element.value if element.VM > 1 else [element.value]
        for value in values if element.VR not in ("SQ", "OB", "US") else []:
            pydicom.valuerep.validate_value(element.VR, str(value), pydicom.config.RAISE)
    assert len(first.PixelData) % 2 == 0


def test_real_image_has_no_provenance(tmp_path, grey):
    for name in ("a.png", "a.jpg"):
        Image.fromarray(grey).save(tmp_path / name)
        with pytest.raises(UserError, match="no provenance: not made by roentgen"):
            images.read_provenance(tmp_path / name)
    with pytest.raises(UserError, match="no provenance"):
        images.read_provenance(write_dicom(tmp_path / "a.dcm", grey, ImageComments='{"prompt": "x"}'))


def test_never_overwrites_unless_told(tmp_path, grey):
    path = tmp_path / "a.png"
    images.save_image(grey, path, format="png", provenance={})
    before = path.read_bytes()
    with pytest.raises(UserError, match="--overwrite"):
        images.save_image(255 - grey, path, format="png", provenance={})
    assert path.read_bytes() == before
    images.save_image(255 - grey, path, format="png", provenance={}, overwrite=True)
    assert (images.read_image(path) == 255 - grey).all()


@pytest.mark.parametrize("top", [255, 1023, 4095, 16383, 65535])
def test_16_bit_png_of_any_detector_depth(tmp_path, top):
    wide = np.linspace(0, top, 64).round().astype(np.uint16).reshape(8, 8)
    Image.fromarray(wide).save(tmp_path / "a.png")
    expected = wide.astype(float) / top * 255
    assert np.abs(images.read_image(tmp_path / "a.png") - expected).max() <= 0.5 + 1e-9


def test_colour_palette_and_alpha_become_grey(tmp_path, grey):
    for mode in ("RGB", "RGBA", "P", "LA", "1"):
        Image.fromarray(grey).convert(mode).save(tmp_path / f"{mode}.png")
        back = images.read_image(tmp_path / f"{mode}.png")
        assert back.shape == grey.shape
        assert mode in ("1", "P") or (back == grey).all()


# ---------------------------------------------------------------------------------------- DICOM in


def test_dicom_window(tmp_path):
    stored = np.arange(4096).reshape(64, 64)
    path = write_dicom(tmp_path / "a.dcm", stored, WindowCenter=2048, WindowWidth=1024)
    # PS3.3 C.11.2.1.2.1, the linear VOI function, written out.
    expected = np.clip(((stored - 2047.5) / 1023 + 0.5) * 255, 0, 255)
    assert np.abs(images.read_image(path) - expected).max() <= 0.51


def test_dicom_monochrome1_is_inverted_after_the_window(tmp_path):
    stored = np.arange(4096).reshape(64, 64)
    window = {"WindowCenter": 1000, "WindowWidth": 600}
    plain = images.read_image(write_dicom(tmp_path / "a.dcm", stored, **window))
    inverse = images.read_image(write_dicom(tmp_path / "b.dcm", stored, photometric="MONOCHROME1", **window))
    assert (inverse.astype(int) + plain == 255).all()
    assert inverse[0, 0] == 255


def test_dicom_rescale_comes_before_the_window(tmp_path):
    stored = np.arange(4096).reshape(64, 64)
    rescale = {"RescaleSlope": 2, "RescaleIntercept": -1000}
    path = write_dicom(tmp_path / "a.dcm", stored, WindowCenter=3000, WindowWidth=1000, **rescale)
    expected = np.clip(((stored * 2 - 1000 - 2999.5) / 999 + 0.5) * 255, 0, 255)
    assert np.abs(images.read_image(path) - expected).max() <= 0.51


def test_dicom_voi_lut(tmp_path):
    stored = np.arange(256).reshape(16, 16)
    lut = Dataset()
    lut.LUTDescriptor = [256, 0, 16]
    lut["LUTDescriptor"].VR = "US"
    curve = (np.linspace(0, 1, 256) ** 2 * 65535).astype(np.uint16)
    lut.LUTData = curve.tobytes()
    lut["LUTData"].VR = "OW"
    path = write_dicom(tmp_path / "a.dcm", stored, bits=8, VOILUTSequence=[lut])
    assert np.abs(images.read_image(path) - curve[stored] / 65535 * 255).max() <= 0.51


def test_dicom_without_window_uses_its_own_range(tmp_path):
    stored = np.arange(256).reshape(16, 16) * 3 + 500
    back = images.read_image(write_dicom(tmp_path / "a.dcm", stored))
    assert (back == np.arange(256).reshape(16, 16)).all()
    constant = images.read_image(write_dicom(tmp_path / "b.dcm", np.full((4, 4), 7)))
    assert (constant == 0).all()


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + b"\0" * 40, b"\0" * 128 + b"DICM"])
def test_unreadable_file_is_one_sentence(tmp_path, content):
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"bad\.png") as caught:
        images.read_image(path)
    assert "\n" not in str(caught.value)


def test_truncated_image_is_not_read_as_grey(tmp_path, grey):
    path = tmp_path / "a.jpg"
    Image.fromarray(np.tile(grey, (8, 8))).save(path)
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(UserError, match=r"a\.jpg"):
        images.read_image(path)


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match="no such image file"):
        images.read_image(tmp_path / "none.png")


# ---------------------------------------------------------------------------------------- ranges


def test_autoencoder_range_and_back(grey):
    batch = images.to_autoencoder(grey[None])
    assert batch.shape == (1, 1, 37, 41)
    assert (float(batch.min()), float(batch.max())) == (-1.0, 1.0)
    assert (images.from_autoencoder(batch)[0] == grey).all()
    assert images.from_autoencoder(batch * 3).max() == 255  # clamps, does not wrap


def test_xrv_range(grey):
    batch = images.to_xrv(grey[None])
    assert (float(batch.min()), float(batch.max())) == (-1024.0, 1024.0)


def test_wrong_ranges_raise(grey):
    for convert in (images.to_autoencoder, images.to_xrv):
        for wrong in (grey, grey[None] / 255.0, grey[None].astype(np.int64)):
            with pytest.raises(ValueError, match="uint8"):
                convert(wrong)
    batch = images.to_autoencoder(grey[None])
    batch[0, 0, 3, 3] = float("nan")
    with pytest.raises(FloatingPointError):
        images.from_autoencoder(batch)
    with pytest.raises(ValueError, match="N, 1, H, W"):
        images.from_autoencoder(batch[0])


def test_resize_keeps_aspect_centre_and_sides():
    picture = np.zeros((60, 100), np.uint8)
    picture[:, 50:] = 200  # patient's left bright
    out = images.resize_center_crop(picture, 30)
    assert out.shape == (30, 30)
    assert out[:, :12].max() == 0
    assert out[:, 18:].min() == 200
    corner = np.zeros((60, 100), np.uint8)
    corner[:, :15] = 255  # outside the central 60 x 60, and never padded
    assert images.resize_center_crop(corner, 30).max() == 0


def test_resize_is_antialiased():
    checks = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    assert images.resize_center_crop(checks, 16).std() < 20
    assert (images.resize_center_crop(checks, 64) == checks).all()


def test_grid_places_rows_and_captions():
    tiles = [np.full((64, 64), 40 * number, np.uint8) for number in range(1, 7)]
    bare = images.make_grid(tiles, [], columns=3)
    assert [bare[bare.shape[0] // 4, x] for x in (30, 100, 165)] == [40, 80, 120]
    assert [bare[3 * bare.shape[0] // 4, x] for x in (30, 100, 165)] == [160, 200, 240]
    named = images.make_grid(tiles, ["left pleural effusion", "x " * 200], columns=3)
    assert named.shape[0] > bare.shape[0]
    assert named.shape[1] == bare.shape[1]
    with pytest.raises(ValueError, match="captions"):
        images.make_grid(tiles, ["one", "two", "three", "four"], columns=3)
