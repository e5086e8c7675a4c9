"""One classifier of the augmentation-gain experiment: its network, classic augmentation, and one training run.

Every arm is trained by the same ``Recipe`` and sees the same number of images, so arms differ in their images alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from roentgen.config import Count, Range, Rate, ShareBelowOne
from roentgen.errors import UserError
from roentgen.files import explained
from roentgen.images import to_autoencoder
from roentgen.metrics.adherence.auroc import macro_auroc
from roentgen.metrics.extractor import require_file
from roentgen.metrics.extractors import xrv_net
from roentgen.training.augment import jittered
from roentgen.training.order import Order, batch_generator
from roentgen.training.schedule import set_cosine

NO_FINDING = "No Finding"
NO_WEIGHTS = " or take --weights none"
WARMUP, FLOOR = 0.05, 0.01  # of a phase's images; of the peak rate
EMA_HALFLIFE, EMA_RAMPUP = 0.05, 0.1  # of all images; of the images seen so far (Karras et al. 2024)
START_LOGIT = -2.5  # findings are rare: without it the first steps do nothing but learn that
PREDICT_BATCH = 128


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How every arm is trained."""

    net: Annotated[Literal["small", "densenet121"], "network"] = "small"
    weights: Annotated[str, "none, or for densenet121 imagenet or xrv"] = "none"
    size: Annotated[Count, "side of the image in pixels, a multiple of 32"] = 64
    images: Annotated[Count, "images seen in training by every arm"] = 16_000
    batch_size: Annotated[int, Range(2, 65_536), "images a step; a batch of one has no spread"] = 32
    rate: Annotated[Rate, "peak learning rate"] = 1e-3
    weight_decay: Annotated[float, Range(0, 100), "of AdamW"] = 0.05
    label_smoothing: Annotated[ShareBelowOne, "share by which targets move to 0.5"] = 0.0
    validations: Annotated[Count, "times that val may choose among the averaged weights; 1: the last ones"] = 6


@dataclass(frozen=True)
class Phase:
    """Train on ``rows`` int64 (M,) of the images for ``images`` images seen, in an order of its own."""

    rows: NDArray[np.int64]
    images: int


@dataclass(frozen=True, eq=False)
class Labelled:
    """pixels uint8 (N, S, S); labels float32 (N, F): 1, 0, NaN for unknown."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Trained:
    """The chosen network; images: seen in training; chosen: images seen when it was chosen; history: val macro AUROC
    at each validation, by images seen."""

    net: nn.Module
    images: int
    chosen: int
    history: dict[int, float]


# -------------------------------------------------------------------------------------------------------- networks


class _Block(nn.Module):
    """Basic residual block (He et al. 2016) that halves by averaging, which does not alias (Zhang 2019)."""

    def __init__(self, width_in: int, width: int, *, halve: bool) -> None:
        super().__init__()
        self.halve = halve
        self.body = nn.Sequential(
            nn.Conv2d(width_in, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.skip = nn.Identity() if width_in == width else nn.Conv2d(width_in, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.halve:
            x = F.avg_pool2d(x, 2)
        return F.relu(self.body(x) + self.skip(x))


class SmallNet(nn.Module):
    """Patches of 4 x 4 pixels, then a residual block for each of ``widths``, halving between them; 0.7 M parameters."""

    def __init__(self, findings: int, widths: Sequence[int] = (24, 48, 96, 192)) -> None:
        super().__init__()
        blocks = [_Block(widths[max(i - 1, 0)], width, halve=i > 0) for i, width in enumerate(widths)]
        stem = (nn.Conv2d(1, widths[0], 4, stride=4, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU())
        self.trunk = nn.Sequential(*stem, *blocks)
        self.head = nn.Linear(widths[-1], findings)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, 1, S, S) in [-1, 1] -> logits (N, F)."""
        logits: Tensor = self.head(self.trunk(x).mean((2, 3)))
        return logits


class DenseNet(nn.Module):
    """DenseNet-121's features under a new head; ``prepare`` takes (N, 1, S, S) in [-1, 1] to what they expect."""

    def __init__(self, features: nn.Module, findings: int, prepare: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.trunk = features
        self.head = nn.Linear(1024, findings)
        self.prepare = prepare

    def forward(self, x: Tensor) -> Tensor:
        """x (N, 1, S, S) in [-1, 1] -> logits (N, F)."""
        logits: Tensor = self.head(F.relu(self.trunk(self.prepare(x))).mean((2, 3)))
        return logits


def _imagenet_input(x: Tensor) -> Tensor:
    mean, std = (x.new_tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return ((x + 1) / 2 - mean) / std


def _xrv_input(x: Tensor) -> Tensor:
    """[-1024, 1024] at the 224 pixels that the weights were trained on."""
    if x.shape[-1] != 224:
        x = F.interpolate(x, (224, 224), mode="bilinear", align_corners=False, antialias=x.shape[-1] > 224)
    return x * 1024


def _small(findings: int, weights: str) -> nn.Module:
    return SmallNet(findings)


def _densenet121(findings: int, weights: str) -> nn.Module:
    from torchvision.models import DenseNet121_Weights, densenet121

    if weights == "xrv":
        return DenseNet(_xrv_features(), findings, _xrv_input)
    chosen = DenseNet121_Weights.IMAGENET1K_V1 if weights == "imagenet" else None
    if chosen is not None:
        file = Path(torch.hub.get_dir()) / "checkpoints" / chosen.url.rpartition("/")[2]
        require_file(file, chosen.url, "--weights imagenet: they", NO_WEIGHTS)
    with explained("--weights imagenet: the file cannot be loaded", "fetch it again"):
        return DenseNet(densenet121(weights=chosen).features, findings, _imagenet_input)


def _xrv_features() -> nn.Module:
    net, _ = xrv_net("--weights xrv", missing="they", instead=NO_WEIGHTS)
    features: nn.Module = net.train().requires_grad_(True).features
    return features


NETS: dict[str, Callable[[int, str], nn.Module]] = {"small": _small, "densenet121": _densenet121}
WEIGHTS: dict[str, tuple[str, ...]] = {"small": ("none",), "densenet121": ("none", "imagenet", "xrv")}


def check_recipe(recipe: Recipe) -> None:
    """UserError where settings of the recipe do not fit one another."""
    if recipe.weights not in WEIGHTS[recipe.net]:
        raise UserError(f"--weights {recipe.weights}: --net {recipe.net} takes {', '.join(WEIGHTS[recipe.net])}")
    if recipe.size % 32:
        raise UserError(f"--size {recipe.size}: the side must be a multiple of 32 pixels")
    if recipe.images < 2 * recipe.batch_size * recipe.validations:
        raise UserError(f"--images {recipe.images}: too few for {recipe.validations} --validations; give more")


def build_net(recipe: Recipe, findings: int, *, seed: int) -> nn.Module:
    """The network with initial weights that depend on ``seed`` alone, so that arms of a seed start alike.

    UserError where its weights are not on this disk.
    """
    torch.manual_seed(seed)
    net: Any = NETS[recipe.net](findings, recipe.weights)
    nn.init.constant_(net.head.bias, START_LOGIT)
    return net.to(memory_format=torch.channels_last)


# -------------------------------------------------------------------------------------------------------- training


def classic(x: Tensor, generator: torch.Generator) -> Tensor:
    """Small turns, shifts, zooms, brightness and contrast of (N, 1, S, S) in [-1, 1]; never a flip.

    Up to 7 degrees, 8 % of half the side, 0.88 to 1.08 times, contrast 0.8 to 1.25, brightness 0.2.
    """
    return jittered(x, generator, contrast=(0.8, 1.25))


def masked_loss(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean binary cross-entropy of logits (N, F) over the labels (N, F) that are known; NaN is unknown.

    ``smoothing`` moves targets towards 0.5 by this share. 0 where nothing is known.
    """
    known = ~labels.isnan()
    target = labels.nan_to_num(0.0) * (1 - smoothing) + 0.5 * smoothing
    loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (loss * known).sum() / known.sum().clamp_min(1)


def train(
    net: nn.Module,
    data: Labelled,
    phases: Sequence[Phase],
    *,
    val: Labelled,
    findings: Sequence[str],
    recipe: Recipe,
    seed: int,
    augment: bool = False,
    device: str = "cpu",
) -> Trained:
    """Train ``net`` through ``phases``, one after the other, each with its own warm-up and cosine of the rate.

    The weights are averaged over time; the average is judged on ``val`` at ``recipe.validations`` equally spaced places
    of the last phase, and the best by macro AUROC is returned (the last where val has too few cases to tell).
    Batches depend on (seed, phase, batch) alone. On a CPU the caller decides on threads.
    """
    net = net.to(device)
    average = copy.deepcopy(net).eval().requires_grad_(False)
    # Norms and biases are not decayed: shrinking them is no simpler a function.
    groups = [
        {"params": [p for p in net.parameters() if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in net.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.rate)
    total = sum(phase.images for phase in phases)
    seen, best, history = 0, -1.0, {}
    chosen, chosen_at = average.state_dict(), 0
    for number, phase in enumerate(phases):
        steps = -(-phase.images // recipe.batch_size)
        last = number == len(phases) - 1
        judged = {-(-steps * (k + 1) // recipe.validations) for k in range(recipe.validations)} if last else set()
        order = Order(len(phase.rows), weights=None, groups=None, seed=seed * 1000 + number)
        for step in range(steps):
            rows = phase.rows[order.batch(step, recipe.batch_size).numpy()]
            x = to_autoencoder(data.pixels[rows]).to(device)
            y = torch.from_numpy(data.labels[rows]).to(device)
            if augment:
                x = classic(x, batch_generator(seed, step, 3 + number))
            done = step * recipe.batch_size
            warmup = round(WARMUP * phase.images)
            set_cosine(optimizer, done, peak=recipe.rate, warmup=warmup, total=phase.images, floor=FLOOR)
            net.train()
            with torch.autocast(torch.device(device).type, torch.bfloat16):
                logits = net(x.contiguous(memory_format=torch.channels_last))
            loss = masked_loss(logits.float(), y, recipe.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            seen += recipe.batch_size
            _average(average, net, 1 - 0.5 ** (recipe.batch_size / min(EMA_HALFLIFE * total, EMA_RAMPUP * seen)))
            if step + 1 in judged:
                history[seen] = val_auroc(predict(average, val.pixels, device=device), val.labels, findings)
                if not history[seen] < best:  # NaN: too few cases to choose by, so the last is taken
                    best = history[seen]
                    chosen, chosen_at = copy.deepcopy(average.state_dict()), seen
    average.load_state_dict(chosen)
    return Trained(average, seen, chosen_at, history)


@torch.no_grad()
def _average(average: nn.Module, net: nn.Module, weight: float) -> None:
    """Move parameters, and the running statistics of norms, towards the net's by ``weight``."""
    mine, theirs = average.state_dict(), net.state_dict()
    moved = [name for name, value in mine.items() if value.is_floating_point()]
    torch._foreach_lerp_([mine[name] for name in moved], [theirs[name] for name in moved], weight)


def val_auroc(probabilities: NDArray[np.float32], labels: NDArray[np.float32], findings: Sequence[str]) -> float:
    """Macro AUROC over findings with enough cases, "No Finding" left out; NaN where there is none."""
    once = np.ones((1, len(labels)))
    scores, truth = probabilities.astype(np.float64), labels.astype(np.float64)
    return macro_auroc(scores, truth, findings, once, leave_out=(NO_FINDING,)).value


@torch.inference_mode()
def predict(net: nn.Module, pixels: NDArray[np.uint8], *, device: str = "cpu") -> NDArray[np.float32]:
    """Probabilities (N, F) of uint8 ``pixels`` (N, S, S), by the network in evaluation mode."""
    net.eval()
    parts = []
    for start in range(0, len(pixels), PREDICT_BATCH):
        x = to_autoencoder(pixels[start : start + PREDICT_BATCH]).to(device)
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            logits = net(x.contiguous(memory_format=torch.channels_last))
        parts.append(logits.float().sigmoid().cpu())
    return torch.cat(parts).numpy()
