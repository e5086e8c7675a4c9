"""Reinforcement of a captioner: by clinical agreement of its texts with the references, or by ratings of reports.

Self-critical training (Rennie et al. 2017, arXiv 1612.00563): the reward of a sampled text less that of the greedy one
weighs the sample's likelihood, so that nothing has to be estimated beside the model. What holds it back is the
Kullback-Leibler divergence to the model that training started from, and the watched share of distinct texts: a reward
alone ends in lists of findings that nobody would write.

Ratings become pairs, of which the better report is made likelier than the worse one, each against the model at the
start: direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290, equation 7). Its trainer in trl reads no
image models of this kind, and the loss is one line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from roentgen.config import require
from roentgen.data.manifest import absolute_images
from roentgen.data.tables import read_table
from roentgen.prompts import NO_FINDING, parse
from roentgen.recipes.report_words import IGNORED, text_logits, tokens_of
from roentgen.reports.captioners import Captioner

SIDE_WEIGHT = 0.5  # of a finding's side against the finding


def agreement(text: str, reference: str) -> float:
    """F1 in [0, 1] of findings and sides that are read off both texts, negation counted; 1 where both have none."""
    mine, theirs = _said(text), _said(reference)
    if not mine and not theirs:
        return 1.0
    shared = sum(weight for item, weight in mine.items() if item in theirs)
    return 2 * shared / (sum(mine.values()) + sum(theirs.values()))


def _said(text: str) -> dict[str, float]:
    labels = parse(text)
    found = {name: 1.0 for name in labels.findings if name != NO_FINDING}
    return found | {f"{name} {side}": SIDE_WEIGHT for name, side in labels.sides.items()}


@dataclass(frozen=True)
class Critic:
    """``start``: the model as it was; ``kl``: weight of the divergence to it; ``longest``: tokens of a text."""

    captioner: Captioner
    start: Any
    kl: float
    longest: int

    def loss(self, model: Any, pixels: Tensor, references: Sequence[str], generator: torch.Generator) -> Tensor:
        """Of one batch: - (reward of the sample - of the greedy text) * log-likelihood + kl * divergence, a mean."""
        training = self.captioner.model.training
        self.captioner.model.eval()
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
        sampled, greedy = (self._write(pixels, sample) for sample in (True, False))
        self.captioner.model.train(training)
        better = [agreement(a, r) - agreement(b, r) for a, b, r in zip(sampled, greedy, references, strict=True)]
        ids, mask = tokens_of(self.captioner, sampled, self.longest, Path("sampled texts"), cut=True)
        logits, target = text_logits(self.captioner, model, pixels, ids, mask)
        with torch.no_grad():
            before, _ = text_logits(self.captioner, self.start, pixels, ids, mask)
        known = (target != IGNORED).float()
        said = logits.log_softmax(-1)
        likely = said.gather(-1, target.clamp(min=0)[..., None])[..., 0]
        count = known.sum(1).clamp(min=1)
        weight = torch.tensor(better, device=pixels.device)
        apart = F.kl_div(before.log_softmax(-1), said, log_target=True, reduction="none").sum(-1)
        return (-(weight * (likely * known).sum(1) / count) + self.kl * (apart * known).sum(1) / count).mean()

    @torch.no_grad()
    def _write(self, pixels: Tensor, sample: bool) -> list[str]:
        ids = self.captioner.model.generate(
            pixel_values=pixels, do_sample=sample, num_beams=1, max_new_tokens=self.longest - 1
        )
        texts: list[str] = self.captioner.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [text.strip() for text in texts]


# ------------------------------------------------------------------------------------------- preferences


def read_preferences(path: Path) -> pd.DataFrame:
    """Pairs of reports of one image with different ratings: ``image``, ``text`` (the better), ``worse``.

    Raises:
        UserError: the table or an image is missing, a rating is no number, a report is empty, or no two differ.
    """
    what = f"--preferences {path}"
    fix = "write a row a rated report"
    table = read_table(path, required=("image", "report", "rating"), name=what, lines=True, fix=fix)
    table["image"] = absolute_images(table["image"], path.parent)
    rating = pd.to_numeric(table["rating"], errors="coerce")
    for line in table.index[rating.isna()]:
        require(False, f"{what}, line {line}: the rating {table.at[line, 'rating']!r} is no number")
    for line in table.index[table["report"] == ""]:
        require(False, f"{what}, line {line}: the report is empty")
    for line in table.index[[not Path(image).is_file() for image in table["image"]]]:
        require(False, f"{what}, line {line}: the image {table.at[line, 'image']} does not exist")
    rows = []
    for image, group in table.assign(rating=rating).groupby("image", sort=False):
        ranked = group.sort_values("rating", ascending=False, kind="stable").to_dict("records")
        for place, better in enumerate(ranked):
            rows += [
                {"image": image, "text": better["report"], "worse": other["report"]}
                for other in ranked[place + 1 :]
                if other["rating"] < better["rating"]
            ]
    require(bool(rows), f"{what}: no image has two reports with different ratings, so nothing is preferred")
    return pd.DataFrame(rows)


def preference_loss(
    captioner: Captioner,
    model: Any,
    start: Any,
    *,
    pixels: Tensor,
    better: tuple[Tensor, Tensor],
    worse: tuple[Tensor, Tensor],
    beta: float,
) -> Tensor:
    """DPO's loss of a batch; ``better`` and ``worse`` are tokens and mask of the reports."""
    gains = []
    for ids, mask in (better, worse):
        now = log_likelihood(captioner, model, pixels, ids, mask)
        with torch.no_grad():
            before = log_likelihood(captioner, start, pixels, ids, mask)
        gains.append(now - before)
    return -F.logsigmoid(beta * (gains[0] - gains[1])).mean()


def log_likelihood(captioner: Captioner, model: Any, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """Log-likelihood (N,) of texts, summed over their tokens."""
    logits, target = text_logits(captioner, model, pixels, ids, mask)
    likely = logits.log_softmax(-1).gather(-1, target.clamp(min=0)[..., None])[..., 0]
    return (likely * (target != IGNORED)).sum(1)
