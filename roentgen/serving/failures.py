"""What a client is told when something is wrong: one sentence, in the forms that clients read, and no path of ours."""

from __future__ import annotations

import logging
import re
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from roentgen.errors import UserError
from roentgen.serving.replies import Reply

log = logging.getLogger("roentgen.serving")
TYPES = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error", 503: "server_error"}


class Failure(HTTPException):
    """A reply that is not 200. ``param`` names the field that is wrong, ``code`` is a word for programs."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, retry: int | None = None
    ) -> None:
        headers = {} if retry is None else {"Retry-After": str(retry)}
        if status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        super().__init__(status, message, headers or None)
        self.param = param
        self.code = code


def body_of(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """``error`` as OpenAI's clients read it, ``detail`` as those of the web UI do."""
    kind = TYPES.get(status, "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}, "detail": message}


def reply(failure: HTTPException) -> JSONResponse:
    """The reply that says ``failure``."""
    param, code = getattr(failure, "param", None), getattr(failure, "code", None)
    body = body_of(failure.status_code, str(failure.detail), param, code)
    return Reply(body, failure.status_code, headers=failure.headers)


def of_user(error: UserError) -> Failure:
    """A user's mistake with the sentence that the command line says, flags named as fields."""
    text = " ".join(without_paths(str(error)).split())
    said = re.sub(r"(?<![\w-])--([a-z][a-z-]*)", lambda flag: flag[1].replace("-", "_"), text)
    field = re.match(r"[a-z_]+\b", said)
    return Failure(400, said, param=field[0] if field and field[0] not in ("no", "the") else None)


def without_paths(text: str) -> str:
    """``text`` with absolute paths cut to their last name: where files lie here is nobody else's business."""
    return re.sub(r"(?<![\w:/.])/(?:[\w.+~-]+/)+([\w.+~-]*)", r"\1", text)


def of_validation(error: RequestValidationError) -> Failure:
    """The first thing that is wrong with a request, as one sentence."""
    first = error.errors()[0]
    if first["type"] == "json_invalid":  # its place is a number of characters
        return Failure(400, f"body: is no JSON ({str(first['ctx']['error'])[:300]}); send an object", param="body")
    place = [str(part) for part in first["loc"] if part not in ("body", "query", "path")]
    field = ".".join(place) or "body"
    said = " ".join(str(first["msg"]).removeprefix("Value error, ").split())
    return Failure(400, f"{' '.join(field.split())[:80]}: {said[:300]}", param=field[:80])


def install(app: FastAPI) -> None:
    """Make every failure of ``app`` a reply of this form."""

    @app.exception_handler(UserError)
    async def user_error(request: Request, error: UserError) -> JSONResponse:
        return reply(of_user(error))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        return reply(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return reply(of_validation(error))

    @app.exception_handler(Exception)
    async def internal(request: Request, error: Exception) -> JSONResponse:
        log.error("an error of the program at %s", request.url.path, exc_info=error)
        return reply(Failure(500, "an error of the server's program; its log has more"))
