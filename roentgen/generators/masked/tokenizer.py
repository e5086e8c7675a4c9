"""Image tokens: an autoencoder whose latents are rounded to the nearest of a few hundred codes, group by group.

The autoencoder is any ``AutoencoderKL``, rounded by product quantisation (Jegou et al. 2011, section 2: its channels
are split into groups, each with a codebook made by k-means), or a ``VQModel`` (a VQ-GAN, Esser et al. 2021), which has
learned its one codebook. In a folder::

    codes/config.json          channels of each group, size of each codebook, fingerprint of what gives the latents
    codes/model.safetensors    group.N float32 (K, C): the centres
    vae/ or vq/                the autoencoder, in diffusers' layout
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from roentgen.errors import UserError
from roentgen.files import explained, fingerprint, read_json, sha256, tensors_hash
from roentgen.images import to_autoencoder
from roentgen.models.autoencoder import latents
from roentgen.models.autoencoder.channels import to_grey
from roentgen.models.hub import MINI
from roentgen.models.loading import check_safetensors, from_folder, load_vae

MOST_CODES = 2048  # of a group: whole numbers that the cache's float16 holds exactly
ADVICE = "make it again with train/tokenizer.py"


@dataclass
class ImageTokenizer:
    """An autoencoder, ``AutoencoderKL`` or ``VQModel``, with the ``centres`` (K, C) float32 of each group of channels.

    borrowed: the autoencoder is that of ``mini``, and is not saved with the codes. key: ``latents_key`` of its weights
    as they were stored, where it was loaded in another precision.
    """

    autoencoder: Any = field(repr=False)
    centres: list[Tensor] = field(repr=False)
    borrowed: bool = False
    key: str | None = None

    @property
    def sizes(self) -> tuple[int, ...]:
        """Codes of each group."""
        return tuple(len(table) for table in self.centres)

    @property
    def channels(self) -> tuple[int, ...]:
        """Latent channels of each group."""
        return tuple(table.shape[1] for table in self.centres)

    @property
    def factor(self) -> int:
        """Pixels of a position's side."""
        return latents.downsampling(self.autoencoder)

    @property
    def learned(self) -> bool:
        """Whether it is a VQ-GAN."""
        return type(self.autoencoder).__name__ == "VQModel"

    @property
    def hash(self) -> str:
        """16 hex digits of what decides the codes of an image: the encoder and the centres."""
        tables = tensors_hash((f"group.{n}", table) for n, table in enumerate(self.centres))
        return sha256(f"{self.key or latents_key(self.autoencoder)} {tables}")[:16]

    def to(self, device: torch.device | str) -> ImageTokenizer:
        """The same, moved to ``device``."""
        centres = [table.to(device) for table in self.centres]
        return ImageTokenizer(self.autoencoder.to(device), centres, self.borrowed, self.key)

    # -------------------------------------------------------------------------------- images and codes

    def encode(self, pixels: NDArray[np.uint8]) -> Tensor:
        """uint8 grey (N, H, W) -> codes int64 (N, P, G), P = H / factor * W / factor row by row."""
        return self.quantise(self.latents(pixels))

    @torch.no_grad()
    def latents(self, pixels: NDArray[np.uint8]) -> Tensor:
        """uint8 grey (N, H, W) -> latents float32 (N, C, h, w) before rounding."""
        device = self.autoencoder.device
        if not self.learned:
            return latents.encode(self.autoencoder, pixels, device=device)[:, 0].float()
        x = to_autoencoder(pixels).to(device, self.autoencoder.dtype)
        return self.autoencoder.encode(x.expand(-1, self.autoencoder.config.in_channels, -1, -1)).latents.float()

    def quantise(self, values: Tensor) -> Tensor:
        """Latents (N, C, h, w) -> the nearest codes int64 (N, h * w, G)."""
        grouped = values.flatten(2).transpose(1, 2).float().split(self.channels, dim=-1)
        # Without the square of the latent, which is the same for every code.
        nearest = [
            (table.square().sum(1) - 2 * part @ table.T).argmin(-1)
            for part, table in zip(grouped, self.centres, strict=True)
        ]
        return torch.stack(nearest, dim=-1)

    def dequantise(self, codes: Tensor, side: int) -> Tensor:
        """Codes int64 (N, P, G), -1 where not known, -> latents float32 (N, C, side, P / side); 0 where not known."""
        parts = []
        for group, table in enumerate(self.centres):
            chosen = codes[..., group]
            parts.append(torch.where((chosen >= 0)[..., None], table[chosen.clamp(min=0)], 0.0))
        return torch.cat(parts, dim=-1).transpose(1, 2).unflatten(2, (side, -1))

    def decode(self, codes: Tensor, side: int) -> Tensor:
        """Codes (N, P, G) -> grey float32 (N, 1, H, W), nominally [-1, 1]."""
        return self.decode_latents(self.dequantise(codes, side))

    @torch.no_grad()
    def decode_latents(self, values: Tensor) -> Tensor:
        """Latents (N, C, h, w), rounded or not -> grey float32 (N, 1, H, W), nominally [-1, 1]."""
        values = values.to(self.autoencoder.dtype)
        if self.learned:
            decoded = self.autoencoder.decode(values, force_not_quantize=True).sample
        else:
            decoded = self.autoencoder.decode(values, return_dict=False)[0]
        return to_grey(decoded.float())

    # ---------------------------------------------------------------------------------- loading, saving

    @classmethod
    def load(cls, folder: Path, *, dtype: torch.dtype = torch.float32) -> ImageTokenizer:
        """The tokenizer in ``folder``, on the CPU. UserError where it is damaged, or its parts are of two makings."""
        check_tokenizer(folder)
        said = read_json(folder / "codes" / "config.json", advice=ADVICE)
        borrowed = said.get("autoencoder") == "mini"
        with explained(f"{folder / 'codes'}: cannot be read", ADVICE):
            tables = load_file(folder / "codes" / "model.safetensors")
            centres = [tables[f"group.{number}"].float() for number in range(len(said["channels"]))]
        if [table.shape[1] for table in centres] != said["channels"]:
            raise UserError(f"{folder / 'codes'}: its codebooks are not those of its config.json; {ADVICE}")
        autoencoder = load_autoencoder(MINI if borrowed else folder)
        key = latents_key(autoencoder)
        if key != said["latents"]:
            where = "mini of this version of roentgen" if borrowed else str(folder)
            raise UserError(f"{folder / 'codes'}: made for another autoencoder than that of {where}; {ADVICE}")
        # Not `to`: diffusers prints what it keeps in float32 then, which is nothing.
        return cls(autoencoder.type(dtype), centres, borrowed, key)

    def save(self, folder: Path) -> None:
        """Write ``codes/``, and the autoencoder unless it is borrowed, into ``folder``."""
        own = folder / "codes"
        own.mkdir(parents=True)
        save_file(
            {f"group.{n}": table.float().contiguous().cpu() for n, table in enumerate(self.centres)},
            own / "model.safetensors",
        )
        said = {
            "channels": list(self.channels),
            "codes": list(self.sizes),
            "latents": self.key or latents_key(self.autoencoder),
            "autoencoder": "mini" if self.borrowed else "vq" if self.learned else "vae",
        }
        (own / "config.json").write_text(json.dumps(said, indent=1) + "\n")
        if not self.borrowed:
            self.autoencoder.save_pretrained(folder / ("vq" if self.learned else "vae"))


def latents_key(autoencoder: Any) -> str:
    """16 hex digits of the weights that decide an image's latents; a decoder may be trained on without changing it."""
    parts = [autoencoder.encoder, autoencoder.quant_conv]
    return sha256(" ".join(fingerprint(part) for part in parts if part is not None))[:16]


def check_tokenizer(folder: Path) -> None:
    """UserError where ``folder`` has no whole tokenizer; looks at files only."""
    if not (folder / "codes" / "config.json").is_file():
        raise UserError(f"{folder}: no image tokenizer (no codes/config.json); make one with train/tokenizer.py")
    said = read_json(folder / "codes" / "config.json", advice=ADVICE)
    if not isinstance(said.get("channels"), list) or not isinstance(said.get("latents"), str):
        raise UserError(f"{folder / 'codes' / 'config.json'}: not that of an image tokenizer; {ADVICE}")
    weights = folder / "codes" / "model.safetensors"
    if not weights.is_file():
        raise UserError(f"{weights} is missing; {ADVICE}")
    check_safetensors(weights)


def load_autoencoder(folder: Path) -> Any:
    """The ``AutoencoderKL`` of ``folder/vae`` or ``folder``, or the ``VQModel`` of ``folder/vq``, frozen."""
    if not (folder / "vq").is_dir():
        return load_vae(folder / "vae" if (folder / "vae").is_dir() else folder)
    from diffusers import VQModel

    model = from_folder(VQModel, folder / "vq", f"{folder / 'vq'}: no VQModel can be loaded from there", "")
    return model.requires_grad_(False)


def use(codes: Tensor, size: int) -> tuple[float, float]:
    """Share of a codebook of ``size`` codes that occurs in ``codes``, and perplexity: so many codes in equal use
    would say as much (van den Oord et al. 2017)."""
    share = torch.bincount(codes.flatten(), minlength=size).double() / codes.numel()
    entropy = -torch.special.xlogy(share, share).sum()
    return float((share > 0).double().mean()), float(entropy.exp())
