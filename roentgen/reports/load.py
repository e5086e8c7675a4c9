"""The one way to a reporter: a name, a folder or a hub id."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from roentgen.errors import UserError
from roentgen.files import read_json
from roentgen.models import hub
from roentgen.models.own import CONFIG
from roentgen.reports.base import Reporter
from roentgen.reports.finding_net import KIND

MINI_REPORT = "mini-report"
SHIPPED = {MINI_REPORT: Path(hub.__file__).parent / "mini_report"}
"""Reporters that ship, by name."""


def _labels(folder: Path, name: str, device: str, flag: str) -> Reporter:
    from roentgen.reports.labels import load_labels

    return load_labels(folder, device=device, name=name, flag=flag)


def _captioner(folder: Path, name: str, device: str, flag: str) -> Reporter:
    from roentgen.reports.captioners import load_captioner

    return load_captioner(folder, device=device, name=name, flag=flag)


KINDS: dict[str, Callable[[Path, str, str, str], Reporter]] = {KIND: _labels}
"""How a folder is loaded, by ``kind`` of its config.json; all others are captioners."""


def find_reporter(name: str, *, flag: str = "--model") -> Path:
    """The folder of a reporter: one that ships, a folder, or a hub id; UserError where there is none."""
    if name in SHIPPED:
        if not (SHIPPED[name] / CONFIG).is_file():
            raise UserError(f"{flag} {name}: its weights are missing from {SHIPPED[name]}; reinstall roentgen")
        return SHIPPED[name]
    folder = hub.local(name)
    if folder is not None:
        if not (folder / CONFIG).is_file():
            raise UserError(
                f"{flag} {name}: no reporter there ({CONFIG} is missing); give a folder that `roentgen train report` "
                "or `save_pretrained` wrote"
            )
        return folder
    if not hub.is_hub_id(name):
        raise UserError(
            f"{flag} {name}: unknown reporter; give {' or '.join(SHIPPED)}, a folder, or a hub id such as "
            "microsoft/git-base"
        )

    def check(found: Path) -> None:
        if not (found / CONFIG).is_file():
            raise UserError(f"{flag} {name}: {CONFIG} is missing")

    files = "config.json, preprocessor_config.json, the tokenizer's files and model.safetensors"
    return hub.find(flag, name, (name,), check=check, choose=hub.model_files, files=files)


def load_reporter(
    name: str = MINI_REPORT, *, device: str = "cpu", flag: str = "--model", places: str | None = None
) -> Reporter:
    """The reporter ``name``, ready to read on ``device``; ``places``: a labels reporter that places what it says.

    Raises:
        UserError: there is none of that name, it is not whole, or is no reporter.
    """
    folder = find_reporter(name, flag=flag)
    kind = str(read_json(folder / CONFIG).get("kind", ""))
    reporter = KINDS.get(kind, _captioner)(folder, name if name in SHIPPED else folder.name, device, flag)
    if places is None:
        return reporter
    from roentgen.reports.grounded import GroundedReporter
    from roentgen.reports.labels import load_labels

    grounder = load_labels(find_reporter(places, flag="--places"), device=device, name=places, flag="--places")
    return GroundedReporter(reporter, grounder)
