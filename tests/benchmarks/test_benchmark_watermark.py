"""benchmarks/watermark.py: the whole of it with a stand-in for the library, and what it says without one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from roentgen import errors

SCRIPT = "watermark"


class Encoder:
    """Writes the bits into the lowest bit of the first pixels."""

    def set_watermark(self, kind: str, bits: list[int]) -> None:
        self.bits = bits

    def encode(self, image: np.ndarray, method: str, **_: Any) -> np.ndarray:
        marked = image.copy()
        marked.reshape(-1, 3)[: len(self.bits)] = (image.reshape(-1, 3)[: len(self.bits)] & 254) + np.c_[self.bits]
        return marked


class Decoder:
    def __init__(self, kind: str, length: int) -> None:
        self.length = length

    def decode(self, image: np.ndarray, method: str, **_: Any) -> np.ndarray:
        return image.reshape(-1, 3)[: self.length, 0] & 1


def test_cost_and_survival(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = SimpleNamespace(WatermarkEncoder=Encoder, WatermarkDecoder=Decoder)
    monkeypatch.setitem(sys.modules, "imwatermark", stand_in)
    monkeypatch.setattr(bench.importlib.metadata, "version", lambda name: "1")
    page = tmp_path / "page.md"
    page.write_text("<!-- results:watermark -->\n<!-- /results:watermark -->\n")
    words = ["--images", "2", "--out", str(tmp_path / "out.json"), "--update", str(page)]
    monkeypatch.setattr(sys, "argv", ["watermark.py", *words])
    assert bench.main() == 0
    found = json.loads((tmp_path / "out.json").read_text())["details"]["methods"]["dwtDct"]
    assert found["bits"]["as it is"] == 1 and found["largest_change"] == 1 and found["bits"]["JPEG 75"] < 1
    assert "| bits right: as it is | 100% | 100% |" in page.read_text()


def test_bad_settings_are_one_sentence(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(name: str) -> str:
        raise bench.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(bench.importlib.metadata, "version", nowhere)
    with pytest.raises(errors.UserError, match="invisible-watermark"):
        bench.main(["--out", str(tmp_path / "out.json")])
    with pytest.raises(errors.UserError, match="--images"):
        bench.main(["--out", str(tmp_path / "out.json"), "--images", "0"])
