"""Runs each case in processes of its own.

The child processes have their own sessions, so a Ctrl-C in the terminal reaches only this process. It then kills a
simulated run, and stops a charged one so that its jobs in flight are completed.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from krea_batch.benchmark.cases import Case, CaseRecord, WorkerProgress
from krea_batch.benchmark.measurements import CaseResult, case_result
from krea_batch.benchmark.simulator_ledger import read_simulated_ledger
from krea_batch.engine.child_process import INTERRUPT_SIGNALS, OWN_SESSION, child_environment, python_command
from krea_batch.errors import InputError, InternalError, RunStopped
from krea_batch.storage.atomic import replacing

RESULT_FILE = "result.json"  # in the run directory of a charged case: its result, for a second run of the command
TERMINATE_TIMEOUT_S = 10.0  # chosen: a child that has not ended by then is killed
_decoder = msgspec.json.Decoder(CaseRecord | WorkerProgress)


class BenchRunner:
    """Runs cases one after another. `interrupt` may be called from a signal handler at any time."""

    def __init__(self, latency: str, on_progress: Callable[[Case, WorkerProgress], None]) -> None:
        self.interrupts = 0
        self._latency = latency
        self._on_progress = on_progress
        self._worker: subprocess.Popen[bytes] | None = None
        self._simulated = True

    def measure(self, case: Case) -> CaseResult | None:
        """Run one case. Returns None if it was interrupted before it had a result.

        Raises RunStopped if the worker fails, and InputError if the simulator does not start.
        """
        if not case.simulated:
            return self._measure_charged(case)
        with self._simulator(case) as urls:
            if not urls:
                return None
            record = self._run_worker(msgspec.structs.replace(case, gateway=urls["gateway_url"]))
            if record is None:
                return None
            _use_simulator_ledger(urls["admin_url"], record)
        return case_result(case, record)

    def interrupt(self) -> None:
        """Count a Ctrl-C. Kill the worker of a simulated case, and interrupt that of a charged one."""
        self.interrupts += 1
        self._forward_interrupt()

    def _forward_interrupt(self) -> None:
        worker = self._worker
        if worker is not None and self._simulated:
            worker.kill()
        elif worker is not None:
            worker.send_signal(INTERRUPT_SIGNALS[0])

    def _measure_charged(self, case: Case) -> CaseResult | None:
        """Run a case with real charges.

        If it accepts no job, because an earlier run of the command has accepted them all, return that run's result.
        """
        record = self._run_worker(case)
        if record is None:
            return None
        result_file = Path(case.out) / RESULT_FILE
        if not record.accepted_at and result_file.is_file():
            return msgspec.json.decode(result_file.read_bytes(), type=CaseResult)
        result = case_result(case, record)
        with replacing(result_file) as file:
            file.write(msgspec.json.encode(result))
        return result

    def _run_worker(self, case: Case) -> CaseRecord | None:
        """Run a worker to its end. Returns None if it was interrupted; raises RunStopped if it fails."""
        record: CaseRecord | None = None
        command = python_command("krea_batch.benchmark.worker")
        env = child_environment(with_key=not case.simulated and case.key_file is None)
        with running_child(command, env, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
            assert worker.stdin is not None  # noqa: S101 - for mypy
            assert worker.stdout is not None  # noqa: S101 - for mypy
            self._worker, self._simulated = worker, case.simulated
            try:
                if self.interrupts:
                    return None
                worker.stdin.write(msgspec.json.encode(case))
                worker.stdin.close()
                for line in worker.stdout:
                    message = _decoder.decode(line)
                    if isinstance(message, CaseRecord):
                        record = message
                    else:
                        self._on_progress(case, message)
                worker.wait()
            finally:
                self._worker = None
        if record is None and not self.interrupts:
            raise RunStopped(f"the benchmark at {case.name} failed", "see its error above")
        return record

    @contextmanager
    def _simulator(self, case: Case) -> Iterator[dict[str, str]]:
        """Start a simulator with the limit of the case; yield its URLs by name, or none if it was interrupted."""
        with running_simulator("--limit", case.simulator_limit, "--latency", self._latency) as urls:
            if not urls and not self.interrupts:
                raise InputError("the simulator did not start", "see its error above")
            yield urls if not self.interrupts else {}


@contextmanager
def running_simulator(*options: str) -> Iterator[dict[str, str]]:
    """Start a simulator; yield its URLs by name, or none if it ended instead of starting."""
    command = python_command("krea_batch", "simulate", "--port", "0", "--json", "--tiny", *options)
    with running_child(command, child_environment(with_key=False), stdout=subprocess.PIPE) as simulator:
        assert simulator.stdout is not None  # noqa: S101 - for mypy
        line = simulator.stdout.readline()
        yield msgspec.json.decode(line, type=dict[str, str]) if line else {}


@contextmanager
def running_child(command: list[str], env: dict[str, str], **pipes: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Start a child process that does not outlive the block."""
    process = subprocess.Popen(command, env=env, **OWN_SESSION, **pipes)  # noqa: S603 - our own commands
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(TERMINATE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None and not pipe.closed:
                pipe.close()


def _use_simulator_ledger(admin_url: str, record: CaseRecord) -> None:
    """Replace the recorded times of accepts, and the number of 429s, by those in the simulator's ledger."""
    posts = read_simulated_ledger(admin_url).posts
    accepted = [post.at_s for post in posts if post.request_id is not None]
    if len(accepted) < len(record.accepted_at):
        raise InternalError(
            f"{len(record.accepted_at)} accepts were recorded, but {len(accepted)} are in the simulator's ledger"
        )
    record.accepted_at = accepted
    record.rate_limited = sum(post.status == 429 for post in posts)
