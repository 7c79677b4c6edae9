"""TODO"""

from __future__ import annotations

import msgspec

from krea_batch.jobs import State


class Stats(msgspec.Struct):
    """Counters of one run, for whoever looks. All are totals since its start, but for the last five."""

    submits: int = 0  # POSTs that left
    accepted: int = 0
    refused_429: int = 0
    polls: int = 0
    callbacks: int = 0  # that named a job of this folder
    downloads: int = 0  # pictures stored
    downloaded_bytes: int = 0
    succeeded: int = 0
    failed: int = 0
    errored: int = 0
    rejected: int = 0
    ambiguous: int = 0
    timed_out: int = 0
    cancelled: int = 0
    skipped: int = 0  # jobs that an earlier run had ended
    taken: int = 0  # jobs read from the input
    waiting: int = 0  # jobs of callers that wait for their turn
    in_flight: int = 0
    downloading: int = 0  # of those: finished, and not stored yet
    rate_per_s: float = 0.0  # at which submits may go now
    held_until_s: float = 0.0  # the loop's clock; submits wait until then

    def count_end(self, state: State) -> None:
        """A job came to an end in `state`."""
        setattr(self, state.value, getattr(self, state.value) + 1)

    @property
    def ended(self) -> int:
        """Jobs that this run brought to an end."""
        return (
            self.succeeded
            + self.failed
            + self.errored
            + self.rejected
            + self.ambiguous
            + self.timed_out
            + self.cancelled
        )
