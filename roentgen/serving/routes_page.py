"""What the page asks for beside OpenAI's routes: what there is to choose from, and which words made which pixels."""

from __future__ import annotations

import base64
import dataclasses
from typing import Any

import anyio.to_thread
import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response
from numpy.typing import NDArray

from roentgen.generators.base import Attentive, Generator
from roentgen.images import encode_image
from roentgen.prompts import FINDINGS, NO_FINDING
from roentgen.prompts.vocabulary import NORMAL_NOUNS
from roentgen.serving.replies import Reply
from roentgen.serving.schemas import ImageRequest
from roentgen.serving.service import Asked, Service

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
    """The routes, before ``service``."""
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

    @routes.post("/v1/images/words", summary="Where the model looked each word of a prompt up")
    async def words(request: Request, asked: ImageRequest) -> Response:
        wanted = Asked(asked.prompt, asked.model, 1, asked.seed, asked.settings())
        making, maps = await service.begin_words(request, wanted, "words")
        (sample,) = await service.collect(making, request)
        found = await anyio.to_thread.run_sync(lambda: [_word(word, one) for word, one in maps.items()])
        return Reply({"model": making.name, "seed": sample.seed, "words": found})

    return routes


def _word(word: str, shares: NDArray[np.float32]) -> dict[str, Any]:
    """A word with its map as a grey PNG, from black at the lowest share of attention to white at the highest."""
    low, high = float(shares.min()), float(shares.max())
    grey = np.rint((shares - low) / max(high - low, 1e-9) * 255).astype(np.uint8)
    content = encode_image(grey, "png", {"shows": "words"})
    return {"word": word, "low": low, "high": high, "b64_json": base64.b64encode(content).decode()}


def _about(name: str, model: Generator) -> dict[str, Any]:
    sampling: Any = model.sampling()
    facts = {"name": name, "hash": model.info.hash, "pixels": model.pixels, "words": isinstance(model, Attentive)}
    return {**facts, "defaults": dataclasses.asdict(sampling)}
