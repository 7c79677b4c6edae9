"""The engine: it opens the run directory, the ledger and the gateway, and connects the stages of the pipeline.

    async with Engine("runs/cats", rate="10/s") as engine:
        outcome = await engine.generate(Job(prompt="a cat"))

The stages run in a task of the engine, so a caller that is cancelled never loses an image. Jobs that have not ended
when the engine closes stay in the ledger, and the next engine on the run directory resumes them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
import uuid
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Self, TypeVar

import anyio
import msgspec

from krea_batch.engine.handle import Handle
from krea_batch.engine.open_run import OpenRun, RunConfig, open_run
from krea_batch.engine.outcome_stream import OutcomeStream
from krea_batch.errors import FencedError, InputError, JobError, KreaBatchError, RunStopped, SettingsError
from krea_batch.events import Event, Listener
from krea_batch.gateway.callbacks import CallbackEndpoint, Receive, Scope, Send
from krea_batch.jobs import Job, Outcome, State, validate_job
from krea_batch.ledger import Charges, Ledger, is_in_database
from krea_batch.pipeline.event_stream import EventStream
from krea_batch.pipeline.pipeline import Pipeline
from krea_batch.pipeline.protocols import Gateway
from krea_batch.pipeline.rate_limiter import RateLimiter
from krea_batch.pipeline.stats import RunStats
from krea_batch.pipeline.waiters import CLOSED, JobWaiter
from krea_batch.settings import KEY_VARIABLE, OPTIONS, AmbiguousPolicy, ApiKey, Rate, Settings, Webhook
from krea_batch.storage.sinks import Sink, obstore_required, open_sink

if TYPE_CHECKING:
    from krea_batch.gateway.callback_server import Handler
    from krea_batch.storage.reference_store import ReferenceStore

T = TypeVar("T")
log = logging.getLogger("krea_batch")

NOT_STARTED = ("the engine is not started", "use `async with Engine(…)`, or await its `start` first")


class Engine:
    """Submits jobs to one gateway with one API key, and stores their images and results in one run directory.

    An async context manager; `start` and `aclose` do the same. Leaving the context waits for all submitted jobs. If
    an exception leaves it, the engine aborts, and the next engine on the run directory resumes.

    `out` is the run directory. Most keywords are the fields of `Settings`, which can be passed as `settings` instead;
    rates may be text ("10/s"). `api_key` defaults to the environment variable PIXAZO_API_KEY. `sink` is the storage
    of images: a URL (s3://bucket/prefix), a `Sink`, or None for the run directory. `references` is where local
    reference images are uploaded: such a URL, or a `ReferenceStore`. `rate_limiter` replaces `rate` with one that
    other engines share. `listeners` are called with each event.

    With `shared`, other processes with the same setting may work on the run directory at the same time. If this
    process stalled for so long that they have taken over its jobs, waiting callers get FencedError, and the
    engine starts again by itself: another call with the id of such a job waits for the same job.

    Raises SettingsError. `start` also raises RunDirError and LedgerError.
    """

    def __init__(
        self,
        out: str | os.PathLike[str] | None = None,
        *,
        settings: Settings | None = None,
        api_key: str | ApiKey | None = None,
        rate_limiter: RateLimiter | None = None,
        listeners: Iterable[Listener] = (),
        gateway_client: Gateway | None = None,
        clock: Callable[[], float] = time.time,
        random: Random | None = None,
        rate: Rate | str | None = None,
        max_in_flight: int | None = None,
        poll_interval_s: float | None = None,
        poll_rate: Rate | str | None = None,
        shared_quota: bool | None = None,
        poll_lag_weight: float | None = None,
        job_timeout_s: float | None = None,
        max_attempts: int | None = None,
        ambiguous: AmbiguousPolicy | str | None = None,
        max_charges: int | None = None,
        count_server_errors: bool | None = None,
        max_identical_failures: int | None = None,
        shared: bool | None = None,
        ledger: str | None = None,
        batch: str | None = None,
        sink: Sink | str | None = None,
        references: ReferenceStore | str | None = None,
        gateway: str | None = None,
        allow_networks: Iterable[str] | None = None,
        webhook: Webhook | None = None,
        request_timeout_s: float | None = None,
        downloads: int | None = None,
        download_patience_s: float | None = None,
    ) -> None:
        given = {name: value for name, value in locals().items() if name in OPTIONS and value is not None}
        if rate_limiter is not None and "rate" in given:
            raise SettingsError("rate", "cannot be combined with rate_limiter, which has its own rate")
        for name in ("sink", "references"):
            if not isinstance(given.get(name, ""), str):
                del given[name]
        self.settings = _settings(out, settings, given)
        if self.settings.ledger or is_in_database(self.settings.out):
            # No lock of the directory shows whether runs on other machines use a ledger in a database.
            self.settings = msgspec.structs.replace(self.settings, shared=True)
        if rate_limiter is not None and self.settings.shared:
            raise SettingsError("rate_limiter", "cannot be combined with shared", "the runs share one rate anyway")
        if rate_limiter is not None:
            self.settings = msgspec.structs.replace(self.settings, rate=rate_limiter.rate)
        self._config = RunConfig(
            settings=self.settings,
            key=_find_key(api_key) if gateway_client is None else None,
            gateway_client=gateway_client,
            rate_limiter=rate_limiter or RateLimiter(self.settings.rate),
            sink=open_sink(self.settings.sink) if sink is None or isinstance(sink, str) else sink,
            references=_open_references(self.settings.references)
            if references is None or isinstance(references, str)
            else references,
            listeners=list(listeners),
            clock=clock,
            random=random or Random(),  # noqa: S311 - spreads retries, protects nothing
        )
        self._callback_endpoint = CallbackEndpoint()
        self._task: asyncio.Task[None] | None = None
        self._run: OpenRun | None = None
        self._ready = asyncio.Event()
        self._closing = asyncio.Event()
        self._aborting = asyncio.Event()
        self._closed = False
        self._is_restarting = False
        self._event_streams: list[EventStream] = []
        self._outcome_streams: list[OutcomeStream] = []

    # ---- start and stop ----------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # A run that was fenced ends by itself, once it has recorded the answers to its POSTs: no other run gets them.
        if kind is not None and not (self._run and self._run.is_fenced):
            self.abort("an exception left the engine's context")
        await self.aclose()

    async def start(self) -> None:
        """Open the run directory, and resume the jobs that an earlier run left in it.

        An engine is opened once; a start that failed can be repeated. Raises RunDirError if another process has the
        run directory, LedgerError, SettingsError, and InputError if the engine was started before.
        """
        if self._run or (self._task and not self._task.done()):
            raise InputError("the engine was started before", "create another Engine for another run")
        self._task = asyncio.create_task(self._main(), name="krea-batch engine")
        try:
            await self._or_engine_failure(self._ready.wait())
        except asyncio.CancelledError:
            self._task.cancel()  # The context was not entered, so it will not be left either.
            await _wait_uncancelled(self._task)
            raise

    async def aclose(self, *, detach: bool = False) -> None:
        """Wait for all submitted jobs, rewrite the results, and close. Raises the error that ended the run, if any.

        With `detach`, wait only for pending POSTs, for a few seconds. Every job is in the ledger: its waiters get
        RunStopped, and the next engine on the run directory resumes it. A cancelled wait detaches, so that nothing
        runs on afterwards.
        Closing an engine that was not started, or is closed, does nothing.
        """
        if self._task is None:
            return
        if detach:
            self.abort("the engine is closed")
        self._closing.set()
        try:
            await asyncio.shield(self._task)
        except asyncio.CancelledError:
            if not self._task.done():
                self.abort("the engine is closed")
                await _wait_uncancelled(self._task)
            raise

    def stop(self, reason: str = "the run was asked to stop") -> None:
        """Submit nothing more; complete the jobs in flight."""
        self._open_run.context.stop(RunStopped(reason, "run again to resume"))

    def abort(self, reason: str = "the run was asked to stop immediately") -> None:
        """Stop submits, polls and downloads. Pending POSTs get a few more seconds. The next run resumes every job."""
        self._aborting.set()
        self._closing.set()
        if self._run:
            self.stop(reason)
            self._run.pipeline.submitter.shorten_grace()

    @property
    def stopped(self) -> RunStopped | None:
        """The reason why the run submits nothing more; None while it still submits."""
        return self._run.context.stopped if self._run else None

    @property
    def rate_limiter(self) -> RateLimiter:
        """The rate limiter of this engine, for other engines with the same key on the same event loop.

        Pass it to them as `Engine(…, rate_limiter=engine.rate_limiter)`. Raises SettingsError if the engine shares
        its run directory, and so its rate with other processes.
        """
        if self.settings.shared:
            raise SettingsError("rate_limiter", "a shared run has none of its own", "use an engine without shared")
        return self._config.rate_limiter

    async def events(self) -> AsyncIterator[Event]:
        """Yield the events of the run, from the first step of the iteration until the engine closes.

        Reading too slowly loses the oldest events, which an EventsDropped reports.
        """
        stream = EventStream()
        events = self._open_run.context.events
        events.add_listener(stream.push)
        self._event_streams.append(stream)
        if self._closed:
            stream.close()
        try:
            async for event in stream:
                yield event
        finally:
            self._event_streams.remove(stream)
            events.remove_listener(stream.push)

    def callbacks_app(self) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
        """Return an ASGI app for the gateway's callbacks, to be mounted at the path of the `webhook` URL.

        Before `start` and after `aclose` it answers 503, so that the gateway retries. Raises SettingsError if
        `webhook` is not set.
        """
        self._check_webhook()
        return self._callback_endpoint.asgi

    def callbacks_handler(self) -> Handler:
        """Return an aiohttp handler for the gateway's callbacks: POSTs to every path below the `webhook` URL's path.

        It answers 503 and raises as `callbacks_app` does.
        """
        from krea_batch.gateway.callback_server import request_handler  # Imports aiohttp, which is slow to import.

        self._check_webhook()
        return request_handler(self._callback_endpoint)

    def _check_webhook(self) -> None:
        if self.settings.webhook is None:
            hint = "pass webhook=Webhook(url=…)"
            raise SettingsError("webhook", "no callback URL configured", hint)

    def stats(self) -> RunStats:
        """Return the counters of this run. The object is updated as the run continues."""
        run, stats = self._open_run, self._open_run.context.stats
        stats.in_flight = run.context.in_flight_limit.in_use - run.pipeline.submitter.waiting
        stats.downloading = run.context.events.state_counts[State.FINISHED]
        return stats

    async def charges(self) -> Charges:
        """Return how many POSTs of this run directory were charged, in this run and earlier ones."""
        return await self._open_run.context.record(Ledger.charges)

    async def counts(self) -> dict[State, int]:
        """Return the number of jobs of the run directory in each state."""
        return await self._open_run.context.record(Ledger.counts)

    async def set_expected_jobs(self, jobs: int) -> None:
        """Record how many jobs the run directory is expected to have, for progress displays of other processes."""
        await self._open_run.context.record(Ledger.set_expected_jobs, jobs)

    # ---- jobs and outcomes -------------------------------------------------------------------------------

    async def run(self, jobs: Iterable[Job]) -> None:
        """Submit every job, and wait until all have ended. After a stop, wait only for the jobs in flight.

        Every job needs an id. Jobs that are in the run directory already are not submitted again. If other callers
        submit a job with the same id, it is the same job.

        Raises JobError for a job whose id belongs to another request; the jobs before it have ended by then, and
        other callers are not affected. Raises InputError if the source cannot be read; the run then stops, and the
        jobs in flight are completed.
        """
        pipeline, context = await self._ready_pipeline(), self._open_run.context
        producer = pipeline.producer()
        try:
            await self._or_engine_failure(producer.work(jobs))
        except InputError as error:
            if not isinstance(error, JobError):  # A changed job is an error of this caller only; the others continue.
                context.stop(RunStopped(error.problem, error.hint))
            await self._or_engine_failure(pipeline.wait_idle())
            raise
        await self._or_engine_failure(pipeline.wait_all_ended())
        producer.save_checkpoint()

    async def submit(self, job: Job, *, tenant: str = "") -> Handle:
        """Submit a job, and return once its request_id is durable, or it has ended without one.

        This waits for room in flight and for the rate limiter. If the id is in the run directory, the job is not
        submitted again, and the handle is that of the existing job. Cancelling the wait does not cancel the job.
        Waiting jobs are admitted round robin over their tenants, so no tenant starves another. Raises JobError and
        RunStopped.
        """
        handle, waiter = await self._register_job(job, tenant)
        await self._or_engine_failure(asyncio.shield(waiter.accepted))
        return handle

    async def enqueue(self, job: Job, *, tenant: str = "") -> Handle:
        """Record a job durably, and return. It is submitted in its turn, in this run or the next.

        Otherwise as `submit`. Each waiting job takes some kilobytes of memory, and their number is not bounded.
        """
        handle, waiter = await self._register_job(job, tenant, durable=True)
        if waiter.outcome.done() and (error := waiter.outcome.exception()):
            raise error
        return handle

    async def generate(self, job: Job, *, tenant: str = "") -> Outcome:
        """Submit a job, wait for its end, and return its outcome. Raises JobError and RunStopped."""
        return await (await self.submit(job, tenant=tenant))

    async def get(self, job_id: str) -> Handle | None:
        """Return a handle on a job of the run directory, even from an earlier run; None if there is none."""
        waiters = (await self._ready_pipeline()).waiters
        waiter = await self._run_shielded(waiters.find(job_id))
        return Handle(job_id, waiter) if waiter else None

    async def stream(
        self, jobs: Iterable[Job] | AsyncIterable[Job], *, ordered: bool = False, tenant: str = ""
    ) -> AsyncIterator[Outcome]:
        """Submit jobs and yield their outcomes, as they end or, if `ordered`, in the order of `jobs`.

        `jobs` is read only as fast as jobs in flight end and outcomes are taken. Leaving the loop early does not
        cancel submitted jobs. Raises JobError, RunStopped, and what reading `jobs` raises, after the jobs in flight
        have ended.
        """

        async def start_job(job: Job) -> asyncio.Future[Outcome]:
            _, waiter = await self._register_job(job, tenant)
            await self._or_engine_failure(asyncio.wait([waiter.admitted]))
            return waiter.outcome

        stream = OutcomeStream(start_job, self.settings.max_in_flight, ordered=ordered)
        self._outcome_streams.append(stream)
        try:
            async for outcome in stream.outcomes(jobs):
                yield outcome
            if stream.cancelled:
                raise self.stopped or CLOSED
        finally:
            self._outcome_streams.remove(stream)

    # ---- the engine's own task ---------------------------------------------------------------------------

    async def _main(self) -> None:
        while True:
            try:
                await self._run_once()
            except FencedError:
                # A cancellation that came together with the fence is not raised, but it must not be forgotten.
                task = asyncio.current_task()
                if not self._is_restarting or (task and task.cancelling()):
                    raise
                log.warning("! this process stalled, and its jobs were taken over; starting again")
            else:
                return

    async def _run_once(self) -> None:
        """Open the run directory, work on it, and close it."""
        try:
            async with AsyncExitStack() as stack:
                run = self._run = await open_run(stack, self._config, self._callback_endpoint)
                run.context.on_stopping(self._cancel_outcome_streams)
                if self._aborting.is_set():
                    self.abort()
                try:
                    await run.work(
                        self._callback_endpoint,
                        on_ready=self._on_ready,
                        closing=self._closing,
                        aborting=self._aborting,
                    )
                except BaseException as error:
                    self._end_run(run, _first(error))
                    raise
                self._end_run(run, run.context.stopped or CLOSED)
        except BaseExceptionGroup as group:
            raise _first(group) from group

    def _on_ready(self) -> None:
        self._is_restarting = False
        self._ready.set()

    @property
    def _open_run(self) -> OpenRun:
        if self._run is None:
            raise InputError(*NOT_STARTED)
        return self._run

    async def _ready_pipeline(self) -> Pipeline:
        """Return the pipeline, once it has taken the jobs of earlier runs: before that, no job can be found."""
        if self._is_restarting:
            await self._or_engine_failure(self._ready.wait())
        if not self._ready.is_set():
            raise InputError(*NOT_STARTED)
        return self._open_run.pipeline

    def _end_run(self, run: OpenRun, error: BaseException) -> None:
        """Fail all remaining waiters and end the streams, because the stages have ended."""
        if isinstance(error, FencedError) and not self._closing.is_set() and run.context.stopped is None:
            self._is_restarting = True
            self._ready.clear()
        else:
            self._closed = True
        run.context.events.emit_closed()
        run.pipeline.waiters.close(CLOSED if isinstance(error, asyncio.CancelledError) else error)
        for stream in self._event_streams:
            stream.close()
        self._cancel_outcome_streams()

    def _cancel_outcome_streams(self) -> None:
        """Stop reading the jobs of `stream` callers, because they would not be submitted in this run."""
        for stream in self._outcome_streams:
            stream.cancel()

    # ---- parts -------------------------------------------------------------------------------------------

    async def _register_job(self, job: Job, tenant: str, *, durable: bool = False) -> tuple[Handle, JobWaiter]:
        """Start a new job, or find the one with its id. Raises JobError and RunStopped."""
        waiters = (await self._ready_pipeline()).waiters
        job = validate_job(job)
        if not job.id:
            job = msgspec.structs.replace(job, id=uuid.uuid4().hex)
        built = await self._open_run.pipeline.references.build(job, tenant)
        waiter = await self._run_shielded(waiters.register(built, durable=durable))
        return Handle(job.id, waiter), waiter

    async def _run_shielded(self, work: Coroutine[Any, Any, T]) -> T:
        """Complete `work` even if its caller is cancelled, since other callers may wait for the same job."""
        task = asyncio.create_task(work)
        task.add_done_callback(_retrieve_error)
        return await self._or_engine_failure(asyncio.shield(task))

    async def _or_engine_failure(self, work: Awaitable[T]) -> T:
        """Await the result of work by the stages. If the stages end first, raise the error that ended them."""
        assert self._task  # noqa: S101 - set by `start`
        waiting = asyncio.ensure_future(work)
        try:
            if not self._closed:
                await asyncio.wait([waiting, self._task], return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                return waiting.result()
            await asyncio.wait([self._task])
            self._task.result()
            raise self.stopped or CLOSED
        finally:
            waiting.cancel()


def _settings(out: str | os.PathLike[str] | None, settings: Settings | None, given: dict[str, Any]) -> Settings:
    """Return the settings of an engine, which are passed either as one object or as keywords."""
    if settings is None:
        if out is None:
            raise SettingsError("out", "missing", "pass the run directory, or settings=Settings(out=…)")
        return Settings.from_options(Path(out), **given)
    if out is not None or given:
        raise SettingsError("settings", "cannot be combined with out or other settings")
    return settings


def _open_references(url: str | None) -> ReferenceStore | None:
    """Return the store for local reference images, or None. Raises SettingsError."""
    if url is None:
        return None
    with obstore_required("references"):
        from krea_batch.storage.reference_store import ReferenceStore  # obstore is optional
    return ReferenceStore.from_url(url)


def _find_key(given: str | ApiKey | None) -> ApiKey:
    if isinstance(given, ApiKey):
        return given
    text = given or os.environ.get(KEY_VARIABLE, "")
    if not text:
        hint = f"set {KEY_VARIABLE} or pass api_key=…; the gateway of krea_batch.testing.simulator takes any key"
        raise SettingsError("api_key", "no API key", hint)
    return ApiKey(text)


async def _wait_uncancelled(task: asyncio.Task[None]) -> None:
    """Wait for the end of a task, even if this task or a cancel scope around it is cancelled meanwhile."""
    with anyio.CancelScope(shield=True):
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError:
                continue  # The caller raises the cancellation that it has already received.


def _retrieve_error(task: asyncio.Task[Any]) -> None:
    """Retrieve the error of a task, so that asyncio does not log it if the caller of the task was cancelled."""
    if not task.cancelled():
        task.exception()


def _first(error: BaseException) -> BaseException:
    """Return the error that ended the run: a KreaBatchError if there is one, else the first."""
    if isinstance(error, BaseExceptionGroup):
        error = error.subgroup(KreaBatchError) or error
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
