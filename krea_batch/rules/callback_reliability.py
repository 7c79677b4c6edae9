"""Whether callbacks came comes in; whether their coming can be relied upon goes out.

Newcomers: nothing is believed because a callback says so. What is decided here is how long the polls may wait: a
gateway that has called for nearly every job lately is waited for, and its jobs are looked at late; where calls stay
out, polls go as if there were none.
"""

from __future__ import annotations

from collections import deque

RECENT_JOBS = 20  # chosen: the latest ends; a gateway that falls silent is noticed within so many
MIN_JOBS = 5  # chosen: so many calls in a row are no accident
MAX_MISSED_SHARE = 0.1  # chosen: of the latest ends; for who calls less often, waiting costs more than polls
CALLBACK_GRACE_S = 2.0  # chosen: a call may come so long after the end that a poll has seen


class CallbackReliability:
    """How well the gateway keeps its word to call."""

    __slots__ = ("_delivered",)

    def __init__(self) -> None:
        self._delivered: deque[bool] = deque(maxlen=RECENT_JOBS)

    def record_delivered(self) -> None:
        """A job ended, and the gateway called."""
        self._delivered.append(True)

    def record_missed(self) -> None:
        """A job ended, and no call came."""
        self._delivered.append(False)

    @property
    def reliable(self) -> bool:
        """Whether calls can be relied upon."""
        return len(self._delivered) >= MIN_JOBS and self._delivered.count(False) <= MAX_MISSED_SHARE * len(
            self._delivered
        )
