"""A run of the command line, from its first job to its summary."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack, ExitStack
from typing import Any

import anyio
import msgspec

from krea_batch.cli.app import INTERRUPTED, OK, SOME_FAILED, STOPPED
from krea_batch.cli.options.logging_options import serve_metrics
from krea_batch.cli.options.run_settings import SIMULATED_KEY
from krea_batch.cli.ui.embedded_simulator import start_simulator
from krea_batch.cli.ui.error_messages import say_error
from krea_batch.cli.ui.formatting import pluralize, say, show, show_json
from krea_batch.cli.ui.progress import EventAnnouncer, make_display, refresh_until_cancelled
from krea_batch.cli.ui.status_readers import EndedJobs, EngineStatusReader, RecentErrors, SharedStatusReader
from krea_batch.cli.ui.summary import RunSummary, RunTotals
from krea_batch.engine.engine import Engine
from krea_batch.engine.event_loop import run_event_loop
from krea_batch.engine.signal_receiver import INTERRUPT_REASON, receive_signals
from krea_batch.errors import InputError, JobError, KreaBatchError, LedgerError, RunDirError, RunStopped
from krea_batch.events import Listener
from krea_batch.forecast import Forecast
from krea_batch.gallery.thumbnail_maker import ThumbnailMaker
from krea_batch.jobs import State
from krea_batch.ledger import read_ledger
from krea_batch.settings import ApiKey, Settings
from krea_batch.sources import CheckResult, JobFiles
from krea_batch.storage.operating_system import STOP_SIGNALS
from krea_batch.storage.run_dir import DUPLICATES, has_ledger


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
        return msgspec.structs.replace(self._settings, gateway=url), SIMULATED_KEY

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
