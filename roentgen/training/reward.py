"""The reward of a frozen classifier on the model's estimate of the clean latents."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from roentgen.data.images import ImageSource
from roentgen.images import to_autoencoder
from roentgen.models.classifier import load_classifier
from roentgen.prompts import FINDINGS, Labels, parse
from roentgen.training.batches import Batch, BatchMaker

# Of estimated latents before the scaling factor, texts, rows and the networks' autocast: a loss (n,).
Reward = Callable[[Tensor, Sequence[str], Tensor, Callable[[], Any]], Tensor]


def reward_targets(texts: Sequence[str], rows: Sequence[Labels], findings: Sequence[str]) -> tuple[Tensor, ...]:
    """What a classifier should see if the image follows its text.

    Returns targets and masks: findings (N, F) twice, sides (N, F, 2) twice (right, left). A finding that the image
    has and the text does not mention is masked, as is everything for the empty text.
    """
    count, width = len(texts), len(findings)
    target, mask = torch.zeros(count, width), torch.zeros(count, width)
    sides, side_mask = torch.zeros(count, width, 2), torch.zeros(count, width, 2)
    for i, (text, row) in enumerate(zip(texts, rows, strict=True)):
        if not text:
            continue
        said = parse(text)
        for j, name in enumerate(findings):
            if name in said.findings:
                target[i, j] = mask[i, j] = 1
                side = said.sides.get(name)
                if side is not None and FINDINGS[name].can_have_side:
                    sides[i, j] = torch.tensor([float(side != "left"), float(side != "right")])
                    side_mask[i, j] = 1
            elif name not in row.findings:
                mask[i, j] = 1
    return target, mask, sides, side_mask


class LinearPreview(nn.Module):
    """Latents (N, C, h, w) to small grey images (N, 1, h * k, w * k) in about [-1, 1], each cell by one matrix.

    A decoder's first approximation, at no cost: it lets a classifier of images read unfinished latents.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False)

    def forward(self, latents: Tensor) -> Tensor:
        cells = F.conv2d(latents, self.weight, self.bias)
        return F.pixel_shuffle(cells, round(self.weight.shape[0] ** 0.5))


def fit_preview(latents: Tensor, images: Tensor) -> LinearPreview:
    """Least squares from latents (N, C, h, w) to images (N, 1, h * k, w * k) in [-1, 1]."""
    n, c, h, w = latents.shape
    k = images.shape[-1] // w
    x = torch.cat([latents.permute(0, 2, 3, 1).reshape(-1, c), latents.new_ones(n * h * w, 1)], 1).double()
    y = F.pixel_unshuffle(images, k).permute(0, 2, 3, 1).reshape(-1, k * k).double()
    solution = torch.linalg.lstsq(x, y).solution.T.float()
    return LinearPreview(solution[:, :c, None, None].contiguous(), solution[:, c].contiguous())


def preview_fit(small: ImageSource, latents: Callable[[Tensor], Tensor]) -> LinearPreview:
    """A linear map from latents (before the scaling factor) to the small images of ``small``, fitted on 500 rows.

    ``latents`` gives the mean latents (N, C, h, w) float32 of rows int64 (N,), on the CPU.
    """
    count = len(small.table)
    rows = torch.from_numpy(np.arange(0, count, max(1, count // 500)))
    pixels = to_autoencoder(small.read_many(rows.numpy()))
    return fit_preview(latents(rows), pixels)


def reward_loss(
    net: Any,
    estimate: Tensor,
    target: Tensor,
    mask: Tensor,
    sides: Tensor,
    side_mask: Tensor,
    *,
    positive_weight: float,
) -> Tensor:
    """Negative log-likelihood (N,) of what the text says under a frozen classifier ``net`` of the estimate.

    Training-time counterpart of classifier guidance (Dhariwal & Nichol 2021, section 4): its gradient moves the
    model's estimate, rather than each sample, towards what the text says. Findings that are said count
    ``positive_weight`` times as much as those that are not.
    """
    logits, side_logits = net(estimate)
    weight = mask * (1 + (positive_weight - 1) * target)
    image = (F.binary_cross_entropy_with_logits(logits, target, reduction="none") * weight).sum(1)
    # Which side, not how much of it: only the difference of the two halves is asked for, except where both are said.
    both = side_mask[..., 0] * (sides.sum(-1) == 2)
    one = side_mask[..., 0] * (sides.sum(-1) == 1)
    margin = (side_logits[..., 1] - side_logits[..., 0]) * (sides[..., 1] - sides[..., 0])
    side = (F.softplus(-margin) * one + F.softplus(-side_logits).mean(-1) * both).sum(1)
    return image / weight.sum(1).clamp(min=1) + positive_weight / 4 * side


def make_reward(
    judge: Any,
    preview: LinearPreview,
    labels: Mapping[int, Labels],
    *,
    positive_weight: float,
    device: torch.device,
) -> Reward:
    """``reward_loss`` as a function of estimated latents (before the scaling factor), texts and rows.

    ``judge`` is a ``Classifier``; ``labels`` are those of each row.
    """
    net = judge.net.requires_grad_(False).to(device)
    preview.to(device)

    def reward(estimate: Tensor, texts: Sequence[str], rows: Tensor, autocast: Callable[[], Any]) -> Tensor:
        said = reward_targets(texts, [labels[row] for row in rows.tolist()], judge.findings)
        shown = preview(estimate)
        with autocast():
            return reward_loss(net, shown, *(x.to(device) for x in said), positive_weight=positive_weight).float()

    return reward


def reward_of(
    folder: Path,
    open_small: Callable[..., ImageSource],
    maker: BatchMaker,
    mean_latents: Callable[[Batch], Tensor],
    *,
    positive_weight: float,
    device: torch.device,
) -> Reward:
    """The reward of the classifier in ``folder`` for a model whose batches ``maker`` makes.

    The classifier reads small grey images, ``open_small(size=...)``: a linear map shows it the latents.
    ``mean_latents`` are those of a batch, before the scaling factor.
    """
    judge = load_classifier(folder)

    @torch.no_grad()
    def latents(rows: Tensor) -> Tensor:
        batch = maker.fixed(rows, {}).to(device)
        return torch.cat([mean_latents(part).cpu() for part in batch.parts(len(rows))])

    preview = preview_fit(open_small(size=judge.size), latents)
    said = dict(zip(maker.rows.tolist(), maker.labels, strict=True))
    return make_reward(judge, preview, said, positive_weight=positive_weight, device=device)
