"""What happens in a run, as values: progress displays, logs and metrics are made of these.

Newcomers: an event is told after what it speaks of is on disk. A listener is called on the event loop, must
not block, and must not raise.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from krea_batch.jobs import Outcome, State


class Moved(Struct, frozen=True):
    """A job went from one state to another. `request_id` is None before the acceptance."""

    job_id: str
    old: State
    new: State
    request_id: str | None = None


class Ended(Struct, frozen=True):
    """A job ended; its row is in the ledger."""

    outcome: Outcome


class Held(Struct, frozen=True):
    """Submits wait `wait_s` seconds, because of `reason`; `per_s` is the rate at which they then go on."""

    wait_s: float
    per_s: float
    reason: str


class Troubled(Struct, frozen=True):
    """Something failed and will be tried again. `where` is submit, poll or download."""

    job_id: str
    where: str
    reason: str


class Stopping(Struct, frozen=True):
    """The run takes no more submits; what is in flight is brought home. `reason` is a sentence."""

    reason: str


class Missed(Struct, frozen=True):
    """A reader of events was so slow that `count` of them, the oldest unread, were dropped before this one."""

    count: int


Event = Moved | Ended | Held | Troubled | Stopping | Missed
Listener = Callable[[Event], None]
