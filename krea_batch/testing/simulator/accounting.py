"""Count submits, polls and downloads, and keep a ledger that tests compare with the engine's. Pure.

`charged` is the current value. A job that ends in ERROR is refunded (API document: not charged): `charged` becomes
False and `refunded` becomes True, even if the job was never polled. So accepted = charged + refunded at any time.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, deque
from typing import Any

import msgspec

from krea_batch.testing.simulator.job_planner import SimulatedJob

COUNT_NAMES = (
    "accepted", "charged", "refunded", "undelivered", "polls", "polls_429", "cdn_requests", "cdn_with_key",
    "downloads", "bytes", "webhooks", "webhooks_failed", "webhooks_refused",
)  # fmt: skip


class ReceivedPost(msgspec.Struct):
    """One POST received. `status` is 0 if the connection was cut before a response."""

    order: int
    at_s: float
    status: int
    body: Any
    request_id: str | None
    charged: bool
    refunded: bool
    delivered: bool


class Accounting:
    """All counts of one simulator. `balance` is the remaining credit, None if it is unlimited."""

    def __init__(self, balance: int | None) -> None:
        self.jobs: dict[str, SimulatedJob] = {}
        self.posts: list[ReceivedPost] = []
        self.post_of: dict[str, ReceivedPost] = {}
        self.balance = balance
        self.received: Counter[str] = Counter()  # POSTs, by hash of the body
        self.accepted: Counter[str] = Counter()  # accepted POSTs, by hash of the body
        self.counts: Counter[str] = Counter()
        self.refused: Counter[int] = Counter()
        self.min_poll_gap_s = math.inf
        self.max_polls_per_job = 0
        self.max_posts_per_second = 0
        self._last_second: deque[float] = deque()
        self._to_refund: list[tuple[float, str]] = []  # a heap of (time, request_id) of the jobs that end in ERROR

    def record_post(
        self, at_s: float, status: int, body: Any, job: SimulatedJob | None, *, delivered: bool = True
    ) -> ReceivedPost:
        """Record a POST, accepted or not; `job` is None if it was refused."""
        request_id = job.request_id if job else None
        post = ReceivedPost(len(self.posts) + 1, at_s, status, body, request_id, job is not None, False, delivered)
        self.posts.append(post)
        self._count_second(at_s)
        if job is None:
            self.refused[status] += 1
            return post
        self.counts["accepted"] += 1
        self.counts["charged"] += 1
        self.counts["undelivered"] += not delivered
        self.jobs[job.request_id] = job
        self.post_of[job.request_id] = post
        if self.balance is not None:
            self.balance -= 1
        if job.final_status == "ERROR":
            heapq.heappush(self._to_refund, (job.done_at, job.request_id))
        return post

    def _count_second(self, at_s: float) -> None:
        window = self._last_second
        window.append(at_s)
        while at_s - window[0] >= 1.0:
            window.popleft()
        self.max_posts_per_second = max(self.max_posts_per_second, len(window))

    def record_undelivered(self, post: ReceivedPost) -> None:
        """Record that the client had disconnected before the response was sent."""
        if post.delivered:
            post.delivered = False
            self.counts["undelivered"] += 1

    def record_poll(self, job: SimulatedJob, now: float) -> None:
        """Record a poll of a job, whatever its response will be."""
        job.min_poll_gap_s = min(job.min_poll_gap_s, now - job.last_poll_at)
        self.min_poll_gap_s = min(self.min_poll_gap_s, job.min_poll_gap_s)
        job.last_poll_at = now
        job.polls += 1
        self.max_polls_per_job = max(self.max_polls_per_job, job.polls)

    def settle(self, now: float) -> None:
        """Refund the jobs that have ended in ERROR by `now`."""
        while self._to_refund and self._to_refund[0][0] <= now:
            post = self.post_of[heapq.heappop(self._to_refund)[1]]
            post.charged, post.refunded = False, True
            self.counts["charged"] -= 1
            self.counts["refunded"] += 1
            if self.balance is not None:
                self.balance += 1

    def totals(self, now: float) -> dict[str, Any]:
        """Return the counts. The cost does not depend on the number of jobs."""
        self.settle(now)
        return (
            {"posts": len(self.posts)}
            | {name: self.counts[name] for name in COUNT_NAMES}
            | {
                "refused": {str(status): count for status, count in sorted(self.refused.items())},
                "min_poll_gap_s": _finite_or_none(self.min_poll_gap_s),
                "max_polls_per_job": self.max_polls_per_job,
                "max_posts_per_second": self.max_posts_per_second,
                "balance": self.balance,
            }
        )

    def ledger(self, now: float) -> dict[str, Any]:
        """Return the totals and every POST."""
        return {"totals": self.totals(now), "posts": [self._ledger_entry(post, now) for post in self.posts]}

    def _ledger_entry(self, post: ReceivedPost, now: float) -> dict[str, Any]:
        entry = {name: getattr(post, name) for name in ReceivedPost.__struct_fields__}
        job = self.jobs.get(post.request_id or "")
        entry["job"] = job and {
            "status": job.status(now),
            "polls": job.polls,
            "min_poll_gap_s": _finite_or_none(job.min_poll_gap_s),
            "download_requests": sum(job.download_requests),
        }
        return entry


def _finite_or_none(gap_s: float) -> float | None:
    return gap_s if math.isfinite(gap_s) else None
