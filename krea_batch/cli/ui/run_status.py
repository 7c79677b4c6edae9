"""The status of a run, and how displays show it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from krea_batch.cli.ui.formatting import format_bytes, format_duration, printable

if TYPE_CHECKING:
    from rich.console import RenderableType


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
