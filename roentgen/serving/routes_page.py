"""What the page asks for beside OpenAI's routes: what there is to choose from."""

from __future__ import annotations

import dataclasses
from typing import Any

from fastapi import APIRouter

from roentgen.generators.base import Generator
from roentgen.prompts import FINDINGS, NO_FINDING
from roentgen.prompts.vocabulary import NORMAL_NOUNS
from roentgen.serving.service import Service

SIDES = ("left", "right")


def suggestions() -> list[str]:
    """Prompts to offer, each finding alone, with a side and with a size, in the words of the training texts."""
    found = list(NORMAL_NOUNS[:1])
    for name, finding in FINDINGS.items():
        if name == NO_FINDING:
            continue
        for noun in finding.synonyms:
            sides = [f"{side} {noun}" for side in SIDES] if finding.can_have_side else []
            sized = [f"{word} {one}" for word in finding.qualifiers for one in (noun, *sides)]
            found += [noun, *sides, *sized]
    return list(dict.fromkeys(found))


def router(service: Service) -> APIRouter:
    """The route, before ``service``."""
    routes = APIRouter(tags=["page"])
    offered = suggestions()

    @routes.get("/v1/choices", summary="Models with their defaults, prompts to suggest, limits")
    async def choices() -> dict[str, Any]:
        return {
            "models": [_about(name, model) for name, model in service.catalogue.generators.items()],
            "reporters": list(service.catalogue.reporters),
            "suggestions": offered,
            "limits": dataclasses.asdict(service.options.limits),
        }

    return routes


def _about(name: str, model: Generator) -> dict[str, Any]:
    sampling: Any = model.sampling()
    return {"name": name, "hash": model.info.hash, "pixels": model.pixels, "defaults": dataclasses.asdict(sampling)}
