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


PLACES = {import_module(f"roentgen.metrics.{name}").__name__: place for place, name in enumerate(MODULES)}
MEASURES: dict[str, Measure] = dict(
    sorted(REGISTRY.items(), key=lambda item: PLACES.get(item[1].compute.__module__, len(MODULES)))
)
