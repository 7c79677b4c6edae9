"""The progress of a check of job files: a bar in a terminal, a line every few seconds elsewhere.

Most checks are done before anything is shown: progress appears after `SHOW_AFTER_S`. The bar is removed at the end.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Self

from krea_batch.cli.ui.formatting import printable, say

if TYPE_CHECKING:
    from rich.progress import Progress

SHOW_AFTER_S = 1.0  # chosen: show progress after 1 s
BAR_INTERVAL_S = 0.1  # chosen: looks fluent
CHECK_LINE_INTERVAL_S = 5.0  # chosen: the interval of a run's lines


class CheckProgress:
    """Shows the progress of one check, or nothing if `quiet`. A context manager."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._next_update_s = time.monotonic() + SHOW_AFTER_S
        self._bar: Progress | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, read_bytes: int, total_bytes: int) -> None:
        """Show how many of the bytes have been read."""
        now_s = time.monotonic()
        if self._quiet or not total_bytes or now_s < self._next_update_s:
            return
        if sys.stderr.isatty():
            self._draw(read_bytes, total_bytes)
            self._next_update_s = now_s + BAR_INTERVAL_S
        else:
            say(f"Checked {100 * read_bytes // total_bytes} % of the input")
            self._next_update_s = now_s + CHECK_LINE_INTERVAL_S

    def print_line(self, line: object) -> None:
        """Print a line on standard error, above the bar."""
        if self._bar:
            self._bar.console.print(printable(str(line)), markup=False, highlight=False, soft_wrap=True)
        else:
            say(str(line))

    def _draw(self, read_bytes: int, total_bytes: int) -> None:
        if self._bar is None:
            self._bar = _new_bar()
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=read_bytes, total=total_bytes, refresh=True)


def _new_bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("checking"),
        BarColumn(None),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        auto_refresh=False,
        transient=True,
        expand=True,
        redirect_stderr=False,  # rich would wrap the stream, which then is no terminal
    )
    bar.add_task("")
    return bar
