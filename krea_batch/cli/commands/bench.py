"""`krea-batch bench`: rate limits come in; a table, `bench.json`, plots and an exit code go out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from krea_batch.cli.options.run_options import api_key_file_option, setting_option


@click.command()
@click.option(
    "--rates",
    default="50/s,100/s,200/s,400/s",
    show_default=True,
    metavar="RATES",
    help="Rate limits to measure at; the simulator keeps to each, and the engine is told of it.",
)
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    metavar="N",
    help="Jobs at each rate.  [default: as many as 10 s let through]",
)
@click.option(
    "--latency", default="lognormal:4,0.3", show_default=True, metavar="DIST", help="How long a simulated job takes."
)
@setting_option("poll_interval_s", default=1.0)
@setting_option(
    "max_in_flight", default=None, show_default=False, help="Maximum jobs in flight.  [default: all jobs]"
)
@click.option(
    "--compare", is_flag=True, help="Measure the scripts that people usually write beside it (simulator only)."
)
@click.option("--gateway", metavar="URL", help="Measure against a real gateway: its images are paid for.")
@click.option(
    "--prompt",
    default="a lighthouse in a storm, oil on canvas",
    show_default=True,
    metavar="TEXT",
    help="What is drawn, each time with another seed.",
)
@click.option(
    "--price", type=click.FloatRange(min=0), metavar="X", help="What one image costs, to be told the sum beforehand."
)
@click.option("--yes", is_flag=True, help="Pay without being asked.")
@api_key_file_option()
@click.option(
    "--out",
    default="krea-batch-bench",
    show_default=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Where bench.json and the plots go; with --gateway also the images, under runs/.",
)
@click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors.")
@click.option("--json", "as_json", is_flag=True, help="Print bench.json on standard output instead of the table.")
def bench(**options: Any) -> None:
    """Measure what the engine makes of your rate limits: throughput, refusals, polls, lag, cost.

    Without --gateway it runs against the simulator: offline and free. With it, the command says first how many
    images will be paid for, and asks; the same command again pays for none of them twice.
    """
    from krea_batch.cli.ui.bench_runner import run_bench

    sys.exit(run_bench(options))
