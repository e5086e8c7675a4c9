"""Routes that read images: CXRReportGen's ``/score`` and ``/v1/report``. Uploads are read in memory, never kept."""

from __future__ import annotations

from functools import partial
from typing import Any

import anyio.to_thread
from fastapi import APIRouter, Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from roentgen.reports import Context, Report, read_request, write_reply
from roentgen.serving.failures import Failure
from roentgen.serving.service import Service
from roentgen.serving.uploads import read_upload

ROWS = 16
TEXTS = ("indication", "technique", "comparison", "prior_report")
IMAGES = ("image", "lateral_image", "prior_image")
FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "properties": {
                        **{name: {"type": "string", "format": "binary"} for name in IMAGES},
                        **{name: {"type": "string"} for name in (*TEXTS, "model")},
                    },
                }
            }
        },
    }
}


def router(service: Service) -> APIRouter:
    """The routes, before ``service``."""
    routes = APIRouter(tags=["reports"])
    read = partial(read_upload, pixels=service.options.limits.pixels)

    @routes.post("/score", summary="CXRReportGen's request: reports with boxes")
    async def score(request: Request, payload: dict[str, Any]) -> list[dict[str, str]]:
        service.catalogue.reporter(None)
        table = payload.get("input_data")
        rows = table.get("data") if isinstance(table, dict) else None
        if isinstance(rows, list) and len(rows) > ROWS:
            raise Failure(400, f"input_data.data: {len(rows)} rows, more than {ROWS}; send fewer at once")
        studies = await anyio.to_thread.run_sync(lambda: read_request(payload, read=read))
        images = [study.image for study in studies]
        _, reports = await service.read(None, images, [study.context for study in studies])
        return write_reply(reports, images)

    @routes.post("/v1/report", summary="The report of one image, with places", openapi_extra=FORM)
    async def report(request: Request) -> dict[str, Any]:
        service.catalogue.reporter(None)
        form = await _form(request, most=service.options.limits.body_mb * 10**6)
        unknown = sorted(set(form) - {*IMAGES, *TEXTS, "model"})
        pixels = {name: form[name] for name in IMAGES if isinstance(form.get(name), bytes)}
        if "image" not in pixels:
            raise Failure(400, "image: is missing; send the file as the part 'image' of multipart/form-data")
        texts = {name: form[name] for name in TEXTS if isinstance(form.get(name), str)}
        decoded = await anyio.to_thread.run_sync(lambda: {name: read(name, data) for name, data in pixels.items()})
        image = decoded.pop("image")
        model = form.get("model")
        name, found = await service.read(
            model if isinstance(model, str) else None, [image], [Context(**texts, **decoded)]
        )
        return {"model": name, **_said(found[0], image.shape), "ignored": unknown}

    return routes


async def _form(request: Request, *, most: int) -> dict[str, Any]:
    """Texts and files' bytes of a multipart body, which stays in memory."""
    kind = request.headers.get("content-type", "")
    if not kind.startswith("multipart/form-data"):
        raise Failure(400, "body: must be multipart/form-data with a part 'image'")
    parser = MultiPartParser(request.headers, request.stream(), max_files=len(IMAGES), max_fields=16)
    parser.spool_max_size = most  # nothing goes to a temporary file
    try:
        form = await parser.parse()
    except ClientDisconnect:
        raise Failure(499, "the client has gone") from None
    except (MultiPartException, ValueError, KeyError, UnicodeError):
        raise Failure(400, "body: cannot be read as multipart/form-data; send a part 'image'") from None
    return {key: await value.read() if isinstance(value, UploadFile) else value for key, value in form.multi_items()}


def _said(report: Report, shape: tuple[int, int]) -> dict[str, Any]:
    """A report as JSON; ``grounding`` has one entry a box, in fractions of the whole image."""
    facts = report.as_dict()
    grounding = [
        {"finding": finding["label"], "text": finding["text"], "side": finding["side"], "box": box}
        | {"probability": finding["probability"]}
        for finding in facts["findings"]
        for box in finding["boxes"]
    ]
    about = {"image": {"height": shape[0], "width": shape[1]}, "research_only": True}
    return {"report": facts.pop("text"), **facts, "grounding": grounding, **about}
