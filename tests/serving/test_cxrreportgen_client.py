"""The example client against a server that answers in CXRReportGen's format."""

from __future__ import annotations

import importlib.util
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from roentgen.errors import UserError
from roentgen.reports import Finding, Report, from_pixels, read_request, write_reply

PATH = Path(__file__).resolve().parents[2] / "examples/cxrreportgen_client.py"
BOX = (150, 40, 250, 160)  # pixels of an image of 400 x 200


def client() -> ModuleType:
    spec = importlib.util.spec_from_file_location(PATH.stem, PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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


def test_client_sends_prints_and_draws(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(np.full((200, 400), 100, np.uint8)).save(tmp_path / "image.png")
    out = tmp_path / "boxes.png"
    words = [str(tmp_path / "image.png"), "--url", url, "--out", str(out), "--indication", "cough"]
    assert client().main([*words, "--key", "secret"]) == 0
    said = capsys.readouterr().out
    assert "There is a nodule." in said and "No effusion." in said
    drawn = np.asarray(Image.open(out))
    rows, columns = np.nonzero((drawn != 100).any(2))
    assert np.abs(np.subtract((columns.min(), rows.min(), columns.max(), rows.max()), BOX)).max() <= 3
    assert client().main([*words, "--key", "wrong"]) == 2
    assert "401" in capsys.readouterr().err
    assert client().main([*words[:2], "http://127.0.0.1:9/score"]) == 2
    assert "--url" in capsys.readouterr().err
