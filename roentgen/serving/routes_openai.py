"""OpenAI's routes: ``/v1/images/generations``, ``/v1/models``, and the files behind the addresses in replies."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import anyio.to_thread
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from roentgen.errors import UserError
from roentgen.generators.base import Sample
from roentgen.images import encode_image
from roentgen.serving.failures import Failure, body_of, log, of_user
from roentgen.serving.schemas import ImageRequest
from roentgen.serving.service import Asked, Making, Service, unknown_words

QUIET = ("user", "quality", "style", "background", "moderation", "output_compression", "partial_images")
"""Fields of OpenAI's own that say nothing here, or what is always so; they are not worth a warning."""


def router(service: Service) -> APIRouter:
    """The routes, before ``service``."""
    routes = APIRouter(tags=["OpenAI"])

    @routes.post("/v1/images/generations", summary="Images of a text")
    async def generations(request: Request, asked: ImageRequest) -> Response:
        making = await service.begin(request, _asked(asked), "openai")
        if asked.stream:
            return StreamingResponse(_stream(service, making, asked, request), media_type="text/event-stream")
        samples = await service.collect(making, request)
        data = [await _entry(service, sample, asked, request) for sample in samples]
        return JSONResponse({"created": int(time.time()), **_about(making, asked), "data": data})

    @routes.get("/v1/images/files/{name}", summary="An image of a reply, as .png, .jpg or .dcm")
    async def files(name: str) -> Response:
        content, media = await anyio.to_thread.run_sync(lambda: service.gallery.file(name))
        return Response(content, media_type=media, headers={"Cache-Control": "private, max-age=3600"})

    @routes.get("/v1/models", summary="What the server has")
    async def models() -> dict[str, Any]:
        listed = [_card(name, "image") for name in service.catalogue.generators]
        return {"object": "list", "data": listed + [_card(name, "report") for name in service.catalogue.reporters]}

    @routes.get("/v1/models/{name:path}", summary="One of them")
    async def model(name: str) -> dict[str, Any]:
        if name in service.catalogue.reporters:
            return _card(name, "report")
        return _card(service.catalogue.generator(name)[0], "image")

    return routes


def _asked(asked: ImageRequest) -> Asked:
    return Asked(asked.prompt, asked.model, asked.n or 1, asked.seed, asked.settings())


def _card(name: str, kind: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "roentgen", "kind": kind}


def _about(making: Making, asked: ImageRequest) -> dict[str, Any]:
    """What a reply says beside its images; ``warnings`` name what was not as asked."""
    side = f"{making.model.pixels}x{making.model.pixels}"
    warnings = unknown_words(making)
    if asked.size not in (None, "auto", side):
        warnings.append(f"size: {making.name} makes images of {side}")
    warnings += [f"{name}: is ignored" for name in asked.ignored() if name not in QUIET]
    return {
        "background": "opaque",
        "output_format": asked.output_format or "png",
        "size": side,
        "model": making.name,
        "model_hash": making.model.info.hash,
        "settings": making.sampling.provenance(),
        "synthetic": True,
        "warnings": warnings,
    }


async def _entry(service: Service, sample: Sample, asked: ImageRequest, request: Request) -> dict[str, Any]:
    """One image of a reply, by address, as base64 or, where the request does not say, both."""
    entry: dict[str, Any] = {"seed": sample.seed}
    kind = asked.output_format or "png"
    if asked.response_format != "url":
        content = await anyio.to_thread.run_sync(lambda: encode_image(sample.image, kind, sample.provenance))
        entry["b64_json"] = base64.b64encode(content).decode()
    if asked.response_format != "b64_json":
        suffix = "png" if kind == "png" else "jpg"
        entry["url"] = str(request.url_for("files", name=f"{service.gallery.add(sample)}.{suffix}"))
    return entry


async def _stream(service: Service, making: Making, asked: ImageRequest, request: Request) -> AsyncIterator[bytes]:
    """Server-sent events: OpenAI's one of each finished image, and shares of the work where they are asked for."""
    about = {key: value for key, value in _about(making, asked).items() if key != "data"}
    said = -1
    try:
        async with aclosing(service.events(making, None)) as events:
            async for event in events:
                if event.sample is not None:
                    entry = await _entry(service, event.sample, asked, request)
                    fields = {"created_at": int(time.time()), "index": event.index, "quality": "auto", **about, **entry}
                    yield _event("image_generation.completed", fields)
                elif asked.progress and int(100 * making.share) != said:
                    said = int(100 * making.share)
                    yield _event("image_generation.progress", {"share": said / 100})
    except Exception as error:
        failure = of_user(error) if isinstance(error, UserError) else error
        if not isinstance(failure, HTTPException):
            log.error("a stream of images broke off", exc_info=error)
            failure = Failure(500, "an error of the server's program; its log has more")
        yield _event("error", body_of(failure.status_code, str(failure.detail), getattr(failure, "param", None)))
    yield b"data: [DONE]\n\n"


def _event(kind: str, fields: dict[str, Any]) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()
