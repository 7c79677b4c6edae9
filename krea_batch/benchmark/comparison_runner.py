"""Runs the programs of the comparison, each as a process of its own, with a simulator of its own.

The runs without kills follow each other, because processor time and the share of the limit are measured. Nothing is
measured in the runs with kills, so they run at the same time.
"""

from __future__ import annotations

import json
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import msgspec

from krea_batch.benchmark.comparison import (
    ANSWER_DELAY_S,
    ENGINES,
    FAULTS,
    KILLS,
    ComparedProgram,
    ComparisonRow,
    ProgramRun,
    count_images,
    count_run,
    jobs_before_kill,
)
from krea_batch.benchmark.process_tree import ProcessTree
from krea_batch.benchmark.runner import running_child, running_simulator
from krea_batch.benchmark.simulator_ledger import read_simulated_ledger, read_totals
from krea_batch.engine.child_process import child_environment, python_command
from krea_batch.errors import InputError
from krea_batch.settings import KEY_VARIABLE

SAMPLE_INTERVAL_S = 0.2  # chosen: short compared with a run, long compared with reading the process table
MAX_RESTARTS = 2  # chosen: after an error, a person starts a script again, but not for ever
ENDED = (0, 1)  # exit codes of a program that has ended, with and without failed jobs


class ComparisonSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What all programs have in common. `rate` is the gateway's limit, and the rate that they are configured with."""

    rate: str
    per_s: float
    jobs: int
    poll_interval_s: float
    latency: str
    max_in_flight: int
    folder: Path


class ComparisonRunner:
    """Runs programs. `on_progress` is called from several threads, with a line of counts.

    `interrupt` may be called from a signal handler at any time.
    """

    def __init__(self, settings: ComparisonSettings, on_progress: Callable[[str], None]) -> None:
        self._settings = settings
        self._on_progress = on_progress
        self._interrupted = threading.Event()

    @property
    def is_interrupted(self) -> bool:
        return self._interrupted.is_set()

    def interrupt(self) -> None:
        """Kill all programs soon."""
        self._interrupted.set()

    def compare(self, programs: Sequence[ComparedProgram]) -> list[ComparisonRow]:
        """Run all programs; return no rows if interrupted. Raises InputError if a simulator does not start."""
        installed = [program for program in programs if program.missing_package is None]
        steady = {program: self._run(program, kills=0) for program in installed}
        with ThreadPoolExecutor(len(installed)) as pool:
            runs = pool.map(lambda program: self._run(program, kills=KILLS), installed)
            killed = dict(zip(installed, runs, strict=True))
        if self.is_interrupted:
            return []
        return [
            ComparisonRow(
                program=program,
                steady=steady.get(program),
                killed=killed.get(program),
                missing_package=program.missing_package,
            )
            for program in programs
        ]

    def _run(self, program: ComparedProgram, *, kills: int) -> ProgramRun | None:
        """Run a program until its jobs have ended, and kill it so many times in between."""
        if self.is_interrupted:
            return None
        settings = self._settings
        folder = settings.folder / f"{program.name.lower()}-{kills}"
        out = folder / "out"
        out.mkdir(parents=True)
        faults = [f"--fault={name}={probability}" for name, probability in FAULTS.items()]
        limits = ["--limit", f"token-bucket:{settings.rate}", "--latency", settings.latency]
        with running_simulator(*limits, *faults, "--hang-duration", f"{ANSWER_DELAY_S}") as urls:
            if not urls:
                raise InputError("the simulator did not start", "see its error above")
            start = ProgramStart(program, settings, urls["gateway_url"], folder)
            starts = self._run_until_ended(start, urls["admin_url"], kills)
            ledger = read_simulated_ledger(urls["admin_url"])
        return count_run(
            ledger,
            count_images(out),
            jobs=settings.jobs,
            kills=starts.kills,
            per_s=settings.per_s,
            cpu_s=starts.cpu_s,
            problem=starts.problem,
        )

    def _run_until_ended(self, start: ProgramStart, admin_url: str, kills: int) -> _Starts:
        """Start the program again after each kill, and after errors."""
        starts = _Starts()
        while not self.is_interrupted and starts.errors <= MAX_RESTARTS:
            with start.running() as tree:
                was_killed = self._wait_or_kill(start.program, tree, admin_url, kills - starts.kills)
            starts.cpu_s += tree.cpu_s
            if was_killed:
                starts.kills += 1
            elif tree.process.returncode in ENDED and not start.has_crashed():
                return starts
            else:
                starts.errors += 1
        starts.problem = start.last_line()
        return starts

    def _wait_or_kill(self, program: ComparedProgram, tree: ProcessTree, admin_url: str, kills_left: int) -> bool:
        """Wait until the program ends, or kill it when more submits were accepted. Returns whether it was killed."""
        kill_at = read_totals(admin_url).accepted + jobs_before_kill(self._settings.jobs)
        while not tree.sample():
            totals = read_totals(admin_url)
            self._on_progress(
                f"{program}: {totals.accepted:,}/{self._settings.jobs:,} accepted, {totals.polls:,} polls"
                + (f", kills to come: {kills_left}" if kills_left else "")
            )
            if (kills_left and totals.accepted >= kill_at) or self.is_interrupted:
                tree.kill()
                return True
            time.sleep(SAMPLE_INTERVAL_S)
        return False


class _Starts:
    """What the starts of a program have in common."""

    def __init__(self) -> None:
        self.cpu_s = 0.0
        self.kills = 0
        self.errors = 0
        self.problem: str | None = None


class ProgramStart:
    """Starts a program, any number of times, with the same command. Its output goes to a log."""

    def __init__(self, program: ComparedProgram, settings: ComparisonSettings, gateway: str, folder: Path) -> None:
        self.program = program
        self._folder = folder
        self._log_start = 0  # of the latest start
        out = str(folder / "out")
        self._environment = child_environment(with_key=False, options=())
        if program in ENGINES:
            self._environment[KEY_VARIABLE] = "simulated"
            lines = (json.dumps({"id": f"{n:06d}", "prompt": f"image {n}"}) + "\n" for n in range(settings.jobs))
            (folder / "jobs.jsonl").write_text("".join(lines), "utf-8")
            limits = ["--rate", settings.rate, "--poll-interval", f"{settings.poll_interval_s}"]
            limits += ["--max-in-flight", f"{settings.max_in_flight}", "--no-thumbnails"]
            if program is ComparedProgram.CALLBACKS:
                address = f"127.0.0.1:{_free_port()}"
                limits += ["--webhook-listen", address, "--webhook-url", f"http://{address}"]
            arguments = ["run", "jobs.jsonl", "--out", out, "--gateway", gateway, "--quiet", *limits]
        else:
            run = {"gateway": gateway, "out": out, "jobs": settings.jobs}
            run |= {"per_s": settings.per_s, "poll_interval_s": settings.poll_interval_s}
            self._environment["BENCH_RUN"] = json.dumps(run)
            arguments = []
        self._command = python_command(program.module, *arguments)

    @contextmanager
    def running(self) -> Iterator[ProcessTree]:
        """Start the program; it does not outlive the block."""
        with (self._folder / "log").open("ab") as log:
            self._log_start = log.tell()
            options = {"cwd": self._folder, "stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
            with running_child(self._command, self._environment, **options) as process:
                yield ProcessTree(process)

    def has_crashed(self) -> bool:
        """Whether the latest start has ended with a traceback. Its exit code is that of a run with failed jobs, 1."""
        return b"Traceback (most recent call last)" in (self._folder / "log").read_bytes()[self._log_start :]

    def last_line(self) -> str:
        """Return the last line of the log."""
        lines = (self._folder / "log").read_text("utf-8", "replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "it wrote nothing")


def _free_port() -> int:
    """Return a port that is free now. Each start of a program listens at the same one."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port
