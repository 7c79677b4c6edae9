"""What happens to a contender's jobs comes in, one call each; a record of it goes out.

Newcomers: lag is the gateway's own word for how long a job took (its two timestamps, so its clock alone) set
against how long it took until somebody saw the end: from the acceptance to the poll that said COMPLETED.
"""

from __future__ import annotations

import asyncio
import resource
import sys
import time
from pathlib import Path

from krea_batch.benchmark.cases import CaseRecord, WorkerProgress

LOOP_SAMPLE_INTERVAL_S = (
    0.01  # chosen: short against what a user would feel, and 100 wakes a second cost next to nothing
)
_PROC_STATUS = Path("/proc/self/status")


class Recorder:
    """Notes of one contender, made as it works. Calls come from one event loop, or from threads under a lock."""

    def __init__(self) -> None:
        self.record = CaseRecord()
        self._accepted_at: dict[str, float] = {}
        self._cpu_at_start_s = time.process_time()
        self._memory_at_start_kib = memory_kib()

    def record_accepted(self, request_id: str) -> None:
        accepted_at = time.time()
        self._accepted_at[request_id] = accepted_at
        self.record.accepted_at.append(accepted_at)
        in_flight = len(self.record.accepted_at) - self.record.stored
        self.record.peak_in_flight = max(self.record.peak_in_flight, in_flight)

    def record_rate_limited(self) -> None:
        self.record.rate_limited += 1

    def record_poll(self) -> None:
        self.record.polls += 1

    def record_finished(self, request_id: str, took_s: float | None) -> None:
        """The poll that saw the end; `took_s` is what the gateway says the job took."""
        accepted_at = self._accepted_at.get(request_id)
        if took_s is not None and accepted_at is not None:
            self.record.lags_s.append(max(0.0, time.time() - accepted_at - took_s))

    def record_stored(self) -> None:
        self.record.stored += 1

    def progress(self) -> WorkerProgress:
        record = self.record
        return WorkerProgress(len(record.accepted_at), record.stored, record.rate_limited, record.polls)

    def finish(self) -> CaseRecord:
        """Take processor time and memory, as this process used them since the notes began."""
        self.record.cpu_s = time.process_time() - self._cpu_at_start_s
        self.record.memory_kib = max(0, memory_kib(peak=True) - self._memory_at_start_kib)
        return self.record


def memory_kib(*, peak: bool = False) -> int:
    """Memory of this process, now or at its most. Where the system tells no more, `now` is the most so far."""
    if _PROC_STATUS.is_file():
        name = "VmHWM:" if peak else "VmRSS:"
        return next(int(line.split()[1]) for line in _PROC_STATUS.read_text().splitlines() if line.startswith(name))
    max_rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return max_rss // 1024 if sys.platform == "darwin" else max_rss  # macOS counts bytes


async def measure_loop_lag(lags_ms: list[float]) -> None:
    """Sleep again and again, and note how late each wake is, until cancelled.

    By the machine's clock: uvloop's own stands still while a callback runs, and counts whole milliseconds.
    """
    while True:
        due_s = time.perf_counter() + LOOP_SAMPLE_INTERVAL_S
        await asyncio.sleep(LOOP_SAMPLE_INTERVAL_S)
        lags_ms.append(1000 * max(0.0, time.perf_counter() - due_s))
