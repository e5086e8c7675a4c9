"""From settings to a running server: what is wrong is said before a model is loaded, and it stops gracefully."""

from __future__ import annotations

import errno
import logging
import signal
import socket
import ssl
import sys
import threading
import webbrowser
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import uvicorn

from roentgen.errors import UserError
from roentgen.files import explained, reason
from roentgen.serving.app import make_app
from roentgen.serving.catalogue import Catalogue
from roentgen.serving.guard import is_loopback
from roentgen.serving.keys import VARIABLE, Keys
from roentgen.serving.settings import Options

CONNECTIONS = 256


@dataclass(frozen=True)
class Address:
    """Where the server listens. tls: files of certificate and private key, or None."""

    host: str
    port: int
    tls: tuple[Path, Path] | None = None

    def url(self, port: int) -> str:
        """What a browser on this machine calls."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.host, self.host)
        host = f"[{host}]" if ":" in host and not host.startswith("[") else host
        return f"{'https' if self.tls else 'http'}://{host}:{port}"


class _Server(uvicorn.Server):
    """uvicorn's server that tells the batcher of a signal before it waits for its connections."""

    def __init__(self, config: uvicorn.Config, on_stop: Callable[[], object]) -> None:
        super().__init__(config)
        self.on_stop = on_stop

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        threading.Thread(target=self.on_stop, daemon=True).start()  # it takes a lock that this thread may hold


def bind(address: Address) -> socket.socket:
    """A socket that listens there. UserError where it cannot, before anything is loaded."""
    with explained(f"--host {address.host}: cannot be found", "pass an address", (OSError, UnicodeError)):
        family, kind, protocol, _, place = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(place)
        listener.listen(CONNECTIONS)
    except OSError as error:
        listener.close()
        why = f"cannot listen on {address.host} ({reason(error)})"
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            raise UserError(f"--port {address.port}: {why}; pass another, or 0 for any") from None
        raise UserError(f"--host {address.host}: {why}; pass an address of this machine") from None
    return listener


def check_tls(certificate: Path | None, key: Path | None) -> tuple[Path, Path] | None:
    """Both files of TLS, or None; UserError where one is missing or they do not fit."""
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise UserError("--tls-cert and --tls-key: pass both, or neither")

    def encrypted() -> str:  # asked for a passphrase; OpenSSL would ask on the terminal, and so at every start
        raise UserError(f"--tls-key {key}: is encrypted; write it without a passphrase (openssl pkey), for you to read")

    with explained(
        f"--tls-cert {certificate}, --tls-key {key}: cannot be used", "pass PEM files that fit", (OSError, ssl.SSLError)
    ):
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=encrypted)
    return certificate, key


def check_keys(host: str, keys: Keys) -> None:
    """UserError where others could reach the server without a key."""
    if not keys and not is_loopback(host):
        raise UserError(
            f"--host {host}: others could reach it, so a key is needed: `roentgen serve --keys FILE --add-key NAME` "
            f"makes one, then pass --keys FILE, or set {VARIABLE}"
        )


def launch(
    address: Address,
    load: Callable[[], Catalogue],
    options: Options,
    keys: Keys,
    *,
    listener: socket.socket,
    open_page: bool = False,
) -> None:
    """Load, say the address on stdout, and answer until SIGTERM or Ctrl-C.

    Then what is being computed finishes, what waits gets a 503, and new requests are refused.
    """
    _log_to_stderr()
    app = make_app(load(), options, keys)
    service = app.state.service
    config = uvicorn.Config(
        app,
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=options.limits.seconds,
        ws="none",
        ssl_certfile=address.tls[0] if address.tls else None,
        ssl_keyfile=address.tls[1] if address.tls else None,
    )
    url = address.url(listener.getsockname()[1])
    print(url, flush=True)
    print("roentgen: research only, not for diagnosis; stop with Ctrl-C", file=sys.stderr, flush=True)
    if open_page:
        webbrowser.open(url)
    for each in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises them again when it has stopped: that is no failure
        signal.signal(each, lambda number, frame: None)
    try:
        _Server(config, service.batcher.stop).run(sockets=[listener])
    finally:
        service.batcher.close(timeout=options.limits.seconds)


def _log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for name in ("roentgen.serving", "uvicorn.error"):
        log = logging.getLogger(name)
        log.setLevel(logging.INFO if name.startswith("roentgen") else logging.WARNING)
        log.addHandler(handler)
        log.propagate = False
