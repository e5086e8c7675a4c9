"""Generated images that can still be fetched by their address, in memory, the oldest leave first."""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field

from roentgen.generators.base import Sample
from roentgen.images import SUFFIXES, encode_image
from roentgen.serving.failures import Failure

MEDIA = {"png": "image/png", "jpeg": "image/jpeg", "dicom": "application/dicom"}
MOST_PIXELS = 2**28
"""A byte each: what large edited images may take together."""


@dataclass
class Gallery:
    """At most ``most`` samples for at most ``seconds`` each. An address cannot be guessed, so it needs no key."""

    most: int
    seconds: float
    _kept: OrderedDict[str, tuple[float, Sample]] = field(default_factory=OrderedDict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, sample: Sample) -> str:
        """Keep it; gives the name by which ``file`` finds it."""
        name = secrets.token_urlsafe(24)
        with self._lock:
            self._kept[name] = (time.monotonic(), sample)
            while len(self._kept) > self.most or (len(self._kept) > 1 and self._pixels() > MOST_PIXELS):
                self._kept.popitem(last=False)
        return name

    def file(self, name: str) -> tuple[bytes, str]:
        """Content and media type of ``NAME.png``, ``.jpg`` or ``.dcm``, marked as synthetic; 404 where it is gone."""
        stem, _, suffix = name.rpartition(".")
        kind = SUFFIXES.get(f".{suffix}")
        with self._lock:
            born, sample = self._kept.get(stem, (0.0, None))
        if kind is None or sample is None or time.monotonic() - born > self.seconds:
            raise Failure(404, "no such image: it is kept for a while only; ask for b64_json, or generate it again")
        return encode_image(sample.image, kind, sample.provenance), MEDIA[kind]

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._kept.clear()

    def _pixels(self) -> int:
        return sum(sample.image.size for _, sample in self._kept.values())

    def __len__(self) -> int:
        return len(self._kept)
