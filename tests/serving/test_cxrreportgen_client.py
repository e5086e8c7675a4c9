"""The example client against a server that answers in CXRReportGen's format."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from recipe import load_script

from roentgen.errors import UserError
from roentgen.reports import Finding, Report, from_pixels, read_request, write_reply

BOX = (150, 40, 250, 160)  # pixels of an image of 400 x 200


def client() -> ModuleType:
    return load_script("examples/cxrreportgen_client.py")


class Endpoint(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        code, reply = 401, {"error": "no key"}
        if self.headers["Authorization"] == "Bearer secret":
            try:
                rows = read_request(body)
                finding = Finding("There is a nodule.", "Nodule", 0.5, (from_pixels(BOX, 400, 200),))
                report = Report((finding, Finding("No effusion.", present=False)), rows[0].context.indication)
                code, reply = 200, write_reply([report], [rows[0].image])  # type: ignore[assignment]
            except UserError as error:
                code, reply = 400, {"error": str(error)}
        self.send_response(code)
        self.end_headers()
        self.wfile.write(json.dumps(reply).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Endpoint)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/score"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("pen", [[], ["--opencv"]], ids=["pillow", "opencv"])
def test_client_sends_prints_and_draws(
    pen: list[str], url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if pen:
        pytest.importorskip("cv2")
    Image.fromarray(np.full((200, 400), 100, np.uint8)).save(tmp_path / "image.png")
    out = tmp_path / "boxes.png"
    words = [str(tmp_path / "image.png"), "--url", url, "--out", str(out), "--indication", "cough", *pen]
    assert client().main([*words, "--key", "secret"]) == 0
    said = capsys.readouterr().out
    assert "There is a nodule." in said and "No effusion." in said
    drawn = np.asarray(Image.open(out))
    touched = (drawn != 100).any(2)
    rows, columns = np.nonzero(touched)
    assert np.abs(np.subtract((columns.min(), rows.min(), columns.max(), rows.max()), BOX)).max() <= 3
    assert (drawn[touched] == (0xE6, 0x9F, 0x00)).all()  # the first colour, its channels in order
    assert client().main([*words, "--key", "wrong"]) == 2
    assert "401" in capsys.readouterr().err
    assert client().main([*words[:2], "http://127.0.0.1:9/score"]) == 2
    assert "--url" in capsys.readouterr().err
    assert client().main([*words, "--key", "secret", "--out", str(tmp_path / "no" / "boxes.png")]) == 2
    assert "--out" in capsys.readouterr().err


def test_client_says_what_opencv_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = client()
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    assert module.main([str(tmp_path / "image.png"), "--opencv"]) == 2
    assert "opencv-python-headless" in capsys.readouterr().err
