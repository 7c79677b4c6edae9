"""What the stages of one run share: settings, gateway, ledger, disk threads, clock, randomness, counters, events.

A run that is stopping sends no new submits. Polls and downloads continue until every charged image is stored. Only an
InternalError, a ledger that fails or `Engine.abort` ends them sooner.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from random import Random
from typing import Any

import msgspec

from krea_batch.errors import RunStopped
from krea_batch.events import Listener
from krea_batch.gateway.callbacks import CallbackRouter
from krea_batch.gateway.proof import prove
from krea_batch.gateway.wire import CallbackPayload
from krea_batch.ledger import Ledger, LedgerWriter, find_known_jobs
from krea_batch.pipeline.emitter import EventEmitter
from krea_batch.pipeline.in_flight_job import InFlightJob, InFlightLimit, TakenIds
from krea_batch.pipeline.protocols import Gateway
from krea_batch.pipeline.rate_limiter import RateLimiter
from krea_batch.pipeline.shared_rate_limiter import SharedRateLimiter
from krea_batch.pipeline.stats import RunStats
from krea_batch.rules.backoff import RetryBudget
from krea_batch.rules.delivery import DeliveryGuard
from krea_batch.rules.found_limit import FoundLimit, recent_limit
from krea_batch.rules.verdicts import PollVerdict
from krea_batch.settings import Settings
from krea_batch.storage.async_io import DiskThreads
from krea_batch.storage.clocks import monotonic_clock
from krea_batch.storage.run_dir import has_images


class RunContext:
    """Shared by the stages of one run, on one event loop.

    `clock` returns the seconds since 1970, for instants in the ledger. All other times are seconds of `now_s`, the
    event loop's monotonic clock.
    """

    def __init__(
        self,
        settings: Settings,
        gateway: Gateway,
        ledger: LedgerWriter,
        disk: Executor,
        *,
        clock: Callable[[], float],
        random: Random,
        listeners: list[Listener],
        rate_limiter: RateLimiter | SharedRateLimiter,
        delivery: DeliveryGuard,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.settings = settings
        self.gateway = gateway
        self.ledger = ledger
        self.record = ledger.record
        self.record_later = ledger.record_later
        self.disk = DiskThreads(disk)
        self.on_disk = self.disk.run
        self.random = random.random
        self.wall_clock = clock
        self.now_s = monotonic_clock(self._loop)
        self.stats = RunStats()
        self.events = EventEmitter(listeners, self.stats, self.now_s)
        self.in_flight_limit = InFlightLimit(settings.max_in_flight)
        rate_limiter.bind_loop()
        self.rate_limiter: RateLimiter | SharedRateLimiter = rate_limiter
        self.stats.rate_per_s = rate_limiter.controller.per_s
        self.delivery = delivery
        self.retries = RetryBudget(rate_limiter.controller.per_s)
        self.taken_ids = TakenIds()
        self.callbacks: CallbackRouter | None = None
        # By job number: the callback that arrived while the job's POST was pending, None until one does.
        self.early_callbacks: dict[int, CallbackPayload | None] = {}
        self._had_images = has_images(settings.out)
        self._recorded_limit: FoundLimit | None = None
        self._limit_recorded_s = -math.inf
        self._in_process = 0  # jobs of this run, as the rate limiter counts them
        self.run_no = 0  # of this run in the ledger
        self.stopped: RunStopped | None = None
        self._on_stopping: list[Callable[[], None]] = []

    def call_later(self, wait_s: float, call: Callable[..., None], *args: Any) -> asyncio.TimerHandle:
        """Call a function after `wait_s` seconds, without a task that waits."""
        return self._loop.call_later(wait_s, call, *args)

    async def find_known(self, jobs: Iterable[InFlightJob]) -> dict[str, bytes]:
        """Return the fingerprints of those jobs that the ledger has. Raises as `find_known_jobs` does."""
        names = {job.id: job.name for job in jobs}
        return await self.record(find_known_jobs, self.settings.out, names, had_images=self._had_images)

    async def prove(self, request_id: str) -> PollVerdict:
        """Poll a request_id of unknown origin. Behaves as `gateway.proof.prove`."""
        return await prove(self._counted_poll, request_id, interval_s=self.settings.poll_interval_s)

    async def _counted_poll(self, request_id: str) -> PollVerdict:
        self.stats.polls += 1
        return await self.gateway.poll(request_id)

    # ---- the limit of the gateway, which the next run may start with -------------------------------------

    def record_found_limit(self, found: FoundLimit | None, interval_s: float = 0.0) -> None:
        """Record a limit that was found, at most once in `interval_s`."""
        now_s = self.now_s()
        if found is None or found == self._recorded_limit or now_s < self._limit_recorded_s + interval_s:
            return
        self._recorded_limit, self._limit_recorded_s = found, now_s
        self.record_later(Ledger.save_found_limit, msgspec.json.encode(found), self.wall_clock())

    async def resume_found_limit(self) -> None:
        """Start with the limit that an earlier run has found, if it was not long ago."""
        if found := recent_limit(await self.record(Ledger.found_limit), self.wall_clock()):
            self.rate_limiter.controller.resume(found)
            self.stats.rate_per_s = self.rate_limiter.controller.per_s

    # ---- the jobs in process at the gateway, whose number may be limited ---------------------------------

    def count_in_process(self, job: InFlightJob) -> None:
        """Count an accepted job, which the rate limiter counts already."""
        job.in_process = True
        self._in_process += 1

    def resume_in_process(self, job: InFlightJob) -> None:
        """Count a job that an earlier run submitted."""
        self.rate_limiter.on_job_resumed()
        self.count_in_process(job)

    def end_in_process(self, job: InFlightJob) -> None:
        """Record that a job has ended at the gateway, or that this run no longer polls it. Idempotent."""
        if job.in_process:
            job.in_process = False
            self._in_process -= 1
            self.rate_limiter.on_job_ended()

    def release_in_process(self) -> None:
        """Stop counting the jobs that are left to the next run, because other engines may share the rate limiter."""
        for _ in range(self._in_process):
            self.rate_limiter.on_job_ended()
        self._in_process = 0

    def on_stopping(self, call: Callable[[], None]) -> None:
        """Call `call` as soon as the run is stopped."""
        self._on_stopping.append(call)

    def stop(self, reason: RunStopped) -> None:
        """Send no more submits; complete the jobs in flight. Only the first call has an effect."""
        if self.stopped:
            return
        self.stopped = reason
        self.events.emit_stopping(reason.reason)
        for call in self._on_stopping:
            call()
