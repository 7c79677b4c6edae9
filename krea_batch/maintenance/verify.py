"""A run's images come in; those that are not as the ledger says go out, and on request they are fetched again.

Newcomers: fetching again is a poll and a download of what is paid. Nothing here can submit: it holds neither a job's
body nor the address of a submit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
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
from krea_batch.storage.png import PngError, PngValidator

MAX_CONCURRENT_REPAIRS = 8  # chosen: repairs are few, and the gateway's limit is not known here
MAX_REPAIR_ATTEMPTS = 5  # chosen: with pauses doubling from half a second, some eight seconds of trouble
READ_CHUNK_BYTES = 1 << 20


class Mismatch(msgspec.Struct, frozen=True):
    """An image that is not as recorded. `what` says how; `repaired` whether it is now."""

    id: str
    path: str
    request_id: str | None
    problem: str
    repaired: bool = False


class RepairGateway(Protocol):
    """What a repair needs of the gateway: `gateway.client.GatewayClient` has it."""

    async def poll(self, request_id: str) -> PollVerdict: ...

    async def download(self, url: str, *, offset: int = 0, etag: str | None = None) -> ImageBody: ...


def check_images(run_images: RunImages) -> Iterator[tuple[ExportedImage, str | None]]:
    """Each image, with what is wrong with its file, or None."""
    for image in run_images.images():
        yield image, find_mismatch(image)


def find_mismatch(image: ExportedImage) -> str | None:
    """Why the file is not the image on record; None where it is, byte for byte, and a whole PNG."""
    validator, digest, size_bytes = PngValidator(), hashlib.sha256(), 0
    try:
        with image.path.open("rb") as file:
            while data := file.read(READ_CHUNK_BYTES):
                size_bytes += len(data)
                digest.update(data)
                validator.feed(data)
            validator.finish()
    except FileNotFoundError:
        return "it is gone"
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    except PngError as error:
        return f"it is not whole ({error})"
    if size_bytes != image.file.bytes:
        return f"it has {size_bytes:,} bytes instead of {image.file.bytes:,}"
    return None if digest.hexdigest() == image.file.sha256 else "it is another image (its SHA-256 differs)"


class RepairFailed(Exception):
    """An image could not be had again; the text says why."""


async def repair(image: ExportedImage, gateway: RepairGateway) -> None:
    """Put the image on record back into its place. Raises NotRepaired, and then leaves what is there."""
    data = await _download(image, gateway)
    if hashlib.sha256(data).hexdigest() != image.file.sha256:
        raise RepairFailed("the gateway now gives another image than the one on record")
    try:
        await anyio.to_thread.run_sync(_replace_file, image.path, data)
    except OSError as error:
        raise RepairFailed(f"it cannot be written ({error.strerror})") from None


async def _download(image: ExportedImage, gateway: RepairGateway) -> bytes:
    """The image's bytes: its status is asked for, since addresses of images expire."""
    reason = ""
    for attempt in range(1, MAX_REPAIR_ATTEMPTS + 1):
        try:
            url = await _image_url(image, gateway)
            media = await gateway.download(url)
            async with media:
                return b"".join([chunk async for chunk in media.chunks()])
        except DownloadError as error:
            reason = error.reason
            await anyio.sleep(max(backoff_s(attempt, 1.0), error.retry_after_s or 0.0))
    raise RepairFailed(f"tried {MAX_REPAIR_ATTEMPTS} times: {reason}")


async def _image_url(image: ExportedImage, gateway: RepairGateway) -> str:
    """Where the image is now. Raises MediaError for trouble that may pass, NotRepaired for what will not."""
    if not image.outcome.request_id:
        raise RepairFailed("there is no request_id to ask for it by")
    output_index = [file.path for file in image.outcome.files].index(image.file.path)
    match await gateway.poll(image.outcome.request_id):
        case Finished(media_urls=urls) if output_index < len(urls):
            return urls[output_index]
        case Failed(detail) | Errored(detail):
            raise RepairFailed(f"the gateway says of it now: {detail or 'failed'}")
        case PollFailed(reason=reason, retry_after_s=delay_s):
            raise DownloadError(reason, retry_after_s=delay_s)
        case _:
            raise RepairFailed("the gateway has no image of it any more")


def _replace_file(path: Path, data: bytes) -> None:
    """The file under its name, whole and durable, or as before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(data)
