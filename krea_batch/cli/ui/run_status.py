"""An engine's counters, or the ledger of a run that goes on elsewhere, come in; what is shown of it goes out.

Newcomers: the time left is the forecast's until the run knows better: what is still to be submitted, at the rate of
the last minute, and then the time that the last jobs take.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import msgspec

from krea_batch.cli.ui.formatting import format_bytes, format_duration
from krea_batch.engine.engine import Engine
from krea_batch.events import Event, JobEnded, RetryScheduled
from krea_batch.forecast import Forecast
from krea_batch.jobs import State
from krea_batch.ledger import LedgerStore
from krea_batch.rules.lifecycle import count_ended
from krea_batch.storage.run_dir import LEDGER, is_locked

RATE_WINDOW_S = 10.0  # chosen: short enough to show a pause, long enough not to jump
TRUSTED_WINDOW_S = 60.0  # chosen: what a minute has shown says more of the next than the forecast does
HISTORY_S = 40  # chosen: a cell a second, half of a narrow terminal
MAX_ERRORS_SHOWN = 3  # chosen: kinds of errors that are shown
MAX_ERRORS_COUNTED = 200  # chosen: those that are counted, so that what is over is forgotten


class RunStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What is shown of a run at one instant. None: nobody can tell."""

    total: int
    done: int
    succeeded: int
    in_flight: int
    downloading: int  # of those
    unsuccessful: int  # jobs that ended without an image
    submitted: int
    submits_per_s: float
    limit_per_s: float | None
    polls: int | None = None
    downloaded_bytes: int | None = None
    remaining_s: float | None = None
    paused_s: float = 0.0
    stopping: bool = False
    submits_each_second: tuple[float, ...] = ()  # submits in each of the last seconds, the latest last
    top_errors: tuple[tuple[str, int], ...] = ()  # the commonest of late

    @property
    def time_left(self) -> str:
        """How long it still takes, in words; empty where nobody can tell."""
        if self.stopping:
            return "stopping"
        return (
            f"{format_duration(self.remaining_s)} left"
            if self.remaining_s is not None and self.done < self.total
            else ""
        )

    @property
    def rate_text(self) -> str:
        """How fast it goes, and how fast it may."""
        return f"{self.submits_per_s:.1f}/s" + ("" if self.limit_per_s is None else f" of {self.limit_per_s:g}/s")

    def as_line(self) -> str:
        """The figures as one plain line."""
        time_left = f", {self.time_left}" if self.time_left else ""
        paused = f", submits wait {self.paused_s:.0f} s" if self.paused_s > 0 else ""
        polls = "" if self.polls is None else f", {self.polls} polls"
        downloaded = "" if self.downloaded_bytes is None else f", {format_bytes(self.downloaded_bytes)}"
        return (
            f"{self.done}/{self.total} done, {self.in_flight} in flight, {self.unsuccessful} failed, "
            f"{self.submitted} submitted at {self.rate_text}{polls}{downloaded}{time_left}{paused}"
        )


class RateHistory:
    """Totals of submits and ends over time come in; rates of late go out."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int, int]] = deque()
        self._submits_each_second: deque[int] = deque(maxlen=HISTORY_S)
        self._current_second: tuple[int, int] | None = None  # the one that is not over, and the total as it began

    def add(self, now_s: float, submits: int, ends: int) -> None:
        self._samples.append((now_s, submits, ends))
        while now_s - self._samples[0][0] > TRUSTED_WINDOW_S:
            self._samples.popleft()
        second, submits_before = self._current_second or (int(now_s), submits)
        elapsed_s = int(now_s) - second
        if elapsed_s > 0:
            per_second, remainder = divmod(
                submits - submits_before, elapsed_s
            )  # after a long second, nobody knows which of them it was
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
        """How far back it goes."""
        return self._samples[-1][0] - self._samples[0][0]

    def rates_per_s(self, window_s: float) -> tuple[float, float]:
        """Submits and ends a second, in the mean of the last `over_s` seconds."""
        now_s, submits, ends = self._samples[-1]
        start_s, submits_before, ends_before = next(
            sample for sample in self._samples if now_s - sample[0] <= window_s
        )
        span_s = max(now_s - start_s, 1e-9)
        return (submits - submits_before) / span_s, (ends - ends_before) / span_s


class RecentErrors:
    """Hears of a run's troubles, and counts those of late that are alike."""

    def __init__(self) -> None:
        self._recent: deque[str] = deque(maxlen=MAX_ERRORS_COUNTED)

    def on_event(self, event: Event) -> None:
        match event:
            case RetryScheduled(_, where, reason):
                self._recent.append(f"{where}: {reason}")
            case JobEnded(outcome) if outcome.error:
                self._recent.append(f"{outcome.status}: {outcome.error.message}")
            case _:
                pass

    def most_common(self) -> tuple[tuple[str, int], ...]:
        return tuple(Counter(self._recent).most_common(MAX_ERRORS_SHOWN))


class EngineStatusReader:
    """Reads an engine's counters into figures. `done_before` of the `total` jobs had ended before this run."""

    def __init__(
        self,
        engine: Engine,
        recent_errors: RecentErrors,
        *,
        total: int,
        done_before: int,
        succeeded_before: int,
        forecast: Forecast | None = None,
    ) -> None:
        self._engine = engine
        self._recent_errors = recent_errors
        self._total = max(total, done_before)
        self._done_before = done_before
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
        done = self._done_before + stats.ended
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
    """Reads the ledger of a run, of whichever process, into figures."""

    def __init__(self, out: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._out = out
        self._clock = clock
        self._rate_history = RateHistory()
        self.is_running = False

    def read(self) -> RunStatus:
        """Raises RunFolderError, LedgerError."""
        self.is_running = is_locked(self._out)  # looked at first: what its end wrote is then seen
        with closing(LedgerStore.open(self._out / LEDGER, read_only=True)) as store:
            counts, posts, run, errors = store.read(
                LedgerStore.counts,
                LedgerStore.submission_count,
                LedgerStore.latest_run,
                lambda store: store.top_errors(MAX_ERRORS_SHOWN),
            )
        done = count_ended(counts)
        succeeded = counts.get(State.SUCCEEDED, 0)
        recorded = sum(counts.values())
        in_flight = recorded - done - counts.get(State.PENDING, 0)
        total = max(recorded, run.expected_jobs or 0) if run else recorded
        jobs_left = total - done
        self._rate_history.add(self._clock(), posts, done)
        return RunStatus(
            total=total,
            done=done,
            succeeded=succeeded,
            in_flight=in_flight,
            downloading=counts.get(State.FINISHED, 0),
            unsuccessful=done - succeeded,
            submitted=posts,
            submits_per_s=self._rate_history.rates_per_s(RATE_WINDOW_S)[0],
            limit_per_s=run.rate_per_s if run else None,
            remaining_s=remaining_s(self._rate_history, jobs_left, jobs_left - in_flight)
            if self.is_running
            else None,
            submits_each_second=self._rate_history.submits_each_second,
            top_errors=tuple(errors),
        )


def remaining_s(rate_history: RateHistory, jobs_left: int, to_submit: int) -> float | None:
    """How long the jobs that are left take at the rates of late: ends follow submits as long as there are any."""
    submits_per_s, ends_per_s = rate_history.rates_per_s(RATE_WINDOW_S)
    per_s = submits_per_s if to_submit else ends_per_s
    return jobs_left / per_s if per_s > 0 else None
