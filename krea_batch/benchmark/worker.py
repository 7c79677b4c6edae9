"""Runs one case from standard input, and writes its progress and then its record to standard output, as JSON lines.

python -m krea_batch.benchmark.worker < case.json
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import msgspec

from krea_batch.benchmark.cases import Case
from krea_batch.benchmark.engine_run import run_engine
from krea_batch.benchmark.recorder import Recorder
from krea_batch.engine.event_loop import run_event_loop
from krea_batch.storage.run_dir import create_directory

PROGRESS_INTERVAL_S = 0.5  # chosen: short enough for a counter in the terminal


def main() -> None:
    case = msgspec.json.decode(sys.stdin.buffer.read(), type=Case)
    create_directory(Path(case.out))
    recorder = Recorder()
    done = threading.Event()
    progress_thread = threading.Thread(target=_report_progress, args=(recorder, done))
    progress_thread.start()
    try:
        run_event_loop(run_engine, case, recorder)
    finally:
        done.set()
        progress_thread.join()
    _print(recorder.finish())


def _report_progress(recorder: Recorder, done: threading.Event) -> None:
    while not done.wait(PROGRESS_INTERVAL_S):
        _print(recorder.progress())


def _print(message: msgspec.Struct) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(message) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
