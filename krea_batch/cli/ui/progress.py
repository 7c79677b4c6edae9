"""The progress of a run: a live display in a terminal, plain lines elsewhere.

Progress goes to standard error; standard output has only the summary.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from krea_batch.cli.ui.error_messages import reason_text
from krea_batch.cli.ui.formatting import printable, say
from krea_batch.engine.signal_receiver import INTERRUPT_REASON
from krea_batch.events import Event, ImageStored, RunClosed, RunStopping, SubmitsPaused

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

LIVE_INTERVAL_S = 0.2  # chosen: looks fluent, costs little
LINE_INTERVAL_S = 5.0  # chosen: fewer than a thousand lines per hour

MIN_ANNOUNCED_PAUSE_S = 5.0  # chosen: shorter pauses are normal
MIN_ANNOUNCED_ROWS = 50_000  # chosen: rewriting takes a second or more
REPEAT_ANNOUNCEMENT_S = 60.0  # chosen: one line per minute of an outage


class EventAnnouncer:
    """A listener that prints a line for each event that a user should notice.

    These are long pauses, the first image that is not a valid PNG, early stops, and the rewrite of the results of
    many `jobs`.
    """

    def __init__(self, say: Callable[[str], None], *, jobs: int = 0) -> None:
        self._say = say
        self._jobs = jobs
        self._last_pause_reason = ""
        self._has_announced_defect = False
        self._last_announced_s = 0.0

    def on_event(self, event: Event) -> None:
        match event:
            case SubmitsPaused(wait_s, _, reason) if wait_s >= MIN_ANNOUNCED_PAUSE_S:
                now_s = asyncio.get_running_loop().time()
                if reason != self._last_pause_reason or now_s - self._last_announced_s >= REPEAT_ANNOUNCEMENT_S:
                    self._say(f"Paused: {reason.rstrip('.')}. Resuming in {wait_s:.0f} s.")
                    self._last_pause_reason, self._last_announced_s = reason, now_s
            case ImageStored(job_id, defect=defect) if defect and not self._has_announced_defect:
                self._say(f"Not a valid PNG, but stored: the image of job {job_id} ({defect}).")
                self._has_announced_defect = True
            case RunStopping(reason) if reason != INTERRUPT_REASON:
                self._say(f"Stopping: {reason_text(reason).rstrip('.')}. Waiting for jobs in flight to finish.")
            case RunClosed() if self._jobs >= MIN_ANNOUNCED_ROWS:
                self._say("Rewriting results.jsonl.")
            case _:
                pass


class Status(Protocol):
    """What a display shows: the status of a run, or of a benchmark."""

    def as_line(self) -> str: ...
    def render(self, encoding: str) -> RenderableType: ...


class Display(Protocol):
    """Shows the status at intervals and at the end; `say` prints a line above it."""

    interval_s: float

    def show(self, status: Status) -> None: ...
    def say(self, line: str) -> None: ...
    def close(self) -> None: ...


class LineDisplay:
    """For logs and pipes: a plain line every few seconds, if something has changed."""

    interval_s = LINE_INTERVAL_S

    def __init__(self) -> None:
        self._last = ""

    def show(self, status: Status) -> None:
        line = status.as_line()
        if line != self._last:
            say(line)
        self._last = line

    def say(self, line: str) -> None:
        say(line)

    def close(self) -> None: ...


class QuietDisplay:
    """For `--quiet`: prints only the lines of `say`."""

    interval_s = LINE_INTERVAL_S

    def show(self, status: Status) -> None: ...

    def say(self, line: str) -> None:
        say(line)

    def close(self) -> None: ...


class LiveDisplay:
    """For terminals: the status, updated in place. It stays at the end, unless the display is `transient`."""

    interval_s = LIVE_INTERVAL_S

    def __init__(self, console: Console, *, transient: bool = False) -> None:
        from rich.live import Live as RichLive

        self._live = RichLive(console=console, auto_refresh=False, transient=transient)

    def show(self, status: Status) -> None:
        self._live.start()  # does nothing if it is running
        self._live.update(status.render(self._live.console.encoding), refresh=True)

    def say(self, line: str) -> None:
        self._live.console.print(printable(line), highlight=False, markup=False)

    def close(self) -> None:
        self._live.stop()


class FailsafeDisplay:
    """Uses another display until the terminal or the reader of the output is gone. The run continues without it."""

    def __init__(self, display: Display) -> None:
        self._display = display
        self._is_gone = False
        self.interval_s = display.interval_s

    def show(self, status: Status) -> None:
        self._call(lambda: self._display.show(status))

    def say(self, line: str) -> None:
        self._call(lambda: self._display.say(line))

    def close(self) -> None:
        self._call(self._display.close)

    def _call(self, method: Callable[[], None]) -> None:
        if self._is_gone:
            return
        try:
            method()
        except OSError:
            self._is_gone = True


def make_display(*, quiet: bool, transient: bool = False) -> Display:
    """Return a live display in a terminal, plain lines elsewhere, nothing with `--quiet`.

    With `transient`, the live display is removed when it is closed.
    """
    if quiet:
        return QuietDisplay()
    if not sys.stderr.isatty():
        return LineDisplay()
    from rich.console import Console

    class TerminalConsole(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # instead of SystemExit, which would end the run

    return FailsafeDisplay(LiveDisplay(TerminalConsole(stderr=True), transient=transient))


async def refresh_until_cancelled(display: Display, read: Callable[[], Status]) -> None:
    """Show the status at intervals until cancelled, and then once more."""
    try:
        while True:
            display.show(read())
            await asyncio.sleep(display.interval_s)
    finally:
        display.show(read())
        display.close()
