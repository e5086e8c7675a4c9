"""benchmarks/peers.py: other packages beside ours on equal features, the committed result, and mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from recipe import ROOT

from roentgen.errors import UserError

SCRIPT = "peers"

COMMITTED = ROOT / "benchmarks" / "results" / "peers.json"


def test_committed_figures_agree() -> None:
    result = json.loads(COMMITTED.read_text())
    assert result["git_commit"] and not result["git_modified"]
    rows = {each["what"]: each for each in result["details"]["rows"]}
    assert all(each["agrees"] for what, each in rows.items() if "torch-fidelity" in what or "antialias=False" in what)
    assert (
        not rows["FID, piq"]["agrees"] and not rows["FID of files, torchmetrics, its default, antialias=True"]["agrees"]
    )


def test_features_of_equal_packages_agree(bench: ModuleType) -> None:
    for name in ("piq", "prdc", "torch_fidelity"):
        pytest.importorskip(name)
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(80, 70)), rng.normal(0.2, 1.1, size=(80, 70))
    rows = bench.of_features(a, b)
    assert all(each["agrees"] for each in rows if "torch-fidelity" in each["what"])
    assert all(each["agrees"] for each in rows if "prdc" in each["what"] and "cut" not in each["what"])


def test_a_squash_moves_what_is_not_square(bench: ModuleType) -> None:
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 200, bench.SIDE)
    pictures = {
        side: [(ramp + rng.uniform(0, 55)).astype(np.uint8)[None].repeat(bench.SIDE, 0) for _ in range(6)]
        for side in "ab"
    }

    def slopes(images: list[Any]) -> dict[str, Any]:
        found = [[float(np.diff(image[0, [40, 200]].astype(float))[0]) / 160, float(image.mean())] for image in images]
        return {"features": np.array(found)}

    square, portrait = bench.of_squashed(pictures, slopes)
    assert abs(portrait["difference"]) > abs(square["difference"])


def test_torchmetrics_takes_features_as_they_are() -> None:
    """Its FID of a given network's features is ours: only its own resize differs."""
    import torch

    from roentgen.metrics.distribution import frechet

    image = pytest.importorskip("torchmetrics.image.fid")
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Identity())
    net.num_features = 12
    metric = image.FrechetInceptionDistance(feature=net, input_img_size=(3, 2, 2)).set_dtype(torch.float64)
    a, b = torch.rand(60, 3, 2, 2), 0.7 * torch.rand(50, 3, 2, 2)
    for batch, real in ((a, True), (b, False)):
        metric.update(batch, real=real)
    whole = [batch.flatten(1).double().numpy() for batch in (a, b)]
    assert float(metric.compute()) == pytest.approx(float(frechet.feature_distance(*whole)), rel=1e-4)


def test_mistakes_are_one_sentence(bench: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--images 3: must be at least 40"):
        bench.main(["--out", str(tmp_path / "x.json"), "--images", "3"])
    with pytest.raises(UserError, match="--out is missing"):
        bench.main([])
