"""Records the jobs of a case in the worker process.

The lag of a job is the time from its acceptance to the poll that returned COMPLETED, minus its duration at the
gateway. That duration is the difference of two timestamps of the gateway, so its clock does not matter.
"""

from __future__ import annotations

import asyncio
import time

from krea_batch.benchmark.cases import CaseRecord, WorkerProgress
from krea_batch.storage.operating_system import memory_kib

LOOP_SAMPLE_INTERVAL_S = 0.01  # chosen: short enough to find noticeable lag; 100 wake-ups per second cost little


class Recorder:
    """Records one case while it runs."""

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
        """Record the poll that detected the end of a job; `took_s` is its duration at the gateway, if known."""
        accepted_at = self._accepted_at.get(request_id)
        if took_s is not None and accepted_at is not None:
            self.record.lags_s.append(max(0.0, time.time() - accepted_at - took_s))

    def record_stored(self) -> None:
        self.record.stored += 1

    def progress(self) -> WorkerProgress:
        record = self.record
        return WorkerProgress(len(record.accepted_at), record.stored, record.rate_limited, record.polls)

    def finish(self) -> CaseRecord:
        """Return the record, with the CPU time and the memory growth of this process since the recorder was made."""
        self.record.cpu_s = time.process_time() - self._cpu_at_start_s
        self.record.memory_kib = max(0, memory_kib(peak=True) - self._memory_at_start_kib)
        return self.record


async def measure_loop_lag(lags_ms: list[float]) -> None:
    """Sleep repeatedly, and record how late each wake-up is, until cancelled.

    It reads the system's clock: uvloop's stands still during callbacks and has a resolution of a millisecond.
    """
    while True:
        due_s = time.perf_counter() + LOOP_SAMPLE_INTERVAL_S
        await asyncio.sleep(LOOP_SAMPLE_INTERVAL_S)
        lags_ms.append(1000 * max(0.0, time.perf_counter() - due_s))
