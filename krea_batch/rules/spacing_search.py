"""Find the time between two submits that a limiter without any burst requires.

Such a limiter (GCRA without tolerance, nginx's `limit_req` without `burst`) refuses a submit that arrives too soon
after the latest accepted one, whatever was sent before. So each submit is sent a little sooner than the one before
it, until one is refused. This is a sweep, and finds the limit with one pause, where steps of a rate need several.

Times are monotonic. A submit arrives when it is sent, plus the delay that its answer shows.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise

from krea_batch.rules.bucket_fit import SLACK_S
from krea_batch.rules.window_fill import PROBE_DELAY_S

BURST_RATIO = 1.1  # chosen: a limiter that accepts a submit after so much less time than it refused one has a burst
BISECTED_RATIO = 4.0  # chosen: a sweep through a wider range takes long, so it starts in the middle
SWEEP_SHARE = 0.02  # chosen: by this share, each submit of a sweep is sent sooner than the one before it
STEPS_PER_ANSWER = 5.0  # chosen: until the answer to a submit arrives, a sweep goes on by a tenth
USED_RATIO = 1.5  # chosen: a submit that is later by this factor shows nothing, so a sweep does not go on
MARGIN_SHARE = 0.005  # measured: submits 17 ms apart arrive up to 0.1 ms closer together than their answers show
WIDER_SHARE = 0.02  # chosen: if submits are refused soon, they are spaced wider by this share, then by twice that
FEW_SUBMITS = 100  # chosen: a submit that is refused after fewer than this since the last pause is refused soon
MAX_FAILURES = 5  # chosen: after as many of them, with spacing wider by a third, there may be a burst
PROBE_SUBMITS = 20  # chosen: a step of a probe has so many submits, because single ones are accepted by chance
PROBE_STEP_S = 1.0  # chosen: if submits are further apart, delays are a small part of the time between them
PROBE_PAUSES = 75.0  # chosen: a probe costs a pause, so a seventieth of the time
UNCHANGED_STEPS = 3  # chosen: a probe that is refused until this step, by 14 %, shows no other limit
KEPT_SUBMITS = 512  # chosen: twice as many as may be pending


class SpacingSearch:
    """`spacing_s` is the time from one submit to the next one, at least `min_s`. The search starts with a sweep.

    `sent_s` has the send times of the accepted submits before it, the latest one last.
    """

    def __init__(self, sent_s: Sequence[float], spacing_s: float, now_s: float, min_s: float) -> None:
        self._min_s = min_s
        self._sent_s = list(sent_s[-KEPT_SUBMITS:])  # of the latest submits
        self._arrived_s = list(self._sent_s)  # of the same ones
        self._is_known = False  # whether a sweep has ended
        self._failures = 0  # submits that were refused soon, one after the other
        self._good_s = 0.0  # the latest spacing at which no submit was refused soon; 0.0 if there is none
        self._failed_s = 0.0  # the latest one at which one was
        self._continue(now_s, spacing_s, is_sweep=True)

    def _continue(self, now_s: float, spacing_s: float, *, is_sweep: bool = False) -> None:
        """Continue at a spacing after a pause: with a sweep, or else with a probe after a while."""
        self.spacing_s = self._held_s = max(self._min_s, spacing_s)
        self._is_sweep = is_sweep
        self._resumed_s = self._stepped_s = now_s
        self._sent = self._steps = 0

    # ---- what happened -----------------------------------------------------------------------------------

    def on_sent(self, now_s: float, answer_s: float) -> None:
        """Record a submit, and take the next step of a sweep or a probe. Answers take `answer_s`."""
        is_used = self._sent > 0 and now_s - self._sent_s[-1] <= USED_RATIO * self.spacing_s
        self._sent_s.append(now_s)
        self._arrived_s.append(now_s)
        del self._sent_s[:-KEPT_SUBMITS], self._arrived_s[:-KEPT_SUBMITS]
        self._sent += 1
        if not is_used:
            return
        step_s = now_s - self._stepped_s
        if self._is_sweep:
            if step_s >= answer_s / STEPS_PER_ANSWER:
                self._take_step(now_s, SWEEP_SHARE)
        elif now_s >= self._probe_s:
            probe_step_s = min(PROBE_STEP_S, PROBE_SUBMITS * self.spacing_s)
            if step_s >= max(probe_step_s, self.spacing_s + answer_s):
                self._take_step(now_s, SWEEP_SHARE * 2.0**self._steps)

    def _take_step(self, now_s: float, share: float) -> None:
        self._stepped_s = now_s
        self._steps += 1
        self._previous_s, self.spacing_s = self.spacing_s, max(self._min_s, self.spacing_s / (1.0 + share))

    def on_answered(self, sent_s: float, delay_s: float) -> None:
        """Record an answer to a submit, which was delayed by `delay_s` on its way."""
        index = bisect_left(self._sent_s, sent_s)
        if index < len(self._sent_s) and self._sent_s[index] == sent_s:
            self._arrived_s[index] = sent_s + delay_s

    # ---- the end of a pause ------------------------------------------------------------------------------

    def resume(self, now_s: float, refused_sent_s: float) -> bool:
        """Decide on the spacing at the end of a pause. Return False if the limiter seems to have a burst.

        The first refused request was sent at `refused_sent_s`.
        """
        first, refused = bisect_left(self._sent_s, self._resumed_s), bisect_left(self._sent_s, refused_sent_s)
        if not refused:  # The first submit after an earlier run: others have just used the limit.
            self._continue(now_s, self._held_s, is_sweep=True)
            return True
        is_submit = refused < len(self._sent_s)  # else it is another request
        refused_at_s = self._arrived_s[refused] if is_submit else refused_sent_s
        arrived_s = [*self._arrived_s[max(0, first - 1) : refused], refused_at_s]
        spacings_s = _spacings(arrived_s)
        refused_s, pause_s = spacings_s[-1], now_s - refused_sent_s
        if refused - first < 2 and self._good_s <= self._held_s:
            self._resume_early(now_s, refused_s, refused_s + pause_s)
            return True
        if not self._is_sweep and self._steps > UNCHANGED_STEPS:
            self._good_s = self._failed_s = 0.0
            self._continue(now_s, self._previous_s, is_sweep=True)
            return True
        if self._is_sweep:
            # An answer that was delayed itself makes the next request seem to have arrived sooner than it did.
            sent_spacings_s = _spacings(self._sent_s[max(0, first - 1) : refused])
            accepted_s = min(self._held_s, *map(max, spacings_s[1:-1], sent_spacings_s[1:]))
            spacing_s = (1.0 + MARGIN_SHARE) * max(refused_s, accepted_s)
        elif self._steps:
            spacing_s = self._after_probe()
        else:
            spacing_s = self._after_refusal()
        self._is_known = True
        self._probe_s = now_s + max(PROBE_DELAY_S, PROBE_PAUSES * pause_s)
        self._continue(now_s, spacing_s)
        return self._failures <= MAX_FAILURES

    def _resume_early(self, now_s: float, refused_s: float, accepted_s: float) -> None:
        """Start a sweep, since at most one submit was accepted: the limit is lower, or not known yet."""
        if self._is_known:
            accepted_s = min(accepted_s, 2.0 * refused_s)
            self._good_s = self._failed_s = 0.0
        self._continue(now_s, _bisect(refused_s, accepted_s), is_sweep=True)

    def _after_probe(self) -> float:
        """Return the spacing of the last step that was not refused, unless it has failed after the last probe."""
        self._good_s, self._failures = self._held_s, 0
        has_failed = self._previous_s <= (1.0 + MARGIN_SHARE) * self._failed_s
        self._failed_s = 0.0
        return self._held_s if has_failed else self._previous_s

    def _after_refusal(self) -> float:
        """Return a spacing that is wider than one that was refused, or the last good one."""
        if self._sent >= FEW_SUBMITS:
            self._good_s, self._failures = self._held_s, 0
            return (1.0 + 2.0 * MARGIN_SHARE) * self._held_s
        self._failures += 1
        self._failed_s = self._held_s
        return self._good_s if self._good_s > self._held_s else (1.0 + self._failures * WIDER_SHARE) * self._held_s


def start_spacing(accepted_s: Sequence[float], refused_s: float, now_s: float, min_s: float) -> SpacingSearch | None:
    """Start a search after the first refusal, if the limiter may have no burst.

    `accepted_s` has the send times of the accepted submits, in order, and `refused_s` is that of the refused one.
    """
    index = bisect_left(accepted_s, refused_s)
    if index:
        refused_spacing_s = refused_s - accepted_s[index - 1]
    elif accepted_s and accepted_s[0] - refused_s <= SLACK_S:
        refused_spacing_s = 0.0  # Of submits that are sent together, not always the first one is accepted.
    else:
        return None
    shortest_s = min(_spacings(accepted_s), default=math.inf)
    if shortest_s <= BURST_RATIO * refused_spacing_s:
        return None
    accepted_spacing_s = min(shortest_s, refused_spacing_s + now_s - refused_s)
    spacing_s = _bisect(max(refused_spacing_s, min_s), accepted_spacing_s)
    return SpacingSearch(accepted_s, spacing_s, now_s, min_s)


def _spacings(times_s: Sequence[float]) -> list[float]:
    return [later_s - earlier_s for earlier_s, later_s in pairwise(times_s)]


def _bisect(refused_s: float, accepted_s: float) -> float:
    """Return where to start a sweep, between a spacing that was refused and one that may be accepted."""
    is_wide = accepted_s > BISECTED_RATIO * refused_s
    return math.sqrt(refused_s * accepted_s) if is_wide else accepted_s
