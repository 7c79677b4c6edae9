"""What the two kinds of benchmark share on the terminal: their display with a line of counts, and Ctrl-C."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from krea_batch.cli.ui.formatting import printable
from krea_batch.cli.ui.progress import make_display

if TYPE_CHECKING:
    from rich.console import RenderableType


class BenchStatus(NamedTuple):
    """A line of counts, for a display."""

    line: str

    def as_line(self) -> str:
        return self.line

    def render(self, encoding: str) -> RenderableType:
        from rich.text import Text

        return Text(printable(self.line))


class BenchDisplay:
    """Shows lines that stay, and counts that the next line replaces, from any thread; nothing with `quiet`."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        # Each line with a result stays, so the last counts are removed.
        self._display = make_display(quiet=quiet, transient=True)
        self._lock = threading.Lock()
        self._last_shown_s = 0.0

    def say(self, line: str) -> None:
        if not self._quiet:
            self._display.say(line)

    def show(self, counts: str) -> None:
        """Show counts, unless others were shown shortly before."""
        with self._lock:
            if time.monotonic() - self._last_shown_s >= self._display.interval_s:
                self.postpone()
                self._display.show(BenchStatus(counts))

    def postpone(self) -> None:
        """Show no counts until the usual interval has passed."""
        self._last_shown_s = time.monotonic()

    def close(self) -> None:
        self._display.close()


@contextmanager
def forward_signals(interrupt: Callable[[], None]) -> Iterator[None]:
    """Call `interrupt` for Ctrl-C and SIGTERM. It ends the child processes in order."""

    def on_signal(*_: object) -> None:
        interrupt()

    previous_handlers = {name: signal.signal(name, on_signal) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for name, handler in previous_handlers.items():
            signal.signal(name, handler)
