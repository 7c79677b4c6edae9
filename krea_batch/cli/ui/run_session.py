"""A run of the command line, from the check of its job files to its summary."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any

import anyio
import msgspec

from krea_batch.cli.app import INTERRUPTED, OK, SOME_FAILED, STOPPED, say_error
from krea_batch.cli.options.input_options import expansion_notices
from krea_batch.cli.options.logging_options import serve_metrics
from krea_batch.cli.options.run_options import given_settings
from krea_batch.cli.ui.check_progress import CheckProgress
from krea_batch.cli.ui.formatting import pluralize, say, show, show_json
from krea_batch.cli.ui.optional_deps import require_simulator_extra
from krea_batch.cli.ui.progress import INTERRUPT_REASON, EventAnnouncer, make_display, refresh_until_cancelled
from krea_batch.cli.ui.run_status import EndedJobs, EngineStatusReader, RecentErrors, SharedStatusReader
from krea_batch.cli.ui.summary import RunSummary, RunTotals
from krea_batch.engine.engine import Engine
from krea_batch.engine.event_loop import run_event_loop
from krea_batch.engine.signal_receiver import receive_signals
from krea_batch.errors import (
    InputError,
    JobError,
    JobFileError,
    KreaBatchError,
    LedgerError,
    LineProblem,
    RunDirError,
    RunStopped,
    SettingsError,
)
from krea_batch.events import Listener
from krea_batch.forecast import Forecast
from krea_batch.gallery.thumbnail_maker import ThumbnailMaker
from krea_batch.jobs import State
from krea_batch.ledger import LedgerReader, read_ledger
from krea_batch.ledger.paging import iter_rows
from krea_batch.settings import KEY_VARIABLE, ApiKey, Settings, Webhook
from krea_batch.sources import CheckResult, JobFiles
from krea_batch.sources.moved_rows import RecordedJobs
from krea_batch.storage.operating_system import STOP_SIGNALS
from krea_batch.storage.os_errors import next_step
from krea_batch.storage.outputs import open_for_append
from krea_batch.storage.run_dir import (
    DUPLICATES,
    SIMULATOR_STATE_FILE,
    create_directory,
    has_ledger,
    unusable_directory,
)

STATE_FILE_START = b'{"request_id":"'  # of each line; see `krea_batch.testing.simulator.job_log.LoggedJob`
MAX_REPEATED_PROBLEMS = 5  # chosen: more lines with the same problem add nothing


def settings_and_key(options: dict[str, Any]) -> tuple[Settings, ApiKey | None]:
    """Return settings and API key from the options; the key is None with --simulate. Raises SettingsError."""
    fields = given_settings(options)
    if options["webhook_listen"]:
        fields["webhook"] = Webhook(options["webhook_url"] or "", options["webhook_listen"])
    elif options["webhook_url"]:
        raise SettingsError("webhook.url", "requires --webhook-listen HOST:PORT")
    settings = Settings.from_options(options["out"], **fields)
    if options["simulate"]:
        return settings, None
    return settings, find_key(options["api_key_file"])


def find_key(key_file: str | None) -> ApiKey:
    """Return the API key from the file or the environment. Raises InputError with the possible sources."""
    if key_file is None:
        if text := os.environ.get(KEY_VARIABLE, ""):
            try:
                return ApiKey(text)
            except SettingsError as error:
                raise InputError(f"{KEY_VARIABLE}: {error.problem}", error.hint) from None
        raise InputError(
            "no API key",
            f"set {KEY_VARIABLE} or pass --api-key-file FILE; to try krea-batch without a key and free of charge, "
            "add --simulate",
        )
    try:
        return ApiKey(Path(key_file).read_text("utf-8").strip())
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise SettingsError("api_key_file", f"cannot read {key_file} ({reason})", "check the path") from None


def check_jobs(files: JobFiles, settings: Settings, *, skip_invalid: bool, quiet: bool) -> CheckResult:
    """Check every line before anything is charged. Raises JobFileError for invalid lines, unless they are skipped."""
    with ExitStack() as stack:
        store = stack.enter_context(read_ledger(settings.out)) if has_ledger(settings.out) else None
        if store:
            files.resume_from(*store.read(LedgerReader.checkpoint))
        with CheckProgress(quiet=quiet) as progress:
            checked = files.check(
                lookup=_fingerprint_lookup(store) if store else None,
                on_progress=progress.update,
                recorded_jobs=_recorded_jobs(store) if store else None,
            )
    shown = _limit_repeats(checked.problems)
    for problem in shown:
        say(str(problem))
    if checked.bad_lines > len(shown):
        similar = " like these" if len(shown) < len(checked.problems) else ""
        say(f"… and {checked.bad_lines - len(shown):,} more{similar}; krea-batch validate shows all")
    for notice in () if quiet else (*files.notices(), *map(str, checked.notes), *expansion_notices(checked)):
        say(notice)
    if checked.bad_lines and not skip_invalid:
        raise JobFileError(checked.problems, checked.bad_lines)
    if not checked.jobs:
        raise files.no_jobs_error()
    return checked


def _limit_repeats(problems: Iterable[LineProblem]) -> list[LineProblem]:
    """Return the problems in order, only the first of equal ones: an invalid field is usually in every line."""
    repeats = Counter[tuple[str, str]]()
    shown = []
    for problem in problems:
        repeats[text := (problem.problem, problem.hint)] += 1
        if repeats[text] <= MAX_REPEATED_PROBLEMS:
            shown.append(problem)
    return shown


def _fingerprint_lookup(store: LedgerReader) -> Callable[[Sequence[str]], Mapping[str, bytes]]:
    """Return a function that looks up the fingerprints of those ids that the ledger has."""

    def known(job_ids: Sequence[str]) -> Mapping[str, bytes]:
        fingerprints: dict[str, bytes] = store.read(lambda store: store.fingerprints(job_ids))[0]
        return fingerprints

    return known


def _recorded_jobs(store: LedgerReader) -> RecordedJobs:
    """Return the jobs of the ledger for rows without an id."""

    def page(after_job_no: int, limit: int) -> list[tuple[int, str, bytes]]:
        rows: list[tuple[int, str, bytes]] = store.read(lambda store: store.numbered_jobs(after_job_no, limit))[0]
        return rows

    def numbered() -> Iterator[tuple[str, bytes]]:
        return ((job_id, fingerprint) for _, job_id, fingerprint in iter_rows(page, lambda row: row[0]))

    (counts,) = store.read(LedgerReader.counts)
    return RecordedJobs(sum(counts.values()), numbered)


async def start_simulator(stack: AsyncExitStack, out: Path, *, time_scale: float = 1.0) -> str:
    """Start the simulator on this event loop, and return its URL. It keeps its jobs in the run directory.

    Raises InputError if Pillow is missing, SettingsError if the simulator cannot start, and RunDirError if the run
    directory cannot be created.
    """
    require_simulator_extra()
    from krea_batch.testing.simulator import Simulator, SimulatorError, SimulatorSettings

    try:
        await anyio.to_thread.run_sync(create_directory, out)
    except OSError as error:
        raise unusable_directory(out, error) from error
    try:
        check_state_file(out / SIMULATOR_STATE_FILE)
        simulator = Simulator(SimulatorSettings(time_scale=time_scale, state_file=str(out / SIMULATOR_STATE_FILE)))
        await stack.enter_async_context(simulator)
    except SimulatorError as error:
        raise SettingsError("simulate", "the simulator cannot start", str(error)) from None
    return simulator.gateway_url


def check_state_file(path: Path) -> None:
    """Raise InputError unless the simulator may append to the file: it is new, or has jobs of a simulator."""

    def is_own_line(line: bytes) -> bool:
        return line.startswith(STATE_FILE_START) or STATE_FILE_START.startswith(line)  # a kill may cut the line

    try:
        os.close(open_for_append(path, is_own_line, "state file"))
    except OSError as error:
        raise InputError(f"cannot write {path} ({error.strerror})", next_step(error)) from None


class RunSession:
    """One run of the command line."""

    def __init__(
        self,
        settings: Settings,
        key: ApiKey | None,
        files: JobFiles,
        checked: CheckResult,
        options: dict[str, Any],
        *,
        forecast: Forecast | None = None,
        drain_s: float | None = None,
    ) -> None:
        self._settings = settings
        self._drain_s = drain_s  # after a signal, jobs in flight are left to other runs so soon; None: never
        self._key = key
        self._files = files
        self._checked = checked
        self._options = options
        self._forecast = forecast
        self._quiet: bool = options["quiet"]
        self._interrupts = 0
        self.problem: KreaBatchError | None = None
        self._display = make_display(quiet=options["quiet"])
        self._announcer = EventAnnouncer(self._display.say, jobs=0 if options["quiet"] else checked.jobs)
        self._recent_errors = RecentErrors()
        before = RunTotals.read(settings.out).counts if has_ledger(settings.out) else {}
        self._succeeded_before = before.get(State.SUCCEEDED, 0)
        recorded = sum(before.values())
        self._total = recorded + max(0, checked.jobs - checked.recorded)  # that the run directory will have
        self._ended_jobs = EndedJobs(recorded)

    async def run(self) -> int:
        """Run until the end or a stop. Return the exit code. Afterwards, `problem` is what stopped it, or None."""
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        async with AsyncExitStack() as stack:
            listeners = self._listeners(stack.enter_context(ExitStack()))
            engine = await self._create_engine(stack, listeners)
            problem = self.problem = await self._run_engine(engine)
        self._write_duplicates()
        try:
            totals = RunTotals.read(self._settings.out)
        except (RunDirError, LedgerError) as error:
            raise problem or error from None  # the disk failed during the run
        stats = engine.stats()
        summary = RunSummary(
            totals=totals,
            seconds=loop.time() - started_s,
            downloaded_bytes=stats.downloaded_bytes,
            defects=stats.defects,
            bad_lines=self._checked.bad_lines,
            simulated=self._key is None,
            not_started=max(0, self._total - totals.total),
            sink=self._settings.sink,
            problem=problem,
            found_limit=stats.found_limit,
        )
        self._print_summary(summary)
        return self._exit_code(summary)

    async def _run_engine(self, engine: Engine) -> KreaBatchError | None:
        """Run the engine, handle signals and show progress. Return what stopped it early, or None."""
        problem: KreaBatchError | None = None
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(self._handle_signals, engine)
            try:
                async with engine:
                    await engine.set_expected_jobs(self._total)
                    status_reader = self._status_reader(engine)
                    task_group.start_soon(refresh_until_cancelled, self._display, status_reader.read)
                    await engine.run(self._files)
            except KreaBatchError as error:
                problem = _stop_of(error, engine)
            task_group.cancel_scope.cancel()
        if problem is not None and not isinstance(problem, (RunStopped, LedgerError)):
            raise problem
        return problem or engine.stopped

    def _status_reader(self, engine: Engine) -> EngineStatusReader | SharedStatusReader:
        reader = EngineStatusReader(
            engine,
            self._recent_errors,
            self._ended_jobs,
            total=self._total,
            succeeded_before=self._succeeded_before,
            forecast=self._forecast,
        )
        return SharedStatusReader(reader, engine.settings.out) if engine.settings.shared else reader

    def _listeners(self, stack: ExitStack) -> list[Listener]:
        listeners: list[Listener] = [
            self._announcer.on_event,
            self._recent_errors.on_event,
            self._ended_jobs.on_event,
        ]
        if not self._options["no_thumbnails"]:
            listeners.append(stack.enter_context(ThumbnailMaker(self._settings.out)).on_event)
        if self._options["metrics_port"]:
            listeners.append(serve_metrics(self._options["metrics_port"], stack, quiet=self._quiet))
        return listeners

    async def _create_engine(self, stack: AsyncExitStack, listeners: list[Listener]) -> Engine:
        settings, key = self._settings, self._key
        if key is None:
            settings, key = await self._start_simulator(stack)
        return Engine(settings=settings, api_key=key, listeners=listeners)

    async def _start_simulator(self, stack: AsyncExitStack) -> tuple[Settings, ApiKey]:
        url = await start_simulator(stack, self._settings.out, time_scale=self._options["time_scale"])
        return msgspec.structs.replace(self._settings, gateway=url), ApiKey("simulated")

    async def _handle_signals(self, engine: Engine) -> None:
        with receive_signals(*_stop_signals()) as received:
            async for _ in received:
                self._interrupts += 1
                if self._interrupts == 1:
                    engine.stop(INTERRUPT_REASON)
                    if self._drain_s is not None:
                        asyncio.get_running_loop().call_later(self._drain_s, engine.abort, INTERRUPT_REASON)
                    in_flight = pluralize(engine.stats().in_flight, "job")
                    self._display.say(
                        f"Stopping: waiting for {in_flight} in flight. Press Ctrl-C again to stop immediately."
                    )
                else:
                    engine.abort(INTERRUPT_REASON)
                    self._display.say("Stopping now. Jobs in flight are saved; run again to resume.")

    def _write_duplicates(self) -> None:
        """Write which jobs were left out as duplicates of which, with --dedupe."""
        out = self._settings.out
        if not self._checked.duplicates:
            return
        try:
            with read_ledger(out) as store:
                self._files.duplicates.write(out, lambda job_id: store.read(lambda each: each.find_job(job_id))[0])
        except OSError as error:
            say(f"krea-batch: cannot write {out / DUPLICATES} ({error.strerror}); run again to write it")

    def _print_summary(self, summary: RunSummary) -> None:
        if self._options["as_json"]:
            show_json(summary.as_json())
        elif not self._quiet:
            show(*summary.lines())
        elif summary.problem:
            say_error(summary.problem)

    def _exit_code(self, summary: RunSummary) -> int:
        if self._interrupts:
            return INTERRUPTED
        if summary.problem:
            return STOPPED
        return OK if summary.totals.all_succeeded else SOME_FAILED


def run_recorded_jobs(
    settings: Settings, key: ApiKey | None, options: dict[str, Any], *, drain_s: float | None = None
) -> tuple[int, KreaBatchError | None]:
    """Run the open jobs of a run directory, without job files. Return the exit code, and what stopped the run."""
    total = RunTotals.read(settings.out).total
    checked = CheckResult(jobs=total, rows=total, bad_lines=0, duplicates=0, problems=(), notes=(), recorded=total)
    with JobFiles(()) as no_files:
        no_files.check()
        session = RunSession(settings, key, no_files, checked, options, drain_s=drain_s)
        return run_event_loop(session.run), session.problem


def _stop_of(error: KreaBatchError, engine: Engine) -> KreaBatchError:
    """Return why the run ended, for an error of the engine. An error of the input may come after charges."""
    if isinstance(error, JobError):
        return RunStopped(f"job {error.job_id!r}: {error.problem}", error.hint)
    return (engine.stopped if isinstance(error, InputError) else None) or error


def _stop_signals() -> list[signal.Signals]:
    """Return the signals that stop a run. A closed terminal (SIGHUP) is one, unless it is ignored, as by nohup."""
    hangup = getattr(signal, "SIGHUP", None)  # not on Windows
    is_ignored = hangup is not None and signal.getsignal(hangup) is signal.SIG_IGN
    return [number for number in STOP_SIGNALS if not (number is hangup and is_ignored)]
