"""Bodies of multipart/form-data, read in memory: nothing of an upload goes to a temporary file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from pydantic import BaseModel
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from roentgen.serving.failures import Failure
from roentgen.serving.settings import Limits

FIELDS = 48


@dataclass
class Form:
    """The parts of a body: texts, and the bytes of the files that are asked for."""

    texts: dict[str, str] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)


async def read_form(request: Request, *, files: Sequence[str], limits: Limits) -> Form:
    """The body's parts; ``files`` are the names that may be files. Failure where it is no such form."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise Failure(400, f"body: must be multipart/form-data with a file as the part '{files[0]}'")
    parser = MultiPartParser(
        request.headers, request.stream(), max_files=len(files), max_fields=FIELDS, max_part_size=limits.body_mb * 10**6
    )
    parser.spool_max_size = limits.body_mb * 10**6
    try:
        parts = (await parser.parse()).multi_items()
    except ClientDisconnect:
        raise Failure(499, "the client has gone") from None
    except (MultiPartException, ValueError, LookupError):
        raise Failure(400, f"body: cannot be read as multipart/form-data; send a part '{files[0]}'") from None
    form = Form()
    for key, value in parts:
        name = key.removesuffix("[]")  # how OpenAI's client sends lists
        if isinstance(value, UploadFile) and name in files:
            form.files[name] = await value.read()
        elif not isinstance(value, UploadFile):
            form.texts[name] = value
    return form


def form_of(kind: type[BaseModel], files: Sequence[str]) -> dict[str, Any]:
    """The OpenAPI of a form with the fields of ``kind`` and with ``files``, the first of which must be there."""
    schema = kind.model_json_schema()
    named = {name: {"type": "string", "format": "binary"} for name in files}
    required = [files[0], *schema.get("required", ())]
    content = {"type": "object", "required": required, "properties": {**named, **schema["properties"]}}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": content}}}}
