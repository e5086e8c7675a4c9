"""`roentgen serve` under load and under faults, beside itself without batches and beside stock diffusers.

    python benchmarks/serve.py --out benchmarks/results/serve-cpu.json --update docs/serve.md
    python benchmarks/serve.py --result benchmarks/results/serve-cpu.json --update docs/serve.md
    python benchmarks/serve.py --memory --out benchmarks/results/serve-memory.json --update docs/serve.md

Clients on this machine ask for one image after another, each its own prompt and seed, over the loopback; every server
is a process of its own, with the same weights and settings. Then faults: clients that leave in the middle, and SIGTERM
while requests wait. ``--memory`` watches memory over many requests. Everything is bounded in count.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import httpx
import numpy as np
import psutil
from PIL import Image
from tqdm import tqdm

from roentgen import errors
from roentgen.config import Count, Range, parse_settings, require
from roentgen.errors import UserError
from roentgen.files import read_json
from roentgen.generators.diffusion.sampling import SAMPLERS, Sampling
from roentgen.metrics.report.tables import Reported
from roentgen.metrics.report.tables import table as markdown
from roentgen.metrics.result import write_result
from roentgen.models.hub import MINI
from roentgen.provenance import Surroundings, in_words, processor
from roentgen.threads import cores

PEER = Path(__file__).with_name("stock_server.py")
NAME = "serve"
ROUTE = "v1/images/generations"
OURS, ALONE, STOCK = "roentgen serve", "roentgen serve, one image at a time", "stock diffusers behind FastAPI"
OUR_WORDS = [sys.executable, "-m", "roentgen", "serve", "--port", "0", "--device", "cpu", "--dtype", "float32"]
COMPARED = 8  # clients at which the goal is set
GOAL = 1.5
FIFTHS = 5
COLUMNS = {"clients": "d", "images_per_second": ".2f", "p50": ".1f", "p95": ".1f"}
PROMPTS = ("left pleural effusion", "cardiomegaly", "right pneumothorax", "no acute cardiopulmonary process")


@dataclass(frozen=True, kw_only=True)
class Settings(Reported):
    """Put servers under load, then under faults, and print tables."""

    clients: Annotated[
        tuple[Annotated[int, Range(1, 64)], ...], f"numbers of clients at once, with commas; {COMPARED} among them"
    ] = (1, 4, 8, 16)
    images: Annotated[Count, "images of each load, of all its clients together"] = 24
    requests: Annotated[Count, "requests of one step each, twice, over which memory is watched"] = 1000
    memory: Annotated[
        bool, "watch memory instead, which needs no idle machine; --update then replaces results:serve-memory"
    ] = False


def measured_memory(s: Settings, out: Path) -> None:
    """Memory over so many requests and as many again."""
    requests = s.requests
    with started(OUR_WORDS) as (url, process):
        faults = memory_of(url, process, requests)
    grown = faults["memory_mb"][-1] - faults["memory_mb"][FIFTHS - 1]
    write_result(
        out, metric=f"MB that roentgen serve grows by from request {requests} to {2 * requests}",
        value=grown, ci=(grown, grown), ci_method="none: one run", n=requests, goal="0",
        details={"faults": faults, "cores": cores(), "cpu": processor()},
        context=s.context(
            "benchmarks/serve.py", extractor="resident memory", settings=settings_of_mini() | {"steps": 1},
            model={"name": "mini"},
        ),
    )  # fmt: skip


def settings_of_mini() -> dict[str, Any]:
    """What both sides sample with."""
    return {**asdict(Sampling()), **read_json(MINI / "roentgen.json").get("defaults", {})}


def measured(s: Settings, out: Path) -> None:
    """Run everything and write the result; the value is our rate over that of stock diffusers."""
    settings, clients, images = settings_of_mini(), s.clients, s.images
    job = {"model": str(MINI), **{key: settings[key] for key in ("steps", "guidance")}}
    stock = [sys.executable, str(PEER), json.dumps({**job, "scheduler": SAMPLERS[settings["sampler"]]})]
    arms: dict[str, tuple[list[str], Ask]] = {
        OURS: (OUR_WORDS, ask_ours),
        ALONE: ([*OUR_WORDS, "--batch-size", "1"], ask_ours),
        STOCK: (stock, ask_stock),
    }
    around = Surroundings()
    bar = tqdm(total=len(arms) * len(clients), desc="loads", file=sys.stderr)
    loads: list[dict[str, Any]] = []
    made: dict[str, np.ndarray] = {}
    for arm, (command, ask) in arms.items():
        with started(command) as (url, _):
            made[arm] = ask(url, 0)[0]  # and a warm-up
            for count in clients:
                loads.append({"server": arm, "clients": count, **load(url, ask, count, images)})
                bar.update()
    bar.close()
    with started(OUR_WORDS) as (url, process):
        faults = {**leavers(url), **stopped(url, process)}
    conditions = around.facts()
    rates = {one["server"]: one["images_per_second"] for one in loads if one["clients"] == COMPARED}
    value = rates[OURS] / rates[STOCK]
    context = s.context("benchmarks/serve.py", extractor="wall clock", settings=settings, model={"name": "mini"})
    write_result(
        out, metric=f"images a second at {COMPARED} clients, roentgen serve over stock diffusers", value=value,
        ci=(value, value), ci_method="none: one run", n=images, context=context, goal=f"at least {GOAL}",
        details={
            "loads": loads, "faults": faults, "cores": cores(), "cpu": processor(), "conditions": conditions,
            "grey_levels_apart": float(np.abs(made[OURS].astype(float) - made[STOCK]).mean()),
        },
    )  # fmt: skip


# ------------------------------------------------------------------------------------------- servers

Ask = Callable[[str, int], tuple[np.ndarray, float]]


@contextlib.contextmanager
def started(command: Sequence[str]) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server, once it has said its address on stdout; it is ended afterwards, whatever happens."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        if not url.startswith("http://127.0.0.1:"):
            raise UserError(f"{' '.join(command[:5])} ...: did not start; run it by hand to see why")
        for _ in range(600):
            with contextlib.suppress(httpx.HTTPError):
                httpx.get(f"{url}/healthz")
                break
            time.sleep(0.1)
        yield url, process
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def ask_ours(url: str, number: int, steps: int | None = None) -> tuple[np.ndarray, float]:
    """An image and the seconds that it took."""
    body = {"prompt": PROMPTS[number % len(PROMPTS)], "seed": number, "response_format": "b64_json", "steps": steps}
    began = time.perf_counter()
    reply = httpx.post(f"{url}/{ROUTE}", json=body, timeout=300).raise_for_status().json()
    return _pixels(base64.b64decode(reply["data"][0]["b64_json"])), time.perf_counter() - began


def ask_stock(url: str, number: int) -> tuple[np.ndarray, float]:
    """The same of stock diffusers."""
    began = time.perf_counter()
    asked: dict[str, str | int] = {"prompt": PROMPTS[number % len(PROMPTS)], "seed": number}
    reply = httpx.post(f"{url}/generate", params=asked, timeout=300).raise_for_status()
    return _pixels(reply.content), time.perf_counter() - began


def _pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("L"))


def load(url: str, ask: Ask, clients: int, images: int) -> dict[str, Any]:
    """``images`` images by so many clients at once, each of which asks again as soon as it is answered."""
    seconds: list[float] = []
    numbers = iter(range(images))
    lock = threading.Lock()

    def client() -> None:
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            seconds.append(ask(url, number)[1])

    began = time.perf_counter()
    workers = [threading.Thread(target=client) for _ in range(clients)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    whole = time.perf_counter() - began
    if len(seconds) < images:
        raise UserError(f"{images - len(seconds)} of {images} requests failed; run the server by hand to see why")
    cuts = statistics.quantiles(seconds, n=20, method="inclusive")
    return {"images_per_second": images / whole, "p50": statistics.median(seconds), "p95": cuts[18]}


# -------------------------------------------------------------------------------------------- faults


def leavers(url: str, count: int = 10) -> dict[str, Any]:
    """Clients that leave in the middle of eight images: seconds until the server works for none of them."""
    for number in range(count):
        with contextlib.suppress(httpx.TimeoutException):
            httpx.post(f"{url}/{ROUTE}", json={"prompt": PROMPTS[0], "n": 8, "seed": number}, timeout=0.3)
    began = time.perf_counter()
    ask_ours(url, 0)
    return {"leavers": count, "answer_after_leavers_seconds": time.perf_counter() - began}


def memory_of(url: str, process: subprocess.Popen[str], requests: int) -> dict[str, Any]:
    """Resident memory in MB after each fifth of ``requests``, and of as many again.

    In the first half every size of batch comes for the first time, and the networks take buffers for it; what grows in
    the second half is lost.
    """
    server = psutil.Process(process.pid)
    fifth = max(1, requests // FIFTHS)
    sizes = []
    for _ in range(2 * FIFTHS):
        load(url, lambda address, number: ask_ours(address, number, 1), COMPARED, fifth)
        sizes.append(server.memory_info().rss / 1e6)
    return {"requests": FIFTHS * fifth, "memory_mb": sizes}


def stopped(url: str, process: subprocess.Popen[str], waiting: int = 24) -> dict[str, Any]:
    """SIGTERM while more requests wait than are computed: how each was answered, and the exit code."""
    statuses: dict[str, int] = {}
    lock = threading.Lock()

    def client(number: int) -> None:
        try:
            reply = httpx.post(f"{url}/{ROUTE}", json={"prompt": PROMPTS[0], "seed": number}, timeout=300)
            status = str(reply.status_code)
        except httpx.HTTPError as error:
            status = type(error).__name__
        with lock:
            statuses[status] = statuses.get(status, 0) + 1

    workers = [threading.Thread(target=client, args=(number,)) for number in range(waiting)]
    for worker in workers:
        worker.start()
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    for worker in workers:
        worker.join()
    return {"stopped_with": statuses, "exit_code": process.wait(60)}


# -------------------------------------------------------------------------------------------- tables


def table(result: Mapping[str, Any]) -> str:
    """The Markdown tables of a result, with their conditions below."""
    details = result["details"]
    settings = result["settings"]
    rows = [[one["server"], *(f"{one[key]:{form}}" for key, form in COLUMNS.items())] for one in details["loads"]]
    faults = details["faults"]
    answers = ", ".join(f"{count} with {status}" for status, count in sorted(faults["stopped_with"].items()))
    return markdown(
        ["server", "clients", "images a second", "p50 (s)", "p95 (s)"], rows,
        f"At {COMPARED} clients `roentgen serve` makes {result['value']:.2f} times as many images as stock diffusers "
        f"(goal: {result['goal']}). `mini`, {settings['steps']} steps of {settings['sampler']}, guidance "
        f"{settings['guidance']:g}, float32, {settings['images']} images a load, on {details['cores']} cores of "
        f"{details['cpu']}, one run; the images of both are {details['grey_levels_apart']:.2f} grey levels apart on "
        f"average.{in_words(details['conditions'])}",
        f"Faults: after {faults['leavers']} clients that left in the middle of 8 images each, the next one had its "
        f"image in {faults['answer_after_leavers_seconds']:.1f} s. SIGTERM with 24 requests open: they were answered "
        f"{answers}; the exit code was {faults['exit_code']}.",
    )  # fmt: skip


def memory_in_words(faults: Mapping[str, Any]) -> str:
    """What ``memory_of`` saw, as a sentence."""
    held, requests = faults["memory_mb"], faults["requests"]
    return (
        f"Memory under {COMPARED} clients: {held[0]:.0f} MB after {requests // FIFTHS} requests, "
        f"{held[FIFTHS - 1]:.0f} MB after {requests}, {held[-1]:.0f} MB after as many again "
        f"({held[-1] - held[FIFTHS - 1]:+.0f} MB; from {min(held[FIFTHS:]):.0f} to {max(held[FIFTHS:]):.0f} MB on the "
        "way)."
    )


def main(argv: Sequence[str] | None = None) -> int:
    s = parse_settings(Settings, argv, prog="benchmarks/serve.py", about=__doc__)
    if s.memory:
        return s.report(
            f"{NAME}-memory", measure=measured_memory,
            table=lambda found: memory_in_words(found["details"]["faults"]),
        )  # fmt: skip
    require(COMPARED in s.clients, f"--clients: {COMPARED} must be among them, at which the goal is set")
    return s.report(NAME, measure=measured, table=table)


if __name__ == "__main__":
    sys.exit(errors.run(main, prog="benchmarks/serve.py"))
