"""What only a GPU can show; run with `pytest -m gpu` where there is one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def test_the_same_seed_gives_the_same_image_as_on_the_cpu(tiny_pipeline) -> None:
    from roentgen import generate, load_model

    images = [
        next(generate(load_model(str(tiny_pipeline), device=device, dtype="float32"), ["left pleural effusion"])).image
        for device in ("cpu", "cuda")
    ]
    assert np.abs(images[0].astype(int) - images[1]).max() <= 2


def test_mini_in_half_precision_is_close_to_single() -> None:
    from roentgen import generate, load_model

    images = [
        next(generate(load_model("mini", device="cuda", dtype=dtype), ["cardiomegaly"], steps=5)).image
        for dtype in ("float16", "float32")
    ]
    assert np.abs(images[0].astype(int) - images[1]).mean() < 4
