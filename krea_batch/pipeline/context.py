"""What all stages of one run share: settings, gateway, ledger, disk threads, clock, chance, counters, the stop.

Newcomers: a run that is stopping takes no more submits, but polls and downloads go on until what was paid is
on disk. Only `KreaBatchBug`s and a broken ledger end it sooner.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Executor
from random import Random
from typing import Any, ParamSpec, Protocol, Self, TypeVar

from krea_batch.errors import RunStopped
from krea_batch.events import (
    Event,
    GenerationCompleted,
    ImageStored,
    JobResumed,
    Listener,
    PollCompleted,
    PollResult,
    SubmitResult,
    RateChanged,
    RetryScheduled,
    RunClosed,
    RunStopping,
    StateChanged,
    SubmitCompleted,
    SubmitsPaused,
)
from krea_batch.gateway.wire import CallbackPayload
from krea_batch.jobs import IN_FLIGHT, State, StoredFile
from krea_batch.ledger import LedgerWriter
from krea_batch.pipeline.in_flight_job import InFlightJob, InFlightLimit
from krea_batch.pipeline.rate_limiter import RateLimiter, monotonic_clock
from krea_batch.pipeline.stats import RunStats
from krea_batch.rules.backoff import RetryBudget
from krea_batch.rules.verdicts import (
    Errored,
    Failed,
    Finished,
    PollFailed,
    PollVerdict,
    PostVerdict,
    Refused,
    Waiting,
)
from krea_batch.settings import Settings
from krea_batch.storage.async_io import DiskThreads

P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger("krea_batch")
log.addHandler(logging.NullHandler())  # the core prints nothing unless its user asks for logs

_POLL_RESULTS: Mapping[type[PollVerdict], PollResult] = {
    Waiting: "waiting",
    Finished: "finished",
    Failed: "failed",
    Errored: "errored",
    PollFailed: "error",
}


class ImageBody(Protocol):
    """An image on its way. `offset` is where its first byte belongs, `etag` a strong one or None."""

    offset: int
    etag: str | None

    def chunks(self) -> AsyncIterator[bytes]: ...
    async def __aenter__(self) -> Self: ...
    async def __aexit__(self, *_: object) -> None: ...


class Gateway(Protocol):
    """What the stages ask of a gateway: the real client's, or a scripted one's."""

    async def submit(self, body: bytes, *, callback: str = "") -> PostVerdict: ...
    async def poll(self, request_id: str) -> PollVerdict: ...
    async def download(self, url: str, *, offset: int = 0, etag: str | None = None) -> ImageBody: ...


class CallbackUrls(Protocol):
    """Where the gateway calls for a job."""

    def url_of(self, job_no: int) -> str: ...


class RunContext:
    """Shared by the stages of one run, on one event loop."""

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
        rate_limiter: RateLimiter,
    ) -> None:
        self.settings = settings
        self.gateway = gateway
        self.ledger = ledger
        self.record = ledger.record
        self.record_later = ledger.record_later
        self.stats = RunStats()
        self.in_flight_limit = InFlightLimit(settings.max_in_flight)
        self.in_flight_fingerprints: dict[
            str, bytes
        ] = {}  # fingerprints of the jobs on their way, by id; empty once on record
        rate_limiter.bind_loop()
        self.rate_limiter = rate_limiter
        self.callbacks: CallbackUrls | None = None
        self.early_callbacks: dict[
            int, CallbackPayload | None
        ] = {}  # by job, what callbacks told while its POST was in the air
        self.retries = RetryBudget(rate_limiter.controller.per_s)
        self.stats.rate_per_s = rate_limiter.controller.per_s
        self.random = random.random
        self.wall_clock = clock  # seconds since 1970
        self.stopped: RunStopped | None = None
        self.disk = DiskThreads(disk)
        self.on_disk = self.disk.run
        self._loop = asyncio.get_running_loop()
        self.now_s = monotonic_clock(self._loop)
        self._listeners = listeners
        self.state_counts: Counter[State] = Counter()  # jobs of this run in each state
        self._at_stop: list[Callable[[], None]] = []

    def call_later(self, wait_s: float, call: Callable[..., None], *args: Any) -> asyncio.TimerHandle:
        """Call something later, without a task that waits."""
        return self._loop.call_later(wait_s, call, *args)

    # ---- the stop ----------------------------------------------------------------------------------------

    def on_stopping(self, call: Callable[[], None]) -> None:
        """Have `call` called when the run begins to stop."""
        self._at_stop.append(call)

    def stop(self, reason: RunStopped) -> None:
        """Take no more submits. What is in flight is brought home. The first reason is the one that counts."""
        if self.stopped:
            return
        self.stopped = reason
        log.warning("! stopping reason=%s", reason.reason)
        self.emit(RunStopping(reason.reason))
        for call in self._at_stop:
            call()

    # ---- telling -----------------------------------------------------------------------------------------

    def add_listener(self, listener: Listener) -> None:
        """Have a listener told of what happens from now on."""
        self._listeners.append(listener)

    def remove_listener(self, listener: Listener) -> None:
        """Tell a listener no more."""
        self._listeners.remove(listener)

    def emit(self, event: Event) -> None:
        for listener in self._listeners:
            listener(event)

    def emit_state_change(self, flight: InFlightJob, old: State, new: State) -> None:
        log.debug("= job=%s from=%s to=%s request_id=%s", flight.id, old, new, flight.request_id)
        self.state_counts[old] -= 1
        self.state_counts[new] += 1
        if self._listeners:
            self.emit(StateChanged(flight.id, old, new, flight.request_id or None))

    def emit_resumed(self, flight: InFlightJob, state: State) -> None:
        """A flight goes on from where an earlier run left it."""
        self.state_counts[state] += 1
        if self._listeners:
            self.emit(JobResumed(flight.id, state, flight.request_id or None))

    def emit_submit(self, flight: InFlightJob, result: SubmitResult, verdict: PostVerdict) -> None:
        """What a POST came to is on record."""
        if self._listeners:
            status = verdict.status if isinstance(verdict, Refused) else 0
            self.emit(SubmitCompleted(flight.id, result, status, self.now_s() - flight.sent_s))

    def emit_poll(self, flight: InFlightJob, verdict: PollVerdict) -> None:
        if self._listeners:
            self.emit(PollCompleted(flight.id, _POLL_RESULTS[type(verdict)]))

    def emit_generation(self, flight: InFlightJob, took_s: float | None) -> None:
        """A flight is seen finished; `took_s` is the gateway's word, None where there is none to be believed."""
        if self._listeners and not flight.resumed:
            age_s = self.now_s() - flight.accepted_s
            lag_s = None if took_s is None else age_s - took_s
            self.emit(GenerationCompleted(flight.id, age_s if took_s is None else took_s, lag_s))

    def emit_image_stored(self, flight: InFlightJob, stored: StoredFile, asked_s: float) -> None:
        """An image that was asked for at `asked_s` is on disk."""
        if self._listeners:
            self.emit(ImageStored(flight.id, stored.bytes, self.now_s() - asked_s))

    def emit_rate(self, per_s: float) -> None:
        """Submits may go at this rate from now on."""
        if per_s != self.stats.rate_per_s:
            self.stats.rate_per_s = per_s
            self.emit(RateChanged(per_s))

    def emit_opened(self) -> None:
        """The stages are about to begin."""
        self.emit(RateChanged(self.stats.rate_per_s))

    def emit_closed(self) -> None:
        """The stages have ended; whatever is on its way stays on record."""
        self.emit(RunClosed({state: self.state_counts[state] for state in IN_FLIGHT}))

    def emit_retry(self, flight: InFlightJob, where: str, reason: str) -> None:
        log.info("! job=%s where=%s reason=%s", flight.id, where, reason)
        if self._listeners:
            self.emit(RetryScheduled(flight.id, where, reason))

    def emit_submits_paused(self, wait_s: float, reason: str) -> None:
        self.stats.paused_until_s = max(self.stats.paused_until_s, self.now_s() + wait_s)
        log.info("! submits held for_s=%.1f rate_per_s=%.2f reason=%s", wait_s, self.stats.rate_per_s, reason)
        self.emit(SubmitsPaused(wait_s, self.stats.rate_per_s, reason))
