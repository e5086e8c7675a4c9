"""Models behind Ray Serve answer as they do here: by a stand-in for Ray, and by Ray where it is installed."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import socket
import sys
import time
import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from server import command, running
from test_serve_clients import Reader

from roentgen import UserError, generate
from roentgen.cluster import connect
from roentgen.serving.catalogue import Catalogue
from roentgen.serving.replicas import Replica, Wish, spread

PROMPT = "left pleural effusion"
ROUTE = "v1/images/generations"


class RayError(Exception):
    pass


class RayTaskError(RayError):
    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class Handle:
    """As much of a deployment's handle as is used: every call runs at once, in a loop of its own."""

    def __init__(self, state: dict[str, Any], replica: Any) -> None:
        self.state, self.replica = state, replica

    def options(self, **named: Any) -> Handle:
        return self

    def __getattr__(self, name: str) -> Any:
        return types.SimpleNamespace(remote=lambda *words: Response(self.state, getattr(self.replica, name)(*words)))


class Response:
    def __init__(self, state: dict[str, Any], made: Any) -> None:
        self.state, self.made = state, made

    def __iter__(self) -> Iterator[Any]:
        """What a replica yields; it dies after the first result as often as the state says."""
        with asyncio.Runner() as loop:
            while True:
                try:
                    event = loop.run(anext(self.made))
                except StopAsyncIteration:
                    return
                except Exception as error:
                    raise RayTaskError(error) from error
                yield event
                if isinstance(event, tuple) and self.state["deaths"]:
                    self.state["deaths"] -= 1
                    raise RayError("the actor died")

    def result(self) -> Any:
        if self.state["deaths"]:
            self.state["deaths"] -= 1
            if asyncio.iscoroutine(self.made):
                self.made.close()
            raise RayError("the actor died")
        return asyncio.run(self.made) if asyncio.iscoroutine(self.made) else self.made

    def cancel(self) -> None:
        self.state["cancelled"] += 1


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A cluster of two CPUs in this process."""
    fake, serve = types.ModuleType("ray"), types.ModuleType("ray.serve")
    fake.__spec__ = importlib.util.spec_from_loader("ray", None)
    state: dict[str, Any] = {"deaths": 0, "cancelled": 0, "ended": [], "replicas": None, "why": None}

    def run(wish: Any, **named: Any) -> Handle:
        if state["why"]:
            raise RuntimeError(state["why"])
        return Handle(state, Replica(wish))

    def deployment(**named: Any) -> Any:
        state["replicas"] = named["num_replicas"]
        return lambda kind: types.SimpleNamespace(bind=lambda wish: wish)

    serve.deployment, serve.run, serve.start = deployment, run, lambda **named: None  # type: ignore[attr-defined]
    serve.delete = state["ended"].append  # type: ignore[attr-defined]
    fake.serve, fake.init, fake.state = serve, lambda **named: None, state  # type: ignore[attr-defined]
    fake.cluster_resources = lambda: {"CPU": 2.0}  # type: ignore[attr-defined]
    fake.shutdown = lambda: state["ended"].append("ray")  # type: ignore[attr-defined]
    fake.exceptions = types.SimpleNamespace(RayTaskError=RayTaskError, RayError=RayError)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.setitem(sys.modules, "ray.serve", serve)
    return fake


@pytest.fixture
def known(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> Catalogue:
    """What this process and every replica load."""
    found = Catalogue({"tiny": tiny_model}, {"reader": Reader()})
    monkeypatch.setattr("roentgen.serving.catalogue.load", lambda *words, **named: found)
    return found


def wish_of(known: Catalogue, **changes: str) -> Wish:
    hashes = {name: model.info.hash for name, model in known.generators.items()} | changes
    return Wish(("tiny",), (), "cpu", "auto", False, hashes)


def test_answers_are_those_of_one_process(ray: Any, known: Catalogue, tiny_model: Any, grey: np.ndarray) -> None:
    """The same pictures and reports, although replicas die on the way; and all of it ends."""
    from roentgen.images import encode_image

    wanted = [one.image for one in generate(tiny_model, [PROMPT], num_images=5, seed=4)]
    with spread(known, "local", wish_of(known), None) as spreading, running(spreading) as server:
        assert ray.state["replicas"] == 2 and spreading.workers == 2
        ray.state["deaths"] = 3
        body = {"prompt": PROMPT, "seed": 4, "n": 5, "response_format": "url"}
        made = httpx.post(f"{server.url}/{ROUTE}", json=body, timeout=60).json()["data"]
        assert ray.state["deaths"] == 0 and ray.state["cancelled"] >= 2
        for one, image in zip(made, wanted, strict=True):
            assert np.abs(pixels(httpx.get(one["url"]).content).astype(int) - image).max() <= 1
        files = {"image": encode_image(grey, "png", {})}
        edited = httpx.post(f"{server.url}/v1/images/edits", files=files, data={"prompt": PROMPT, "lung": "left"})
        assert edited.status_code == 200, edited.text
        ray.state["deaths"] = 1
        read = httpx.post(f"{server.url}/v1/report", files=files)
        assert read.status_code == 200 and read.json()["model"] == "reader"
        bad = httpx.post(f"{server.url}/{ROUTE}", json={"prompt": "left " * 200})
        assert bad.status_code == 400 and "prompt" in bad.json()["detail"]
    assert ray.state["ended"][0].startswith("roentgen-") and ray.state["ended"][1:] == ["ray"]


def pixels(content: bytes) -> np.ndarray:
    from roentgen.images import read_image

    return read_image("image", data=content)


def test_a_client_that_leaves_ends_the_work_of_its_replica(ray: Any, known: Catalogue) -> None:
    with spread(known, "local", wish_of(known), 1) as spreading, running(spreading) as server:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}/{ROUTE}", json={"prompt": PROMPT, "steps": 900, "n": 4}, timeout=1)
        until = time.monotonic() + 30
        while not ray.state["cancelled"]:
            assert time.monotonic() < until
            time.sleep(0.05)
        assert httpx.post(f"{server.url}/{ROUTE}", json={"prompt": PROMPT}, timeout=60).status_code == 200


def test_what_goes_wrong_is_one_sentence(ray: Any, known: Catalogue) -> None:
    def told(replicas: int | None = None, **changes: str) -> str:
        with pytest.raises(UserError) as said, spread(known, "auto", wish_of(known, **changes), replicas):
            pass
        return str(said.value)

    assert "--replicas 3" in told(3)
    assert "other models" in told(tiny="another")
    ray.state["why"] = "deploying failed\nbadly"
    assert "--ray auto" in told() and "\n" not in told()
    ray.init = lambda **named: (_ for _ in ()).throw(ConnectionError("no cluster"))
    assert "--ray auto: no cluster answers" in told()


def test_bad_input_of_the_command(run_cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, err = run_cli("serve", "--replicas", 2, "--port", 0)
    assert code == 2 and "--replicas 2" in err and not out
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "ray" else find(name, *rest))
    code, out, err = run_cli("serve", "--ray", "auto", "--port", 0)
    assert code == 2 and "--ray auto: Ray is not installed" in err and not out


def test_an_address_where_nothing_listens_is_no_wait_of_minutes(ray: Any, known: Catalogue) -> None:
    asked: list[str] = []
    ray.init = lambda **named: asked.append(named["address"])
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
        assert connect(f"127.0.0.1:{port}") is ray
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
        with pytest.raises(UserError, match=f"--ray {address}: no cluster answers"):
            connect(address)
    assert asked == [f"127.0.0.1:{port}"]


@pytest.mark.slow
def test_two_replicas_and_one_killed(tiny_pipeline: Path, tmp_path: Path) -> None:
    """Ray itself: 24 requests, a replica killed among them, every picture that of the library."""
    pytest.importorskip("ray.serve", reason="Ray Serve (the extra ray) is not among the packages of the tests")
    psutil = pytest.importorskip("psutil")
    with command(tiny_pipeline, tmp_path, "--ray", "local", "--replicas", "2", "--batch-size", "2") as server:

        def ask(seed: int) -> np.ndarray:
            body = {"prompt": PROMPT, "steps": 40, "seed": seed, "response_format": "url"}
            reply = httpx.post(f"{server.url}/{ROUTE}", json=body, timeout=120)
            assert reply.status_code == 200, reply.text
            return pixels(httpx.get(reply.json()["data"][0]["url"]).content)

        with ThreadPoolExecutor(6) as pool:
            made = pool.map(ask, range(24))
            first = next(made)
            children = psutil.Process(server.process.pid).children(recursive=True)
            replicas = [one for one in children if "Replica" in named(one)]
            assert len(replicas) == 2
            replicas[0].kill()
            got = [first, *made]
        server.stop()
    from roentgen import load_model

    model = load_model(str(tiny_pipeline), device="cpu", dtype="float32")
    for seed, image in enumerate(got):
        wanted = next(generate(model, PROMPT, seed=seed, steps=40)).image
        assert np.abs(image.astype(int) - wanted).max() <= 1


def named(process: Any) -> str:
    with contextlib.suppress(Exception):
        return " ".join(process.cmdline())
    return ""
