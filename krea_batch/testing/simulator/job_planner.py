"""An accepted body and the latencies come in; when and how its job ends goes out. Pure.

Newcomers: a job has no task and no timer. Its end is drawn when it is accepted, and its status is worked out when
somebody asks.
"""

from __future__ import annotations

import heapq
import math
from random import Random
from typing import Any

from krea_batch.testing.simulator.faults import Dice
from krea_batch.testing.simulator.latency import Latency

MODEL_ID = "krea-2-large-text-to-image"
QUEUED_SHARE = 0.1  # chosen: how much of its latency a job that waits for nobody is QUEUED rather than PROCESSING


class SimulatedJob:
    """An accepted POST. Instants are seconds since 1970; `copy` counts accepted POSTs of the same body, from 1."""

    __slots__ = (
        "body",
        "copy",
        "done_at",
        "end",
        "fetches",
        "last_poll_at",
        "least_gap_s",
        "mark",
        "outputs",
        "polls",
        "request_id",
        "start_at",
        "submitted_at",
    )  # fmt: skip

    def __init__(self, request_id: str, body: dict[str, Any], submitted_at: float, mark: str, copy: int) -> None:
        self.request_id = request_id
        self.body = body
        self.mark = mark
        self.copy = copy
        self.submitted_at = submitted_at
        self.start_at = submitted_at
        self.done_at = submitted_at
        self.end = "COMPLETED"
        self.outputs = 1
        self.polls = 0
        self.last_poll_at = -math.inf
        self.least_gap_s = math.inf
        self.fetches = [0, 0, 0, 0]

    @property
    def about(self) -> str:
        """What chance knows this job by: the body and which accepted POST of it this is."""
        return f"{self.mark}/{self.copy}"

    def status(self, now: float) -> str:
        if now >= self.done_at:
            return self.end
        return "PROCESSING" if now >= self.start_at else "QUEUED"


class Factory:
    """Decides how long an accepted job waits and works, and how it ends."""

    def __init__(self, latency: str, time_scale: float, workers: int, outputs: int) -> None:
        self.latency = Latency(latency)
        self.time_scale = time_scale
        self.outputs = outputs
        self._free_at = [0.0] * workers  # a heap: when each worker is free again

    def take(self, job: SimulatedJob, dice: Dice) -> None:
        """Draw the job's times and end. Jobs are taken in the order in which they were accepted."""
        if dice.strikes("submit-done", job.mark, job.copy):
            job.outputs = self.outputs
            return
        latency_s = self.latency.draw(Random(f"{dice.seed} {job.about}")) / self.time_scale
        works_s = (1 - QUEUED_SHARE) * latency_s
        job.start_at = job.submitted_at + latency_s - works_s
        if self._free_at:
            job.start_at = max(job.start_at, self._free_at[0])
            heapq.heapreplace(self._free_at, job.start_at + works_s)
        job.done_at = job.start_at + works_s
        job.outputs = self.outputs
        job.end = self._end(job, dice)

    def _end(self, job: SimulatedJob, dice: Dice) -> str:
        if dice.strikes("job-failed", job.mark, job.copy):
            return "FAILED"
        if job.copy == 1 and dice.strikes("job-first-error", job.mark, job.copy):
            return "ERROR"
        return "ERROR" if dice.strikes("job-error", job.mark, job.copy) else "COMPLETED"
