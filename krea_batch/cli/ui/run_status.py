"""The status of a run that displays show, from an engine's counters or from the ledger of another process.

The time left comes from the estimate at first, then from the run itself: the jobs still to be submitted at the rate
of the last minute, plus the time that the last jobs take.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from krea_batch.cli.ui.formatting import format_bytes, format_duration, printable
from krea_batch.engine.engine import Engine
from krea_batch.errors import LedgerError, RunDirError
from krea_batch.events import Event, JobEnded, JobResumed, RetryScheduled, StateChanged
from krea_batch.forecast import Forecast
from krea_batch.jobs import State
from krea_batch.ledger import LedgerReader, RunObserver, read_ledger
from krea_batch.rules.lifecycle import count_ended

if TYPE_CHECKING:
    from rich.console import RenderableType

RATE_WINDOW_S = 10.0  # chosen: short enough to show a pause, long enough not to jump
TRUSTED_WINDOW_S = 60.0  # chosen: a minute predicts the next better than the estimate
HISTORY_S = 40  # chosen: a character per second, half of a narrow terminal
MAX_ERRORS_SHOWN = 3  # chosen: different errors shown
MAX_ERRORS_COUNTED = 200  # chosen: errors counted; older ones are forgotten


class RunStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The status of a run at one instant. None means unknown."""

    total: int
    done: int
    succeeded: int
    in_flight: int
    downloading: int  # of those in flight
    unsuccessful: int  # jobs that ended without an image
    submitted: int
    submits_per_s: float
    limit_per_s: float | None
    found_limit: str = ""  # the limit of the gateway, in words
    polls: int | None = None
    downloaded_bytes: int | None = None
    remaining_s: float | None = None
    paused_s: float = 0.0
    stopping: bool = False
    submits_each_second: tuple[float, ...] = ()  # the latest last
    top_errors: tuple[tuple[str, int], ...] = ()  # the most common recent ones

    @property
    def time_left(self) -> str:
        """The time left as text; empty if unknown."""
        if self.stopping:
            return "stopping"
        return (
            f"{format_duration(self.remaining_s)} left"
            if self.remaining_s is not None and self.done < self.total
            else ""
        )

    @property
    def rate_text(self) -> str:
        """The submit rate and the limit as text."""
        if self.found_limit:
            return f"{self.submits_per_s:.1f}/s, limit {self.found_limit}"
        return f"{self.submits_per_s:.1f}/s" + ("" if self.limit_per_s is None else f" of {self.limit_per_s:g}/s")

    def render(self, encoding: str) -> RenderableType:
        """Return the live display in a terminal with this encoding."""
        from rich.console import Group

        return Group(_stage_bars(self), _details(self, encoding))

    def as_line(self) -> str:
        """Return the status as one plain line."""
        time_left = f", {self.time_left}" if self.time_left else ""
        paused = f", paused for {self.paused_s:.0f} s" if self.paused_s > 0 else ""
        polls = "" if self.polls is None else f", {self.polls} polls"
        downloaded = "" if self.downloaded_bytes is None else f", {format_bytes(self.downloaded_bytes)}"
        return (
            f"{self.done}/{self.total} done, {self.in_flight} in flight, {self.unsuccessful} failed, "
            f"{self.submitted} submitted at {self.rate_text}{polls}{downloaded}{time_left}{paused}"
        )


LABEL_WIDTH = 9  # columns of "submitted", the longest label
TIME_LEFT_WIDTH = 11  # columns of " 12:30 left", so that bars keep their length
SPARKLINE_CHARS = "▁▂▃▄▅▆▇█"
ASCII_SPARKLINE_CHARS = "_.:-=+*#"  # for terminals without Unicode


def _stage_bars(status: RunStatus) -> RenderableType:
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    submitted = min(status.total, status.done + status.in_flight)
    completed = min(submitted, status.done + status.downloading)
    stages = (("submitted", submitted, "cyan"), ("completed", completed, "blue"), ("done", status.done, "green"))
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(no_wrap=True, min_width=LABEL_WIDTH)
    table.add_column(ratio=1)
    table.add_column(no_wrap=True, justify="right")
    table.add_column(no_wrap=True, min_width=TIME_LEFT_WIDTH)
    for name, count, colour in stages:
        bar = ProgressBar(total=max(1, status.total), completed=count, complete_style=colour, finished_style=colour)
        count_text = f"{count:,}/{status.total:,}"
        table.add_row(
            name, bar, Text(count_text), Text(f" {status.time_left}" if name == "done" else "", style="bold")
        )
    return table


def _details(status: RunStatus, encoding: str) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True, min_width=LABEL_WIDTH)
    table.add_column(no_wrap=True, overflow="ellipsis")
    chars = SPARKLINE_CHARS if encoding.startswith("utf") else ASCII_SPARKLINE_CHARS
    rate = Text(sparkline(status.submits_each_second, status.limit_per_s, chars), style="cyan").append(
        f"  {status.rate_text}"
    )
    if status.paused_s > 0:
        rate.append(f"  paused for {status.paused_s:.0f} s", style="yellow")
    table.add_row("submits", rate)
    details = [f"{status.succeeded:,} stored", f"{status.in_flight:,} in flight"]
    if status.polls is not None:
        details.append(f"{status.polls:,} polls")
    if status.downloaded_bytes is not None:
        details.append(format_bytes(status.downloaded_bytes))
    jobs = Text("   ".join(details))
    if status.unsuccessful:
        jobs.append(f"   {status.unsuccessful:,} failed", style="red")
    table.add_row("jobs", jobs)
    for index, (reason, count) in enumerate(status.top_errors):
        table.add_row("" if index else "errors", Text(f"{count:,} times: {printable(reason)}", style="yellow"))
    return table


def sparkline(history: tuple[float, ...], limit_per_s: float | None, chars: str) -> str:
    """Return a character per second: the highest if the limit was reached, a space if nothing was submitted."""
    highest = max(limit_per_s or 0.0, *history, 1e-9) if history else 1.0
    return "".join(
        " " if not count else chars[min(len(chars) - 1, int(count / highest * len(chars)))] for count in history
    )


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
