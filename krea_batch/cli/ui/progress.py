"""The progress of a run: a live display in a terminal, plain lines elsewhere.

Progress goes to standard error; standard output has only the summary.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from krea_batch.cli.ui.formatting import format_bytes, say
from krea_batch.cli.ui.run_status import RunStatus
from krea_batch.events import Event, RunClosed, RunStopping, SubmitsPaused

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

LIVE_INTERVAL_S = 0.2  # chosen: looks fluent, costs little
LINE_INTERVAL_S = 5.0  # chosen: fewer than a thousand lines per hour

INTERRUPT_REASON = "interrupted"  # stop reason for Ctrl-C
MIN_ANNOUNCED_PAUSE_S = 5.0  # chosen: shorter pauses are normal
MIN_ANNOUNCED_ROWS = 50_000  # chosen: rewriting takes a second or more
REPEAT_ANNOUNCEMENT_S = 60.0  # chosen: one line per minute of an outage

SPARKLINE_CHARS = "▁▂▃▄▅▆▇█"
ASCII_SPARKLINE_CHARS = "_.:-=+*#"  # for terminals without Unicode


class EventAnnouncer:
    """A listener that prints a line for long pauses, early stops, and the rewrite of the results of many `jobs`."""

    def __init__(self, say: Callable[[str], None], *, jobs: int = 0) -> None:
        self._say = say
        self._jobs = jobs
        self._last_pause_reason = ""
        self._last_announced_s = 0.0

    def on_event(self, event: Event) -> None:
        match event:
            case SubmitsPaused(wait_s, _, reason) if wait_s >= MIN_ANNOUNCED_PAUSE_S:
                now_s = asyncio.get_running_loop().time()
                if reason != self._last_pause_reason or now_s - self._last_announced_s >= REPEAT_ANNOUNCEMENT_S:
                    self._say(f"Paused: {reason}. Resuming in {wait_s:.0f} s.")
                    self._last_pause_reason, self._last_announced_s = reason, now_s
            case RunStopping(reason) if reason != INTERRUPT_REASON:
                self._say(f"Stopping: {reason}. Waiting for jobs in flight to finish.")
            case RunClosed() if self._jobs >= MIN_ANNOUNCED_ROWS:
                self._say("Rewriting results.jsonl.")
            case _:
                pass


class Display(Protocol):
    """Shows the status at intervals and at the end; `say` prints a line above it."""

    interval_s: float

    def show(self, status: RunStatus) -> None: ...
    def say(self, line: str) -> None: ...
    def close(self) -> None: ...


class LineDisplay:
    """For logs and pipes: a plain line every few seconds, if something has changed."""

    interval_s = LINE_INTERVAL_S

    def __init__(self) -> None:
        self._last = ""

    def show(self, status: RunStatus) -> None:
        line = status.as_line()
        if line != self._last:
            say(line)
        self._last = line

    def say(self, line: str) -> None:
        say(line)

    def close(self) -> None: ...


class QuietDisplay:
    """For `--quiet`: prints only what is said."""

    interval_s = LINE_INTERVAL_S

    def show(self, status: RunStatus) -> None: ...

    def say(self, line: str) -> None:
        say(line)

    def close(self) -> None: ...


class LiveDisplay:
    """For terminals: a bar for each stage, the recent submit rate, and recent errors, updated in place."""

    interval_s = LIVE_INTERVAL_S

    def __init__(self, console: Console) -> None:
        from rich.live import Live as RichLive

        self._live = RichLive(console=console, auto_refresh=False, transient=False)

    def show(self, status: RunStatus) -> None:
        self._live.start()  # does nothing if it is running
        self._live.update(self._render(status), refresh=True)

    def say(self, line: str) -> None:
        self._live.console.print(line, highlight=False, markup=False)

    def close(self) -> None:
        self._live.stop()

    def _render(self, status: RunStatus) -> RenderableType:
        from rich.console import Group

        return Group(self._stage_bars(status), self._details(status))

    def _stage_bars(self, status: RunStatus) -> RenderableType:
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
            bar = ProgressBar(
                total=max(1, status.total), completed=count, complete_style=colour, finished_style=colour
            )
            count_text = f"{count:,}/{status.total:,}"
            table.add_row(
                name, bar, Text(count_text), Text(f" {status.time_left}" if name == "done" else "", style="bold")
            )
        return table

    def _details(self, status: RunStatus) -> RenderableType:
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 1))
        table.add_column(no_wrap=True, min_width=LABEL_WIDTH)
        table.add_column(no_wrap=True, overflow="ellipsis")
        chars = SPARKLINE_CHARS if self._live.console.encoding.startswith("utf") else ASCII_SPARKLINE_CHARS
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
            table.add_row("" if index else "errors", Text(f"{count:,} times: {reason}", style="yellow"))
        return table


LABEL_WIDTH = 9  # columns of "submitted", the longest label
TIME_LEFT_WIDTH = 11  # columns of " 12:30 left", so that bars keep their length


def sparkline(history: tuple[float, ...], limit_per_s: float | None, chars: str) -> str:
    """Return a character per second, the highest where the limit was reached, a space where nothing was submitted."""
    highest = max(limit_per_s or 0.0, *history, 1e-9) if history else 1.0
    return "".join(
        " " if not count else chars[min(len(chars) - 1, int(count / highest * len(chars)))] for count in history
    )


def make_display(*, quiet: bool) -> Display:
    """Return a live display in a terminal, plain lines elsewhere, nothing with `--quiet`."""
    if quiet:
        return QuietDisplay()
    if not sys.stderr.isatty():
        return LineDisplay()
    from rich.console import Console

    return LiveDisplay(Console(stderr=True))


async def refresh_until_cancelled(display: Display, read: Callable[[], RunStatus]) -> None:
    """Show the status at intervals until cancelled, and then once more."""
    try:
        while True:
            display.show(read())
            await asyncio.sleep(display.interval_s)
    finally:
        display.show(read())
        display.close()
