"""The web UI's routes (``/sdapi/v1``): what its clients send is honoured, or answered with what was used instead."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from typing import Any

import anyio.to_thread
from fastapi import APIRouter, Request
from fastapi.responses import Response
from PIL import Image

from roentgen.errors import UserError
from roentgen.generators.base import Editing, Generator, Sample
from roentgen.generators.edit import region_of
from roentgen.images import encode_image
from roentgen.reports.cxrreportgen import from_base64
from roentgen.serving.batcher import Event, Interrupted
from roentgen.serving.catalogue import settings_of_family
from roentgen.serving.replies import Reply
from roentgen.serving.schemas import SAMPLERS, PngInfoRequest, WebEditRequest, WebRequest
from roentgen.serving.service import Asked, Change, Making, Service, settings_of
from roentgen.serving.uploads import read_mask, read_upload

KIND = "webui"
THEIR_NAMES = {"dpm++": "DPM++ 2M", "unipc": "UniPC", "ddim": "DDIM", "pndm": "PLMS"}
"""How the web UI calls our samplers."""
SCHEDULES = {"uniform": "", "karras": "-karras"}
"""Its names of how steps are spaced, with the ending of our samplers that do so; ``automatic`` is the model's own."""
NEUTRAL: dict[str, Any] = {
    "enable_hr": False, "restore_faces": False, "tiling": False, "subseed_strength": 0, "script_name": None,
    "styles": [], "seed_resize_from_h": 0, "seed_resize_from_w": 0, "alwayson_scripts": {},
}  # fmt: skip
"""Keys that would change the image if they had another value; that is not done here, and the reply says so."""


def router(service: Service) -> APIRouter:
    """The routes, before ``service``."""
    routes = APIRouter(prefix="/sdapi/v1", tags=["web UI"])
    chosen: dict[str, str] = {}  # the model that each holder of a key has set in its options

    def current(request: Request) -> str:
        return chosen.get(_holder(request), next(iter(service.catalogue.generators)))

    _add_images(routes, service, current)
    _add_work(routes, service)
    _add_lists(routes, service, current)

    @routes.get("/options", summary="The model in use")
    async def options(request: Request) -> dict[str, Any]:
        return {"sd_model_checkpoint": _model(service, current(request))["title"]}

    @routes.post("/options", summary="Choose the model in use, for this key")
    async def set_options(request: Request, options: dict[str, Any]) -> dict[str, Any]:
        wanted = options.get("sd_model_checkpoint")
        if wanted is not None:
            chosen[_holder(request)] = service.catalogue.generator(str(wanted))[0]
        return {}

    return routes


def _holder(request: Request) -> str:
    """Whose key the request has."""
    return str(request.scope.get("holder", ""))


def _add_images(routes: APIRouter, service: Service, current: Callable[[Request], str]) -> None:
    """Routes that make images, and the one that reads what an image says of itself."""

    def wanted(request: Request, asked: WebRequest) -> tuple[Asked, dict[str, Any]]:
        wished = (asked.override_settings or {}).get("sd_model_checkpoint")
        name, model = service.catalogue.generator(str(wished) if wished else current(request))
        settings, used = _settings(model, asked)
        seed = None if asked.seed < 0 else asked.seed
        return Asked(asked.prompt, name, asked.batch_size * asked.n_iter, seed, settings), used

    async def answer(request: Request, making: Making, asked: WebRequest, used: dict[str, Any]) -> Reply:
        samples = await service.collect(making, request)
        return Reply(await anyio.to_thread.run_sync(lambda: _reply(making, asked, samples, used)))

    @routes.post("/txt2img", summary="Images of a text")
    async def txt2img(request: Request, asked: WebRequest) -> Response:
        ours, used = wanted(request, asked)
        return await answer(request, await service.begin(request, ours, KIND), asked, used)

    @routes.post("/img2img", summary="An image, changed as a text says")
    async def img2img(request: Request, asked: WebEditRequest) -> Response:
        ours, used = wanted(request, asked)
        change = await anyio.to_thread.run_sync(lambda: _change(asked, service.options.limits.pixels))
        return await answer(request, await service.begin_edit(request, ours, change, KIND), asked, used)

    @routes.post("/png-info", summary="What a PNG says of how it was made")
    async def png_info(asked: PngInfoRequest) -> Response:
        return Reply(await anyio.to_thread.run_sync(lambda: _png_info(asked.image)))


def _add_work(routes: APIRouter, service: Service) -> None:
    """Routes about what is being made."""

    @routes.get("/progress", summary="How far the requests of this key are")
    async def progress(request: Request) -> dict[str, Any]:
        tickets = service.batcher.tickets(_holder(request), KIND)
        images = sum(len(ticket.seeds) for ticket in tickets)
        done = min(sum(ticket.done for ticket in tickets), images)
        state = {
            "skipped": False, "interrupted": False, "stopping_generation": service.batcher.stopping,
            "job": KIND if tickets else "", "job_count": len(tickets), "job_no": 0, "job_timestamp": "0",
            "sampling_step": 0, "sampling_steps": 0,
        }  # fmt: skip
        share = done / images if images else 0.0
        return {"progress": share, "eta_relative": 0.0, "state": state, "current_image": None, "textinfo": None}

    @routes.post("/interrupt", summary="End the requests of this key; they answer with what is finished")
    @routes.post("/skip", summary="The same")
    async def interrupt(request: Request) -> dict[str, Any]:
        for ticket in service.batcher.tickets(_holder(request), KIND):
            service.batcher.cancel(ticket)
            ticket.notify(Event(error=Interrupted()))
        return {}


def _add_lists(routes: APIRouter, service: Service, current: Callable[[Request], str]) -> None:
    """Routes that say what there is to choose from."""

    @routes.get("/samplers", summary="Names of samplers")
    async def samplers(request: Request) -> list[dict[str, Any]]:
        _, model = service.catalogue.generator(current(request))
        names = [name for name in SAMPLERS if _takes(model, name) and _schedule(name) == "uniform"]
        return [{"name": THEIR_NAMES.get(name, name), "aliases": [name], "options": {}} for name in names]

    @routes.get("/schedulers", summary="Names of schedules")
    async def schedulers(request: Request) -> list[dict[str, Any]]:
        _, model = service.catalogue.generator(current(request))
        known = {_schedule(name) for name in SAMPLERS if _takes(model, name)}
        names = ["automatic", *(name for name in SCHEDULES if name in known)]
        return [{"name": name, "label": name.capitalize(), "aliases": None} for name in names]

    @routes.get("/sd-models", summary="Models")
    async def models() -> list[dict[str, Any]]:
        return [_model(service, name) for name in service.catalogue.generators]

    @routes.get("/scripts", summary="There are none")
    async def scripts() -> dict[str, list[str]]:
        return {"txt2img": [], "img2img": []}

    @routes.get("/upscalers", summary="There are none")
    @routes.get("/loras", summary="There are none")
    async def none() -> list[str]:
        return []


def _change(asked: WebEditRequest, pixels: int) -> Change:
    """What is to be edited, and where; drawn anew from random noise, as the web UI does."""
    image = read_upload("init_images", from_base64(asked.init_images[0], "init_images"), pixels=pixels)
    mask = read_mask("mask", from_base64(asked.mask, "mask"), pixels=pixels) if asked.mask else None
    if mask is not None:
        mask = region_of(image.shape, 255 - mask if asked.inpainting_mask_invert else mask, what="mask")
    return Change(image, mask, editing=Editing(asked.denoising_strength, invert=False, detail=False))


def _settings(model: Generator, asked: WebRequest) -> tuple[dict[str, Any], dict[str, Any]]:
    """Our settings of a request, and what is used instead of what was asked for."""
    sampler, used = _sampler(model, asked)
    for key, value in NEUTRAL.items():
        if (asked.model_extra or {}).get(key, value) not in (value, None, {}, []):
            used[key] = value
    wished = {"steps": asked.steps, "guidance": asked.cfg_scale, "sampler": sampler}
    wished["negative_prompt"] = asked.negative_prompt or None
    settings = {key: value for key, value in wished.items() if value is not None}
    known = settings_of_family(model)
    used |= {key: None for key in settings if key not in known}
    return {key: value for key, value in settings.items() if key in known}, used


def _sampler(model: Generator, asked: WebRequest) -> tuple[str | None, dict[str, Any]]:
    """Our sampler of a request's sampler and schedule, and what is used instead of the two.

    Without a schedule it is the model's own where that is of the same sampler. As in the web UI, a name that ends in a
    schedule ("DPM++ 2M Karras") has its way.
    """
    used: dict[str, Any] = {}
    usual = getattr(model.sampling(), "sampler", None)
    name = asked.sampler_name or asked.sampler_index
    sampler = _ours(name) if name else usual
    if not _takes(model, sampler):
        sampler = usual
        if name:
            used["sampler_name"] = usual and _theirs(usual)
    if sampler is None:
        return None, used
    plain = sampler.removesuffix(SCHEDULES["karras"])
    wish = (asked.scheduler or "automatic").lower()
    if sampler == plain or not name or used:
        if wish in SCHEDULES:
            sampler = plain + SCHEDULES[wish]
        elif usual and plain == usual.removesuffix(SCHEDULES["karras"]):
            sampler = usual
        if not _takes(model, sampler):
            sampler = plain
    if wish not in ("automatic", _schedule(sampler)):
        used["scheduler"] = _schedule(sampler)
    return sampler, used


def _ours(name: str) -> str | None:
    """Our name of a sampler of theirs, with the schedule that it may end in; None where there is none."""
    known = {their.lower(): ours for ours, their in THEIR_NAMES.items()} | {name: name for name in SAMPLERS}
    name = name.lower()
    for schedule, ending in SCHEDULES.items():
        plain = known.get(name.removesuffix(f" {schedule}"))
        if name.endswith(f" {schedule}") and plain:
            return plain + ending
    return known.get(name)


def _theirs(sampler: str) -> str:
    plain = sampler.removesuffix(SCHEDULES["karras"])
    return THEIR_NAMES.get(plain, plain)


def _schedule(sampler: str) -> str:
    """Their name of how one of our samplers spaces its steps."""
    return "karras" if sampler.endswith(SCHEDULES["karras"]) else "uniform"


def _takes(model: Generator, sampler: str | None) -> bool:
    try:
        model.sampling(sampler=sampler)
    except UserError:
        return False
    return sampler is not None


def _reply(making: Making, asked: WebRequest, samples: list[Sample], used: dict[str, Any]) -> dict[str, Any]:
    height, width = samples[0].image.shape if samples else (making.model.pixels,) * 2
    used = used | {
        side: made for side, made in (("width", width), ("height", height)) if getattr(asked, side) not in (None, made)
    }
    texts = [infotext(sample.provenance, f"{width}x{height}") for sample in samples]
    images = [base64.b64encode(encode_image(one.image, "png", one.provenance)).decode() for one in samples]
    marks = settings_of(samples[0]) if samples else {}
    info = {
        "prompt": asked.prompt,
        "all_prompts": [asked.prompt] * len(samples),
        "negative_prompt": asked.negative_prompt,
        "seed": making.ticket.seeds[0],
        "all_seeds": [sample.seed for sample in samples],
        "width": width,
        "height": height,
        "sampler_name": _theirs(marks["sampler"]) if "sampler" in marks else None,
        "scheduler": _schedule(marks["sampler"]) if "sampler" in marks else None,
        "cfg_scale": float(marks["guidance"]) if "guidance" in marks else asked.cfg_scale,
        "steps": int(marks["steps"]) if "steps" in marks else asked.steps,
        "batch_size": asked.batch_size,
        "sd_model_name": making.name,
        "sd_model_hash": making.model.info.hash,
        "infotexts": texts,
        "interrupted": len(samples) < len(making.ticket.seeds),
        "used_instead": used,
        "warnings": making.warnings,
        "synthetic": True,
    }
    parameters = {key: value for key, value in asked.model_dump().items() if key not in ("init_images", "mask")}
    return {"images": images if asked.send_images else [], "parameters": parameters | used, "info": json.dumps(info)}


def infotext(marks: dict[str, str], size: str) -> str:
    """The web UI's line of text about an image, from our marks."""
    negative = f"\nNegative prompt: {marks['negative_prompt']}" if marks.get("negative_prompt") else ""
    fields = {
        "Steps": marks.get("steps"),
        "Sampler": _theirs(marks["sampler"]) if "sampler" in marks else None,
        "Schedule type": _schedule(marks["sampler"]).capitalize() if "sampler" in marks else None,
        "CFG scale": marks.get("guidance"),
        "Seed": marks.get("seed"),
        "Size": size,
        "Model hash": marks.get("model_hash"),
        "Model": marks.get("model"),
        "Version": f"{marks.get('software')} {marks.get('version')}",
    }
    return f"{marks.get('prompt')}{negative}\n" + ", ".join(f"{key}: {value}" for key, value in fields.items() if value)


def _model(service: Service, name: str) -> dict[str, Any]:
    digest = service.catalogue.generators[name].info.hash
    about = {"title": f"{name} [{digest}]", "model_name": name, "hash": digest, "sha256": None}
    return {**about, "filename": name, "config": None}


def _png_info(text: str) -> dict[str, Any]:
    data = from_base64(text, "image")
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            items = {key: str(value) for key, value in getattr(image, "text", {}).items()}
            size = "{}x{}".format(*image.size)
    except Exception:  # Pillow raises many kinds
        raise UserError("image: is no PNG that can be read; send one as base64") from None
    if items.get("software") == "roentgen":
        return {"info": infotext(items, size), "items": items, "parameters": items}
    return {"info": items.get("parameters", ""), "items": items, "parameters": {}}
