"""What the two kinds of benchmark share on the terminal: a line of counts, and Ctrl-C."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from krea_batch.cli.ui.formatting import printable

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
