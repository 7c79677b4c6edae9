"""HTTP responses in the format of the API document.

The texts of the 402 and of the unknown model are copied from the API document, which gives no other texts.
"""

from __future__ import annotations

import math
import os
import time
from datetime import UTC, datetime
from email.utils import formatdate
from functools import lru_cache
from typing import Any

import orjson
from aiohttp import web

from krea_batch.testing.simulator.job_planner import MODEL_ID

HTML = b"<html><body><h1>Something went wrong</h1></body></html>"
_JSON = {"Content-Type": "application/json; charset=utf-8"}


def json(status: int, fields: dict[str, Any]) -> web.Response:
    return raw_json(status, orjson.dumps(fields))


def raw_json(status: int, body: bytes) -> web.Response:
    """Return a JSON response with these bytes, whether they are valid JSON or not."""
    return web.Response(status=status, body=body, headers=_JSON)


def error(status: int, name: str, message: str) -> web.Response:
    """Return an error response with the API document's body."""
    return json(status, {"error": name, "message": message})


def html(status: int) -> web.Response:
    """Return an HTML error page, as a proxy in front of the gateway would send."""
    return web.Response(status=status, body=HTML, headers={"Content-Type": "text/html; charset=utf-8"})


def bad_request(message: str) -> web.Response:
    return error(400, "Bad Request", message)


def unauthorized() -> web.Response:
    return error(401, "Unauthorized", "Access denied due to a missing or invalid subscription key.")


def insufficient_balance() -> web.Response:
    return error(402, "Insufficient Balance", "Your wallet does not have enough balance.")


def forbidden() -> web.Response:
    return error(403, "Forbidden", "This subscription may not call this operation.")


def server_error(status: int = 500) -> web.Response:
    return error(status, "Internal Server Error" if status == 500 else "Service Unavailable", "Please try again.")


def model_not_found(model: str = MODEL_ID) -> web.Response:
    return error(400, "Model not found", f"Model '{model}' not found or is disabled")


def rate_limited(wait_s: float, retry_after: str, now: float) -> web.Response:
    """Return a 429. `retry_after` is the form of its Retry-After header: seconds (rounded up), date or none."""
    response = error(429, "Too Many Requests", "Rate limit is exceeded.")
    if retry_after == "seconds":
        response.headers["Retry-After"] = str(max(1, math.ceil(wait_s)))
    elif retry_after == "date":
        response.headers["Retry-After"] = formatdate(math.ceil(now + wait_s), usegmt=True)
    return response


def abort_connection(request: web.Request) -> web.Response:
    """Cut the connection before the response, or in the middle of it."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=500)  # never sent: aiohttp requires a return value


def format_instant(at: float) -> str:
    """Return a time in the API document's format: 2026-03-31T10:00:00.000Z."""
    second, milliseconds = divmod(int(at * 1000), 1000)
    return f"{_format_second(second)}.{milliseconds:03}Z"


@lru_cache(1024)
def _format_second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).isoformat()[:-6]  # without +00:00


def new_request_id() -> str:
    """Return a request id in the API document's format: the model and a UUID of version 7 (RFC 9562, 5.7)."""
    random_bytes = bytearray(os.urandom(10))
    random_bytes[0] = random_bytes[0] & 0x0F | 0x70
    random_bytes[2] = random_bytes[2] & 0x3F | 0x80
    digits = (int(time.time() * 1000).to_bytes(6) + random_bytes).hex()
    return f"{MODEL_ID}_{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
