"""What goes wrong outside: requests of nonsense, and a signal under load."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from server import command, running
from test_serve_clients import Reader

from roentgen.generators.base import Info, check_text
from roentgen.generators.diffusion.sampling import Sampling
from roentgen.serving.catalogue import Catalogue

PROMPT = "left pleural effusion"
REQUESTS = 1000
EACH = 70
"""Requests of each kind to each address."""


class Instant:
    """A generator of grey images with the settings of a real one, so that a thousand requests take seconds."""

    info = Info("instant", Path(), "0", "cpu", "float32")
    pixels = 8

    def check(self, text: str, flag: str = "prompt") -> None:
        check_text(text, flag)

    def sampling(self, **settings: Any) -> Sampling:
        return Sampling(**{key: value for key, value in settings.items() if value is not None})

    def batch_key(self, text: str) -> int:
        return 0

    def sample(self, texts: Sequence[str], *_: Any) -> Iterator[np.ndarray]:
        return iter([np.full((8, 8), 99, np.uint8)] * len(texts))

    def edit(self, batch: Any, *_: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return iter([(one, one) for one in batch.pixels])


def test_a_thousand_requests_made_from_the_schema() -> None:
    """Never a 5xx, always one sentence: the schema's own examples, what it forbids, and everything in between."""
    statuses: dict[int, int] = {}
    with running(Catalogue({"instant": Instant()}, {"reader": Reader()})) as server, httpx.Client() as client:
        schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")

        def send(case: Any) -> None:
            reply = case.call(base_url=server.url)
            statuses[reply.status_code] = statuses.get(reply.status_code, 0) + 1
            assert reply.status_code < 500 or reply.status_code == 503, (case.body, reply.content[:300])
            if reply.status_code >= 400:
                said = reply.json()["error"]["message"]
                assert said and "Traceback" not in said and "\n" not in said.strip(), said

        once = [Phase.generate]
        quiet = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
        for number, operation in enumerate(found.ok() for found in schema.get_all_operations()):
            for mode in schemathesis.GenerationMode:
                bounds = settings(
                    max_examples=EACH,
                    deadline=None,
                    database=None,
                    suppress_health_check=quiet,
                    phases=once,
                )
                run = given(case=operation.as_strategy(generation_mode=mode))(send)
                with contextlib.suppress(Unsatisfiable):  # nothing can be wrong with a request without fields
                    seed(number)(bounds(run))()
        assert client.get(f"{server.url}/healthz").status_code == 200
        assert not server.service.batcher.tickets()
    assert sum(statuses.values()) >= REQUESTS and statuses[200] > 50 and statuses[400] > 50, statuses


@pytest.mark.slow
def test_sigterm_under_load(tiny_pipeline: Path, tmp_path: Path) -> None:
    """What is being computed is answered, what waits is told, the rest finds nobody; and the program ends well."""
    with command(tiny_pipeline, tmp_path, "--batch-size", "1") as server:

        def ask(number: int) -> int:
            body = {"prompt": PROMPT, "steps": 300, "seed": number}
            try:
                return httpx.post(f"{server.url}/v1/images/generations", json=body, timeout=120).status_code
            except httpx.ConnectError:
                return 0

        with ThreadPoolExecutor(6) as pool:
            replies = [pool.submit(ask, number) for number in range(6)]
            while "roentgen_queue_images 5.0" not in httpx.get(f"{server.url}/metrics").text:
                assert not all(reply.done() for reply in replies), "all was done before it could be seen"
            server.process.send_signal(signal.SIGTERM)
            statuses = sorted(reply.result() for reply in replies)
        server.ended()
        assert statuses == [200, 503, 503, 503, 503, 503]
        assert PROMPT not in server.log.read_text()
