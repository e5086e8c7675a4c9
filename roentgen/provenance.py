"""What made a file or a number: versions, processor, state of the checkout, command line, and the marks in files."""

from __future__ import annotations

import dataclasses
import json
import platform
import shlex
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
