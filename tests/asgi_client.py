"""Send requests to an ASGI app without a server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

App = Callable[..., Awaitable[None]]


async def call_asgi(app: App, path: str, body: bytes = b"", method: str = "POST", pieces: int = 1) -> int:
    """Call an ASGI app as a server would, with the body in `pieces` chunks. Returns the HTTP status."""
    size = max(1, len(body) // pieces)
    chunks = [body[start : start + size] for start in range(0, len(body), size)] or [b""]
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    messages[-1]["more_body"] = False
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app({"type": "http", "method": method, "path": path}, receive, send)
    return int(sent[0]["status"])
