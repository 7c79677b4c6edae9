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

from krea_batch.cli.ui.formatting import clock_time, size
from krea_batch.engine.engine import Engine
from krea_batch.events import Ended, Event, Troubled
from krea_batch.forecast import Forecast
from krea_batch.jobs import State
from krea_batch.ledger import Store
from krea_batch.rules.lifecycle import ended
from krea_batch.storage.run_dir import LEDGER, is_at_work

AVERAGE_OVER_S = 10.0  # chosen: short enough to show a pause, long enough not to jump
TRUSTED_FROM_S = 60.0  # chosen: what a minute has shown says more of the next than the forecast does
HISTORY_S = 40  # chosen: a cell a second, half of a narrow terminal
ERRORS = 3  # chosen: kinds of errors that are shown
REMEMBERED_ERRORS = 200  # chosen: those that are counted, so that what is over is forgotten


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What is shown of a run at one instant. None: nobody can tell."""

    total: int
    done: int
    succeeded: int
    in_flight: int
    downloading: int  # of those
    trouble: int  # jobs that ended without a picture
    submitted: int
    per_s: float
    limit_per_s: float | None
    polls: int | None = None
    downloaded_bytes: int | None = None
    left_s: float | None = None
    held_s: float = 0.0
    stopping: bool = False
    history: tuple[float, ...] = ()  # submits in each of the last seconds, the latest last
    errors: tuple[tuple[str, int], ...] = ()  # the commonest of late

    @property
    def left(self) -> str:
        """How long it still takes, in words; empty where nobody can tell."""
        if self.stopping:
            return "stopping"
        return f"{clock_time(self.left_s)} left" if self.left_s is not None and self.done < self.total else ""

    @property
    def pace(self) -> str:
        """How fast it goes, and how fast it may."""
        return f"{self.per_s:.1f}/s" + ("" if self.limit_per_s is None else f" of {self.limit_per_s:g}/s")

    def as_line(self) -> str:
        """The figures as one plain line."""
        left = f", {self.left}" if self.left else ""
        held = f", submits wait {self.held_s:.0f} s" if self.held_s > 0 else ""
        polls = "" if self.polls is None else f", {self.polls} polls"
        come = "" if self.downloaded_bytes is None else f", {size(self.downloaded_bytes)}"
        return (
            f"{self.done}/{self.total} done, {self.in_flight} in flight, {self.trouble} failed, "
            f"{self.submitted} submitted at {self.pace}{polls}{come}{left}{held}"
        )


class Trail:
    """Totals of submits and ends over time come in; rates of late go out."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int, int]] = deque()
        self._seconds: deque[int] = deque(maxlen=HISTORY_S)
        self._second: tuple[int, int] | None = None  # the one that is not over, and the total as it began

    def add(self, now_s: float, submits: int, ends: int) -> None:
        self._samples.append((now_s, submits, ends))
        while now_s - self._samples[0][0] > TRUSTED_FROM_S:
            self._samples.popleft()
        second, before = self._second or (int(now_s), submits)
        over = int(now_s) - second
        if over > 0:
            each, rest = divmod(submits - before, over)  # after a long second, nobody knows which of them it was
            self._seconds.extend([each + (n < rest) for n in range(min(over, HISTORY_S))])
            before = submits
        self._second = int(now_s), before

    @property
    def history(self) -> tuple[float, ...]:
        return tuple(self._seconds)

    @property
    def seen_s(self) -> float:
        """How far back it goes."""
        return self._samples[-1][0] - self._samples[0][0]

    def per_s(self, over_s: float) -> tuple[float, float]:
        """Submits and ends a second, in the mean of the last `over_s` seconds."""
        now_s, submits, ends = self._samples[-1]
        begin_s, submits_before, ends_before = next(sample for sample in self._samples if now_s - sample[0] <= over_s)
        span_s = max(now_s - begin_s, 1e-9)
        return (submits - submits_before) / span_s, (ends - ends_before) / span_s


class Errors:
    """Hears of a run's troubles, and counts those of late that are alike."""

    def __init__(self) -> None:
        self._lately: deque[str] = deque(maxlen=REMEMBERED_ERRORS)

    def hear(self, event: Event) -> None:
        match event:
            case Troubled(_, where, reason):
                self._lately.append(f"{where}: {reason}")
            case Ended(outcome) if outcome.error:
                self._lately.append(f"{outcome.status}: {outcome.error.message}")
            case _:
                pass

    def commonest(self) -> tuple[tuple[str, int], ...]:
        return tuple(Counter(self._lately).most_common(ERRORS))


class Meter:
    """Reads an engine's counters into figures. `done_before` of the `total` jobs had ended before this run."""

    def __init__(
        self,
        engine: Engine,
        errors: Errors,
        *,
        total: int,
        done_before: int,
        succeeded_before: int,
        forecast: Forecast | None = None,
    ) -> None:
        self._engine = engine
        self._errors = errors
        self._total = max(total, done_before)
        self._done_before = done_before
        self._succeeded_before = succeeded_before
        self._forecast = forecast
        self._trail = Trail()
        self._last_submit_s: float | None = None
        self._submits = 0

    def read(self) -> Figures:
        stats = self._engine.stats()
        now_s = asyncio.get_running_loop().time()
        if stats.submits > self._submits:
            self._last_submit_s, self._submits = now_s, stats.submits
        self._trail.add(now_s, stats.submits, stats.ended)
        held_s = stats.paused_until_s - now_s
        done = self._done_before + stats.ended
        succeeded = self._succeeded_before + stats.succeeded
        return Figures(
            total=self._total,
            done=done,
            succeeded=succeeded,
            in_flight=stats.in_flight,
            downloading=stats.downloading,
            trouble=done - succeeded,
            submitted=stats.submits,
            per_s=self._trail.per_s(AVERAGE_OVER_S)[0],
            limit_per_s=stats.rate_per_s,
            polls=stats.polls,
            downloaded_bytes=stats.downloaded_bytes,
            left_s=None if held_s > 0 else self._left_s(now_s, self._total - done, stats.in_flight),
            held_s=held_s,
            stopping=self._engine.stopped is not None,
            history=self._trail.history,
            errors=self._errors.commonest(),
        )

    def _left_s(self, now_s: float, left: int, in_flight: int) -> float | None:
        to_submit = max(0, left - in_flight)
        if self._forecast is None:
            return left_s(self._trail, left, to_submit)
        tail_s = self._forecast.tail_s
        if not to_submit:
            since_s = now_s - (self._last_submit_s or now_s)
            return tail_s - since_s if since_s < tail_s else left_s(self._trail, left, to_submit)
        per_s = self._forecast.submits_per_s
        if self._trail.seen_s >= TRUSTED_FROM_S / 2:
            per_s = self._trail.per_s(TRUSTED_FROM_S)[0]
        return to_submit / per_s + tail_s if per_s > 0 else None


class Onlooker:
    """Reads the ledger of a run, of whichever process, into figures."""

    def __init__(self, out: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._out = out
        self._clock = clock
        self._trail = Trail()
        self.at_work = False

    def read(self) -> Figures:
        """Raises RunFolderError, LedgerError."""
        self.at_work = is_at_work(self._out)  # looked at first: what its end wrote is then seen
        with closing(Store.open(self._out / LEDGER, read_only=True)) as store:
            counts, posts, run, errors = store.read(
                Store.counts, Store.posts, Store.latest_run, lambda store: store.commonest_errors(ERRORS)
            )
        done = ended(counts)
        succeeded = counts.get(State.SUCCEEDED, 0)
        on_record = sum(counts.values())
        in_flight = on_record - done - counts.get(State.PENDING, 0)
        total = max(on_record, run.jobs or 0) if run else on_record
        left = total - done
        self._trail.add(self._clock(), posts, done)
        return Figures(
            total=total,
            done=done,
            succeeded=succeeded,
            in_flight=in_flight,
            downloading=counts.get(State.FINISHED, 0),
            trouble=done - succeeded,
            submitted=posts,
            per_s=self._trail.per_s(AVERAGE_OVER_S)[0],
            limit_per_s=run.per_s if run else None,
            left_s=left_s(self._trail, left, left - in_flight) if self.at_work else None,
            history=self._trail.history,
            errors=tuple(errors),
        )


def left_s(trail: Trail, left: int, to_submit: int) -> float | None:
    """How long the jobs that are left take at the rates of late: ends follow submits as long as there are any."""
    submits_per_s, ends_per_s = trail.per_s(AVERAGE_OVER_S)
    per_s = submits_per_s if to_submit else ends_per_s
    return left / per_s if per_s > 0 else None
