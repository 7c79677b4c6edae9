"""Jobs come in; pictures on disk and outcomes go out. Opens ledger and gateway and joins the stages.

    async with Engine("runs/cats", rate="10/s") as engine:
        outcome = await engine.generate(Job(prompt="a cat"))

Newcomers: the stages run in a task of the engine's own, so nothing a caller cancels can lose a picture. What is
not finished when the engine closes stays in the ledger, and the next engine on that folder goes on with it.
"""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random
from typing import Any, Self, TypeVar

import anyio
import msgspec

from krea_batch import __version__
from krea_batch.errors import InputError, KreaBatchError, RunStopped, SettingsError
from krea_batch.events import Ended, Listener
from krea_batch.folder import LEDGER, RunFolder
from krea_batch.handles import Handle, Watch
from krea_batch.jobs import Job, Outcome, State, checked
from krea_batch.ledger import READ_AT_ONCE, Charges, Ledger, OpenJob, Store, pages
from krea_batch.pipeline.downloader import Downloader
from krea_batch.pipeline.flight import Flight
from krea_batch.pipeline.poll_scheduler import PollScheduler
from krea_batch.pipeline.producer import Producer, check_same, take_off
from krea_batch.pipeline.run import Gateway, Run, Stats
from krea_batch.pipeline.submitter import Submitter
from krea_batch.report.results import Results
from krea_batch.rules.patience import SameFailure
from krea_batch.rules.verdicts import Progress
from krea_batch.settings import Ambiguous, ApiKey, Settings
from krea_batch.waits import to_the_end

T = TypeVar("T")

KEY_VARIABLE = "PIXAZO_API_KEY"  # DESIGN, Safety
DISK_THREADS = 8  # chosen: fsyncs in parallel cost less each; more threads than this gained little
LEARN_FROM_LAST = 500  # chosen: as many latencies as the schedule remembers


class Engine:
    """One run folder, one gateway, one key. An async context manager; `start` and `aclose` do the same.

    `out` is the run's folder; further keywords are the fields of `Settings`, where rates may be text ("10/s").
    `api_key` comes from the environment (PIXAZO_API_KEY) when it is not given. Leaving the context waits for
    what was submitted; leaving it by an exception stops at once, and the next engine on the folder goes on.

    Raises SettingsError; `start` also RunFolderError and LedgerError.
    """

    def __init__(
        self,
        out: str | os.PathLike[str],
        *,
        api_key: str | ApiKey | None = None,
        listeners: Iterable[Listener] = (),
        gateway_client: Gateway | None = None,
        clock: Callable[[], float] = time.time,
        random: Random | None = None,
        **options: Any,
    ) -> None:
        self.settings = Settings.of(Path(out), **options)
        self._client = gateway_client
        self._key = _find_key(api_key) if gateway_client is None else None
        self._clock = clock
        self._random = random or Random()  # noqa: S311 - spreads retries, guards nothing
        self._listeners = list(listeners)
        self._watches: dict[str, Watch] = {}
        self._boarding: dict[str, asyncio.Task[None]] = {}  # jobs that wait for a slot
        self._over = False

    # ---- life --------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.stop_now("an exception left the engine's context")
        await self.aclose()

    async def start(self) -> None:
        """Open the folder and go on with what an earlier run left in it."""
        self._ready = asyncio.Event()
        self._closing = asyncio.Event()
        self._hurry = asyncio.Event()
        self._task = asyncio.create_task(self._main(), name="krea-batch engine")
        try:
            await self._while_running(self._ready.wait())
        except asyncio.CancelledError:
            self._task.cancel()  # nobody is going to leave a context that was never entered
            await asyncio.wait([self._task])
            raise

    async def aclose(self) -> None:
        """Wait for everything submitted, write the results anew, close. Raises what ended the run early."""
        self._closing.set()
        await asyncio.shield(self._task)

    def stop(self, reason: str = "the run was asked to stop") -> None:
        """Take no more submits; what is in flight is brought home."""
        self._run.stop(RunStopped(reason, "run the same again to go on"))

    def stop_now(self, reason: str = "the run was asked to stop at once") -> None:
        """Stop polls and downloads too; POSTs in the air get a few seconds. All of it can be resumed."""
        self.stop(reason)
        self._submitter.hurry()
        self._hurry.set()
        self._closing.set()

    @property
    def stopped(self) -> RunStopped | None:
        """Why the run takes no more submits, or None while it does."""
        return self._run.stopped if hasattr(self, "_run") else None

    def stats(self) -> Stats:
        """The counters of this run, now."""
        self._run.stats.in_flight = self._run.slots.in_use - self._submitter.waiting
        return self._run.stats

    async def charges(self) -> Charges:
        """What the POSTs of this folder came to, in this run and before it."""
        return await self._run.record(Store.charges)

    async def counts(self) -> dict[State, int]:
        """How many of the folder's jobs stand in each state."""
        return await self._run.record(Store.counts)

    # ---- jobs in, outcomes out ---------------------------------------------------------------------------

    async def run(self, jobs: Iterable[Job]) -> None:
        """Feed every job (each has its id) and wait until all have ended, or what is in flight when stopped has.

        Jobs that the folder knows are not submitted again. Raises InputError, once what is in flight is home,
        where a job has changed since, or the source of the jobs cannot be read on.
        """
        try:
            await self._while_running(self._producer.work(jobs))
        except InputError as error:
            self._run.stop(RunStopped(error.wrong, error.right))
            await self._while_running(self._run.slots.wait_empty())
            raise
        await self._while_running(self._run.slots.wait_empty())
        self._producer.keep_mark()

    async def submit(self, job: Job) -> Handle:
        """Submit a job and return once its request_id is on record, or it has ended without one.

        Waits for a free slot and for the pace. A job whose id the folder knows is not submitted again: the
        handle is that of the first. Cancelling the wait does not take the job back. Raises JobError, RunStopped.
        """
        job_id, watch = await self._enter(job)
        request_id = await self._while_running(asyncio.shield(watch.accepted))
        return Handle(job_id, request_id, watch.outcome)

    async def generate(self, job: Job) -> Outcome:
        """Submit a job and wait for its end: accepted, finished, stored. Raises JobError, RunStopped."""
        return await (await self.submit(job))

    async def stream(self, jobs: Iterable[Job] | AsyncIterable[Job]) -> AsyncIterator[Outcome]:
        """Outcomes as jobs finish. `jobs` is read only as fast as slots become free and outcomes are taken.

        Raises JobError, RunStopped, and what reading `jobs` raises, once what is in flight is home. Leaving the
        loop early leaves what is submitted on its way.
        """
        ended: asyncio.Queue[asyncio.Future[Outcome] | None] = asyncio.Queue()
        window = anyio.Semaphore(self.settings.max_in_flight)
        fed = taken = 0
        trouble: BaseException | None = None

        async def feed() -> None:
            nonlocal fed
            try:
                async for job in _each(jobs):
                    await window.acquire()
                    _, watch = await self._enter(job)
                    fed += 1
                    watch.outcome.add_done_callback(ended.put_nowait)
            finally:
                ended.put_nowait(None)

        feeder = asyncio.create_task(feed())
        try:
            while not (feeder.done() and taken == fed):
                outcome = await ended.get()
                if outcome is None:
                    await asyncio.wait([feeder])
                    continue
                taken += 1
                window.release()
                if outcome.exception() is None:
                    yield outcome.result()
                else:
                    trouble = trouble or outcome.exception()
            feeder.result()
        finally:
            feeder.cancel()
        if trouble:
            raise trouble

    # ---- the engine's own task ---------------------------------------------------------------------------

    async def _main(self) -> None:
        try:
            async with AsyncExitStack() as stack:
                await self._open(stack)
                try:
                    await self._work()
                except BaseException as error:
                    self._forsake(_first(error))
                    raise
                self._forsake(self.stopped or _CLOSED)
        except BaseExceptionGroup as group:
            raise _first(group) from group

    async def _open(self, stack: AsyncExitStack) -> None:
        folder = RunFolder(self.settings.out)
        folder.take()
        stack.callback(folder.release)
        ledger = Ledger.open(folder.ledger)
        stack.push_async_callback(ledger.close)
        disk = ThreadPoolExecutor(DISK_THREADS, "krea-batch-disk")
        stack.callback(disk.shutdown)
        client = self._client or await self._connect(stack)
        self._run = Run(
            self.settings,
            client,
            ledger,
            disk,
            clock=self._clock,
            random=self._random,
            listeners=self._listeners,
        )
        self._results = Results(self.settings.out, disk, self._results_failed)
        self._join()
        await self._reopen(stack)

    async def _connect(self, stack: AsyncExitStack) -> Gateway:
        from krea_batch.gateway.client import GatewayClient  # aiohttp: only where it is needed

        assert self._key is not None  # noqa: S101 - __init__ found one
        return await stack.enter_async_context(GatewayClient(self.settings, self._key))

    def _join(self) -> None:
        self._downloader = Downloader(self._run, ended=self._ended, left=self._left)
        self._scheduler = PollScheduler(
            self._run,
            finished=self._downloader.put,
            again=self._submit_again,
            ended=self._ended,
            left=self._left,
        )
        self._submitter = Submitter(self._run, accepted=self._accepted, ended=self._ended, left=self._left)
        self._producer = Producer(self._run, self._submitter.room, self._take_off)
        self._run.when_stopping(self._leave_boarding)

    async def _reopen(self, stack: AsyncExitStack) -> None:
        record, settings = self._run.record, self.settings
        results_bytes = await record(Store.results_bytes)
        number = await record(Store.start_run, settings.origin, __version__, self._clock())
        stack.push_async_callback(self._close_books, number)
        reopened = await record(
            Store.reopen,
            max_attempts=settings.max_attempts,
            resubmit_ambiguous=settings.ambiguous is Ambiguous.RESUBMIT,
        )
        has_succeeded = await record(Store.has_succeeded)
        self._same_failure = SameFailure(settings.max_same_failures, has_succeeded=has_succeeded)
        self._scheduler.learn(await record(Store.latencies, LEARN_FROM_LAST))
        charges = await record(Store.charges)
        self._submitter.begin_with(charges.charged + charges.unknown)
        if reopened or results_bytes is None or results_bytes != self._results.size_bytes():
            await self._renew_results(stack)

    async def _renew_results(self, stack: AsyncExitStack) -> None:
        """Write the results anew beside the run, as they are now; the last run did not come to it."""
        past = await self._run.on_disk(Store.snapshot, self.settings.out / LEDGER)
        stack.callback(past.close)
        self._results.hold()
        outcomes = pages(lambda after_n: to_the_end(self._run.on_disk(past.past_outcomes, after_n, READ_AT_ONCE)))
        renewing = asyncio.create_task(self._write_results(outcomes))
        stack.push_async_callback(_cancelled, renewing)

    async def _work(self) -> None:
        self._run.opened()
        async with anyio.create_task_group() as stages:
            stages.start_soon(self._submitter.work)
            stages.start_soon(self._scheduler.work)
            stages.start_soon(self._downloader.work)
            await self._go_on_with_open_jobs()
            self._ready.set()
            await self._closing.wait()
            await _first_of(self._run.slots.wait_empty(), self._hurry.wait())
            stages.cancel_scope.cancel()

    async def _go_on_with_open_jobs(self) -> None:
        after_n = 0
        while batch := await self._run.record(Store.open_jobs, after_n, READ_AT_ONCE):
            for job in batch:
                await self._go_on_with(job)
            after_n = batch[-1].n

    async def _go_on_with(self, job: OpenJob) -> None:
        flight = Flight(job.id, kind=job.kind)
        flight.n, flight.errors, flight.polls = job.n, job.errors, job.polls
        flight.request_id = job.request_id or ""
        self._run.slots.take_over()
        self._run.aloft[job.id] = b""  # the ledger has its fingerprint
        self._run.taken_over(flight, job.state)
        match job.state:
            case State.PENDING:
                flight.body, flight.fingerprint, flight.metadata = await self._run.record(Store.sending, job.n)
                self._submitter.put(flight)
            case State.FINISHED:
                flight.finished = job.media
                self._downloader.put(flight)
            case _:
                self._scheduler.take_over(flight)

    async def _close_books(self, run_number: int) -> None:
        """The last that is done with an open ledger: note the end, write the results anew."""
        if self._run.ledger.broken:
            return
        with anyio.CancelScope(shield=True):
            if await self._write_results(self._run.ledger.outcomes()):
                await self._run.record(Store.results_written, self._results.size_bytes())
            await self._run.record(Store.end_run, run_number, self._clock())

    async def _write_results(self, outcomes: AsyncIterator[list[Outcome]]) -> bool:
        """Write them anew. False, and the run is told to stop, where the disk does not take them."""
        try:
            await self._results.write_anew(outcomes)
        except OSError as error:
            self._results_failed(error)
            return False
        return True

    def _results_failed(self, error: OSError) -> None:
        reason = f"results.jsonl cannot be written ({error.strerror})"
        self._run.stop(RunStopped(reason, "make room in --out, then run the same command again"))

    # ---- what the stages hand on -------------------------------------------------------------------------

    def _accepted(self, flight: Flight, progress: Progress) -> None:
        self._same_failure.accepted()
        if watch := self._watches.get(flight.id):
            watch.accept(flight.request_id)
        self._scheduler.put(flight, progress)

    def _submit_again(self, flight: Flight, wait_s: float) -> None:
        self._submitter.refunded()
        self._submitter.put(flight, wait_s)

    def _ended(self, flight: Flight, outcome: Outcome) -> None:
        self._run.slots.give_back()
        self._run.stats.count_end(outcome.status)
        if outcome.status is State.ERRORED:
            self._submitter.refunded()
        if why := self._same_failure.ended(outcome):
            self._run.stop(RunStopped(why, "see what is wrong, then run the same command again"))
        self._run.tell(Ended(outcome))
        self._results.append(outcome)
        self._run.aloft.pop(flight.id, None)
        if watch := self._watches.pop(flight.id, None):
            watch.end(outcome)

    def _left(self, flight: Flight) -> None:
        self._run.slots.give_back()
        self._run.aloft.pop(flight.id, None)
        if self._run.stopped:  # else the stages are coming down, and `_forsake` will know why
            self._give_up(flight.id)

    def _give_up(self, job_id: str, why: BaseException | None = None) -> None:
        """Tell whoever waits for the job that this run brings it no further."""
        self._run.aloft.pop(job_id, None)
        if watch := self._watches.pop(job_id, None):
            watch.give_up(why or self._run.stopped or _CLOSED)

    def _leave_boarding(self, why: BaseException | None = None) -> None:
        boarding, self._boarding = self._boarding, {}
        for job_id, task in boarding.items():
            task.cancel()
            self._give_up(job_id, why)

    def _forsake(self, why: BaseException) -> None:
        """The stages have ended: whoever still waits for a job waits in vain, in this run."""
        self._over = True
        self._run.closed()
        why = _CLOSED if isinstance(why, asyncio.CancelledError) else why
        self._leave_boarding(why)
        for job_id in list(self._watches):
            self._give_up(job_id, why)

    # ---- parts -------------------------------------------------------------------------------------------

    async def _enter(self, job: Job) -> tuple[str, Watch]:
        """Put a new job on its way, or find the one on record under its id. Raises JobError, RunStopped."""
        job = checked(job)
        if not job.id:
            job = msgspec.structs.replace(job, id=uuid.uuid4().hex)
        flight = take_off(job)
        known = await self._while_running(self._known(job.id))
        fingerprint = known or self._run.aloft.get(job.id)
        if fingerprint:
            check_same(flight, fingerprint)
        watch = self._watches.get(job.id)
        if watch is None:
            watch = self._watches[job.id] = Watch()
            # Tasks of the engine's own: others may wait for the same job when this caller is cancelled.
            if fingerprint:
                await self._let_be(asyncio.create_task(self._find(job.id, watch)))
            elif self._run.stopped:
                self._give_up(job.id)
            else:
                self._run.aloft[job.id] = flight.fingerprint
                self._boarding[job.id] = asyncio.create_task(self._board(flight))
        if boarding := self._boarding.get(job.id):
            await self._let_be(boarding)
        return job.id, watch

    async def _known(self, job_id: str) -> bytes | None:
        """The fingerprint that the ledger has for this id, if any."""
        return (await self._run.record(Store.fingerprints, [job_id])).get(job_id)

    async def _board(self, flight: Flight) -> None:
        await self._run.slots.take()
        del self._boarding[flight.id]
        self._submitter.put(flight)

    def _take_off(self, flight: Flight) -> None:
        """Take a flight that has its slot."""
        self._run.aloft[flight.id] = flight.fingerprint
        self._submitter.put(flight)

    async def _find(self, job_id: str, watch: Watch) -> None:
        """Tell a new watch what the ledger already knows."""
        try:
            request_id, outcome = await self._run.record(Store.known, job_id)
        except KreaBatchError as error:
            watch.give_up(error)
            return
        if watch.outcome.done():
            return
        if outcome:
            del self._watches[job_id]
            watch.end(outcome)
        elif job_id not in self._run.aloft:
            self._give_up(job_id)  # the stop left it to the next run
        elif request_id:
            watch.accept(request_id)

    async def _let_be(self, task: asyncio.Task[None]) -> None:
        """Wait for a task, which a caller's cancel leaves alone."""
        await self._while_running(asyncio.wait([task]))

    async def _while_running(self, work: Awaitable[T]) -> T:
        """Wait for what the stages bring about. Raises what ended them, where they end first."""
        waiting = asyncio.ensure_future(work)
        try:
            if not self._over:
                await asyncio.wait([waiting, self._task], return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                return waiting.result()
            await asyncio.wait([self._task])
            self._task.result()
            raise self.stopped or _CLOSED
        finally:
            waiting.cancel()


_CLOSED = RunStopped("the engine is closed", "open it again to go on")


def _find_key(given: str | ApiKey | None) -> ApiKey:
    if isinstance(given, ApiKey):
        return given
    text = given or os.environ.get(KEY_VARIABLE, "")
    if not text:
        raise SettingsError("api-key-file", "there is no API key", f"set {KEY_VARIABLE}, or pass api_key=…")
    return ApiKey(text)


async def _each(jobs: Iterable[Job] | AsyncIterable[Job]) -> AsyncIterator[Job]:
    if isinstance(jobs, AsyncIterable):
        async for job in jobs:
            yield job
    else:
        for job in jobs:
            yield job


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


def _first(error: BaseException) -> BaseException:
    """The error that ended the run: one of ours where there is one."""
    if isinstance(error, BaseExceptionGroup):
        error = error.subgroup(KreaBatchError) or error
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
