"""Wall time and memory of a command, as a process of its own; for the scripts beside this file."""

from __future__ import annotations

import importlib.metadata
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil

from roentgen.errors import UserError
from roentgen.files import explained
from roentgen.provenance import Surroundings, git_state, processor, versions
from roentgen.threads import cores

ROOT = Path(__file__).resolve().parent.parent


def summarised(values: list[float]) -> dict[str, Any]:
    """Median, extremes, number, and the values themselves."""
    extremes = {"min": min(values), "max": max(values), "n": len(values)}
    return {"median": statistics.median(values), **extremes, "values": values}


def timed_images(command: Callable[[int, Path], list[str]], images: int, device: str = "cpu") -> tuple[float, float]:
    """Seconds and GB of a command that writes ``images`` pictures; RuntimeError on another number."""
    with tempfile.TemporaryDirectory() as folder:
        found = timed(command(images, Path(folder)), device)
        written = len(list(Path(folder).glob("*.png")))
    if written != images:
        raise RuntimeError(f"{images} images were asked for and {written} written")
    return found


def require_packages(names: Iterable[str]) -> None:
    """UserError where one of the packages that ours is compared with is not installed."""
    for name in names:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            raise UserError(f"the comparison needs {name}: pip install {name}") from None


def python_path() -> str:
    """PYTHONPATH with this checkout first."""
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


def timed(command: Sequence[str], device: str = "cpu") -> tuple[float, float]:
    """Wall seconds and memory (GB) of a process; RuntimeError if it fails.

    Memory is the largest resident set; on ``cuda`` what the GPU has more in use than before, at most.
    """
    # Offline for both sides: neither may spend time on asking the hub about a local folder.
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": python_path()}
    with tempfile.TemporaryFile() as words, ExitStack() as stack:
        before = device_memory() if device == "cuda" else 0
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=words, env=environment)
        watch = stack.enter_context(Watch(process.pid, device)) if device == "cuda" else None
        # wait4 gives the memory of this child alone; getrusage(RUSAGE_CHILDREN) is the largest of all so far.
        # On Linux a child's peak starts at its parent's at the fork, so this process must not import torch.
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            words.seek(0)
            raise RuntimeError(f"{command[:4]} failed: {words.read().decode(errors='replace')[-2000:]}")
    if watch is not None:
        return seconds, (watch.peak - before) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes elsewhere
    return seconds, usage.ru_maxrss * unit / 1e9


def conditions(around: Surroundings) -> dict[str, Any]:
    """What a result says of where and of which code it was taken."""
    git = git_state(ROOT)
    about = {"machine": machine(), "conditions": around.facts()}
    return {**about, "git_commit": git["commit"], "git_modified": git["modified"], "versions": versions()}


def machine() -> dict[str, Any]:
    """CPU model and the cores that this process may use; nothing that names the machine."""
    return {"cpu": processor(), "cores": cores()}


class Watch:
    """Largest memory (bytes) of a process and its children, looked at ten times a second (a GPU once)."""

    def __init__(self, pid: int, device: str) -> None:
        self.peak = 0
        self._process = psutil.Process(pid)
        self._cuda = device == "cuda"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while True:
            self.peak = max(self.peak, device_memory() if self._cuda else resident(self._process))
            if self._over.wait(1.0 if self._cuda else 0.1):
                return


def resident(process: psutil.Process) -> int:
    """Bytes in memory of a process and its children; pages that they share count once (PSS), where Linux says so."""
    total = 0
    try:
        family = [process, *process.children(recursive=True)]
        if len(family) == 1:
            return int(process.memory_info().rss)
        for each in family:
            found = each.memory_full_info()
            total += int(found.pss if psutil.LINUX else found.rss)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        pass  # it has just ended
    return total


def device_memory() -> int:
    """Bytes in use on the first GPU, whoever uses them; UserError where nvidia-smi does not say."""
    asked = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]
    with explained(
        "--device cuda: nvidia-smi does not say what is in use",
        "install it",
        (OSError, subprocess.CalledProcessError, ValueError, IndexError),
    ):
        return int(subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()[0]) * 2**20


def cuda_or_cpu(device: str) -> str:
    """``cpu`` or ``cuda``; asked of a process of its own, so that this one stays small and off the device.

    UserError where there is no CUDA GPU but one is asked for.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {device}: use cpu, cuda or auto")
    if device == "cpu":
        return device
    found = "cuda" if ask_torch("torch.cuda.is_available()") == "True" else "cpu"
    if device == "cuda" and found == "cpu":
        raise UserError("--device cuda: no CUDA GPU is available here; use --device cpu")
    return found


def ask_torch(expression: str) -> str:
    """What a process of its own prints for an expression of torch."""
    asked = [sys.executable, "-c", f"import torch; print({expression})"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()


def last_line(text: str) -> str:
    """The last line of ``text`` that is not blank."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
