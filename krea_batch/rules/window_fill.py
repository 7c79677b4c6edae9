"""Fill a window: send the submits that a limiter accepts in a window as soon as it has room, rather than evenly.

With an even rate, what a window still allows after a pause is lost, which is most of a window of a minute. A limiter
with a window refuses for a long time, and after about the same number of submits in each window. `WindowFill` sends
at most this number in any window of the length that was found. A Retry-After in whole seconds shows the length only
to a second, so the length is bisected; trying a window that is too short costs one 429. Times are monotonic.

A refusal in a window that should have had room has one of two causes. If few submits were accepted shortly before it,
or if a shorter length was being tried, the window is longer. Otherwise, the number of submits is lower, because
refused submits count as well or because the limit has changed.
"""

from __future__ import annotations

import math
from enum import Enum, auto

from krea_batch.rules.send_window import MARGIN_S
from krea_batch.rules.submit_log import MAX_MEMORY_S, SubmitLog

MIN_WINDOW_S = 2.0  # chosen: Retry-After has whole seconds, so a shorter pause may be that of a bucket
SATURATED_SHARE = 0.3  # chosen: if this share of a cycle was refused, it began and ended with a full window
MIN_COUNT = 4  # chosen: with fewer submits in a window, an even rate is as good
PRECISION = 0.01  # chosen: a window that is known to 1 % is known well enough
MAX_LONGER = 1.1  # chosen: factor by which a window that is known and was filled may become longer
FULL_SHARE = 0.9  # chosen: if this share was accepted between two refusals, the window was filled
STARTED_SUBMITS = 2  # chosen: if more submits were accepted shortly before it, a refusal shows no longer window
STARTED_SHARE = 1 / 8  # chosen: share of the number of submits, if that is more
MIN_SHARE = 0.5  # chosen: if a smaller share of the number is accepted, the limiter may have no window
MAX_FAILURES = 3  # chosen: after this many refusals in windows that were not filled, an even rate is better
PACE = 16.0  # chosen: a window is filled in a sixteenth of its length
MIN_PACE = 2.0  # chosen: a window is filled in half of its length at the latest
PENDING_SHARE = 0.04  # chosen: share of a window; this many submits may be refused together, and may count as well
PROBE_DELAY_S = 45.0  # chosen: a limit that was raised is followed within a minute or two windows
CONTINUOUS_WINDOWS = 2  # chosen: after as many submits without a break as two windows allow, none is to be expected
PROBE_SUBMITS = 50  # chosen: at most one 429 for this many submits


class _Cause(Enum):
    """Why the latest submit was refused."""

    LONGER = auto()  # the window is longer than assumed
    LOWER = auto()  # the number of submits is lower, and unknown until one is accepted
    NO_WINDOW = auto()  # the limiter may have no window; a short pause then shows it
    KNOWN = auto()


class WindowFill:
    """At most `limit` submits in any `window_s` seconds. `count` is the number without the current probe.

    The first window had `count` submits. It is longer than `refused_span_s`, and not longer than `accepted_span_s`.
    """

    def __init__(
        self, log: SubmitLog, count: int, refused_span_s: float, accepted_span_s: float, now_s: float
    ) -> None:
        self.count = self.limit = self._full_count = count
        self._log = log
        self._refused_span_s = min(refused_span_s, accepted_span_s)
        self._accepted_span_s = accepted_span_s
        self._known_span_s = math.inf  # that, once a window was filled again
        self._resumed_s = now_s
        self._refused_s = -math.inf
        self._cause = _Cause.LONGER
        self._probe_step = 0
        self._next_probe_s = now_s + PROBE_DELAY_S
        self._since_probe = self._since_refusal = 0  # accepted submits
        self._since_break = 0  # accepted submits since one after which no answer was awaited
        self._failures = 0

    @property
    def window_s(self) -> float:
        """The length of the window to try next."""
        low_s, high_s = self._refused_span_s, self._accepted_span_s
        return high_s if high_s - low_s <= PRECISION * high_s else (low_s + high_s) / 2

    @property
    def per_s(self) -> float:
        """The rate over a whole window."""
        return self.limit / self.window_s

    @property
    def is_known(self) -> bool:
        """Whether a window was filled again after the first one."""
        return self._known_span_s < math.inf

    @property
    def is_probing(self) -> bool:
        """Whether a known window was filled, and more is tried: a refusal is to be expected."""
        return self.is_known and self._probe_step > 0

    def pace_per_s(self, answer_s: float) -> float:
        """Return the rate of submits that follow each other, if answers take `answer_s`."""
        per_s = self.limit / self.window_s
        pace_per_s = PENDING_SHARE * self.count / answer_s if answer_s > 0 else math.inf
        return min(PACE * per_s, max(MIN_PACE * per_s, pace_per_s))

    def free_s(self, unsent: int, answer_s: float) -> float:
        """Return when there is room for a submit, besides `unsent` others that are about to be sent.

        A submit that may well be refused is sent alone: the next one waits for its answer, which takes `answer_s`.
        """
        unanswered_s = self._log.unanswered_s
        if len(unanswered_s) + unsent >= self.limit:
            return (unanswered_s[0] if unanswered_s else self._resumed_s) + self.window_s
        free_s = self._log.before(math.inf, self.limit - len(unanswered_s) - unsent) + self.window_s + MARGIN_S
        return max(free_s, unanswered_s[0] + answer_s) if unanswered_s and self._is_trial(unanswered_s[0]) else free_s

    def _is_trial(self, sent_s: float) -> bool:
        return self._cause is _Cause.NO_WINDOW or self._is_early(sent_s)

    def _is_early(self, sent_s: float) -> bool:
        """Whether the window may be longer than the time after which this submit was sent."""
        span_s = sent_s - self._log.before(sent_s, self.limit)
        return self._probe_step <= 1 and span_s < (1.0 - PRECISION) * self._accepted_span_s

    # ---- what happened -----------------------------------------------------------------------------------

    def on_accepted(self, sent_s: float) -> bool:
        """Record an accepted submit, which is in the log. Return False if the limiter has no window after all."""
        if sent_s >= self._resumed_s:
            if self._cause is _Cause.NO_WINDOW and not is_window(sent_s - self._refused_s, self.window_s):
                return False
            if self._cause is _Cause.LOWER:
                self._set_count(max(self._log.count(sent_s - self.window_s), self.count // 2))
            self._cause = _Cause.KNOWN
        self._since_probe += 1
        self._since_refusal += 1
        span_s = sent_s - self._log.before(sent_s, self.limit)
        # Fewer submits than a window allows also fit into a shorter time, so they do not show its length.
        if self.limit >= self._full_count and self._refused_span_s < span_s < self._accepted_span_s:
            self._accepted_span_s = span_s
        if self.is_known or self._since_probe > self.count:
            self._known_span_s = self._accepted_span_s
        is_full = self._log.before(math.inf, self.limit) > sent_s - self.window_s
        self._since_break = self._since_break + 1 if self._log.unanswered_s else 0
        # In a sliding window, submits may follow each other without a break.
        if is_full and (not self._since_break or self._since_break > CONTINUOUS_WINDOWS * self.limit):
            self._probe(sent_s)
        return True

    def _probe(self, now_s: float) -> None:
        """Raise the limit, since a window was filled, if it is time."""
        if self._probe_step or (now_s >= self._next_probe_s and self._since_probe >= PROBE_SUBMITS):
            self._probe_step += 1
            self._since_probe = 0
            self._next_probe_s = now_s + max(PROBE_DELAY_S, self.window_s)
            self.limit += min(2 ** (self._probe_step - 1), max(1, round(PENDING_SHARE * self.limit)))

    def resume(self, now_s: float, refused_s: float) -> bool:
        """Decide what a refusal shows, at the end of the pause after it. Return False if it shows no window."""
        log, oldest_s = self._log, self._log.before(refused_s, self.count)
        if log.count(self._resumed_s) or refused_s > self._resumed_s + PRECISION * self.window_s:
            self._cause = self._find_cause(refused_s)
            self._refused_s = refused_s
        # Else the last pause was too short, and the cause is the same.
        if self._cause is _Cause.NO_WINDOW and not self.is_known:
            return False
        if self._cause is _Cause.LONGER and not self._lengthen(refused_s - oldest_s, now_s - oldest_s):
            self._cause = _Cause.LOWER
        self._resumed_s = now_s
        return self._failures < MAX_FAILURES and self.window_s <= MAX_MEMORY_S

    def _find_cause(self, refused_s: float) -> _Cause:
        """Find the cause of a refusal after accepted submits, and lower the number if it is that."""
        if self.is_known and self._is_early(refused_s):
            self._since_refusal = 0
            self._set_count(self.count)
            return _Cause.LONGER
        failures = 0 if self._since_refusal >= FULL_SHARE * self.count else self._failures + 1
        self._since_refusal = 0
        # A window that was filled again is hardly longer than `_accepted_span_s`: all these submits may be in it.
        span_s = self._accepted_span_s if self.is_known else self.window_s
        in_window = self._log.count(refused_s - span_s, refused_s)
        latest = self._log.count(refused_s - self.window_s / 2, refused_s)
        is_filled = in_window >= MIN_SHARE * self.count
        if is_filled and latest <= max(STARTED_SUBMITS, STARTED_SHARE * self.count):
            self._set_count(self.count)
            if self.is_known:
                self._failures = failures
            return _Cause.LONGER
        self._failures = failures
        if self._probe_step:
            # A window is longer than `_refused_span_s`, so what was accepted within that is in one window.
            self._set_count(max(self.count, self._log.count(refused_s - self._refused_span_s, refused_s)))
            self._full_count = self.count  # One more was refused.
            return _Cause.KNOWN if is_filled else _Cause.NO_WINDOW
        if not is_filled:
            self._set_count(max(in_window, self.count // 2))
            return _Cause.NO_WINDOW
        self._set_count(min(self._log.count(refused_s - self.window_s, refused_s), self.count))
        return _Cause.KNOWN

    def _set_count(self, count: int) -> None:
        self.count = self.limit = max(1, count)
        self._probe_step = 0

    def _lengthen(self, refused_span_s: float, accepted_span_s: float) -> bool:
        """Make the window longer than the span at a refusal, and not longer than the one at the end of the pause.

        The spans are from the submit that was `count` submits earlier. Return False if the length is known.
        """
        if refused_span_s > MAX_LONGER * self._known_span_s:
            return False
        self._refused_span_s = max(self._refused_span_s, refused_span_s)
        if self._accepted_span_s <= self._refused_span_s:
            self._accepted_span_s = accepted_span_s
        return True


def is_window(pause_s: float, window_s: float) -> bool:
    """Return whether a pause is long enough for a window of this length."""
    return pause_s > max(MIN_WINDOW_S, SATURATED_SHARE * window_s)
