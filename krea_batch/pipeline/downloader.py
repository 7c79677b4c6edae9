"""Finished flights come in; they go out with every image kept, on disk or by a sink, whole, and on record.

Newcomers: nothing that goes wrong here leads to another POST. A cut download goes on by Range where it stopped,
a wrong body is fetched again, and what cannot be had in this run is left to the next one under its request_id.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import anyio

from krea_batch.errors import RunStopped
from krea_batch.gateway.url_policy import DownloadError
from krea_batch.jobs import ErrorInfo, Outcome, State, StoredFile
from krea_batch.ledger import LedgerStore
from krea_batch.pipeline.context import ImageBody, RunContext
from krea_batch.pipeline.in_flight_job import InFlightJob
from krea_batch.pipeline.task_pool import TaskPool
from krea_batch.rules import backoff
from krea_batch.storage.image_file import ImageFile, PngError
from krea_batch.storage.local_writer import LocalImageWriter
from krea_batch.storage.sink_writer import SinkImageWriter
from krea_batch.storage.sinks import Sink, SinkPermanentError, SinkTransientError

GATHER_BYTES = 2 << 20  # chosen: most images cost one hop to a disk thread; 64 of them 128 MB at the worst


class _Download:
    """What is there of one flight's images."""

    __slots__ = ("etag", "flight", "image", "stored", "tries")

    def __init__(self, flight: InFlightJob) -> None:
        self.flight = flight
        self.stored: list[StoredFile] = []
        self.image: ImageFile | None = None
        self.etag: str | None = None
        self.tries = 0  # for the present image

    @property
    def url(self) -> str:
        """Where the next image lies."""
        return self._urls[len(self.stored)]

    def next_image(self, out: Path) -> ImageFile:
        """The next image, nothing of which has come; its file's stem as in DESIGN, A run's folder."""
        flight, output = self.flight, len(self.stored) + 1
        name = flight.id if output == 1 else f"{flight.id}-{output}"
        return ImageFile(out, name, flight.job_no, job_id=flight.id, output=output)

    @property
    def complete(self) -> bool:
        return len(self.stored) == len(self._urls)

    @property
    def _urls(self) -> tuple[str, ...]:
        return self.flight.finished.media_urls if self.flight.finished else ()


class Downloader:
    """Fetches the images of finished flights, `settings.downloads` at a time.

    `ended` takes a flight that ended here, `left` one that stays on record for the next run. Images are kept in
    the run's folder, or by `sink`.
    """

    def __init__(
        self,
        run: RunContext,
        *,
        on_ended: Callable[[InFlightJob, Outcome], None],
        on_deferred: Callable[[InFlightJob], None],
        sink: Sink | None = None,
    ) -> None:
        self._run = run
        self._ended = on_ended
        self._left = on_deferred
        self._queue: asyncio.Queue[_Download] = asyncio.Queue()
        self._host_held_until_s: dict[str, float] = {}
        self._tasks = TaskPool()
        self._writer: LocalImageWriter | SinkImageWriter
        if sink is None:
            self._writer = LocalImageWriter(run.disk)
        else:
            self._writer = SinkImageWriter(
                run.settings.out, run.disk, sink, stop=run.stop, cancellable=self._tasks.cancellable
            )

    def put(self, flight: InFlightJob) -> None:
        """Take a finished flight."""
        self._queue.put_nowait(_Download(flight))

    async def prepare(self) -> None:
        """Be called before anything is paid; a sink that keeps nothing stops the run here."""
        if isinstance(self._writer, SinkImageWriter):
            await self._writer.prepare()

    async def work(self) -> None:
        """Download for ever, several at a time."""
        async with self._tasks as workers:
            for _ in range(self._run.settings.downloads):
                workers.spawn(self._worker())
            await anyio.sleep_forever()

    async def _worker(self) -> None:
        while True:
            download = await self._tasks.cancellable(self._queue.get)
            if (wait_s := self._held_s(download)) > 0:
                self._run.call_later(wait_s, self._queue.put_nowait, download)
                continue
            try:
                await self._fetch_all(download)
            except DownloadError as error:
                await self._try_later(download, "download", error.reason, self._hold_host(download, error))
            except PngError as error:
                download.image = None  # its bytes are worthless: ask for all of them again
                await self._try_later(download, "download", f"the image is not whole: {error}")
            except SinkTransientError as error:  # the image stays in its `.part`, and is not fetched again
                await self._try_later(download, "sink", error.reason)
            except SinkPermanentError as error:
                self._stop(download, RunStopped(error.reason, error.next_step))
            except OSError as error:  # the network's are MediaErrors by now: this is the disk
                self._disk_failed(download, error)

    async def _fetch_all(self, download: _Download) -> None:
        while not download.complete:
            asked_s = self._run.now_s()
            stored = await self._fetch(download)
            download.stored.append(stored)
            download.image, download.etag, download.tries = None, None, 0
            self._run.stats.downloads += 1
            self._run.stats.downloaded_bytes += stored.bytes
            self._run.emit_image_stored(download.flight, stored, asked_s)
        flight = download.flight
        outcome = await self._run.record(
            LedgerStore.mark_stored, flight.job_no, download.stored, self._run.wall_clock()
        )
        self._run.emit_state_change(flight, State.FINISHED, State.SUCCEEDED)
        self._ended(flight, outcome)

    async def _fetch(self, download: _Download) -> StoredFile:
        """The next image, kept. Raises MediaError, PngError, SinkError, SinkRefused, OSError.

        What has come stays in its `.part`.
        """
        image = download.image or download.next_image(self._run.settings.out)
        download.image = image
        rest = [] if image.is_whole else await self._tasks.cancellable(self._receive, download, image)
        return await self._writer.finish(image, rest)

    async def _receive(self, download: _Download, image: ImageFile) -> list[bytes]:
        """Have the image sent. Returns the last, unwritten bytes."""
        etag = download.etag if image.taken_bytes else None
        media = await self._run.gateway.download(download.url, offset=image.taken_bytes, etag=etag)
        async with media:
            if media.offset != image.taken_bytes:
                image.start_over()
            download.etag = media.etag
            return await self._pour(media, image)

    async def _pour(self, media: ImageBody, image: ImageFile) -> list[bytes]:
        """Write what comes, a few megabytes a hop. Returns the last, unwritten bytes."""
        gathered: list[bytes] = []
        size_bytes = 0
        try:
            async for chunk in media.chunks():
                gathered.append(chunk)
                size_bytes += len(chunk)
                if size_bytes >= GATHER_BYTES:
                    await self._run.on_disk(image.write, gathered)
                    gathered, size_bytes = [], 0
        except DownloadError:
            await self._run.on_disk(image.write, gathered)
            raise
        return gathered

    def _held_s(self, download: _Download) -> float:
        """How long nothing is to be fetched from where the image lies, because its host said so."""
        if not self._host_held_until_s:
            return 0.0
        return self._host_held_until_s.get(_host(download.url), 0.0) - self._run.now_s()

    # ---- trouble -----------------------------------------------------------------------------------------

    async def _try_later(self, download: _Download, where: str, reason: str, least_s: float = 0.0) -> None:
        flight = download.flight
        download.tries += 1
        self._run.emit_retry(flight, where, reason)
        if download.tries >= self._run.settings.download_attempts:
            await self._give_up(flight, ErrorInfo(where, f"tried {download.tries} times: {reason}"))
            return
        wait_s = backoff.backoff_s(download.tries, self._run.random())
        wait_s = max(wait_s, self._run.retries.spend(self._run.now_s()), least_s)
        self._run.call_later(wait_s, self._queue.put_nowait, download)

    def _hold_host(self, download: _Download, error: DownloadError) -> float:
        """Heed a host that asks to be left alone. Returns for how many seconds it does."""
        if error.status not in (429, 503) or not error.retry_after_s:
            return 0.0
        self._host_held_until_s[_host(download.url)] = self._run.now_s() + error.retry_after_s
        return error.retry_after_s

    async def _give_up(self, flight: InFlightJob, why: ErrorInfo) -> None:
        """End the flight in this run; the next one asks for its status again, and so for fresh URLs."""
        outcome = await self._run.record(
            LedgerStore.mark_timed_out, flight.job_no, why, self._run.wall_clock(), flight.polls
        )
        self._run.emit_state_change(flight, State.FINISHED, State.TIMED_OUT)
        self._ended(flight, outcome)

    def _disk_failed(self, download: _Download, error: OSError) -> None:
        reason = f"the image of job {download.flight.id!r} cannot be written ({error.strerror})"
        self._stop(download, RunStopped(reason, "make room in --out, then run the same command again"))

    def _stop(self, download: _Download, why: RunStopped) -> None:
        self._run.stop(why)
        self._left(download.flight)


def _host(url: str) -> str:
    """Whom a hold concerns. A URL that cannot be read gets no further than `fetch`, which refuses it."""
    try:
        return urlsplit(url).netloc
    except ValueError:
        return ""
