"""`roentgen serve` under load and under faults, beside itself without batches and beside stock diffusers.

    python benchmarks/serve.py --out benchmarks/results/serve-cpu.json --update docs/serve.md
    python benchmarks/serve.py --result benchmarks/results/serve-cpu.json --update docs/serve.md

Clients on this machine ask for one image after another, each its own prompt and seed, over the loopback; every server
is a process of its own, with the same weights and settings. Then faults: clients that leave in the middle, many
requests while memory is watched, and SIGTERM while requests wait. Everything is bounded in count.
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
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from PIL import Image
from tqdm import tqdm

from roentgen import errors
from roentgen.config import parse_call
from roentgen.errors import UserError
from roentgen.files import read_json
from roentgen.generators.diffusion.sampling import SAMPLERS, Sampling
from roentgen.metrics.report.tables import replace_between_markers
from roentgen.metrics.result import Context, read_result, write_result
from roentgen.models.hub import MINI
from roentgen.provenance import Surroundings, git_state, in_words, processor
from roentgen.threads import cores

ROOT = Path(__file__).resolve().parent.parent
PEER = Path(__file__).with_name("stock_server.py")
NAME = "serve"
ROUTE = "v1/images/generations"
OURS, ALONE, STOCK = "roentgen serve", "roentgen serve, one image at a time", "stock diffusers behind FastAPI"
COMPARED = 8  # clients at which the goal is set
GOAL = 1.5
PROMPTS = ("left pleural effusion", "cardiomegaly", "right pneumothorax", "no acute cardiopulmonary process")


def measure(
    *,
    out: str | None = None,
    result: str | None = None,
    update: str | None = None,
    clients: str = "1,4,8,16",
    images: int = 24,
    requests: int = 500,
) -> int:
    """Put servers under load, then under faults, and print tables.

    Args:
        out: JSON file for the result.
        result: Measure nothing, take this JSON file of an earlier run.
        update: Document in which the region results:serve is replaced by the tables.
        clients: Numbers of clients at once, with commas; 8 must be among them.
        images: Images of each load, of all its clients together.
        requests: Requests of one step each over which memory is watched.
    """
    if update is not None:
        replace_between_markers(Path(update), NAME, "", write=False)
    if result is None and out is None:
        raise UserError("--out is missing; name a JSON file for the result")
    if result is None:
        measured(Path(str(out)), _numbers(clients), images, requests)
    lines = table(read_result(Path(str(result or out))))
    print(lines)
    if update is not None:
        replace_between_markers(Path(update), NAME, lines)
    return 0


def _numbers(clients: str) -> list[int]:
    try:
        numbers = [int(part) for part in clients.split(",")]
    except ValueError:
        numbers = []
    if COMPARED not in numbers or min(numbers) < 1 or max(numbers) > 64:
        raise UserError(f"--clients {clients}: give whole numbers from 1 to 64 with commas, {COMPARED} among them")
    return numbers


def settings_of_mini() -> dict[str, Any]:
    """What both sides sample with."""
    return {**asdict(Sampling()), **read_json(MINI / "roentgen.json").get("defaults", {})}


def measured(out: Path, clients: Sequence[int], images: int, requests: int) -> None:
    """Run everything and write the result; the value is our rate over that of stock diffusers."""
    settings = settings_of_mini()
    job = {"model": str(MINI), **{key: settings[key] for key in ("steps", "guidance")}}
    words = [sys.executable, "-m", "roentgen", "serve", "--port", "0", "--device", "cpu", "--dtype", "float32"]
    stock = [sys.executable, str(PEER), json.dumps({**job, "scheduler": SAMPLERS[settings["sampler"]]})]
    arms: dict[str, tuple[list[str], Ask]] = {
        OURS: (words, ask_ours),
        ALONE: ([*words, "--batch-size", "1"], ask_ours),
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
    with started(words) as (url, process):
        faults = {**leavers(url), **memory(url, process, requests), **stopped(url, process)}
    conditions = around.facts()
    rates = {one["server"]: one["images_per_second"] for one in loads if one["clients"] == COMPARED}
    value = rates[OURS] / rates[STOCK]
    context = Context(
        extractor="wall clock", resize="none", seed=0,
        settings={"clients": list(clients), "images": images, **settings},
        model={"name": "mini"}, inputs={}, git=git_state(ROOT), command="python benchmarks/serve.py",
    )  # fmt: skip
    write_result(
        out, metric=f"images a second at {COMPARED} clients, roentgen serve over stock diffusers", value=value,
        ci=(value, value), ci_method="none: one run", n=images, context=context, goal=f"at least {GOAL}", warnings=[],
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


def memory(url: str, process: subprocess.Popen[str], requests: int) -> dict[str, Any]:
    """Resident memory after a fifth of the requests, when every buffer has been used, and after all of them."""
    server = psutil.Process(process.pid)
    fifth = max(1, requests // 5)
    load(url, lambda address, number: ask_ours(address, number, 1), COMPARED, fifth)
    before = server.memory_info().rss
    load(url, lambda address, number: ask_ours(address, number, 1), COMPARED, requests - fifth)
    after = server.memory_info().rss
    return {"requests": requests, "memory_before_mb": before / 1e6, "memory_after_mb": after / 1e6}


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
    lines = ["| server | clients | images a second | p50 (s) | p95 (s) |", "|---|---:|---:|---:|---:|"]
    lines += [
        f"| {one['server']} | {one['clients']} | {one['images_per_second']:.2f} | {one['p50']:.1f} | {one['p95']:.1f} |"
        for one in details["loads"]
    ]
    faults = details["faults"]
    grown = faults["memory_after_mb"] - faults["memory_before_mb"]
    answers = ", ".join(f"{count} with {status}" for status, count in sorted(faults["stopped_with"].items()))
    lines += [
        "",
        f"At {COMPARED} clients `roentgen serve` makes {result['value']:.2f} times as many images as stock diffusers "
        f"(goal: {result['goal']}). `mini`, {settings['steps']} steps of {settings['sampler']}, guidance "
        f"{settings['guidance']:g}, float32, {settings['images']} images a load, on {details['cores']} cores of "
        f"{details['cpu']}, one run; the images of both are {details['grey_levels_apart']:.2f} grey levels apart on "
        f"average.{in_words(details['conditions'])}",
        "",
        f"Faults: after {faults['leavers']} clients that left in the middle of 8 images each, the next one had its "
        f"image in {faults['answer_after_leavers_seconds']:.1f} s. Over {faults['requests']} requests by {COMPARED} "
        "clients, "
        f"memory went from {faults['memory_before_mb']:.0f} MB (after a fifth of them) to "
        f"{faults['memory_after_mb']:.0f} MB ({grown:+.0f} MB). SIGTERM with 24 requests open: they were answered "
        f"{answers}; the exit code was {faults['exit_code']}.",
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    return measure(**parse_call(measure, argv, prog="benchmarks/serve.py"))


if __name__ == "__main__":
    sys.exit(errors.run(main, prog="benchmarks/serve.py"))
