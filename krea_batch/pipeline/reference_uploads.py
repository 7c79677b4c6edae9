"""Upload the local reference images of a run's jobs before they are submitted.

An upload starts when its job is queued at the submitter, so many uploads run at the same time. A job is submitted
once the store has its images. The URLs are signed just before the submit, so they have to be valid only until the job
has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from krea_batch.errors import JobError, RunStopped
from krea_batch.gateway import wire
from krea_batch.jobs import Job
from krea_batch.pipeline.context import RunContext
from krea_batch.pipeline.in_flight_job import InFlightJob, build_in_flight_job
from krea_batch.storage.reference_files import (
    REFERENCE_FILES,
    content_names,
    has_paths,
    read_reference,
    read_unchanged,
    with_contents,
)
from krea_batch.storage.sinks import SinkPermanentError, SinkTransientError

if TYPE_CHECKING:
    from krea_batch.storage.reference_store import ReferenceStore  # obstore is optional

LIFETIME_MARGIN = timedelta(hours=24)  # chosen: pauses of the gateway, and clocks that differ
MAX_LIFETIME = timedelta(days=7)  # S3, Sharing objects with presigned URLs: at most 7 days
CHECK_TIMEOUT_S = 60.0  # chosen: fail before charging if the store is this slow


class ReferenceUploads:
    """The local reference images of one run. `store` is None if the run has none for them."""

    def __init__(self, run: RunContext, store: ReferenceStore | None) -> None:
        self._run = run
        self._store = store
        self._uploads: dict[str, asyncio.Task[RunStopped | None]] = {}  # by the name of the content
        self._lifetime = min(timedelta(seconds=run.settings.job_timeout_s) + LIFETIME_MARGIN, MAX_LIFETIME)

    async def check(self) -> None:
        """Stop the run before anything is charged if the store does not work."""
        if self._store is None:
            return
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_S):
                await self._store.check()
        except TimeoutError:
            self._run.stop(_stop_of(SinkTransientError(f"{self._store.url} does not answer")))
        except (SinkTransientError, SinkPermanentError) as error:
            self._run.stop(_stop_of(error))

    async def build(self, job: Job, tenant: str = "") -> InFlightJob:
        """Return the in-flight job for a valid job. Raises JobError for a local image that cannot be used."""
        if not job.image_style_references:
            return build_in_flight_job(job, tenant)
        is_local = has_paths(job)
        if (is_local or content_names(job)) and self._store is None:
            hint = "set references to an object store: s3://bucket/folder"
            raise JobError("image_path needs a place from which the gateway can fetch it", hint, job_id=job.id)
        if is_local:
            try:
                job = await self._run.on_disk(with_contents, job, read_reference)
            except JobError as error:
                raise JobError(error.problem, error.hint, job_id=job.id) from None
        built = build_in_flight_job(job, tenant)
        if self._store is not None:
            built.body = wire.with_object_urls(built.body, f"{self._store.url}/")
        return built

    def start(self, job: InFlightJob) -> None:
        """Start the uploads of a job that is going to be submitted. Idempotent."""
        names = wire.object_names(job.body)
        if not names or self._store is None or self._find_problem(job, names):
            return
        paths = _paths(job)
        for name in names.keys() - self._uploads.keys():
            self._uploads[name] = asyncio.create_task(self._upload(self._store, name, paths.get(name)))

    async def prepare(self, job: InFlightJob) -> None:
        """Set the body to be sent, once the store has the job's images. If that fails, stop the run."""
        job.signed_body = b""
        recorded = wire.object_names(job.body)
        if not recorded:
            return
        problem = self._find_problem(job, recorded)
        for name in () if problem else recorded:
            problem = problem or await asyncio.shield(self._uploads[name])
        if self._store and not problem:
            try:
                urls = await self._store.sign(recorded, self._lifetime)
                job.signed_body = wire.with_signed_urls(job.body, urls)
            except (SinkTransientError, SinkPermanentError) as error:
                problem = _stop_of(error)
        if problem:
            self._run.stop(problem)
            await asyncio.sleep(0)  # The stop has cancelled the caller: raise CancelledError here.

    async def close(self) -> None:
        """Cancel the uploads that are not done."""
        uploads = list(self._uploads.values())
        for upload in uploads:
            upload.cancel()
        await asyncio.gather(*uploads, return_exceptions=True)

    def _find_problem(self, job: InFlightJob, recorded: Mapping[str, str]) -> RunStopped | None:
        """Return why the job cannot be submitted with the store of this run, if that is known."""
        name, url = next(iter(recorded.items()))
        base_url = url.removesuffix(f"/{name}")
        if self._store and self._store.url == base_url:
            return None
        return RunStopped(
            f"job {job.id!r} has a reference image in {base_url}",
            f"run again with references={base_url} (command line: --references {base_url})",
        )

    async def _upload(self, store: ReferenceStore, name: str, path: str | None) -> RunStopped | None:
        """Upload a content. Return why that failed, or None."""
        read = partial(self._run.on_disk, read_unchanged, path, name) if path else None
        try:
            await store.ensure(name, read)
        except (SinkTransientError, SinkPermanentError) as error:
            return _stop_of(error)
        except JobError as error:
            return RunStopped(error.problem, error.hint)
        return None


def _paths(job: InFlightJob) -> Mapping[str, str]:
    """Return the paths of the local reference images of a job, as far as its metadata have them."""
    metadata: dict[str, Any] = msgspec.json.decode(job.metadata)
    paths = metadata.get(REFERENCE_FILES)
    return {name: path for name, path in paths.items() if isinstance(path, str)} if isinstance(paths, dict) else {}


def _stop_of(error: SinkTransientError | SinkPermanentError) -> RunStopped:
    if isinstance(error, SinkPermanentError):
        return RunStopped(error.reason, error.next_step)
    return RunStopped(f"reference images cannot be uploaded ({error.reason})", "check the store, then run again")
