"""What a model of networks does alike in every family: number type, remembered texts, loss, length of a text."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from roentgen.devices import pick_device
from roentgen.errors import UserError
from roentgen.generators.base import Info, check_length, forget_origins, words
from roentgen.models.portable import make_portable
from roentgen.models.text_encoders import TextReader
from roentgen.models.trial import tried

if TYPE_CHECKING:
    from roentgen.generators.base import Batch

REMEMBERED = 2048  # prompts whose states are kept


class Networks:
    """Base of the dataclasses that hold a family's networks, which have ``encode_text``.

    reader: how prompts become tokens. objective: what ``loss`` computes, once training has set it.
    """

    info: Info
    text_encoder: Any
    reader: TextReader
    objective: Any

    def __post_init__(self) -> None:
        self._remembered = lru_cache(maxsize=REMEMBERED)(lambda text: self.encode_text(text))

    @property
    def dtype(self) -> torch.dtype:
        """In which the networks compute."""
        kind: torch.dtype = getattr(torch, self.info.dtype)
        return kind

    def encode_text(self, text: str) -> Tensor:
        """Text-encoder output of one prompt (or of "" for no prompt)."""
        raise NotImplementedError

    def _states(self, text: str) -> Tensor:
        """``encode_text``, remembered unless the text encoder is in training."""
        learns = any(parameter.requires_grad for parameter in self.text_encoder.parameters())
        states: Tensor = self.encode_text(text) if learns else self._remembered(text)
        return states

    def trial(self) -> object:
        """One step and its image, of no text: fails where the networks that the folder describes do not work."""
        raise NotImplementedError

    @tried
    def loss(self, batch: Batch) -> Any:
        """The losses of each sample of a batch, by the ``objective`` that training has set."""
        if self.objective is None:
            raise RuntimeError("set an objective before training")
        return self.objective(batch)

    def _settings(self, kind: Callable[..., Any], what: str, settings: Mapping[str, Any]) -> Any:
        """The family's ``kind`` of settings: those given and not None, else the model's own, else the family's.

        UserError, which says that the model is ``what``, where one is unknown or out of range.
        """
        given = {key: value for key, value in settings.items() if value is not None}
        try:
            sampling = kind(**{**self.info.defaults, **given})
        except (TypeError, ValueError, OverflowError) as error:
            raise UserError(f"{self.info.name} is {what}: {error}") from None
        if sampling.negative_prompt:
            self.check(sampling.negative_prompt, "--negative-prompt")
        return sampling

    def _finish(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """What every saved model ends with: no origins, files that all versions read, and ``roentgen.json``."""
        forget_origins(folder)
        make_portable(folder)
        facts = {**facts, "text": {"chunks": self.reader.chunks}}
        (folder / "roentgen.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n")

    def check(self, text: str, flag: str = "prompt") -> None:
        """UserError if ``text`` is longer than the model reads."""
        check_length(self.reader, text, flag=flag, name=self.info.name)


def place_of(device: str | None, dtype: str | None) -> tuple[str, torch.dtype]:
    """Device and number type as they were asked for, else the fastest device and float16 on a GPU."""
    device = pick_device(device)
    return device, getattr(torch, dtype or ("float16" if device.startswith("cuda") else "float32"))


def info_of(said: Mapping[str, Any], *, name: str, folder: Path, place: tuple[str, torch.dtype], **more: Any) -> Info:
    """``Info`` of a model whose ``roentgen.json`` is ``said``; ``more`` are hash and what was merged."""
    known = said.get("vocabulary")
    vocabulary = None if known is None else frozenset(part for word in known for part in words(word))
    kind = str(place[1]).removeprefix("torch.")
    defaults = said.get("defaults", {})
    return Info(name, folder, device=place[0], dtype=kind, defaults=defaults, vocabulary=vocabulary, **more)
