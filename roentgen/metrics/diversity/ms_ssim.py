"""Multi-scale structural similarity among images of one prompt: high means that they are all alike.

Wang, Simoncelli & Bovik 2003 with the usual constants: an 11 x 11 Gaussian window of standard deviation 1.5, K1 = 0.01,
K2 = 0.03, five scales that each halve the size by the mean of 2 x 2 pixels, an odd last row or column left out, and
negative factors cut to 0. What depends on one image alone is computed once an image, not once a pair.

The usual libraries do not agree with each other. pytorch-msssim takes the window inside the image only, as the paper
does (``edges="valid"``, the default here), and pads odd sizes with zeros. torchmetrics mirrors the image at its edges
in the coarsest scale alone (``edges="mirror"``), which changes the mean over real chest X-rays in its second decimal
place, and that of single groups more. So figures of the two are not comparable.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from roentgen.metrics.diversity.grouping import METHOD, Figures, Ints, across_groups, within_prompt
from roentgen.metrics.extractor import Extractor
from roentgen.metrics.image_set import ImageSet, look
from roentgen.metrics.measure import EvaluationInputs, Result, Unavailable, bound, measure
from roentgen.metrics.noticed import COLLAPSE, ONE_KIND, Noticed
from roentgen.metrics.reading import BY_PIXELS, PIXELS, one_seed, pixels, prompt_keys
from roentgen.metrics.statistics import Floats

MIN_SIDE = 176
"""An 11 x 11 window at the fifth scale, a sixteenth of the size (Wang, Simoncelli & Bovik 2003)."""
WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
WINDOW, SIGMA = 11, 1.5
C1, C2 = 0.01**2, 0.03**2
EDGES = ("valid", "mirror")


def pair_ms_ssim(
    images: NDArray[np.uint8], pairs: NDArray[np.integer], *, batch_size: int = 32, edges: str = "valid"
) -> NDArray[np.float64]:
    """MS-SSIM (P,) of ``pairs`` (P, 2), numbers of images in ``images`` uint8 (N, H, W), on grey in [0, 1].

    ``edges``: see the module's text.

    Raises:
        ValueError: other types or shapes, or images smaller than ``MIN_SIDE``.
    """
    if images.dtype != np.uint8 or images.ndim != 3 or np.ndim(pairs) != 2 or np.shape(pairs)[1] != 2:
        raise ValueError(f"expected uint8 (N, H, W) and pairs (P, 2), got {images.dtype} {images.shape}")
    if min(images.shape[1:]) < MIN_SIDE:
        raise ValueError(f"MS-SSIM needs images of at least {MIN_SIDE} pixels, got {images.shape[1:]}")
    if edges not in EDGES:
        raise ValueError(f"edges {edges!r}: choose one of {', '.join(EDGES)}")
    values = [np.empty(0)]
    with torch.inference_mode():
        for start in range(0, len(pairs), batch_size):
            used, numbers = np.unique(pairs[start : start + batch_size], return_inverse=True)
            first, second = torch.from_numpy(numbers.reshape(-1, 2)).T
            x = torch.from_numpy(images[used]).unsqueeze(1).float() / 255
            values.append(_pairs(x, first, second, mirror=edges == "mirror").double().numpy())
    return np.concatenate(values)


def _pairs(x: Tensor, first: Tensor, second: Tensor, *, mirror: bool) -> Tensor:
    """MS-SSIM (P,) of the pairs ``first`` and ``second`` (P,) of images ``x`` float32 (N, 1, H, W) in [0, 1]."""
    result = torch.ones(len(first), dtype=x.dtype)
    for scale, weight in enumerate(WEIGHTS):
        last = scale + 1 == len(WEIGHTS)
        if last and mirror:
            x = F.pad(x, (WINDOW // 2,) * 4, mode="reflect")
        mean = _blur(x)
        square = _blur(x * x)
        variance = square - mean * mean
        mean_a, mean_b = mean[first], mean[second]
        covariance = _blur(x[first] * x[second]) - mean_a * mean_b
        contrast = (2 * covariance + C2) / (variance[first] + variance[second] + C2)
        if last:
            contrast = contrast * (2 * mean_a * mean_b + C1) / (mean_a * mean_a + mean_b * mean_b + C1)
        result = result * contrast.mean((1, 2, 3)).clamp(min=0) ** weight
        x = F.avg_pool2d(x, 2)
    return result


def _blur(x: Tensor) -> Tensor:
    """Gaussian window over (N, 1, H, W) without padding: down the columns, then along the rows."""
    place = torch.arange(WINDOW, dtype=x.dtype) - (WINDOW - 1) / 2
    window = torch.exp(-(place**2) / (2 * SIGMA**2))
    window = window / window.sum()
    return F.conv2d(F.conv2d(x, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))


ACROSS = 400
"""Pairs of different prompts."""
GROUPS = 100
"""Prompts at most for MS-SSIM within a prompt."""


def common_size(inputs: EvaluationInputs) -> int:
    """Side at which generated and real images are compared by pixels: theirs, at most ``PIXELS``."""
    size = min(PIXELS, *(min(look(path)[0]) for path in inputs.synthetic.paths[:8]))
    if size < MIN_SIDE:
        raise Unavailable(f"MS-SSIM needs images of at least {MIN_SIDE} pixels, these have {size}")
    return size


@measure(
    "ms_ssim_within", "MS-SSIM within a prompt", suite="quick", better="as real", output="", judge=BY_PIXELS,
    noticed={"ms_ssim_within": Noticed("MS-SSIM, one kind", 3, 1, (ONE_KIND, COLLAPSE))},
)  # fmt: skip
def measure_ms_ssim_within(inputs: EvaluationInputs, extractor: Extractor) -> Result:
    """MS-SSIM of four images a prompt, beside four real images of other people with the same findings and view."""
    size = common_size(inputs)

    found = within_prompt(inputs, lambda images: _read(images, size), most=GROUPS)
    return found.plus(details={"size": size, "sd_over_prompts": found.details["within"]["sd"]})


@measure(
    "ms_ssim_across", "MS-SSIM across prompts", suite="quick", better="as real", output="", judge=BY_PIXELS,
    noticed={"ms_ssim_across": Noticed("MS-SSIM, all kinds", 3, 1, (COLLAPSE,))},
)  # fmt: skip
def measure_ms_ssim_across(inputs: EvaluationInputs, extractor: Extractor) -> Result:
    """MS-SSIM of pairs of different prompts, beside pairs of real images of different patients."""
    size = common_size(inputs)

    def likeness(images: ImageSet, keys: Sequence[Hashable]) -> dict[str, Any]:
        found = across_groups(_read(images, size), keys, ACROSS, bootstrap=inputs.bootstrap)
        if not found["n"]:
            raise Unavailable("all images have the same prompt")
        return {key: found[key] for key in ("value", "ci", "n")}

    prompts = zip(prompt_keys(inputs.synthetic), inputs.synthetic.table["image"], strict=True)
    return Result(
        **likeness(inputs.synthetic, [prompt or path for prompt, path in prompts]),
        ci_method=METHOD.format(inputs.resamples) + "; n counts pairs",
        ceiling=bound(likeness(inputs.real, inputs.real.patients), "real images of different patients"),
        notes=one_seed(inputs),
        details={"size": size},
    )


def _read(images: ImageSet, size: int) -> Figures:
    """MS-SSIM of pairs of rows; only the images of the pairs are read."""

    def figures(pairs: Ints) -> dict[str, Floats]:
        rows, index = np.unique(pairs, return_inverse=True)
        if not len(rows):
            return {"ms-ssim": np.empty(0)}
        return {"ms-ssim": pair_ms_ssim(pixels(images, rows, size), index.reshape(-1, 2))}

    return figures
