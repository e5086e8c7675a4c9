"""Words as numbers for captioners: tokens of texts, and how likely a model finds each of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from roentgen.config import require
from roentgen.reports.captioners import Captioner, text_window

IGNORED = -100
"""Label of a token that carries no loss: padding must be this, or a model learns to write nothing but padding."""


def tokens_of(
    captioner: Captioner, texts: Sequence[str], longest: int, manifest: Path, *, cut: bool = False
) -> tuple[Tensor, Tensor]:
    """Token numbers and mask (N, L) of all texts, start and end included; UserError for one that is too long.

    ``cut``: shorten it instead, for texts that a model has written itself.
    """
    tokenizer = captioner.tokenizer
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    window = text_window(captioner.model)
    require(longest <= window, f"--max-tokens {longest}: this model reads {window} at most")
    made = [list(tokenizer(one)["input_ids"]) for one in texts]
    end = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
    made = [one if one and one[-1] == end else [*one, end] for one in made]
    if cut:
        made = [one if len(one) <= longest else [*one[: longest - 1], end] for one in made]
    for row, one in enumerate(made):
        require(
            len(one) <= longest,
            f"{manifest}: the text {texts[row][:40]!r}... has {len(one)} tokens, more than --max-tokens {longest}; "
            f"raise it (to {window} at most here) or shorten the text",
        )
    width = max(map(len, made))
    ids = torch.full((len(made), width), int(tokenizer.pad_token_id))
    mask = torch.zeros((len(made), width), dtype=torch.long)
    for row, one in enumerate(made):
        ids[row, : len(one)] = torch.tensor(one)
        mask[row, : len(one)] = 1
    if captioner.arch == "blip":  # its decoder begins with a token of its own, which the tokenizer does not write
        ids[:, 0] = captioner.model.config.text_config.bos_token_id
    return ids, mask


def text_logits(captioner: Captioner, model: Any, pixels: Tensor, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (N, L, V) and the tokens (N, L) that they should be, ``IGNORED`` where there is no text.

    GIT's logits begin with those of its image tokens, which predict no text and are left out.
    """
    device = pixels.device
    ids, mask = ids.to(device), mask.to(device)
    if captioner.arch in ("xreport", "encoder-decoder"):
        # The decoder begins with its own start token; the tokenizer's first one is dropped where it is the same.
        start = captioner.model.config.decoder_start_token_id
        if start is None:
            start = captioner.tokenizer.cls_token_id or captioner.tokenizer.bos_token_id
        given = ids if bool((ids[:, 0] == start).all()) else F.pad(ids, (1, 0), value=int(start))
        seen = mask if given is ids else F.pad(mask, (1, 0), value=1)
        logits = model(pixel_values=pixels, decoder_input_ids=given[:, :-1], decoder_attention_mask=seen[:, :-1]).logits
        return logits.float(), given.masked_fill(seen == 0, IGNORED)[:, 1:]
    logits = model(pixel_values=pixels, input_ids=ids, attention_mask=mask).logits
    logits = logits[:, logits.shape[1] - ids.shape[1] :]
    return logits[:, :-1].float(), ids.masked_fill(mask == 0, IGNORED)[:, 1:]


def text_loss(captioner: Captioner, model: Any, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """Mean cross-entropy of the next token over the tokens that are text, end included.

    Computed from the logits, alike for all: transformers' own losses differ (BLIP's smooths labels).
    """
    logits, target = text_logits(captioner, model, pixels, ids, mask)
    return F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=IGNORED)
