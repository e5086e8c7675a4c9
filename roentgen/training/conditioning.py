"""Text and labels of training batches, and the reward of a classifier on the model's estimate of the clean latents."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from roentgen.data.manifest import finding_columns
from roentgen.prompts import FINDINGS, Labels, compose, labels_from_row, parse


def balanced_weights(table: pd.DataFrame, power: float) -> Tensor | None:
    """Sampling weight (N,) float64 of each row: frequency ** -power of its rarest listed finding; None for power 0.

    ``power`` 0 leaves the data as it is, 1 draws every finding equally often. Combinations of view and source do not
    count. Rows without any listed finding count as a group of their own. A column ``weight`` of the manifest
    multiplies the result, also for power 0.
    """
    own = table["weight"].to_numpy(float) if "weight" in table else None
    if power == 0:
        return None if own is None else torch.from_numpy(own.copy())
    names = finding_columns(table)
    listed = (table[names] == 1).to_numpy()
    counts = np.maximum(listed.sum(0), 1)
    rarest = np.where(listed, counts, np.inf).min(1)
    none = ~listed.any(1)
    rarest[none] = max(1, none.sum())
    return torch.from_numpy((rarest / len(table)) ** -power * (1.0 if own is None else own))


def batch_texts(
    rows: Sequence[Labels],
    texts: Sequence[str],
    chosen: Sequence[int],
    *,
    seeds: Sequence[int],
    composed: float,
    dropout: float,
) -> list[str]:
    """Texts of a batch: composed afresh from the labels in a share ``composed`` of draws, else as in the manifest.

    A share ``dropout`` becomes the empty text, which is what guidance subtracts (Ho & Salimans 2022, algorithm 1).
    Every sample has a generator of its own, so that its text does not depend on how the batch is split.
    """
    result = []
    for index, seed in zip(chosen, seeds, strict=True):
        rng = random.Random(seed)
        if rng.random() < dropout:
            result.append("")
        elif rng.random() < composed:
            result.append(compose(rows[index], rng))
        else:
            result.append(texts[index])
    return result


def manifest_labels(table: pd.DataFrame) -> list[Labels]:
    """The labels of each row."""
    return [labels_from_row(row) for row in table.to_dict("records")]


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


def no_reward(estimate: Tensor, texts: Sequence[str], rows: Tensor, autocast: Callable[[], Any]) -> Tensor:
    """Zeros (N,): what ``make_reward`` gives where there is no classifier."""
    return estimate.new_zeros(len(estimate))


def make_reward(
    judge: Any,
    preview: LinearPreview,
    labels: Mapping[int, Labels],
    *,
    positive_weight: float,
    device: torch.device,
) -> Callable[[Tensor, Sequence[str], Tensor, Callable[[], Any]], Tensor]:
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
