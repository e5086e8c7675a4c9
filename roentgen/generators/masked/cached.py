"""Codes of all images of a data set: encoded once, kept on disk by ``roentgen.cache``, held in memory as one array."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from roentgen.cache import build_rows, place
from roentgen.data.images import CHAIN, ImageSource, image_digests
from roentgen.devices import TEAM_OF_ONE, Team
from roentgen.generators.masked.tokenizer import ImageTokenizer


class CodeCache:
    """Codes int16 (N, P, G) of every image of a source."""

    def __init__(self, codes: NDArray[np.int16]) -> None:
        self.codes = codes

    def __len__(self) -> int:
        return len(self.codes)

    def rows(self, indices: Iterable[int]) -> tuple[NDArray[np.int16]]:
        """Codes (B, P, G) of rows of the source."""
        return (self.codes[np.asarray(indices, dtype=np.int64)],)


def code_cache(
    tokenizer: ImageTokenizer,
    source: ImageSource,
    *,
    folder: Path,
    device: torch.device | str,
    team: Team = TEAM_OF_ONE,
    batch_size: int = 16,
) -> CodeCache:
    """Codes of all images of ``source``, encoded where ``folder`` lacks them.

    ``folder`` is that of all caches; this one is ``codes-<key>`` in it, the key made of the tokenizer's hash, the size
    and the resize chain. The processes of ``team`` build it together and meet four times.
    UserError for an image that is missing or cannot be read, or a full disk.
    """
    own = place(
        folder,
        "codes",
        {"tokenizer": tokenizer.hash, "chain": CHAIN, "size": source.size, "stored": "float16, exact up to 2048"},
        write=team.rank == 0,
    )
    keys = image_digests(source, folder / "images", team=team)
    moved = tokenizer.to(device)

    def encode(pixels: NDArray[np.uint8]) -> NDArray[np.float16]:
        # The cache keeps float16, which holds every whole number up to 2048, the largest codebook.
        return moved.encode(pixels).cpu().numpy().astype(np.float16)

    store = build_rows(own, keys, source.read_many, encode, what="codes", batch_size=batch_size, team=team)
    count = len(store)
    codes = np.empty((count, *store.shape), np.int16)
    for start in range(0, count, 4096):
        codes[start : start + 4096] = store.take(range(start, min(count, start + 4096)))
    return CodeCache(codes)
