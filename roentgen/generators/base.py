"""What every family of generators has in common: the protocol, what a sample is, and the checks of text and seed.

Light at import: no torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from roentgen import images
from roentgen.errors import UserError
from roentgen.files import read_json


@dataclass(frozen=True)
class Info:
    """What a loaded generator is.

    hash: first 16 hex digits of the SHA-256 over its weight files. dtype: of its network, such as ``float32``.
    defaults: its family's settings where it recommends others than the family does. vocabulary: lower-case words of
    its training text, or None if unknown. lora: what was merged into the weights, or None.
    """

    name: str
    folder: Path
    hash: str
    device: str
    dtype: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    vocabulary: frozenset[str] | None = field(default=None, repr=False)
    lora: str | None = None

    def unknown_words(self, text: str) -> list[str]:
        """Words of ``text`` that the model has not seen in training, in order; empty if that is not known."""
        if self.vocabulary is None:
            return []
        return [word for word in dict.fromkeys(words(text)) if word not in self.vocabulary]


class Sampling(Protocol):
    """A family's settings of sampling: a frozen dataclass that travels in provenance as it is.

    Every family has ``steps``, ``guidance`` and ``sampler``, whose names are its own; further settings are its own.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def provenance(self) -> dict[str, str]:
        """Every setting as text."""
        ...


class Batch(Protocol):
    """What a model's ``loss`` reads: n training images with their texts.

    rows: int64 (n,) of the data. texts: n texts. images: cached latents of the family, or ``(pixels,)`` uint8
    (n, S, S). text: tokens, or cached states. used: bool (n, L), positions of the text that may be read.
    draws: what the family's ``draw`` gave, by name. weight: float32 (n,) loss weight of each sample.
    """

    @property
    def rows(self) -> Any: ...
    @property
    def texts(self) -> list[str]: ...
    @property
    def images(self) -> tuple[Any, ...]: ...
    @property
    def text(self) -> Any: ...
    @property
    def used(self) -> Any: ...
    @property
    def draws(self) -> dict[str, Any]: ...
    @property
    def weight(self) -> Any: ...


class Generator(Protocol):
    """A loaded model that makes images of texts. An image depends on (model, text, seed, sampling) and nothing else,
    but for one grey level of rounding by the company in its batch."""

    info: Info

    @property
    def pixels(self) -> int:
        """Side of its images in pixels; the smaller one where they are not square."""
        ...

    def check(self, text: str, flag: str = "prompt") -> None:
        """UserError that begins with ``flag`` if ``text`` is longer than the model reads; it is never cut."""
        ...

    def sampling(self, **settings: Any) -> Sampling:
        """The family's settings: those given and not None, else the model's own; UserError if one is out of range."""
        ...

    def batch_key(self, text: str) -> Hashable:
        """Texts whose keys are equal may share a batch."""
        ...

    def sample(
        self,
        texts: Sequence[str],
        seeds: Sequence[int],
        sampling: Any,
        on_step: Callable[[float], object] | None = None,
    ) -> Iterator[np.ndarray]:
        """One batch: the image of each text with its seed, uint8 grey (H, W), in order.

        ``on_step`` is called while it is computed with shares of the work, in images. UserError on an image of NaN.
        """
        ...

    def watch(self, text: str, seed: int, sampling: Any) -> Iterator[np.ndarray]:
        """How the image of ``text`` and ``seed`` comes about: uint8 grey (H, W) after each step, the last the image."""
        ...

    def reconstruct(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 grey (N, H, W) through the model's own codes of images and back."""
        ...


@dataclass(frozen=True)
class Edits:
    """One batch of edits.

    pixels: uint8 (N, S, S), S the side of the model's images. regions: bool (N, S, S), where pixels may change.
    texts: what each image should show. seeds: of the noise.
    """

    pixels: np.ndarray
    regions: np.ndarray
    texts: Sequence[str]
    seeds: Sequence[int]


@dataclass(frozen=True)
class Editing:
    """How much an edit may change.

    Args:
        strength: share of the denoising that is done again, above 0 to 1; 1 keeps nothing of the region.
        invert: begin with the noise that the model would have made this very image from (DDIM inversion), which keeps
            more of the patient; False begins with random noise.
        detail: keep what the autoencoder cannot draw: the change is added to the image, instead of drawing it anew.
    """

    strength: float = 0.7
    invert: bool = True
    detail: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.strength <= 1:
            raise UserError(f"--strength {self.strength:g}: must be above 0 and at most 1; 0.7 is usual")


@runtime_checkable
class Editor(Protocol):
    """A generator that also edits images."""

    @property
    def pixels(self) -> int:
        """Side of its images in pixels."""
        ...

    def edit(
        self, batch: Edits, sampling: Any, editing: Editing, on_step: Callable[[float], object] | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Each image of a batch as its text says, and as the model's codes alone give it, uint8 (S, S), in order.

        Outside of its region an image may differ a little; ``edit`` puts the given pixels back.
        """
        ...


@runtime_checkable
class Attentive(Protocol):
    """A generator that says where it looked each word of a text up."""

    def word_maps(self, text: str, seed: int, sampling: Any) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The image, uint8 (H, W), as ``sample`` makes it; and for each word, lower-case and in order, a map float32
        (h, w): the share in [0, 1] of a place's attention that the word got. UserError for a text without a word."""
        ...


@dataclass(frozen=True)
class Sample:
    """One generated image: uint8 grey (H, W), with what made it. ``index`` counts within its prompt."""

    image: np.ndarray
    prompt: str
    seed: int
    index: int
    provenance: dict[str, str]

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the image as PNG, JPEG or DICOM, by the ending of ``path``, marked as synthetic."""
        kind = images.SUFFIXES.get(Path(path).suffix.lower())
        if kind is None:
            raise UserError(f"{path}: the ending is none of {', '.join(images.SUFFIXES)}; name the file with one")
        images.save_image(self.image, Path(path), format=kind, provenance=self.provenance, overwrite=overwrite)

    def to_pil(self) -> Any:
        """The image as a ``PIL.Image.Image`` of mode L."""
        from PIL import Image

        return Image.fromarray(self.image)

    def _repr_png_(self) -> bytes:
        return images.encode_image(self.image, "png", self.provenance)


def check_seed(seed: int, last: int = 0) -> None:
    """UserError unless ``seed`` to ``seed + last`` can seed torch's generator."""
    if seed < 0 or seed + last >= 2**63:
        raise UserError(f"--seed {seed}: must be from 0 to 2^63 - 1 less the number of images")


def check_text(prompt: object, flag: str = "prompt") -> None:
    """UserError if ``prompt`` is not text with at least one letter."""
    if not isinstance(prompt, str):
        raise UserError(f"{flag} {prompt!r} is not text; write a finding such as 'left pleural effusion'")
    if re.search("[\ud800-\udfff]", prompt):
        raise UserError(f"{flag} {prompt[:80]!a} holds half a character (a lone surrogate); write it again in UTF-8")
    if not prompt.strip():
        raise UserError(f"{flag} is empty; write a finding such as 'left pleural effusion'")
    if not any(character.isalpha() for character in prompt):
        raise UserError(f"{flag} {prompt[:80]!r} has no words; write a finding such as 'left pleural effusion'")


def check_length(reader: Any, text: str, *, flag: str, name: str) -> None:
    """UserError if ``text`` is longer than ``reader``, the ``TextReader`` of the model ``name``, reads."""
    lengths = reader.count([text])
    if lengths.cut:
        raise UserError(
            f"{flag} {text[:80]!r}{'...' if len(text) > 80 else ''} has {lengths.longest} tokens; the text "
            f"encoder of {name} takes at most {reader.limit} (with start and end): shorten it"
        )


def checked_images(pixels: Any, texts: Sequence[str], seeds: Sequence[int]) -> Iterator[np.ndarray]:
    """Each image of what an autoencoder gave, float (N, 1, H, W) in [-1, 1], as uint8 grey (H, W).

    UserError, with its text and seed, where one is NaN.
    """
    for number, (one, seed) in enumerate(zip(texts, seeds, strict=True)):
        try:
            yield images.from_autoencoder(pixels[number : number + 1])[0]
        except FloatingPointError as error:
            raise UserError(
                f"--dtype: the image of {one[:80]!r}, seed {seed}, came out as NaN; pass "
                "--dtype float32, or fetch the model again"
            ) from error


def forget_origins(folder: Path) -> None:
    """Take out of a model folder's JSON files where its parts were loaded from: of no use to others, and private."""
    for config in folder.rglob("*.json"):
        values = json.loads(config.read_text())
        if any([values.pop(key, None) is not None for key in ("_name_or_path", "name_or_path")]):
            config.write_text(json.dumps(values, indent=2) + "\n")


def weights_in(text: str) -> list[str]:
    """What other programs read as the weight of a word, such as "(left:1.5)"; here it is text like any other."""
    return re.findall(r"\([^()]*:\s*-?\d*\.?\d+\s*\)", text)


def roentgen_json(folder: Path) -> dict[str, Any]:
    """What a model folder says beside its weights; empty if it says nothing."""
    file = folder / "roentgen.json"
    if not file.is_file():
        return {}
    advice = "fetch the model again"
    said = read_json(file, advice=advice)
    known = said.get("vocabulary")
    if not (known is None or (isinstance(known, list) and all(isinstance(word, str) for word in known))):
        raise UserError(f"{file}: vocabulary is no list of words; {advice}")
    for key in ("defaults", "text"):
        if not isinstance(said.get(key, {}), dict):
            raise UserError(f"{file}: {key} is no table of settings; {advice}")
    chunks = said.get("text", {}).get("chunks", 1)
    if type(chunks) is not int or chunks < 1:
        raise UserError(f"{file}: text.chunks is {chunks!r}; it must be a whole number from 1")
    return said


def words(text: str) -> list[str]:
    """Lower-case runs of at least two letters: numbers, the s of a genitive and punctuation are not words."""
    return re.findall(r"[^\W\d_]{2,}", text.lower())
