"""Find images that differ from the ledger, and download them again on request.

A repair is a poll and a download of an image that is already charged. It must never submit: this module has neither
a request body nor the URL of a submit, and `RepairGateway` has no method for it. Keep it so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import anyio
import msgspec

from krea_batch.gateway.url_policy import DownloadError
from krea_batch.maintenance.export.run_images import ExportedImage, RunImages
from krea_batch.pipeline.protocols import ImageBody
from krea_batch.rules.backoff import backoff_s
from krea_batch.rules.verdicts import Errored, Failed, Finished, PollFailed, PollVerdict
from krea_batch.storage.atomic import replacing
from krea_batch.storage.image_types import ImageValidator
from krea_batch.storage.png import ImageError

MAX_CONCURRENT_REPAIRS = 8  # chosen: repairs are few, and the gateway's limit is unknown here
MAX_REPAIR_ATTEMPTS = 5  # chosen: with backoff doubling from 0.5 s, about eight seconds of failures
READ_CHUNK_BYTES = 1 << 20  # chosen: little memory, and few reads per image


class Mismatch(msgspec.Struct, frozen=True):
    """An image that differed from the ledger. `problem` says how; `repaired` whether it was downloaded again."""

    id: str
    path: str
    request_id: str | None
    problem: str
    repaired: bool = False


class RepairGateway(Protocol):
    """The part of the gateway client that a repair needs; implemented by `gateway.client.GatewayClient`."""

    async def poll(self, request_id: str) -> PollVerdict: ...

    async def download(self, url: str, *, offset: int = 0, etag: str | None = None) -> ImageBody: ...


def check_images(run_images: RunImages) -> Iterator[tuple[ExportedImage, str | None]]:
    """Yield each image with the difference of its file from the ledger, or None if there is none."""
    for image in run_images.images():
        yield image, find_mismatch(image)


def find_mismatch(image: ExportedImage) -> str | None:
    """Return how the file differs from the ledger; None if it is a complete image with the recorded bytes."""
    validator, digest, size_bytes = ImageValidator(), hashlib.sha256(), 0
    try:
        with image.path.open("rb") as file:
            while data := file.read(READ_CHUNK_BYTES):
                size_bytes += len(data)
                digest.update(data)
                validator.feed(data)
            validator.finish(is_sized=bool(image.file.defect), keep_surplus=bool(image.file.defect))
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except ImageError as error:
        return f"incomplete or damaged ({error})"
    if size_bytes != image.file.bytes:
        return f"{size_bytes:,} bytes instead of {image.file.bytes:,}"
    return None if digest.hexdigest() == image.file.sha256 else "content differs (SHA-256 mismatch)"


def mismatch_of(image: ExportedImage, problem: str, *, repaired: bool = False) -> Mismatch:
    """Return the record of an image that differs from the ledger."""
    return Mismatch(image.outcome.id, image.file.path, image.outcome.request_id, problem, repaired)


async def repair_all(damaged: Sequence[tuple[ExportedImage, str]], gateway: RepairGateway) -> list[Mismatch]:
    """Repair damaged images, MAX_CONCURRENT_REPAIRS at a time. Return what became of them, in order."""
    results: dict[int, Mismatch] = {}
    limiter = anyio.CapacityLimiter(MAX_CONCURRENT_REPAIRS)

    async def repair_one(n: int, image: ExportedImage, problem: str) -> None:
        async with limiter:
            try:
                await repair(image, gateway)
            except RepairFailed as error:
                results[n] = mismatch_of(image, f"{problem}; {error}")
            else:
                results[n] = mismatch_of(image, problem, repaired=True)

    async with anyio.create_task_group() as group:
        for n, (image, problem) in enumerate(damaged):
            group.start_soon(repair_one, n, image, problem)
    return [results[n] for n in sorted(results)]


class RepairFailed(Exception):
    """An image could not be downloaded again; the message says why."""


async def repair(image: ExportedImage, gateway: RepairGateway) -> None:
    """Download the image again and replace its file, durably.

    Raises RepairFailed if the recorded image cannot be downloaded or written; the file then stays as it is.
    """
    data = await _download(image, gateway)
    # Only the recorded bytes may replace the file. Even a damaged one may be all that is left of the image.
    if hashlib.sha256(data).hexdigest() != image.file.sha256:
        raise RepairFailed("the gateway now returns a different image")
    try:
        await anyio.to_thread.run_sync(_replace_file, image.path, data)
    except OSError as error:
        raise RepairFailed(f"cannot be written ({error.strerror})") from None


async def _download(image: ExportedImage, gateway: RepairGateway) -> bytes:
    """Return the downloaded bytes. Every attempt polls for a new URL first, since image URLs expire.

    Raises RepairFailed after MAX_REPAIR_ATTEMPTS temporary errors, or for a final error.
    """
    reason = ""
    for attempt in range(1, MAX_REPAIR_ATTEMPTS + 1):
        try:
            url = await _image_url(image, gateway)
            body = await gateway.download(url)
            async with body:
                return b"".join([chunk async for chunk in body.chunks()])
        except DownloadError as error:
            reason = error.reason
            await anyio.sleep(max(backoff_s(attempt, 1.0), error.retry_after_s or 0.0))
    raise RepairFailed(f"{MAX_REPAIR_ATTEMPTS} attempts failed: {reason}; try again later")


async def _image_url(image: ExportedImage, gateway: RepairGateway) -> str:
    """Return the current URL of the image. Raises DownloadError for temporary errors, RepairFailed for final ones."""
    if not image.outcome.request_id:
        raise RepairFailed("the job has no request_id")
    output_index = [file.path for file in image.outcome.files].index(image.file.path)
    match await gateway.poll(image.outcome.request_id):
        case Finished(media_urls=urls) if output_index < len(urls):
            return urls[output_index]
        case Failed(detail) | Errored(detail):
            raise RepairFailed(f"the gateway now reports: {detail or 'failed'}")
        case PollFailed(reason=reason, retry_after_s=delay_s):
            raise DownloadError(reason, retry_after_s=delay_s)
        case _:
            raise RepairFailed("the gateway no longer has the image")


def _replace_file(path: Path, data: bytes) -> None:
    """Replace the file atomically and durably; create its directory if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(data)
