"""The bytes of the gateway's answers as the API document has them, and damaged ones that still have the request_id.

The forms of damage share no code with `krea_batch.gateway.evidence`. Each says what a client can find in it: `CLEAR`,
the request_id is in its place in a readable object; `CANDIDATE`, it is somewhere, and a poll has to prove it;
`CONFLICT`, it is beside another one; or `NOTHING`.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

import aiohttp

from tests.simulation.network import Part, Reply, Request

STATUS_URL = "https://gateway.pixazo.ai/v2/requests/status/"  # API document, Retrieving Results
CLEAR, CANDIDATE, CONFLICT, NOTHING = "clear", "candidate", "conflict", "nothing"


class PostAnswer(NamedTuple):
    """The answer to an accepted POST: its HTTP status and body, and what a client can find in it."""

    status: int
    parts: tuple[Part, ...]
    finds: str = CLEAR


def request_id_of(number: int) -> str:
    """Return the request_id of the gateway's job with this number, in the form of the API document."""
    return f"krea-2-large-text-to-image_019d0000-0000-7000-8000-{number:012d}"


def accepted(request_id: str) -> dict[str, Any]:
    """Return the answer to an accepted POST (API document, Request Code)."""
    return {"request_id": request_id, "status": "QUEUED", "polling_url": STATUS_URL + request_id}


def encode(value: Any) -> bytes:
    return json.dumps(value).encode()


def refusal(status: int, error: str, retry_after: str = "") -> dict[str, Any]:
    """Return the arguments of `refusal_reply` that say what is refused, as an entry of a table."""
    return {"status": status, "error": error, "retry_after": retry_after}


def refusal_reply(request: Request, delay_s: float, status: int, error: str, retry_after: str = "") -> Reply:
    """Return an error in the form of the API document."""
    headers = {"Retry-After": retry_after} if retry_after else {}
    return Reply(status, encode({"error": error}), delay_s=delay_s, headers=headers, to=request)


# ---- damaged answers to POSTs ----------------------------------------------------------------------------


def _cut(request_id: str, other: str, random: Random) -> PostAnswer:
    body = encode(accepted(request_id))
    body = body[: random.randrange(body.index(request_id.encode()) + len(request_id), len(body))]
    end = (aiohttp.ClientPayloadError(),) if random.random() < 0.5 else ()  # else the length was wrong
    return PostAnswer(202, (body, *end), CANDIDATE)


def _error_page(request_id: str, other: str, random: Random) -> PostAnswer:
    return PostAnswer(502, (b"<html><p>502 for %s</p></html>" % request_id.encode(),), CANDIDATE)


def _error(request_id: str, other: str, random: Random) -> PostAnswer:
    return PostAnswer(500, (encode({"error": "internal", "request_id": request_id}),), CANDIDATE)


def _compressed(request_id: str, other: str, random: Random) -> PostAnswer:
    return PostAnswer(202, (gzip.compress(encode(accepted(request_id))),))


def _byte_order_mark(request_id: str, other: str, random: Random) -> PostAnswer:
    encoding = random.choice(["utf-8-sig", "utf-16"])
    return PostAnswer(202, (json.dumps(accepted(request_id)).encode(encoding),))


def _surrogate(request_id: str, other: str, random: Random) -> PostAnswer:
    return PostAnswer(202, (encode(accepted(request_id) | {"message": "queued \ud83d"}),))


def _list(request_id: str, other: str, random: Random) -> PostAnswer:
    return PostAnswer(202, (encode([accepted(request_id)]),), CANDIDATE)


def _nested(request_id: str, other: str, random: Random) -> PostAnswer:
    return PostAnswer(202, (encode({"data": accepted(request_id)}),), CANDIDATE)


def _only_in_polling_url(request_id: str, other: str, random: Random) -> PostAnswer:
    return PostAnswer(202, (encode(accepted(request_id) | {"request_id": ""}),), CANDIDATE)


def _twice(request_id: str, other: str, random: Random) -> PostAnswer:
    body = encode(accepted(request_id))
    if random.random() < 0.5:
        return PostAnswer(202, (b'{"request_id": null, ' + body[1:],))
    return PostAnswer(202, (body[:-1] + b', "request_id": null}',), CANDIDATE)


def _two_ids(request_id: str, other: str, random: Random) -> PostAnswer:
    answer = encode(accepted(request_id))[:-1] + b', "request_id": "%s"}' % other.encode()
    return PostAnswer(202, (answer,), CONFLICT)


def _other_polling_url(request_id: str, other: str, random: Random) -> PostAnswer:
    return PostAnswer(202, (encode(accepted(request_id) | {"polling_url": STATUS_URL + other}),), CONFLICT)


def _polling_url_of_other(request_id: str, other: str, random: Random) -> PostAnswer:
    return PostAnswer(202, (encode(accepted(other) | {"polling_url": STATUS_URL + request_id}),), CONFLICT)


DAMAGES: list[Callable[[str, str, Random], PostAnswer]] = [
    _cut,
    _error_page,
    _error,
    _compressed,
    _byte_order_mark,
    _surrogate,
    _list,
    _nested,
    _only_in_polling_url,
    _twice,
    _two_ids,
    _other_polling_url,
    _polling_url_of_other,
]
"""Each returns a damaged answer to the POST of `request_id`; `other` is the request_id of another POST."""


# ---- answers to polls ------------------------------------------------------------------------------------


def status_body(request_id: str | None, status: str, **fields: Any) -> bytes:
    """Return a status (API document, Retrieving Results); None leaves the request_id out."""
    named = {} if request_id is None else {"request_id": request_id}
    return encode({**named, "status": status, "output": None, **fields})


def surplus_replies(random: Random, other: Reply | None) -> list[Reply]:
    """Return what was not asked for: a time-out page, a 204 with a body, or the status of another request."""
    match random.choice(["408", "204", "other"]):
        case "204":  # Its body is read as the first line of the next response.
            return [Reply(204), Reply(0, error=aiohttp.ClientResponseError(None, ()))]  # type: ignore[arg-type]
        case "other" if other:
            return [Reply(200, *other.parts, names=other.names)]
        case _:
            return [Reply(408, b"<html>408 Request Time-out</html>")]
