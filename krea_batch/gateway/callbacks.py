"""Callbacks come in, as calls of a function or of an ASGI app; job numbers and what was told go out.

Newcomers: a callback proves nothing. Its path names a job by tokens that nobody can guess, which is why it may hasten
a poll of that very job; what is in its body is believed only as far as the poll that follows says the same.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from krea_batch.gateway import wire

MAX_CALLBACK_BYTES = 64 << 10  # chosen: a status answer is some hundred bytes
SECRET_BYTES = 32
_TOKEN_CHARS = 32  # 128 bits
_MAX_DIGITS = 18

OK, UNKNOWN, NOT_POST, TOO_LARGE, UNAVAILABLE = 204, 404, 405, 413, 503

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
OnCallback = Callable[[int, wire.CallbackPayload], None]


class CallbackRouter:
    """Where the gateway calls for the jobs of one run's folder.

    `hear` takes the number of a job and what the call tells; it must be quick, since the gateway waits. `secret`
    makes the addresses; who does not know it cannot tell an address of ours from any other.
    """

    def __init__(self, secret: bytes, on_callback: OnCallback) -> None:
        self._secret = secret
        self._run_token = self._token(b"run")
        self._on_callback = on_callback
        self.base_url = ""

    def url_of(self, job_no: int) -> str:
        """Where to call for the job of this number."""
        return f"{self.base_url}/{self._run_token}/{job_no}/{self._token(b'job %d' % job_no)}"

    def receive(self, path: str, body: bytes) -> int:
        """Take a call. Returns the HTTP status of its answer."""
        job_no = self._parse_path(path)
        if job_no is None:
            return UNKNOWN
        self._on_callback(job_no, wire.read_callback(body))
        return OK

    def _token(self, label: bytes) -> str:
        return hmac.new(self._secret, label, hashlib.sha256).hexdigest()[:_TOKEN_CHARS]

    def _parse_path(self, path: str) -> int | None:
        """The number of the job whose address ends so. Takes as long for a wrong one, however wrong it is."""
        run_token, number, token = ["", "", "", *path.split("/")][-3:]
        job_no = int(number) if number.isascii() and number.isdigit() and len(number) <= _MAX_DIGITS else 0
        run_matches = hmac.compare_digest(run_token.encode(), self._run_token.encode())
        job_matches = hmac.compare_digest(token.encode(), self._token(b"job %d" % job_no).encode())
        return job_no if run_matches and job_matches and job_no > 0 else None


class CallbackEndpoint:
    """The way in for callbacks, for as long as an engine lives: closed (503) before it has started, and after."""

    def __init__(self) -> None:
        self.router: CallbackRouter | None = None

    def receive(self, method: str, path: str, body: bytes | None) -> int:
        """Take a call; `body` is None where it was too large. Returns the HTTP status of its answer."""
        if method != "POST":
            return NOT_POST
        if body is None:
            return TOO_LARGE
        return self.router.receive(path, body) if self.router else UNAVAILABLE

    async def asgi(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The door as an ASGI app, to be mounted wherever the address leads."""
        if scope["type"] == "lifespan":
            await _handle_lifespan(receive, send)
            return
        if scope["type"] != "http":  # a websocket, say
            return
        status = self.receive(scope["method"], scope["path"], await _body_of(receive))
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b""})


async def _body_of(receive: Receive) -> bytes | None:
    """The body of an ASGI request; None where it is too large."""
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > MAX_CALLBACK_BYTES:
            return None
        if not message.get("more_body"):
            return bytes(body)


async def _handle_lifespan(receive: Receive, send: Send) -> None:
    """Answer a server that asks whether the app is ready: it is."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
