"""Runs `krea-batch bench`: announces the cases, asks for confirmation, runs them, and reports.

Against a real gateway nothing is sent before the user has confirmed the number of images to be charged, and the
engine's `max_charges` limits each run to that number.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import orjson

from krea_batch.benchmark.cases import (
    FIND_DURATION_S,
    Case,
    WorkerProgress,
    jobs_for_rate,
    parse_rates,
    run_dir_name,
)
from krea_batch.benchmark.measurements import CaseResult
from krea_batch.benchmark.output import (
    BENCH_JSON,
    bench_report,
    check_bench_file,
    print_table,
    result_table,
    write_bench_json,
)
from krea_batch.benchmark.runner import BenchRunner
from krea_batch.cli.app import BAD_INPUT, INTERRUPTED, OK, SOME_FAILED, STOPPED
from krea_batch.cli.options.run_settings import find_key
from krea_batch.cli.ui.bench_status import BenchDisplay, forward_signals
from krea_batch.cli.ui.formatting import ask_to_continue, pluralize, say, show, show_json
from krea_batch.cli.ui.summary import RunTotals
from krea_batch.engine.child_process import forget_key
from krea_batch.errors import InputError, SettingsError
from krea_batch.settings import AUTO, Settings
from krea_batch.storage.outputs import check_output
from krea_batch.storage.run_dir import has_ledger
from krea_batch.testing.simulator.request_limits import parse_limit

INSTALL_COMMAND = "pip install 'krea-batch[bench]'"
COMPARISON_PACKAGES = ("requests", "psutil", "matplotlib")
RATES = "50/s,100/s,200/s,400/s"  # chosen: from a quarter of a core to most of one


def run_bench(options: dict[str, Any]) -> int:
    """Run the command, and return its exit code. Raises InputError, RunStopped if a worker fails."""
    _check_out(options["out"])
    if options["compare"]:
        _check_packages()
        from krea_batch.cli.ui.comparison_view import run_comparison

        return run_comparison(options, _public_options(options))
    _check_options(options)
    with tempfile.TemporaryDirectory(prefix="krea-batch-bench-") as scratch:
        cases = _cases(options, Path(options["out"]) / "runs" if options["gateway"] else Path(scratch))
        if options["gateway"] and not _confirm_charges(cases, options):
            say("Nothing was sent or charged.")
            return BAD_INPUT
        options["out"].mkdir(parents=True, exist_ok=True)
        started_at = datetime.now(UTC)
        progress = BenchProgress(quiet=options["quiet"])
        runner = BenchRunner(options["latency"], progress.case_progress)
        with forward_signals(runner.interrupt):
            with progress:
                rows = list(_run_cases(runner, cases, progress))
            if rows:
                _write_results(rows, bench_report(rows, _public_options(options), started_at), options)
    return _exit_code(runner, cases, rows)


def _check_options(options: dict[str, Any]) -> None:
    """Raise click.UsageError or InputError for options that cannot be combined, or a missing key."""
    if options["gateway"]:
        find_key(options["api_key_file"])
    if options["gateway"] and options["submit_limit"]:
        raise click.UsageError("--limit cannot be combined with --gateway, which has its own limit")


def _check_packages() -> None:
    for package in COMPARISON_PACKAGES:
        if not find_spec(package):
            raise InputError(f"--compare needs the package {package}", INSTALL_COMMAND)


def _check_out(out: Path) -> None:
    """Raise InputError if the directory is part of a run, or has files of others with the names of a benchmark's."""
    from krea_batch.benchmark.plots import COMPARISON_PLOT, PLOTS

    folder = check_output(Path(os.path.realpath(out)))
    for name in (BENCH_JSON, COMPARISON_PLOT, *(f"{plot}.svg" for plot in PLOTS)):
        path = check_output(folder / name)
        if path.exists():
            check_bench_file(path)


def _cases(options: dict[str, Any], folder: Path) -> list[Case]:
    """Return all cases, rate by rate, then the limits that the engine has to find. Raises SettingsError."""
    cases = []
    for rate in parse_rates(options["rates"] or RATES):
        jobs = jobs_for_rate(rate.per_s, options["jobs"])
        cases.append(_case(options, folder / run_dir_name(rate), jobs, rate=rate.text, per_s=rate.per_s))
    for number, limit in enumerate(options["submit_limit"]):
        per_s = _limit_per_s(limit)
        jobs = jobs_for_rate(per_s, options["jobs"], FIND_DURATION_S)
        facts = {"rate": AUTO, "per_s": per_s, "limit": limit}
        cases.append(_case(options, folder / f"limit-{number}", jobs, **facts))
    return cases


def _limit_per_s(text: str) -> float:
    """Return the rate that a limit of the simulator allows. Raises SettingsError if it has none."""
    try:
        limit = parse_limit(text)
    except ValueError:
        limit = None
    if limit is None or limit.per_s is None:
        raise SettingsError("limit", f"{text!r} is not a rate limit", "use e.g. gcra:60/s or sliding-window:60/10s")
    return limit.per_s


def _case(options: dict[str, Any], out: Path, jobs: int, **facts: Any) -> Case:
    """Return a case with the options of the command. Raises SettingsError."""
    case = Case(
        jobs=jobs,
        poll_interval_s=options["poll_interval"],
        max_in_flight=jobs if options["max_in_flight"] is None else options["max_in_flight"],
        out=str(out),
        prompt=options["prompt"],
        gateway=options["gateway"] or "",
        allow_networks=options["allow_networks"],
        key_file=str(options["api_key_file"]) if options["api_key_file"] else None,
        simulated=not options["gateway"],
        **facts,
    )
    _check_settings(case)
    return case


def _check_settings(case: Case) -> None:
    """Raise SettingsError for settings that the engine would refuse later."""
    gateway = {"gateway": case.gateway} if case.gateway else {}
    Settings.from_options(
        Path(case.out),
        poll_interval_s=case.poll_interval_s,
        max_in_flight=case.max_in_flight,
        rate=case.rate,
        allow_networks=case.allow_networks,
        **gateway,
    )


# ---- charges ---------------------------------------------------------------------------------------------


def _confirm_charges(cases: list[Case], options: dict[str, Any]) -> bool:
    """Show what will be charged, and ask. Raises click.UsageError if it cannot ask."""
    images_to_charge = [max(0, case.jobs - _charged_or_unknown(case)) for case in cases]
    for case, images in zip(cases, images_to_charge, strict=True):
        already_charged = case.jobs - images
        say(
            f"{case.rate}: {pluralize(images, 'image')} to charge"
            + (f", {already_charged:,} charged already" if already_charged else "")
        )
    price = options["price"]
    total = sum(images_to_charge)
    cost = f", {price:g} each, {price * total:,.2f} in total" if price is not None else ""
    say(f"In total, {pluralize(total, 'image')} will be charged at {options['gateway']}{cost}.")
    return bool(options["yes"]) or not total or ask_to_continue()


def _charged_or_unknown(case: Case) -> int:
    """Return how many images of a case have been or may have been charged."""
    out = Path(case.out)
    if not has_ledger(out):
        return 0
    charges = RunTotals.read(out).charges
    return charges.charged + charges.unknown


# ---- running -------------------------------------------------------------------------------------


def _run_cases(runner: BenchRunner, cases: list[Case], progress: BenchProgress) -> Iterator[CaseResult]:
    """Run the cases until all are done, one fails, or Ctrl-C is pressed."""
    for case in cases:
        if runner.interrupts:
            return
        progress.case_started(case)
        row = runner.measure(case)
        if row is None:
            return
        progress.case_finished(row)
        yield row
        if row.problem:
            return


def _counts(case: Case, progress: WorkerProgress) -> str:
    return (
        f"krea-batch at {case.name}: {progress.accepted:,}/{case.jobs:,} accepted, "
        f"{progress.stored:,} stored, {progress.rate_limited:,} rate-limited, {progress.polls:,} polls"
    )


class BenchProgress(BenchDisplay):
    """Shows the start, the progress and the result of each case."""

    def __enter__(self) -> BenchProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def case_started(self, case: Case) -> None:
        self.postpone()
        self.say(f"krea-batch at {case.name}: {pluralize(case.jobs, 'job')}")

    def case_progress(self, case: Case, progress: WorkerProgress) -> None:
        self.show(_counts(case, progress))

    def case_finished(self, row: CaseResult) -> None:
        used = ""
        if row.limit_utilisation is not None:
            used = f", {row.accepted_per_s:.1f}/s, {row.limit_utilisation:.1%} of the limit"
        self.say(f"krea-batch at {row.name}: {row.accepted:,} accepted{used}")
        if row.problem:
            say(f"krea-batch: {row.problem}")


# ---- reporting ----------------------------------------------------------------------------------------


def _write_results(rows: list[CaseResult], content: dict[str, Any], options: dict[str, Any]) -> None:
    written = [write_bench_json(options["out"], content)]
    if find_spec("matplotlib"):
        from krea_batch.benchmark.plots import write_plots

        forget_key()  # matplotlib may start programs that look for fonts
        written += write_plots(options["out"], [row for row in rows if not row.limit])
    else:
        say(f"No plots without matplotlib: {INSTALL_COMMAND}")
    if options["as_json"]:
        show_json(orjson.dumps(content, option=orjson.OPT_INDENT_2))
    elif not options["quiet"]:
        print_table(result_table(rows))
        show("Wrote " + ", ".join(str(path) for path in written))


def _public_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options for the report, without paths."""
    excluded = ("api_key_file", "out", "quiet", "as_json", "yes")
    return {name: value for name, value in options.items() if name not in excluded}


def _exit_code(runner: BenchRunner, cases: list[Case], rows: list[CaseResult]) -> int:
    if runner.interrupts:
        return INTERRUPTED
    if any(row.problem for row in rows):
        return STOPPED
    return OK if all(_is_complete(case, row) for case, row in zip(cases, rows, strict=True)) else SOME_FAILED


def _is_complete(case: Case, row: CaseResult) -> bool:
    """Return whether every job has its image; for a charged run, from this or an earlier run of the command."""
    if case.simulated:
        return row.stored == case.jobs
    totals = RunTotals.read(Path(case.out))
    return totals.all_succeeded and totals.total == case.jobs
