"""Wall time and memory of a command, as a process of its own; for the scripts beside this file."""

from __future__ import annotations

import importlib.metadata
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from roentgen.errors import UserError
from roentgen.provenance import Surroundings, git_state, processor, versions
from roentgen.threads import cores

ROOT = Path(__file__).resolve().parent.parent


def summarised(values: list[float]) -> dict[str, Any]:
    """Median, extremes, number, and the values themselves."""
    extremes = {"min": min(values), "max": max(values), "n": len(values)}
    return {"median": statistics.median(values), **extremes, "values": values}


def timed_images(command: Callable[[int, Path], list[str]], images: int) -> tuple[float, float]:
    """Seconds and GB of a command that writes ``images`` pictures; RuntimeError on another number."""
    with tempfile.TemporaryDirectory() as folder:
        found = timed(command(images, Path(folder)))
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


def timed(command: Sequence[str]) -> tuple[float, float]:
    """Wall seconds and the largest resident set (GB) of a process; RuntimeError if it fails."""
    # Offline for both sides: neither may spend time on asking the hub about a local folder.
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": python_path()}
    with tempfile.TemporaryFile() as words:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=words, env=environment)
        # wait4 gives the memory of this child alone; getrusage(RUSAGE_CHILDREN) is the largest of all so far.
        # On Linux a child's peak starts at its parent's at the fork, so this process must not import torch.
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            words.seek(0)
            raise RuntimeError(f"{command[:4]} failed: {words.read().decode(errors='replace')[-2000:]}")
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
