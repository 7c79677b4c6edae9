"""Decide when and how a job ends. Pure.

A job has no task and no timer. Its end is decided when it is accepted, and its status is computed from the time of
each request.
"""

from __future__ import annotations

import heapq
import math
from random import Random
from typing import Any

from krea_batch.testing.simulator.faults import FaultInjector
from krea_batch.testing.simulator.latency import LatencyDistribution

MODEL_ID = "krea-2-large-text-to-image"
QUEUED_SHARE = 0.1  # chosen: the share of its latency for which a job is QUEUED if a worker is free


class SimulatedJob:
    """An accepted POST. Times are seconds since 1970; `occurrence` counts accepted POSTs of the same body, from 1."""

    __slots__ = (
        "body",
        "body_hash",
        "done_at",
        "download_requests",
        "final_status",
        "last_poll_at",
        "min_poll_gap_s",
        "occurrence",
        "outputs",
        "polls",
        "processing_at",
        "request_id",
        "submitted_at",
    )  # fmt: skip

    def __init__(
        self, request_id: str, body: dict[str, Any], submitted_at: float, body_hash: str, occurrence: int
    ) -> None:
        self.request_id = request_id
        self.body = body
        self.body_hash = body_hash
        self.occurrence = occurrence
        self.submitted_at = submitted_at
        self.processing_at = submitted_at
        self.done_at = submitted_at
        self.final_status = "COMPLETED"
        self.outputs = 1
        self.polls = 0
        self.last_poll_at = -math.inf
        self.min_poll_gap_s = math.inf
        self.download_requests = [0, 0, 0, 0]

    @property
    def fault_key(self) -> str:
        """Return the key of this job for random decisions: the body's hash and `occurrence`."""
        return f"{self.body_hash}/{self.occurrence}"

    def status(self, now: float) -> str:
        if now >= self.done_at:
            return self.final_status
        return "PROCESSING" if now >= self.processing_at else "QUEUED"


class JobPlanner:
    """Decides how long an accepted job waits and runs, and how it ends."""

    def __init__(self, latency: str, time_scale: float, workers: int, outputs: int) -> None:
        self.latency = LatencyDistribution(latency)
        self.time_scale = time_scale
        self.outputs = outputs
        self._free_at = [0.0] * workers  # a heap: the time at which each worker is free

    def plan(self, job: SimulatedJob, fault_injector: FaultInjector) -> None:
        """Set the times and the final status of a job. Workers take jobs in the order of these calls."""
        if fault_injector.should_fail("submit-done", job.body_hash, job.occurrence):
            job.outputs = self.outputs
            return
        latency_s = self.latency.draw(Random(f"{fault_injector.seed} {job.fault_key}")) / self.time_scale
        processing_s = (1 - QUEUED_SHARE) * latency_s
        job.processing_at = job.submitted_at + latency_s - processing_s
        if self._free_at:
            job.processing_at = max(job.processing_at, self._free_at[0])
            heapq.heapreplace(self._free_at, job.processing_at + processing_s)
        job.done_at = job.processing_at + processing_s
        job.outputs = self.outputs
        job.final_status = self._final_status(job, fault_injector)

    def _final_status(self, job: SimulatedJob, fault_injector: FaultInjector) -> str:
        if fault_injector.should_fail("job-failed", job.body_hash, job.occurrence):
            return "FAILED"
        if job.occurrence == 1 and fault_injector.should_fail("job-first-error", job.body_hash, job.occurrence):
            return "ERROR"
        return "ERROR" if fault_injector.should_fail("job-error", job.body_hash, job.occurrence) else "COMPLETED"
