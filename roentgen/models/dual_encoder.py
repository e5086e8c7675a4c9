"""Dual encoders: images and texts as unit vectors in one space, for image-text alignment and retrieval.

The one that ships reads the shipped classifier's features and the states of ``mini``'s text encoder, both frozen, and
learned two small heads on openchest (``roentgen train alignment``). BioViL-T, BiomedCLIP and any CLIP of transformers
are loaded by name, folder or hub id; their weights are never fetched here, so that a measurement needs no network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from roentgen.errors import UserError
from roentgen.files import explained, file_hash, read_json, user_path
from roentgen.images import resize_center_crop
from roentgen.models import classifier, hub
from roentgen.models.own import fill, read_info
from roentgen.models.published_encoders import BATCH, LOADERS, batches, load_clip
from roentgen.models.text_encoders import TextReader, load_text_encoder, make_reader
from roentgen.prompts import FINDINGS, Labels

SHIPPED = Path(__file__).parent / "alignment"
TEXT_MODEL = "mini"
SAME_AGE = 5.0
"""Years by which a text may miss the age of an image and still be true of it: images do not show more."""


class DualEncoder(Protocol):
    """Images and texts into one space; make one with ``load_dual_encoder``."""

    @property
    def name(self) -> str:
        """What results call it."""

    @property
    def chain(self) -> str:
        """Every step from a grey image to the network's input."""

    @property
    def hash(self) -> str:
        """First 16 hex digits of the SHA-256 of the weights."""

    def images(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Unit vectors (N, D) of grey uint8 images (H, W) of any sizes."""

    def texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors (N, D) of texts."""


# ------------------------------------------------------------------------------------ the one that ships


class AlignmentHeads(nn.Module):
    """Two-layer heads from frozen image and text features into one space, and the temperature of their cosine.

    Features are standardised by ``image_mean`` and ``image_scale``, ``text_mean`` and ``text_scale``, which the recipe
    sets from the training set.
    """

    image_mean: Tensor
    image_scale: Tensor
    text_mean: Tensor
    text_scale: Tensor

    def __init__(self, image_width: int, text_width: int, *, hidden: int, dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        for name, width in (("image", image_width), ("text", text_width)):
            self.register_buffer(f"{name}_mean", torch.zeros(width))
            self.register_buffer(f"{name}_scale", torch.ones(width))
        self.image = _head(image_width, hidden, dim, dropout)
        self.text = _head(text_width, hidden, dim, dropout)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # Radford et al. 2021, section 2.5

    def image_vectors(self, features: Tensor) -> Tensor:
        """Features (N, image_width) -> unit vectors (N, D)."""
        return F.normalize(self.image((features - self.image_mean) / self.image_scale), dim=1)

    def text_vectors(self, features: Tensor) -> Tensor:
        """Features (N, text_width) -> unit vectors (N, D)."""
        return F.normalize(self.text((features - self.text_mean) / self.text_scale), dim=1)


def _head(width: int, hidden: int, dim: int, dropout: float) -> nn.Sequential:
    drop = nn.Dropout(dropout)
    return nn.Sequential(drop, nn.Linear(width, hidden), nn.GELU(), drop, nn.Linear(hidden, dim))


def contrastive_loss(images: Tensor, texts: Tensor, scale: Tensor, true: Tensor) -> Tensor:
    """Symmetric InfoNCE of N pairs of unit vectors (N, D), false negatives removed; a scalar.

    ``true`` (N, N) bool: whether text j (column) also describes image i (row). Such a pair is no negative and leaves
    both sums; the pairs themselves, on the diagonal, stay whatever it says.
    """
    logits = scale * images @ texts.T
    own = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    logits = logits.masked_fill(true & ~own, -math.inf)
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


@dataclass(frozen=True)
class Sayings:
    """What N texts say, or what is known of N images, as arrays: see ``sayings``.

    findings: (N, F) 1 where named. sides: (N, F) 0 unknown, 1 left, 2 right, 3 both. view: (N,) 0 unknown, 1 PA, 2 AP.
    sex: (N,) 0 unknown, 1 M, 2 F. age: (N,) years or NaN.
    """

    findings: NDArray[np.float32]
    sides: NDArray[np.int8]
    view: NDArray[np.int8]
    sex: NDArray[np.int8]
    age: NDArray[np.float32]

    def __getitem__(self, rows: Any) -> Sayings:
        return Sayings(self.findings[rows], self.sides[rows], self.view[rows], self.sex[rows], self.age[rows])


def sayings(labels: Sequence[Labels]) -> Sayings:
    """Labels, of images or parsed from texts, as arrays."""
    names = list(FINDINGS)
    codes = {None: 0, "left": 1, "right": 2, "bilateral": 3}
    return Sayings(
        np.array([[name in one.findings for name in names] for one in labels], dtype=np.float32),
        np.array([[codes[one.sides.get(name)] for name in names] for one in labels], dtype=np.int8),
        np.array([(None, "PA", "AP").index(one.view) for one in labels], dtype=np.int8),
        np.array([(None, "M", "F").index(one.sex) for one in labels], dtype=np.int8),
        np.array([math.nan if one.age is None else one.age for one in labels], dtype=np.float32),
    )


def describes(images: Sayings, texts: Sayings) -> NDArray[np.bool_]:
    """(N, M) whether text j is true of image i: it names no finding that the image lacks and contradicts nothing.

    What one of the two does not know contradicts nothing; ages may differ by ``SAME_AGE``. A text that leaves findings
    out is still true.
    """
    true = (1 - images.findings) @ texts.findings.T == 0
    both = (images.sides > 0).astype(np.float32) @ (texts.sides > 0).astype(np.float32).T
    equal = sum(
        (images.sides == code).astype(np.float32) @ (texts.sides == code).astype(np.float32).T for code in (1, 2, 3)
    )
    true &= both == equal
    for mine, theirs in ((images.view, texts.view), (images.sex, texts.sex)):
        true &= (mine[:, None] == theirs[None]) | (mine[:, None] == 0) | (theirs[None] == 0)
    apart = np.abs(images.age[:, None] - texts.age[None])
    return np.asarray(true & ~(apart > SAME_AGE))


@torch.inference_mode()
def text_features(text_encoder: Any, reader: TextReader, texts: Sequence[str]) -> NDArray[np.float32]:
    """Features (N, 2W) of ``texts``: mean over the states of a text's tokens, and the state of its last one.

    Texts are encoded by length, without padding beyond the longest of a batch; a causal encoder gives the same with it.
    """
    tokens = reader.tokens(texts)
    lengths = tokens.attention.sum(1)
    order = torch.argsort(lengths, stable=True)
    result = np.empty((len(texts), 2 * int(text_encoder.config.hidden_size)), dtype=np.float32)
    for start in range(0, len(texts), 4 * BATCH):
        rows = order[start : start + 4 * BATCH]
        longest = int(lengths[rows].max())
        part = tokens[rows]
        states = text_encoder(part.ids[:, :longest])[0].float()
        inside = part.attention[:, :longest].unsqueeze(2)
        last = states[torch.arange(len(rows)), lengths[rows] - 1]
        mean = (states * inside).sum(1) / inside.sum(1)
        result[rows.numpy()] = torch.cat([mean, last], 1).numpy()
    return result


@dataclass(frozen=True)
class ShippedEncoder:
    """The dual encoder of ``roentgen train alignment``."""

    name: str
    chain: str
    hash: str
    heads: AlignmentHeads
    judge: classifier.Classifier
    text_encoder: Any
    reader: TextReader

    def images(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        return self.from_features(
            np.concatenate(
                [
                    self.judge.features(np.stack([resize_center_crop(image, self.judge.size) for image in part]))
                    for part in batches(images)
                ]
            )
        )

    @torch.inference_mode()
    def from_features(self, features: NDArray[np.floating]) -> NDArray[np.float32]:
        """Unit vectors (N, D) of the shipped classifier's features (N, 2048), where they are at hand."""
        vectors: NDArray[np.float32] = self.heads.image_vectors(torch.from_numpy(np.asarray(features)).float()).numpy()
        return vectors

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        features = torch.from_numpy(text_features(self.text_encoder, self.reader, texts))
        vectors: NDArray[np.float32] = self.heads.text_vectors(features).numpy()
        return vectors


def frozen_parts() -> tuple[classifier.Classifier, Any, TextReader, dict[str, str]]:
    """What the heads stand on: classifier, text encoder, its reader, and the hashes of both weights."""
    folder = hub.NAMED[TEXT_MODEL].folder
    if folder is None:
        raise UserError(f"{TEXT_MODEL}: its weights are missing; reinstall roentgen")
    tokenizer, text_encoder = load_text_encoder(str(folder))
    hashes = {
        "classifier": file_hash(classifier.SHIPPED / "model.safetensors"),
        "text_encoder": file_hash(folder / "text_encoder" / "model.safetensors"),
    }
    return classifier.load_classifier(), text_encoder, make_reader(tokenizer, text_encoder), hashes


def load_shipped(folder: Path | None = None) -> ShippedEncoder:
    """The dual encoder in ``folder``, as ``roentgen train alignment`` wrote it; None is the one that ships.

    Raises:
        UserError: a file is missing or damaged, or the classifier or text encoder is another one than in training.
    """
    folder = SHIPPED if folder is None else folder
    info = read_info(folder, who=f"{folder}: no dual encoder there", recipe="alignment")
    judge, text_encoder, reader, hashes = frozen_parts()
    with explained(f"{folder}: cannot be loaded", "train or copy it again"):
        widths = {key: int(info[key]) for key in ("image_width", "text_width", "hidden", "dim")}
        trained_on = info["hashes"]
        heads = AlignmentHeads(**widths)
    fill(heads, folder, who=str(folder))
    for part, found in hashes.items():
        if trained_on.get(part) != found:
            raise UserError(
                f"{folder}: its heads were trained on another {part.replace('_', ' ')} ({trained_on.get(part)}, here "
                f"{found}); run roentgen train alignment again"
            )
    return ShippedEncoder(
        name="roentgen",
        chain=f"shorter side to {judge.size} px by antialiased bicubic, centre crop, [-1, 1]",
        hash=file_hash(folder / "model.safetensors"),
        heads=heads,
        judge=judge,
        text_encoder=text_encoder,
        reader=reader,
    )


# ------------------------------------------------------------------------------------------ other ones


DUAL_ENCODERS = ("roentgen", *LOADERS)
"""Names of ``--dual-encoder``; "roentgen" is the one that ships."""


def load_dual_encoder(name: str = "roentgen", *, device: str = "cpu") -> DualEncoder:
    """A dual encoder by name.

    Args:
        name: "roentgen" (ships, runs on the CPU), "biovil-t" or "biomedclip" (from the Hugging Face cache, or
            "biovil-t=FOLDER"), a folder that ``roentgen train alignment`` wrote, or a CLIPModel's folder or hub id.
        device: cpu, cuda or mps.

    Raises:
        UserError: unknown name, a package or weights that are not here, a damaged folder.
    """
    kind, equals, path = name.partition("=")
    if kind in LOADERS:
        return LOADERS[kind](name, user_path(path) if equals else None, device=device)
    if name == "roentgen":
        return load_shipped()
    folder = hub.local(name)
    if folder is None and not hub.is_hub_id(name):
        raise UserError(
            f"--dual-encoder {name}: unknown; choose one of {', '.join(DUAL_ENCODERS)}, a CLIPModel's folder, or "
            "a hub id such as owner/name"
        )
    if folder is None or not (folder / "config.json").is_file():
        raise UserError(
            f"--dual-encoder {name}: {'not on this disk' if folder is None else f'no config.json in {folder}'}; where "
            f"there is a network run `hf download OWNER/NAME --local-dir FOLDER`, then pass --dual-encoder FOLDER"
        )
    if "hashes" in read_json(folder / "config.json", advice="train or copy it again"):
        return load_shipped(folder)
    return load_clip(name, folder, device=device)
