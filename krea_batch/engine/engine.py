"""Jobs come in; images on disk and outcomes go out. Opens ledger and gateway and joins the stages.

    async with Engine("runs/cats", rate="10/s") as engine:
        outcome = await engine.generate(Job(prompt="a cat"))

Newcomers: the stages run in a task of the engine's own, so nothing a caller cancels can lose an image. What is
not finished when the engine closes stays in the ledger, and the next engine on that folder goes on with it.
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
from krea_batch.ledger import MAX_TRANSACTION_ROWS, Charges, LedgerStore, LedgerWriter, OpenJob, pages
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

DISK_THREADS = 8  # chosen: fsyncs in parallel cost less each; more threads than this gained little
MAX_ADMITTED = 16  # chosen: what waits at the submitter has had its turn; 20 ms at 800/s
LATENCY_HISTORY = 500  # chosen: as many latencies as the schedule remembers


class Engine:
    """One run folder, one gateway, one key. An async context manager; `start` and `aclose` do the same.

    `out` is the run's folder; further keywords are the fields of `Settings`, where rates may be text ("10/s").
    `api_key` comes from the environment (PIXAZO_API_KEY) when it is not given. `sink` is where images are kept:
    a URL (s3://bucket/prefix), a `Sink`, or None for the run's folder. Leaving the context waits for
    what was submitted; leaving it by an exception stops at once, and the next engine on the folder goes on.
    `pace` is one that other engines have, too, in place of `rate`; `listeners` are called with each event.

    Raises SettingsError; `start` also RunFolderError and LedgerError.
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
        if rate_limiter is not None:
            given["rate"] = rate_limiter.rate
        if not isinstance(given.get("sink", ""), str):
            del given["sink"]
        self.settings = _settings(out, settings, given)
        self._rate_limiter = rate_limiter or RateLimiter(self.settings.rate)
        self._sink = open_sink(self.settings.sink) if sink is None or isinstance(sink, str) else sink
        self._client = gateway_client
        self._key = _find_key(api_key) if gateway_client is None else None
        self._clock = clock
        self._random = random or Random()  # noqa: S311 - spreads retries, guards nothing
        self._listeners = list(listeners)
        self._event_streams: list[EventStream] = []
        self._streams: list[OutcomeStream] = []
        self._callback_endpoint = CallbackEndpoint()
        self._closed = False

    # ---- life --------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.abort("an exception left the engine's context")
        await self.aclose()

    async def start(self) -> None:
        """Open the folder and go on with what an earlier run left in it."""
        self._ready = asyncio.Event()
        self._closing = asyncio.Event()
        self._aborting = asyncio.Event()
        self._task = asyncio.create_task(self._main(), name="krea-batch engine")
        try:
            await self._or_engine_failure(self._ready.wait())
        except asyncio.CancelledError:
            self._task.cancel()  # nobody is going to leave a context that was never entered
            await asyncio.wait([self._task])
            raise

    async def aclose(self, *, detach: bool = False) -> None:
        """Wait for everything submitted, write the results anew, close. Raises what ended the run early.

        With `detach`, nothing is waited for but POSTs in the air: all is on record, whoever waits for a job gets
        RunStopped, and the next engine on the folder goes on.
        """
        if detach:
            self.abort("the engine is closed")
        self._closing.set()
        await asyncio.shield(self._task)

    def stop(self, reason: str = "the run was asked to stop") -> None:
        """Take no more submits; what is in flight is brought home."""
        self._run.stop(RunStopped(reason, "run the same again to go on"))

    def abort(self, reason: str = "the run was asked to stop at once") -> None:
        """Stop polls and downloads too; POSTs in the air get a few seconds. All of it can be resumed."""
        self.stop(reason)
        self._submitter.shorten_grace()
        self._aborting.set()
        self._closing.set()

    @property
    def stopped(self) -> RunStopped | None:
        """Why the run takes no more submits, or None while it does."""
        return self._run.stopped if hasattr(self, "_run") else None

    @property
    def rate_limiter(self) -> RateLimiter:
        """The rate limiter of this engine, for other engines with the same key on the same event loop.

        Pass it to them as `Engine(…, rate_limiter=engine.rate_limiter)`.
        """
        return self._rate_limiter

    async def events(self) -> AsyncIterator[Event]:
        """What happens in the run, from the first step of the iteration on, until the engine closes."""
        reader = EventStream()
        self._run.events.add_listener(reader.push)
        self._event_streams.append(reader)
        if self._closed:
            reader.close()
        try:
            async for event in reader:
                yield event
        finally:
            self._event_streams.remove(reader)
            self._run.events.remove_listener(reader.push)

    def callbacks_app(self) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
        """An ASGI app that takes the gateway's callbacks, to be mounted where the URL of `webhook` leads.

        Before `start` and after `aclose` it answers 503, so that the gateway tries again. Raises SettingsError.
        """
        self._check_webhook()
        return self._callback_endpoint.asgi

    def callbacks_handler(self) -> Handler:
        """The same as a handler of aiohttp, for POSTs to every path under that URL."""
        from krea_batch.gateway.callback_server import request_handler  # aiohttp: only where it is needed

        self._check_webhook()
        return request_handler(self._callback_endpoint)

    def _check_webhook(self) -> None:
        if self.settings.webhook is None:
            hint = "pass webhook=Webhook(url=…)"
            raise SettingsError("webhook", "no callback URL configured", hint)

    def stats(self) -> RunStats:
        """The counters of this run, now."""
        self._run.stats.in_flight = self._run.in_flight_limit.in_use - self._submitter.waiting
        self._run.stats.downloading = self._run.events.state_counts[State.FINISHED]
        return self._run.stats

    async def charges(self) -> Charges:
        """What the POSTs of this folder came to, in this run and before it."""
        return await self._run.record(LedgerStore.charges)

    async def counts(self) -> dict[State, int]:
        """How many of the folder's jobs stand in each state."""
        return await self._run.record(LedgerStore.counts)

    async def set_expected_jobs(self, jobs: int) -> None:
        """Put on record how many jobs the folder is to come to, for those who watch it from elsewhere."""
        await self._run.record(LedgerStore.set_expected_jobs, jobs)

    # ---- jobs in, outcomes out ---------------------------------------------------------------------------

    async def run(self, jobs: Iterable[Job]) -> None:
        """Feed every job (each has its id) and wait until all have ended, or what is in flight when stopped has.

        Jobs that the folder knows are not submitted again. Raises InputError, once what is in flight is home,
        where a job has changed since, or the source of the jobs cannot be read on.
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
        """Submit a job and return once its request_id is on record, or it has ended without one.

        Waits for a free slot and for the pace. A job whose id the folder knows is not submitted again: the
        handle is that of the first. Cancelling the wait does not take the job back. `tenant` says whose job it is:
        where jobs wait, tenants take turns, and so none starves another. Raises JobError, RunStopped.
        """
        handle, watch = await self._register_job(job, tenant)
        await self._or_engine_failure(asyncio.shield(watch.accepted))
        return handle

    async def enqueue(self, job: Job, *, tenant: str = "") -> Handle:
        """Put a job on record and return; it is submitted when its turn comes, in this run or the next.

        As `submit` otherwise. What is on record and waits needs memory, some kilobytes a job, and is not bounded.
        """
        handle, watch = await self._register_job(job, tenant, on_record=True)
        if watch.outcome.done() and (why := watch.outcome.exception()):
            raise why
        return handle

    async def generate(self, job: Job, *, tenant: str = "") -> Outcome:
        """Submit a job and wait for its end: accepted, finished, stored. Raises JobError, RunStopped."""
        return await (await self.submit(job, tenant=tenant))

    async def get(self, job_id: str) -> Handle | None:
        """The job of this id, from whichever run of the folder; None where there is none."""
        watch = await self._run_shielded(self._waiters.find(job_id))
        return Handle(job_id, watch) if watch else None

    async def stream(
        self, jobs: Iterable[Job] | AsyncIterable[Job], *, ordered: bool = False, tenant: str = ""
    ) -> AsyncIterator[Outcome]:
        """Outcomes as jobs finish, or, `ordered`, in the order of `jobs`.

        `jobs` is read only as fast as slots become free and outcomes are taken. Raises JobError, RunStopped, and
        what reading `jobs` raises, once what is in flight is home. Leaving the loop early leaves what is submitted
        on its way.
        """

        async def enter(job: Job) -> asyncio.Future[Outcome]:
            _, watch = await self._register_job(job, tenant)
            await self._or_engine_failure(asyncio.wait([watch.admitted]))
            return watch.outcome

        stream = OutcomeStream(enter, self.settings.max_in_flight, ordered=ordered)
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
        folder = RunDir(self.settings.out)
        folder.lock()
        stack.callback(folder.unlock)
        ledger = LedgerWriter.open(folder.ledger)
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
        from krea_batch.gateway.client import GatewayClient  # aiohttp: only where it is needed

        assert self._key is not None  # noqa: S101 - __init__ found one
        return await stack.enter_async_context(GatewayClient(self.settings, self._key))

    async def _listen(self, stack: AsyncExitStack, webhook: Webhook) -> None:
        """Have the gateway call at the end of each job."""
        secret = await self._run.record(LedgerStore.callback_secret, os.urandom(SECRET_BYTES))
        callbacks = CallbackRouter(secret, self._callback_handler.on_callback)
        if webhook.listen:
            from krea_batch.gateway.callback_server import CallbackServer  # aiohttp: only where it is needed

            listener = await stack.enter_async_context(CallbackServer(webhook, self._callback_endpoint))
            host = webhook.listen_address[0]
            callbacks.base_url = f"http://{f'[{host}]' if ':' in host else host}:{listener.port}"
        callbacks.base_url = webhook.url.rstrip("/") or callbacks.base_url
        self._run.callbacks = callbacks
        self._callback_endpoint.router = callbacks

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
        number = await record(LedgerStore.start_run, settings.origin, version("krea-batch"), self._clock(), per_s)
        stack.push_async_callback(self._finalize, number)
        reopened = await record(
            LedgerStore.recover,
            max_attempts=settings.max_attempts,
            resubmit_ambiguous=settings.ambiguous is AmbiguousPolicy.RESUBMIT,
        )
        has_succeeded = await record(LedgerStore.has_succeeded)
        self._failure_guard = IdenticalFailureGuard(settings.max_identical_failures, has_succeeded=has_succeeded)
        self._scheduler.add_past_latencies(await record(LedgerStore.latencies, LATENCY_HISTORY))
        if settings.max_charges is not None:  # to count them takes half a second of a million jobs
            charges = await record(LedgerStore.charges)
            self._submitter.set_prior_charges(charges.charged + charges.unknown)
        await self._downloader.prepare()
        if reopened or results_bytes is None or results_bytes != self._results.size_bytes():
            await self._rewrite_results_in_background(stack)
        elif settled := await record(LedgerStore.last_settled_job):
            self._stable_prefix = StablePrefix(settled, results_bytes, self._results.identity())

    async def _rewrite_results_in_background(self, stack: AsyncExitStack) -> None:
        """Write the results anew beside the run, as they are now; the last run did not come to it."""
        past = await self._run.on_disk(LedgerStore.snapshot, self.settings.out / LEDGER)
        stack.callback(past.close)
        self._results.buffer()
        outcomes = pages(
            lambda after_n: run_to_completion(self._run.on_disk(past.outcomes_page, after_n, MAX_TRANSACTION_ROWS))
        )
        renewing = asyncio.create_task(self._write_results(outcomes))
        stack.push_async_callback(_cancelled, renewing)

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
        """Wait until nothing waits for its turn, and nothing is on its way."""
        while self._run.stats.jobs_queued or self._run.in_flight_limit.in_use or self._callback_handler.expecting:
            await self._admission.wait_idle()
            await self._run.in_flight_limit.wait_idle()
            await self._callback_handler.wait()

    async def _resume_open_jobs(self) -> None:
        after_n = 0
        while batch := await self._run.record(LedgerStore.open_jobs, after_n, MAX_TRANSACTION_ROWS):
            for job in batch:
                await self._resume(job)
            after_n = batch[-1].job_no

    async def _resume(self, job: OpenJob) -> None:
        flight = InFlightJob.from_ledger(job)
        self._run.in_flight_fingerprints[job.job_id] = b""  # the ledger has its fingerprint
        self._run.events.emit_resumed(flight, job.state)
        if job.state is State.PENDING:
            flight.body, flight.fingerprint, flight.metadata = await self._run.record(
                LedgerStore.request_of, job.job_no
            )
            self._admission.put(flight)
            return
        self._run.in_flight_limit.acquire_resumed()
        match job.state:
            case State.FINISHED:
                flight.finished = job.media
                self._downloader.put(flight)
            case _:
                self._scheduler.resume(flight)

    async def _finalize(self, run_number: int) -> None:
        """The last that is done with an open ledger: note the end, write the results anew."""
        if self._run.ledger.failure:
            return
        with anyio.CancelScope(shield=True):
            is_the_same = self._results.identity() == self._stable_prefix.identity
            kept = self._stable_prefix if is_the_same else EMPTY_PREFIX
            outcomes = self._run.ledger.outcomes(kept.last_job_no)
            if await self._write_results(outcomes, keep_bytes=kept.size_bytes):
                await self._run.record(LedgerStore.set_results_size, self._results.size_bytes())
            await self._run.record(LedgerStore.end_run, run_number, self._clock())

    async def _write_results(self, outcomes: AsyncIterator[list[Outcome]], *, keep_bytes: int = 0) -> bool:
        """Write them anew. False, and the run is told to stop, where the disk does not take them."""
        try:
            await self._results.rewrite(outcomes, keep_bytes=keep_bytes)
        except OSError as error:
            self._results_failed(error)
            return False
        return True

    def _results_failed(self, error: OSError) -> None:
        reason = f"results.jsonl cannot be written ({error.strerror})"
        self._run.stop(RunStopped(reason, "make room in --out, then run the same command again"))

    # ---- what the stages hand on -------------------------------------------------------------------------

    def _on_accepted(self, flight: InFlightJob, progress: Progress) -> None:
        self._failure_guard.record_accepted()
        self._waiters.on_accepted(flight)
        self._scheduler.put(flight, progress)

    def _on_errored(self, flight: InFlightJob, wait_s: float) -> None:
        self._submitter.record_refund()
        self._submitter.enqueue(flight, wait_s)

    def _on_ended(self, flight: InFlightJob, outcome: Outcome) -> None:
        self._run.in_flight_limit.release()
        self._run.stats.ended_by_state[outcome.status] += 1
        if outcome.status is State.ERRORED:
            self._submitter.record_refund()
        if outcome.status is State.AMBIGUOUS:
            self._callback_handler.expect(flight.job_no, self._scheduler.callback_wait_s(flight))
        if why := self._failure_guard.record_ended(outcome):
            self._run.stop(RunStopped(why, "see what is wrong, then run the same command again"))
        self._run.events.emit(JobEnded(outcome))
        self._results.append(outcome)
        self._run.in_flight_fingerprints.pop(flight.id, None)
        self._waiters.on_ended(outcome)

    def _on_deferred(self, flight: InFlightJob) -> None:
        self._run.in_flight_limit.release()
        self._run.in_flight_fingerprints.pop(flight.id, None)
        if self._run.stopped:  # else the stages are coming down, and `_forsake` will know why
            self._waiters.fail(flight.id)

    def _fail_waiters(self, why: BaseException) -> None:
        """The stages have ended: whoever still waits for a job waits in vain, in this run."""
        self._closed = True
        self._run.events.emit_closed()
        why = CLOSED if isinstance(why, asyncio.CancelledError) else why
        self._waiters.fail_all(why)
        for reader in self._event_streams:
            reader.close()
        self._cancel_streams()

    def _cancel_streams(self) -> None:
        """Read no more of any caller's jobs: nothing would come of them in this run."""
        for stream in self._streams:
            stream.cancel()

    # ---- parts -------------------------------------------------------------------------------------------

    async def _register_job(self, job: Job, tenant: str, *, on_record: bool = False) -> tuple[Handle, JobWaiter]:
        """Put a new job on its way, or find the one on record under its id. Raises JobError, RunStopped."""
        job = validate_job(job)
        if not job.id:
            job = msgspec.structs.replace(job, id=uuid.uuid4().hex)
        watch = await self._run_shielded(self._waiters.register(build_in_flight_job(job, tenant), durable=on_record))
        return Handle(job.id, watch), watch

    def _on_admitted(self, flight: InFlightJob) -> None:
        """Take a flight whose turn has come, with its slot."""
        self._waiters.on_admitted(flight)
        self._submitter.enqueue(flight)

    def _on_admission_deferred(self, flight: InFlightJob) -> None:
        """The run stopped before the job's turn came."""
        self._waiters.fail(flight.id)

    def _start_job(self, flight: InFlightJob) -> None:
        """Take a flight that has its slot."""
        self._run.in_flight_fingerprints[flight.id] = flight.fingerprint
        self._submitter.enqueue(flight)

    async def _run_shielded(self, work: Coroutine[Any, Any, T]) -> T:
        """Have something done whether its caller is cancelled or not: others may wait for the same job."""
        task = asyncio.create_task(work)
        task.add_done_callback(_note_error)  # its caller may be gone
        return await self._or_engine_failure(asyncio.shield(task))

    async def _or_engine_failure(self, work: Awaitable[T]) -> T:
        """Wait for what the stages bring about. Raises what ended them, where they end first."""
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
    """Return the settings of an engine, which are passed either as one value or as keywords."""
    if settings is None:
        if out is None:
            raise SettingsError("out", "missing", "pass the run directory, or settings=Settings(out=…)")
        return Settings.from_options(Path(out), **given)
    if out is not None or given.keys() - {"rate"}:
        raise SettingsError("settings", "cannot be combined with out or other settings")
    return msgspec.structs.replace(settings, **given)


def _find_key(given: str | ApiKey | None) -> ApiKey:
    if isinstance(given, ApiKey):
        return given
    text = given or os.environ.get(KEY_VARIABLE, "")
    if not text:
        raise SettingsError("api_key", "no API key", f"set {KEY_VARIABLE} or pass api_key=…")
    return ApiKey(text)


async def _first_of(*works: Awaitable[Any]) -> None:
    """Wait for the first of several to be done, and let the others be."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


async def _cancelled(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait for its end. Raises what it raised by itself."""
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()


def _note_error(task: asyncio.Task[Any]) -> None:
    """Whether anybody still waits for the task or not, asyncio need not tell of its error."""
    if not task.cancelled():
        task.exception()


def _first(error: BaseException) -> BaseException:
    """The error that ended the run: one of ours where there is one."""
    if isinstance(error, BaseExceptionGroup):
        error = error.subgroup(KreaBatchError) or error
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
