"""What the server is told: its limits. Light at import: no FastAPI, no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """How much one request, and all of them together, may take.

    images: of one request. prompt: characters of one. queue: images that wait, of all requests. body_mb: of a request,
    in 10^6 bytes. pixels: of an uploaded image. seconds: from a request's arrival to its answer. body_seconds: for the
    body to arrive. kept: generated images that stay fetchable by their address, for ``kept_seconds``.
    """

    images: int = 16
    prompt: int = 2000
    queue: int = 64
    body_mb: int = 32
    pixels: int = 30_000_000
    seconds: int = 300
    body_seconds: int = 30
    kept: int = 256
    kept_seconds: int = 3600


@dataclass(frozen=True)
class Options:
    """What an application needs to know beside its models.

    hosts: names that a request may call the server by, without port; empty for any. log_prompts: write prompts to the
    log. gather: seconds that the first request of a batch waits for others.
    """

    limits: Limits = Limits()
    batch_size: int = 8
    gather: float = 0.01
    hosts: frozenset[str] = frozenset()
    log_prompts: bool = False
