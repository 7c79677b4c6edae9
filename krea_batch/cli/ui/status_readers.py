"""Read the status of a run from an engine's counters, or from the ledger of other processes.

The time left comes from the estimate at first, then from the run itself: the jobs still to be submitted at the rate
of the last minute, plus the time that the last jobs take.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path

import msgspec

from krea_batch.cli.ui.run_status import RunStatus
from krea_batch.engine.engine import Engine
from krea_batch.errors import LedgerError, RunDirError
from krea_batch.events import Event, JobEnded, JobResumed, RetryScheduled, StateChanged
from krea_batch.forecast import Forecast
from krea_batch.jobs import State
from krea_batch.ledger import LedgerReader, RunObserver, read_ledger
from krea_batch.rules.lifecycle import count_ended

RATE_WINDOW_S = 10.0  # chosen: short enough to show a pause, long enough not to jump
TRUSTED_WINDOW_S = 60.0  # chosen: a minute predicts the next better than the estimate
HISTORY_S = 40  # chosen: a character per second, half of a narrow terminal
MAX_ERRORS_SHOWN = 3  # chosen: different errors shown
MAX_ERRORS_COUNTED = 200  # chosen: errors counted; older ones are forgotten


class RateHistory:
    """Recent rates of submits and ends, from totals over time."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int, int]] = deque()
        self._submits_each_second: deque[int] = deque(maxlen=HISTORY_S)
        self._current_second: tuple[int, int] | None = None  # and the total at its start

    def add(self, now_s: float, submits: int, ends: int) -> None:
        self._samples.append((now_s, submits, ends))
        while now_s - self._samples[0][0] > TRUSTED_WINDOW_S:
            self._samples.popleft()
        second, submits_before = self._current_second or (int(now_s), submits)
        elapsed_s = int(now_s) - second
        if elapsed_s > 0:
            # After a gap of several seconds, the submits are spread over them.
            per_second, remainder = divmod(submits - submits_before, elapsed_s)
            self._submits_each_second.extend(
                [per_second + (index < remainder) for index in range(min(elapsed_s, HISTORY_S))]
            )
            submits_before = submits
        self._current_second = int(now_s), submits_before

    @property
    def submits_each_second(self) -> tuple[float, ...]:
        return tuple(self._submits_each_second)

    @property
    def span_s(self) -> float:
        """The length of the history in seconds."""
        return self._samples[-1][0] - self._samples[0][0]

    def rates_per_s(self, window_s: float) -> tuple[float, float]:
        """Return submits and ends per second, averaged over the last `window_s` seconds."""
        now_s, submits, ends = self._samples[-1]
        start_s, submits_before, ends_before = next(
            sample for sample in self._samples if now_s - sample[0] <= window_s
        )
        span_s = max(now_s - start_s, 1e-9)
        return (submits - submits_before) / span_s, (ends - ends_before) / span_s


class RecentErrors:
    """A listener that counts equal recent errors."""

    def __init__(self) -> None:
        self._recent: deque[str] = deque(maxlen=MAX_ERRORS_COUNTED)

    def on_event(self, event: Event) -> None:
        match event:
            case RetryScheduled(_, stage, reason):
                self._recent.append(f"{stage}: {reason}")
            case JobEnded(outcome) if outcome.error:
                self._recent.append(f"{outcome.status}: {outcome.error.message}")
            case _:
                pass

    def most_common(self) -> tuple[tuple[str, int], ...]:
        return tuple(Counter(self._recent).most_common(MAX_ERRORS_SHOWN))


class EndedJobs:
    """A listener that counts the jobs of a run directory that have ended, of `recorded` ones and of new ones.

    A job may end more than once: an ambiguous job that a callback resolves ends again. Whether this run resumes a job
    that an earlier run ended is not known in advance. So each change is counted.
    """

    def __init__(self, recorded: int) -> None:
        self.count = recorded

    def on_event(self, event: Event) -> None:
        match event:
            case JobResumed():
                self.count -= 1
            case StateChanged(_, old, new):
                self.count += new.info.final - old.info.final
            case _:
                pass


class EngineStatusReader:
    """Reads the status from an engine's counters.

    The run directory will have `total` jobs, of which `succeeded_before` had their images before this run.
    """

    def __init__(
        self,
        engine: Engine,
        recent_errors: RecentErrors,
        ended_jobs: EndedJobs,
        *,
        total: int,
        succeeded_before: int,
        forecast: Forecast | None = None,
    ) -> None:
        self._engine = engine
        self._recent_errors = recent_errors
        self._ended_jobs = ended_jobs
        self._total = total
        self._succeeded_before = succeeded_before
        self._forecast = forecast
        self._rate_history = RateHistory()
        self._last_submit_s: float | None = None
        self._submits = 0

    def read(self) -> RunStatus:
        stats = self._engine.stats()
        now_s = asyncio.get_running_loop().time()
        if stats.submits > self._submits:
            self._last_submit_s, self._submits = now_s, stats.submits
        self._rate_history.add(now_s, stats.submits, stats.ended)
        paused_s = stats.paused_until_s - now_s
        done = self._ended_jobs.count
        succeeded = self._succeeded_before + stats.succeeded
        return RunStatus(
            total=self._total,
            done=done,
            succeeded=succeeded,
            in_flight=stats.in_flight,
            downloading=stats.downloading,
            unsuccessful=done - succeeded,
            submitted=stats.submits,
            submits_per_s=self._rate_history.rates_per_s(RATE_WINDOW_S)[0],
            limit_per_s=stats.rate_per_s,
            found_limit=stats.found_limit,
            polls=stats.polls,
            downloaded_bytes=stats.downloaded_bytes,
            remaining_s=None if paused_s > 0 else self._remaining_s(now_s, self._total - done, stats.in_flight),
            paused_s=paused_s,
            stopping=self._engine.stopped is not None,
            submits_each_second=self._rate_history.submits_each_second,
            top_errors=self._recent_errors.most_common(),
        )

    def _remaining_s(self, now_s: float, jobs_left: int, in_flight: int) -> float | None:
        to_submit = max(0, jobs_left - in_flight)
        if self._forecast is None:
            return remaining_s(self._rate_history, jobs_left, to_submit)
        tail_s = self._forecast.tail_s
        if not to_submit:
            since_last_submit_s = now_s - (self._last_submit_s or now_s)
            return (
                tail_s - since_last_submit_s
                if since_last_submit_s < tail_s
                else remaining_s(self._rate_history, jobs_left, to_submit)
            )
        per_s = self._forecast.submits_per_s
        if self._rate_history.span_s >= TRUSTED_WINDOW_S / 2:
            per_s = self._rate_history.rates_per_s(TRUSTED_WINDOW_S)[0]
        return to_submit / per_s + tail_s if per_s > 0 else None


class LedgerStatusReader:
    """Reads the status from the ledger of a run, whichever process runs it."""

    def __init__(self, out: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._out = out
        self._clock = clock
        self._observer = RunObserver(out, clock)
        self._rate_history = RateHistory()
        self.is_running = False

    def read(self) -> RunStatus:
        """Read the status. Raises RunDirError, LedgerError."""
        with read_ledger(self._out) as store:
            self.is_running = self._observer.is_running(store)
            counts, submissions, run, errors = store.read(
                LedgerReader.counts,
                LedgerReader.submission_count,
                LedgerReader.latest_run,
                lambda store: store.top_errors(MAX_ERRORS_SHOWN),
            )
        done = count_ended(counts)
        succeeded = counts.get(State.SUCCEEDED, 0)
        recorded = sum(counts.values())
        in_flight = recorded - done - counts.get(State.PENDING, 0)
        total = max(recorded, run.expected_jobs or 0) if run else recorded
        jobs_left = total - done
        self._rate_history.add(self._clock(), submissions, done)
        return RunStatus(
            total=total,
            done=done,
            succeeded=succeeded,
            in_flight=in_flight,
            downloading=counts.get(State.FINISHED, 0),
            unsuccessful=done - succeeded,
            submitted=submissions,
            submits_per_s=self._rate_history.rates_per_s(RATE_WINDOW_S)[0],
            limit_per_s=run.rate_per_s if run else None,
            remaining_s=remaining_s(self._rate_history, jobs_left, jobs_left - in_flight)
            if self.is_running
            else None,
            submits_each_second=self._rate_history.submits_each_second,
            top_errors=tuple(errors),
        )


def remaining_s(rate_history: RateHistory, jobs_left: int, to_submit: int) -> float | None:
    """Return the seconds for the remaining jobs at recent rates: of submits while there are any, then of ends."""
    submits_per_s, ends_per_s = rate_history.rates_per_s(RATE_WINDOW_S)
    per_s = submits_per_s if to_submit else ends_per_s
    return jobs_left / per_s if per_s > 0 else None


class SharedStatusReader:
    """Reads the status of all runs that share a ledger: what the ledger has, with the pauses of this run.

    The ledger is read in a thread, since a database may be away: a status is as old as the one before it.
    """

    def __init__(self, this_run: EngineStatusReader, out: Path) -> None:
        self._this_run = this_run
        self._all_runs = LedgerStatusReader(out)
        self._status: RunStatus | None = None
        self._reading: asyncio.Future[RunStatus | None] | None = None

    def read(self) -> RunStatus:
        own = self._this_run.read()
        if self._reading and self._reading.done():
            self._status, self._reading = self._reading.result(), None
        if self._reading is None:
            self._reading = asyncio.get_running_loop().run_in_executor(None, self._read_ledger)
        status = self._status
        if status is None:
            return own
        return msgspec.structs.replace(
            status,
            limit_per_s=own.limit_per_s,
            found_limit=own.found_limit,
            paused_s=own.paused_s,
            remaining_s=None if own.paused_s > 0 else status.remaining_s,
            stopping=own.stopping,
            top_errors=own.top_errors,
        )

    def _read_ledger(self) -> RunStatus | None:
        try:
            return self._all_runs.read()
        except (RunDirError, LedgerError):  # If it stays so, the run ends because of it, and says so.
            return None
