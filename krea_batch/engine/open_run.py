"""An open run directory: its lock, ledger, results and gateway, and the pipeline that works on it.

`open_run` opens all of these. They are closed in the opposite order; results.jsonl is rewritten just before the
ledger is closed.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from functools import partial
from importlib.metadata import version
from random import Random
from typing import TYPE_CHECKING, Any

import anyio
import msgspec

from krea_batch.errors import FencedError, RunDirError, RunStopped
from krea_batch.events import Listener
from krea_batch.gateway.callbacks import SECRET_BYTES, CallbackEndpoint, CallbackRouter
from krea_batch.jobs import Outcome
from krea_batch.ledger import (
    MAX_TRANSACTION_ROWS,
    Ledger,
    LedgerWriter,
    bind_database,
    open_ledger,
    pages,
    read_outcomes,
    snapshot_ledger,
)
from krea_batch.pipeline.context import RunContext
from krea_batch.pipeline.pipeline import Pipeline
from krea_batch.pipeline.protocols import Gateway
from krea_batch.pipeline.rate_limiter import RateLimiter
from krea_batch.pipeline.shared_rate_limiter import SharedRateLimiter
from krea_batch.rules.delivery import DeliveryGuard
from krea_batch.rules.fail_fast import IdenticalFailureGuard
from krea_batch.rules.lease import Lease
from krea_batch.settings import AmbiguousPolicy, ApiKey, Settings, Webhook, url_host
from krea_batch.storage.async_io import run_to_completion
from krea_batch.storage.image_file import remove_stale_parts
from krea_batch.storage.os_errors import next_step
from krea_batch.storage.process_lock import ProcessLock, remove_lock_file
from krea_batch.storage.results_file import EMPTY_PREFIX, ResultsFile, StablePrefix
from krea_batch.storage.run_dir import RunDir
from krea_batch.storage.sinks import Sink

if TYPE_CHECKING:
    from krea_batch.storage.reference_store import ReferenceStore  # obstore is optional

OPENING_S = 10.0  # chosen: opening a ledger and reading the end of results.jsonl take less
OPENING_RETRY_S = 1.0
DISK_THREADS = 8  # chosen: an fsync is cheaper if others run in parallel; more threads than this gained little
MAX_KNOWN_IMAGES = 20  # chosen: the images of a run are on a few hosts
LATENCY_HISTORY = 500  # chosen: the weight of observations that a poll schedule keeps (latency_estimate.MAX_WEIGHT)


class RunConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine was created with. `gateway_client` replaces the client that would use `key`."""

    settings: Settings
    key: ApiKey | None
    gateway_client: Gateway | None
    rate_limiter: RateLimiter
    sink: Sink | None
    references: ReferenceStore | None
    listeners: list[Listener]
    clock: Callable[[], float]
    random: Random


class OpenRun:
    """An open run directory with its pipeline."""

    def __init__(
        self,
        config: RunConfig,
        run_dir: RunDir,
        process_lock: ProcessLock,
        context: RunContext,
        results: ResultsFile,
        pipeline: Pipeline,
    ) -> None:
        self._config = config
        self._run_dir = run_dir
        self._process_lock = process_lock
        self.context = context
        self.pipeline = pipeline
        self._results = results
        self._kept = EMPTY_PREFIX  # the rows of results.jsonl that cannot change any more

    @property
    def is_fenced(self) -> bool:
        """Whether another run has taken over the jobs of this one."""
        return isinstance(self.context.ledger.failure, FencedError)

    async def work(
        self,
        endpoint: CallbackEndpoint,
        *,
        on_ready: Callable[[], None],
        closing: asyncio.Event,
        aborting: asyncio.Event,
    ) -> None:
        """Work on jobs until `closing` is set and all of them have ended, or `aborting` is set.

        The jobs of earlier runs are resumed first; then `on_ready` is called.
        """
        self.context.events.emit_opened()
        async with anyio.create_task_group() as stages:
            self.pipeline.start(stages)
            await self.pipeline.resume_open_jobs()
            on_ready()
            await closing.wait()
            if self.pipeline.coordinator:
                self.pipeline.coordinator.stop_claiming()
            # The stages are cancelled in the step of the event loop in which no job is left. A job that came later
            # would be interrupted.
            while not (aborting.is_set() or self.pipeline.is_idle):
                await _first_of(self.pipeline.wait_idle(), aborting.wait())
            endpoint.router = None
            stages.cancel_scope.cancel()

    # ---- the start ---------------------------------------------------------------------------------------

    async def recover(self, stack: AsyncExitStack) -> None:
        """Record the start of the run, and move jobs of earlier runs into the states in which they are resumed."""
        record, settings, clock = self.context.record, self._config.settings, self._config.clock
        results_bytes = await record(Ledger.results_bytes)
        per_s = None if settings.rate.is_auto else settings.rate.per_s
        start = (settings.origin, version("krea-batch"), clock(), per_s)
        if settings.shared:
            self._process_lock.acquire()
        try:
            run_no = await record(
                Ledger.start_run,
                *start,
                max_charges=settings.max_charges,
                count_server_errors=settings.count_server_errors,
                worker=f"{socket.gethostname()}:{os.getpid()}",
                process_lock=self._process_lock.name,
            )
        except RunDirError:  # The run is not recorded, so no other process knows its lock.
            remove_lock_file(self._process_lock.name)
            raise
        stack.push_async_callback(self._finalize, run_no)
        self.context.run_no = run_no
        self.context.ledger.bind_run(run_no, Lease() if settings.shared else None)
        requeued = await record(
            Ledger.recover,
            max_attempts=settings.max_attempts,
            resubmit_ambiguous=settings.ambiguous is AmbiguousPolicy.RESUBMIT,
        )
        await self.context.resume_found_limit()
        self.pipeline.poll_scheduler.add_past_latencies(await record(Ledger.latencies, LATENCY_HISTORY))
        # Counting the charges of a million jobs takes half a second.
        if settings.max_charges is not None and not settings.shared:
            charges = await record(Ledger.charges)
            self.pipeline.budget.add_charges(charges.limited(count_server_errors=settings.count_server_errors))
        await self.pipeline.downloader.prepare()
        await self.pipeline.references.check()
        if settings.shared:
            return  # The last run that ends writes results.jsonl.
        if requeued or results_bytes is None or results_bytes != self._results.size_bytes():
            await self._rewrite_results_in_background(stack)
        elif settled := await record(Ledger.last_settled_job):
            self._kept = StablePrefix(settled, results_bytes, self._results.identity())

    async def listen(self, stack: AsyncExitStack, endpoint: CallbackEndpoint, webhook: Webhook) -> None:
        """Let the gateway send a callback at the end of each job."""
        secret = await self.context.record(Ledger.callback_secret, os.urandom(SECRET_BYTES))
        router = CallbackRouter(secret, self.pipeline.callback_handler.on_callback)
        if webhook.listen:
            from krea_batch.gateway.callback_server import CallbackServer  # Imports aiohttp, which is slow to import.

            server = await stack.enter_async_context(CallbackServer(webhook, endpoint))
            router.base_url = f"http://{url_host(webhook.listen_address[0])}:{server.port}"
        router.base_url = webhook.url.rstrip("/") or router.base_url
        self.context.callbacks = router
        endpoint.router = router

    async def _rewrite_results_in_background(self, stack: AsyncExitStack) -> None:
        """Rewrite results.jsonl in the background, because the previous run did not."""
        context = self.context
        snapshot = await context.on_disk(snapshot_ledger, self._config.settings.out)
        stack.callback(snapshot.close)
        self._results.buffer()
        outcomes = pages(
            lambda after_no: run_to_completion(
                context.on_disk(read_outcomes, snapshot, after_no, MAX_TRANSACTION_ROWS)
            )
        )
        rewriting = asyncio.create_task(self._rewrite_results(outcomes))
        # While the snapshot is open, the WAL grows with every commit, and ledger.db stays as it was.
        rewriting.add_done_callback(lambda _: snapshot.close())
        stack.push_async_callback(_cancel, rewriting)

    # ---- the end -----------------------------------------------------------------------------------------

    async def _finalize(self, run_no: int) -> None:
        """Rewrite the results and record the end of the run. This is the last step before the ledger is closed."""
        context = self.context
        if context.ledger.failure:
            return
        with anyio.CancelScope(shield=True):
            if isinstance(context.rate_limiter, SharedRateLimiter):
                await context.rate_limiter.close()
                await context.record(Ledger.end_run, run_no, self._config.clock())
                remove_lock_file(self._process_lock.name)
                if not self._run_dir.try_to_be_alone():
                    return
                await context.on_disk(remove_stale_parts, self._config.settings.out)
            is_unchanged = self._results.identity() == self._kept.identity
            kept = self._kept if is_unchanged else EMPTY_PREFIX
            outcomes = context.ledger.outcomes(kept.last_job_no)
            if await self._rewrite_results(outcomes, keep_bytes=kept.size_bytes):
                await context.record(Ledger.set_results_size, self._results.size_bytes())
            context.record_found_limit(context.rate_limiter.controller.found)
            await context.record(Ledger.end_run, run_no, self._config.clock())

    async def _rewrite_results(self, outcomes: AsyncIterator[list[Outcome]], *, keep_bytes: int = 0) -> bool:
        """Rewrite results.jsonl after its first `keep_bytes`. Stop the run and return False if the disk fails."""
        try:
            await self._results.rewrite(outcomes, keep_bytes=keep_bytes)
        except OSError as error:
            _stop_for_results(self.context, error)
            return False
        return True


async def open_run(stack: AsyncExitStack, config: RunConfig, endpoint: CallbackEndpoint) -> OpenRun:
    """Open the run directory; `stack` closes it. Raises RunDirError, LedgerError."""
    settings = config.settings
    run_dir = RunDir(settings.out)
    await _lock(run_dir, shared=settings.shared)
    stack.callback(run_dir.unlock)
    process_lock = ProcessLock()
    stack.callback(process_lock.release)  # after everything below is closed, so after the last POST
    if settings.ledger:
        await asyncio.to_thread(bind_database, settings)
    ledger = await open_ledger(run_dir.path, alone=run_dir.is_alone)
    stack.push_async_callback(ledger.close)
    if settings.shared:
        run_dir.share()
    disk = ThreadPoolExecutor(DISK_THREADS, "krea-batch-disk")
    stack.callback(disk.shutdown)
    has_succeeded = await ledger.record(Ledger.has_succeeded)
    shared_limiter = SharedRateLimiter(settings.rate, ledger, config.clock) if settings.shared else None
    context = RunContext(
        settings,
        config.gateway_client or await _connect(stack, config, ledger),
        ledger,
        disk,
        clock=config.clock,
        random=config.random,
        listeners=config.listeners,
        rate_limiter=shared_limiter or config.rate_limiter,
        delivery=DeliveryGuard(proven=has_succeeded),
    )
    stack.callback(context.release_in_process)
    results = ResultsFile(settings.out, disk, partial(_stop_for_results, context))
    stack.push_async_callback(results.close)
    failure_guard = IdenticalFailureGuard(settings.max_identical_failures or 0, has_succeeded=has_succeeded)
    pipeline = Pipeline(context, results, failure_guard, sink=config.sink, references=config.references)
    stack.push_async_callback(pipeline.references.close)
    run = OpenRun(config, run_dir, process_lock, context, results, pipeline)
    await run.recover(stack)
    if settings.webhook:
        await run.listen(stack, endpoint, settings.webhook)
    return run


async def _lock(run_dir: RunDir, *, shared: bool) -> None:
    """Lock the run directory. Processes that share it are waited for while they open it. Raises RunDirError."""
    now_s = asyncio.get_running_loop().time
    give_up_s = now_s() + (OPENING_S if shared else 0.0)
    while True:
        try:
            run_dir.lock(shared=shared)
        except RunDirError:
            if now_s() >= give_up_s:
                raise
            await asyncio.sleep(OPENING_RETRY_S)
        else:
            return


async def _connect(stack: AsyncExitStack, config: RunConfig, ledger: LedgerWriter) -> Gateway:
    from krea_batch.gateway.client import GatewayClient  # Imports aiohttp, which is slow to import.
    from krea_batch.gateway.image_urls import hosts_of

    assert config.key is not None  # noqa: S101 - set if there is no gateway_client
    cdn_hosts = hosts_of(await ledger.record(Ledger.latest_media_urls, MAX_KNOWN_IMAGES))
    return await stack.enter_async_context(GatewayClient(config.settings, config.key, cdn_hosts=cdn_hosts))


def _stop_for_results(context: RunContext, error: OSError) -> None:
    reason = f"cannot write results.jsonl ({error.strerror})"
    context.stop(RunStopped(reason, f"{next_step(error)}, then run again to resume"))


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
