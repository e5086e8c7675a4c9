"""What made a file or a number: versions, processor, state of the checkout, command line, and the marks in files."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__version__ = "0.1.0"
SOFTWARE = "roentgen"
ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "torchvision", "diffusers", "transformers", "torchmetrics", "numpy", "pandas", "pillow")


def versions() -> dict[str, str]:
    """Versions of roentgen, Python and the packages whose change could change a number."""
    from importlib import metadata  # takes longer than all else here

    found = {"roentgen": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def processor() -> str:
    """Model of the CPU, nothing that names the machine."""
    facts = Path("/proc/cpuinfo")
    if facts.is_file():
        for line in facts.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def git_state(folder: Path) -> dict[str, Any]:
    """``commit`` of the checkout at ``folder`` and whether its tracked files differ; None outside git."""
    import subprocess

    def git(*arguments: str) -> str | None:
        command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # An installed package may lie below somebody else's checkout: only our own counts.
    top = git("rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != folder.resolve():
        return {"commit": None, "modified": None}
    status = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": git("rev-parse", "HEAD"), "modified": None if status is None else bool(status)}


class Surroundings:
    """What else went on while something was timed: make one before, ask for ``facts`` after.

    A time is worth little beside other work, or where nobody can get the code that was run: results say both.
    """

    QUIET = 0.2  # cores of others that a quiet machine may show: its own housekeeping

    def __init__(self) -> None:
        # Now, not at the end: a benchmark may rewrite its own result, which git keeps, while it runs.
        self._modified = git_state(ROOT)["modified"]
        self._start = time.perf_counter(), _machine_seconds(), _own_seconds()

    def facts(self) -> dict[str, Any]:
        """others: cores that other processes took, on average (None where the system does not say); quiet: whether that
        was next to nothing; tree: clean, modified, or unknown where this is no checkout."""
        began, machine, own = self._start
        passed, now = time.perf_counter() - began, _machine_seconds()
        others = None
        if machine is not None and now is not None:
            others = max(0.0, round(((now - machine) - (_own_seconds() - own)) / max(passed, 1e-9), 2))
        return {
            "others": others,
            "quiet": None if others is None else others <= self.QUIET,
            "tree": {True: "modified", False: "clean", None: "unknown"}[self._modified],
        }


def in_words(conditions: Mapping[str, Any] | None) -> str:
    """A sentence to stand below figures for what ``Surroundings.facts`` holds against them; empty for nothing."""
    if conditions is None:
        return ""
    said = [f"beside others that took {conditions['others']:.2f} cores"] if conditions["quiet"] is False else []
    said += ["from a modified tree"] if conditions["tree"] == "modified" else []
    return f" Taken {' and '.join(said)}." if said else ""


def _machine_seconds() -> float | None:
    """Processor time of everything on this machine so far; None where the system does not say."""
    facts = Path("/proc/stat")
    if not facts.is_file():
        return None
    user, nice, system, _, _, irq, soft, steal = (int(part) for part in facts.read_text().split()[1:9])
    return (user + nice + system + irq + soft + steal) / float(os.sysconf("SC_CLK_TCK"))


def _own_seconds() -> float:
    """Processor time of this process and of its children that have ended."""
    return sum(os.times()[:4])


def portable(value: object, root: Path = ROOT) -> object:
    """A path below ``root`` relative to it, any other absolute path as its name alone; the rest unchanged.

    Results are published: they must not tell where somebody keeps data. The file itself is told by its hash.
    """
    if isinstance(value, Mapping):
        return {key: portable(item, root) for key, item in value.items()}
    if not isinstance(value, str | Path):
        return value
    path = Path(value)
    if not path.is_absolute():
        return path.name if ".." in path.parts else str(value)
    return str(path.relative_to(root)) if path.is_relative_to(root) else path.name


def command_line(script: str, settings: Any) -> str:
    """``python SCRIPT ...`` with the flags that make dataclass ``settings`` again, paths made portable."""
    flags = []
    for item in dataclasses.fields(settings):
        value = getattr(settings, item.name)
        if value != item.default:
            said = f"[{','.join(map(str, value))}]" if isinstance(value, tuple) else portable(value)
            flags.append(f"--{item.name}={said}")
    return shlex.join(["python", script, *flags])


def as_marks(provenance: Mapping[str, str]) -> dict[str, str]:
    """What is written into a file: the provenance as text, and where it comes from."""
    return {key: str(value) for key, value in provenance.items()} | {"software": SOFTWARE, "synthetic": "true"}


def read_marks(text: str) -> dict[str, str]:
    """Marks that were written as JSON; none where ``text`` is something else."""
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return {str(key): str(item) for key, item in value.items()} if isinstance(value, dict) else {}
