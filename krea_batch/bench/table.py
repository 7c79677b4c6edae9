"""Figures come in; the table that people read on a terminal goes out.

Newcomers: lateness of the event loop is three numbers, p50/p99/max; on the threads' script there is no loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from krea_batch.bench.figures import Figures

if TYPE_CHECKING:
    from rich.table import Table

HEADS = (
    "who", "limit", "jobs", "accepted/s", "of limit", "429s a job", "polls a job", "lag s",
    "CPU ms a job", "KiB a job", "loop late ms",
)  # fmt: skip


def table(rows: Sequence[Figures]) -> Table:
    """The table for rich to draw, one row a case."""
    from rich import box
    from rich.table import Table

    drawn = Table(box=box.SIMPLE, header_style="bold", pad_edge=False)
    for head in HEADS:
        drawn.add_column(head, justify="left" if head == "who" else "right", no_wrap=head in ("who", "limit"))
    for row in rows:
        drawn.add_row(*cells(row))
    return drawn


def cells(row: Figures) -> list[str]:
    """One row in words, in the order of HEADS; a dash is what could not be measured."""
    late = row.loop_late_ms
    jobs = f"{row.accepted:,}" if row.accepted == row.jobs else f"{row.accepted:,} of {row.jobs:,}"
    return [
        row.contender.value,
        row.rate,
        jobs,
        _number(row.accepted_per_s, ".1f"),
        _number(row.used, ".3f"),
        _number(row.refused_429_per_job, ".4f"),
        _number(row.polls_per_job, ".2f"),
        _number(row.lag_mean_s, ".2f"),
        _number(row.cpu_ms_per_job, ".2f"),
        _number(row.memory_kib_per_job_in_flight, ".1f"),
        f"{late.p50:.1f}/{late.p99:.1f}/{late.max:.0f}" if late else "–",
    ]


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
