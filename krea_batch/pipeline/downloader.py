"""Download the images of completed jobs and hand them to a writer of `storage`. A job ends once all are durable.

No failure here leads to another POST. An interrupted download continues with a Range request, an invalid body is
downloaded again, and a job whose images cannot be downloaded in this run keeps its request_id for the next one.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from urllib.parse import urlsplit

import anyio

from krea_batch.errors import RunStopped
from krea_batch.gateway.url_policy import DownloadError
from krea_batch.jobs import ErrorInfo, State, StoredFile
from krea_batch.pipeline.context import RunContext
from krea_batch.pipeline.executor import TransitionExecutor
from krea_batch.pipeline.in_flight_job import InFlightJob
from krea_batch.pipeline.protocols import ImageBody, Stages
from krea_batch.pipeline.task_pool import TaskPool
from krea_batch.rules import backoff, lifecycle
from krea_batch.storage.image_file import ImageError, ImageFile
from krea_batch.storage.local_writer import LocalImageWriter
from krea_batch.storage.os_errors import is_out_of_files, next_step
from krea_batch.storage.sink_writer import SinkImageWriter
from krea_batch.storage.sinks import Sink, SinkPermanentError, SinkTransientError

EXPIRED_STATUSES = frozenset({401, 403, 404, 410})  # chosen: what stores answer for a signed URL that has expired
MAX_REFRESHES = 3  # chosen: if fresh URLs fail, too, they have not expired
WRITE_BYTES = 2 << 20  # chosen: most images need one call of a disk thread; 64 downloads hold 128 MB at most


class _Download:
    """The state of one job's downloads: the stored images, and the partial file of the next one."""

    __slots__ = ("attempts", "etag", "failing_since_s", "image", "job", "stored")

    def __init__(self, job: InFlightJob) -> None:
        self.job = job
        self.stored: list[StoredFile] = []
        self.image: ImageFile | None = None
        self.etag: str | None = None
        self.attempts = 0  # failed ones, for the current image
        self.failing_since_s = 0.0  # when the first of them failed

    @property
    def url(self) -> str:
        """The URL of the next image."""
        return self._urls[len(self.stored)]

    def next_image(self, out: Path, run_no: int) -> ImageFile:
        """Return an empty file for the next image: `<name>`, and `<name>-2` and so on for further images.

        `run_no` is 0 if no other run shares the directory.
        """
        job, output = self.job, len(self.stored) + 1
        name = job.name if output == 1 else f"{job.name}-{output}"
        # Bytes after the end of a PNG may be missing in the next response. If not, the CDN's file has them.
        return ImageFile(
            out, name, job.job_no, job_id=job.id, output=output, keep_surplus=self.attempts > 0, run_no=run_no
        )

    @property
    def complete(self) -> bool:
        return len(self.stored) == len(self._urls)

    @property
    def _urls(self) -> tuple[str, ...]:
        return self.job.finished.media_urls if self.job.finished else ()


class Downloader:
    """Downloads the images of completed jobs, `settings.downloads` at a time.

    Images are stored in the run directory, or by `sink`.
    """

    def __init__(
        self, run: RunContext, executor: TransitionExecutor, stages: Stages, *, sink: Sink | None = None
    ) -> None:
        self._run = run
        self._executor = executor
        self._stages = stages
        self._queue: asyncio.Queue[_Download] = asyncio.Queue()
        self._host_paused_until_s: dict[str, float] = {}
        self._tasks = TaskPool()
        self._writer: LocalImageWriter | SinkImageWriter
        if sink is None:
            self._writer = LocalImageWriter(run.disk, run.settings.downloads)
        else:
            self._writer = SinkImageWriter(
                run.settings.out,
                run.disk,
                sink,
                stop=run.stop,
                cancellable=self._tasks.cancellable,
                shared=run.settings.shared,
            )

    def put(self, job: InFlightJob) -> None:
        """Take a completed job."""
        self._queue.put_nowait(_Download(job))

    async def prepare(self) -> None:
        """Check the sink, before anything is charged. A sink that cannot store images stops the run."""
        if isinstance(self._writer, SinkImageWriter):
            await self._writer.prepare()

    async def work(self) -> None:
        """Download images, several at a time, forever."""
        async with self._tasks as workers:
            for _ in range(self._run.settings.downloads):
                workers.spawn(self._worker())
            await anyio.sleep_forever()

    async def _worker(self) -> None:
        while True:
            download = await self._tasks.cancellable(self._queue.get)
            if (wait_s := self._host_pause_s(download)) > 0:
                self._run.call_later(wait_s, self._queue.put_nowait, download)
                continue
            try:
                await self._store_all(download)
            except DownloadError as error:
                finished = download.job.finished
                if finished and _needs_fresh_urls(download, error):
                    await self._executor.apply(download.job, lifecycle.refresh(finished))
                    continue
                await self._retry_later(download, "download", error.reason, self._pause_host(download, error))
            except ImageError as error:
                download.image = None  # The bytes are not valid, so all of them are downloaded again.
                await self._retry_later(download, "download", f"the image is incomplete or damaged: {error}")
            except SinkTransientError as error:  # The image stays in its `.part` and is not downloaded again.
                await self._retry_later(download, "sink", error.reason)
            except SinkPermanentError as error:
                self._stop(download, RunStopped(error.reason, error.next_step))
            except OSError as error:  # Network errors are DownloadErrors, so this is an error of a file.
                if is_out_of_files(error):
                    await self._retry_later(download, "download", f"cannot write the image ({error.strerror})")
                else:
                    self._stop_for_disk(download, error)

    async def _store_all(self, download: _Download) -> None:
        while not download.complete:
            started_s = self._run.now_s()
            stored = await self._store_next(download)
            download.stored.append(stored)
            download.image, download.etag, download.attempts = None, None, 0
            self._run.delivery.record_stored()
            self._run.stats.downloads += 1
            self._run.stats.defects += bool(stored.defect)
            self._run.stats.downloaded_bytes += stored.bytes
            self._run.events.emit_image_stored(download.job, stored, started_s)
        await self._executor.apply(download.job, lifecycle.store(tuple(download.stored)))

    async def _store_next(self, download: _Download) -> StoredFile:
        """Download and store the next image. On errors, the bytes that arrived stay in its `.part`.

        Raises DownloadError, ImageError, SinkTransientError, SinkPermanentError and OSError.
        """
        settings = self._run.settings
        image = download.image or download.next_image(settings.out, self._run.run_no if settings.shared else 0)
        download.image = image
        rest = [] if image.is_complete else await self._tasks.cancellable(self._receive, download, image)
        return await self._writer.finish(image, rest)

    async def _receive(self, download: _Download, image: ImageFile) -> list[bytes]:
        """Download the rest of an image. Return its last bytes, which are not written yet."""
        etag = download.etag if image.written_bytes else None
        body = await self._run.gateway.download(download.url, offset=image.written_bytes, etag=etag)
        async with body:
            if body.offset != image.written_bytes:
                image.start_over()
            download.etag, image.is_sized = body.etag, body.is_sized
            return await self._stream_to_disk(body, image)

    async def _stream_to_disk(self, body: ImageBody, image: ImageFile) -> list[bytes]:
        """Write a body in pieces of about WRITE_BYTES. Return the last bytes, which are not written yet."""
        chunks: list[bytes] = []
        size_bytes = 0
        try:
            async for chunk in body.chunks():
                chunks.append(chunk)
                size_bytes += len(chunk)
                if size_bytes >= WRITE_BYTES:
                    await self._run.on_disk(image.write, chunks)
                    chunks, size_bytes = [], 0
        except DownloadError:
            await self._run.on_disk(image.write, chunks)
            raise
        return chunks

    def _host_pause_s(self, download: _Download) -> float:
        """Return for how many more seconds the host of the next image must not be sent requests (Retry-After)."""
        if not self._host_paused_until_s:
            return 0.0
        return self._host_paused_until_s.get(_host(download.url), 0.0) - self._run.now_s()

    # ---- errors ------------------------------------------------------------------------------------------

    async def _retry_later(self, download: _Download, stage: str, reason: str, min_wait_s: float = 0.0) -> None:
        job = download.job
        download.attempts += 1
        self._run.delivery.record_failure(job.job_no, reason)
        self._run.events.emit_retry(job, stage, reason)
        now_s = self._run.now_s()
        if download.attempts == 1:
            download.failing_since_s = now_s
        elif now_s - download.failing_since_s >= self._run.settings.download_patience_s:
            await self._time_out(job, ErrorInfo(stage, f"tried {download.attempts} times: {reason}"))
            return
        wait_s = backoff.backoff_s(download.attempts, self._run.random())
        wait_s = max(wait_s, self._run.retries.spend(now_s), min_wait_s)
        self._run.call_later(wait_s, self._queue.put_nowait, download)

    def _pause_host(self, download: _Download, error: DownloadError) -> float:
        """Follow the Retry-After of a 429 or 503. Return the seconds to wait, 0 if there are none."""
        if error.status not in (429, 503) or not error.retry_after_s:
            return 0.0
        self._host_paused_until_s[_host(download.url)] = self._run.now_s() + error.retry_after_s
        return error.retry_after_s

    async def _time_out(self, job: InFlightJob, error: ErrorInfo) -> None:
        """End the job in this run. The next run polls it again, which also returns fresh URLs."""
        await self._executor.apply(job, lifecycle.time_out(State.FINISHED, error))

    def _stop_for_disk(self, download: _Download, error: OSError) -> None:
        reason = f"cannot write an image of job {download.job.id!r} ({error.strerror})"
        self._stop(download, RunStopped(reason, f"{next_step(error)}, then run again to resume"))

    def _stop(self, download: _Download, reason: RunStopped) -> None:
        self._run.stop(reason)
        self._stages.defer(download.job)


def _needs_fresh_urls(download: _Download, error: DownloadError) -> bool:
    """Return whether a poll may help: the URLs have expired, or their host does not answer and they are old.

    URLs of an earlier run may name a host that has moved since. The port of the simulator differs in each run.
    """
    job, image = download.job, download.image
    if error.status in EXPIRED_STATUSES:
        return job.refreshes < MAX_REFRESHES
    has_bytes = image is not None and image.written_bytes > 0
    return job.was_accepted_earlier and error.status == 0 and job.refreshes == 0 and not has_bytes


def _host(url: str) -> str:
    """Return the host and port of a URL, or "" if it is invalid; the gateway client refuses such a URL later."""
    try:
        return urlsplit(url).netloc
    except ValueError:
        return ""
