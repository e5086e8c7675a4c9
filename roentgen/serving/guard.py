"""What every request passes first: host, origin, key, size and time of its body; and what is counted and logged."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import time
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from roentgen.serving.failures import Failure, reply
from roentgen.serving.keys import Keys
from roentgen.serving.meters import Meters
from roentgen.serving.settings import Options

log = logging.getLogger("roentgen.serving")
OPEN = ("/", "/healthz", "/openapi.json", "/favicon.ico")
OPEN_BELOW = ("/page/", "/v1/images/files/")
"""What needs no key: the page itself, which asks for one, and images whose address cannot be guessed."""
BODIES = 8
"""How many requests of the largest size may be in memory together."""
HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"content-security-policy": b"default-src 'self'; img-src 'self' data: blob:; frame-ancestors 'none'; "
    b"base-uri 'none'; form-action 'self'",
}


class Guard:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, *, options: Options, keys: Keys, meters: Meters) -> None:
        self.app, self.options, self.keys, self.meters = app, options, keys, meters
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        status = 500
        # Nothing here is long, and a server may ignore a wish for a part; a broken wish would be answered without JSON.
        scope["headers"] = [(name, value) for name, value in scope["headers"] if name.lower() != b"range"]
        held = [0]

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), *HEADERS.items()]}
            await send(message)

        self.meters.active.inc()
        try:
            try:
                self._admit(scope)
                whole = await self._body(scope, receive, held)
            except Failure as failure:
                await reply(failure)(scope, receive, counted)
            else:
                await self.app(scope, whole, counted)
        finally:
            self._held -= held[0]
            self.meters.active.dec()
            route = getattr(scope.get("route"), "path", "other")
            seconds = time.perf_counter() - began
            self.meters.requests.labels(route, str(status)).inc()
            self.meters.seconds.labels(route).observe(seconds)
            log.info("%s %s %d %.3f s", scope["method"], route, status, seconds)

    def _admit(self, scope: Scope) -> None:
        """Failure unless the request may come in; the holder of its key goes into ``scope``."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        # A page of another site whose name is made to point here (DNS rebinding) still calls us by its own name.
        if self.options.hosts and _name(host) not in self.options.hosts:
            raise Failure(403, "this server is called by another name here; use the address that it printed")
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            raise Failure(403, "requests of other sites' pages are not answered (CORS is off)")
        path = scope["path"]
        scope["holder"] = ""
        if not self.keys or path in OPEN or path.startswith(OPEN_BELOW):
            return
        holder = self.keys.holder(headers.get("authorization", ""))
        if holder is None:
            raise Failure(401, "a key is needed: send the header 'Authorization: Bearer KEY'", code="invalid_api_key")
        scope["holder"] = holder

    async def _body(self, scope: Scope, receive: Receive, held: list[int]) -> Receive:
        """The body, read whole within its limits, as something to receive from; disconnects come after it.

        ``held`` counts its bytes, for the limit to all bodies that are in memory together.
        """
        limits = self.options.limits
        most = limits.body_mb * 10**6
        too_large = Failure(413, f"the request is larger than {limits.body_mb} MB; send less at once")
        said = Headers(scope=scope).get("content-length", "0")
        if not said.isdecimal() or int(said) > most:
            raise too_large
        parts: list[bytes] = []
        try:
            async with asyncio.timeout(limits.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] != "http.request":
                        raise Failure(499, "the client has gone")
                    parts.append(message.get("body", b""))
                    held[0] += len(parts[-1])
                    self._held += len(parts[-1])
                    if held[0] > most:
                        raise too_large
                    if self._held > BODIES * most:
                        raise Failure(429, "too much is being sent at once; send the request again in a while", retry=5)
                    if not message.get("more_body"):
                        break
        except TimeoutError:
            raise Failure(408, f"the request did not arrive within {limits.body_seconds} s; send it again") from None
        body: list[Any] = [b"".join(parts)]
        parts.clear()

        async def whole() -> Message:
            if body:
                return {"type": "http.request", "body": body.pop(), "more_body": False}
            return await receive()

        return whole


def _name(host: str) -> str:
    """The name in a Host header, without its port and brackets; nothing where it is none."""
    try:
        return (urlsplit(f"//{host}").hostname or "") if host else ""
    except ValueError:  # "[::1" and the like
        return ""


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
