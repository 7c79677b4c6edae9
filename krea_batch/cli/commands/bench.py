"""`krea-batch bench`: throughput against rate limits."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from krea_batch.cli.options.run_options import PRICE, api_key_file_option, setting_option


@click.command()
@click.option(
    "--rates",
    metavar="RATES",
    help="Rate limits to measure; the simulator enforces each, and the engine is configured with it.  "
    "[default: 50/s,100/s,200/s,400/s; with --compare 50/s]",
)
@click.option(
    "--limit",
    "submit_limit",
    multiple=True,
    metavar="LIMIT",
    help="Also measure a limit that the engine has to find: gcra:60/s, sliding-window:60/10s, and all others of "
    "`krea-batch simulate --limit` (repeatable, simulator only).",
)
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    metavar="N",
    help="Jobs per rate.  [default: 10 s at the rate, 60 s at a limit to find, 20 s with --compare]",
)
@click.option(
    "--latency",
    default="lognormal:4,0.3",
    show_default=True,
    metavar="DIST",
    help="Distribution of the simulated job latencies in seconds.",
)
@setting_option("poll_interval_s", default=1.0)
@setting_option(
    "max_in_flight", default=None, show_default=False, help="Maximum jobs in flight.  [default: all jobs]"
)
@click.option(
    "--compare",
    is_flag=True,
    help="Compare with the scripts that people write, with faults and kill -9, instead (simulator only).",
)
@click.option("--gateway", metavar="URL", help="Measure against a real gateway; its images are charged.")
@setting_option("allow_networks")
@click.option(
    "--prompt",
    default="a lighthouse in a storm, oil on canvas",
    show_default=True,
    metavar="TEXT",
    help="Prompt of every job; each has another seed.",
)
@click.option(
    "--price",
    type=PRICE,
    metavar="X",
    help="Price per image, to show the total before starting.",
)
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@api_key_file_option()
@click.option(
    "--out",
    default="krea-batch-bench",
    show_default=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Directory of bench.json and the plots; with --gateway also of the images, in runs/.",
)
@click.option("--quiet", "-q", is_flag=True, help="Print only errors.")
@click.option("--json", "as_json", is_flag=True, help="Print bench.json on standard output instead of the table.")
def bench(**options: Any) -> None:
    """Benchmark the engine against rate limits: throughput, rate-limited submits, polls, lag, CPU and memory.

    Without --gateway, it runs against the simulator, offline and free of charge. With --gateway, it first shows how
    many images will be charged and asks for confirmation. Running the same command again charges no image twice.

    With --compare, the engine and ordinary scripts run the same jobs against the same limit and faults, once without
    kills, and once with three kills of all their processes. --jobs 200 takes about a minute.
    """
    from krea_batch.cli.ui.bench_runner import run_bench

    sys.exit(run_bench(options))
