"""The masked transformer that a training starts from: an earlier one, or a new one on tokenizer and text encoder."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from roentgen.errors import UserError, told_of
from roentgen.files import fingerprint, sha256
from roentgen.generators.base import Info
from roentgen.generators.generate import load_model
from roentgen.generators.masked.model import Masked, read_with
from roentgen.generators.masked.process import Process
from roentgen.generators.masked.tokenizer import ImageTokenizer
from roentgen.generators.masked.transformer import Fit, MaskedTransformer, Shape
from roentgen.models.hub import MINI
from roentgen.models.text_encoders import load_text_encoder


def start(
    *,
    model: str | None,
    codes: Path | None,
    text_encoder: str | None,
    shape: Shape,
    process: Process,
    pixels: int,
    layer: str = "last",
    window: int | None = None,
    chunks: int = 1,
    name: str = "in-training",
    weights: bool = True,
) -> Masked:
    """The masked transformer ``model``, or a new one, to be trained: float32, on the CPU.

    A new one takes the image tokenizer in ``codes``, pictures of ``pixels`` x ``pixels``, and ``text_encoder`` (a name,
    folder or hub id; ``mini`` is the shipped model's). Tokenizer and text encoder are frozen. The hash is that of the
    weights that training starts from. ``weights``: False gives a new transformer its shape alone, on PyTorch's meta
    device: nothing is allocated, nothing drawn.
    """
    if model is not None:
        loaded = load_model(model, device="cpu", dtype="float32", trainable=True)
        if not isinstance(loaded, Masked):
            raise UserError(f"--model {model}: no masked transformer; this recipe trains those")
        loaded.info = Info(name=name, folder=Path(), hash=loaded.info.hash, device="cpu", dtype="float32")
        return loaded
    assert codes is not None and text_encoder is not None
    with told_of("--codes"):
        tokenizer = ImageTokenizer.load(codes)
    words, encoder = load_text_encoder(str(MINI) if text_encoder == "mini" else text_encoder, layer=layer)
    encoder.eval().requires_grad_(False)
    reader = read_with(words, encoder, window=window, chunks=chunks)
    side, rest = divmod(pixels, tokenizer.factor * shape.patch)
    if rest:
        raise UserError(f"--pixels {pixels}: must be a multiple of {tokenizer.factor * shape.patch}")
    if shape.width % shape.heads:
        raise UserError(f"--shape.heads {shape.heads}: must divide --shape.width {shape.width}")
    fit = Fit(side * shape.patch, tokenizer.sizes, encoder.config.hidden_size)
    with nullcontext() if weights else torch.device("meta"):
        network = MaskedTransformer(fit, shape)
    if weights:
        for number, centres in enumerate(tokenizer.centres):
            network.group(number).start_from(centres)
    marks: list[Any] = [fingerprint(network) if weights else "none", tokenizer.hash, fingerprint(encoder)]
    info = Info(name=name, folder=Path(), hash=sha256(" ".join(marks))[:16], device="cpu", dtype="float32")
    return Masked(info, tokenizer, network.train(), encoder, reader, process)


def parameters(model: Masked) -> list[torch.nn.Parameter]:
    """What is trained."""
    return [parameter for parameter in model.transformer.parameters() if parameter.requires_grad]
