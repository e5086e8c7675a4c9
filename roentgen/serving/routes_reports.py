"""Routes that read images: CXRReportGen's ``/score`` and ``/v1/report``. Uploads are read in memory, never kept."""

from __future__ import annotations

from functools import partial
from typing import Any

import anyio.to_thread
from fastapi import APIRouter, Request
from fastapi.responses import Response

from roentgen.reports import Context, Report, read_request, write_reply
from roentgen.serving.failures import Failure
from roentgen.serving.forms import form_of, read_form
from roentgen.serving.replies import Reply
from roentgen.serving.schemas import ReportForm
from roentgen.serving.service import Service
from roentgen.serving.uploads import read_upload

ROWS = 16
TEXTS = ("indication", "technique", "comparison", "prior_report")
IMAGES = ("image", "lateral_image", "prior_image")


def router(service: Service) -> APIRouter:
    """The routes, before ``service``."""
    routes = APIRouter(tags=["reports"])
    read = partial(read_upload, pixels=service.options.limits.pixels)

    @routes.post("/score", summary="CXRReportGen's request: reports with boxes")
    async def score(request: Request, payload: dict[str, Any]) -> Response:
        service.catalogue.reporter(None)
        table = payload.get("input_data")
        rows = table.get("data") if isinstance(table, dict) else None
        if isinstance(rows, list) and len(rows) > ROWS:
            raise Failure(400, f"input_data.data: {len(rows)} rows, more than {ROWS}; send fewer at once")
        studies = await anyio.to_thread.run_sync(lambda: read_request(payload, read=read))
        images = [study.image for study in studies]
        _, reports = await service.read(None, images, [study.context for study in studies])
        return Reply(write_reply(reports, images))

    @routes.post("/v1/report", summary="The report of an image, with places", openapi_extra=form_of(ReportForm, IMAGES))
    async def report(request: Request) -> Response:
        service.catalogue.reporter(None)
        form = await read_form(request, files=IMAGES, limits=service.options.limits)
        if "image" not in form.files:
            raise Failure(400, "image: is missing; send the file as the part 'image' of multipart/form-data")
        unknown = sorted(set(form.texts) - {*TEXTS, "model"})
        known: dict[str, Any] = {name: text for name, text in form.texts.items() if name in TEXTS}
        decoded = await anyio.to_thread.run_sync(lambda: {name: read(name, data) for name, data in form.files.items()})
        image = decoded.pop("image")
        name, found = await service.read(form.texts.get("model"), [image], [Context(**(known | decoded))])
        return Reply({"model": name, **_said(found[0], image.shape), "ignored": unknown})

    return routes


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
