"""Figures of a run come in; what people see while it goes on goes out: a live display, or plain lines.

Newcomers: everything that moves goes to standard error; standard output holds the summary alone.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from krea_batch.cli.ui.formatting import say, size
from krea_batch.cli.ui.run_status import Figures
from krea_batch.events import Closed, Event, Held, Stopping

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

LIVE_EVERY_S = 0.2  # chosen: fluent to the eye, nothing to the processor
LINE_EVERY_S = 5.0  # chosen: a log of an hour stays under a thousand lines

INTERRUPT = "interrupted"  # the reason of a stop that people asked for, and are told of as they do
TOLD_FROM_S = 5.0  # chosen: shorter pauses are the pace's daily work
MANY_ROWS = 50_000  # chosen: to write them anew takes a second or two
TOLD_AGAIN_S = 60.0  # chosen: an outage of an hour is sixty lines

STEPS = "▁▂▃▄▅▆▇█"
PLAIN_STEPS = "_.:-=+*#"  # where the terminal has no others


class Teller:
    """Hears of a run's events and says, in a line each, what people should not miss: long pauses, early stops.

    A run of very many `jobs` takes its time at the end, too.
    """

    def __init__(self, say: Callable[[str], None], *, jobs: int = 0) -> None:
        self._say = say
        self._jobs = jobs
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
            case Closed() if self._jobs >= MANY_ROWS:
                self._say("Writing results.jsonl anew.")
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
    """For terminals: a bar for each stage, the pace of late, and what went wrong; it stays where it is."""

    every_s = LIVE_EVERY_S

    def __init__(self, console: Console) -> None:
        from rich.live import Live as RichLive

        self._live = RichLive(console=console, auto_refresh=False, transient=False)

    def show(self, figures: Figures) -> None:
        self._live.start()  # does nothing when it has started
        self._live.update(self._drawn(figures), refresh=True)

    def say(self, line: str) -> None:
        self._live.console.print(line, highlight=False, markup=False)

    def close(self) -> None:
        self._live.stop()

    def _drawn(self, figures: Figures) -> RenderableType:
        from rich.console import Group

        return Group(self._stages(figures), self._facts(figures))

    def _stages(self, figures: Figures) -> RenderableType:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        submitted = min(figures.total, figures.done + figures.in_flight)
        generated = min(submitted, figures.done + figures.downloading)
        stages = (("submitted", submitted, "cyan"), ("generated", generated, "blue"), ("done", figures.done, "green"))
        table = Table.grid(padding=(0, 1), expand=True)
        table.add_column(no_wrap=True, min_width=LABEL)
        table.add_column(ratio=1)
        table.add_column(no_wrap=True, justify="right")
        table.add_column(no_wrap=True, min_width=LEFT)
        for name, count, colour in stages:
            bar = ProgressBar(
                total=max(1, figures.total), completed=count, complete_style=colour, finished_style=colour
            )
            told = f"{count:,}/{figures.total:,}"
            table.add_row(name, bar, Text(told), Text(f" {figures.left}" if name == "done" else "", style="bold"))
        return table

    def _facts(self, figures: Figures) -> RenderableType:
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 1))
        table.add_column(no_wrap=True, min_width=LABEL)
        table.add_column(no_wrap=True, overflow="ellipsis")
        steps = STEPS if self._live.console.encoding.startswith("utf") else PLAIN_STEPS
        pace = Text(sparkline(figures.history, figures.limit_per_s, steps), style="cyan").append(f"  {figures.pace}")
        if figures.held_s > 0:
            pace.append(f"  submits wait {figures.held_s:.0f} s", style="yellow")
        table.add_row("submits", pace)
        facts = [f"{figures.succeeded:,} stored", f"{figures.in_flight:,} in flight"]
        if figures.polls is not None:
            facts.append(f"{figures.polls:,} polls")
        if figures.downloaded_bytes is not None:
            facts.append(size(figures.downloaded_bytes))
        jobs = Text("   ".join(facts))
        if figures.trouble:
            jobs.append(f"   {figures.trouble:,} failed", style="red")
        table.add_row("jobs", jobs)
        for n, (reason, count) in enumerate(figures.errors):
            table.add_row("" if n else "trouble", Text(f"{count:,} times: {reason}", style="yellow"))
        return table


LABEL = 9  # columns of the longest of them, "submitted"
LEFT = 11  # columns of " 12:30 left", so that bars keep their length


def sparkline(history: tuple[float, ...], limit: float | None, steps: str) -> str:
    """A cell a second, full where the limit was used to the full; none where nothing happened."""
    most = max(limit or 0.0, *history, 1e-9) if history else 1.0
    return "".join(
        " " if not count else steps[min(len(steps) - 1, int(count / most * len(steps)))] for count in history
    )


def make_display(*, quiet: bool) -> Display:
    """A live display in a terminal, plain lines elsewhere, nothing with --quiet."""
    if quiet:
        return Silence()
    if not sys.stderr.isatty():
        return Lines()
    from rich.console import Console

    return Live(Console(stderr=True))


async def keep_showing(display: Display, read: Callable[[], Figures]) -> None:
    """Show the figures again and again, until cancelled, and then once more."""
    try:
        while True:
            display.show(read())
            await asyncio.sleep(display.every_s)
    finally:
        display.show(read())
        display.close()
