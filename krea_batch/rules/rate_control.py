"""Instants of submits and what became of them come in; how long the next submit has to wait goes out.

Newcomers: the limiter below this (aiolimiter) spreads submits evenly at `per_s`; this rule says what `per_s`
is, keeps every window of one second under it, and holds everything back after a 429. `now_s` is monotonic.

A limit that nobody told is found as follows. When a 429 comes, what was let through since the last one says what the
limit is: that many requests in so many seconds. The rate goes down to that and stays there for a while, then tries a
little more, with growing steps, since the limit may have grown; each time that is in vain, the while is doubled.
A pace that seeks does not know how long before the first 429 the window began; so, once its pause is over, it fills
the next one in a burst, which shows what a window holds.
"""

from __future__ import annotations

import math
from bisect import insort
from collections import deque
from itertools import takewhile

WINDOW_S = 1.0  # DESIGN, pace: no window of one second ever holds more than the rate (plus one)
MARGIN_S = 0.008  # measured: requests that left within a window and so much do not arrive within the window …
MAX_MARGIN_S = 0.04  # … of the network and of a busy loop; doubled up to this where they did
COLD_MARGIN_S = 0.04  # chosen: the first requests wait for names, connections and TLS, those behind them do not
WARM_UP_S = 0.5
LATE_VARIATIONS = 4.0  # RFC 6298, 2: an answer that takes longer than usual by so many usual variations is late
MIN_SMOOTHED = 8.0  # RFC 6298, 2: answers that count for what is usual; at higher rates those of a second
FULL_SHARE = 0.95  # chosen: who was let through so much of the rate he was told was told the truth
FALLBACK_DECREASE_TO = 0.7  # chosen: CUBIC's factor (RFC 9438, 4.6), where nothing else is known
MIN_SPAN_S = 0.3  # chosen: what comes through in a shorter time was waiting for it
LONG_SPAN_S = 4.0  # chosen: the pause in so long a time spoils the estimate no more …
PAUSE_CORRECTION = 1.1  # … and in a shorter one, this makes up for it, at the least
DECREASE_TO = 0.98  # chosen: a rate that was refused is not tried again at once
PROBE_DELAY_S = 20.0  # chosen: a try in vain costs a second's submits, a twentieth at first
UNCONFIRMED_PROBE_DELAY_S = 5.0  # chosen: an estimate from a short time may be a third too low
MAX_PROBE_DELAY_S = 320.0  # chosen: a limit that has grown is found out within minutes
PROBE_STEP_S = 1.0  # chosen: one window says whether a rate is carried
PROBE_SHARE = 0.02  # chosen: 2 %, then 8, 18, 32 %: careful at first, ten times as much in 22 s
UTILISED_SHARE = 0.7  # chosen: who sends less than this share of what is allowed learns nothing of the limit
MIN_RATE_PER_S = 0.1  # chosen: a limit under 6/min is better told than found
PAUSE_WITHOUT_RETRY_AFTER_S = 0.25  # chosen: a 429 without Retry-After; doubled while nothing is let through
MAX_PAUSE_WITHOUT_RETRY_AFTER_S = 32.0  # chosen: a window of a minute is over at the second try
DISCOVERY_START_PER_S = 10.0  # chosen: what nobody calls abuse
DISCOVERY_GROWTH = 2.0  # chosen: tenfold in little more than a second
DISCOVERY_STEP_S = 0.33
BURST_FACTOR = 4.0  # chosen: what a window holds is let through in a quarter of it


class RateController:
    """How fast submits may go now. `per_s` is the present rate, `ceiling_per_s` the most it will ever be.

    With `seek`, the ceiling is not the user's word: the rate starts low and grows fast until something is refused.
    """

    def __init__(self, ceiling_per_s: float, *, discover: bool = False) -> None:
        self.ceiling_per_s = ceiling_per_s
        self.per_s = min(DISCOVERY_START_PER_S, ceiling_per_s) if discover else ceiling_per_s
        self._discovering = discover
        self._sent_s: deque[float] = deque(maxlen=math.ceil(ceiling_per_s * WINDOW_S))
        self._paused_until_s = -math.inf
        self._safety_margin_s = MARGIN_S
        self._first_sent_s = -math.inf
        self._smoothed_answers = 0.0  # that count for
        self._latency_s = 0.0  # how long answers take …
        self._latency_variation_s = 0.0  # … and how much that varies
        # What was let through, for the estimate: since the last refusal, and lately.
        self._span_start_s: float | None = None
        self._accepted_since_429 = 0
        self._accepted_times_s: deque[float] = deque()
        self._consecutive_429 = 0  # refusals in a row without anything let through
        self._rate_valid_from_s = (
            -math.inf
        )  # when the last pause was over: submits before it say nothing of the new rate
        # The limit as it was found, and how to get off it.
        self._limit_estimate_per_s: float | None = None
        self._probe_delay_s = PROBE_DELAY_S
        self._last_429_s = -math.inf
        self._last_429_latency_s = 0.0  # how long the latest refusal took to come: a rate is not judged sooner
        self._probe_step = 0
        self._last_step_s = -math.inf
        self._after_probe = False  # the last refusal was of a try at a little more
        self._filling_window = False  # a window is being filled, to see what it holds

    # ---- may one go? -------------------------------------------------------------------------------------

    def wait_s(self, now_s: float) -> float:
        """Seconds until a submit may go; 0 when it may go now."""
        count = max(1, math.ceil(self.per_s * WINDOW_S - 1e-9))
        free_s = -math.inf
        if len(self._sent_s) >= count:
            first_s = self._sent_s[-count]
            cold = first_s - self._first_sent_s < WARM_UP_S
            free_s = first_s + count / self.per_s + (COLD_MARGIN_S if cold else self._safety_margin_s)
        return max(0.0, self._paused_until_s - now_s, free_s - now_s)

    def paused_s(self, now_s: float) -> float:
        """Seconds that a refusal still holds every submit back."""
        return max(0.0, self._paused_until_s - now_s)

    def pause(self, now_s: float, wait_s: float) -> None:
        """Let nothing go for `wait_s` seconds; the rate stays as it is."""
        self._paused_until_s = max(self._paused_until_s, now_s + wait_s)

    # ---- what happened -----------------------------------------------------------------------------------

    def on_sent(self, now_s: float) -> None:
        """A submit goes out at `now_s`."""
        self._sent_s.append(now_s)
        if self._span_start_s is None:
            self._span_start_s = self._first_sent_s = now_s
        if self._discovering:
            self._discover(now_s)
        elif self._limit_estimate_per_s is not None and self.per_s < self.ceiling_per_s:
            self._probe(now_s, self._limit_estimate_per_s)

    def on_other_request(self, now_s: float) -> None:
        """Another request goes out that counts against the same limit."""
        self._sent_s.append(now_s)

    def on_response(self, sent_s: float, now_s: float) -> None:
        """A submit of `sent_s` was answered at `now_s`, not with a 429, whatever else became of it."""
        self._track_latency(sent_s, now_s - sent_s)
        self._accepted_since_429 += 1
        self._consecutive_429 = 0
        self._accepted_times_s.append(sent_s)
        while self._accepted_times_s[0] <= sent_s - WINDOW_S:
            self._accepted_times_s.popleft()

    def on_rate_limited(self, sent_s: float, now_s: float, retry_after_s: float | None) -> None:
        """A submit of `sent_s` was refused with 429 at `now_s`.

        Submits that were in the air when the rate was last lowered say nothing new, and do not lower it again.
        """
        self._track_latency(sent_s, now_s - sent_s)
        is_new = sent_s >= self._rate_valid_from_s
        default_pause_s = min(
            PAUSE_WITHOUT_RETRY_AFTER_S * 2.0 ** min(self._consecutive_429, 30), MAX_PAUSE_WITHOUT_RETRY_AFTER_S
        )
        wait_s = default_pause_s if retry_after_s is None else retry_after_s
        if is_new or retry_after_s is not None:
            self._paused_until_s = max(self._paused_until_s, now_s + wait_s)
        self._last_429_s = max(now_s, self._paused_until_s)
        if not is_new:
            return
        self._consecutive_429 += 1
        if self._discovering and retry_after_s is not None:
            self._start_burst(sent_s)
        else:
            self._lower_rate(sent_s)
        self._rate_valid_from_s = self._last_429_s
        self._last_429_latency_s = now_s - sent_s
        self._span_start_s, self._accepted_since_429 = sent_s, 0
        self._probe_step, self._last_step_s = 0, -math.inf

    def _track_latency(self, sent_s: float, took_s: float) -> None:
        """Count a submit whose answer took far longer than usual as sent later: it was held up on its way.

        Those that were held up arrive together, and in the window of the gateway beside those of a second later.
        """
        if not self._smoothed_answers:
            self._latency_s, self._latency_variation_s = took_s, took_s / 2
        self._smoothed_answers = min(self._smoothed_answers + 1.0, max(MIN_SMOOTHED, self.per_s * WINDOW_S))
        late_s = took_s - self._latency_s
        most_s = max(LATE_VARIATIONS * self._latency_variation_s, MARGIN_S)
        if late_s > most_s:
            self._shift_sent(sent_s, late_s)
        if self._smoothed_answers > MIN_SMOOTHED:
            late_s = min(late_s, most_s)
        self._latency_variation_s += (abs(late_s) - self._latency_variation_s) / self._smoothed_answers
        self._latency_s += late_s / self._smoothed_answers

    def _shift_sent(self, sent_s: float, late_s: float) -> None:
        """Move a submit, where it still counts. Those behind it are few, though a window may hold many."""
        behind: deque[float] = deque()
        while self._sent_s and self._sent_s[-1] > sent_s:
            behind.appendleft(self._sent_s.pop())
        if self._sent_s and self._sent_s[-1] == sent_s:
            insort(behind, self._sent_s.pop() + late_s)
        self._sent_s.extend(behind)

    # ---- the rate ----------------------------------------------------------------------------------------

    def _start_burst(self, sent_s: float) -> None:
        """Fill the next window fast, once the pause is over."""
        self._discovering, self._filling_window = False, True
        self.per_s = min(self.ceiling_per_s, BURST_FACTOR * (self._accepted_per_s(sent_s) or self.per_s))

    def _lower_rate(self, sent_s: float) -> None:
        if self.per_s == self.ceiling_per_s and self._configured_rate_was_accepted(sent_s):
            self._safety_margin_s *= 2  # they arrived closer to each other than they left
            return
        if self._filling_window:
            estimate_per_s = DECREASE_TO * (self._accepted_per_s(sent_s) or self.per_s / BURST_FACTOR)
        elif self._limit_estimate_per_s is None:
            estimate_per_s = min(
                self.per_s * (DECREASE_TO if self._accepted_since_429 else FALLBACK_DECREASE_TO),
                self._estimate_per_s(sent_s),
            )
        elif self._probe_step:  # a try in vain: back to the step before the last, which a whole window has carried
            estimate_per_s = self._limit_estimate_per_s * (1.0 + PROBE_SHARE * max(0, self._probe_step - 2) ** 2)
            self._probe_delay_s = min(self._probe_delay_s * 2, MAX_PROBE_DELAY_S)
        elif self._accepted_since_429:
            estimate_per_s = min(self.per_s * DECREASE_TO, self._estimate_per_s(sent_s))
            if self._span_s(sent_s) < LONG_SPAN_S and not self._after_probe:
                self._probe_delay_s = UNCONFIRMED_PROBE_DELAY_S
        else:  # the window of the last refusal is not over yet
            estimate_per_s = self.per_s
        self._discovering = self._filling_window = False
        self._after_probe = self._probe_step > 0 or (self._after_probe and self._span_s(sent_s) < LONG_SPAN_S)
        self.per_s = self._limit_estimate_per_s = min(self.per_s, max(MIN_RATE_PER_S, estimate_per_s))

    def _configured_rate_was_accepted(self, sent_s: float) -> bool:
        """Whether as many were let through lately as the user said may be."""
        return self._accepted_per_s(sent_s) >= FULL_SHARE * self.per_s and self._safety_margin_s < MAX_MARGIN_S

    def _span_s(self, sent_s: float) -> float:
        """How long ago the last refused submit was, or the first one of all."""
        return sent_s - self._span_start_s if self._span_start_s is not None else 0.0

    def _accepted_per_s(self, sent_s: float) -> float:
        """What was let through of the submits of the last window."""
        return sum(1 for at_s in self._accepted_times_s if sent_s - WINDOW_S < at_s <= sent_s) / WINDOW_S

    def _estimate_per_s(self, sent_s: float) -> float:
        """The limit, by what was let through before a refusal; infinite where that says nothing."""
        span_s = self._span_s(sent_s)
        if not self._accepted_since_429 or self._was_idle(sent_s, span_s):
            return math.inf
        seen = [self._accepted_per_s(sent_s) or math.inf]
        if self._limit_estimate_per_s is not None:  # else the begin says more of us than of the limit
            if span_s >= LONG_SPAN_S:
                seen.append(self._accepted_since_429 / span_s)
            elif span_s > 0 and not self._after_probe:
                seen.append(self._short_span_estimate(sent_s, span_s))
        return min(seen)

    def _short_span_estimate(self, sent_s: float, span_s: float) -> float:
        """Between what came through in all that time, and what did in the part of it that was no pause."""
        going_s = max(sent_s - self._rate_valid_from_s, MIN_SPAN_S)
        return self._accepted_since_429 * math.sqrt(PAUSE_CORRECTION / (span_s * going_s))

    def _was_idle(self, sent_s: float, span_s: float) -> bool:
        """Whether far less was sent lately than was allowed; a pace that still seeks is never idle."""
        recent_s = min(WINDOW_S, span_s, sent_s - self._rate_valid_from_s)
        return (
            self._count_sent_after(sent_s - WINDOW_S) < UTILISED_SHARE * self.per_s * recent_s
            and not self._discovering
        )

    def _count_sent_after(self, begin_s: float) -> int:
        return sum(1 for _ in takewhile(lambda at_s: at_s > begin_s, reversed(self._sent_s)))

    def _discover(self, now_s: float) -> None:
        """Grow while what is allowed is used, and nothing is refused."""
        if now_s - self._last_step_s < DISCOVERY_STEP_S:
            return
        used = self._count_sent_after(now_s - DISCOVERY_STEP_S)
        if self._last_step_s > -math.inf and used >= UTILISED_SHARE * self.per_s * DISCOVERY_STEP_S:
            self.per_s = min(self.ceiling_per_s, self.per_s * DISCOVERY_GROWTH)
        self._last_step_s = now_s

    def _probe(self, now_s: float, found_per_s: float) -> None:
        quiet_s = now_s - self._last_429_s - self._last_429_latency_s
        if quiet_s >= self._probe_delay_s and now_s - self._last_step_s >= PROBE_STEP_S:
            self._probe_step += 1
            self._last_step_s = now_s
            more = 1.0 + PROBE_SHARE * self._probe_step**2
            self.per_s = min(self.ceiling_per_s, found_per_s * more)
