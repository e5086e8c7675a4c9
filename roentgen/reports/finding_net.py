"""The network of the ``labels`` reporter: what is in a chest X-ray, on which side, where, and how severe.

One convolutional network reads the whole image, squashed to a square, so that nothing is cut off and fractions of the
network's square are fractions of the image. A map for each finding says where it is. Its two halves give the sides, by
multiple instance learning (a finding is there if either half has it), and its peaks give the boxes, whose edges are
regressed from the cell as in FCOS (Tian et al. 2019, arXiv 1904.01355) where boxes were there to learn from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from roentgen.errors import UserError
from roentgen.images import to_autoencoder
from roentgen.models.efficientnet_lite import EfficientNetLite0
from roentgen.models.own import CONFIG, fill, read_info

WIDTH = 128
STRIDE = 16
"""Pixels of the network's square that a cell of the maps is wide."""
VIEWS = ("PA", "AP")
KIND = "roentgen labels reporter"
_SHARPNESS = 4.0  # of the smooth maximum over places


@dataclass(frozen=True)
class Outputs:
    """What the network says of N images with F findings; logits but for ``edges`` and ``severity``.

    image (N, F), sides (N, F, 2) with 0 the patient's right, maps (N, F, h, w), edges (N, 4, h, w) as distances from
    the cell's centre to left, top, right and bottom in fractions of the image, view (N,) of AP against PA, severity
    (N, F) from 0 (least) to 1, deep (N, D) the pooled features.
    """

    image: Tensor
    sides: Tensor
    maps: Tensor
    edges: Tensor
    view: Tensor
    severity: Tensor
    deep: Tensor


class FindingNet(nn.Module):
    """See the module's text. ``findings``: how many."""

    def __init__(self, findings: int, *, dropout: float = 0.3) -> None:
        super().__init__()
        self.features = EfficientNetLite0()
        self.near = nn.Conv2d(112, WIDTH, 1)
        self.deep = nn.Conv2d(320, WIDTH, 1)
        self.mix = nn.Conv2d(WIDTH + 2, WIDTH, 3, padding=1)
        self.map = nn.Conv2d(WIDTH, findings, 1)
        self.edge = nn.Conv2d(WIDTH, 4, 1)
        self.dropout = nn.Dropout(dropout)
        self.image = nn.Linear(2 * 320 + 2 * WIDTH, findings)
        self.view = nn.Linear(2 * 320, 1)
        self.severity = nn.Linear(2 * 320, findings)
        nn.init.constant_(self.map.bias, -4.0)  # type: ignore[arg-type]  # a finding is rare in a cell
        nn.init.constant_(self.image.bias, -3.0)
        nn.init.constant_(self.edge.bias, -2.0)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Outputs:
        """x float (N, 1, S, S) in [-1, 1]."""
        return self.after_trunk(self.features.trunk(x))

    def after_trunk(self, near: Tensor) -> Outputs:
        """The rest, from what ``features.trunk`` gave (N, 112, h, w)."""
        far = self.features.tail(near)
        pooled = torch.cat([far.mean((2, 3)), far.amax((2, 3))], 1)
        mixed = self.near(near) + F.interpolate(self.deep(far), near.shape[-2:], mode="bilinear", align_corners=False)
        mixed = torch.cat([F.relu(mixed), _coordinates(near)], 1)
        mixed = F.relu(self.mix(mixed))
        maps = self.map(mixed)
        seen = self.dropout(torch.cat([pooled, mixed.mean((2, 3)), mixed.amax((2, 3))], 1))
        return Outputs(
            image=self.image(seen),
            sides=sides_of(maps),
            maps=maps,
            edges=F.softplus(self.edge(mixed)),
            view=self.view(self.dropout(pooled)).squeeze(1),
            severity=self.severity(self.dropout(pooled)).sigmoid(),
            deep=pooled,
        )


def _coordinates(like: Tensor) -> Tensor:
    """Columns and rows in [-1, 1] as channels (N, 2, h, w): where a cell lies says much in a chest."""
    height, width = like.shape[-2:]
    rows = torch.linspace(-1, 1, height, device=like.device, dtype=like.dtype)[:, None].expand(height, width)
    columns = torch.linspace(-1, 1, width, device=like.device, dtype=like.dtype)[None].expand(height, width)
    return torch.stack([columns, rows]).expand(len(like), 2, height, width)


def sides_of(maps: Tensor) -> Tensor:
    """Logits (N, F, 2) of the halves of ``maps`` (N, F, h, w): log-mean-exp (Pinheiro & Collobert 2015, eq. 6).

    Index 0 is the patient's right, which is the image's left half.
    """
    middle = maps.shape[-1] // 2
    halves = [maps[..., :middle], maps[..., maps.shape[-1] - middle :]]
    peaks = [
        (torch.logsumexp(_SHARPNESS * half.flatten(2), 2) - float(np.log(half[0, 0].numel()))) / _SHARPNESS
        for half in halves
    ]
    return torch.stack(peaks, -1)


def squash(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """uint8 [H, W] -> uint8 [size, size], antialiased bicubic; the aspect is not kept, so nothing is cut off."""
    if image.dtype != np.uint8 or image.ndim != 2 or 0 in image.shape:
        raise ValueError(f"expected a uint8 [H, W] image, got {image.dtype} {image.shape}")
    if image.shape == (size, size):
        return image
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))


@dataclass(frozen=True)
class Predictions:
    """``Outputs`` of N images as probabilities and numbers: image (N, F), sides (N, F, 2), maps (N, F, h, w), edges
    (N, 4, h, w), ap (N,), severity (N, F), deep (N, D), all float32."""

    image: NDArray[np.float32]
    sides: NDArray[np.float32]
    maps: NDArray[np.float32]
    edges: NDArray[np.float32]
    ap: NDArray[np.float32]
    severity: NDArray[np.float32]
    deep: NDArray[np.float32]


@torch.inference_mode()
def predict(net: FindingNet, images: NDArray[np.uint8], *, device: str = "cpu", batch_size: int = 16) -> Predictions:
    """What the network says of uint8 (N, S, S); see ``squash``."""
    parts = []
    for start in range(0, len(images), batch_size):
        x = to_autoencoder(images[start : start + batch_size]).to(device)
        parts.append(probabilities(net(x.contiguous(memory_format=torch.channels_last))))
    return join(parts)


def probabilities(outputs: Outputs) -> Predictions:
    """Logits to probabilities, tensors to arrays."""

    def array(x: Tensor) -> NDArray[np.float32]:
        return x.float().cpu().numpy()

    return Predictions(
        image=array(outputs.image.sigmoid()),
        sides=array(outputs.sides.sigmoid()),
        maps=array(outputs.maps.sigmoid()),
        edges=array(outputs.edges),
        ap=array(outputs.view.sigmoid()),
        severity=array(outputs.severity),
        deep=array(outputs.deep),
    )


def join(parts: Sequence[Predictions]) -> Predictions:
    """Predictions of several batches as one."""
    return Predictions(
        **{name: np.concatenate([getattr(p, name) for p in parts]) for name in Predictions.__dataclass_fields__}
    )


def load_net(folder: Path, *, flag: str = "--model", fold: bool = True) -> tuple[FindingNet, dict[str, Any]]:
    """What ``save_network`` wrote of a network of ``KIND``, in evaluation mode; UserError for another folder.

    ``fold``: for reading images only, see ``EfficientNetLite0.fold``; such a network is not to be saved or trained.
    """
    info = read_info(folder, who=f"{flag} {folder}", recipe="report --arch labels")
    if info.get("kind") != KIND or not isinstance(info.get("findings"), list):
        raise UserError(f"{flag} {folder}: {CONFIG} is not that of a labels reporter; give another folder")
    net = FindingNet(len(info["findings"]))
    fill(net, folder, who=f"{flag} {folder}")
    if fold:
        net.features.fold()
    return net.to(memory_format=torch.channels_last), info  # type: ignore[call-overload]
