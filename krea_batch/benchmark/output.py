"""The results of a benchmark, as a table for the terminal and as JSON. The event-loop lag is shown as p50/p99/max."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import orjson

from krea_batch.benchmark.comparison import ComparisonRow
from krea_batch.benchmark.measurements import CaseResult
from krea_batch.errors import InputError
from krea_batch.storage.outputs import replacing_output

if TYPE_CHECKING:
    from rich.table import Table

COMPARISON_TITLES = (
    "program", "of limit", "polls/job", "429s", "CPU ms/job", "paid, no image", "charged twice", "jobs left",
)  # fmt: skip
TABLE_WIDTH = 130  # columns of the table in a file or a pipe
BENCH_JSON = "bench.json"
BENCH_JSON_START = b'{\n  "krea_batch": '  # see `bench_report`
PLOT_CREATOR = "krea-batch bench"  # in the metadata of each plot
MARK_BYTES = 4096  # chosen: the metadata of an SVG is at its start
COLUMN_TITLES = (
    "limit", "jobs", "accepted/s", "of limit", "429s/job", "polls/job", "lag s",
    "CPU ms/job", "KiB/job", "loop lag ms",
)  # fmt: skip


def result_table(rows: Sequence[CaseResult]) -> Table:
    """Return a table with one row per case, to print with rich."""
    return _table(COLUMN_TITLES, map(cells, rows))


def cells(row: CaseResult) -> list[str]:
    """Return the cells of a row, in the order of `COLUMN_TITLES`. A dash means not measured."""
    loop_lag = row.loop_lag_ms
    jobs = f"{row.accepted:,}" if row.accepted == row.jobs else f"{row.accepted:,} of {row.jobs:,}"
    return [
        row.name,
        jobs,
        _number(row.accepted_per_s, ".1f"),
        _number(row.limit_utilisation, ".3f"),
        _number(row.rate_limited_per_job, ".4f"),
        _number(row.polls_per_job, ".2f"),
        _number(row.lag_mean_s, ".2f"),
        _number(row.cpu_ms_per_job, ".2f"),
        _number(row.memory_kib_per_job_in_flight, ".1f"),
        f"{loop_lag.p50:.1f}/{loop_lag.p99:.1f}/{loop_lag.max:.0f}" if loop_lag else "–",
    ]


def comparison_table(rows: Sequence[ComparisonRow]) -> Table:
    """Return a table with one row per program, to print with rich. The last three columns are after kills."""
    return _table(COMPARISON_TITLES, map(comparison_cells, rows))


def comparison_cells(row: ComparisonRow) -> list[str]:
    """Return the cells of a program, in the order of `COMPARISON_TITLES`; a remark instead if it was not measured."""
    name = f"{row.program} ({row.remark})" if row.remark else row.program.value
    steady, killed = row.steady, row.killed
    if steady is None or killed is None:
        return [name, *["–"] * (len(COMPARISON_TITLES) - 1)]
    return [
        name,
        _number(steady.limit_utilisation, ".3f"),
        f"{steady.polls_per_job:.2f}",
        f"{steady.rate_limited:,}",
        f"{steady.cpu_ms_per_job:.1f}",
        f"{killed.paid_without_image:,}",
        f"{killed.charged_twice:,}",
        f"{killed.jobs_left:,}",
    ]


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Return a table whose first column has names, and whose others have numbers."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE, header_style="bold", pad_edge=False)
    for index, title in enumerate(titles):
        table.add_column(title, justify="right" if index else "left", no_wrap=not index)
    for row in rows:
        table.add_row(*map(Text, row))  # a remark has brackets, which are no markup
    return table


def print_table(table: Table) -> None:
    """Print a table on standard output."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, TABLE_WIDTH)
    console.print(table)


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def bench_report(rows: Sequence[msgspec.Struct], options: dict[str, Any], measured_at: datetime) -> dict[str, Any]:
    """Return the content of bench.json: all results, with the time, the machine and the options."""
    return {
        "krea_batch": version("krea-batch"),
        "at": measured_at.astimezone(UTC).isoformat(timespec="seconds"),
        "machine": {
            "cpus": os.cpu_count(),
            "system": platform.system(),
            "python": platform.python_version(),
            "uvloop": find_spec("uvloop") is not None,
        },
        "options": options,
        "results": [msgspec.to_builtins(row) for row in rows],
    }


def write_bench_json(folder: Path, content: dict[str, Any]) -> Path:
    """Write bench.json into the directory, and return its path. An earlier one is replaced."""
    path = folder / BENCH_JSON
    write_bench_file(path, orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    return path


def write_bench_file(path: Path, data: bytes) -> None:
    """Write a file of a benchmark atomically. Raises InputError if another file has its name."""
    with replacing_output(path, check_bench_file) as part:
        part.write_bytes(data)


def check_bench_file(path: Path) -> None:
    """Raise InputError unless the existing file is one of a benchmark."""
    with path.open("rb") as file:
        start = file.read(MARK_BYTES)
    if not (start.startswith(BENCH_JSON_START) if path.name == BENCH_JSON else PLOT_CREATOR.encode() in start):
        raise InputError(f"{path} exists and is no file of krea-batch bench", "use another --out")
