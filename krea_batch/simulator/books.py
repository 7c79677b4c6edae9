"""What the gateway took, charged and answered, for the judge who asks; and each accepted job.

Newcomers: a job has no task and no timer. Its end is drawn when it is accepted, and its status is worked out when
somebody asks.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, deque
from random import Random
from typing import Any

import msgspec

from krea_batch.simulator.faults import Dice
from krea_batch.simulator.latency import Latency

MODEL_ID = "krea-2-large-text-to-image"


class SimulatedJob:
    """An accepted POST. Instants are seconds since 1970."""

    __slots__ = ("body", "done_at", "end", "last_poll_at", "outputs", "request_id", "start_at", "submitted_at")

    def __init__(self, request_id: str, body: dict[str, Any], submitted_at: float) -> None:
        self.request_id = request_id
        self.body = body
        self.submitted_at = submitted_at
        self.start_at = submitted_at
        self.done_at = submitted_at
        self.end = "COMPLETED"
        self.outputs = 1
        self.last_poll_at = -math.inf

    def status(self, now: float) -> str:
        if now >= self.done_at:
            return self.end
        return "PROCESSING" if now >= self.start_at else "QUEUED"


class Post(msgspec.Struct):
    """One POST received. `delivered` is False where its answer was made never to arrive."""

    at_s: float
    status: int
    body: Any
    request_id: str | None
    charged: bool
    refunded: bool
    delivered: bool


class Books:
    """Everything that is counted."""

    def __init__(self, balance: int | None) -> None:
        self.jobs: dict[str, SimulatedJob] = {}
        self.posts: list[Post] = []
        self.post_of: dict[str, Post] = {}
        self.balance = balance
        self.seen: Counter[str] = Counter()  # accepted POSTs of each body
        self.counts: Counter[str] = Counter()
        self.refused: Counter[int] = Counter()
        self.least_gap_s = math.inf
        self.most_in_a_second = 0
        self._last_second: deque[float] = deque()

    def post(self, post: Post) -> Post:
        """Note a POST, whatever became of it."""
        self.posts.append(post)
        if post.request_id is None:
            self.refused[post.status] += 1
        else:
            self.counts["accepted"] += 1
            self.counts["charged"] += post.charged
            self.post_of[post.request_id] = post
        window = self._last_second
        window.append(post.at_s)
        while post.at_s - window[0] >= 1.0:
            window.popleft()
        self.most_in_a_second = max(self.most_in_a_second, len(window))
        return post

    def polled(self, job: SimulatedJob, now: float) -> None:
        self.least_gap_s = min(self.least_gap_s, now - job.last_poll_at)
        job.last_poll_at = now

    def settle(self, job: SimulatedJob) -> None:
        """Give back the charge of a job that has come to ERROR."""
        post = self.post_of.get(job.request_id)
        if post and job.end == "ERROR" and not post.refunded:
            post.refunded, post.charged = True, False
            self.counts["charged"] -= 1
            self.counts["refunded"] += 1
            if self.balance is not None:
                self.balance += 1

    def totals(self) -> dict[str, Any]:
        names = ("accepted", "charged", "refunded", "polls", "downloads", "bytes", "cdn_with_key", "webhooks")
        return {name: self.counts[name] for name in names} | {
            "posts": len(self.posts),
            "refused": {str(status): count for status, count in self.refused.items()},
            "polls_429": self.counts["polls_429"],
            "least_poll_gap_s": None if math.isinf(self.least_gap_s) else self.least_gap_s,
            "most_posts_in_a_second": self.most_in_a_second,
            "balance": self.balance,
        }


class Factory:
    """Decides how long an accepted job waits and works, and how it ends."""

    def __init__(self, latency: str, time_scale: float, workers: int, outputs: int, dice: Dice) -> None:
        self.latency = Latency(latency)
        self.time_scale = time_scale
        self.outputs = outputs
        self.dice = dice
        self._free_at = [0.0] * workers  # a heap: when each worker is free again

    def take(self, job: SimulatedJob, earlier: int, order: int) -> None:
        """Draw the job's times and end. `earlier` counts accepted POSTs of the same body before it."""
        random = Random(f"{self.dice.seed} {order}")
        works_s = self.latency.draw(random) / self.time_scale
        job.start_at = job.submitted_at + 0.1 * works_s
        if self._free_at:
            job.start_at = max(job.start_at, self._free_at[0])
            heapq.heapreplace(self._free_at, job.start_at + 0.9 * works_s)
        job.done_at = job.start_at + 0.9 * works_s
        job.outputs = self.outputs
        if self.dice.strikes("job-failed", order):
            job.end = "FAILED"
        elif self.dice.strikes("job-error", order) or (
            earlier == 0 and self.dice.strikes("job-first-error", order)
        ):
            job.end = "ERROR"


class Remembered(msgspec.Struct):
    """A line of the file that keeps accepted jobs over restarts."""

    request_id: str
    body: dict[str, Any]
    submitted_at: float
    start_at: float
    done_at: float
    end: str
    outputs: int

    @classmethod
    def of(cls, job: SimulatedJob) -> Remembered:
        return cls(*(getattr(job, name) for name in cls.__struct_fields__))

    def job(self) -> SimulatedJob:
        job = SimulatedJob(self.request_id, self.body, self.submitted_at)
        for name in ("start_at", "done_at", "end", "outputs"):
            setattr(job, name, getattr(self, name))
        return job
