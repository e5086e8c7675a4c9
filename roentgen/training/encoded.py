"""Latents of images and states of texts, computed once: rows of ``roentgen.cache``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from roentgen.cache import RowStore, build_rows, place
from roentgen.data.images import CHAIN, ImageSource, image_digests
from roentgen.devices import TEAM_OF_ONE, Team
from roentgen.errors import UserError
from roentgen.files import fingerprint, sha256
from roentgen.models.autoencoder import latents

# Changing how texts become states must change this, or old caches would be taken for new.
TEXT_CHAIN = "reader.tokens+encode_text_states-1"
FLOAT16_MAX = float(torch.finfo(torch.float16).max)


def _described(config: dict[str, Any]) -> dict[str, Any]:
    """A model's configuration without where it was loaded from and by which version."""
    left_out = ("transformers_version", "dtype", "torch_dtype")
    return {key: value for key, value in config.items() if not key.startswith("_") and key not in left_out}


# ---------------------------------------------------------------------------------------- latents


class LatentCache:
    """Posterior mean and standard deviation of every image of a source, before the scaling factor."""

    def __init__(self, store: RowStore) -> None:
        self._store = store

    def __len__(self) -> int:
        return len(self._store)

    def rows(self, indices: Iterable[int]) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
        """Mean and standard deviation, each float16 (B, C, h, w), of rows of the source."""
        both = self._store.take(indices)
        return both[:, 0], both[:, 1]


def latent_cache(
    vae: Any,
    source: ImageSource,
    *,
    folder: Path,
    device: torch.device | str,
    team: Team = TEAM_OF_ONE,
    batch_size: int = 8,
) -> LatentCache:
    """Latents of all images of ``source``, encoded where ``folder`` lacks them.

    Encoded as ``roentgen.models.autoencoder.latents.encode`` does: under bfloat16 autocast on every device, stored as
    float16. Which images share a batch changes latents by no more than rounding. A file of an image is taken as
    unchanged while its path, size and times are; where one differs its bytes are hashed again.

    Args:
        vae: autoencoder.
        source: images.
        folder: of all caches; this one is ``latents-<key>`` in it, the key made of weights, size and resize chain.
        device: to encode on; the autoencoder is moved there if there is work.
        team: the processes that build it together, which meet four times.
        batch_size: images encoded at once.

    Raises:
        UserError: for an image that is missing or cannot be read, latents that are not finite, or a full disk.
    """
    device = torch.device(device)
    parts = {
        "vae": fingerprint(vae),
        "config": _described(dict(vae.config)),
        "chain": CHAIN,
        "size": source.size,
        "autocast": "bfloat16" if latents.linear_encoder(vae) is None else "linear, float32",
        "stored": "float16",
    }
    own = place(folder, "latents", parts, write=team.rank == 0)
    keys = image_digests(source, folder / "images", team=team)

    def load(items: list[int]) -> tuple[list[int], NDArray[np.uint8]]:
        return items, source.read_many(items)

    @torch.inference_mode()
    def encode(loaded: tuple[list[int], NDArray[np.uint8]]) -> NDArray[np.float16]:
        items, pixels = loaded
        rows = latents.encode(vae, pixels, device=device)
        good = rows.isfinite().flatten(1).all(1).cpu()
        if not bool(good.all()):
            image = source.table["image"].iat[items[int((~good).nonzero()[0])]]
            raise UserError(f"{image}: its latents are not finite; look at the image and at the autoencoder's weights")
        return rows.cpu().numpy()

    store = build_rows(
        own,
        keys,
        load,
        encode,
        what="latents",
        batch_size=batch_size,
        team=team,
    )
    return LatentCache(store)


# ------------------------------------------------------------------------------------------ texts


class TextCache:
    """States of a frozen text encoder for known texts, "" among them."""

    def __init__(self, store: RowStore, texts: Sequence[str]) -> None:
        self._store = store
        self._items = {text: item for item, text in enumerate(texts)}

    def __len__(self) -> int:
        return len(self._store)

    def states(self, texts: Sequence[str]) -> Tensor:
        """States float16 (B, C * L, D); ValueError for a text that was not given to ``text_cache``."""
        unknown = next((text for text in texts if text not in self._items), None)
        if unknown is not None:
            raise ValueError(f"no states are cached for the text {unknown[:80]!r}")
        return torch.from_numpy(self._store.take([self._items[text] for text in texts]))


def text_cache(
    reader: Any,
    text_encoder: Any,
    texts: Sequence[str],
    *,
    folder: Path,
    device: torch.device | str,
    team: Team = TEAM_OF_ONE,
    batch_size: int = 64,
) -> TextCache:
    """States of ``texts`` and of "", computed where ``folder`` lacks them, in evaluation mode and the weights' dtype.

    Args:
        reader: ``TextReader``: how texts become tokens.
        text_encoder: the model, which must not be trained while this cache is in use.
        texts: all that will be asked for; each is stored once.
        folder: of all caches; this one is ``texts-<key>`` in it, the key made of weights, tokenizer and reader.
        device: to encode on; the encoder is moved there if there is work.
        team: the processes that build together; they meet twice.
        batch_size: texts encoded at once.

    Raises:
        UserError: for states that float16 cannot hold, or a full disk.
    """
    from roentgen.models.text_encoders import encode_text_states

    device = torch.device(device)
    unique = list(dict.fromkeys(["", *texts]))
    parts = {
        "encoder": fingerprint(text_encoder),
        "class": type(text_encoder).__name__,
        "config": _described(text_encoder.config.to_dict()),
        "tokenizer": tokenizer_hash(reader.tokenizer),
        "window": reader.window,
        "chunks": reader.chunks,
        "masked": reader.masked,
        "chain": TEXT_CHAIN,
        "stored": "float16",
    }
    own = place(folder, "texts", parts, write=team.rank == 0)

    @torch.inference_mode()
    def encode(batch: list[str]) -> NDArray[np.float16]:
        tokens = reader.tokens(batch).to(device)
        states = encode_text_states(text_encoder.to(device), tokens, masked=reader.masked).float()
        largest = states.abs().flatten(1).amax(1).cpu()
        bad = ~(largest <= FLOAT16_MAX)  # also where it is NaN
        if bool(bad.any()):
            text = batch[int(bad.nonzero()[0])]
            raise UserError(
                f"the states of the text {text[:80]!r} do not fit float16 (largest {float(largest[bad][0]):g}); "
                "use --text-states online"
            )
        return states.half().cpu().numpy()

    training = text_encoder.training
    text_encoder.eval()  # no dropout
    try:
        store = build_rows(
            own,
            [sha256(text) for text in unique],
            lambda items: [unique[item] for item in items],
            encode,
            what="text states",
            batch_size=batch_size,
            team=team,
        )
    finally:
        text_encoder.train(training)
    return TextCache(store, unique)


def tokenizer_hash(tokenizer: Any) -> str:
    """A hash of how a tokenizer splits texts: its whole pipeline where it can be written down, else its vocabulary."""
    if tokenizer.is_fast:
        # Truncation and padding are set by the latest call, so they belong to the reader, not to the tokenizer.
        pipeline = json.loads(tokenizer.backend_tokenizer.to_str())
        content = {key: value for key, value in pipeline.items() if key not in ("truncation", "padding")}
    else:
        content = {"vocabulary": tokenizer.get_vocab()}
    content["class"] = type(tokenizer).__name__
    content["special"] = {key: str(value) for key, value in tokenizer.special_tokens_map.items()}
    content["padding_side"] = tokenizer.padding_side
    return sha256(json.dumps(content, sort_keys=True))[:20]
