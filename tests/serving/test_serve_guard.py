"""Who may come in, how much may be asked for, and that neighbours in a batch change nothing."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from server import running

from roentgen import UserError, generate
from roentgen.serving import launch
from roentgen.serving.batcher import Batcher, Busy, Event, Stopping
from roentgen.serving.catalogue import Catalogue
from roentgen.serving.failures import without_paths
from roentgen.serving.keys import VARIABLE, add_key, load_keys
from roentgen.serving.settings import Limits

PROMPT = "left pleural effusion"
ROUTE = "v1/images/generations"


# --------------------------------------------------------------------------------------------- keys


def test_keys_are_hashed_and_let_in(tmp_path: Path, tiny_model: Any) -> None:
    file = tmp_path / "keys"
    key = add_key(file, "ward")
    assert key not in file.read_text() and file.stat().st_mode & 0o077 == 0
    other = add_key(file, "lab")
    keys = load_keys(file, {VARIABLE: "a-key-of-the-environment"})
    with running(Catalogue({"tiny": tiny_model}), keys=keys) as server:
        ask = {"url": f"{server.url}/v1/models"}
        assert httpx.get(**ask).status_code == 401
        assert httpx.get(**ask).headers["www-authenticate"] == "Bearer"
        assert httpx.get(**ask, headers={"authorization": "Bearer wrong"}).status_code == 401
        for good in (key, other, "a-key-of-the-environment"):
            assert httpx.get(**ask, headers={"authorization": f"Bearer {good}"}).status_code == 200
        assert httpx.get(**ask, auth=("anybody", key)).status_code == 200
        assert httpx.get(f"{server.url}/metrics").status_code == 401
        for open_to_all in ("healthz", "", "page/index.html"):
            assert httpx.get(f"{server.url}/{open_to_all}").status_code == 200
        made = httpx.post(f"{server.url}/{ROUTE}", json={"prompt": PROMPT}, auth=("", key)).json()
        assert httpx.get(made["data"][0]["url"]).status_code == 200


@pytest.mark.parametrize(
    ("content", "mode"), [(None, 0o600), ("ward 123\n", 0o600), ("# none\n", 0o600), ("ward " + "0" * 64, 0o644)]
)
def test_bad_key_files_are_named(tmp_path: Path, content: str | None, mode: int) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_text(content)
        file.chmod(mode)
    with pytest.raises(UserError, match="--keys"):
        load_keys(file, {})


def test_keys_that_are_short_or_named_twice(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=VARIABLE):
        load_keys(None, {VARIABLE: "short"})
    add_key(tmp_path / "keys", "ward")
    for name in ("ward", "two words", ""):
        with pytest.raises(UserError, match="--add-key"):
            add_key(tmp_path / "keys", name)


# ------------------------------------------------------------------------------------- command line


def test_bad_input_of_the_command(run_cli: Any, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        bad = {
            "--port": ["--port", port],
            "--host": ["--host", "0.0.0.0", "--port", 0],
            "--keys": ["--keys", tmp_path / "none"],
            "--tls-cert": ["--tls-cert", tmp_path / "none", "--tls-key", tmp_path / "none"],
            "--tls-key": ["--tls-key", tmp_path / "none"],
            "--add-key": ["--add-key", "ward"],
            "--model": ["--model", "nothing", "--port", 0],
            "--reporter": ["--reporter", "nothing", "--port", 0],
        }
        for flag, words in bad.items():
            code, out, err = run_cli("serve", *words)
            assert code == 2 and flag in err and len(err.splitlines()) == 1 and not out, (flag, err)


@pytest.mark.parametrize("host", ["192.0.2.1", "no such name", "999.1.1.1"])
def test_an_address_of_another_machine_is_no_fault_of_the_port(host: str) -> None:
    with pytest.raises(UserError, match=f"^--host {host}: "):
        launch.bind(launch.Address(host, 0))


def test_encrypted_tls_key_is_refused_without_a_question(tmp_path: Path) -> None:
    serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")
    from cryptography.hazmat.primitives.asymmetric import ec

    how = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
    secret = ec.generate_private_key(ec.SECP256R1())
    key = tmp_path / "key.pem"
    key.write_bytes(secret.private_bytes(*how, serialization.BestAvailableEncryption(b"word")))
    certificate = tmp_path / "cert.pem"
    certificate.write_bytes(selfsigned(secret))
    with pytest.raises(UserError, match=f"--tls-key {key}"):
        launch.check_tls(certificate, key)
    key.write_bytes(secret.private_bytes(*how, serialization.NoEncryption()))
    assert launch.check_tls(certificate, key) == (certificate, key)


def selfsigned(secret: Any) -> bytes:
    """A certificate of a day for a key, PEM."""
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization

    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(secret.public_key())
    now = datetime.now(UTC)
    made = made.serial_number(1).not_valid_before(now).not_valid_after(now + timedelta(days=1))
    return made.sign(secret, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def test_add_key_prints_it_once(run_cli: Any, tmp_path: Path) -> None:
    code, out, _ = run_cli("serve", "--keys", tmp_path / "keys", "--add-key", "ward")
    assert code == 0 and load_keys(tmp_path / "keys", {}).holder(f"Bearer {out.strip()}") == "ward"


def test_loopback_needs_no_key() -> None:
    for host in ("127.0.0.1", "::1", "localhost"):
        launch.check_keys(host, load_keys(None, {}))


# ------------------------------------------------------------------------------------------- limits


def test_other_sites_pages_and_names_are_refused(tiny_model: Any) -> None:
    with running(Catalogue({"tiny": tiny_model})) as server:
        url = f"{server.url}/v1/models"
        assert httpx.get(url, headers={"host": "evil.example"}).status_code == 403
        assert httpx.get(url, headers={"origin": "http://evil.example"}).status_code == 403
        for name in ("[::1", "localhost]", "[", "a:b:c"):  # no addresses at all
            assert httpx.get(url, headers={"host": name}).status_code in (400, 403)
            assert httpx.get(url, headers={"origin": f"http://{name}"}).status_code == 403
        reply = httpx.get(url, headers={"origin": server.url})
        assert reply.status_code == 200 and "access-control-allow-origin" not in reply.headers
        assert "default-src 'self'" in reply.headers["content-security-policy"]


@pytest.mark.parametrize("path", ["/", "/page/page.css"])
def test_a_wish_for_a_part_of_a_page_is_answered_with_the_whole(tiny_model: Any, path: str) -> None:
    with running(Catalogue({"tiny": tiny_model})) as server:
        whole = httpx.get(server.url + path)
        for wish in ("x", "bytes=0-1", "bytes=9-1"):
            answer = httpx.get(server.url + path, headers={"range": wish})
            assert answer.status_code == 200 and answer.content == whole.content


def test_bodies_are_limited_in_size_and_time(tiny_model: Any) -> None:
    with running(Catalogue({"tiny": tiny_model}), limits=Limits(body_mb=1, body_seconds=1)) as server:
        assert httpx.post(f"{server.url}/{ROUTE}", content=b"x" * 1_000_001).status_code == 413
        parts = iter([b"x" * 600_000] * 3)
        assert httpx.post(f"{server.url}/{ROUTE}", content=parts).status_code == 413  # no length is said
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as slow:
            slow.sendall(b"POST /v1/images/generations HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\n{")
            assert b" 408 " in slow.recv(100)


def test_bodies_are_limited_all_together(tiny_model: Any) -> None:
    with running(Catalogue({"tiny": tiny_model}), limits=Limits(body_mb=1)) as server:
        host, port = server.url.removeprefix("http://").split(":")
        head = b"POST /score HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000000\r\n\r\n"
        slow = [socket.create_connection((host, int(port))) for _ in range(8)]
        for one in slow:
            one.sendall(head + b" " * 999_999)  # one byte is missing, so it stays in memory
        until = time.monotonic() + 20
        while (status := httpx.post(f"{server.url}/score", content=b" " * 900_000).status_code) != 429:
            assert time.monotonic() < until, status
        for one in slow:
            one.close()
        until = time.monotonic() + 20
        while (status := httpx.post(f"{server.url}/score", content=b" " * 900_000).status_code) != 400:
            assert time.monotonic() < until, status  # all is free again


def test_a_full_queue_says_when_to_come_back(tiny_model: Any) -> None:
    with running(Catalogue({"tiny": tiny_model}), limits=Limits(queue=3)) as server:
        reply = httpx.post(f"{server.url}/{ROUTE}", json={"prompt": PROMPT, "n": 4})
        assert reply.status_code == 429 and int(reply.headers["retry-after"]) > 0
        assert httpx.post(f"{server.url}/{ROUTE}", json={"prompt": PROMPT, "n": 3}).status_code == 200


def test_a_request_that_takes_too_long_is_told(tiny_model: Any) -> None:
    with running(Catalogue({"tiny": tiny_model}), limits=Limits(seconds=0)) as server:
        reply = httpx.post(f"{server.url}/{ROUTE}", json={"prompt": PROMPT, "steps": 900})
        assert reply.status_code == 503 and "retry-after" in reply.headers
        assert not server.service.batcher.tickets()


def test_gallery_is_bounded(tiny_model: Any) -> None:
    with running(Catalogue({"tiny": tiny_model}), limits=Limits(kept=2)) as server:
        body = {"prompt": PROMPT, "n": 3, "response_format": "url"}
        made = httpx.post(f"{server.url}/{ROUTE}", json=body).json()["data"]
        assert [httpx.get(one["url"]).status_code for one in made] == [404, 200, 200]
        assert httpx.get(made[1]["url"].replace(".png", ".exe")).status_code == 404


def test_no_path_in_a_sentence() -> None:
    said = without_paths(
        "--model a: weights are missing from /home/me/models/a b; see https://x.y/z and 3/4 or left/right"
    )
    assert said == "--model a: weights are missing from a b; see https://x.y/z and 3/4 or left/right"


def test_counters(tiny_model: Any) -> None:
    with running(Catalogue({"tiny": tiny_model})) as server:
        httpx.post(f"{server.url}/{ROUTE}", json={"prompt": PROMPT, "n": 2})
        httpx.get(f"{server.url}/no/such/{PROMPT}")
        text = httpx.get(f"{server.url}/metrics").text
        assert 'roentgen_images_total{model="tiny"} 2.0' in text
        assert 'roentgen_requests_total{route="/v1/images/generations",status="200"} 1.0' in text
        assert "effusion" not in text


# ------------------------------------------------------------------------------------------ batches


def test_neighbours_change_nothing(tiny_model: Any) -> None:
    """Twelve clients at once, with three prompts and two settings: every answer is what it is alone."""
    texts = [PROMPT, "no acute process", "the heart is normal in size"]
    asked = [(texts[i % 3], 40 + i, 2 + i % 2) for i in range(12)]
    wanted = [next(generate(tiny_model, text, seed=seed, steps=steps)).image for text, seed, steps in asked]
    got: dict[int, np.ndarray] = {}
    sizes: list[int] = []
    batcher = Batcher(batch_size=4, queue=50, gather=0.5, measured=sizes.append)
    done = threading.Semaphore(0)

    def keep(number: int, event: Event) -> None:
        assert event.error is None
        if event.sample is not None:
            got[number] = event.sample.image
            done.release()

    for number, (text, seed, steps) in enumerate(asked):
        sampling = tiny_model.sampling(steps=steps)
        batcher.submit(tiny_model, text, [seed], sampling, lambda event, number=number: keep(number, event))
    assert all(done.acquire(timeout=60) for _ in asked)
    batcher.close(60)
    for number, image in enumerate(wanted):
        difference = np.abs(got[number].astype(int) - image)
        assert difference.max() <= 1, number  # the promise of tests/generators/test_pipeline.py
    assert sum(sizes) == 12 and max(sizes) > 1


class Slow:
    """A generator whose images wait for the test; the image of seed 13 fails."""

    info = SimpleNamespace(name="slow", hash="0", lora=None, dtype="float32")

    def __init__(self) -> None:
        self.go, self.begun = threading.Event(), threading.Event()
        self.batches: list[list[int]] = []

    def batch_key(self, text: str) -> int:
        return 0

    def sample(self, texts: Sequence[str], seeds: Sequence[int], sampling: Any, on_step: Any) -> Iterator[np.ndarray]:
        self.batches.append(list(seeds))
        self.begun.set()
        while not self.go.wait(0.01):
            on_step(0.0)
        for seed in seeds:
            if seed == 13:
                raise UserError("thirteen")
            yield np.zeros((2, 2), np.uint8)


@pytest.fixture
def slow() -> Iterator[tuple[Slow, Batcher, list[tuple[str, Event]]]]:
    batcher = Batcher(batch_size=2, queue=6)
    yield Slow(), batcher, []
    batcher.close(10)


SAMPLING = SimpleNamespace(provenance=dict)


def submit(slow: Any, name: str, seeds: list[int]) -> Any:
    model, batcher, said = slow
    return batcher.submit(model, name, seeds, SAMPLING, lambda event: event != Event() and said.append((name, event)))


def test_stop_finishes_what_runs_and_tells_what_waits(slow: Any) -> None:
    model, batcher, said = slow
    submit(slow, "runs", [1, 2, 3])
    assert model.begun.wait(10)
    submit(slow, "waits", [4])
    batcher.stop()
    assert [name for name, event in said if isinstance(event.error, Stopping)] == ["waits"]
    with pytest.raises(Stopping):
        submit(slow, "late", [5])
    model.go.set()
    batcher.close(10)
    assert [name for name, event in said if event.sample is not None] == ["runs"] * 3


def test_a_full_queue_takes_nothing(slow: Any) -> None:
    model, batcher, _ = slow
    submit(slow, "runs", [1])
    assert model.begun.wait(10)
    submit(slow, "waits", [2, 3, 4, 5, 6])
    with pytest.raises(Busy):
        submit(slow, "too many", [7, 8])
    assert batcher.waiting == 5
    model.go.set()


def test_a_failing_image_does_not_cost_its_neighbour(slow: Any) -> None:
    model, _, said = slow
    submit(slow, "holds", [0, 0])
    assert model.begun.wait(10)
    submit(slow, "bad", [13])
    submit(slow, "good", [1])
    model.go.set()
    until = time.monotonic() + 10
    while len({name for name, _ in said}) < 3 and time.monotonic() < until:
        time.sleep(0.01)
    found = dict(said)
    assert isinstance(found["bad"].error, UserError) and found["good"].sample is not None


def test_what_is_cancelled_stops_being_computed(slow: Any) -> None:
    model, batcher, said = slow
    ticket = submit(slow, "gone", [1, 2, 3])
    assert model.begun.wait(10)
    batcher.cancel(ticket)
    until = time.monotonic() + 10
    while batcher.tickets() and time.monotonic() < until:
        time.sleep(0.01)
    submit(slow, "next", [4])
    while len(model.batches) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    assert model.batches == [[1, 2], [4]] and not said
    model.go.set()


def test_a_client_that_leaves_frees_the_queue(tiny_model: Any) -> None:
    with running(Catalogue({"tiny": tiny_model})) as server:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}/{ROUTE}", json={"prompt": PROMPT, "steps": 900, "n": 16}, timeout=1)
        until = time.monotonic() + 30
        while server.service.batcher.tickets() and time.monotonic() < until:
            time.sleep(0.05)
        assert not server.service.batcher.tickets() and not server.service.batcher.waiting


def test_whatever_is_sent_can_be_answered(tiny_model: Any) -> None:
    """Half characters and numbers that JSON has not, in places that a reply repeats."""
    with running(Catalogue({"tiny": tiny_model})) as server:
        headers = {"content-type": "application/json"}
        for field in (rb'"sampler": "\ud800\n"', rb'"\ud800": 1, "steps": 1', rb'"guidence": NaN, "steps": 1'):
            content = b'{"prompt": "effusion", ' + field + b"}"
            reply = httpx.post(f"{server.url}/{ROUTE}", content=content, headers=headers)
            assert reply.status_code in (200, 400) and "\n" not in reply.json().get("detail", "")
        content = b'{"prompt": "effusion", "steps": 1, "eta": NaN, "s_noise": Infinity}'
        reply = httpx.post(f"{server.url}/sdapi/v1/txt2img", content=content, headers=headers)
        assert reply.status_code == 200 and reply.json()["parameters"]["eta"] is None
