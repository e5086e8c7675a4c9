"""All measures of an evaluation, in the order of the report: a module that is listed here registers what it holds."""

from __future__ import annotations

from importlib import import_module

from roentgen.metrics.measure import REGISTRY, Measure

MODULES = (
    "distribution.fid",
    "distribution.kernel",
    "distribution.prdc",
    "adherence.auroc",
    "adherence.f1",
    "adherence.calibration",
    "adherence.laterality",
    "adherence.asked_sides",
    "adherence.severity",
    "text.retrieval",
    "text.alignment",
    "diversity.ms_ssim",
    "diversity.feature_distance",
    "diversity.repeats",
    "sharpness",
    "memorisation.nearness",
    "memorisation.authenticity",
    "memorisation.copies",
    "memorisation.planted",
    "text.report_scores",
    "adherence.round_trip",
    "memorisation.reidentification",
)


def _all() -> dict[str, Measure]:
    found: dict[str, Measure] = {}
    for name in MODULES:
        module = import_module(f"roentgen.metrics.{name}")
        found |= {key: entry for key, entry in REGISTRY.items() if entry.compute.__module__ == module.__name__}
    return found


MEASURES = _all()
