"""Receives callbacks, as function calls or as an ASGI app, and reports job numbers with their payload.

A callback proves nothing. Its URL identifies a job with tokens that cannot be guessed, so it may trigger a poll of
that job. The content of its body is used only if the poll confirms it.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from krea_batch.gateway import wire

MAX_CALLBACK_BYTES = 64 << 10  # chosen: a status response takes a few hundred bytes
MAX_BODY_S = 10.0  # chosen: a few hundred bytes over a slow line
SECRET_BYTES = 32  # RFC 2104, 3: the key of an HMAC should be as long as its hash
_TOKEN_CHARS = 32  # chosen: 128 bits, which cannot be guessed
_MAX_DIGITS = 18  # chosen: every such number is within SQLite's 64 bits

OK, UNKNOWN, NOT_POST, TIMED_OUT, TOO_LARGE, UNAVAILABLE = 204, 404, 405, 408, 413, 503

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
OnCallback = Callable[[int, wire.CallbackPayload], None]


class CallbackRouter:
    """The callback URLs for the jobs of one run directory.

    `on_callback` is called with the job number and the payload. It must be fast, since the gateway waits. `secret` is
    the key of the URLs; without it, a URL cannot be forged.
    """

    def __init__(self, secret: bytes, on_callback: OnCallback) -> None:
        self._secret = secret
        self._run_token = self._token(b"run")
        self._on_callback = on_callback
        self.base_url = ""

    def url_of(self, job_no: int) -> str:
        """Return the callback URL of a job."""
        return f"{self.base_url}/{self._run_token}/{job_no}/{self._token(b'job %d' % job_no)}"

    def receive(self, path: str, body: bytes) -> int:
        """Handle a callback, and return the HTTP status of the response."""
        job_no = self._parse_path(path)
        if job_no is None:
            return UNKNOWN
        self._on_callback(job_no, wire.read_callback(body))
        return OK

    def _token(self, label: bytes) -> str:
        return hmac.new(self._secret, label, hashlib.sha256).hexdigest()[:_TOKEN_CHARS]

    def _parse_path(self, path: str) -> int | None:
        """Return the number of the job whose URL has this path, or None. Takes the same time for all wrong paths."""
        run_token, number, token = ["", "", "", *path.split("/")][-3:]
        job_no = int(number) if number.isascii() and number.isdigit() and len(number) <= _MAX_DIGITS else 0
        run_matches = hmac.compare_digest(run_token.encode(), self._run_token.encode())
        job_matches = hmac.compare_digest(token.encode(), self._token(b"job %d" % job_no).encode())
        return job_no if run_matches and job_matches and job_no > 0 else None


class CallbackEndpoint:
    """The entry point for callbacks of one engine. It answers 503 before the engine starts and after it ends."""

    def __init__(self) -> None:
        self.router: CallbackRouter | None = None

    def receive(self, method: str, path: str, body: bytes | None) -> int:
        """Handle a callback, and return the HTTP status of the response. `body` is None if it was too large."""
        if method != "POST":
            return NOT_POST
        if body is None:
            return TOO_LARGE
        return self.router.receive(path, body) if self.router else UNAVAILABLE

    async def asgi(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle an ASGI request. Mount this at the path of the public URL."""
        if scope["type"] == "lifespan":
            await _handle_lifespan(receive, send)
            return
        if scope["type"] != "http":  # for example a WebSocket
            return
        try:
            async with asyncio.timeout(MAX_BODY_S):
                body = await _body_of(receive)
        except TimeoutError:
            status = TIMED_OUT
        else:
            status = self.receive(scope["method"], scope["path"], body)
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b""})


async def _body_of(receive: Receive) -> bytes | None:
    """Return the body of an ASGI request, or None if it is too large."""
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > MAX_CALLBACK_BYTES:
            return None
        if not message.get("more_body"):
            return bytes(body)


async def _handle_lifespan(receive: Receive, send: Send) -> None:
    """Confirm start and shutdown to the server; the app does nothing at either."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
