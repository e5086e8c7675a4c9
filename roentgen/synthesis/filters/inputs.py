"""What the stages of the filter look at: computed once an image, and only what a stage asks for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from roentgen.images import resize_center_crop
from roentgen.metrics.extractor import Extractor
from roentgen.prompts import Labels
from roentgen.synthesis.filters.appearance import Appearance, Floats

Grey = NDArray[np.uint8]


class FilterInputs:
    """What the stages look at in some images: computed when a stage asks for it, once for all that is taken from it.

    ``pixels`` uint8 (N, S, S) are the images as the reference's own were: shorter side resized to S, centre crop.
    """

    def __init__(self, pixels: Grey, extractor: Extractor, appearance: Appearance) -> None:
        self.pixels, self._extractor, self._appearance = pixels, extractor, appearance
        self._whole: tuple[FilterInputs, NDArray[np.int64]] | None = None

    @classmethod
    def of(cls, images: Grey, extractor: Extractor, size: int, appearance: Appearance) -> FilterInputs:
        """Of uint8 images (N, H, W) of any size."""
        return cls(np.stack([resize_center_crop(image, size) for image in images]), extractor, appearance)

    def take(self, rows: NDArray[np.int64]) -> FilterInputs:
        """Of these rows; what one of them asks for is computed for all of this one's."""
        part = FilterInputs(self.pixels[rows], self._extractor, self._appearance)
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
    """One stage: ``scores`` (N,), what of them is kept (N,), and the card's text.

    A score is NaN where a stage has nothing to say, and such an image is kept.
    """

    def scores(self, inputs: FilterInputs, labels: Sequence[Labels]) -> Floats: ...
    def keeps(self, scores: Floats) -> NDArray[np.bool_]: ...
    def describe(self) -> dict[str, Any]: ...
