"""The commands: a table of them, one module each; functions of their flags, light until they run."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """A command as "module:function" of ``roentgen.commands``, and what the list of commands says of it.

    The function's parameters are the settings; a ``raw`` one takes the words themselves, and its own name.
    """

    path: str
    about: str
    raw: bool = False

    def find(self) -> Callable[..., int]:
        """The function; its module is imported here."""
        module, _, function = self.path.partition(":")
        found: Callable[..., int] = getattr(importlib.import_module(f"roentgen.commands.{module}"), function)
        return found


COMMANDS = {
    "generate": Command("generate:generate", "make synthetic chest X-rays from text"),
    "edit": Command("edit:edit", "add or remove a finding in an X-ray, and leave the rest as it is"),
    "models": Command("models:models", "list the named models and what is on this disk"),
    "info": Command("info:info", "print the provenance of an image"),
    "export": Command("export:export", "make a synthetic data set, filtered and marked, in your training's format"),
    "eval": Command("evaluate:evaluate", "measure generated images against real ones, with an HTML report"),
    "report": Command("report:report", "read images: findings with places, text, pictures, DICOM reports"),
    "push": Command("push:push", "put a model, an adapter or a data set on the Hugging Face hub, with its card"),
    "train": Command("train:train", "train or fine-tune models: the recipes", raw=True),
    "data prepare": Command("data:prepare_main", "write a manifest from a collection of images", raw=True),
    "data check": Command("data:check", "check a manifest and its images"),
    "data shard": Command("data:shard", "write a manifest and its images as WebDataset tar files"),
    "serve": Command("serve:serve", "answer over HTTP: a page in the browser, and other programs' image interfaces"),
    "completion": Command("completion:completion", "print a script that completes commands in your shell"),
}
