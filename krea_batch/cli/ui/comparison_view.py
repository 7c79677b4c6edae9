"""Runs `krea-batch bench --compare`: the engine and the scripts that people write, their table and their plot."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import orjson

from krea_batch.benchmark.cases import jobs_for_rate, parse_rates
from krea_batch.benchmark.comparison import JOBS_DURATION_S, KILLS, RATE, ComparedProgram, ComparisonRow
from krea_batch.benchmark.comparison_runner import ComparisonRunner, ComparisonSettings
from krea_batch.benchmark.output import bench_report, comparison_table, print_table, write_bench_json
from krea_batch.cli.app import INTERRUPTED, OK, STOPPED
from krea_batch.cli.ui.bench_status import BenchDisplay, forward_signals
from krea_batch.cli.ui.formatting import pluralize, say, show, show_json
from krea_batch.settings import Settings


def run_comparison(options: dict[str, Any], public_options: dict[str, Any]) -> int:
    """Run the command, and return its exit code. Raises InputError."""
    _check_options(options)
    programs = [*ComparedProgram]
    with tempfile.TemporaryDirectory(prefix="krea-batch-bench-", ignore_cleanup_errors=True) as folder:
        settings = _settings(options, Path(folder))
        options["out"].mkdir(parents=True, exist_ok=True)
        started_at = datetime.now(UTC)
        progress = BenchDisplay(quiet=options["quiet"])
        progress.say(f"{pluralize(settings.jobs, 'job')} at {settings.rate}; then again with {KILLS} × kill -9")
        for program in programs:
            if package := program.missing_package:
                progress.say(f"{program} is not compared: {package} is not installed")
        runner = ComparisonRunner(settings, progress.show)
        with forward_signals(runner.interrupt):
            try:
                rows = runner.compare(programs)
            finally:
                progress.close()
    if not rows:
        return INTERRUPTED
    _write_results(rows, bench_report(rows, public_options, started_at), options)
    return STOPPED if any(row.remark and not row.missing_package for row in rows) else OK


def _check_options(options: dict[str, Any]) -> None:
    if options["gateway"]:
        raise click.UsageError(
            "--compare cannot be combined with --gateway: each script would be charged for all images"
        )
    if options["submit_limit"]:
        raise click.UsageError("--compare cannot be combined with --limit: the scripts cannot find a limit")


def _settings(options: dict[str, Any], folder: Path) -> ComparisonSettings:
    rates = parse_rates(options["rates"] or RATE)
    if len(rates) > 1:
        raise click.UsageError("--compare takes one rate")
    jobs = jobs_for_rate(rates[0].per_s, options["jobs"], JOBS_DURATION_S)
    max_in_flight = jobs if options["max_in_flight"] is None else options["max_in_flight"]
    # The engine would refuse them later.
    Settings.from_options(folder, poll_interval_s=options["poll_interval"], max_in_flight=max_in_flight)
    return ComparisonSettings(
        rate=rates[0].text,
        per_s=rates[0].per_s,
        jobs=jobs,
        poll_interval_s=options["poll_interval"],
        latency=options["latency"],
        max_in_flight=max_in_flight,
        folder=folder,
    )


def _write_results(rows: Sequence[ComparisonRow], content: dict[str, Any], options: dict[str, Any]) -> None:
    from krea_batch.benchmark.plots import write_comparison_plot

    written = [write_bench_json(options["out"], content), write_comparison_plot(options["out"], rows)]
    for row in rows:
        if row.remark and not row.missing_package:
            say(f"krea-batch: {row.program} {row.remark}")
    if options["as_json"]:
        show_json(orjson.dumps(content, option=orjson.OPT_INDENT_2))
    elif not options["quiet"]:
        print_table(comparison_table(rows))
        show(f"Paid without an image, charged twice and jobs left: after {KILLS} × kill -9.")
        show("Wrote " + ", ".join(str(path) for path in written))
