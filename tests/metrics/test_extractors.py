"""Extractors against the code they stand for, with random weights in the real file formats."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from recipe import load_script

from roentgen.errors import UserError
from roentgen.images import read_image, resize_center_crop
from roentgen.metrics import extractors
from roentgen.metrics.distribution import frechet
from roentgen.metrics.extractor import Extractor
from roentgen.metrics.extractors import load_extractor
from roentgen.models.classifier import SHIPPED, load_classifier
from roentgen.reports.finding_net import load_net
from roentgen.reports.load import MINI_REPORT, find_reporter

ROOT = Path(__file__).resolve().parents[2]
# One smaller than the networks' inputs, one larger, none square: no resize is the identity.
SHAPES = ((90, 70), (330, 410), (61, 100))


def greys(count: int = 3) -> list[np.ndarray]:
    """Smooth pictures with noise: smooth ones show a shift, the noise shows what a resize does to detail."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(count):
        height, width = SHAPES[number % len(SHAPES)]
        coarse = Image.fromarray(rng.integers(0, 256, (9, 9), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
        found.append(np.clip(smooth + rng.normal(0, 30, smooth.shape), 0, 255).astype(np.uint8))
    return found


# ------------------------------------------------------------------------------------------ classifier


def test_classifier_gives_what_the_classifier_gives() -> None:
    extractor, judge = load_extractor("classifier"), load_classifier()
    images = greys()
    found = extractor(images, batch_size=2)
    cropped = np.stack([resize_center_crop(image, judge.size) for image in images])
    np.testing.assert_allclose(found["features"], judge.features(cropped), atol=1e-5)
    np.testing.assert_allclose(found["probabilities"], judge.predict(cropped), atol=1e-6)
    np.testing.assert_allclose(found["sides"], judge.predict_sides(cropped), atol=1e-6)
    assert extractor.findings == tuple(judge.findings) and found["features"].shape == (3, extractor.dim)


def test_key_tells_weights_and_chain_apart(tmp_path: Path) -> None:
    first = load_extractor("classifier")
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((SHIPPED / name).read_bytes())
    same = load_extractor(str(tmp_path))
    assert same.hash == first.hash and str(tmp_path) not in same.key and same.name == tmp_path.name
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"part": "0.4-1"', '"part": "other"'))
    assert load_extractor(str(tmp_path)).hash != first.hash


@pytest.mark.parametrize(
    "bad", [np.zeros((4, 4), np.float32), np.zeros((4, 4, 3), np.uint8), np.zeros((0, 4), np.uint8)]
)
def test_only_grey_uint8(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="grey uint8"):
        load_extractor("classifier")([bad])


# ------------------------------------------------------------------------------------------- Inception


@pytest.fixture(scope="session")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of torch-fidelity's Inception that let the picture through to the features."""
    pytest.importorskip("torch_fidelity")
    file = tmp_path_factory.mktemp("inception") / "inception.pth"
    load_script("benchmarks/inception_weights.py").write_random_inception(file, seed=0)
    return file


def torch_fidelity_features(file: Path, images: list[np.ndarray]) -> np.ndarray:
    """What torch-fidelity itself makes of grey or RGB images."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    net = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(file))
    net.eval()  # before 0.4 the network comes as it is trained
    rows = []
    for image in images:
        rgb = np.asarray(Image.fromarray(image).convert("RGB")).transpose(2, 0, 1).copy()
        rows.append(net(torch.from_numpy(rgb)[None])[0].numpy())
    return np.concatenate(rows)


def test_resize_tf1_is_torch_fidelitys() -> None:
    pytest.importorskip("torch_fidelity")
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x as theirs

    for image in greys():
        for side in (299, 50):
            batch = torch.from_numpy(image.astype(np.float32))[None, None]
            expected = theirs(batch, size=(side, side), align_corners=False)[0, 0].numpy()
            np.testing.assert_array_equal(extractors.resize_tf1(image, side), expected)


def test_resize_clean_is_clean_fids() -> None:
    resize = pytest.importorskip("cleanfid.resize")
    for image in greys():
        expected = resize.build_resizer("clean")(np.asarray(Image.fromarray(image).convert("RGB")))
        for channel in range(3):
            np.testing.assert_array_equal(extractors.resize_clean(image, 299), expected[..., channel])


@pytest.mark.slow
def test_inception_is_torch_fidelitys(inception_file: Path) -> None:
    images = greys()
    extractor = extractors.inception_extractor(weights=inception_file)
    expected = torch_fidelity_features(inception_file, images)
    found = extractor(images)["features"]
    assert expected.std(axis=0).max() > 1e-2 * np.abs(expected).max()  # the pictures are told apart
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    one_by_one = extractor(images, batch_size=1)["features"]
    np.testing.assert_allclose(found, one_by_one, atol=1e-5 * np.abs(expected).max())


@pytest.mark.slow
def test_inception_clean_is_the_same_network_behind_clean_fids_resize(inception_file: Path) -> None:
    resize = pytest.importorskip("cleanfid.resize")
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    image = greys()[1]
    extractor = extractors.inception_extractor(weights=inception_file, resize="clean")
    # As cleanfid.inception_torchscript: resized outside, (x - 128) / 128, the same layers, unfused.
    resized = resize.build_resizer("clean")(np.asarray(Image.fromarray(image).convert("RGB")))
    whole = FeatureExtractorInceptionV3("x", ["2048"], feature_extractor_weights_path=str(inception_file))
    batch = (torch.from_numpy(resized.transpose(2, 0, 1).copy())[None] - 128) / 128
    expected = extractors.nn_sequence(whole)(batch).flatten(1).numpy()
    np.testing.assert_allclose(extractor([image])["features"], expected, atol=1e-4 * np.abs(expected).max())
    other = extractors.inception_extractor(weights=inception_file)([image])["features"]
    assert np.abs(other - expected).max() > 1e-3 * np.abs(expected).max()  # the resize matters
    assert "clean-fid" in extractor.chain and extractor.name == "inception-clean"


# -------------------------------------------------------------------------------------- torchxrayvision


@pytest.fixture(scope="session")
def xrv_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random DenseNet pickled whole, as torchxrayvision's weights are, under their name."""
    xrv = pytest.importorskip("torchxrayvision")
    folder = tmp_path_factory.mktemp("xrv")
    torch.manual_seed(0)
    net = xrv.models.DenseNet(weights=None, num_classes=18)
    torch.save(net, folder / xrv.models.model_urls[extractors.XRV_WEIGHTS]["weights_url"].rpartition("/")[2])
    return folder


def roentgens_script(folder: Path, images: list[np.ndarray], *, antialias: bool) -> np.ndarray:
    """The XRV features of RoentGen's calculate_fid.py, written down step by step from its description.

    clean-fid's dataset gives float RGB in [0, 255] at 299 x 299; then torchvision's grey, the scaling, a crop that
    cuts channel and row axes of a BCHW batch to 299, and torchvision's resize.
    """
    import torchxrayvision as xrv
    from cleanfid.resize import build_resizer
    from torchvision.transforms import functional as tv

    net = xrv.models.DenseNet(weights=extractors.XRV_WEIGHTS, cache_dir=str(folder))
    rows = []
    for image in images:
        rgb = build_resizer("clean")(np.asarray(Image.fromarray(image).convert("RGB")))
        x = tv.rgb_to_grayscale(torch.from_numpy(rgb.transpose(2, 0, 1).copy())[None], 1)
        x = 2048 * (x / 255) - 1024
        x = x[:, 0:299, 0:299]
        x = tv.resize(x, [224], antialias=antialias)
        rows.append(net.features2(x).numpy(force=True))
    return np.concatenate(rows)


@pytest.mark.slow
def test_xrv_is_roentgens_script(xrv_folder: Path) -> None:
    pytest.importorskip("cleanfid")
    images = greys()
    features = {}
    for name, antialias in (("xrv", True), ("xrv-2022", False)):
        extractor = extractors.xrv_extractor(name, folder=xrv_folder)
        found = extractor(images)
        features[name] = found["features"]
        expected = roentgens_script(xrv_folder, images, antialias=antialias)
        np.testing.assert_allclose(found["features"], expected, rtol=0, atol=1e-5 * np.abs(expected).max())
        assert found["features"].shape == (3, 1024) and found["probabilities"].shape == (3, 18)
        assert extractor.findings[10] == "Cardiomegaly"
    assert np.abs(features["xrv"] - features["xrv-2022"]).max() > 1e-4 * np.abs(features["xrv"]).max()


@pytest.mark.slow
def test_xrv_native_is_torchxrayvisions_own_resize(xrv_folder: Path) -> None:
    import torchxrayvision as xrv

    image = greys()[1]  # 330 x 410
    extractor = extractors.xrv_extractor("xrv-native", folder=xrv_folder)
    net = xrv.models.DenseNet(weights=extractors.XRV_WEIGHTS, cache_dir=str(xrv_folder))
    cropped = xrv.datasets.XRayCenterCrop()(xrv.datasets.normalize(image, 255)[None])
    batch = torch.from_numpy(cropped)[None]
    np.testing.assert_allclose(extractor([image])["probabilities"], net(batch).numpy(force=True), atol=1e-5)


# ------------------------------------------------------------------------------------------ hub models


def write_clip_vision(folder: Path) -> Path:
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    CLIPVisionModel(CLIPVisionConfig(image_size=32, patch_size=8, **sizes)).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def write_clip(folder: Path) -> Path:
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = sizes | {"vocab_size": 50, "max_position_embeddings": 8}
    vision = sizes | {"image_size": 32, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def write_dinov2(folder: Path) -> Path:
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    Dinov2Model(config).save_pretrained(folder)
    BitImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("write", "dim"), [(write_clip_vision, 16), (write_clip, 12), (write_dinov2, 16)], ids=["vision", "clip", "dinov2"]
)
def test_hub_models_from_a_folder(tmp_path: Path, write: Callable[[Path], Path], dim: int) -> None:
    from transformers import AutoImageProcessor, AutoModel

    folder = write(tmp_path / "model")
    extractor = load_extractor(str(folder))
    images = greys()
    found = extractor(images)["features"]
    assert found.shape == (3, dim) == (3, extractor.dim) and extractor.name == "model"
    processor, net = AutoImageProcessor.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    for image, row in zip(images, found, strict=True):
        pixels = processor(images=Image.fromarray(image).convert("RGB"), return_tensors="pt")
        with torch.inference_mode():
            expected = net.get_image_features(**pixels) if write is write_clip else net(**pixels)
        expected = expected if isinstance(expected, torch.Tensor) else expected.pooler_output
        np.testing.assert_allclose(row, expected[0].numpy(), atol=1e-5)
    assert "shortest_edge" in extractor.chain and str(tmp_path) not in extractor.chain
    other = load_extractor(str(write(tmp_path / "copy")))
    assert other.hash == extractor.hash


def test_a_processor_that_does_not_crop(tmp_path: Path) -> None:
    """Prepared images of several shapes go through one by one."""
    shapes: list[tuple[int, ...]] = []

    def forward(batch: torch.Tensor) -> dict[str, torch.Tensor]:
        shapes.append(tuple(batch.shape))
        return {"features": batch.mean((1, 2, 3), keepdim=False)[:, None]}

    extractor = Extractor(
        "x", "as it is", 1, "0", ("features",), (), "cpu", lambda i: i[None].astype(np.float32), forward
    )
    images = greys()
    found = extractor(images)["features"]
    np.testing.assert_allclose(found[:, 0], [image.mean() for image in images], rtol=1e-5)
    assert len(shapes) == 3


# --------------------------------------------------------------------------------------- what is not there


def test_the_judge_scores_findings_and_sides_and_has_no_features() -> None:
    from roentgen.reports.finding_net import predict, squash

    judge = load_extractor("judge")
    image = np.random.default_rng(0).integers(0, 256, (96, 80), dtype=np.uint8)
    found = judge([image])
    assert set(found) == {"probabilities", "sides"} and "Effusion" in judge.findings
    net, info = load_net(find_reporter(MINI_REPORT))
    expected = predict(net, squash(image, info["size"])[None])
    assert np.allclose(found["probabilities"], expected.image, atol=1e-5)
    assert np.allclose(found["sides"], expected.sides, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("inception", extractors.INCEPTION_URL),
        ("inception-clean", extractors.INCEPTION_URL),
        ("xrv", ".torchxrayvision/models_data/nih-pc-chex"),
        ("xrv-native", "github.com/mlmed/torchxrayvision/releases"),
        ("clip", "hf download openai/clip-vit-base-patch32"),
        ("rad-dino", "hf download microsoft/rad-dino"),
        ("some/model", "hf download some/model"),
        ("unheard-of", "choose from judge, classifier, inception"),
    ],
)
def test_missing_weights_are_one_sentence(
    name: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("torch_fidelity", "torchxrayvision"):
        pytest.importorskip(package)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError) as caught:
        load_extractor(name)
    assert words in str(caught.value) and name in str(caught.value) and "\n" not in str(caught.value)


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.folder),))


def test_inception_weights_run_no_code(tmp_path: Path) -> None:
    pytest.importorskip("torch_fidelity")
    torch.save({"weight": Evil(tmp_path / "ran")}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="cannot be loaded"):
        extractors.inception_extractor(weights=tmp_path / "weights.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("ask", ["extractor", "augmentation"])
def test_a_cache_of_torchxrayvision_is_the_published_file(
    ask: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another network of the same class, too, would give other figures under the same name."""
    from roentgen.experiments.augmentation import classifier

    xrv = pytest.importorskip("torchxrayvision")
    monkeypatch.setenv("HOME", str(tmp_path))
    name = xrv.models.model_urls[extractors.XRV_WEIGHTS]["weights_url"].rpartition("/")[2]
    file = tmp_path / ".torchxrayvision" / "models_data" / name
    file.parent.mkdir(parents=True)
    torch.save(xrv.models.DenseNet(weights=None, num_classes=18), file)
    make = extractors.xrv_extractor if ask == "extractor" else classifier._xrv_features
    with pytest.raises(UserError, match="not the published file"):
        make()
    # Its sum made that of the published file, a cache that would run code is still refused.
    torch.save({"weight": Evil(tmp_path / "ran")}, file)
    monkeypatch.setattr(extractors, "XRV_SHA256", hashlib.sha256(file.read_bytes()).hexdigest())
    with pytest.raises(UserError, match="would run"):
        make()
    assert not (tmp_path / "ran").exists()


def test_damaged_weights_are_one_sentence(tmp_path: Path) -> None:
    xrv = pytest.importorskip("torchxrayvision")
    file = tmp_path / "weights.pth"
    file.write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"cannot be loaded.*fetch"):
        extractors.inception_extractor(weights=file)
    name = xrv.models.model_urls[extractors.XRV_WEIGHTS]["weights_url"].rpartition("/")[2]
    file.rename(tmp_path / name)
    with pytest.raises(UserError, match=r"cannot be loaded.*fetch"):
        extractors.xrv_extractor(folder=tmp_path)
    (tmp_path / "model").mkdir()
    with pytest.raises(UserError, match="model cannot be loaded"):
        load_extractor(str(tmp_path / "model"))


# ------------------------------------------------------------------------- the whole way, against their tools


@pytest.mark.slow
def test_fid_and_kid_of_folders_are_torch_fidelitys(inception_file: Path, tmp_path: Path) -> None:
    """From files to figures: unequal n, three sizes of images, grey and RGB files."""
    torch_fidelity = pytest.importorskip("torch_fidelity")
    from roentgen.metrics.distribution.kernel import kid
    from roentgen.metrics.distribution.pairs import Pair

    rng = np.random.default_rng(0)
    for kind, count in (("a", 6), ("b", 8)):
        (tmp_path / kind).mkdir()
        for number, image in enumerate(greys(count)):
            noisy = np.clip(image + rng.normal(0, 40 if kind == "a" else 10, image.shape), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).convert("RGB" if number % 2 else "L").save(tmp_path / kind / f"{number:02}.png")
    theirs = torch_fidelity.calculate_metrics(
        input1=str(tmp_path / "a"),
        input2=str(tmp_path / "b"),
        fid=True,
        kid=True,
        kid_subset_size=6,
        kid_subsets=20,
        cuda=False,
        verbose=False,
        save_cpu_ram=True,
        cache=False,
        batch_size=1,  # it cannot put images of several sizes into one batch
        feature_extractor_weights_path=str(inception_file),
    )
    extractor = extractors.inception_extractor(weights=inception_file)
    a, b = (extractor([read_image(path) for path in sorted((tmp_path / kind).iterdir())])["features"] for kind in "ab")
    fid = frechet.frechet_distance(frechet.moments(a), frechet.moments(b))
    assert fid == pytest.approx(theirs["frechet_inception_distance"], rel=1e-3)
    found = kid(Pair(a, b, resamples=2), subsets=20, subset_size=6)
    assert found.value == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-3)
    assert found.details["sd_over_subsets"] == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-3)
