"""Decide how fast submits may be sent, from the answers of the gateway.

The limiter below this rule (aiolimiter) spreads submits evenly at `per_s`. This rule decides `per_s`, keeps each
window of one second below it, and pauses all submits after a 429. `now_s` is monotonic.

An unknown limit is found as follows. When a 429 arrives, the submits accepted since the last 429 show the limit: so
many requests in so many seconds. The rate is lowered to that estimate and stays there for a while. Then it is raised
in growing steps, since the limit may have grown. Each time this leads to a 429, the wait before the next attempt
doubles.

While the rate is being discovered, it is unknown how long before the first 429 the window of the gateway started. So,
once the pause is over, the next window is filled in a burst, which shows how many requests a window allows.
"""

from __future__ import annotations

import math
from bisect import insort
from collections import deque
from itertools import takewhile

# ---- the window of one second ----------------------------------------------------------------------------

WINDOW_S = 1.0  # promised: no window of one second has more requests than the rate, plus one
MARGIN_S = 0.008  # measured: requests sent this much more than a window apart also arrive a window apart
MAX_MARGIN_S = 0.04  # chosen: the margin is doubled up to this if the network or a busy event loop needs more
COLD_MARGIN_S = 0.04  # chosen: the first requests wait for DNS, connections and TLS, those behind them do not
WARM_UP_S = 0.5  # chosen: how long requests count as the first ones
LATE_VARIATIONS = 4.0  # RFC 6298, 2: an answer is late if it takes longer than usual by this many variations
MIN_SMOOTHED = 8.0  # RFC 6298, 2: answers in the smoothed latency; at higher rates, those of one second

# ---- the estimate of the limit, after a 429 --------------------------------------------------------------

FULL_SHARE = 0.95  # chosen: if this share of the configured rate was accepted, the configured rate is correct
FALLBACK_DECREASE_TO = 0.7  # chosen: CUBIC's factor (RFC 9438, 4.6), if nothing else is known
MIN_SPAN_S = 0.3  # chosen: submits accepted within a shorter time had been waiting for it
LONG_SPAN_S = 4.0  # chosen: over a longer time, the pause in it does not distort the estimate any more
PAUSE_CORRECTION = 1.1  # chosen: at least this factor makes up for the pause in a shorter time
DECREASE_TO = 0.98  # chosen: a refused rate is not used again immediately
UTILISED_SHARE = 0.7  # chosen: sending less than this share of the allowed rate shows nothing about the limit
MIN_RATE_PER_S = 0.1  # chosen: a limit below 6/min is better configured than discovered

# ---- pauses, probing, discovery --------------------------------------------------------------------------

PAUSE_WITHOUT_RETRY_AFTER_S = 0.25  # chosen: after a 429 without Retry-After; doubled until a submit is accepted
MAX_PAUSE_WITHOUT_RETRY_AFTER_S = 32.0  # chosen: a window of a minute is over at the second attempt
PROBE_DELAY_S = 20.0  # chosen: a refused probe costs one second's submits, a twentieth at first
UNCONFIRMED_PROBE_DELAY_S = 5.0  # chosen: an estimate from a short time may be a third too low
MAX_PROBE_DELAY_S = 320.0  # chosen: a limit that has grown is found within minutes
PROBE_STEP_S = 1.0  # chosen: one window shows whether a rate is accepted
PROBE_SHARE = 0.02  # chosen: 2 %, then 8, 18, 32 %: small steps at first, ten times the rate in 22 s
DISCOVERY_START_PER_S = 10.0  # chosen: a conservative start
DISCOVERY_GROWTH = 2.0  # chosen: ten times the rate in little more than a second
DISCOVERY_STEP_S = 0.33  # chosen: three steps in a window
BURST_FACTOR = 4.0  # chosen: a window is filled within a quarter of its time


class RateController:
    """The current submit rate. `per_s` is the rate now, `ceiling_per_s` its upper limit.

    With `discover`, the ceiling is not configured by the user: the rate starts low and grows fast until the first
    429.
    """

    def __init__(self, ceiling_per_s: float, *, discover: bool = False) -> None:
        self.ceiling_per_s = ceiling_per_s
        self.per_s = min(DISCOVERY_START_PER_S, ceiling_per_s) if discover else ceiling_per_s
        self._discovering = discover

        # The window: send times of the latest requests, as far as they count.
        self._sent_s: deque[float] = deque(maxlen=math.ceil(ceiling_per_s * WINDOW_S))
        self._paused_until_s = -math.inf
        self._safety_margin_s = MARGIN_S
        self._first_sent_s = -math.inf

        # The usual latency of answers, smoothed over `_smoothed_answers` of them.
        self._smoothed_answers = 0.0
        self._latency_s = 0.0
        self._latency_variation_s = 0.0

        # Accepted submits, for the estimate: since the last new 429, and in the last window.
        self._span_start_s: float | None = None  # the send time of the last new 429, or of the first submit
        self._accepted_since_429 = 0
        self._accepted_times_s: deque[float] = deque()
        self._consecutive_429 = 0  # without an accepted submit between them
        self._rate_valid_from_s = -math.inf  # the end of the last pause: earlier submits show nothing about this rate

        # The estimated limit, and the probing above it.
        self._limit_estimate_per_s: float | None = None
        self._probe_delay_s = PROBE_DELAY_S
        self._last_429_s = -math.inf
        self._last_429_latency_s = 0.0  # a rate is not judged before an answer can have arrived
        self._probe_step = 0
        self._last_step_s = -math.inf
        self._after_probe = False  # the last 429 refused a probe
        self._filling_window = False  # a window is being filled, to see how many requests it allows

    # ---- when the next request may be sent ---------------------------------------------------------------

    def wait_s(self, now_s: float) -> float:
        """Return the seconds until a submit may be sent; 0 if it may be sent now."""
        count = max(1, math.ceil(self.per_s * WINDOW_S - 1e-9))
        free_s = -math.inf
        if len(self._sent_s) >= count:
            first_s = self._sent_s[-count]
            cold = first_s - self._first_sent_s < WARM_UP_S
            free_s = first_s + count / self.per_s + (COLD_MARGIN_S if cold else self._safety_margin_s)
        return max(0.0, self._paused_until_s - now_s, free_s - now_s)

    def paused_s(self, now_s: float) -> float:
        """Return for how many more seconds all submits are paused."""
        return max(0.0, self._paused_until_s - now_s)

    def pause(self, now_s: float, wait_s: float) -> None:
        """Pause all submits for `wait_s` seconds, without a change of the rate."""
        self._paused_until_s = max(self._paused_until_s, now_s + wait_s)

    # ---- what happened -----------------------------------------------------------------------------------

    def on_sent(self, now_s: float) -> None:
        """Record that a submit is sent."""
        self._sent_s.append(now_s)
        if self._span_start_s is None:
            self._span_start_s = self._first_sent_s = now_s
        if self._discovering:
            self._discover(now_s)
        elif self._limit_estimate_per_s is not None and self.per_s < self.ceiling_per_s:
            self._probe(now_s, self._limit_estimate_per_s)

    def on_other_request(self, now_s: float) -> None:
        """Record that another request is sent that counts against the same limit."""
        self._sent_s.append(now_s)

    def on_response(self, sent_s: float, now_s: float) -> None:
        """Record an answer, other than 429, to a submit sent at `sent_s`."""
        self._track_latency(sent_s, now_s - sent_s)
        self._accepted_since_429 += 1
        self._consecutive_429 = 0
        self._accepted_times_s.append(sent_s)
        while self._accepted_times_s[0] <= sent_s - WINDOW_S:
            self._accepted_times_s.popleft()

    def on_rate_limited(self, sent_s: float, now_s: float, retry_after_s: float | None) -> None:
        """Record a 429 for a submit sent at `sent_s`; pause all submits and lower the rate.

        Submits that were in flight when the rate was last lowered show nothing new, and do not lower it again.
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

    def _track_latency(self, sent_s: float, latency_s: float) -> None:
        """Smooth the latency, and count a submit whose answer is late as sent later: it was delayed on its way.

        Delayed submits arrive together, in one window of the gateway with submits that were sent a second later.
        """
        if not self._smoothed_answers:
            self._latency_s, self._latency_variation_s = latency_s, latency_s / 2
        self._smoothed_answers = min(self._smoothed_answers + 1.0, max(MIN_SMOOTHED, self.per_s * WINDOW_S))
        late_s = latency_s - self._latency_s
        max_late_s = max(LATE_VARIATIONS * self._latency_variation_s, MARGIN_S)
        if late_s > max_late_s:
            self._shift_sent(sent_s, late_s)
        if self._smoothed_answers > MIN_SMOOTHED:
            late_s = min(late_s, max_late_s)
        self._latency_variation_s += (abs(late_s) - self._latency_variation_s) / self._smoothed_answers
        self._latency_s += late_s / self._smoothed_answers

    def _shift_sent(self, sent_s: float, late_s: float) -> None:
        """Move the send time of a submit by `late_s`, if it still counts."""
        # A window may have many submits, but only few were sent after a late one.
        later: deque[float] = deque()
        while self._sent_s and self._sent_s[-1] > sent_s:
            later.appendleft(self._sent_s.pop())
        if self._sent_s and self._sent_s[-1] == sent_s:
            insort(later, self._sent_s.pop() + late_s)
        self._sent_s.extend(later)

    # ---- after a 429 -------------------------------------------------------------------------------------

    def _start_burst(self, sent_s: float) -> None:
        """End the discovery: fill the next window fast, once the pause is over."""
        self._discovering, self._filling_window = False, True
        self.per_s = min(self.ceiling_per_s, BURST_FACTOR * (self._accepted_per_s(sent_s) or self.per_s))

    def _lower_rate(self, sent_s: float) -> None:
        if self.per_s == self.ceiling_per_s and self._configured_rate_was_accepted(sent_s):
            self._safety_margin_s *= 2  # The requests arrived closer to each other than they were sent.
            return
        if self._filling_window:
            estimate_per_s = DECREASE_TO * (self._accepted_per_s(sent_s) or self.per_s / BURST_FACTOR)
        elif self._limit_estimate_per_s is None:
            estimate_per_s = min(
                self.per_s * (DECREASE_TO if self._accepted_since_429 else FALLBACK_DECREASE_TO),
                self._estimate_per_s(sent_s),
            )
        elif self._probe_step:
            # A refused probe: return to the step before the last, which was accepted for a whole window.
            estimate_per_s = self._limit_estimate_per_s * (1.0 + PROBE_SHARE * max(0, self._probe_step - 2) ** 2)
            self._probe_delay_s = min(self._probe_delay_s * 2, MAX_PROBE_DELAY_S)
        elif self._accepted_since_429:
            estimate_per_s = min(self.per_s * DECREASE_TO, self._estimate_per_s(sent_s))
            if self._span_s(sent_s) < LONG_SPAN_S and not self._after_probe:
                self._probe_delay_s = UNCONFIRMED_PROBE_DELAY_S
        else:
            # The gateway's window of the last 429 is not over yet: this says nothing about the rate.
            estimate_per_s = self.per_s
        self._discovering = self._filling_window = False
        self._after_probe = self._probe_step > 0 or (self._after_probe and self._span_s(sent_s) < LONG_SPAN_S)
        self.per_s = self._limit_estimate_per_s = min(self.per_s, max(MIN_RATE_PER_S, estimate_per_s))

    def _configured_rate_was_accepted(self, sent_s: float) -> bool:
        """Whether the gateway accepted about as many submits in the last window as the user configured."""
        return self._accepted_per_s(sent_s) >= FULL_SHARE * self.per_s and self._safety_margin_s < MAX_MARGIN_S

    def _span_s(self, sent_s: float) -> float:
        """Return the time since the last new 429, or since the first submit, until `sent_s`."""
        return sent_s - self._span_start_s if self._span_start_s is not None else 0.0

    def _accepted_per_s(self, sent_s: float) -> float:
        """Return the accepted submits per second of the window before `sent_s`."""
        return sum(1 for at_s in self._accepted_times_s if sent_s - WINDOW_S < at_s <= sent_s) / WINDOW_S

    def _estimate_per_s(self, sent_s: float) -> float:
        """Estimate the limit from the submits accepted before a 429; infinite if they show nothing."""
        span_s = self._span_s(sent_s)
        if not self._accepted_since_429 or self._was_idle(sent_s, span_s):
            return math.inf
        estimates_per_s = [self._accepted_per_s(sent_s) or math.inf]
        if self._limit_estimate_per_s is not None:  # Before the first estimate, the span depends on our own start.
            if span_s >= LONG_SPAN_S:
                estimates_per_s.append(self._accepted_since_429 / span_s)
            elif span_s > 0 and not self._after_probe:
                estimates_per_s.append(self._short_span_estimate_per_s(sent_s, span_s))
        return min(estimates_per_s)

    def _short_span_estimate_per_s(self, sent_s: float, span_s: float) -> float:
        """Return the mean of the rates over the whole span and over its part without the pause, corrected."""
        active_s = max(sent_s - self._rate_valid_from_s, MIN_SPAN_S)
        return self._accepted_since_429 * math.sqrt(PAUSE_CORRECTION / (span_s * active_s))

    def _was_idle(self, sent_s: float, span_s: float) -> bool:
        """Whether far fewer submits were sent recently than allowed. During the discovery this is never so."""
        recent_s = min(WINDOW_S, span_s, sent_s - self._rate_valid_from_s)
        return (
            self._count_sent_after(sent_s - WINDOW_S) < UTILISED_SHARE * self.per_s * recent_s
            and not self._discovering
        )

    def _count_sent_after(self, start_s: float) -> int:
        return sum(1 for _ in takewhile(lambda at_s: at_s > start_s, reversed(self._sent_s)))

    # ---- without a 429 -----------------------------------------------------------------------------------

    def _discover(self, now_s: float) -> None:
        """Raise the rate while it is used and nothing is refused."""
        if now_s - self._last_step_s < DISCOVERY_STEP_S:
            return
        sent = self._count_sent_after(now_s - DISCOVERY_STEP_S)
        if self._last_step_s > -math.inf and sent >= UTILISED_SHARE * self.per_s * DISCOVERY_STEP_S:
            self.per_s = min(self.ceiling_per_s, self.per_s * DISCOVERY_GROWTH)
        self._last_step_s = now_s

    def _probe(self, now_s: float, limit_estimate_per_s: float) -> None:
        """Raise the rate above the estimate in growing steps, after `_probe_delay_s` without a 429."""
        since_429_s = now_s - self._last_429_s - self._last_429_latency_s
        if since_429_s >= self._probe_delay_s and now_s - self._last_step_s >= PROBE_STEP_S:
            self._probe_step += 1
            self._last_step_s = now_s
            factor = 1.0 + PROBE_SHARE * self._probe_step**2
            self.per_s = min(self.ceiling_per_s, limit_estimate_per_s * factor)
