"""The CDN of the random gateway: URLs that expire, and downloads with random faults."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import aiohttp

from krea_batch.testing import make_png
from tests.simulation.network import Part, Reply, Request
from tests.simulation.outages import Outage, current_outage
from tests.simulation.weighted_choice import weighted_choice

if TYPE_CHECKING:
    from tests.simulation.random_gateway import RandomGateway

DOWNLOAD_OUTCOMES: list[tuple[int, str]] = [
    (50, "whole"),
    (15, "cut"),
    (5, "cut without an ETag"),
    (5, "from the start"),
    (4, "HTML"),
    (4, "trailing"),
    (4, "a wrong byte"),
    (4, "short"),
    (4, "404"),
    (4, "429"),
    (1, "stalled"),
]


class RandomCdn:
    """Serves the images of a gateway's jobs. A URL expires some time after the poll that returned it."""

    def __init__(self, gateway: RandomGateway) -> None:
        self._gateway = gateway
        random = Random(f"{gateway.seed}/cdn")
        self._lifetime_s = random.choice([5.0, 60.0, 1e9])
        self._expired_status = random.choice([401, 403, 404, 410])
        self.outages: list[Outage] = []

    def url_of(self, request_id: str, n: int) -> str:
        """Return a fresh URL of a job's n-th image."""
        return f"https://cdn.example/{request_id}/{n}.png?since={self._gateway.clock():.3f}"

    def answer(self, request: Request) -> list[Reply]:
        """Return the response to a request for an image."""
        if outage := current_outage(self.outages):
            return [outage.reply(request)]
        parts = urlsplit(request.url)
        random = self._gateway.random_for("fetch", parts.path)
        delay_s = random.choice([0.05, 0.5])
        if not self._gateway.no_faults and self._gateway.clock() - float(parts.query[6:]) > self._lifetime_s:
            return [Reply(self._expired_status, b"expired", delay_s=delay_s, to=request)]
        outcome = "whole" if self._gateway.no_faults else weighted_choice(random, DOWNLOAD_OUTCOMES)
        if outcome in ("404", "429"):
            headers = {"Retry-After": "5"} if outcome == "429" else {}
            return [Reply(int(outcome), delay_s=delay_s, headers=headers, to=request)]
        request_id, name = parts.path.split("/")[-2:]
        image = image_bytes(self._gateway.charged[request_id], int(name[0]))
        return [_image_reply(request, image, outcome, delay_s, random)]


def _image_reply(request: Request, image: bytes, outcome: str, delay_s: float, random: Random) -> Reply:
    start = 0
    if request.headers.get("If-Range") == '"e"' and outcome not in ("from the start", "trailing"):
        start = int(request.headers["Range"].removeprefix("bytes=").removesuffix("-"))
    rest = image[start:]
    position = random.randrange(len(rest)) if rest else 0
    pause_s = random.choice([0.0, 0.3, 5.0])
    parts: tuple[Part, ...]
    match outcome:
        case "HTML":
            return Reply(200, b"<html>", delay_s=delay_s, to=request)
        case "cut" | "cut without an ETag":
            parts = (rest[:position], pause_s, aiohttp.ClientPayloadError())
        case "trailing":
            parts = (rest, b"more")
        case "a wrong byte":
            parts = (rest[:position], bytes([rest[position] ^ 1]), rest[position + 1 :])
        case "short":
            parts = (rest[:position],)
        case "stalled":
            parts = (rest[:position], 100.0)
        case _:
            parts = (rest[:position], pause_s, rest[position:])
    headers = {} if outcome == "cut without an ETag" else {"ETag": '"e"'}
    if start:
        headers["Content-Range"] = f"bytes {start}-{len(image) - 1}/{len(image)}"
    elif outcome not in ("trailing", "short") and random.random() < 0.5:
        headers["Content-Length"] = str(len(image))
    return Reply(206 if start else 200, *parts, delay_s=delay_s, headers=headers, to=request)


def image_bytes(prompt: str, file_index: int) -> bytes:
    """Return the image of one output of a job; all of them differ."""
    return make_png(text=f"{prompt}/{file_index}".encode())
