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
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response, StreamingResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from roentgen.errors import UserError
from roentgen.generators.base import Editing, Sample
from roentgen.generators.edit import region_of
from roentgen.images import encode_image
from roentgen.serving.failures import Failure, body_of, log, of_user
from roentgen.serving.forms import Form, form_of, read_form
from roentgen.serving.replies import Reply
from roentgen.serving.schemas import EditRequest, ImageRequest
from roentgen.serving.service import Asked, Change, Making, Service, settings_of
from roentgen.serving.uploads import read_mask, read_upload

QUIET = ("user", "quality", "style", "background", "moderation", "output_compression", "partial_images")
"""Fields of OpenAI's own that say nothing here, or what is always so; they are not worth a warning."""


def router(service: Service) -> APIRouter:
    """The routes, before ``service``."""
    routes = APIRouter(tags=["OpenAI"])

    async def answer(making: Making, asked: ImageRequest, request: Request) -> Response:
        if asked.stream:
            return StreamingResponse(_stream(service, making, asked, request), media_type="text/event-stream")
        samples = await service.collect(making, request)
        data = [await _entry(service, sample, asked, request) for sample in samples]
        return Reply({"created": int(time.time()), **_about(making, asked, samples[0]), "data": data})

    @routes.post("/v1/images/generations", summary="Images of a text")
    async def generations(request: Request, asked: ImageRequest) -> Response:
        return await answer(await service.begin(request, _asked(asked), "openai"), asked, request)

    @routes.post(
        "/v1/images/edits", summary="An image, changed as a text says", openapi_extra=form_of(EditRequest, FILES)
    )
    async def edits(request: Request) -> Response:
        form = await read_form(request, files=FILES, limits=service.options.limits)
        try:
            asked = EditRequest.model_validate(form.texts)
        except ValidationError as error:
            raise RequestValidationError(error.errors()) from None
        change = await anyio.to_thread.run_sync(lambda: _change(asked, form, service.options.limits.pixels))
        return await answer(await service.begin_edit(request, _asked(asked), change, "openai"), asked, request)

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


FILES = ("image", "mask")


def _change(asked: EditRequest, form: Form, pixels: int) -> Change:
    """What is to be edited, and where: inside the mask, the box or the lung."""
    if "image" not in form.files:
        raise Failure(400, "image: is missing; send the file as the part 'image'", param="image")
    regions: dict[str, Any] = {
        "lung": asked.lung,
        "box": asked.box and tuple(asked.box),
        "mask": form.files.get("mask"),
    }
    named = [name for name, value in regions.items() if value]
    if len(named) > 1:
        raise Failure(400, f"{named[0]} and {named[1]}: name the region in one way", param=named[0])
    if asked.invert and (asked.n or 1) > 1:
        raise Failure(400, f"n: {asked.n} images would all be equal with inversion; leave invert out", param="n")
    image = read_upload("image", form.files["image"], pixels=pixels)
    region = regions[named[0]] if named else None
    if named == ["mask"]:
        region = read_mask("mask", form.files["mask"], pixels=pixels)
    if named:
        region = region_of(image.shape, region, what=named[0])
    editing = Editing(asked.strength, (asked.n or 1) == 1 if asked.invert is None else asked.invert, asked.detail)
    return Change(image, region, asked.remove, editing)


def _asked(asked: ImageRequest) -> Asked:
    return Asked(asked.prompt, asked.model, asked.n or 1, asked.seed, asked.settings())


def _card(name: str, kind: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "roentgen", "kind": kind}


def _about(making: Making, asked: ImageRequest, sample: Sample) -> dict[str, Any]:
    """What a reply says beside its images, which are as large as ``sample``; ``warnings`` name what is not as asked."""
    size = "{1}x{0}".format(*sample.image.shape)
    warnings = list(making.warnings)
    if asked.size not in (None, "auto", size):
        warnings.append(f"size: {making.name} gives {size} here, not {asked.size}")
    warnings += [f"{name}: is ignored" for name in asked.ignored() if name not in QUIET]
    return {
        "background": "opaque",
        "output_format": asked.output_format or "png",
        "size": size,
        "model": making.name,
        "model_hash": making.model.info.hash,
        "synthetic": True,
        "warnings": warnings,
    }


async def _entry(service: Service, sample: Sample, asked: ImageRequest, request: Request) -> dict[str, Any]:
    """One image of a reply, by address, as base64 or, where the request does not say, both."""
    entry: dict[str, Any] = {"seed": sample.seed, "settings": settings_of(sample)}
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
    said = -1
    try:
        async with aclosing(service.events(making, None)) as events:
            async for event in events:
                if event.sample is not None:
                    entry = await _entry(service, event.sample, asked, request)
                    about = {**_about(making, asked, event.sample), "created_at": int(time.time()), "quality": "auto"}
                    fields = {"index": event.index, **about, **entry}
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
