"""A server on a loopback port: in this process, around whatever catalogue a test needs, or as the command it is."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from roentgen.serving.app import make_app
from roentgen.serving.catalogue import Catalogue
from roentgen.serving.keys import Keys
from roentgen.serving.settings import Limits, Options

LOOPBACK = frozenset({"127.0.0.1", "localhost"})


@dataclass(frozen=True)
class Running:
    """Its address and its application's service."""

    url: str
    service: Any


@contextlib.contextmanager
def running(
    catalogue: Catalogue, *, limits: Limits | None = None, keys: Keys | None = None, batch_size: int = 4
) -> Iterator[Running]:
    """Start it, wait until it answers, and stop it again."""
    options = Options(limits or Limits(), batch_size=batch_size, hosts=LOOPBACK)
    app = make_app(catalogue, options, keys or Keys({}))
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.01)
    try:
        yield Running(f"http://127.0.0.1:{listener.getsockname()[1]}", app.state.service)
    finally:
        server.should_exit = True
        thread.join(60)
        app.state.service.batcher.close(60)
        listener.close()


@dataclass(frozen=True)
class Command:
    """``roentgen serve`` as a process, and what it has written to its log."""

    url: str
    process: subprocess.Popen[str]
    log: Path

    def stop(self) -> None:
        """Ask it to end, as a service manager does; it must end well, and never have said a traceback."""
        self.process.terminate()
        self.ended()

    def ended(self) -> None:
        """It ends by itself, well."""
        assert self.process.wait(60) == 0
        assert "Traceback" not in self.log.read_text()


@contextlib.contextmanager
def command(model: Path, folder: Path, *words: str) -> Iterator[Command]:
    """``roentgen serve --model MODEL WORDS`` on a port of its own, until it answers; its log is in ``folder``."""
    log = folder / "log"
    called = [sys.executable, "-m", "roentgen", "serve", "--model", str(model), "--port", "0", "--device", "cpu"]
    with log.open("w") as file:
        process = subprocess.Popen([*called, *words], stdout=subprocess.PIPE, stderr=file, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:"), log.read_text()
        yield Command(url, process, log)
    finally:
        process.kill()
        process.wait()
