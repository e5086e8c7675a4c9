"""A Ray cluster: whether Ray is there, and the way into it. Ray itself is imported late; needs the extra ``ray``."""

from __future__ import annotations

import importlib.util
import logging
import os
import socket
from typing import Any

from roentgen.errors import UserError, install
from roentgen.files import explained


def require_ray(address: str) -> None:
    """UserError where Ray is not installed; nothing is imported."""
    if importlib.util.find_spec("ray") is None:
        raise UserError(f"--ray {address}: Ray is not installed; {install('ray')}")


SECONDS = 5.0
"""How long an address may take to answer; Ray itself tries for minutes."""


def _answers(address: str) -> None:
    """OSError where nothing listens at HOST:PORT; other forms of an address are left to Ray."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal() and int(port) < 65_536:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=SECONDS):
            pass


def connect(address: str) -> Any:
    """The module ``ray``, connected; end it with its ``shutdown()``.

    Raises:
        UserError: Ray is not installed, or no cluster answers at ``address`` ("auto": the one that this machine is of,
            "local": one of this machine's own for this run).
    """
    require_ray(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # what runs here is told to nobody
    import ray

    with explained(
        f"--ray {address}: no cluster answers", "start one with `ray start --head`, or pass --ray local"
    ):  # ConnectionError, ValueError, TimeoutError: by what is wrong with the address
        _answers(address)
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    return ray
