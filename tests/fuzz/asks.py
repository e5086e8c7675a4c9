"""Requests to `roentgen serve`, straight to its application: every route, with odd bodies, headers, paths, methods."""

from __future__ import annotations

import asyncio
import base64
import copy
import functools
import io
import json
import logging
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

from . import damage
from .limits import Outcome
from .values import WORDS
from .world import TEXTS, World

JSON, FORM = b"application/json", b"multipart/form-data; boundary=xyz"


@dataclass(frozen=True)
class Ask:
    """A request as the server's own server hands it on. parts: names and bytes of a form; leaves: the client goes."""

    method: str
    path: bytes
    body: bytes = b""
    json: Any = None
    parts: dict[str, bytes] = field(default_factory=dict)
    query: bytes = b""
    headers: dict[bytes, bytes] = field(default_factory=dict)
    chunks: int = 1
    leaves: bool = False


def call(world: World, ask: Ask) -> int:
    """Send it; the body of a good reply goes to stdout, the sentence of a bad one to stderr with exit code 2."""
    status, _, body = asyncio.run(_send(application(world.root), ask))
    if status in (499,) or (ask.leaves and not status):
        print("request: error: the client has gone", file=sys.stderr)
        return 2
    if status < 400:
        sys.stdout.buffer.write(body)
        return 0
    if status >= 500 and status != 503:
        return status
    said = json.loads(body) if body else {"error": {"message": ""}}
    message = said["error"]["message"]
    assert message and message == said["detail"] and str(world.root) not in message, said
    print(f"request: error: {message}", file=sys.stderr)
    return 2


async def _send(app: Any, ask: Ask) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    body, kind = ask.body, b""
    if ask.json is not None:
        body, kind = json.dumps(ask.json).encode("ascii"), JSON
    elif ask.parts:
        body, kind = _form(ask.parts), FORM
    headers = {b"host": b"localhost", **({b"content-type": kind} if kind else {}), **ask.headers}
    step = max(1, -(-len(body) // ask.chunks))
    pieces = [body[start : start + step] for start in range(0, len(body), step)] or [b""]
    if ask.leaves:
        pieces = pieces[: len(pieces) // 2]
    sent: list[Any] = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    if not ask.leaves:
        sent[-1]["more_body"] = False
    found: dict[str, Any] = {"status": 0, "headers": []}
    parts: list[bytes] = []

    async def receive() -> Any:
        if sent:
            return sent.pop(0)
        if ask.leaves:
            return {"type": "http.disconnect"}
        await asyncio.sleep(3600)  # a client that waits for its answer

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            found.update(message)
        elif message["type"] == "http.response.body":
            parts.append(message.get("body", b""))

    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1",
        "method": ask.method, "scheme": "http", "path": _unquoted(ask.path), "raw_path": ask.path,
        "query_string": ask.query, "root_path": "", "headers": list(headers.items()),
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80), "state": {},
    }  # fmt: skip
    await app(scope, receive, send)
    return int(found["status"]), list(found["headers"]), b"".join(parts)


def _unquoted(path: bytes) -> str:
    from urllib.parse import unquote

    return unquote(path.decode("ascii", "ignore"))  # as uvicorn does it


def _form(parts: dict[str, bytes]) -> bytes:
    lines = []
    for name, content in parts.items():
        file = f'; filename="{name}.png"' if name.endswith("image") or name == "mask" else ""
        said = f'--xyz\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'
        lines.append(said.encode("utf-8", "replace") + content + b"\r\n")
    return b"".join(lines) + b"--xyz--\r\n"


@functools.cache
def application(root: Path) -> Any:
    """The application around the tiny models and the reporter that ships."""
    from roentgen.generators.generate import load_model
    from roentgen.reports import load_reporter
    from roentgen.serving.app import make_app
    from roentgen.serving.catalogue import Catalogue
    from roentgen.serving.keys import Keys
    from roentgen.serving.settings import Limits, Options

    world = World(root)
    logging.getLogger("roentgen.serving").setLevel(logging.CRITICAL)
    models = {name: load_model(str(world.root / name), device="cpu") for name in ("tiny", "masked")}
    limits = Limits(images=4, prompt=1000, pixels=50_000, seconds=15, body_mb=2, queue=16)
    options = Options(limits, batch_size=2, gather=0.0, hosts=frozenset({"localhost"}))
    return make_app(Catalogue(models, {"mini-report": load_reporter("mini-report", device="cpu")}), options, Keys({}))


# ------------------------------------------------------------------------------------- sound requests


def sound(world: World) -> list[Ask]:
    """A request to each address that takes a body, and those that take none."""
    image = (world.set / "i0.png").read_bytes()
    coded = base64.b64encode(image).decode()
    one: dict[str, Any] = {"prompt": TEXTS[0], "steps": 1, "n": 1, "seed": 3, "model": "tiny", "size": "auto"}
    web: dict[str, Any] = {"prompt": TEXTS[0], "steps": 1, "seed": 3, "cfg_scale": 2, "sampler_name": "DDIM"}
    row = {"columns": ["frontal_image", "indication"], "index": [0], "data": [[coded, "Cough."]]}
    edit = {"image": image, "prompt": TEXTS[0].encode(), "steps": b"2"}
    return [
        Ask("POST", b"/v1/images/generations", json=one),
        Ask("POST", b"/v1/images/generations", json=one | {"stream": True, "progress": True, "response_format": "url"}),
        Ask("POST", b"/v1/images/generations", json={"prompt": TEXTS[1], "model": "masked", "steps": 1, "n": 2}),
        Ask("POST", b"/v1/images/edits", parts=edit | {"lung": b"left"}),
        Ask("POST", b"/v1/images/edits", parts=edit | {"box": b"0.1,0.2,0.6,0.9", "strength": b"0.9"}),
        Ask("POST", b"/v1/images/edits", parts=edit | {"mask": image}),
        Ask("POST", b"/sdapi/v1/txt2img", json=web | {"batch_size": 1, "n_iter": 1, "override_settings": {}}),
        Ask("POST", b"/sdapi/v1/img2img", json=web | {"init_images": [coded], "denoising_strength": 0.7, "mask": None}),
        Ask("POST", b"/sdapi/v1/png-info", json={"image": coded}),
        Ask("POST", b"/sdapi/v1/options", json={"sd_model_checkpoint": "tiny"}),
        Ask("POST", b"/sdapi/v1/interrupt"),
        Ask("POST", b"/score", json={"input_data": row, "params": {}}),
        Ask("POST", b"/v1/report", parts={"image": image, "indication": b"Cough."}),
        *(Ask("GET", path) for path in GETS),
    ]


GETS = (
    *(b"/", b"/healthz", b"/metrics", b"/openapi.json", b"/v1/models", b"/v1/models/tiny", b"/v1/choices"),
    *(b"/v1/images/files/a.png", b"/sdapi/v1/progress", b"/sdapi/v1/samplers", b"/sdapi/v1/schedulers"),
    *(b"/sdapi/v1/sd-models", b"/sdapi/v1/options", b"/sdapi/v1/scripts", b"/sdapi/v1/upscalers", b"/sdapi/v1/loras"),
    *(b"/page/page.js", b"/page/../app.py"),
)


# --------------------------------------------------------------------------------------- odd requests


def odd(world: World, rng: Random) -> tuple[Ask, str]:
    """A request with something odd in it, and what."""
    asks = sound(world)
    ask = rng.choice(asks[:13] if rng.random() < 0.85 else asks[13:])
    said = []
    for _ in range(rng.choice([0, 1, 1, 1, 1, 2, 2, 3])):
        change = rng.choice([_value] * 12 + [_upload] * 4 + [_raw, _header, _path, _query, _method, _chunks])
        ask = change(ask, rng)
        said.append(change.__name__.strip("_"))
    return ask, f"{ask.method} {ask.path.decode('latin-1')}: {', '.join(said) or 'nothing odd'}"


def _value(ask: Ask, rng: Random) -> Ask:
    if ask.parts:
        parts = dict(ask.parts)
        name = rng.choice([*parts, "n", "seed", "steps", "strength", "box", "lung", "mask", "size", "guidance", "x"])
        parts[name] = _text(rng)
        if rng.random() < 0.15:
            parts.pop(rng.choice([*parts]))
        return replace(ask, parts=parts)
    if ask.json is None:
        return _query(ask, rng)
    body = copy.deepcopy(ask.json)
    place, key = rng.choice(damage._places(body) or [(None, None)])
    if place is None or rng.random() < 0.03:
        return replace(ask, json=rng.choice([[], "x", 3, {}, [body]]))
    if rng.random() < 0.15:
        del place[key]
    elif rng.random() < 0.4 and isinstance(place, dict):
        place[rng.choice(FIELDS)] = rng.choice([*damage.ODD, *NUMBERS, *(word for word in WORDS)])
    else:
        place[key] = rng.choice([*damage.ODD, *NUMBERS])
    return replace(ask, json=body)


FIELDS = (
    *(
        "n",
        "seed",
        "steps",
        "guidance",
        "sampler",
        "negative_prompt",
        "size",
        "response_format",
        "output_format",
        "model",
    ),
    *("stream", "progress", "guided_share", "temperature", "batch_size", "n_iter", "width", "height", "scheduler", "x"),
    *("send_images", "override_settings", "denoising_strength", "inpainting_mask_invert", "mask", "init_images", ""),
)
NUMBERS = (0, 1, 2, 3, 17, 1001, 2**31, 2**63, 2**64, -(2**63) - 1, 0.5, 1e-300, 1e300, "0", "1", "5.0", "1e5", "²")


def _text(rng: Random) -> bytes:
    text = rng.choice([*WORDS, *map(str, NUMBERS), "0.1,0.2", "0,0,1,1", "[0.1,0.1,0.9,0.9]", "1,1,0,0", "left"])
    return text.encode("utf-8", "surrogatepass")


def _upload(ask: Ask, rng: Random) -> Ask:
    """Damage to an image on its way."""
    if ask.parts:
        name = rng.choice([key for key in ask.parts if key in ("image", "mask")] or ["image"])
        return replace(ask, parts={**ask.parts, name: _damaged(ask.parts.get(name, b""), rng)})
    if ask.json is None:
        return ask
    body = copy.deepcopy(ask.json)
    coded = [(place, key) for place, key in damage._places(body)
             if isinstance(place[key], str) and len(place[key]) > 500]  # fmt: skip
    for place, key in coded:
        try:
            image = base64.b64decode(place[key])
        except ValueError:
            image = b""
        text = base64.b64encode(_damaged(image, rng)).decode()
        place[key] = rng.choice(["", "", "data:image/png;base64,", "data:,", "http://localhost/"]) + text
    return replace(ask, json=body)


def _damaged(image: bytes, rng: Random) -> bytes:
    kinds = [damage.foreign, damage.cut, damage.flip, damage.blank, damage.longer, *[damage.odd_image] * 6]
    with tempfile.NamedTemporaryFile(suffix=".png") as file:
        path = Path(file.name)
        path.write_bytes(image)
        rng.choice(kinds)(path, rng)
        return path.read_bytes()


def _raw(ask: Ask, rng: Random) -> Ask:
    """A body that is not what its type says."""
    whole = json.dumps(ask.json).encode() if ask.json is not None else _form(ask.parts or {"image": b""})
    bodies = (
        *(b"", b"{", b"[" * 5000, b'{"a":' * 3000, b"\xff\xfe{}", b"NaN", b"\xef\xbb\xbf{}", b"{}{}", whole[:-3]),
        *(whole + b"x", whole.decode("latin-1").encode("utf-16"), b"9" * 5000, b'{"prompt": ' + b"9" * 5000 + b"}"),
        *(b'{"prompt": "\\ud800"}', b'{"prompt": "a", "prompt": 3}', b"a" * 2_100_000, b"--xyz", b"--xyz\r\n\r\n"),
        *(b"--xyz\r\nContent-Disposition: form-data\r\n\r\nx\r\n--xyz--\r\n", whole * 60),
    )
    kind = rng.choice([JSON, JSON, FORM, FORM, b"text/plain", b"", b"application/x-www-form-urlencoded", b"\xff"])
    headers = {**ask.headers, b"content-type": kind}
    return replace(ask, json=None, parts={}, body=rng.choice(bodies), headers=headers)


def _header(ask: Ask, rng: Random) -> Ask:
    name, values = rng.choice([
        (b"content-length", (b"-1", b"9" * 30, b"x", b"\xb2", b"0", b"1e3", b" 5")),
        (b"host", (b"evil.example", b"", b"localhost:99999999", b"[::1", b"localhost:x", b"\xff", b"a]b", b"[")),
        (b"origin", (b"null", b"http://evil.example", b"http://localhost", b"//[", b"\xff", b"http://[::1")),
        (b"authorization", (b"Bearer", b"Bearer \xff", b"Basic x", b"Bearer " + b"a" * 9000)),
        (b"content-type", (b"multipart/form-data", b"multipart/form-data; boundary=",
                           b"multipart/form-data; boundary=\xff",
                           b"multipart/form-data; boundary=" + b"b" * 400, b"application/json; charset=utf-16",
                           b"multipart/form-data; charset=nonsense; boundary=xyz")),
        (b"accept-encoding", (b"gzip", b"\xff")), (b"range", (b"bytes=0-1", b"bytes=9-1", b"bytes=-0", b"x")),
        (b"if-modified-since", (b"x", b"Thu, 99 Jan 9999 99:99:99 GMT")), (b"x-forwarded-for", (b"x",)),
    ])  # fmt: skip
    return replace(ask, headers={**ask.headers, name: rng.choice(values)})


def _path(ask: Ask, rng: Random) -> Ask:
    tails = (
        b"/",
        b"//",
        b"/..",
        b"%00",
        b"%ff",
        b"%2e%2e/%2e%2e/etc/passwd",
        b"a" * 3000,
        b"?x",
        b"%0a",
        b"/../../app.py",
    )
    heads = (ask.path, ask.path, b"/v1/images/files/", b"/v1/models/", b"/page/", b"/page", b"", b"/sdapi/v1/")
    return replace(ask, path=rng.choice(heads) + rng.choice(tails))


def _query(ask: Ask, rng: Random) -> Ask:
    return replace(
        ask, query=rng.choice([b"%", b"a=%ff", b"n=-1", b"&&&", b"a" * 5000, b"\xff", b"skip_current_image=x"])
    )


def _method(ask: Ask, rng: Random) -> Ask:
    return replace(ask, method=rng.choice(["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "BREW", "get"]))


def _chunks(ask: Ask, rng: Random) -> Ask:
    return replace(ask, chunks=rng.choice([2, 7, 50]), leaves=rng.random() < 0.4)


# -------------------------------------------------------------------------------------------- replies


def answered(world: World, ask: Ask) -> Callable[[Outcome], str]:
    """A good reply: strict JSON, images that open and say what they are, nothing of this machine."""

    def check(outcome: Outcome) -> str:
        if str(world.root) in outcome.out or "root:x:" in outcome.out or "import annotations" in outcome.out:
            return "tells of this machine's files"
        if not outcome.out.startswith(("{", "[")):
            return ""
        try:
            said = json.loads(outcome.out, parse_constant=_no_constant)
        except ValueError as error:
            return f"no strict JSON: {error}"
        entries = said.get("data", ()) if isinstance(said, dict) else ()
        for entry in entries if ask.path.endswith((b"generations", b"edits")) else ():
            if wrong := _unmarked(base64.b64decode(entry["b64_json"])) if "b64_json" in entry else "":
                return wrong
        return ""

    return check


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON")


def _unmarked(data: bytes) -> str:
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        image.load()
        marked = image.format != "PNG" or image.info.get("synthetic") or image.info.get("edited")
        return "" if marked else "an image without marks"
