"""The classifier's arithmetic and its input contract."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from roentgen.errors import UserError
from roentgen.experiments.weak_sides import agreement, lung_asymmetry, weak_sides
from roentgen.models.classifier import HalvesNet, load_classifier, noisy_or_loss
from roentgen.models.own import save_network


def test_noisy_or_by_hand() -> None:
    p = torch.tensor([0.2, 0.5])
    logits = torch.logit(p).view(1, 1, 2)
    either = 1 - 0.8 * 0.5
    assert noisy_or_loss(logits, torch.ones(1, 1)).item() == pytest.approx(-np.log(either), rel=1e-4)
    assert noisy_or_loss(logits, torch.zeros(1, 1)).item() == pytest.approx(-np.log(1 - either), rel=1e-4)


def make_net() -> HalvesNet:
    torch.manual_seed(0)
    return HalvesNet(2, blocks=(1, 1)).eval()


def test_mirroring_an_image_swaps_its_sides() -> None:
    net, x = make_net(), torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        sides, mirrored = net(x)[1], net(x.flip(-1))[1]
    assert torch.allclose(sides, mirrored.flip(-1), atol=1e-5)
    assert not torch.allclose(sides, mirrored, atol=1e-5)


def test_only_the_named_half_moves_its_score() -> None:
    net, x = make_net(), torch.zeros(1, 1, 64, 64)
    changed = x.clone()
    changed[..., :20] += 1  # the image's left is the patient's right: index 0
    with torch.no_grad():
        difference = (net(changed)[1] - net(x)[1]).abs()
    assert difference[0, :, 0].min() > 0 and difference[0, :, 1].max() == 0


def test_saving_and_loading_keep_the_answers(tmp_path: Path) -> None:
    net = make_net()
    save_network(tmp_path, net, {"findings": ["Effusion", "Mass"], "size": 64, "blocks": [1, 1]})
    images = np.random.default_rng(0).integers(0, 256, (3, 128, 128), dtype=np.uint8)
    judge = load_classifier(tmp_path)
    x = torch.nn.functional.avg_pool2d(torch.from_numpy(images).float().unsqueeze(1), 2) / 127.5 - 1
    with torch.no_grad():
        expected = net(x)[0].sigmoid().numpy()
    assert np.allclose(judge.predict(images), expected, atol=2e-3)
    assert judge.features(images).shape[0] == 3
    with pytest.raises(ValueError, match="uint8"):
        judge.predict(images.astype(np.float32))  # type: ignore[arg-type]
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"model\.safetensors"):
        load_classifier(tmp_path)
    with pytest.raises(UserError, match="no classifier"):
        load_classifier(tmp_path / "none")


def test_the_whiter_lung_names_the_side() -> None:
    import pandas as pd

    rng = np.random.default_rng(0)
    pixels = rng.integers(90, 110, (42, 64, 64)).astype(np.uint8)
    pixels[40, 24:48, 36:58] += 60  # the image's right is the patient's left
    pixels[41, 24:48, 6:28] += 60
    table = pd.DataFrame(
        {
            "split": ["train"] * 42,
            "No Finding": [1.0] * 40 + [0.0] * 2,
            "Effusion": [0.0] * 40 + [1.0] * 2,
            "Effusion_side": [""] * 40 + ["left", "left"],
        }
    )
    assert lung_asymmetry(pixels)[40] > 0 > lung_asymmetry(pixels)[41]
    weak = weak_sides(table, pixels)
    assert list(weak["side"]) == ["left", "right"]
    assert agreement(table, weak) == {"Effusion": {"known": 2, "said": 2, "right": 1}}
