"""Kernel distance of generated to real images."""

from __future__ import annotations

from typing import Any

from roentgen.metrics.distribution import kernel
from roentgen.metrics.distribution.pairs import UNSTABLE, Pair, against_real, pair_result
from roentgen.metrics.extractor import Extractor
from roentgen.metrics.measure import EvaluationInputs, Result, measure
from roentgen.metrics.noticed import COLLAPSE, LOOKS, Noticed


def kid(pair: Pair) -> dict[str, Any]:
    """Kernel distance: unbiased, so it can be below 0 and needs fewer images than FID."""
    found = kernel.kernel_distance(
        pair.synthetic,
        pair.real,
        synthetic_groups=pair.synthetic_groups,
        real_groups=pair.real_groups,
        resamples=pair.resamples,
    )
    warnings = []
    if found.subset_size < kernel.SUBSET_SIZE:
        warnings.append(
            f"subsets of {found.subset_size} images, half of the smaller set, instead of {kernel.SUBSET_SIZE}: the "
            "mean is comparable with published values, the spread over subsets is not"
        )
    return pair_result(
        pair,
        found.value,
        found.ci,
        UNSTABLE.format(pair.resamples, " of the estimate from all images"),
        warnings=warnings,
        details={
            "subsets": found.subsets,
            "subset_size": found.subset_size,
            "sd_over_subsets": found.sd,
            "all_images": found.whole,
            "kernel": "(x.y / D + 1)^3",
        },
    )


@measure(
    "kid", "Kernel distance (KID)", suite="quick", better="lower", each_extractor=True,
    noticed={"kid": Noticed("KID x 1000", 1, 1, (*LOOKS, COLLAPSE))},
)  # fmt: skip
def measure_kid(inputs: EvaluationInputs, extractor: Extractor) -> Result:
    return against_real(kid, inputs, extractor, bound="floor")
