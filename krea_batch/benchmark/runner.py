"""Cases come in; each is run in processes of its own, and its figures go out as it ends.

Newcomers: the children are in a process group of their own, so a Ctrl-C of the terminal reaches this process alone,
and it is this process that decides: what is only simulated is killed, what is paid for is brought home.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from krea_batch.benchmark.cases import Case, Record, Seen
from krea_batch.benchmark.measurements import Figures, figures
from krea_batch.errors import InputError, InternalError, RunStopped

FIGURES = "figures.json"  # in a paid run's folder: what was measured when it was paid for
ENDS_WITHIN_S = 10.0  # chosen: a child that was told to end and has not by then is killed
_Line = msgspec.json.Decoder(Record | Seen)


class _Post(msgspec.Struct):
    """A POST in the simulator's ledger; the rest of its fields does not matter here."""

    at_s: float
    status: int
    request_id: str | None


class _Books(msgspec.Struct):
    posts: list[_Post]


class Sweep:
    """Runs cases one after another. `interrupt` may be called from a signal handler at any time."""

    def __init__(self, latency: str, tell: Callable[[Case, Seen], None]) -> None:
        self.interrupts = 0
        self._latency = latency
        self._tell = tell
        self._worker: subprocess.Popen[bytes] | None = None
        self._simulated = True

    def measure(self, case: Case) -> Figures | None:
        """Run one case. Returns None where it was interrupted with nothing to show; raises RunStopped."""
        if not case.simulated:
            return self._paid(case)
        with self._simulator(case) as urls:
            if not urls:
                return None
            record = self._work(msgspec.structs.replace(case, gateway=urls["gateway_url"]))
            if record is None:
                return None
            _read_books(urls["admin_url"], record)
        return figures(case, record)

    def interrupt(self) -> None:
        """Count a Ctrl-C and pass it on: a simulated run is killed, a paid one is asked to bring home what it has."""
        self.interrupts += 1
        self._pass_on()

    def _pass_on(self) -> None:
        worker = self._worker
        if worker is not None and self._simulated:
            worker.kill()
        elif worker is not None:
            worker.send_signal(signal.SIGINT)

    def _paid(self, case: Case) -> Figures | None:
        record = self._work(case)
        if record is None:
            return None
        kept = Path(case.out) / FIGURES
        if not record.accepted_at and kept.is_file():
            return msgspec.json.decode(kept.read_bytes(), type=Figures)
        measured = figures(case, record)
        kept.write_bytes(msgspec.json.encode(measured))
        return measured

    def _work(self, case: Case) -> Record | None:
        """Run a worker to its end. Raises RunStopped where it breaks by itself."""
        record: Record | None = None
        command = [sys.executable, "-m", "krea_batch.benchmark.worker"]
        with _child(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
            assert worker.stdin is not None  # noqa: S101 - for mypy
            assert worker.stdout is not None  # noqa: S101 - for mypy
            self._worker, self._simulated = worker, case.simulated
            try:
                if self.interrupts:
                    return None
                worker.stdin.write(msgspec.json.encode(case))
                worker.stdin.close()
                for line in worker.stdout:
                    told = _Line.decode(line)
                    if isinstance(told, Record):
                        record = told
                    else:
                        self._tell(case, told)
                worker.wait()
            finally:
                self._worker = None
        if record is None and not self.interrupts:
            raise RunStopped(f"{case.contender} at {case.rate} broke off", "what it said of it stands above")
        return record

    @contextmanager
    def _simulator(self, case: Case) -> Iterator[dict[str, str]]:
        """A simulator with the limit of the case; its addresses, or nothing where it was interrupted."""
        limit = f"token-bucket:{case.per_s:g}/s"
        options = ["--port", "0", "--json", "--tiny", "--rate-limit", limit, "--latency", self._latency]
        command = [sys.executable, "-m", "krea_batch", "simulate", *options]
        with _child(command, stdout=subprocess.PIPE) as simulator:
            assert simulator.stdout is not None  # noqa: S101 - for mypy
            line = simulator.stdout.readline()
            if not line and not self.interrupts:
                raise InputError("the simulator did not start", "what it said of it stands above")
            yield msgspec.json.decode(line, type=dict[str, str]) if line and not self.interrupts else {}


@contextmanager
def _child(command: list[str], **pipes: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A child process that does not outlive the block."""
    process = subprocess.Popen(command, start_new_session=True, **pipes)  # noqa: S603 - our own commands
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None and not pipe.closed:
                pipe.close()


def _read_books(admin_url: str, record: Record) -> None:
    """Put the gateway's own instants and refusals in the place of what the contender saw of them."""
    with urllib.request.urlopen(admin_url.rstrip("/") + "/ledger", timeout=60) as answer:  # noqa: S310 - loopback
        posts = msgspec.json.decode(answer.read(), type=_Books).posts
    accepted = [post.at_s for post in posts if post.request_id is not None]
    if len(accepted) < len(record.accepted_at):
        raise InternalError(f"{len(record.accepted_at)} accepts were seen, {len(accepted)} are in the ledger")
    record.accepted_at = accepted
    record.refused_429 = sum(post.status == 429 for post in posts)
