"""The options of `krea-batch bench` come in; cases are announced, agreed to, run and reported; an exit code goes out.

Newcomers: against a real gateway nothing is sent before the number of images to be paid has been told and agreed to,
and the engine's own `max_charges` holds each run to what was told.
"""

from __future__ import annotations

import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import orjson

from krea_batch.benchmark.cases import (
    BASELINES,
    Case,
    Implementation,
    WorkerProgress,
    jobs_for_rate,
    parse_rates,
    run_dir_name,
)
from krea_batch.benchmark.measurements import CaseResult
from krea_batch.benchmark.output import bench_report, write_bench_json
from krea_batch.benchmark.runner import BenchRunner
from krea_batch.cli.app import BAD_INPUT, INTERRUPTED, OK, SOME_FAILED, STOPPED
from krea_batch.cli.ui.formatting import pluralize, say
from krea_batch.cli.ui.progress import LINE_INTERVAL_S
from krea_batch.cli.ui.run_session import find_key
from krea_batch.cli.ui.summary import RunTotals
from krea_batch.errors import InputError
from krea_batch.settings import Settings
from krea_batch.storage.run_dir import LEDGER

INSTALL_COMMAND = "pip install 'krea-batch[bench]'"
TABLE_WIDTH = 130  # columns of the table in a file or a pipe, where nobody says how many there are


def run_bench(options: dict[str, Any]) -> int:
    """Run the whole command. Raises InputError with nothing spent, RunStopped where a child broke."""
    _check_options(options)
    with tempfile.TemporaryDirectory(prefix="krea-batch-bench-") as scratch:
        cases = _cases(options, Path(options["out"]) / "runs" if options["gateway"] else Path(scratch))
        if options["gateway"] and not _confirm_charges(cases, options):
            say("Nothing was sent, and nothing was spent.")
            return BAD_INPUT
        options["out"].mkdir(parents=True, exist_ok=True)
        started_at = datetime.now(UTC)
        progress = _make_progress(quiet=options["quiet"])
        runner = BenchRunner(options["latency"], progress.case_progress)
        with _forward_signals(runner):
            with progress:
                rows = list(_run_cases(runner, cases, progress))
            if rows:
                _write_results(rows, bench_report(rows, _public_options(options), started_at), options)
    return _exit_code(runner, cases, rows)


def _check_options(options: dict[str, Any]) -> None:
    """Raises click.UsageError or InputError for options that do not go together, or a key that is not there."""
    if options["gateway"] and options["compare"]:
        raise click.UsageError("--compare does not go with --gateway: each script would pay for all images again")
    if options["gateway"]:
        find_key(options["api_key_file"])
    if options["compare"] and not find_spec("requests"):
        raise InputError("--compare needs the package requests", INSTALL_COMMAND)


def _cases(options: dict[str, Any], folder: Path) -> list[Case]:
    """Every case of the sweep, rate by rate. Raises SettingsError."""
    cases = []
    for rate in parse_rates(options["rates"]):
        jobs = jobs_for_rate(rate, options["jobs"])
        for implementation in (Implementation.ENGINE, *(BASELINES if options["compare"] else ())):
            case = Case(
                implementation=implementation,
                rate=rate.text,
                per_s=rate.per_s,
                jobs=jobs,
                poll_interval_s=options["poll_interval"],
                max_in_flight=jobs if options["max_in_flight"] is None else options["max_in_flight"],
                out=str(folder / implementation.name.lower() / run_dir_name(rate)),
                prompt=options["prompt"],
                gateway=options["gateway"] or "",
                key_file=str(options["api_key_file"]) if options["api_key_file"] else None,
                simulated=not options["gateway"],
            )
            _check_settings(case)
            cases.append(case)
    return cases


def _check_settings(case: Case) -> None:
    """Let the engine's own settings say now what they would say later."""
    gateway = {"gateway": case.gateway} if case.gateway else {}
    Settings.from_options(
        Path(case.out),
        poll_interval_s=case.poll_interval_s,
        max_in_flight=case.max_in_flight,
        rate=case.rate,
        **gateway,
    )


# ---- money -----------------------------------------------------------------------------------------------


def _confirm_charges(cases: list[Case], options: dict[str, Any]) -> bool:
    """Say what is going to be paid for, and ask. Raises InputError where there is nobody to ask."""
    images_to_pay = [max(0, case.jobs - _charged_or_unknown(case)) for case in cases]
    for case, images in zip(cases, images_to_pay, strict=True):
        already_paid = case.jobs - images
        say(
            f"{case.rate}: {pluralize(images, 'image')} to pay for"
            + (f", {already_paid:,} paid already" if already_paid else "")
        )
    price = options["price"]
    total = sum(images_to_pay)
    cost = f", {price:g} each, {price * total:,.2f} together" if price is not None else ""
    say(f"In all {pluralize(total, 'image')} will be paid for at {options['gateway']}{cost}.")
    if options["yes"] or not total:
        return True
    if not sys.stdin.isatty():
        raise InputError("there is nobody to ask whether to pay", "add --yes to go on; nothing was spent")
    return click.confirm("Go on?", default=False, err=True)


def _charged_or_unknown(case: Case) -> int:
    """How many images of a case are paid already, or may be."""
    out = Path(case.out)
    if not (out / LEDGER).is_file():
        return 0
    charges = RunTotals.read(out).charges
    return charges.charged + charges.unknown


# ---- while it runs ---------------------------------------------------------------------------------------


def _run_cases(runner: BenchRunner, cases: list[Case], progress: BenchProgress) -> Iterator[CaseResult]:
    """Run the cases until they are through, one breaks, or Ctrl-C is pressed."""
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


@contextmanager
def _forward_signals(runner: BenchRunner) -> Iterator[None]:
    """Pass Ctrl-C and SIGTERM on to the sweep, instead of breaking off between a child's start and its end."""

    def on_signal(*_: object) -> None:
        runner.interrupt()

    previous_handlers = {name: signal.signal(name, on_signal) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for name, handler in previous_handlers.items():
            signal.signal(name, handler)


class BenchProgress:
    """For logs and pipes, and with --quiet: a line as a case begins and ends, and every few seconds between."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._last_line_s = 0.0

    def __enter__(self) -> BenchProgress:
        return self

    def __exit__(self, *_: object) -> None: ...

    def case_started(self, case: Case) -> None:
        self._last_line_s = time.monotonic()
        self.say(f"{case.implementation} at {case.rate}: {pluralize(case.jobs, 'job')}")

    def case_progress(self, case: Case, progress: WorkerProgress) -> None:
        if time.monotonic() - self._last_line_s >= LINE_INTERVAL_S:
            self._last_line_s = time.monotonic()
            self.say(_progress_text(case, progress))

    def case_finished(self, row: CaseResult) -> None:
        used = (
            ""
            if row.limit_utilisation is None
            else f", {row.accepted_per_s:.1f}/s, {row.limit_utilisation:.1%} of the limit"
        )
        self.say(f"{row.implementation} at {row.rate}: {row.accepted:,} accepted{used}")
        if row.problem:
            say(f"krea-batch: {row.problem}")

    def say(self, line: str) -> None:
        if not self._quiet:
            say(line)


class LiveBenchProgress(BenchProgress):
    """For terminals: the counts in one line that stays where it is, and a line for each case that is done."""

    def __init__(self) -> None:
        from rich.console import Console

        super().__init__(quiet=False)
        self._console = Console(stderr=True)
        self._status = self._console.status("")

    def __enter__(self) -> BenchProgress:
        self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._status.stop()

    def case_started(self, case: Case) -> None:
        self._status.update(f"{case.implementation} at {case.rate}: starting")

    def case_progress(self, case: Case, progress: WorkerProgress) -> None:
        self._status.update(_progress_text(case, progress))

    def say(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False)


def _make_progress(*, quiet: bool) -> BenchProgress:
    return BenchProgress(quiet=quiet) if quiet or not sys.stderr.isatty() else LiveBenchProgress()


def _progress_text(case: Case, progress: WorkerProgress) -> str:
    return (
        f"{case.implementation} at {case.rate}: {progress.accepted:,}/{case.jobs:,} accepted, {progress.stored:,} stored, "
        f"{progress.rate_limited:,} refused, {progress.polls:,} polls"
    )


# ---- at the end ------------------------------------------------------------------------------------------


def _write_results(rows: list[CaseResult], content: dict[str, Any], options: dict[str, Any]) -> None:
    written = [write_bench_json(options["out"], content)]
    if find_spec("matplotlib"):
        from krea_batch.benchmark.plots import write_plots

        written += write_plots(options["out"], rows)
    else:
        say(f"No plots without matplotlib: {INSTALL_COMMAND}")
    if options["as_json"]:
        click.echo(orjson.dumps(content, option=orjson.OPT_INDENT_2))
    elif not options["quiet"]:
        _print_table(rows)
        click.echo("Written: " + ", ".join(str(path) for path in written))


def _print_table(rows: list[CaseResult]) -> None:
    from rich.console import Console

    from krea_batch.benchmark.output import result_table

    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, TABLE_WIDTH)
    console.print(result_table(rows))


def _public_options(options: dict[str, Any]) -> dict[str, Any]:
    """The options as they go into the report; paths are nobody's business."""
    excluded = ("api_key_file", "out", "quiet", "as_json", "yes")
    return {name: value for name, value in options.items() if name not in excluded}


def _exit_code(runner: BenchRunner, cases: list[Case], rows: list[CaseResult]) -> int:
    if runner.interrupts:
        return INTERRUPTED
    if any(row.problem for row in rows):
        return STOPPED
    engine_rows = [
        (case, row) for case, row in zip(cases, rows, strict=True) if case.implementation is Implementation.ENGINE
    ]
    return OK if all(_is_complete(case, row) for case, row in engine_rows) else SOME_FAILED


def _is_complete(case: Case, row: CaseResult) -> bool:
    """Whether every job has its image: a paid run's folder knows, whichever run of the command it was."""
    if case.simulated:
        return row.stored == case.jobs
    totals = RunTotals.read(Path(case.out))
    return totals.all_succeeded and totals.total == case.jobs
