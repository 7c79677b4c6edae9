"""A case comes in on standard input; lines of JSON go out on standard output: how far it is, at last its record.

    python -m krea_batch.benchmark.worker < case.json

Newcomers: it is a process of its own for each case, so that processor time and memory are that case's alone. What it
imports is imported before the first look at either.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from krea_batch.benchmark.cases import Case, Contender
from krea_batch.benchmark.recorder import Notes
from krea_batch.engine.event_loop import run_loop

TELL_EVERY_S = 0.5  # chosen: fluent enough for a count


def main() -> None:
    case = msgspec.json.decode(sys.stdin.buffer.read(), type=Case)
    Path(case.out).mkdir(parents=True, exist_ok=True)
    work = _work(case)
    notes = Notes()
    done = threading.Event()
    teller = threading.Thread(target=_tell, args=(notes, done))
    teller.start()
    try:
        work(notes)
    finally:
        done.set()
        teller.join()
    _print(notes.close())


def _work(case: Case) -> Callable[[Notes], None]:
    if case.contender is Contender.ENGINE:
        from krea_batch.benchmark.engine_run import run_engine

        return lambda notes: run_loop(run_engine, case, notes)
    from krea_batch.benchmark.baseline_scripts import run_tasks, run_threads

    if case.contender is Contender.TASKS:
        return lambda notes: run_loop(run_tasks, case, notes)
    return lambda notes: run_threads(case, notes)


def _tell(notes: Notes, done: threading.Event) -> None:
    while not done.wait(TELL_EVERY_S):
        _print(notes.seen())


def _print(told: msgspec.Struct) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(told) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
