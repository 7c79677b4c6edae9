"""Serve the images of completed jobs, with range requests and injected faults.

An image is drawn in a thread when it is first requested, and then cached.
"""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from io import BytesIO

from aiohttp import web

from krea_batch.testing.simulator.drawing.tiny_png import tiny_image
from krea_batch.testing.simulator.job_planner import SimulatedJob
from krea_batch.testing.simulator.responses import error, html, server_error
from krea_batch.testing.simulator.settings import SimulatorError
from krea_batch.testing.simulator.state import API_KEY_HEADER, SimulatorState

DRAW_THREADS = 2  # chosen: drawing shares the processor cores with the engine that waits for the images
MAX_CACHE_BYTES = 64 << 20  # chosen: repeated requests for an image follow soon after the first
MAX_INLINE_BYTES = 64 << 10  # chosen: making a tiny image of this size costs less than handing it to a thread
SLOW_CHUNKS = 20
_FILE_NAME = re.compile(r"output(?:-([2-4]))?\.png")
_DOWNLOAD_FAULTS = (
    "cdn-404",
    "cdn-503",
    "cdn-html",
    "cdn-cut",
    "cdn-corrupt",
    "cdn-trailing",
    "cdn-jpeg",
    "cdn-slow",
)


class Cdn:
    """The images of accepted jobs."""

    def __init__(self, state: SimulatorState) -> None:
        self.state = state
        self._executor = ThreadPoolExecutor(DRAW_THREADS, "simulator-images")
        self._cache: OrderedDict[str, bytes] = OrderedDict()
        self._cached_bytes = 0

    async def get(self, request: web.Request) -> web.StreamResponse:
        """Handle GET and HEAD of an image."""
        self._count_request(request)
        job = self.state.accounting.jobs.get(request.match_info["request_id"])
        number = _output_number(request.match_info["name"])
        if job is None or not 1 <= number <= job.outputs or job.status(self.state.now()) != "COMPLETED":
            return _not_found()
        job.download_requests[number - 1] += 1
        fault = self.state.fault_injector.first_fault(
            _DOWNLOAD_FAULTS, f"{job.fault_key}/{number}", job.download_requests[number - 1]
        )
        match fault:
            case "cdn-404":
                return _not_found()
            case "cdn-503":
                return server_error(503)
            case "cdn-html":
                return html(200)
            case _:
                pass
        image = await self._image(job, number)
        return await self._send(request, _corrupt(image, fault), f'"{job.request_id[-12:]}-{number}"', fault)

    async def other_path(self, request: web.Request) -> web.StreamResponse:
        """Handle any other URL of the CDN: 404."""
        self._count_request(request)
        return _not_found()

    def close(self) -> None:
        self._executor.shutdown(cancel_futures=True)

    def _count_request(self, request: web.Request) -> None:
        self.state.accounting.counts["cdn_requests"] += 1
        self.state.accounting.counts["cdn_with_key"] += API_KEY_HEADER in request.headers

    async def _send(self, request: web.Request, image: bytes, etag: str, fault: str | None) -> web.StreamResponse:
        length = len(image)
        media_type = "image/jpeg" if fault == "cdn-jpeg" else "image/png"
        headers = {"ETag": etag, "Accept-Ranges": "bytes", "Content-Type": media_type}
        byte_range = resolve_range(request.headers.get("Range"), request.headers.get("If-Range"), etag, length)
        if byte_range is None:
            headers["Content-Range"] = f"bytes */{length}"
            del headers["Content-Type"]
            return web.Response(status=416, headers=headers)
        start, stop = byte_range
        status = 200
        if stop - start < length:
            status = 206
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{length}"
        body = image[start:stop]
        if request.method == "HEAD":
            return web.Response(status=status, body=body, headers=headers)
        if fault in ("cdn-cut", "cdn-slow"):
            headers["Content-Length"] = str(len(body))
            return await self._send_slowly(request, web.StreamResponse(status=status, headers=headers), body, fault)
        self._count_download(len(body))
        return web.Response(status=status, body=body, headers=headers)

    async def _send_slowly(
        self, request: web.Request, response: web.StreamResponse, body: bytes, fault: str
    ) -> web.StreamResponse:
        """Send half of the body and cut the connection, or send all of it slowly."""
        await response.prepare(request)
        if fault == "cdn-cut":
            await response.write(body[: len(body) // 2])
            self.state.accounting.counts["bytes"] += len(body) // 2
            if request.transport is not None:
                request.transport.close()  # sends what was written before it closes
            return response
        size = max(1, -(-len(body) // SLOW_CHUNKS))
        for offset in range(0, len(body), size):
            await asyncio.sleep(self.state.settings.slow_duration_s / SLOW_CHUNKS)
            await response.write(body[offset : offset + size])
        self._count_download(len(body))
        return response

    def _count_download(self, length: int) -> None:
        self.state.accounting.counts["downloads"] += 1
        self.state.accounting.counts["bytes"] += length

    async def _image(self, job: SimulatedJob, number: int) -> bytes:
        key = f"{job.request_id} {number}"
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        settings = self.state.settings
        make = partial(_make_image, job, number, settings.seed, settings.image_bytes, drawn=settings.draws_images)
        if settings.draws_images or settings.image_bytes > MAX_INLINE_BYTES:
            image = await asyncio.get_running_loop().run_in_executor(self._executor, make)
        else:
            image = make()
        self._cache_image(key, image)
        return image

    def _cache_image(self, key: str, image: bytes) -> None:
        self._cached_bytes += len(image) - len(self._cache.get(key, b""))
        self._cache[key] = image
        while self._cached_bytes > MAX_CACHE_BYTES:
            self._cached_bytes -= len(self._cache.popitem(last=False)[1])


def require_pillow() -> None:
    """Raise SimulatorError if images cannot be drawn because Pillow is not installed."""
    if find_spec("PIL") is None:
        raise SimulatorError(
            "drawing images requires Pillow; pip install 'krea-batch[simulator]', or use tiny images"
        )


def embedded_text(job: SimulatedJob, number: int) -> dict[str, str]:
    """Return the iTXt chunks of an image: its job and request, so that tests can check where a file belongs."""
    return {
        "prompt": job.body["prompt"],
        "seed": str(job.body.get("seed", "")),
        "aspect_ratio": job.body.get("aspect_ratio", "1:1"),
        "creativity": job.body.get("creativity", "medium"),
        "request_id": job.request_id,
        "output": str(number),
    }


def _make_image(job: SimulatedJob, number: int, seed: int, size_bytes: int, *, drawn: bool) -> bytes:
    """Return the same image for the same body and seed; without a seed in the body, each job has its own image."""
    text = embedded_text(job, number)
    seed_key = repr((job.body.get("seed", f"{seed}/{job.occurrence}"), number))
    if not drawn:
        return tiny_image(text, seed_key, size_bytes)
    from krea_batch.testing.simulator.drawing.images import draw

    return draw(text, seed_key)


def _corrupt(image: bytes, fault: str | None) -> bytes:
    if fault == "cdn-corrupt":
        middle = len(image) // 2
        return image[:middle] + bytes([image[middle] ^ 0x10]) + image[middle + 1 :]
    if fault == "cdn-jpeg":
        return _to_jpeg(image)
    return image + b"<!-- served by a cache -->" if fault == "cdn-trailing" else image


def _to_jpeg(png: bytes) -> bytes:
    from PIL import Image

    file = BytesIO()
    with Image.open(BytesIO(png)) as image:
        image.convert("RGB").save(file, "JPEG")
    return file.getvalue()


def _output_number(name: str) -> int:
    match = _FILE_NAME.fullmatch(name)
    return 0 if match is None else int(match[1] or 1)


def _not_found() -> web.Response:
    return error(404, "Not Found", "There is no such object.")


_RANGE_HEADER = re.compile(r"bytes\s*=\s*(\d{0,18})-(\d{0,18})")


def resolve_range(header: str | None, if_range: str | None, etag: str, length: int) -> tuple[int, int] | None:
    """Return the first byte to send and the one after the last, or None for a 416 (RFC 9110, 14.2).

    The whole body is sent if there is no range, if the range is malformed or has several parts, and if If-Range
    does not match the ETag. A date in If-Range never matches, because no Last-Modified is sent.
    """
    match = _RANGE_HEADER.fullmatch(header.strip()) if header else None
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
