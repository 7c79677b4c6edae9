"""Send requests to an ASGI app without a server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import orjson

App = Callable[..., Awaitable[None]]


class AsgiResponse(NamedTuple):
    """The response of an app."""

    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)


async def request_asgi(
    app: App, method: str, path: str, body: bytes = b"", *, json: Any = None, query: bytes = b"", pieces: int = 1
) -> AsgiResponse:
    """Send a request to an ASGI app as a server does, with the body in `pieces` chunks. `json` is a body as JSON."""
    headers = []
    if json is not None:
        body, headers = orjson.dumps(json), [(b"content-type", b"application/json")]
    size = max(1, len(body) // pieces)
    chunks = [body[start : start + size] for start in range(0, len(body), size)] or [b""]
    incoming = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    incoming[-1]["more_body"] = False
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if not incoming:
            await asyncio.Event().wait()  # the client stays connected
        return incoming.pop(0)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "query_string": query, "headers": headers}
    await app(scope, receive, send)
    sent_headers = {name.decode().lower(): value.decode() for name, value in sent[0].get("headers", [])}
    return AsgiResponse(sent[0]["status"], sent_headers, b"".join(message.get("body", b"") for message in sent))


async def call_asgi(app: App, path: str, body: bytes = b"", method: str = "POST", pieces: int = 1) -> int:
    """Call an ASGI app, and return the HTTP status."""
    return (await request_asgi(app, method, path, body, pieces=pieces)).status
