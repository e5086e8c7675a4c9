"""Damage to images, and eval/sensitivity.py run for real on painted images with an extractor that sees them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from image_sets import write_set
from PIL import Image
from recipe import load_script

from roentgen import errors
from roentgen.experiments.sensitivity import damages, noise, results, samples, scores
from roentgen.metrics import neighbours
from roentgen.metrics.extractor import Extractor
from roentgen.metrics.memorisation import damage
from roentgen.metrics.result import KEYS

# --------------------------------------------------------------------------------------------------------- damage


def test_blur_keeps_the_mean_and_has_the_spread_it_says() -> None:
    line = np.zeros((65, 65), np.uint8)
    line[:, 32] = 255
    row = damage.blur(line, 3.0)[32].astype(float)
    places = np.arange(65) - 32
    assert (row * places).sum() == pytest.approx(0)
    assert np.sqrt((row * places**2).sum() / row.sum()) == pytest.approx(3.0, rel=0.03)  # tails round to 0
    assert damage.blur(line, 0.0) is not line and (damage.blur(line, 0.0) == line).all()
    flat = np.full((20, 30), 77, np.uint8)
    assert (damage.blur(flat, 9.0) == flat).all()  # also at the edges
    scipy = pytest.importorskip("scipy.ndimage")
    image = np.random.default_rng(0).integers(0, 256, (40, 50), dtype=np.uint8)
    expected = scipy.gaussian_filter(image.astype(float), 1.5, mode="reflect", truncate=4)
    assert np.abs(damage.blur(image, 1.5) - expected).max() <= 0.5 + 1e-9


def test_noise_brightness_jpeg_flip_and_crop() -> None:
    grey = np.full((100, 120), 128, np.uint8)
    noisy = damage.noise(grey, 10, seed=1).astype(float)
    assert noisy.std() == pytest.approx(10, rel=0.03) and noisy.mean() == pytest.approx(128, abs=0.5)
    assert (damage.noise(grey, 10, seed=1) == noisy).all() and (damage.noise(grey, 10, seed=2) != noisy).any()
    ends = np.array([[0, 100, 250]], np.uint8)
    np.testing.assert_array_equal(damage.brightness(ends, 20), [[20, 120, 255]])
    np.testing.assert_array_equal(damage.brightness(ends, -20), [[0, 80, 230]])
    image = damage.blur(np.random.default_rng(0).integers(0, 256, (64, 80), dtype=np.uint8), 2)
    errors_by_quality = [np.abs(damage.jpeg(image, q).astype(int) - image).mean() for q in (95, 50, 10)]
    assert errors_by_quality == sorted(errors_by_quality) and errors_by_quality[0] < errors_by_quality[2]
    assert (damage.flip(damage.flip(image)) == image).all() and (damage.flip(image)[:, 0] == image[:, -1]).all()
    assert damage.crop(image, 0.5).shape == image.shape
    half = np.array(Image.fromarray(image).crop((20, 16, 60, 48)).resize((80, 64), Image.Resampling.BICUBIC))
    inside = slice(4, -4), slice(4, -4)  # the edges may look beyond the box
    np.testing.assert_allclose(damage.crop(image, 0.5)[inside].astype(int), half[inside].astype(int), atol=1)


@pytest.mark.parametrize(
    "call",
    [
        lambda g: damage.blur(g, -1),
        lambda g: damage.noise(g, -1, seed=0),
        lambda g: damage.jpeg(g, 0),
        lambda g: damage.crop(g, 0),
        lambda g: damage.blur(g.astype(float), 1),
        lambda g: damage.shuffle(3, 1.5, seed=0),
        lambda g: damage.collapse(3, 4, seed=0),
        lambda g: damage.replace(10, 1.0, 3, seed=0),
    ],
)
def test_damage_that_makes_no_sense_is_an_error(call: Callable[[np.ndarray], object]) -> None:
    with pytest.raises(ValueError):
        call(np.zeros((8, 8), np.uint8))


def test_rows_to_damage() -> None:
    labels = damage.shuffle(100, 0.3, seed=0)
    assert (labels != np.arange(100)).sum() == 30 and sorted(labels) == list(range(100))
    assert (damage.shuffle(10, 0.0, seed=0) == np.arange(10)).all()
    kept, times = np.unique(damage.collapse(100, 8, seed=0), return_counts=True)
    assert len(kept) == 8 and set(times) <= {12, 13}
    rows, sources = damage.replace(100, 0.2, 30, seed=0)
    assert len(set(rows)) == len(set(sources)) == 20 and max(sources) < 30


# ------------------------------------------------------------------------------------------------ noticed or not


def entries(*outside: str) -> list[dict[str, Any]]:
    return [{"damage": "blur", "outside": side, "label": f"dose {i}"} for i, side in enumerate(outside)]


def test_noticed_from_the_first_dose_after_which_all_are() -> None:
    assert results.noticed_from(entries("", "worse", "worse"), "blur") == 1
    assert results.noticed_from(entries("worse", "", "worse"), "blur") == 2  # the first was luck
    assert results.noticed_from(entries("worse", "worse", ""), "blur") is None
    assert results.noticed_from(entries("better", "better"), "blur") is None


def test_judged_against_the_noise_of_undamaged_images() -> None:
    values = [{"damage": "blur", "dose": 1, "label": "", "value": value} for value in (0.5, 0.7, 0.3, float("nan"))]
    assert [e["outside"] for e in results.judge_doses(values, (0.4, 0.6), 1)] == ["", "worse", "better", ""]
    assert [e["outside"] for e in results.judge_doses(values, (0.4, 0.6), -1)] == ["", "better", "worse", ""]
    draws = np.linspace(0.4, 0.6, 1001)
    assert noise.range_about(0.9, draws, (0.0, 1.0)) == pytest.approx((0.805, 0.995), abs=1e-3)
    assert noise.range_about(0.95, draws, (0.0, 1.0))[1] == 1.0
    assert np.isnan(noise.range_about(float("nan"), draws, (0.0, 1.0))).all()


# ------------------------------------------------------------------------------------------------ the whole thing


def picture(rng: np.random.Generator, side: str | None) -> np.ndarray:
    """A smooth random chest, white at one base where there is fluid; left is on the image's right."""
    small = rng.integers(40, 150, (8, 8), dtype=np.uint8)
    image = damage.blur(np.kron(small, np.ones((8, 8), np.uint8)), 3)
    image = damage.noise(image, 4, seed=int(rng.integers(2**31)))
    if side is not None:
        columns = slice(48, None) if side == "left" else slice(None, 16)
        image[48:, columns] = np.clip(image[48:, columns].astype(int) + 90, 0, 255)
    return image


def toy_extractor(name: str, *, device: str = "cpu") -> Extractor:
    """8 x 8 means and mean steps between pixels as features; fluid by how white the bases are."""

    def prepare(image: np.ndarray) -> np.ndarray:
        return np.asarray(image, np.float32)[None] / 255

    def forward(batch: torch.Tensor) -> dict[str, torch.Tensor]:
        means = torch.nn.functional.avg_pool2d(batch, 32).flatten(1)
        steps = torch.nn.functional.avg_pool2d((batch.diff(dim=3) ** 2), (64, 51)).flatten(1).sqrt()
        bases = torch.stack([batch[:, 0, 192:, :64].mean((1, 2)), batch[:, 0, 192:, 192:].mean((1, 2))], dim=1)
        fluid = bases.amax(1)
        probabilities = torch.stack([1 - fluid, fluid], dim=1)
        sides = bases[:, None].repeat(1, 2, 1)
        return {"features": torch.cat([means, 4 * steps], dim=1), "probabilities": probabilities, "sides": sides}

    return Extractor(
        name="toy",
        chain="as it is",
        dim=84,
        hash="0" * 16,
        outputs=("features", "probabilities", "sides"),
        findings=("No Finding", "Effusion"),
        device=device,
        prepare=prepare,
        forward=forward,
    )


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("painted"), {"train": 120, "test": 200}, 0, draw=picture, patient=2, run=2)


@pytest.fixture(scope="module")
def script() -> Iterator[Any]:
    module = load_script("eval/sensitivity.py")
    module.load_extractor = toy_extractor
    module.DAMAGES = tuple(
        damages.Damage(each.name, each.doses[-1:] if each.name != damages.COPIES else each.doses[-2:], each.unit)
        for each in damages.DAMAGES
        if each.name not in (damages.JPEG, damages.BRIGHTER)
    )
    with pytest.MonkeyPatch.context() as patch:
        # Not what is tested here, and most of the time.
        for place in (scores, noise):
            patch.setattr(place, "pair_ms_ssim", lambda images, pairs: images[pairs].std(axis=1).mean(axis=(1, 2)))
        yield module


@pytest.fixture(scope="module")
def measured(script: Any, manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("measured")
    document = folder / "metrics.md"
    document.write_text("Before.\n\n<!-- results:sensitivity -->\n<!-- /results:sensitivity -->\n\nAfter.\n")
    flags = ["--images", "100", "--train", "120", "--draws", "30", "--pairs", "10", "--planted", "30"]
    paths = ["--manifest", manifest, "--out", folder / "out", "--work", folder / "work", "--update", document]
    assert script.main([*flags, *map(str, paths)]) == 0
    return folder


@pytest.mark.slow
def test_each_metric_notices_what_it_should(measured: Path) -> None:
    def claims(key: str) -> dict[str, str | None]:
        result = json.loads((measured / "out" / f"{key}.json").read_text())
        assert set(KEYS) <= set(result)
        return {claim["damage"]: claim["noticed_from"] for claim in result["details"]["claims"]}

    assert claims("auroc") == {"shuffled labels": "100% of rows"}
    assert claims("laterality") == {"left-right flip": "100% of images"}
    assert claims("recall")["mode collapse"] and claims("repeats")["mode collapse"]
    assert claims("fid")["noise"] and claims("kid")["noise"] and claims("fid")["mode collapse"]
    for key in ("copies_features", "copies_pixels"):
        assert claims(key)["training copies"] == "10% of images"
    assert claims("authpct")["training copies"]
    assert claims("detail") == {"blur": "sigma 4 px"} and claims("coherence") == {"noise": "sd 40 grey levels"}


@pytest.mark.slow
def test_what_is_blind_is_said_to_be(measured: Path) -> None:
    auroc = json.loads((measured / "out" / "auroc.json").read_text())["details"]
    assert "left-right flip" not in [entry["damage"] for entry in auroc["beyond"]]  # AUROC knows no sides
    # Of 25 copies half are nearer to train by chance: the share moves by a tenth, which 100 images do not show.
    nearer = json.loads((measured / "out" / "nearer.json").read_text())["details"]
    assert {"damage": "training copies", "noticed_from": None} in nearer["claims"]
    text = (measured / "metrics.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith("| nearer to train |"))
    assert "**does not notice training copies** (up to 25% of images)" in row
    assert text.startswith("Before.") and text.rstrip().endswith("After.")
    # Neither machine nor user in what is published.
    assert str(measured) not in text


@pytest.mark.slow
def test_planted_copies_are_found(measured: Path) -> None:
    spaces = json.loads((measured / "out" / "planted.json").read_text())["details"]["spaces"]
    for space in spaces.values():
        assert space["kinds"]["exact"]["value"] == space["kinds"]["exact"]["details"]["right_source"] == 1
        assert all(kind["details"]["right_source"] <= kind["value"] for kind in space["kinds"].values())


@pytest.mark.slow
def test_tables_are_made_again_without_measuring(script: Any, measured: Path) -> None:
    document = measured / "metrics.md"
    before = document.read_text()
    document.write_text("<!-- results:sensitivity -->\n<!-- /results:sensitivity -->\n")
    flags = ["--measure", "false", "--out", str(measured / "out"), "--update", str(document)]
    assert script.main(flags) == 0
    assert document.read_text().strip() in before


def test_the_lookup_gives_what_the_metrics_give(script: Any, manifest: Path, tmp_path: Path) -> None:
    s = script.Settings(out=tmp_path, manifest=manifest, images=40, train=40)
    extractor = toy_extractor("classifier")
    reader = samples.Reader(extractor, extractor, tmp_path, 16)
    a, b, train = (
        reader.sample(script.load_pixels(rows["image"].tolist(), size=samples.SIDE).pixels, rows, "x")
        for rows in script.choose_rows(s)
    )
    assert not set(a.patients) & set(b.patients)
    views = neighbours.train_views(train.pixels)
    world = samples.World(b, train, views, extractor.findings, np.empty((0, 2)), np.empty((0, 2)), 0)
    far = noise.Lookup.of(samples.join(a, b), world)
    first, second = np.arange(40), np.arange(40, 80)
    for metric in scores.METRICS:
        if metric.noise == "lookup":
            assert far.value(metric.key, first, second) == pytest.approx(metric.value(a, world), abs=1e-12), metric.key
    again = reader.sample(a.pixels, script.choose_rows(s)[0], "x")  # from the disk
    np.testing.assert_array_equal(again.features, a.features)
    np.testing.assert_allclose(a.thumbs, neighbours.thumbnails(a.pixels))


def test_mistakes_are_one_sentence(script: Any, manifest: Path, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "out")]
    with pytest.raises(errors.UserError, match="--manifest is missing"):
        script.main(out)
    with pytest.raises(errors.UserError, match="--images 3: must be at least 40"):
        script.main([*out, "--images", "3"])
    document = tmp_path / "no_markers.md"
    document.write_text("nothing here\n")
    with pytest.raises(errors.UserError, match=r"no_markers\.md.*<!-- results:sensitivity -->"):
        script.main([*out, "--manifest", str(manifest), "--update", str(document)])
    assert not (tmp_path / "out").exists()  # said before anything was measured
    with pytest.raises(errors.UserError, match=r"fid\.json: no such result"):
        script.main([*out, "--measure", "false"])
    few = pd.read_csv(manifest).groupby("split").head(10)
    few["image"] = [str(manifest.parent / image) for image in few["image"]]
    few.to_csv(tmp_path / "few.csv", index=False)
    with pytest.raises(errors.UserError, match="10 train images; 80 are needed"):
        script.main([*out, "--work", str(tmp_path / "work"), "--manifest", str(tmp_path / "few.csv")])
