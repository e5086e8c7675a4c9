"""The application: all routes behind the guard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles

from roentgen.provenance import __version__
from roentgen.serving import failures, routes_openai, routes_page, routes_reports, routes_webui
from roentgen.serving.catalogue import Catalogue
from roentgen.serving.guard import Guard
from roentgen.serving.keys import Keys
from roentgen.serving.service import Service
from roentgen.serving.settings import Options

PAGE = Path(__file__).parent / "page"
ERROR = {
    "description": "What is wrong, in one sentence.",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["error", "detail"],
                "properties": {
                    "detail": {"type": "string"},
                    "error": {
                        "type": "object",
                        "required": ["message", "type", "param", "code"],
                        "properties": {
                            "message": {"type": "string"},
                            "type": {"type": "string"},
                            "param": {"type": ["string", "null"]},
                            "code": {"type": ["string", "null"]},
                        },
                    },
                },
            }
        }
    },
}
STATUSES: dict[int | str, dict[str, Any]] = {code: ERROR for code in (400, 401, 403, 404, 405, 408, 413, 422, 429, 503)}


def make_app(catalogue: Catalogue, options: Options, keys: Keys) -> FastAPI:
    """The ASGI application; ``app.state.service`` has its batcher, which the owner of the application closes."""
    # Their pages of documentation load scripts from elsewhere; /openapi.json says the same.
    app = FastAPI(
        title="roentgen",
        version=__version__,
        description="Synthetic chest X-rays from text, and reports of images. Research only, not for diagnosis.",
        docs_url=None,
        redoc_url=None,
        responses=STATUSES,
    )
    service = Service(catalogue, options)
    app.state.service = service
    failures.install(app)

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html")

    @app.get("/healthz", tags=["operation"], summary="Whether it answers")
    async def healthz() -> Response:
        state = b'{"status": "stopping"}' if service.batcher.stopping else b'{"status": "ok"}'
        return Response(state, 503 if service.batcher.stopping else 200, media_type="application/json")

    @app.get("/metrics", tags=["operation"], summary="Counters for Prometheus")
    async def metrics() -> Response:
        return Response(service.meters.text(), media_type="text/plain; version=0.0.4")

    for routes in (routes_openai, routes_webui, routes_reports, routes_page):
        app.include_router(routes.router(service))
    app.mount("/page", StaticFiles(directory=PAGE), name="page")
    app.add_middleware(Guard, options=options, keys=keys, meters=service.meters)
    return app
