"""An engine's counters come in; what people see while a run goes on goes out: a live display, or plain lines.

Newcomers: everything that moves goes to standard error; standard output holds the summary alone.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from krea_batch.cli import say
from krea_batch.cli.words import clock_time, size
from krea_batch.engine import Engine
from krea_batch.events import Event, Held, Stopping

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

LIVE_EVERY_S = 0.2  # chosen: fluent to the eye, nothing to the processor
LINE_EVERY_S = 5.0  # chosen: a log of an hour stays under a thousand lines
AVERAGE_OVER_S = 10.0  # chosen: short enough to show a pause, long enough not to jump


INTERRUPT = "interrupted"  # the reason of a stop that people asked for, and are told of as they do
TOLD_FROM_S = 5.0  # chosen: shorter pauses are the pace's daily work
TOLD_AGAIN_S = 60.0  # chosen: an outage of an hour is sixty lines


class Figures(msgspec.Struct, frozen=True):
    """What is shown of a run at one instant."""

    total: int
    done: int
    succeeded: int
    in_flight: int
    trouble: int  # jobs that ended without a picture
    submitted: int
    per_s: float
    limit_per_s: float
    polls: int
    downloaded_bytes: int
    left_s: float | None
    held_s: float
    stopping: bool

    @property
    def left(self) -> str:
        """How long it still takes, in words; empty where nobody can tell."""
        if self.stopping:
            return "stopping"
        return f"{clock_time(self.left_s)} left" if self.left_s is not None and self.done < self.total else ""

    def as_line(self) -> str:
        """The figures as one plain line."""
        left = f", {self.left}" if self.left else ""
        held = f", submits wait {self.held_s:.0f} s" if self.held_s > 0 else ""
        return (
            f"{self.done}/{self.total} done, {self.in_flight} in flight, {self.trouble} failed, "
            f"{self.submitted} submitted at {self.per_s:.1f}/s of {self.limit_per_s:g}/s, "
            f"{self.polls} polls, {size(self.downloaded_bytes)}{left}{held}"
        )


class Meter:
    """Reads an engine's counters into figures; rates are averages over the last seconds."""

    def __init__(self, engine: Engine, total: int, done_before: int, succeeded_before: int) -> None:
        self._engine = engine
        self._total = max(total, done_before)
        self._done_before = done_before
        self._succeeded_before = succeeded_before
        self._samples: deque[tuple[float, int, int]] = deque()

    def read(self) -> Figures:
        stats = self._engine.stats()
        now_s = asyncio.get_running_loop().time()
        self._samples.append((now_s, stats.submits, stats.ended))
        while now_s - self._samples[0][0] > AVERAGE_OVER_S:
            self._samples.popleft()
        begin_s, submits, ended = self._samples[0]
        over_s = max(now_s - begin_s, 1e-9)
        done = self._done_before + stats.ended
        ends_per_s = (stats.ended - ended) / over_s
        left = self._total - done
        return Figures(
            total=self._total,
            done=done,
            succeeded=self._succeeded_before + stats.succeeded,
            in_flight=stats.in_flight,
            trouble=done - self._succeeded_before - stats.succeeded,
            submitted=stats.submits,
            per_s=(stats.submits - submits) / over_s,
            limit_per_s=stats.rate_per_s,
            polls=stats.polls,
            downloaded_bytes=stats.downloaded_bytes,
            left_s=left / ends_per_s if ends_per_s > 0 else None,
            held_s=stats.held_until_s - now_s,
            stopping=self._engine.stopped is not None,
        )


class Teller:
    """Hears of a run's events and says, in a line each, what people should not miss: long pauses, early stops."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._paused_for = ""
        self._said_s = 0.0

    def hear(self, event: Event) -> None:
        match event:
            case Held(wait_s, _, reason) if wait_s >= TOLD_FROM_S:
                now_s = asyncio.get_running_loop().time()
                if reason != self._paused_for or now_s - self._said_s >= TOLD_AGAIN_S:
                    self._say(f"Paused: {reason}. No submit for {wait_s:.0f} s, then on again.")
                    self._paused_for, self._said_s = reason, now_s
            case Stopping(reason) if reason != INTERRUPT:
                self._say(f"Stopping: {reason}. What was paid is brought home.")
            case _:
                pass


class Display(Protocol):
    """Shows figures every so often, and once more at the end; `say` puts a line above them."""

    every_s: float

    def show(self, figures: Figures) -> None: ...
    def say(self, line: str) -> None: ...
    def close(self) -> None: ...


class Lines:
    """For logs and pipes: one plain line every few seconds, and only when something has changed."""

    every_s = LINE_EVERY_S

    def __init__(self) -> None:
        self._last = ""

    def show(self, figures: Figures) -> None:
        line = figures.as_line()
        if line != self._last:
            say(line)
        self._last = line

    def say(self, line: str) -> None:
        say(line)

    def close(self) -> None: ...


class Silence:
    """For --quiet."""

    every_s = LINE_EVERY_S

    def show(self, figures: Figures) -> None: ...

    def say(self, line: str) -> None:
        say(line)

    def close(self) -> None: ...


class Live:
    """For terminals: a bar and three lines under it that stay where they are."""

    every_s = LIVE_EVERY_S

    def __init__(self, console: Console) -> None:
        from rich.live import Live as RichLive
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn

        self._bar = Progress(
            TextColumn("[bold]krea-batch"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
            expand=True,
        )
        self._task = self._bar.add_task("", total=None, left="")
        self._live = RichLive(console=console, auto_refresh=False, transient=False)

    def show(self, figures: Figures) -> None:
        self._bar.update(self._task, total=figures.total, completed=figures.done, left=figures.left)
        self._live.start()  # does nothing when it has started
        self._live.update(self._drawn(figures), refresh=True)

    def say(self, line: str) -> None:
        self._live.console.print(line, highlight=False)

    def close(self) -> None:
        self._live.stop()

    def _drawn(self, figures: Figures) -> RenderableType:
        from rich.console import Group
        from rich.table import Table

        table = Table.grid(padding=(0, 3))
        for _ in range(4):
            table.add_column(no_wrap=True)
        trouble = "red" if figures.trouble else "dim"
        table.add_row(
            f"[green]{figures.succeeded:,}[/] stored",
            f"[cyan]{figures.in_flight:,}[/] in flight",
            f"{figures.submitted:,} submitted",
            f"[{trouble}]{figures.trouble:,} failed[/]",
        )
        table.add_row(
            f"{size(figures.downloaded_bytes)}",
            f"{figures.polls:,} polls",
            f"{figures.per_s:.1f}/s of {figures.limit_per_s:g}/s",
            f"[yellow]submits wait {figures.held_s:.0f} s[/]" if figures.held_s > 0 else "",
        )
        return Group(self._bar, table)


def make_display(*, quiet: bool) -> Display:
    """A live display in a terminal, plain lines elsewhere, nothing with --quiet."""
    if quiet:
        return Silence()
    if not sys.stderr.isatty():
        return Lines()
    from rich.console import Console

    return Live(Console(stderr=True))


async def keep_showing(display: Display, meter: Meter) -> None:
    """Show the figures again and again, until cancelled, and then once more."""
    try:
        while True:
            display.show(meter.read())
            await asyncio.sleep(display.every_s)
    finally:
        display.show(meter.read())
        display.close()


__all__: list[Any] = ["INTERRUPT", "Display", "Figures", "Meter", "Teller", "keep_showing", "make_display"]
