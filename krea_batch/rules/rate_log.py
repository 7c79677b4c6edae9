"""One rate for several runs: each has a `RateController`, and all of them apply the same events in the same order.

The events are what the runs have seen and decided: answers, refusals, pauses, and the slots that they have taken. A
slot is an instant at which one request may be sent. `RateLog` applies the events of other runs, adds those of its own
run, and takes slots. Events travel as bytes. A run that joins does not know what went before, so all runs start again
then, with the limit that was found. Instants are seconds of a clock that all runs share.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec

from krea_batch.rules.found_limit import FoundLimit
from krea_batch.rules.rate_control import RateController
from krea_batch.rules.send_window import BURST_S

MIN_GAP_S = 1e-6  # chosen: slots are not equal, since later events name them by their instants
HORIZON_S = 0.5  # chosen: slots are taken at most so long before their time, so that a refusal stops few of them


class Restart(msgspec.Struct, frozen=True, tag=0, array_like=True):
    """All runs start again with this limit; `sent_s` are the latest slots before that."""

    found: FoundLimit | None
    sent_s: list[float]


class Tick(msgspec.Struct, frozen=True, tag=1, array_like=True):
    """Time has passed."""

    now_s: float


class Taken(msgspec.Struct, frozen=True, tag=2, array_like=True):
    """A slot for a submit, or for another request that counts against the same limit."""

    slot_s: float
    is_submit: bool


class Answered(msgspec.Struct, frozen=True, tag=3, array_like=True):
    """An answer other than 429 to the submit of a slot."""

    slot_s: float
    now_s: float
    accepted: bool


class RateLimited(msgspec.Struct, frozen=True, tag=4, array_like=True):
    """A 429."""

    slot_s: float
    now_s: float
    retry_after_s: float | None


class Unused(msgspec.Struct, frozen=True, tag=5, array_like=True):
    """Nothing was sent in a slot."""

    slot_s: float


class Late(msgspec.Struct, frozen=True, tag=6, array_like=True):
    """A request was sent later than its slot."""

    slot_s: float
    late_s: float


class Paused(msgspec.Struct, frozen=True, tag=7, array_like=True):
    """All submits wait for another reason than a limit."""

    now_s: float
    wait_s: float


class JobsResumed(msgspec.Struct, frozen=True, tag=8, array_like=True):
    """Jobs are in process that were submitted before the last restart."""

    count: int


class JobsEnded(msgspec.Struct, frozen=True, tag=9, array_like=True):
    """Jobs are not in process any more."""

    count: int


Event = Restart | Tick | Taken | Answered | RateLimited | Unused | Late | Paused | JobsResumed | JobsEnded
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Event]).decode


def recent_slots(rows: Iterable[bytes], since_s: float) -> list[float]:
    """Return the slots after `since_s` that runs have taken, in order, from rows of events.

    A slot whose request was sent late counts as a later one.
    """
    slots_s: list[float] = []
    for data in rows:
        for event in _decode(data):
            match event:
                case Taken(slot_s):
                    slots_s.append(slot_s)
                case Late(slot_s, late_s) if slot_s in slots_s:
                    slots_s[slots_s.index(slot_s)] += late_s
                case Restart(_, sent_s):
                    slots_s = list(sent_s)
                case _:
                    pass
    return sorted(slot_s for slot_s in slots_s if slot_s > since_s)


class RateView(msgspec.Struct, frozen=True):
    """What a run sees of the shared rate.

    `paused_until_s` is in the past while nothing is paused, also for a run whose clock was compared with the shared
    one some milliseconds ago.
    """

    per_s: float
    pace_per_s: float
    found: FoundLimit | None
    paused_until_s: float
    jobs_in_process: int


class RateLog:
    """The shared rate, as one run knows it. `ceiling_per_s` and `discover` are those of `RateController`."""

    def __init__(self, ceiling_per_s: float, *, discover: bool) -> None:
        self._ceiling_per_s = ceiling_per_s
        self._discover = discover
        self._controller = self._new_controller()
        self._new: list[Event] = []
        self._restarts = 0
        self._even_s = -math.inf  # when the next slot is due at an even rate
        self._latest_slot_s = -math.inf

    @property
    def restarts(self) -> int:
        """How often all runs have started again, as far as this run has applied events."""
        return self._restarts

    def apply(self, data: bytes) -> None:
        """Apply the events that another run has added."""
        for event in _decode(data):
            self._apply(event)

    def add(self, event: Event) -> None:
        """Apply an event of this run, and add it to the ones that the others will apply."""
        self._apply(event)
        self._new.append(event)

    def take_slots(self, now_s: float, submits: int, others: int) -> tuple[list[float], list[float]]:
        """Take slots for up to so many submits and other requests. Return their instants, in order."""
        self.add(Tick(now_s))
        taken = [self._take(now_s, is_submit=True) for _ in range(submits)]
        taken_others = [self._take(now_s, is_submit=False) for _ in range(others)]
        return [slot_s for slot_s in taken if slot_s is not None], [
            slot_s for slot_s in taken_others if slot_s is not None
        ]

    def take_events(self) -> bytes:
        """Return the events of this run that the others do not have yet."""
        events, self._new = self._new, []
        return _encode(events)

    def view(self, now_s: float) -> RateView:
        """Return what there is to see at this instant."""
        controller = self._controller
        paused_s = controller.paused_s(now_s)
        return RateView(
            controller.per_s,
            controller.pace_per_s,
            controller.found,
            now_s + paused_s if paused_s > 0 else -math.inf,
            controller.jobs_in_process,
        )

    def _new_controller(self) -> RateController:
        return RateController(self._ceiling_per_s, discover=self._discover, is_shared=True)

    def _take(self, now_s: float, *, is_submit: bool) -> float | None:
        slot_s = max(now_s + self._controller.wait_s(now_s), self._even_s, self._latest_slot_s + MIN_GAP_S)
        if slot_s > now_s + HORIZON_S or (is_submit and not self._controller.has_room(now_s)):
            return None
        self.add(Taken(slot_s, is_submit))
        return slot_s

    def _apply(self, event: Event) -> None:  # noqa: C901 - one case for each event
        controller = self._controller
        match event:
            case Restart(found, sent_s):
                self._restarts += 1
                self._controller = self._new_controller()
                if found:
                    self._controller.resume(found)
                self._controller.remember_sent(sent_s)
            case Tick(now_s):
                if not controller.has_room(now_s):  # This ends a pause that is over, as it did in the other run.
                    controller.on_full(now_s)
            case Taken(slot_s, is_submit):
                self._latest_slot_s = max(self._latest_slot_s, slot_s)
                self._even_s = max(self._even_s, slot_s - BURST_S) + 1.0 / controller.pace_per_s
                if is_submit:
                    controller.on_sent(slot_s)
                else:
                    controller.on_other_request(slot_s)
            case Answered(slot_s, now_s, accepted):
                controller.on_response(slot_s, now_s, accepted=accepted)
            case RateLimited(slot_s, now_s, retry_after_s):
                controller.on_rate_limited(slot_s, now_s, retry_after_s)
            case Unused(slot_s):
                controller.on_not_sent(slot_s)
            case Late(slot_s, late_s):
                controller.on_late(slot_s, late_s)
            case Paused(now_s, wait_s):
                controller.pause(now_s, wait_s)
            case JobsResumed(count):
                for _ in range(count):
                    controller.on_job_resumed()
            case JobsEnded(count):  # the last one
                for _ in range(count):
                    controller.on_job_ended()
