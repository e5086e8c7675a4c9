"""Sharpness: power by band, coherence, contrast and clipping, against values that can be worked out by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from image_sets import chest, sentence, write_generated, write_set
from PIL import Image

from roentgen.images import read_provenance
from roentgen.metrics import sharpness
from roentgen.metrics.memorisation import damage
from roentgen.metrics.sharpness import COHERENCE, CONTRAST, DETAIL_SHARE, band_name, each_sharpness, sharpness_of

Run = Callable[..., tuple[int, str, str]]
SIZE = 256


def waves(across: float, down: float, height: float = 100, size: int = SIZE) -> np.ndarray:
    """A sinusoid of so many cycles an image."""
    y, x = np.mgrid[:size, :size] / size
    return np.rint(127.5 + height * np.sin(2 * np.pi * (across * x + down * y))).astype(np.uint8)[None]


@pytest.mark.parametrize(("across", "down"), [(24, 0), (0, 40), (30, 40), (-56, 0), (100, 0)])
def test_a_sinusoid_falls_into_its_band(across: int, down: int) -> None:
    found = sharpness_of(waves(across, down))
    cycles = int(np.hypot(across, down))
    low = cycles // 16 * 16
    # The window spreads a line over its neighbours, one cycle away on each side; rounding to 8 bits is the rest.
    assert found[band_name(low, low + 16)] == pytest.approx(1, abs=1e-3)
    assert found[DETAIL_SHARE] == pytest.approx(1 if 32 <= cycles < 64 else 0, abs=1e-3)
    assert found[CONTRAST] == pytest.approx(100 / np.sqrt(2), rel=5e-3)


def test_white_noise_has_the_share_of_each_ring() -> None:
    found = sharpness_of(sharpness.white_noise(16, SIZE, seed=0))
    for low, high in sharpness.bands_of(SIZE):
        area = np.pi * (high**2 - low**2) / SIZE**2
        assert found[band_name(low, high)] == pytest.approx(area, rel=0.03 if low else 0.06), (low, high)
    assert found[DETAIL_SHARE] == pytest.approx(np.pi * (64**2 - 32**2) / SIZE**2, rel=0.02)
    assert 0.15 < found[COHERENCE] < 0.3


def test_lines_have_coherence_1_and_two_equal_waves_across_each_other_little() -> None:
    assert sharpness_of(waves(40, 0))[COHERENCE] == pytest.approx(1, abs=1e-3)
    assert sharpness_of(waves(25, 36))[COHERENCE] == pytest.approx(1, abs=1e-3)
    crossed = (waves(40, 0, 50).astype(int) + waves(0, 40, 50) - 127).astype(np.uint8)
    assert sharpness_of(crossed)[COHERENCE] < 0.02  # a checkerboard has as much of one direction as of the other


def test_blur_empties_the_bands_and_grain_lowers_the_coherence() -> None:
    rng = np.random.default_rng(0)
    lines = damage.blur(np.kron(rng.integers(40, 200, (16, 16)), np.ones((16, 16))).astype(np.uint8), 1)
    whole, soft, grainy = (
        sharpness_of(image[None]) for image in (lines, damage.blur(lines, 2), damage.noise(lines, 10, seed=0))
    )
    assert soft[DETAIL_SHARE] < 0.5 * whole[DETAIL_SHARE] < 0.5 * grainy[DETAIL_SHARE]
    assert grainy[COHERENCE] < 0.85 * whole[COHERENCE]


def test_a_constant_image_has_nothing_and_says_so() -> None:
    flat = np.full((1, SIZE, SIZE), 250, np.uint8)
    found = sharpness_of(flat)
    assert found["constant"] == 1 and found[CONTRAST] == 0 and found["pixels above 240"] == 1
    assert np.isnan(found[DETAIL_SHARE]) and np.isnan(found[COHERENCE]) and np.isnan(found[band_name(16, 32)])
    both = sharpness_of(np.concatenate([flat, waves(40, 0)]))  # it does not pull down the others
    assert both["n"] == 2 and both["constant"] == 1 and both[DETAIL_SHARE] == pytest.approx(1, abs=1e-3)


def test_bands_add_up_clipped_pixels_are_counted_and_other_images_refused() -> None:
    image = waves(3, 0)
    image[0, :64], image[0, 64:128] = 255, 14
    found = each_sharpness(image)
    bands = sum(found[band_name(*band)] for band in sharpness.bands_of(SIZE))
    assert 0.99 < bands[0] <= 1 + 1e-12  # the corners beyond the last ring are the rest
    assert found["pixels above 240"][0] == pytest.approx(0.25 + 0.5 * (waves(3, 0) > 240).mean(), abs=1e-6)
    assert found["pixels below 15"][0] >= 0.25
    wide = np.concatenate([np.zeros((1, SIZE, 60), np.uint8), image, np.zeros((1, SIZE, 60), np.uint8)], axis=2)
    assert each_sharpness(wide)[CONTRAST] == pytest.approx(found[CONTRAST])  # cropped to the centre
    for bad in (image.astype(float), image[0], np.zeros((1, 100, 100), np.uint8), np.zeros((0, 256, 256), np.uint8)):
        with pytest.raises(ValueError, match=r"expected uint8|at least 128 pixels"):
            each_sharpness(bad)


# ------------------------------------------------------------------------------------------------ in the suite


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Real images, six of them small, and generated ones of 176 px."""
    folder = tmp_path_factory.mktemp("sharpness")
    real = write_set(folder / "real", {"test": 24}, 0)
    rng = np.random.default_rng(9)
    for number in range(6):
        Image.fromarray(chest(rng, None, 128)).save(real.parent / f"test_{number}.png")
    table = pd.read_csv(real, keep_default_na=False)
    table["source"] = ["small"] * 6 + ["nih"] * 18
    table.to_csv(real, index=False)
    return {"real": real, "made": write_generated(folder / "made", real, 1)}


def run(world: dict[str, Path], out: Path, run_cli: Run, *more: str) -> dict[str, Any]:
    sets = ["--real", str(world["real"]), "--synthetic", str(world["made"]), "--out", str(out)]
    code, _, said = run_cli("eval", *sets, "--metrics", "sharpness", "--resamples", "50", *more)
    assert code == 0, said
    return dict(json.loads((out / "sharpness.json").read_text()))


def test_only_real_images_stored_large_enough_count(world: dict[str, Path], tmp_path: Path, run_cli: Run) -> None:
    found = run(world, tmp_path / "out", run_cli)
    details = found["details"]
    assert details["size"] == 176 and found["n"] == 24
    used = details["real_images"]
    assert (used["used"], used["all"], used["sources"]) == (18, 24, {"nih": 18})
    assert any("18 of 24 real images" in warning for warning in found["warnings"])
    rows = {row["name"]: row for row in details["rows"]}
    # Both are the same lungs with the same grain, drawn anew: real and generated agree, edges are above the grain.
    for name in (DETAIL_SHARE, COHERENCE, CONTRAST):
        assert rows[name]["value"] == pytest.approx(rows[name]["ceiling"]["value"], rel=0.2)
    assert rows[COHERENCE]["value"] > rows[COHERENCE]["floor"]["value"] + 0.05
    low, high = rows[CONTRAST]["ci"]
    assert low <= rows[CONTRAST]["value"] <= high and rows[CONTRAST]["ceiling"]["n"] == 18
    assert "left out" in details["reconstructions"] and "reconstructed" not in details
    page = (tmp_path / "out" / "report.html").read_text()
    assert "power at 32-64 cycles" in page and "reconstructed</th>" not in page


def test_reconstructions_stand_beside_where_a_model_is_named(
    world: dict[str, Path], tmp_path: Path, run_cli: Run, make_pipeline: Callable[..., Path]
) -> None:
    model = make_pipeline(tmp_path / "tiny")
    found = run(world, tmp_path / "out", run_cli, "--autoencoder", str(model))
    row = found["details"]["rows"][0]
    assert row["reconstructed"]["n"] == 18 and found["inputs"]["reconstructed"]["n"] == 24
    assert row["reconstructed"]["value"] != row["ceiling"]["value"]
    marks = read_provenance(next((tmp_path / "out" / "reconstructed").glob("*.png")))
    assert marks["model"] == "tiny" and "real image" in marks["content"]
    assert "reconstructed</th>" in (tmp_path / "out" / "report.html").read_text()
    said = sentence(
        run_cli,
        *("eval", "--real", str(world["real"]), "--synthetic", str(world["made"]), "--out", str(tmp_path / "no")),
        *("--metrics", "sharpness", "--autoencoder", str(tmp_path / "absent")),
    )
    assert "--autoencoder" in said and "absent" in said
