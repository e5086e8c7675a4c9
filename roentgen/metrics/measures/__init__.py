"""The measures of a suite: each turns a case (sets, features, labels) into one result with its floor and ceiling.

This is where the metric families meet: computations are theirs, here it is decided what is compared with what. A
measure that lacks what it needs raises ``Unavailable`` with the reason, which the report lists.
"""

from __future__ import annotations

from roentgen.metrics.measure import VALIDATION, Case, Measure, Unavailable, by_pixels, match_to_real
from roentgen.metrics.measures.findings import (
    SHOWN,
    measure_auroc,
    measure_calibration,
    measure_f1,
    measure_laterality,
    shown,
)
from roentgen.metrics.measures.memory import (
    by_siamese,
    by_views,
    measure_authenticity,
    measure_near_copies,
    measure_near_duplicates,
    measure_nearest,
    measure_planted_copies,
    measure_reidentification,
)
from roentgen.metrics.measures.sharpness import by_spectrum, measure_sharpness
from roentgen.metrics.measures.spread import measure_distribution, measure_fid_by_finding
from roentgen.metrics.measures.text import (
    by_describer,
    by_dual_encoder,
    measure_alignment,
    measure_retrieval,
    measure_text_retrieval,
    measure_text_scores,
)
from roentgen.metrics.measures.variety import (
    measure_feature_within,
    measure_ms_ssim_across,
    measure_ms_ssim_within,
    measure_repeats,
)

__all__ = ["MEASURES", "SHOWN", "VALIDATION", "Case", "Measure", "Unavailable", "match_to_real", "shown"]

MEASURES: dict[str, Measure] = {
    "fid": Measure(
        "Fréchet distance (FID)", "quick", "lower", "", measure_distribution("fid", "floor"), each_extractor=True
    ),
    "kid": Measure(
        "Kernel distance (KID)", "quick", "lower", "", measure_distribution("kid", "floor"), each_extractor=True
    ),
    "precision": Measure(
        "Precision", "quick", "higher", "share", measure_distribution("precision", "ceiling"), each_extractor=True
    ),
    "recall": Measure(
        "Recall", "quick", "higher", "share", measure_distribution("recall", "ceiling"), each_extractor=True
    ),
    "density": Measure(
        "Density", "quick", "near 1", "", measure_distribution("density", "ceiling"), each_extractor=True
    ),
    "coverage": Measure(
        "Coverage", "quick", "higher", "share", measure_distribution("coverage", "ceiling"), each_extractor=True
    ),
    "fd_infinity": Measure(
        "FD-infinity", "standard", "lower", "", measure_distribution("fd_infinity", "floor"), each_extractor=True
    ),
    "fid_by_finding": Measure(
        "Fréchet distance by finding, mean", "standard", "lower", "", measure_fid_by_finding, each_extractor=True
    ),
    "auroc": Measure(
        "AUROC, macro over findings",
        "quick",
        "higher",
        "",
        measure_auroc,
        output="probabilities",
        each_extractor=True,
    ),
    "f1": Measure(
        "F1 at calibrated thresholds, macro",
        "standard",
        "higher",
        "",
        measure_f1,
        reads=(VALIDATION,),
        output="probabilities",
        each_extractor=True,
    ),
    "calibration": Measure(
        "Calibration error (ECE), macro",
        "quick",
        "as real",
        "",
        measure_calibration,
        output="probabilities",
        each_extractor=True,
    ),
    "laterality": Measure("Left and right told apart", "quick", "higher", "share", measure_laterality, output="sides"),
    "retrieval": Measure(
        "Image retrieval, precision", "standard", "higher", "share", measure_retrieval, each_extractor=True
    ),
    "text_retrieval": Measure(
        "Text retrieval, precision",
        "standard",
        "higher",
        "share",
        measure_text_retrieval,
        output="",
        judge=by_dual_encoder,
    ),
    "alignment": Measure(
        "Image-text alignment, cosine",
        "standard",
        "higher",
        "cosine",
        measure_alignment,
        output="",
        judge=by_dual_encoder,
    ),
    "ms_ssim_within": Measure(
        "MS-SSIM within a prompt", "quick", "as real", "", measure_ms_ssim_within, output="", judge=by_pixels
    ),
    "ms_ssim_across": Measure(
        "MS-SSIM across prompts", "quick", "as real", "", measure_ms_ssim_across, output="", judge=by_pixels
    ),
    "feature_within": Measure(
        "Feature distance within a prompt", "standard", "as real", "", measure_feature_within, each_extractor=True
    ),
    "repeats": Measure("Repeats among generated images", "standard", "lower", "share", measure_repeats),
    "sharpness": Measure("Sharpness,", "quick", "as real", "share", measure_sharpness, output="", judge=by_spectrum),
    "nearest": Measure(
        "Nearer to training than to held-out",
        "quick",
        "near 0.5",
        "share",
        measure_nearest,
        each_extractor=True,
        reads=("train",),
    ),
    "authenticity": Measure(
        "Authentic (AuthPct)",
        "standard",
        "higher",
        "share",
        measure_authenticity,
        each_extractor=True,
        reads=("train",),
    ),
    "near_duplicates": Measure(
        "Near-duplicates of training images",
        "standard",
        "lower",
        "share",
        measure_near_duplicates,
        each_extractor=True,
        reads=("train",),
    ),
    "near_copies": Measure(
        "Near-copies of training images",
        "standard",
        "lower",
        "share",
        measure_near_copies,
        output="",
        judge=by_views,
        reads=("train",),
    ),
    "planted_copies": Measure(
        "Planted copies found,",
        "standard",
        "higher",
        "share",
        measure_planted_copies,
        reads=("train",),
    ),
    "text_scores": Measure(
        "Described by an image-to-text model,", "full", "higher", "", measure_text_scores, output="", judge=by_describer
    ),
    "reidentification": Measure(
        "Re-identification, AUROC",
        "full",
        "near floor",
        "",
        measure_reidentification,
        reads=("train",),
        judge=by_siamese,
    ),
}
"""The measures in the order of the report."""
