"""Reporters that write text token by token: GIT, BLIP, encoder-decoders of transformers, and xreport.

What they write is split into sentences, and roentgen's own rules read labels and sides off each. They say no places;
``roentgen.reports.grounded`` adds those of a grounding head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as Pillow
from torch import Tensor

from roentgen.errors import UserError
from roentgen.files import explained, file_hash, reason
from roentgen.models import hub, loading
from roentgen.prompts import NO_FINDING, parse
from roentgen.reports import screen, xreport
from roentgen.reports.base import NOTHING_KNOWN, Context, Finding, Image, Info, Report, contexts_of, unread
from roentgen.reports.finding_net import squash
from roentgen.reports.sentences import split_sentences

ARCHITECTURES = {"git": "git", "blip": "blip", "vision-encoder-decoder": "encoder-decoder"}
"""Architecture by ``model_type`` of a config.json."""
LONGEST = 128  # tokens of a generated text at most, where the model's generation settings do not say


@dataclass(frozen=True)
class Captioner:
    """A model with what it needs: ``pixels`` turns grey images of ``size`` pixels into its input."""

    arch: str
    model: Any
    tokenizer: Any
    size: int
    pixels: Callable[[Sequence[Image]], Tensor]
    processor: Any = None


def open_captioner(folder: Path, *, flag: str = "--model") -> Captioner:
    """The model of a folder, on the CPU in float32 and evaluation mode; UserError where it is none of these."""
    about = loading.read_config(folder / "config.json")
    if about.get("kind") == xreport.KIND:
        model, tokenizer, size = xreport.load(folder, flag=flag)
        return Captioner("xreport", model, tokenizer, size, plain_pixels)
    arch = ARCHITECTURES.get(str(about.get("model_type")))
    if arch is None:
        raise UserError(
            f"{flag} {folder}: config.json is of a {about.get('model_type', 'unknown')!r} model, which writes no "
            f"reports; roentgen reads {', '.join(ARCHITECTURES)} and its own"
        )
    from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

    needs = "it needs config.json, weights, preprocessor_config.json and the tokenizer's files"
    what = f"{flag} {folder}: cannot be loaded as an image-to-text model"
    processor, tokenizer, model = (
        loading.from_folder(kind, folder, what, needs, who=f"{flag} {folder}")
        for kind in (AutoImageProcessor, AutoTokenizer, AutoModelForImageTextToText)
    )
    with explained(f"{flag} {folder}: its preprocessor_config.json cannot be used", "fetch the model again"):
        pixels = by_processor(processor)
        pixels([np.zeros((64, 64), np.uint8)])
    return Captioner(arch, model.float(), tokenizer, side_of(processor), pixels, processor)


def text_window(model: Any) -> int:
    """Tokens that the part which writes reads at most; a large number where its configuration does not say."""
    config = model.config
    part = getattr(config, "text_config", None) or getattr(config, "decoder", None) or config
    return int(getattr(part, "max_position_embeddings", 2**20))


def side_of(processor: Any) -> int:
    """Pixels of the square that an image processor makes."""
    said = getattr(processor, "crop_size", None) if getattr(processor, "do_center_crop", False) else None
    said = said or processor.size
    values = [said[key] for key in ("height", "width", "shortest_edge") if said.get(key)]
    return int(values[0])


def by_processor(processor: Any) -> Callable[[Sequence[Image]], Tensor]:
    """Images to float (N, 3, S, S) by transformers' own processor, after the aspect is squashed to its square."""
    side = side_of(processor)

    def pixels(images: Sequence[Image]) -> Tensor:
        pictures = [Pillow.fromarray(squash(image, side)).convert("RGB") for image in images]
        made: Tensor = processor(pictures, return_tensors="pt")["pixel_values"]
        return made

    return pixels


def plain_pixels(images: Sequence[Image]) -> Tensor:
    """Square grey images of one size to float (N, 3, S, S) in [-1, 1]."""
    from roentgen.images import to_autoencoder

    return to_autoencoder(np.stack(list(images))).expand(-1, 3, -1, -1)


@torch.inference_mode()
def write_texts(
    captioner: Captioner, images: Sequence[Image], *, beams: int | None = None, no_repeat: int | None = None,
    max_tokens: int | None = None, batch_size: int = 8,
) -> list[str]:  # fmt: skip
    """One text an image, the same each time: greedy, or by beams; what is None is as the model's settings say."""
    settings: dict[str, Any] = {"do_sample": False}
    settings |= {} if beams is None else {"num_beams": beams}
    settings |= {} if not no_repeat else {"no_repeat_ngram_size": no_repeat}
    wanted = max_tokens or captioner.model.generation_config.max_new_tokens or LONGEST
    settings["max_new_tokens"] = min(wanted, text_window(captioner.model) - 1)
    device = next(captioner.model.parameters()).device
    texts: list[str] = []
    for start in range(0, len(images), batch_size):
        squares = [squash(image, captioner.size) for image in images[start : start + batch_size]]
        try:
            ids = captioner.model.generate(pixel_values=captioner.pixels(squares).to(device), **settings)
        except Exception as error:  # whatever its settings hold
            if "memory" in str(error):
                raise
            raise UserError(
                f"the model cannot write ({reason(error)}): its generation_config.json and config.json may be damaged; "
                "fetch the model again"
            ) from error
        texts += [text.strip() for text in captioner.tokenizer.batch_decode(ids, skip_special_tokens=True)]
    return texts


def findings_of(text: str) -> tuple[Finding, ...]:
    """The sentences of a text with the labels and sides that roentgen's rules read off each.

    A sentence that names several findings becomes as many findings with the same text.
    """
    found: list[Finding] = []
    for sentence in split_sentences(text):
        labels = parse(sentence)
        names = [name for name in labels.findings if name != NO_FINDING]
        found += [Finding(sentence, name, side=labels.sides.get(name)) for name in names]
        if not names:
            found.append(Finding(sentence, present=False))
    return tuple(found)


class CaptionReporter:
    """See ``roentgen.reports.base.Reporter``; reads the frontal image alone."""

    def __init__(self, captioner: Captioner, about: Info) -> None:
        self.captioner = captioner
        self._about = about

    @property
    def info(self) -> Info:
        """See ``Reporter``."""
        return self._about

    def report(self, image: Image, context: Context = NOTHING_KNOWN) -> Report:
        """See ``Reporter``."""
        return self.report_many([image], [context])[0]

    def report_many(self, images: Sequence[Image], contexts: Sequence[Context] = ()) -> list[Report]:
        """See ``Reporter``."""
        wrong = [screen.blank(image) for image in images]
        texts = iter(write_texts(self.captioner, [i for i, why in zip(images, wrong, strict=True) if not why]))
        reports = []
        for context, why in zip(contexts_of(images, contexts), wrong, strict=True):
            left = unread(context, self.info)
            if why:
                reports.append(Report((), "", (why,), left, refused=True))
                continue
            text = next(texts)
            warnings = () if text else ("the model wrote nothing",)
            reports.append(Report(findings_of(text), text, warnings, left))
        return reports


def load_captioner(folder: Path, *, device: str = "cpu", name: str = "", flag: str = "--model") -> CaptionReporter:
    """The reporter of a folder that ``open_captioner`` reads, on ``device``."""
    captioner = open_captioner(folder, flag=flag)
    captioner.model.to(device)
    files, _ = hub.pick_weights(path.name for path in folder.iterdir())
    digest = file_hash(folder / files[0]) if files else ""
    return CaptionReporter(captioner, Info(name=name or folder.name, hash=digest, kind=captioner.arch))
