"""The engine: it opens the run directory, the ledger and the gateway, and connects the stages of the pipeline.

    async with Engine("runs/cats", rate="10/s") as engine:
        outcome = await engine.generate(Job(prompt="a cat"))

The stages run in a task of the engine, so a caller that is cancelled never loses an image. Jobs that have not ended
when the engine closes stay in the ledger, and the next engine on the run directory resumes them.
"""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from functools import partial
from importlib.metadata import version
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Self, TypeVar

import anyio
import msgspec

from krea_batch.engine.event_stream import EventStream
from krea_batch.engine.handle import Handle
from krea_batch.engine.outcome_stream import OutcomeStream
from krea_batch.engine.waiters import CLOSED, JobWaiter, WaiterRegistry
from krea_batch.errors import InputError, KreaBatchError, RunStopped, SettingsError
from krea_batch.events import Event, JobEnded, Listener
from krea_batch.gateway.callbacks import SECRET_BYTES, CallbackEndpoint, CallbackRouter, Receive, Scope, Send
from krea_batch.jobs import Job, Outcome, State, validate_job
from krea_batch.ledger import MAX_TRANSACTION_ROWS, Charges, LedgerStore, OpenJob, open_ledger, pages
from krea_batch.pipeline.admission import AdmissionQueue
from krea_batch.pipeline.callback_handler import CallbackHandler
from krea_batch.pipeline.context import RunContext
from krea_batch.pipeline.downloader import Downloader
from krea_batch.pipeline.in_flight_job import InFlightJob, build_in_flight_job
from krea_batch.pipeline.poll_scheduler import PollScheduler
from krea_batch.pipeline.producer import Producer
from krea_batch.pipeline.protocols import Gateway
from krea_batch.pipeline.rate_limiter import RateLimiter
from krea_batch.pipeline.stats import RunStats
from krea_batch.pipeline.submitter import Submitter
from krea_batch.rules.fail_fast import IdenticalFailureGuard
from krea_batch.rules.verdicts import Progress
from krea_batch.settings import KEY_VARIABLE, OPTIONS, AmbiguousPolicy, ApiKey, Rate, Settings, Webhook
from krea_batch.storage.async_io import run_to_completion
from krea_batch.storage.results_file import EMPTY_PREFIX, ResultsFile, StablePrefix
from krea_batch.storage.run_dir import LEDGER, RunDir
from krea_batch.storage.sinks import Sink, open_sink

if TYPE_CHECKING:
    from krea_batch.gateway.callback_server import Handler

T = TypeVar("T")

DISK_THREADS = 8  # chosen: an fsync is cheaper if others run in parallel; more threads than this gained little
MAX_ADMITTED = 16  # chosen: jobs at the submitter have had their turn; 16 of them take 20 ms at 800/s
LATENCY_HISTORY = 500  # chosen: the weight of observations that a poll schedule keeps (poll_schedule.MAX_WEIGHT)


class Engine:
    """Submits jobs to one gateway with one API key, and stores their images and results in one run directory.

    An async context manager; `start` and `aclose` do the same. Leaving the context waits for all submitted jobs. If
    an exception leaves it, the engine aborts, and the next engine on the run directory resumes.

    `out` is the run directory. Most keywords are the fields of `Settings`, which can be passed as `settings` instead;
    rates may be text ("10/s"). `api_key` defaults to the environment variable PIXAZO_API_KEY. `sink` is the storage
    of images: a URL (s3://bucket/prefix), a `Sink`, or None for the run directory. `rate_limiter` replaces `rate` by
    one that other engines share. `listeners` are called with each event.

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
        max_identical_failures: int | None = None,
        sink: Sink | str | None = None,
        gateway: str | None = None,
        webhook: Webhook | None = None,
        request_timeout_s: float | None = None,
        downloads: int | None = None,
        download_attempts: int | None = None,
    ) -> None:
        given = {name: value for name, value in locals().items() if name in OPTIONS and value is not None}
        if rate_limiter is not None and "rate" in given:
            raise SettingsError("rate", "cannot be combined with rate_limiter, which has its own rate")
        if not isinstance(given.get("sink", ""), str):
            del given["sink"]
        self.settings = _settings(out, settings, given)
        if rate_limiter is not None:
            self.settings = msgspec.structs.replace(self.settings, rate=rate_limiter.rate)
        self._rate_limiter = rate_limiter or RateLimiter(self.settings.rate)
        self._sink = open_sink(self.settings.sink) if sink is None or isinstance(sink, str) else sink
        self._client = gateway_client
        self._key = _find_key(api_key) if gateway_client is None else None
        self._clock = clock
        self._random = random or Random()  # noqa: S311 - spreads retries, protects nothing
        self._listeners = list(listeners)
        self._event_streams: list[EventStream] = []
        self._streams: list[OutcomeStream] = []
        self._callback_endpoint = CallbackEndpoint()
        self._closed = False

    # ---- start and stop ----------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.abort("an exception left the engine's context")
        await self.aclose()

    async def start(self) -> None:
        """Open the run directory, and resume the jobs that an earlier run left in it.

        Raises RunDirError if another process has the run directory, LedgerError, and SettingsError.
        """
        self._ready = asyncio.Event()
        self._closing = asyncio.Event()
        self._aborting = asyncio.Event()
        self._task = asyncio.create_task(self._main(), name="krea-batch engine")
        try:
            await self._or_engine_failure(self._ready.wait())
        except asyncio.CancelledError:
            self._task.cancel()  # The context was not entered, so it will not be left either.
            await asyncio.wait([self._task])
            raise

    async def aclose(self, *, detach: bool = False) -> None:
        """Wait for all submitted jobs, rewrite the results, and close. Raises the error that ended the run, if any.

        With `detach`, wait only for pending POSTs. Every job is in the ledger: its waiters get RunStopped, and the
        next engine on the run directory resumes it.
        """
        if detach:
            self.abort("the engine is closed")
        self._closing.set()
        await asyncio.shield(self._task)

    def stop(self, reason: str = "the run was asked to stop") -> None:
        """Submit nothing more; complete the jobs in flight."""
        self._run.stop(RunStopped(reason, "run again to resume"))

    def abort(self, reason: str = "the run was asked to stop immediately") -> None:
        """Stop polls and downloads, too. Pending POSTs get a few seconds. The next run resumes every job."""
        self.stop(reason)
        self._submitter.shorten_grace()
        self._aborting.set()
        self._closing.set()

    @property
    def stopped(self) -> RunStopped | None:
        """The reason why the run submits nothing more, or None while it does."""
        return self._run.stopped if hasattr(self, "_run") else None

    @property
    def rate_limiter(self) -> RateLimiter:
        """The rate limiter of this engine, for other engines with the same key on the same event loop.

        Pass it to them as `Engine(…, rate_limiter=engine.rate_limiter)`.
        """
        return self._rate_limiter

    async def events(self) -> AsyncIterator[Event]:
        """Yield the events of the run, from the first step of the iteration until the engine closes.

        Reading too slowly loses the oldest events, which an EventsDropped reports.
        """
        stream = EventStream()
        self._run.events.add_listener(stream.push)
        self._event_streams.append(stream)
        if self._closed:
            stream.close()
        try:
            async for event in stream:
                yield event
        finally:
            self._event_streams.remove(stream)
            self._run.events.remove_listener(stream.push)

    def callbacks_app(self) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
        """Return an ASGI app for the gateway's callbacks, to be mounted at the path of the `webhook` URL.

        Before `start` and after `aclose` it answers 503, so that the gateway retries. Raises SettingsError if
        `webhook` is not set.
        """
        self._check_webhook()
        return self._callback_endpoint.asgi

    def callbacks_handler(self) -> Handler:
        """Return the same as an aiohttp handler, for POSTs to every path below the path of the `webhook` URL."""
        from krea_batch.gateway.callback_server import request_handler  # Imports aiohttp, which is slow to import.

        self._check_webhook()
        return request_handler(self._callback_endpoint)

    def _check_webhook(self) -> None:
        if self.settings.webhook is None:
            hint = "pass webhook=Webhook(url=…)"
            raise SettingsError("webhook", "no callback URL configured", hint)

    def stats(self) -> RunStats:
        """Return the counters of this run. The object is updated as the run continues."""
        self._run.stats.in_flight = self._run.in_flight_limit.in_use - self._submitter.waiting
        self._run.stats.downloading = self._run.events.state_counts[State.FINISHED]
        return self._run.stats

    async def charges(self) -> Charges:
        """Return how many POSTs of this run directory were charged, in this run and earlier ones."""
        return await self._run.record(LedgerStore.charges)

    async def counts(self) -> dict[State, int]:
        """Return the number of jobs of the run directory in each state."""
        return await self._run.record(LedgerStore.counts)

    async def set_expected_jobs(self, jobs: int) -> None:
        """Record how many jobs the run directory is expected to have, for progress displays of other processes."""
        await self._run.record(LedgerStore.set_expected_jobs, jobs)

    # ---- jobs and outcomes -------------------------------------------------------------------------------

    async def run(self, jobs: Iterable[Job]) -> None:
        """Submit every job, and wait until all have ended, or after a stop until the jobs in flight have.

        Every job needs an id. Jobs that are in the run directory are not submitted again. Raises InputError if a job
        has changed since, or the source cannot be read; before that, the jobs in flight are completed.
        """
        try:
            await self._or_engine_failure(self._producer.work(jobs))
        except InputError as error:
            self._run.stop(RunStopped(error.problem, error.hint))
            await self._or_engine_failure(self._wait_idle())
            raise
        await self._or_engine_failure(self._wait_idle())
        self._producer.save_checkpoint()

    async def submit(self, job: Job, *, tenant: str = "") -> Handle:
        """Submit a job, and return once its request_id is durable, or it has ended without one.

        This waits for a free slot and for the rate limiter. If the id is in the run directory, the job is not
        submitted again, and the handle is that of the existing job. Cancelling the wait does not cancel the job.
        While jobs wait, tenants take turns, so none starves another. Raises JobError and RunStopped.
        """
        handle, waiter = await self._register_job(job, tenant)
        await self._or_engine_failure(asyncio.shield(waiter.accepted))
        return handle

    async def enqueue(self, job: Job, *, tenant: str = "") -> Handle:
        """Record a job durably, and return; it is submitted in its turn, in this run or the next.

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
        """Return a handle on the job with this id, of any run in the run directory; None if there is no such job."""
        waiter = await self._run_shielded(self._waiters.find(job_id))
        return Handle(job_id, waiter) if waiter else None

    async def stream(
        self, jobs: Iterable[Job] | AsyncIterable[Job], *, ordered: bool = False, tenant: str = ""
    ) -> AsyncIterator[Outcome]:
        """Submit jobs and yield their outcomes, as they end or, if `ordered`, in the order of `jobs`.

        `jobs` is read only as fast as slots become free and outcomes are taken. Leaving the loop early does not
        cancel submitted jobs. Raises JobError, RunStopped, and what reading `jobs` raises, after the jobs in flight
        have ended.
        """

        async def start_job(job: Job) -> asyncio.Future[Outcome]:
            _, waiter = await self._register_job(job, tenant)
            await self._or_engine_failure(asyncio.wait([waiter.admitted]))
            return waiter.outcome

        stream = OutcomeStream(start_job, self.settings.max_in_flight, ordered=ordered)
        self._streams.append(stream)
        try:
            async for outcome in stream.outcomes(jobs):
                yield outcome
            if stream.cancelled:
                raise self.stopped or CLOSED
        finally:
            self._streams.remove(stream)

    # ---- the engine's own task ---------------------------------------------------------------------------

    async def _main(self) -> None:
        try:
            async with AsyncExitStack() as stack:
                await self._open(stack)
                try:
                    await self._work()
                except BaseException as error:
                    self._fail_waiters(_first(error))
                    raise
                self._fail_waiters(self.stopped or CLOSED)
        except BaseExceptionGroup as group:
            raise _first(group) from group

    async def _open(self, stack: AsyncExitStack) -> None:
        run_dir = RunDir(self.settings.out)
        run_dir.lock()
        stack.callback(run_dir.unlock)
        ledger = await open_ledger(run_dir.path)
        stack.push_async_callback(ledger.close)
        disk = ThreadPoolExecutor(DISK_THREADS, "krea-batch-disk")
        stack.callback(disk.shutdown)
        client = self._client or await self._connect(stack)
        self._run = RunContext(
            self.settings,
            client,
            ledger,
            disk,
            clock=self._clock,
            random=self._random,
            listeners=self._listeners,
            rate_limiter=self._rate_limiter,
        )
        self._results = ResultsFile(self.settings.out, disk, self._results_failed)
        stack.push_async_callback(self._results.close)
        self._build_pipeline()
        await self._recover(stack)
        if self.settings.webhook:
            await self._listen(stack, self.settings.webhook)

    async def _connect(self, stack: AsyncExitStack) -> Gateway:
        from krea_batch.gateway.client import GatewayClient  # Imports aiohttp, which is slow to import.

        assert self._key is not None  # noqa: S101 - set by __init__
        return await stack.enter_async_context(GatewayClient(self.settings, self._key))

    async def _listen(self, stack: AsyncExitStack, webhook: Webhook) -> None:
        """Let the gateway send a callback at the end of each job."""
        secret = await self._run.record(LedgerStore.callback_secret, os.urandom(SECRET_BYTES))
        router = CallbackRouter(secret, self._callback_handler.on_callback)
        if webhook.listen:
            from krea_batch.gateway.callback_server import CallbackServer  # Imports aiohttp, which is slow to import.

            server = await stack.enter_async_context(CallbackServer(webhook, self._callback_endpoint))
            host = webhook.listen_address[0]
            router.base_url = f"http://{f'[{host}]' if ':' in host else host}:{server.port}"
        router.base_url = webhook.url.rstrip("/") or router.base_url
        self._run.callbacks = router
        self._callback_endpoint.router = router

    def _build_pipeline(self) -> None:
        self._downloader = Downloader(
            self._run, on_ended=self._on_ended, on_deferred=self._on_deferred, sink=self._sink
        )
        self._scheduler = PollScheduler(
            self._run,
            on_finished=self._downloader.put,
            on_errored=self._on_errored,
            on_ended=self._on_ended,
            on_deferred=self._on_deferred,
        )
        self._callback_handler = CallbackHandler(
            self._run, expedite=self._scheduler.on_callback, on_adopted=self._scheduler.put
        )
        self._submitter = Submitter(
            self._run,
            on_accepted=self._on_accepted,
            on_ended=self._on_ended,
            on_deferred=self._on_deferred,
            on_callback=self._callback_handler.on_callback,
        )
        self._admission = AdmissionQueue(
            self._run,
            partial(self._submitter.wait_for_capacity, MAX_ADMITTED),
            self._on_admitted,
            self._on_admission_deferred,
        )
        self._waiters = WaiterRegistry(self._run, self._admission.put)
        self._run.on_stopping(self._cancel_streams)
        self._producer = Producer(self._run, self._submitter.wait_for_capacity, self._start_job)

    async def _recover(self, stack: AsyncExitStack) -> None:
        record, settings = self._run.record, self.settings
        self._stable_prefix = EMPTY_PREFIX
        results_bytes = await record(LedgerStore.results_bytes)
        per_s = None if settings.rate.is_auto else settings.rate.per_s
        run_no = await record(LedgerStore.start_run, settings.origin, version("krea-batch"), self._clock(), per_s)
        stack.push_async_callback(self._finalize, run_no)
        requeued = await record(
            LedgerStore.recover,
            max_attempts=settings.max_attempts,
            resubmit_ambiguous=settings.ambiguous is AmbiguousPolicy.RESUBMIT,
        )
        has_succeeded = await record(LedgerStore.has_succeeded)
        self._failure_guard = IdenticalFailureGuard(settings.max_identical_failures, has_succeeded=has_succeeded)
        self._scheduler.add_past_latencies(await record(LedgerStore.latencies, LATENCY_HISTORY))
        if settings.max_charges is not None:  # Counting the charges of a million jobs takes half a second.
            charges = await record(LedgerStore.charges)
            self._submitter.set_prior_charges(charges.charged + charges.unknown)
        await self._downloader.prepare()
        if requeued or results_bytes is None or results_bytes != self._results.size_bytes():
            await self._rewrite_results_in_background(stack)
        elif settled := await record(LedgerStore.last_settled_job):
            self._stable_prefix = StablePrefix(settled, results_bytes, self._results.identity())

    async def _rewrite_results_in_background(self, stack: AsyncExitStack) -> None:
        """Rewrite results.jsonl in the background; the previous run ended before doing so."""
        snapshot = await self._run.on_disk(LedgerStore.snapshot, self.settings.out / LEDGER)
        stack.callback(snapshot.close)
        self._results.buffer()
        outcomes = pages(
            lambda after_no: run_to_completion(
                self._run.on_disk(snapshot.outcomes_page, after_no, MAX_TRANSACTION_ROWS)
            )
        )
        rewriting = asyncio.create_task(self._rewrite_results(outcomes))
        # While the snapshot is open, the WAL grows with every commit, and ledger.db stays as it was.
        rewriting.add_done_callback(lambda _: snapshot.close())
        stack.push_async_callback(_cancel, rewriting)

    async def _work(self) -> None:
        self._run.events.emit_opened()
        async with anyio.create_task_group() as stages:
            stages.start_soon(self._callback_handler.work)
            stages.start_soon(self._admission.work)
            stages.start_soon(self._submitter.work)
            stages.start_soon(self._scheduler.work)
            stages.start_soon(self._downloader.work)
            await self._resume_open_jobs()
            self._ready.set()
            await self._closing.wait()
            await _first_of(self._wait_idle(), self._aborting.wait())
            self._callback_endpoint.router = None
            stages.cancel_scope.cancel()

    async def _wait_idle(self) -> None:
        """Wait until no job is queued or in flight, and no callback for an ambiguous job is expected."""
        while self._run.stats.jobs_queued or self._run.in_flight_limit.in_use or self._callback_handler.expecting:
            await self._admission.wait_idle()
            await self._run.in_flight_limit.wait_idle()
            await self._callback_handler.wait()

    async def _resume_open_jobs(self) -> None:
        after_no = 0
        while batch := await self._run.record(LedgerStore.open_jobs, after_no, MAX_TRANSACTION_ROWS):
            for record in batch:
                await self._resume(record)
            after_no = batch[-1].job_no

    async def _resume(self, record: OpenJob) -> None:
        """Hand a job of an earlier run to the stage that its state belongs to."""
        job = InFlightJob.from_ledger(record)
        self._run.in_flight_fingerprints[job.id] = b""  # The ledger has its fingerprint.
        self._run.events.emit_resumed(job, record.state)
        if record.state is State.PENDING:
            job.body, job.fingerprint, job.metadata = await self._run.record(LedgerStore.request_of, job.job_no)
            self._admission.put(job)
            return
        self._run.in_flight_limit.acquire_resumed()
        match record.state:
            case State.FINISHED:
                job.finished = record.media
                self._downloader.put(job)
            case _:
                self._scheduler.resume(job)

    async def _finalize(self, run_no: int) -> None:
        """Rewrite the results and record the end of the run. This is the final step before the ledger is closed."""
        if self._run.ledger.failure:
            return
        with anyio.CancelScope(shield=True):
            is_unchanged = self._results.identity() == self._stable_prefix.identity
            kept = self._stable_prefix if is_unchanged else EMPTY_PREFIX
            outcomes = self._run.ledger.outcomes(kept.last_job_no)
            if await self._rewrite_results(outcomes, keep_bytes=kept.size_bytes):
                await self._run.record(LedgerStore.set_results_size, self._results.size_bytes())
            await self._run.record(LedgerStore.end_run, run_no, self._clock())

    async def _rewrite_results(self, outcomes: AsyncIterator[list[Outcome]], *, keep_bytes: int = 0) -> bool:
        """Rewrite results.jsonl after its first `keep_bytes`. Stop the run and return False if the disk fails."""
        try:
            await self._results.rewrite(outcomes, keep_bytes=keep_bytes)
        except OSError as error:
            self._results_failed(error)
            return False
        return True

    def _results_failed(self, error: OSError) -> None:
        reason = f"cannot write results.jsonl ({error.strerror})"
        self._run.stop(RunStopped(reason, "free some disk space, then run again to resume"))

    # ---- between the stages ------------------------------------------------------------------------------

    def _on_accepted(self, job: InFlightJob, progress: Progress) -> None:
        self._failure_guard.record_accepted()
        self._waiters.on_accepted(job)
        self._scheduler.put(job, progress)

    def _on_errored(self, job: InFlightJob, wait_s: float) -> None:
        self._submitter.record_refund()
        self._submitter.enqueue(job, wait_s)

    def _on_ended(self, job: InFlightJob, outcome: Outcome) -> None:
        self._run.in_flight_limit.release()
        self._run.stats.ended_by_state[outcome.status] += 1
        if outcome.status is State.ERRORED:
            self._submitter.record_refund()
        if outcome.status is State.AMBIGUOUS:
            self._callback_handler.expect(job.job_no, self._scheduler.callback_wait_s(job))
        if reason := self._failure_guard.record_ended(outcome):
            self._run.stop(RunStopped(reason, "fix the cause, then run again to resume"))
        self._run.events.emit(JobEnded(outcome))
        self._results.append(outcome)
        self._run.in_flight_fingerprints.pop(job.id, None)
        self._waiters.on_ended(outcome)

    def _on_deferred(self, job: InFlightJob) -> None:
        self._run.in_flight_limit.release()
        self._run.in_flight_fingerprints.pop(job.id, None)
        # Without a stop, the stages are ending because of an error, and `_fail_waiters` has that error.
        if self._run.stopped:
            self._waiters.fail(job.id)

    def _fail_waiters(self, error: BaseException) -> None:
        """Fail all remaining waiters, and end the streams: the stages have ended."""
        self._closed = True
        self._run.events.emit_closed()
        error = CLOSED if isinstance(error, asyncio.CancelledError) else error
        self._waiters.fail_all(error)
        for stream in self._event_streams:
            stream.close()
        self._cancel_streams()

    def _cancel_streams(self) -> None:
        """Stop reading the jobs of `stream` callers: they would not be submitted in this run."""
        for stream in self._streams:
            stream.cancel()

    # ---- parts -------------------------------------------------------------------------------------------

    async def _register_job(self, job: Job, tenant: str, *, durable: bool = False) -> tuple[Handle, JobWaiter]:
        """Start a new job, or find the one with its id. Raises JobError and RunStopped."""
        job = validate_job(job)
        if not job.id:
            job = msgspec.structs.replace(job, id=uuid.uuid4().hex)
        waiter = await self._run_shielded(self._waiters.register(build_in_flight_job(job, tenant), durable=durable))
        return Handle(job.id, waiter), waiter

    def _on_admitted(self, job: InFlightJob) -> None:
        """Take a job from the admission queue, with its slot."""
        self._waiters.on_admitted(job)
        self._submitter.enqueue(job)

    def _on_admission_deferred(self, job: InFlightJob) -> None:
        """Take a job that was not admitted before the run stopped."""
        self._waiters.fail(job.id)

    def _start_job(self, job: InFlightJob) -> None:
        """Take a job from the producer, with its slot."""
        self._run.in_flight_fingerprints[job.id] = job.fingerprint
        self._submitter.enqueue(job)

    async def _run_shielded(self, work: Coroutine[Any, Any, T]) -> T:
        """Complete `work` even if its caller is cancelled, since other callers may wait for the same job."""
        task = asyncio.create_task(work)
        task.add_done_callback(_retrieve_error)
        return await self._or_engine_failure(asyncio.shield(task))

    async def _or_engine_failure(self, work: Awaitable[T]) -> T:
        """Await something that the stages cause. If they end first, raise the error that ended them."""
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


def _find_key(given: str | ApiKey | None) -> ApiKey:
    if isinstance(given, ApiKey):
        return given
    text = given or os.environ.get(KEY_VARIABLE, "")
    if not text:
        raise SettingsError("api_key", "no API key", f"set {KEY_VARIABLE} or pass api_key=…")
    return ApiKey(text)


async def _first_of(*works: Awaitable[Any]) -> None:
    """Wait until the first of several awaitables is done, and cancel the others."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


async def _cancel(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait for its end. Raises the exception of a task that had failed."""
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()


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
