"""A small multi-label chest X-ray classifier that also says on which side a finding is.

The two halves of the image go through one network, the patient's left half mirrored, so that the network looks at
two right-sided lungs. Each half gets a logit a finding; the image-level label supervises their noisy-or (multiple
instance learning: the image is positive if either half is), which is how sides are learned without side labels. A
second, linear head on both halves' features sees what needs both, such as the width of the heart.
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
from torch import Tensor, nn

from roentgen.errors import UserError
from roentgen.files import explained, unit_interval
from roentgen.models.own import fill, read_info

SHIPPED = Path(__file__).parent / "classifier"
# How far each half reaches over the midline, as a share of the width: hearts and spines are rarely centred.
OVERLAP = 1 / 16


class HalvesNet(nn.Module):
    """Residual network (He et al. 2016) over the two halves of an image; see the module's text.

    Args:
        findings: number of outputs.
        blocks: basic blocks a stage; widths are 64, 128, 256, 512.
    """

    def __init__(self, findings: int, *, blocks: tuple[int, ...]) -> None:
        super().__init__()
        from torchvision.models.resnet import BasicBlock, ResNet

        full = ResNet(BasicBlock, [*blocks, *([1] * (4 - len(blocks)))], num_classes=1)
        stages = [full.layer1, full.layer2, full.layer3, full.layer4][: len(blocks)]
        first = nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
        self.trunk = nn.Sequential(first, full.bn1, full.relu, full.maxpool, *stages)
        self.width = 64 * 2 ** (len(blocks) - 1)
        self.side = nn.Conv2d(self.width, findings, 1)
        self.image = nn.Linear(4 * self.width, findings)
        nn.init.constant_(self.side.get_parameter("bias"), -3.0)

    def halves(self, x: Tensor) -> Tensor:
        """x (N, 1, H, W) in [-1, 1] -> maps (2, N, C, h, w): patient's right, patient's left (mirrored)."""
        width = x.shape[-1] // 2 + round(x.shape[-1] * OVERLAP)
        maps: Tensor = self.trunk(torch.cat([x[..., :width], x.flip(-1)[..., :width]]))
        return maps.unflatten(0, (2, -1))

    def pooled(self, maps: Tensor) -> Tensor:
        """Feature vectors (N, 4C): mean and maximum over each half."""
        mean, peak = maps.mean((3, 4)), maps.amax((3, 4))
        return torch.cat([mean[0], mean[1], peak[0], peak[1]], dim=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (N, 1, H, W) in [-1, 1] -> image logits (N, F), side logits (N, F, 2), 0 the patient's right."""
        maps = self.halves(x)
        scores = self.side(maps.flatten(0, 1)).flatten(2)
        # Smooth maximum over places (log-mean-exp, Pinheiro & Collobert 2015, eq. 6).
        sides = (torch.logsumexp(4 * scores, 2) - np.log(scores.shape[2])) / 4
        return self.image(self.pooled(maps)), sides.unflatten(0, (2, -1)).permute(1, 2, 0)


def noisy_or_loss(sides: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihood (N, F) of image labels in [0, 1] under p = 1 - (1 - p_right)(1 - p_left)."""
    log_negative = F.logsigmoid(-sides).sum(-1)  # log(1 - p)
    log_positive = torch.log1p(-log_negative.exp().clamp(max=1 - 1e-6))
    return -(labels * log_positive + (1 - labels) * log_negative)


def finding_loss(
    image: Tensor, sides: Tensor, labels: Tensor, signs: Tensor, *, smoothing: float, mil: float, side: float
) -> Tensor:
    """Loss of image logits (N, F) and side logits (N, F, 2) against labels (N, F) in {0, 1, NaN = no loss}.

    Cross-entropy of the image, ``mil`` times the noisy-or of its halves, and ``side`` times what makes the named half
    outweigh the other, where ``signs`` (N, F) are not 0. ``smoothing`` moves labels towards 0.5.
    """
    known = ~labels.isnan()
    target = labels.nan_to_num(0.0) * (1 - smoothing) + 0.5 * smoothing
    error = F.binary_cross_entropy_with_logits(image, target, reduction="none") + mil * noisy_or_loss(sides, target)
    margin = sides[..., 1] - sides[..., 0]
    apart = (F.softplus(-margin * signs) * signs.abs()).sum() / len(labels)
    return (error * known).sum() / known.sum().clamp(min=1) + side * apart


@dataclass(frozen=True)
class Classifier:
    """A trained classifier; make one with ``load_classifier``."""

    net: HalvesNet
    findings: list[str]
    size: int
    info: dict[str, Any]

    def _input(self, images: NDArray[np.uint8]) -> Tensor:
        if images.dtype != np.uint8 or images.ndim != 3:
            raise ValueError(f"images must be uint8 (N, H, W), not {images.dtype} {images.shape}")
        x = torch.from_numpy(np.ascontiguousarray(images)).float().unsqueeze(1)
        # Area averaging is exact for the whole factors that occur here and never aliases.
        if x.shape[-2:] != (self.size, self.size):
            x = F.interpolate(x, (self.size, self.size), mode="area")
        return x / 127.5 - 1

    @torch.inference_mode()
    def _run(self, images: NDArray[np.uint8], what: str) -> NDArray[np.float32]:
        parts = []
        for start in range(0, len(images), 32):
            x = self._input(np.asarray(images[start : start + 32]))
            if what == "features":
                parts.append(self.net.pooled(self.net.halves(x)))
            else:
                logits, sides = self.net(x)
                parts.append((sides if what == "sides" else logits).sigmoid())
        return torch.cat(parts).float().numpy()

    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Probabilities (N, F) for uint8 images (N, H, W), in the order of ``findings``."""
        return self._run(images, "image")

    def predict_sides(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Probabilities (N, F, 2) for each side; index 0 is the patient's right (the image's left), 1 the left."""
        return self._run(images, "sides")

    def features(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Feature vectors (N, D) before the image head: mean and maximum of both halves."""
        return self._run(images, "features")


def inside_part(patients: Sequence[str], part: str, flag: str) -> NDArray[np.bool_]:
    """Which ``patients`` (N,) are in ``part``, START-END of the unit interval into which they are hashed.

    UserError that begins with ``flag`` where ``part`` is something else.
    """
    try:
        start, end = (float(value) for value in part.split("-"))
    except ValueError:
        raise UserError(f"{flag} {part}: write START-END, for example 0-0.4") from None
    if not 0 <= start < end <= 1:
        raise UserError(f"{flag} {part}: bounds must satisfy 0 <= START < END <= 1")
    return np.array([start <= unit_interval(name) < end for name in patients], dtype=bool)


def load_classifier(path: str | Path | None = None) -> Classifier:
    """Load a classifier folder written by ``roentgen train classifier``; None is the one that ships."""
    folder = Path(path) if path is not None else SHIPPED
    info = read_info(folder, who=f"{folder}: no classifier there", recipe="classifier")
    with explained(f"{folder}: cannot be loaded", "train or copy it again"):
        net = HalvesNet(len(info["findings"]), blocks=tuple(info["blocks"]))
    fill(net, folder, who=str(folder))
    return Classifier(
        net=net.to(memory_format=torch.channels_last),
        findings=list(info["findings"]),
        size=int(info["size"]),
        info=info,
    )
