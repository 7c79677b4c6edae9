"""Requests for pictures come in; PNGs, parts of them, or a fault that was asked for, go out."""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from aiohttp import web

from krea_batch.simulator.books import SimulatedJob
from krea_batch.simulator.gateway import HTML, KEY_HEADER, Gateway, cut, error
from krea_batch.simulator.settings import SimulatorError
from krea_batch.simulator.tiny_png import tiny_png

CACHED_PICTURES = 64  # chosen: what is asked for again is asked for soon
TINY_SIZE = 24  # pixels on the longer side
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


class Cdn:
    """The pictures of accepted jobs, drawn when they are first asked for."""

    def __init__(self, gateway: Gateway, threads: int = 2) -> None:
        self.gateway = gateway
        self._threads = ThreadPoolExecutor(threads, "simulator-pictures")
        self._cache: OrderedDict[str, bytes] = OrderedDict()
        if not gateway.settings.tiny:
            need_pillow()

    async def get(self, request: web.Request) -> web.StreamResponse:
        books, dice = self.gateway.books, self.gateway.dice
        books.counts["downloads"] += 1
        books.counts["cdn_with_key"] += KEY_HEADER in request.headers
        job = books.jobs.get(request.match_info["request_id"])
        number = _number(request.match_info["name"])
        if job is None or not 1 <= number <= job.outputs or job.status(self.gateway.now()) != "COMPLETED":
            return error(404, "Not Found", "There is no such object.")
        about = (job.request_id, number, books.counts["downloads"])
        fault = next((name for name in _FAULTS if dice.strikes(name, *about)), None)
        if fault in _INSTEAD:
            return _INSTEAD[fault]()
        picture = await self._picture(job, number)
        etag = f'"{job.request_id[-12:]}-{number}"'
        return await self._send(request, _spoil(picture, fault), etag, fault)

    async def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)

    async def _send(
        self, request: web.Request, picture: bytes, etag: str, fault: str | None
    ) -> web.StreamResponse:
        start = _start(request, len(picture), etag)
        headers = {"ETag": etag, "Accept-Ranges": "bytes"}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(picture) - 1}/{len(picture)}"
        part = picture[start:]
        self.gateway.books.counts["bytes"] += len(part)
        status = 206 if start else 200
        if fault not in ("cdn-cut", "cdn-slow"):
            return web.Response(status=status, body=part, headers=headers, content_type="image/png")
        response = web.StreamResponse(status=status, headers=headers)
        response.content_type = "image/png"
        response.content_length = len(part)
        await response.prepare(request)
        if fault == "cdn-cut":
            await response.write(part[: len(part) // 2])
            await asyncio.sleep(0.01)  # let the first half go out before the connection does
            return cut(request)
        for at in range(0, len(part), max(1, len(part) // 20)):
            await response.write(part[at : at + max(1, len(part) // 20)])
            await asyncio.sleep(0.05)
        return response

    async def _picture(self, job: SimulatedJob, number: int) -> bytes:
        key = f"{job.request_id} {number}"
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        settings = self.gateway.settings
        if settings.tiny:
            picture = _tiny(job, number, settings.picture_bytes)
        else:
            from krea_batch.simulator.pictures import draw

            loop = asyncio.get_running_loop()
            picture = await loop.run_in_executor(
                self._threads, draw, job.body, number, settings.seed, text_of(job, number)
            )
        self._cache[key] = picture
        while len(self._cache) > CACHED_PICTURES:
            self._cache.popitem(last=False)
        return picture


def text_of(job: SimulatedJob, number: int) -> dict[str, str]:
    """What a picture carries, so that anybody can prove whose it is."""
    body = job.body
    return {
        "prompt": body["prompt"],
        "seed": str(body.get("seed", "")),
        "aspect_ratio": str(body.get("aspect_ratio", "1:1")),
        "creativity": str(body.get("creativity", "medium")),
        "request_id": job.request_id,
        "output": str(number),
    }


def need_pillow() -> None:
    """Raise SimulatorError where pictures cannot be drawn."""
    from importlib.util import find_spec

    if find_spec("PIL") is None:
        raise SimulatorError(
            "drawing pictures needs Pillow; pip install 'krea-batch[simulator]', or ask for tiny ones"
        )


_INSTEAD: dict[str | None, Callable[[], web.Response]] = {
    "cdn-404": lambda: error(404, "Not Found", "asked for by a fault"),
    "cdn-503": lambda: error(503, "Service Unavailable", "asked for by a fault"),
    "cdn-html": lambda: web.Response(text=HTML, content_type="text/html"),
}
_FAULTS = ("cdn-404", "cdn-503", "cdn-html", "cdn-cut", "cdn-corrupt", "cdn-trailing", "cdn-slow")


def _spoil(picture: bytes, fault: str | None) -> bytes:
    if fault == "cdn-corrupt":
        middle = len(picture) // 2
        return picture[:middle] + bytes([picture[middle] ^ 0x10]) + picture[middle + 1 :]
    return picture + b"<!-- served by a cache -->" if fault == "cdn-trailing" else picture


def _start(request: web.Request, length: int, etag: str) -> int:
    """The first byte to send: that of a Range request which still means this picture, else 0."""
    wanted = _RANGE.fullmatch(request.headers.get("Range", ""))
    if wanted is None or request.headers.get("If-Range", etag) != etag:
        return 0
    start = int(wanted[1])
    return start if start < length else 0


def _tiny(job: SimulatedJob, number: int, about_bytes: int) -> bytes:
    across, _, down = str(job.body.get("aspect_ratio", "1:1")).partition(":")
    ratio = float(across) / float(down)
    width = TINY_SIZE if ratio >= 1 else max(1, round(TINY_SIZE * ratio))
    height = TINY_SIZE if ratio <= 1 else max(1, round(TINY_SIZE / ratio))
    seed = hash((job.body["prompt"], job.body.get("seed"), number)) & 0xFFFFFFFF
    return tiny_png(width, height, seed, text_of(job, number), about_bytes)


def _number(name: str) -> int:
    match = re.fullmatch(r"output(?:-(\d))?\.png", name)
    return 0 if match is None else int(match[1] or 1)


__all__: list[Any] = ["Cdn", "need_pillow", "text_of"]
