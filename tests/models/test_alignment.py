"""Image-text alignment by hand, its dual encoders, and the recipe that makes the one that ships."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from recipe import few_rows
from tiny import write_whole_clip

from roentgen import errors
from roentgen.errors import UserError
from roentgen.metrics.statistics import Bootstrap
from roentgen.metrics.text.alignment import alignment, own_and_other
from roentgen.models import dual_encoder as models
from roentgen.models import published_encoders
from roentgen.prompts import Labels

ROOT = Path(__file__).parents[2]


def test_own_and_other_by_hand() -> None:
    images = np.eye(3)[:, :2][:2]  # (1, 0) and (0, 1)
    texts = np.array([[0.8, 0.6], [0.8, 0.6]])
    own, other, share = own_and_other(images, texts)
    np.testing.assert_allclose(own, [0.8, 0.6])
    np.testing.assert_allclose(other, [0.8, 0.6])
    np.testing.assert_array_equal(share, [0.5, 0.5])  # equal texts: a draw
    texts = np.array([[1.0, 0], [0, 1], [1, 0]])
    images = np.array([[1.0, 0], [1, 0], [0, 1]])
    own, other, share = own_and_other(images, texts)
    np.testing.assert_allclose(own, [1, 0, 0])
    np.testing.assert_allclose(share, [(1 + 0.5) / 2, 0, 0.25])
    _, other, share = own_and_other(images, texts, same=np.array([[1, 0, 1], [1, 1, 1], [0, 0, 0]], bool))
    np.testing.assert_allclose(share, [1, np.nan, 0.25])
    np.testing.assert_allclose(other, [0, np.nan, 0.5])


def test_alignment_of_matched_and_shuffled_pairs() -> None:
    rng = np.random.default_rng(0)
    texts = rng.normal(size=(200, 16))
    images = texts + rng.normal(size=(200, 16))
    groups = [i // 2 for i in range(200)]
    good = alignment(images, texts, groups, real=(texts, texts, groups), bootstrap=Bootstrap(100))
    assert good.value == pytest.approx(2**-0.5, abs=0.05) and not good.notes
    assert good.floor["value"] == pytest.approx(0, abs=0.02)
    assert good.details["beats"]["value"] > 0.95
    assert good.ceiling["value"] == pytest.approx(1)
    assert good.details["gain_over_real"]["ci"][1] < 0
    moved = alignment(images, np.roll(texts, 7, axis=0), groups, bootstrap=Bootstrap(100))
    low, high = moved.details["beats"]["ci"]
    assert low < 0.5 < high and moved.value == pytest.approx(0, abs=0.05)
    assert "at least 100" in alignment(images[:9], texts[:9], groups[:9], bootstrap=Bootstrap(9)).notes[0]
    with pytest.raises(ValueError, match="equal shapes"):
        alignment(images, texts[:, :8], groups)


def test_describes() -> None:
    images = models.sayings(
        [
            Labels(("Effusion", "Mass"), {"Effusion": "left"}, "PA", "M", 50.0),
            Labels(("No Finding",), {}, "AP", "F", None),
        ]
    )
    texts = models.sayings(
        [
            Labels(("Effusion",)),  # leaves the mass out: still true
            Labels(("Effusion",), {"Effusion": "right"}),
            Labels(("Effusion",), {}, "AP"),
            Labels(("Mass", "Nodule")),
            Labels((), {}, None, "M", 54.0),
            Labels((), {}, None, "M", 56.0),
            Labels(("No Finding",), {}, None, None, 3.0),
        ]
    )
    np.testing.assert_array_equal(
        models.describes(images, texts), np.array([[1, 0, 0, 0, 1, 1 - 1, 0], [0, 0, 0, 0, 0, 0, 1]], dtype=bool)
    )


def test_loss_without_false_negatives() -> None:
    """By hand for two pairs; a true text of another image leaves both sums."""
    images, texts = torch.eye(2), torch.tensor([[1.0, 0], [0.6, 0.8]])
    scale = torch.tensor(2.0)
    none = torch.zeros(2, 2, dtype=torch.bool)
    # logits [[2, 1.2], [0, 1.6]]
    rows = (np.log(1 + np.exp(1.2 - 2)) + np.log(1 + np.exp(0 - 1.6))) / 2
    columns = (np.log(1 + np.exp(0 - 2)) + np.log(1 + np.exp(1.2 - 1.6))) / 2
    assert float(models.contrastive_loss(images, texts, scale, none)) == pytest.approx((rows + columns) / 2, abs=1e-6)
    true = torch.tensor([[True, True], [False, True]])
    rows, columns = np.log(1 + np.exp(0 - 1.6)) / 2, np.log(1 + np.exp(0 - 2)) / 2
    assert float(models.contrastive_loss(images, texts, scale, true)) == pytest.approx((rows + columns) / 2, abs=1e-6)
    assert float(models.contrastive_loss(images, texts, scale, ~none)) == 0


# ------------------------------------------------------------------------------------ the one that ships


@pytest.fixture(scope="module")
def shipped() -> models.ShippedEncoder:
    return models.load_shipped()


def test_shipped_encoder_gives_unit_vectors_that_do_not_depend_on_the_batch(shipped: models.ShippedEncoder) -> None:
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, shape).astype(np.uint8) for shape in ((128, 128), (140, 128), (128, 160))]
    vectors = shipped.images(pictures)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(shipped.images(pictures[1:2])[0], vectors[1], atol=1e-4)
    texts = ["left pleural effusion", "No acute process. 50-year-old woman, PA view", ""]
    words = shipped.texts(texts)
    np.testing.assert_allclose(np.linalg.norm(words, axis=1), 1, atol=1e-5)
    assert words.shape[1] == vectors.shape[1]
    np.testing.assert_allclose(shipped.texts(texts[:1])[0], words[0], atol=1e-5)
    assert np.abs(words[0] - words[1]).max() > 0.01


def test_shipped_folder_is_small_and_described() -> None:
    size = sum(path.stat().st_size for path in models.SHIPPED.rglob("*"))
    assert size < 6e6
    assert {path.name for path in models.SHIPPED.iterdir()} == {"README.md", "config.json", "model.safetensors"}
    info = json.loads((models.SHIPPED / "config.json").read_text())
    assert info["hashes"] == models.frozen_parts()[3]
    assert not any(word in (models.SHIPPED / "README.md").read_text() for word in ("/tmp", "/work", "/root"))


def test_heads_of_another_classifier_are_refused(tmp_path: Path) -> None:
    info = json.loads((models.SHIPPED / "config.json").read_text())
    info["hashes"]["classifier"] = "0" * 16
    (tmp_path / "config.json").write_text(json.dumps(info))
    (tmp_path / "model.safetensors").write_bytes((models.SHIPPED / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match="another classifier"):
        models.load_dual_encoder(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match="cannot be loaded"):
        models.load_shipped(tmp_path)


# ------------------------------------------------------------------------------------------ other ones


def test_any_clip(tmp_path: Path, grey: np.ndarray) -> None:
    from transformers import CLIPModel

    folder = write_whole_clip(tmp_path / "clip")
    encoder = models.load_dual_encoder(str(folder))
    images, texts = encoder.images([grey, 255 - grey]), encoder.texts(["left effusion", "normal"])
    np.testing.assert_allclose(np.linalg.norm(images, axis=1), 1, atol=1e-5)
    assert images.shape == texts.shape == (2, 8) and len(encoder.hash) == 16
    # The same cosines as the model's own forward pass.
    from PIL import Image
    from transformers import AutoTokenizer, CLIPImageProcessor

    pixels = CLIPImageProcessor.from_pretrained(folder)(Image.fromarray(grey).convert("RGB"), return_tensors="pt")
    tokens = AutoTokenizer.from_pretrained(folder)(["left effusion", "normal"], padding=True, return_tensors="pt")
    model = CLIPModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        logits = model(**tokens, **pixels).logits_per_image / model.logit_scale.exp()
    np.testing.assert_allclose(images[:1] @ texts.T, logits.numpy(), atol=1e-5)


def test_what_is_not_here_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr(published_encoders.importlib.util, "find_spec", lambda name: None)
    for name, package in (("biovil-t", "hi-ml-multimodal"), ("biomedclip", "open-clip-torch")):
        with pytest.raises(UserError, match=f"pip install {package}"):
            models.load_dual_encoder(name)
    monkeypatch.setattr(published_encoders.importlib.util, "find_spec", lambda name: 1)
    with pytest.raises(UserError, match=r"biovil_t_image_model_proj_size_128.pt.*hf download microsoft/BiomedVLP-Bio"):
        models.load_dual_encoder("biovil-t")
    with pytest.raises(UserError, match=r"open_clip_pytorch_model\.bin is not in"):
        models.load_dual_encoder(f"biomedclip={tmp_path}")
    with pytest.raises(UserError, match="owner/name: not on this disk"):
        models.load_dual_encoder("owner/name")
    with pytest.raises(UserError, match="unknown; choose one of roentgen, biovil-t, biomedclip,"):
        models.load_dual_encoder("biovilt")


def test_named_encoders_call_their_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grey: np.ndarray) -> None:
    """Stand-ins for the packages, with the names that they have: what goes in and what comes out."""
    (tmp_path / published_encoders.BIOVIL_T_WEIGHTS).write_bytes(b"x")
    (tmp_path / "open_clip_pytorch_model.bin").write_bytes(b"x")
    monkeypatch.setattr(published_encoders.importlib.util, "find_spec", lambda name: 1)

    class Net(torch.nn.Module):
        def __init__(self, **options: Any) -> None:
            super().__init__()
            self.options = options

        def forward(self, x: torch.Tensor) -> Any:
            assert x.shape[1:] == (3, 448, 448)
            out = ModuleType("output")
            out.projected_global_embedding = x.mean((2, 3)) + torch.tensor([1.0, 0, 0])
            return out

        @classmethod
        def from_pretrained(cls, folder: Path, local_files_only: bool, output_loading_info: bool) -> Any:
            assert local_files_only and output_loading_info
            return cls(), {"missing_keys": {"cls.predictions.bias"}}

        def get_projected_text_embeddings(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return torch.ones(len(input_ids), 3)

        def encode_image(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3)) + 1

        def encode_text(self, x: torch.Tensor) -> torch.Tensor:
            return torch.ones(len(x), 3)

    class Words:
        @classmethod
        def from_pretrained(cls, folder: Path, local_files_only: bool) -> Words:
            return cls()

        def __call__(self, texts: list[str], **options: Any) -> Any:
            ids = torch.zeros(len(texts), 4, dtype=torch.int64)
            return ids if "context_length" in options else {"input_ids": ids, "attention_mask": ids}

    from torchvision import transforms as tv

    def transform(resize: int, center_crop_size: int) -> Any:
        return tv.Compose(
            [tv.Resize(resize), tv.CenterCrop(center_crop_size), tv.ToTensor(), lambda x: x.repeat(3, 1, 1)]
        )

    contents: dict[str, dict[str, Any]] = {
        "health_multimodal.image.data.transforms": {"create_chest_xray_transform_for_inference": transform},
        "health_multimodal.image.model.model": {"ImageModel": Net},
        "health_multimodal.image.model.types": {"ImageEncoderType": ModuleType("types")},
        "health_multimodal.text.model": {"CXRBertModel": Net, "CXRBertTokenizer": Words},
        "open_clip": {
            "create_model_from_pretrained": lambda name, device: (Net(), tv.Compose([tv.Resize(8), tv.ToTensor()])),
            "get_tokenizer": lambda name: Words(),
        },
    }
    contents["health_multimodal.image.model.types"]["ImageEncoderType"].RESNET50_MULTI_IMAGE = "multi"  # type: ignore
    for name in list(contents):
        while name:
            module = ModuleType(name)
            vars(module).update(contents.get(name, {}))
            monkeypatch.setitem(sys.modules, name, module)
            name = name.rpartition(".")[0]
    for name in ("biovil-t", "biomedclip"):
        encoder = models.load_dual_encoder(f"{name}={tmp_path}")
        images, texts = encoder.images([grey] * 2), encoder.texts(["a", "b", "c"])
        assert images.shape == (2, 3) and texts.shape == (3, 3)
        np.testing.assert_allclose(np.linalg.norm(images, axis=1), 1, atol=1e-5)


# ------------------------------------------------------------------------------------------- the recipe


def recipe(*flags: object) -> int:
    from roentgen.recipes import alignment

    return errors.run(lambda: alignment.main([str(flag) for flag in flags]), prog="train/alignment.py")


@pytest.mark.slow
def test_recipe_learns_repeats_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = few_rows(tmp_path, train=24, val=8)
    flags = ("--manifest", manifest, "--texts", 2, "--hidden", 16, "--dim", 8, "--pairs", 96, "--batch_size", 8)
    flags += ("--eval_every", 48, "--resamples", 20, "--cache", tmp_path / "cache")
    (tmp_path / "one").mkdir()
    card = tmp_path / "one" / "README.md"
    card.write_text("<!-- results:alignment -->\n<!-- /results:alignment -->\n")
    assert recipe(*flags, "--out", tmp_path / "one") == 0
    assert "| Share of other texts that the own text beats |" in card.read_text()
    assert recipe(*flags, "--out", tmp_path / "two") == 0
    one, two = (tmp_path / name / "model.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    encoder = models.load_dual_encoder(str(tmp_path / "one"))
    assert encoder.texts(["effusion"]).shape == (1, 8)
    result = json.loads((tmp_path / "one" / "alignment.json").read_text())
    assert result["n"] == 8 and result["details"]["self_retrieval"] == 1
    assert str(tmp_path) not in json.dumps(result)
    assert {"cosine", "cosine_bare_findings", "image_to_text", "image_to_image"} <= set(result["details"])


def test_recipe_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = few_rows(tmp_path, train=6, val=2)
    assert recipe("--manifest", manifest, "--out", tmp_path / "out", "--dry-run", "--batch_size", 4) == 0
    assert not (tmp_path / "out").exists()
    for flags, words in (
        (("--batch_size", 16), "lower --batch-size"),
        (("--dropout", 1), "--dropout"),
        (("--texts", 0), "--texts 0: must be at least 1"),
        (("--batch_size", 1), "--batch-size 1: must be at least 2"),
    ):
        capsys.readouterr()
        assert recipe("--manifest", manifest, "--out", tmp_path / "out", *flags) == 2
        assert words in capsys.readouterr().err
