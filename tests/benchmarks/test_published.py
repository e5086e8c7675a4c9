"""benchmarks/published.py: RoentGen's steps and ours on the same files, the committed result, and mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from recipe import ROOT

from roentgen.errors import UserError
from roentgen.metrics.diversity.ms_ssim import pair_ms_ssim

SCRIPT = "published"

COMMITTED = ROOT / "benchmarks" / "results" / "published.json"


@pytest.fixture(scope="module")
def folders(bench: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("published")
    bench.make_images(folder / "real", folder / "generated", 5, seed=0)
    return folder / "real", folder / "generated"


def test_images_lie_as_the_scripts_read_them(bench: ModuleType, folders: tuple[Path, Path]) -> None:
    real, generated = folders
    assert [path.name for path in sorted(real.iterdir())] == [f"{n:05}.jpg" for n in range(5)]
    assert len(list(generated.iterdir())) == 20
    sizes = {Image.open(path).size for path in generated.glob("00000_*.jpg")}
    assert len(sizes) == 1 and min(sizes.pop()) == bench.SIDE
    four = [np.asarray(Image.open(path), dtype=float) for path in sorted(generated.glob("00000_*.jpg"))]
    assert all(np.abs(a - four[0]).mean() > 1 for a in four[1:])


def test_ms_ssim_of_a_prompt_is_the_scripts(bench: ModuleType, folders: tuple[Path, Path]) -> None:
    pytest.importorskip("pytorch_msssim")
    prompts = [bench.prompt_files(first) for first in bench.files_of(folders[1], "*_0.jpg", "--generated")[:2]]
    theirs = bench.roentgens_ms_ssim(prompts)
    assert theirs.shape == (2, 6)
    pairs = np.array([[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]])
    for row, files in enumerate(prompts):
        images = np.stack([np.asarray(Image.open(path).convert("L")) for path in files])
        if not any(side % 2**4 for side in images.shape[1:]):  # an odd size at some scale is padded there, not here
            np.testing.assert_allclose(pair_ms_ssim(images, pairs), theirs[row], atol=1e-5)


@pytest.mark.slow
def test_fid_in_its_features_is_the_scripts(
    bench: ModuleType, folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("torchxrayvision", "cleanfid", "pytorch_msssim"):
        pytest.importorskip(package)
    monkeypatch.setenv("HOME", str(tmp_path))  # whatever weights lie on this disk
    real, generated = folders
    document = tmp_path / "metrics.md"
    document.write_text("<!-- results:published -->\n<!-- /results:published -->\n")
    out = tmp_path / "published.json"
    flags = ["--images", "5", "--out", out, "--update", document, "--real", real, "--generated", generated]
    assert bench.main([str(flag) for flag in flags]) == 0
    found = json.loads(out.read_text())
    details = found["details"]
    assert details["largest_feature_difference"] < 1e-4
    fid, mean, _ = details["agreement"]
    assert fid["difference"] < 1e-2  # five images: the root of a product that is all but singular
    assert mean["difference"] < 1e-2
    assert "random weights" in found["extractor"] and "means nothing" in found["warnings"][0]
    changes = {row["change"]: row["fid"] for row in details["changes"]}
    assert len(set(changes.values())) == len(changes)  # every change moves the figure
    assert "| FID, torchxrayvision features |" in document.read_text()
    assert str(tmp_path) not in out.read_text()


def test_orders_of_files_give_different_figures_and_all_of_them_one(bench: ModuleType) -> None:
    rng = np.random.default_rng(0)
    features = {name: rng.normal(size=(40, 5)) for name in ("generated", "real")}
    cut = bench.cut_orders(features, 20, 0)
    assert len(cut) == bench.ORDERS and max(cut) > 1.2 * min(cut)
    whole = bench.cut_orders(features, 40, 0)
    assert whole == pytest.approx([whole[0]] * bench.ORDERS)


def test_committed_figures_agree(bench: ModuleType) -> None:
    found = json.loads(COMMITTED.read_text())
    assert found["details"]["largest_feature_difference"] < 1e-4
    assert found["details"]["agreement"][0]["difference"] < 1e-3


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--images", "3"], "--images 3: must be at least 4"),
        (["--real", "r"], "--real and --generated belong together"),
        ([], "--out is missing"),
        (["--out", "x.json", "--update", "missing.md"], r"missing\.md"),
        (["--out", "x.json", "--real", ".", "--generated", "."], r"0 files \*_0\.jpg"),
        (["--out", "x.json", "--images", "9999"], "at most"),
    ],
)
def test_mistakes_are_one_sentence(
    bench: ModuleType, flags: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said):
        bench.main(flags)


def test_a_prompt_that_lacks_an_image_is_named(bench: ModuleType, folders: tuple[Path, Path], tmp_path: Path) -> None:
    first = tmp_path / "00000_0.jpg"
    first.write_bytes((folders[1] / "00000_0.jpg").read_bytes())
    with pytest.raises(UserError, match=r"lacks 00000_1\.jpg"):
        bench.prompt_files(first)
