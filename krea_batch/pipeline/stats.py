"""Counters of one run."""

from __future__ import annotations

from collections import Counter

import msgspec

from krea_batch.jobs import State


class RunStats(msgspec.Struct):
    """Counters of one run.

    All are totals since the run started, except `jobs_queued`, `in_flight`, `downloading`, `rate_per_s`,
    `found_limit` and `paused_until_s`, which are current values.
    """

    submits: int = 0  # POSTs sent
    accepted: int = 0
    rate_limited: int = 0  # answers 429
    polls: int = 0
    callbacks: int = 0  # for a job of this run directory
    downloads: int = 0  # images stored
    defects: int = 0  # those of them that are not valid PNGs
    downloaded_bytes: int = 0
    ended_by_state: Counter[State] = msgspec.field(default_factory=Counter)  # jobs that this run brought to an end
    skipped: int = 0  # jobs that an earlier run ended
    jobs_read: int = 0  # from the input
    jobs_queued: int = 0  # jobs of callers that wait to be submitted
    in_flight: int = 0
    downloading: int = 0  # in flight, completed and not stored yet
    rate_per_s: float = 0.0  # current submit rate
    found_limit: str = ""  # the limit of the gateway, as far as it has refused submits: "60/s", "20 jobs in process"
    paused_until_s: float = 0.0  # the event loop's clock; submits wait until then

    @property
    def ended(self) -> int:
        """The number of jobs that this run brought to an end."""
        return self.ended_by_state.total()

    @property
    def succeeded(self) -> int:
        """The number of jobs of which this run stored every image."""
        return self.ended_by_state[State.SUCCEEDED]
