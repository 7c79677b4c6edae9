"""Requests for pictures come in; PNGs, parts of them, or a fault that was asked for, go out.

Newcomers: a picture is drawn when it is first asked for, in a thread, and kept for a while.
"""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec

from aiohttp import web

from krea_batch.testing.simulator.drawing.tiny_png import tiny_picture
from krea_batch.testing.simulator.job_planner import SimulatedJob
from krea_batch.testing.simulator.responses import error, html, server_error
from krea_batch.testing.simulator.settings import SimulatorError
from krea_batch.testing.simulator.state import KEY_HEADER, State

THREADS = 2  # chosen: drawing shares its cores with the engine that waits for it
CACHED_BYTES = 64 << 20  # chosen: what is asked for again is asked for soon
INLINE_BYTES = 64 << 10  # a tiny picture up to this size is made on the loop, since a thread hop costs more
SLOW_PIECES = 20
_NAME = re.compile(r"output(?:-([2-4]))?\.png")
_FAULTS = ("cdn-404", "cdn-503", "cdn-html", "cdn-cut", "cdn-corrupt", "cdn-trailing", "cdn-slow")


class Cdn:
    """The pictures of accepted jobs. Raises SimulatorError where they are to be drawn and Pillow is missing."""

    def __init__(self, state: State) -> None:
        self.state = state
        self._threads = ThreadPoolExecutor(THREADS, "simulator-pictures")
        self._cache: OrderedDict[str, bytes] = OrderedDict()
        self._cached_bytes = 0

    async def get(self, request: web.Request) -> web.StreamResponse:
        """GET and HEAD of a picture."""
        self._count(request)
        job = self.state.books.jobs.get(request.match_info["request_id"])
        number = _number(request.match_info["name"])
        if job is None or not 1 <= number <= job.outputs or job.status(self.state.now()) != "COMPLETED":
            return _not_found()
        job.fetches[number - 1] += 1
        fault = self.state.dice.first(_FAULTS, f"{job.about}/{number}", job.fetches[number - 1])
        match fault:
            case "cdn-404":
                return _not_found()
            case "cdn-503":
                return server_error(503)
            case "cdn-html":
                return html(200)
            case _:
                pass
        picture = await self._picture(job, number)
        return await self._send(request, _spoil(picture, fault), f'"{job.request_id[-12:]}-{number}"', fault)

    async def anything(self, request: web.Request) -> web.StreamResponse:
        """Any other address of the CDN."""
        self._count(request)
        return _not_found()

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)

    def _count(self, request: web.Request) -> None:
        self.state.books.counts["cdn_requests"] += 1
        self.state.books.counts["cdn_with_key"] += KEY_HEADER in request.headers

    async def _send(self, request: web.Request, whole: bytes, etag: str, fault: str | None) -> web.StreamResponse:
        length = len(whole)
        headers = {"ETag": etag, "Accept-Ranges": "bytes", "Content-Type": "image/png"}
        part = wanted(request.headers.get("Range"), request.headers.get("If-Range"), etag, length)
        if part is None:
            headers["Content-Range"] = f"bytes */{length}"
            del headers["Content-Type"]
            return web.Response(status=416, headers=headers)
        start, stop = part
        status = 200
        if stop - start < length:
            status = 206
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{length}"
        body = whole[start:stop]
        if request.method == "HEAD":
            return web.Response(status=status, body=body, headers=headers)
        if fault in ("cdn-cut", "cdn-slow"):
            headers["Content-Length"] = str(len(body))
            return await self._drip(request, web.StreamResponse(status=status, headers=headers), body, fault)
        self._sent(len(body))
        return web.Response(status=status, body=body, headers=headers)

    async def _drip(
        self, request: web.Request, response: web.StreamResponse, body: bytes, fault: str
    ) -> web.StreamResponse:
        """Send half and cut, or send all of it slowly."""
        await response.prepare(request)
        if fault == "cdn-cut":
            await response.write(body[: len(body) // 2])
            self.state.books.counts["bytes"] += len(body) // 2
            if request.transport is not None:
                request.transport.close()  # what was written still goes out
            return response
        size = max(1, -(-len(body) // SLOW_PIECES))
        for at in range(0, len(body), size):
            await asyncio.sleep(self.state.settings.slow_duration_s / SLOW_PIECES)
            await response.write(body[at : at + size])
        self._sent(len(body))
        return response

    def _sent(self, length: int) -> None:
        self.state.books.counts["downloads"] += 1
        self.state.books.counts["bytes"] += length

    async def _picture(self, job: SimulatedJob, number: int) -> bytes:
        key = f"{job.request_id} {number}"
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        settings = self.state.settings
        make = partial(_make, job, number, settings.seed, settings.image_bytes, drawn=settings.draws)
        if settings.draws or settings.image_bytes > INLINE_BYTES:
            picture = await asyncio.get_running_loop().run_in_executor(self._threads, make)
        else:
            picture = make()
        self._keep(key, picture)
        return picture

    def _keep(self, key: str, picture: bytes) -> None:
        self._cached_bytes += len(picture) - len(self._cache.get(key, b""))
        self._cache[key] = picture
        while self._cached_bytes > CACHED_BYTES:
            self._cached_bytes -= len(self._cache.popitem(last=False)[1])


def need_pillow() -> None:
    """Raise SimulatorError where pictures cannot be drawn."""
    if find_spec("PIL") is None:
        raise SimulatorError(
            "drawing pictures needs Pillow; pip install 'krea-batch[simulator]', or ask for tiny ones"
        )


def text_of(job: SimulatedJob, number: int) -> dict[str, str]:
    """What a picture carries in its iTXt chunks, so that anybody can prove whose it is."""
    return {
        "prompt": job.body["prompt"],
        "seed": str(job.body.get("seed", "")),
        "aspect_ratio": job.body.get("aspect_ratio", "1:1"),
        "creativity": job.body.get("creativity", "medium"),
        "request_id": job.request_id,
        "output": str(number),
    }


def _make(job: SimulatedJob, number: int, seed: int, size_bytes: int, *, drawn: bool) -> bytes:
    """The same for the same body; where the body names no seed, each job has its own."""
    text = text_of(job, number)
    chance = repr((job.body.get("seed", f"{seed}/{job.copy}"), number))
    if not drawn:
        return tiny_picture(text, chance, size_bytes)
    from krea_batch.testing.simulator.drawing.images import draw

    return draw(text, chance)


def _spoil(picture: bytes, fault: str | None) -> bytes:
    if fault == "cdn-corrupt":
        middle = len(picture) // 2
        return picture[:middle] + bytes([picture[middle] ^ 0x10]) + picture[middle + 1 :]
    return picture + b"<!-- served by a cache -->" if fault == "cdn-trailing" else picture


def _number(name: str) -> int:
    match = _NAME.fullmatch(name)
    return 0 if match is None else int(match[1] or 1)


def _not_found() -> web.Response:
    return error(404, "Not Found", "There is no such object.")


_RANGE = re.compile(r"bytes\s*=\s*(\d{0,18})-(\d{0,18})")


def wanted(header: str | None, if_range: str | None, etag: str, length: int) -> tuple[int, int] | None:
    """The first byte to send and the one after the last, or None where the answer is 416.

    The whole is sent where no range is asked for, where it is malformed or of several parts, and where If-Range
    names another version; dates in If-Range name none, since no Last-Modified was given.
    """
    match = _RANGE.fullmatch(header.strip()) if header else None
    if match is None or (if_range is not None and if_range != etag):
        return 0, length
    first, last = match[1], match[2]
    if not first:
        if not last:
            return 0, length
        return (max(0, length - int(last)), length) if int(last) else None
    start, stop = int(first), int(last) + 1 if last else length
    if last and stop <= start:
        return 0, length
    return (start, min(stop, length)) if start < length else None
