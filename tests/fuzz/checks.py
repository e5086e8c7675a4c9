"""What a success must have written, told without the code that wrote it."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

from .limits import Outcome


def generated(outcome: Outcome) -> str:
    """Every line that was printed is a whole image that says what made it."""
    from PIL import Image

    lines = [line for line in outcome.out.splitlines() if line]
    if not lines:
        return "" if "usage:" in outcome.out else "no image was named"
    if lines[0].startswith("usage:"):
        return ""
    for line in lines:
        path = Path(json.loads(line)["path"] if line.startswith("{") else line)
        if not path.is_file():
            return f"{path} is not there"
        if path.suffix != ".dcm":
            with Image.open(path) as picture:
                picture.load()
                if path.suffix == ".png" and not (picture.text.get("prompt") and picture.text.get("software")):  # type: ignore[attr-defined]
                    return f"{path} has no marks"
    return leftovers(Path.cwd())


def leftovers(folder: Path) -> str:
    """Nothing half written lies about."""
    found = [str(path) for path in folder.rglob(".*.tmp")]
    return f"left behind: {found[0]}" if found else ""


def page(path: Path) -> Callable[[Outcome], str]:
    """A whole HTML page."""

    def check(outcome: Outcome) -> str:
        if "usage:" in outcome.out:
            return ""
        whole = path.is_file() and path.read_text(encoding="utf-8").rstrip().endswith("</html>")
        return "" if whole else "no whole page"

    return check


def sharded(out: Path) -> Callable[[Outcome], str]:
    """The tars hold as many images as the index says, each with its sum."""

    def check(outcome: Outcome) -> str:
        import pandas as pd

        index = pd.read_parquet(out / "manifest.parquet")
        count = 0
        sums = set(index["sha256"])
        for path in sorted(out.glob("*.tar")):
            with tarfile.open(path) as archive:
                for member in archive:
                    if not member.name.endswith((".json", ".txt")):
                        data = archive.extractfile(member)
                        assert data is not None
                        count += 1
                        if hashlib.sha256(data.read()).hexdigest() not in sums:
                            return f"{member.name} has another sum"
        return "" if count == len(index) else f"{count} images for {len(index)} rows"

    return check


def prepared(out: Path) -> Callable[[Outcome], str]:
    """A manifest that its own reader takes."""

    def check(outcome: Outcome) -> str:
        from roentgen.data.manifest import read_manifest
        from roentgen.errors import UserError

        if "usage:" in outcome.out:
            return ""
        try:
            read_manifest(out / "manifest.csv", allow_empty_text=True)
        except UserError as error:
            return f"what was prepared is refused: {error}"
        return leftovers(out)

    return check


def same_files(out: Path, whole: Path) -> Callable[[Outcome], str]:
    """The files of an unbroken run, byte by byte."""

    def check(outcome: Outcome) -> str:
        mine, theirs = _sums(out), _sums(whole)
        wrong = sorted(name for name in theirs if mine.get(name) != theirs[name])
        return f"exit code 0, but {wrong[0]} differs or is gone" if wrong else ""

    return check


def _sums(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def same_results(out: Path, whole: Path) -> Callable[[Outcome], str]:
    """The values of an unbroken evaluation."""

    def check(outcome: Outcome) -> str:
        for path in sorted(whole.glob("*.json")):
            mine, theirs = json.loads((out / path.name).read_text()), json.loads(path.read_text())
            for key in ("value", "ci", "n"):
                if mine.get(key) != theirs.get(key):
                    return f"{path.name}: {key} is {mine.get(key)!r}, not {theirs.get(key)!r}"
        return "" if (out / "report.html").is_file() else "no report"

    return check


def trained(out: Path) -> Callable[[Outcome], str]:
    """A pipeline whose parts open."""

    def check(outcome: Outcome) -> str:
        from safetensors import safe_open

        for name in ("unet", "vae", "text_encoder"):
            for file in (out / "pipeline" / name).glob("*.safetensors"):
                with safe_open(file, "np") as opened:
                    if not list(opened.keys()):
                        return f"{file} is empty"
        return "" if (out / "pipeline" / "model_index.json").is_file() else "no pipeline"

    return check


def opens(out: Path) -> Callable[[Outcome], str]:
    """All weights and tables that a run left open; what it keeps for itself is its own affair."""

    def check(outcome: Outcome) -> str:
        from safetensors import safe_open

        found = [path for path in out.rglob("*.safetensors") if not {"cache", "checkpoints"} & set(path.parts)]
        for file in found:
            with safe_open(file, "np") as opened:
                if not list(opened.keys()):
                    return f"{file} is empty"
        return "" if found else "no weights"

    return check
