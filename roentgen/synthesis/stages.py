"""Stages of the quality filter: each gives a score an image and says which scores are kept.

A score is NaN where a stage has nothing to say, and such an image is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from roentgen.images import resize_center_crop
from roentgen.metrics.extractors import Extractor
from roentgen.metrics.laterality import LEFT, RIGHT
from roentgen.metrics.neighbours import VIEWS, standardise, thumbnails
from roentgen.prompts import NO_FINDING, Labels
from roentgen.synthesis.appearance import MEASURES, Appearance

Floats = NDArray[np.float64]
Grey = NDArray[np.uint8]

THUMBNAIL = 32


class Looks:
    """What the stages look at in some images: computed when a stage asks for it, once for all that is taken from it.

    ``pixels`` uint8 (N, S, S) are the images as the reference's own were: shorter side resized to S, centre crop.
    """

    def __init__(self, pixels: Grey, extractor: Extractor, appearance: Appearance) -> None:
        self.pixels, self._extractor, self._appearance = pixels, extractor, appearance
        self._whole: tuple[Looks, NDArray[np.int64]] | None = None

    @classmethod
    def of(cls, images: Grey, extractor: Extractor, size: int, appearance: Appearance) -> Looks:
        """Of uint8 images (N, H, W) of any size."""
        return cls(np.stack([resize_center_crop(image, size) for image in images]), extractor, appearance)

    def take(self, rows: NDArray[np.int64]) -> Looks:
        """Of these rows; what one of them asks for is computed for all of this one's."""
        part = Looks(self.pixels[rows], self._extractor, self._appearance)
        part._whole = self, rows
        return part

    @cached_property
    def outputs(self) -> dict[str, NDArray[np.float32]]:
        """The classifier's features (N, D), probabilities (N, F) and sides (N, F, 2)."""
        if self._whole is not None:
            whole, rows = self._whole
            return {name: values[rows] for name, values in whole.outputs.items()}
        return self._extractor(list(self.pixels))

    @cached_property
    def measures(self) -> dict[str, Floats]:
        """``Appearance.measure``."""
        return self._appearance.measure(self.outputs["features"], self.pixels)

    @cached_property
    def coordinates(self) -> Floats:
        """``Appearance.coordinates``."""
        return self._appearance.coordinates(self.outputs["features"], self.pixels)


class Stage(Protocol):
    """One stage: ``scores`` (N,), what of them is kept (N,), and the card's text."""

    def scores(self, looks: Looks, labels: Sequence[Labels]) -> Floats: ...
    def keeps(self, scores: Floats) -> NDArray[np.bool_]: ...
    def describe(self) -> dict[str, Any]: ...


def logit(probability: NDArray[np.floating]) -> Floats:
    """ln(p / (1 - p)), p kept off 0 and 1 by 1e-6."""
    p = np.clip(np.asarray(probability, np.float64), 1e-6, 1 - 1e-6)
    return np.asarray(np.log(p / (1 - p)))


def leftness(sides: NDArray[np.floating]) -> Floats:
    """How far a finding is on the patient's left: logit of the left less that of the right, (...,) of (..., 2)."""
    return logit(sides[..., LEFT]) - logit(sides[..., RIGHT])


# ------------------------------------------------------------------------------------------------ the prompt


@dataclass(frozen=True)
class Prompt:
    """Does the classifier see what the prompt says?

    The score is the smallest of the margins, in logits, by which the classifier agrees with each statement: a finding
    is there, it is on its side, a normal image has none of the others.

    rules: by finding, as in ``reference.json``: ``judged``; ``threshold`` of the probability; ``most_if_normal``, the
    highest probability in a normal image; ``sides`` with ``judged`` and ``least``, the leftness that a left one must
    have at least and a right one at most with its sign turned.
    findings: columns of the classifier.
    """

    rules: Mapping[str, Mapping[str, Any]]
    findings: Sequence[str]
    sensitivity: float

    def scores(self, looks: Looks, labels: Sequence[Labels]) -> Floats:
        probabilities = logit(looks.outputs["probabilities"])
        left = leftness(looks.outputs["sides"])
        found = [self._margin(p, side, asked) for p, side, asked in zip(probabilities, left, labels, strict=True)]
        return np.array(found)

    def _margin(self, probabilities: Floats, left: Floats, asked: Labels) -> float:
        margins = []
        for name in asked.findings:
            rule = self.rules.get(name)
            if rule is None or not rule["judged"]:
                continue
            column = self.findings.index(name)
            margins.append(probabilities[column] - float(logit(np.array(rule["threshold"]))))
            side = asked.sides.get(name)
            if side in ("left", "right") and rule.get("sides", {}).get("judged"):
                margins.append((left[column] if side == "left" else -left[column]) - rule["sides"]["least"])
        if asked.findings == (NO_FINDING,):
            for name, rule in self.rules.items():
                if rule["judged"] and rule.get("most_if_normal") is not None:
                    most = float(logit(np.array(rule["most_if_normal"])))
                    margins.append(most - probabilities[self.findings.index(name)])
        return min(margins, default=float("nan"))

    def keeps(self, scores: Floats) -> NDArray[np.bool_]:
        return ~(scores < 0)

    def describe(self) -> dict[str, Any]:
        return {
            "measure": "smallest margin in logits by which the classifier agrees with a statement of the prompt",
            "least": 0.0,
            "threshold_from": f"each finding and side is accepted in {self.sensitivity:.0%} of real images that have "
            "it, or more",
            "judged": {name: _words(rule) for name, rule in self.rules.items() if rule["judged"]},
            "not_judged": {name: rule["why"] for name, rule in self.rules.items() if not rule["judged"]},
        }


def _words(rule: Mapping[str, Any]) -> str:
    """What the card says of a finding that is judged."""
    against = " against other sources only" if rule.get("other_sources") else ""
    parts = [f"AUROC {rule['auroc']:.2f}{against}", f"at least {rule['threshold']:.3f}"]
    if rule.get("most_if_normal") is not None:
        parts.append(f"if normal at most {rule['most_if_normal']:.3f}")
    if rule.get("sides", {}).get("judged"):
        parts.append("side too")
    return ", ".join(parts)


# ------------------------------------------------------------------------------------------ view, sex and age


@dataclass(frozen=True)
class Choice:
    """Is the view or the sex the one asked for? The score is the margin to the threshold of the value asked for.

    name: the attribute of ``Labels``. values: the one of a low and of a high prediction. weights: of the coordinates
    and the intercept. rule: ``threshold``, by value, of the prediction.
    """

    name: str
    values: tuple[str, str]
    weights: Floats
    rule: Mapping[str, Any]

    def scores(self, looks: Looks, labels: Sequence[Labels]) -> Floats:
        predicted = predict(self.weights, looks.coordinates)
        low, high = self.values
        asked = [getattr(label, self.name) for label in labels]
        margins = {low: self.rule["threshold"][low] - predicted, high: predicted - self.rule["threshold"][high]}
        return np.array([margins[value][row] if value in margins else np.nan for row, value in enumerate(asked)])

    def keeps(self, scores: Floats) -> NDArray[np.bool_]:
        return ~(scores < 0)

    def describe(self) -> dict[str, Any]:
        return {"measure": f"margin of a linear predictor of the {self.name}", "least": 0.0, **self.rule}


@dataclass(frozen=True)
class Age:
    """Is the age about the one asked for? The score is the difference in years."""

    weights: Floats
    rule: Mapping[str, Any]

    def scores(self, looks: Looks, labels: Sequence[Labels]) -> Floats:
        asked = np.array([np.nan if label.age is None else label.age for label in labels])
        return np.abs(predict(self.weights, looks.coordinates) - asked)

    def keeps(self, scores: Floats) -> NDArray[np.bool_]:
        return ~(scores > self.rule["most_years"])

    def describe(self) -> dict[str, Any]:
        return {"measure": "years between the age asked for and that of a linear predictor", **self.rule}


def predict(weights: Floats, coordinates: Floats) -> Floats:
    """Linear prediction (N,) from coordinates (N, K) by weights (K + 1,), the intercept last."""
    return np.asarray(coordinates @ weights[:-1] + weights[-1])


# --------------------------------------------------------------------------------------------- the appearance


@dataclass(frozen=True)
class Real:
    """Does the image look like a chest radiograph? The score is the largest of the distances over their thresholds."""

    rule: Mapping[str, Any]

    def scores(self, looks: Looks, labels: Sequence[Labels]) -> Floats:
        return np.max([looks.measures[name] / self.rule["most"][name] for name in MEASURES], axis=0)

    def keeps(self, scores: Floats) -> NDArray[np.bool_]:
        return scores <= 1

    def describe(self) -> dict[str, Any]:
        share = self.rule["quantile"]
        return {
            "measure": "largest of four distances from real images, each over its threshold",
            "most": 1.0,
            "thresholds": ", ".join(f"{name} {value:.3f}" for name, value in self.rule["most"].items()),
            "threshold_from": f"at least {share:.1%} of real images that were not used for the fit pass all four",
        }


# -------------------------------------------------------------------------------------------------- copies


@dataclass(frozen=True)
class Copies:
    """Is the image a near-copy of a training image? The score is the distance to the nearest one.

    views: standardised thumbnails (V, 1024) of ``thumbnail_views``. rule: ``least``, the smallest distance that is
    kept, ``quantile`` of unseen real images below it.
    """

    views: NDArray[np.float32] = field(repr=False)
    rule: Mapping[str, Any]

    def scores(self, looks: Looks, labels: Sequence[Labels]) -> Floats:
        return nearest_view(looks.pixels, self.views)

    def keeps(self, scores: Floats) -> NDArray[np.bool_]:
        return scores >= self.rule["least"]

    def describe(self) -> dict[str, Any]:
        return {
            "measure": "distance to the nearest training image in standardised 32 x 32 thumbnails, the training image "
            f"also cropped to {', '.join(f'{keep:.0%}' for keep in VIEWS[1:])} and mirrored",
            "least": round(float(self.rule["least"]), 4),
            "threshold_from": f"{self.rule['quantile']:.1%} of real images of other patients are nearer",
            "training_images": len(self.views) // len(VIEWS),
            "misses": "copies that are shifted or turned by more than about two hundredths of the side",
        }


def thumbnail_views(packed: Grey) -> NDArray[np.float32]:
    """Standardised central crops (V * M, 1024), V = ``len(VIEWS)``, of thumbnails uint8 (M, 1024); view after view."""
    small = packed.reshape(-1, THUMBNAIL, THUMBNAIL).astype(np.float32)
    parts = []
    for keep in VIEWS:
        margin = THUMBNAIL * (1 - keep) / 2
        box = (margin, margin, THUMBNAIL - margin, THUMBNAIL - margin)
        crops = [
            image if keep == 1 else np.asarray(
                Image.fromarray(image).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BICUBIC, box=box)
            )
            for image in small
        ]  # fmt: skip
        parts.append(standardise(np.stack(crops).reshape(len(small), -1)))
    return np.concatenate(parts)


def nearest_view(pixels: Grey, views: NDArray[np.float32], *, block: int = 4096) -> Floats:
    """Distance (N,) of uint8 images (N, H, W), as they are and mirrored, to the nearest of ``views`` (V, 1024)."""
    small = thumbnails(pixels, THUMBNAIL)
    mirrored = small.reshape(-1, THUMBNAIL, THUMBNAIL)[:, :, ::-1].reshape(len(small), -1)
    queries = standardise(np.concatenate([small, mirrored]))
    best = np.full(len(queries), -np.inf)
    number = np.zeros(len(queries), dtype=np.int64)
    norms = (views**2).sum(axis=1)
    for start in range(0, len(views), block):
        # |q - v|^2 = |q|^2 - (2 q.v - |v|^2): the largest of what is in brackets is the nearest.
        like = 2 * queries @ views[start : start + block].T - norms[start : start + block]
        top = like.argmax(axis=1)
        value = like[np.arange(len(queries)), top]
        better = value > best
        number[better], best[better] = start + top[better], value[better]
    gaps = queries.astype(np.float64) - views[number]  # exact where the product has cancelled
    distances = np.sqrt((gaps**2).sum(axis=1))
    return np.asarray(distances.reshape(2, -1).min(axis=0))
