"""What the ``labels`` reporter learns from: labels, sides, severities, view and boxes of a manifest as tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from roentgen.data.boxes import Corner
from roentgen.data.manifest import SEVERITY_SUFFIX, labels_in, side_signs
from roentgen.data.sources.openchest import BOXED_AS_OPACITY, OPACITY
from roentgen.models.classifier import finding_loss
from roentgen.prompts import FINDINGS, NO_FINDING
from roentgen.recipes.report_features import Jitter
from roentgen.reports.boxes import Box
from roentgen.reports.finding_net import Outputs

SOURCES_ONLY = ("COVID-19", "Bacterial Pneumonia", "Viral Pneumonia")
"""Diagnoses that no film shows and that each come from one hospital: a network would learn the hospital."""
REGRESSED_FROM = 20
"""Training boxes from which a finding's edges are regressed; with fewer its usual size is used."""


@dataclass(frozen=True)
class Targets:
    """Tensors of N images and F findings.

    labels (N, F) in {0, 1, NaN}; sides (N, F) +1 left, -1 right, 0 unknown or both; severity (N, F) in [0, 1] or NaN;
    ap and normal (N,) in {0, 1, NaN}; boxes: of each image, by column of the finding.
    """

    findings: tuple[str, ...]
    labels: Tensor
    sides: Tensor
    severity: Tensor
    ap: Tensor
    normal: Tensor
    boxes: tuple[Mapping[int, tuple[Box, ...]], ...]

    def regressed(self, rows: Sequence[int]) -> tuple[int, ...]:
        """Columns of the findings with enough boxes in ``rows``."""
        counts = np.zeros(len(self.findings), dtype=int)
        for row in rows:
            for column, boxes in self.boxes[row].items():
                counts[column] += len(boxes)
        return tuple(int(column) for column in np.flatnonzero(counts >= REGRESSED_FROM))


def read_targets(
    table: pd.DataFrame, findings: Sequence[str], boxes: Mapping[str, Sequence[tuple[str, Corner]]]
) -> Targets:
    """Targets of the rows of a manifest.

    An image that is known to have no finding has none of them. Boxes of lung opacities are those of infiltration,
    consolidation and pneumonia as well where the image has these, since they are what readers were asked to box.
    """
    labels = labels_in(table, findings)
    column = table[NO_FINDING] if NO_FINDING in table else pd.Series(np.nan, index=table.index)
    known_normal = column.to_numpy(dtype=np.float32, na_value=np.nan, copy=True)
    places = []
    for row, image in enumerate(table["image"]):
        mine: dict[int, tuple[Box, ...]] = {}
        for label, (x, y, width, height) in boxes.get(image, ()):
            same = [label]
            if label == OPACITY:
                same += [
                    name
                    for name in BOXED_AS_OPACITY
                    if name in findings and labels[row, list(findings).index(name)] == 1
                ]
            for name in same:
                if name in findings:
                    column = list(findings).index(name)
                    labels[row, column] = 1
                    mine[column] = (*mine.get(column, ()), (x, y, x + width, y + height))
        places.append(mine)
    view = table["view"] if "view" in table else pd.Series([""] * len(table))
    ap = np.where(view == "AP", 1.0, np.where(view == "PA", 0.0, np.nan)).astype(np.float32)
    return Targets(
        tuple(findings), torch.from_numpy(labels), torch.from_numpy(side_signs(table, findings)),
        _severities(table, findings), torch.from_numpy(ap), torch.from_numpy(known_normal), tuple(places),
    )  # fmt: skip


def _severities(table: pd.DataFrame, findings: Sequence[str]) -> Tensor:
    values = np.full((len(table), len(findings)), np.nan, dtype=np.float32)
    for column, name in enumerate(findings):
        words = FINDINGS[name].qualifiers
        if name + SEVERITY_SUFFIX in table and len(words) > 1:
            place = {word: rank / (len(words) - 1) for rank, word in enumerate(words)}
            values[:, column] = [place.get(str(said), np.nan) for said in table[name + SEVERITY_SUFFIX]]
    return torch.from_numpy(values)


# ------------------------------------------------------------------------------------------------ losses


def label_loss(out: Outputs, targets: Targets, rows: Tensor, *, smoothing: float, mil: float, side: float) -> Tensor:
    """Binary cross-entropy of image labels, their noisy-or over the halves, known sides, severities, and the view."""
    labels, signs = (values[rows].to(out.image.device) for values in (targets.labels, targets.sides))
    loss = finding_loss(out.image, out.sides, labels, signs, smoothing=smoothing, mil=mil, side=side)
    severity = targets.severity[rows].to(out.image.device)
    measured = ~severity.isnan()
    loss = loss + 0.5 * ((out.severity - severity.nan_to_num(0.0)) ** 2 * measured).sum() / measured.sum().clamp(min=1)
    ap = targets.ap[rows].to(out.image.device)
    view = F.binary_cross_entropy_with_logits(out.view, ap.nan_to_num(0.0), reduction="none")
    return loss + 0.1 * (view * ~ap.isnan()).sum() / len(rows)


def box_loss(
    out: Outputs, targets: Targets, rows: Sequence[int], views: Sequence[Jitter], regressed: Sequence[int]
) -> Tensor:
    """Of boxed findings: cross-entropy of the map, inside and outside alike, and of the edges smooth L1 and 1 - IoU.

    Edges are learned from cells in the middle of a box (its inner 70 % each way) only, as in FCOS's centre sampling.
    """
    height, width = out.maps.shape[-2:]
    ys, xs = (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width
    total, count = out.maps.new_zeros(()), 0
    for place, row in enumerate(rows):
        for column, boxes in targets.boxes[row].items():
            seen = [views[place].box(box) for box in boxes]
            seen = [box for box in seen if box[2] - box[0] > 0.01 and box[3] - box[1] > 0.01]
            if not seen:
                continue
            inside = _cells(seen, ys, xs, share=1.0)
            error = F.binary_cross_entropy_with_logits(
                out.maps[place, column], torch.from_numpy(inside.astype(np.float32)).to(out.maps.device),
                reduction="none",
            )  # fmt: skip
            mask = torch.from_numpy(inside).to(out.maps.device)
            total = total + error[mask].mean() + (error[~mask].mean() if (~mask).any() else 0.0)
            if column in regressed:
                total = total + _edge_loss(out.edges[place], seen, ys, xs)
            count += 1
    return total / max(count, 1)


def _cells(
    boxes: Sequence[Box], ys: NDArray[np.float64], xs: NDArray[np.float64], *, share: float
) -> NDArray[np.bool_]:
    """Cells (h, w) whose centre lies in the inner ``share`` of a box, and the cell of each box's middle."""
    found = np.zeros((len(ys), len(xs)), dtype=bool)
    for x1, y1, x2, y2 in boxes:
        trim_x, trim_y = (1 - share) / 2 * (x2 - x1), (1 - share) / 2 * (y2 - y1)
        rows = (ys >= y1 + trim_y) & (ys <= y2 - trim_y)
        columns = (xs >= x1 + trim_x) & (xs <= x2 - trim_x)
        found |= rows[:, None] & columns[None]
        found[np.abs(ys - (y1 + y2) / 2).argmin(), np.abs(xs - (x1 + x2) / 2).argmin()] = True
    return found


def _edge_loss(edges: Tensor, boxes: Sequence[Box], ys: NDArray[np.float64], xs: NDArray[np.float64]) -> Tensor:
    losses = []
    for box in boxes:
        rows, columns = np.nonzero(_cells([box], ys, xs, share=0.7))
        said = edges[:, rows, columns]
        x, y = torch.from_numpy(xs[columns]).float(), torch.from_numpy(ys[rows]).float()
        true = torch.stack([x - box[0], y - box[1], box[2] - x, box[3] - y]).clamp(min=0.005).to(edges.device)
        shared = torch.minimum(said, true)
        inner = (shared[0] + shared[2]) * (shared[1] + shared[3])
        outer = (said[0] + said[2]) * (said[1] + said[3]) + (true[0] + true[2]) * (true[1] + true[3]) - inner
        losses.append(10 * F.smooth_l1_loss(said, true, beta=0.05) + (1 - inner / outer).mean())
    return torch.stack(losses).mean()
