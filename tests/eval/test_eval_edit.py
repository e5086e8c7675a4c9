"""The ways to edit that eval/edit.py compares."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from recipe import load_script


def test_ways_from_random_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean is that of all turns, and the best is each image's own."""
    script: Any = load_script("eval/edit.py")
    grey = np.arange(script.TURNS * 2).reshape(script.TURNS, 2) * 10  # (turn, image)
    made = np.broadcast_to(grey[..., None, None], (*grey.shape, 4, 4)).astype(np.uint8)
    monkeypatch.setattr(script, "edited", lambda *args, invert, turn: (made[turn], None))
    wanted = {"a": 20, "b": 70}
    encoder = SimpleNamespace(
        texts=lambda texts: np.ones((len(texts), 1)),
        images=lambda pictures: np.array(
            [[-abs(float(one.mean()) - grey_of)] for one, grey_of in zip(pictures, wanted.values(), strict=True)]
        ),
    )
    monkeypatch.setattr(script, "load_shipped", lambda: encoder)
    case = SimpleNamespace(texts=list(wanted))
    ways = {name: make(None, case, None) for name, make in script.TRIED.items() if "4" in name}
    assert [np.unique(one).tolist() for one in ways["mean of 4 from random noise"]] == [[30], [40]]
    assert [np.unique(one).tolist() for one in ways["best of 4 from random noise"]] == [[20], [70]]
