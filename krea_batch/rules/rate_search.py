"""Search for a rate limit: hold a rate, probe above it in steps, and estimate the limit again after a refusal.

Submits are spread evenly, because a limiter of any shape accepts an even rate up to its limit. Only a long window is
used differently, by `window_fill`. A limiter without any burst requires a time between two submits, which
`spacing_search` finds. `limit_estimate` decides what a refusal shows about the limit; `bucket_fit` does so for token
buckets, and `window_fit` for windows of a second. `now_s` and `sent_s` are monotonic.
"""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

from msgspec.structs import replace

from krea_batch.rules.bucket_fit import MAX_SUBMITS, SLACK_S, BucketCycle, fit_rates
from krea_batch.rules.limit_estimate import MIN_GAP, Cycle, Estimate, after_refusal
from krea_batch.rules.spacing_search import SpacingSearch, start_spacing
from krea_batch.rules.submit_log import KEPT_S, MAX_MEMORY_S, SubmitLog
from krea_batch.rules.window_fill import MIN_COUNT, SATURATED_SHARE, WindowFill, is_window
from krea_batch.rules.window_fit import MAX_CYCLES, RELEVANT_S, WindowCycle, fit_counts

MIN_MEMORY_S = 1.0  # chosen: Retry-After has whole seconds, so shorter windows look like buckets
MIN_REQUESTS = 4.0  # chosen: a memory of fewer requests shows no rate
MIN_STEP_S = 0.25  # chosen: faster steps find a limit no sooner than answers arrive
STEPS_PER_MEMORY = 16  # chosen: a probe doubles the rate within half of a long window
STEPS_TO_GAP = 4  # chosen: a probe reaches the rate that was refused before in four equal steps
MAX_GROWTH = 2.0  # chosen: factor of one step, as in TCP's slow start (RFC 5681, 3.1)
KNOWN_GROWTH = 1.5  # measured: with 2, a fixed window of a second is overshot so far that two windows look like one
KNOWN_COUNT = 10  # chosen: a rate from this many submits is known roughly
USED_SHARE = 0.7  # chosen: sending less than this share of the allowed rate shows nothing about the limit
LOCAL_SUBMITS = 4  # chosen: this many submits before a refusal show whether the rate was used
IDLE_S = 2.0  # chosen: after a break as long as the slowest answers, a new cycle starts
MIN_DURATION_S = 1e-3  # chosen: minimum duration of a cycle, to avoid a division by zero
RESUMED_PROBE_DELAY_S = 5.0  # chosen: by then, the limit of an earlier run is confirmed, or a higher one is tried
BUCKET_CYCLES = 3  # chosen: two determine a bucket, and a third one shows whether it is one
KEPT_RATES = 64  # chosen: more steps than a probe has while answers are awaited


class _Refusal(NamedTuple):
    """A refusal, and what was known before it."""

    sent_s: float
    refused_per_s: float
    previous_per_s: float
    probe_started_s: float | None
    was_used: bool
    base_held_s: float
    held_s: float
    cycle_started_s: float
    accepted: int
    estimate: Estimate


class RateSearch:
    """The rate at which submits are sent. `max_per_s` is never exceeded; without `is_known` it is to be found.

    With `may_space`, each submit is sent by this process, so the time between two of them can be kept.
    """

    def __init__(self, per_s: float, max_per_s: float, *, is_known: bool, may_space: bool = True) -> None:
        self.per_s = per_s
        self._max_per_s = max_per_s
        self.estimate = Estimate(per_s) if is_known else Estimate(per_s, gap=math.inf, probe_delay_s=0.0)
        self.memory_s = 0.0  # how far back the limiter looks, as far as refusals have shown it
        self._log = SubmitLog()
        self._latest_sent_s: deque[float] = deque(maxlen=LOCAL_SUBMITS)
        self._rates: deque[tuple[float, float]] = deque([(-math.inf, per_s)], maxlen=KEPT_RATES)  # from when, rate
        self._cycle_started_s: float | None = None
        self._resumed_s = -math.inf
        self._refusal: _Refusal | None = None  # the latest one
        self._fill: WindowFill | None = None
        self._may_fill = True
        self._spacing: SpacingSearch | None = None
        self._may_space = may_space  # until the first refusal has shown whether the limiter may have no burst
        self._answer_s = 0.0
        self._bucket_cycles: deque[BucketCycle] = deque(maxlen=BUCKET_CYCLES)
        self._window_cycles: deque[WindowCycle] = deque(maxlen=MAX_CYCLES)
        self._fitted_per_s: tuple[float, float] | None = None
        self._probe_step = 0
        self._probe_started_s = 0.0
        self._step_started_s = 0.0
        self._sent_in_step = 0

    def on_sent(self, now_s: float, due_s: float, answer_s: float) -> None:
        """Record a submit, which was due at `due_s`, and take the next step of a probe if it is time.

        `answer_s` is how long answers take, since a step is not judged before they can have arrived.
        """
        self._latest_sent_s.append(now_s)
        self._log.on_sent(now_s)
        self._answer_s = answer_s
        if self._fill is not None:
            return
        if self._spacing is not None:
            self._spacing.on_sent(now_s, answer_s)
            self.per_s = 1.0 / self._spacing.spacing_s
            if self.per_s >= self._max_per_s:
                self.restart(now_s, replace(self.estimate, per_s=self._max_per_s))
            return
        if self._cycle_started_s is None or now_s - due_s > IDLE_S:
            self._cycle_started_s = self._step_started_s = self._resumed_s = now_s
            self._sent_in_step = 0
            return
        self._sent_in_step += 1
        step_s = self._step_s(answer_s)
        if self.per_s >= self._max_per_s or now_s - self._step_started_s < step_s:
            return
        is_used = self._sent_in_step >= USED_SHARE * self.per_s * (now_s - self._step_started_s)
        self._step_started_s, self._sent_in_step = now_s, 0
        is_due = self._probe_step > 0 or now_s - self._resumed_s >= self.estimate.probe_delay_s
        if is_used and is_due:
            self._take_step(now_s)

    def on_accepted(self, sent_s: float, delay_s: float = 0.0) -> None:
        """Record that a submit was accepted, which was delayed on its way."""
        self._log.on_accepted(sent_s)
        if self._spacing is not None:
            self._spacing.on_answered(sent_s, delay_s)
        fill = self._fill
        if fill is None:
            return
        if not fill.on_accepted(sent_s):
            self._may_fill = False
            self.restart(sent_s, self.estimate)
        elif fill.per_s >= self._max_per_s:
            self.restart(sent_s, replace(self.estimate, per_s=self._max_per_s))
        else:
            self.per_s = fill.per_s

    def on_refused(self, sent_s: float, delay_s: float) -> None:
        """Record that a submit was refused, which was delayed on its way."""
        self._log.on_not_accepted(sent_s)
        if self._spacing is not None:
            self._spacing.on_answered(sent_s, delay_s)

    def on_not_accepted(self, sent_s: float) -> None:
        """Record that a submit was not accepted for another reason than the limit, or not sent."""
        self._log.on_not_accepted(sent_s)

    @property
    def pace_per_s(self) -> float:
        """The rate of submits that follow each other: higher than `per_s` while a window is filled."""
        return self.per_s if self._fill is None else min(self._max_per_s, self._fill.pace_per_s(self._answer_s))

    @property
    def limit_per_s(self) -> float | None:
        """The limit of the gateway, as far as it is known; None if nothing was refused."""
        if self._fill is not None:
            return self._fill.count / self._fill.window_s
        if self._spacing is not None:
            return self.per_s
        return None if self.estimate.is_first else self.estimate.per_s

    @property
    def is_spaced(self) -> bool:
        """Whether the time between two submits counts, because the limiter has no burst."""
        return self._spacing is not None

    @property
    def is_probing_window(self) -> bool:
        """Whether a refusal is to be expected, because a window that is known is probed."""
        return self._fill is not None and self._fill.is_probing

    def free_s(self, unsent: int) -> float:
        """Return when a window has room for a submit, besides `unsent` others that are about to be sent."""
        return -math.inf if self._fill is None else self._fill.free_s(unsent, self._answer_s)

    def accepted_between(self, start_s: float, end_s: float) -> int:
        """Return how many accepted submits were sent from `start_s` until `end_s`."""
        return self._log.count(start_s, end_s)

    def restart_cycle(self) -> None:
        """Forget the current cycle: submits were paused for another reason than the limit."""
        self._cycle_started_s = None

    def resume(self, now_s: float, refused_s: float, refusing_until_s: float, answer_s: float) -> None:
        """Decide on the rate at the end of a pause.

        `refused_s` is when the first refused submit was sent. Until `refusing_until_s`, at least, the limiter would
        have refused every submit.
        """
        if self._fill is not None and self._goes_on_filling(self._fill, now_s, refused_s):
            return
        if self._goes_on_spacing(now_s, refused_s):
            return
        refusal = self._refusal
        if refusal is None or self._log.count(self._resumed_s) or not refusal.accepted:
            previous_s = refusal.sent_s if refusal is not None else -math.inf
            refusal = self._refusal = self._describe(refused_s)
            self._fitted_per_s = self._fit_window(refusal) or self._fit_bucket(refusal, self._resumed_s - previous_s)
        # Else nothing was accepted since the last pause: it was too short, so decide again with all of it.
        cycle_s = now_s - refusal.cycle_started_s
        unproven_s = max(0.0, now_s - max(refusing_until_s, refusal.sent_s))
        self._learn_memory(refusing_until_s - refusal.sent_s, cycle_s, unproven_s)
        memory_s = self._horizon_s()
        start_s = max(refusal.cycle_started_s, now_s - KEPT_S)
        if refusal.probe_started_s is not None:
            start_s = max(start_s, min(refusal.probe_started_s, now_s - 2 * memory_s))
        span_s = min(max(memory_s, cycle_s), MAX_MEMORY_S)
        cycle = Cycle(
            refused_per_s=refusal.refused_per_s,
            previous_per_s=refusal.previous_per_s,
            is_probe=refusal.probe_started_s is not None,
            was_used=refusal.was_used,
            base_held_s=refusal.base_held_s,
            held_s=refusal.held_s,
            duration_s=max(now_s - start_s, MIN_DURATION_S),
            accepted=self._log.count(start_s),
            unproven_s=unproven_s,
            refused_count=self.accepted_between(refusal.sent_s - memory_s, refusal.sent_s),
            achieved_per_s=self._log.count(now_s - span_s) / span_s,
            memory_s=memory_s,
            step_s=self._step_s(answer_s),
            fitted_per_s=self._fitted_per_s,
        )
        estimate, is_over = after_refusal(refusal.estimate, cycle)
        self._cycle_started_s = now_s if is_over else refusal.cycle_started_s
        self._hold(now_s, estimate)
        self._start_fill(now_s, refusal, refusing_until_s)

    def _fit_window(self, refusal: _Refusal) -> tuple[float, float] | None:
        """Find the windows of a second that explain the latest refusals."""
        start_s = max(self._resumed_s, refusal.sent_s - RELEVANT_S)
        self._window_cycles.append(WindowCycle(self._log.times_s(start_s, refusal.sent_s), refusal.sent_s))
        return fit_counts(self._window_cycles)

    def _fit_bucket(self, refusal: _Refusal, pause_s: float) -> tuple[float, float] | None:
        """Find the buckets that explain the latest refusals; `pause_s` is the pause before this one."""
        start_s = self._resumed_s
        accepted_s = self._log.times_s(start_s, refusal.sent_s)
        if len(accepted_s) > MAX_SUBMITS and refusal.probe_started_s is not None:
            start_s, pause_s = refusal.probe_started_s, math.inf  # A rate that was held leaves a bucket full.
            accepted_s = self._log.times_s(start_s, refusal.sent_s)
        if len(accepted_s) > MAX_SUBMITS:
            self._bucket_cycles.clear()
            return None
        if not accepted_s:
            # Of the submits that were sent together with the refused one, one arrived before it.
            accepted_s = self._log.times_s(refusal.sent_s, refusal.sent_s + SLACK_S)[:1]
        self._bucket_cycles.append(BucketCycle(pause_s, start_s, accepted_s, refusal.sent_s, refusal.refused_per_s))
        return fit_rates(self._bucket_cycles) if len(self._bucket_cycles) > 1 else None

    def _start_fill(self, now_s: float, refusal: _Refusal, refusing_until_s: float) -> None:
        """Fill a window next, if the cycle that has ended looks like one."""
        cycle_s, count = now_s - refusal.cycle_started_s, self._log.count(refusal.cycle_started_s)
        if not self._may_fill or not is_window(refusing_until_s - refusal.sent_s, cycle_s):
            return
        if count < MIN_COUNT or cycle_s > MAX_MEMORY_S or count / cycle_s >= self._max_per_s:
            return
        self._fill = WindowFill(self._log, count, refusing_until_s - refusal.cycle_started_s, cycle_s, now_s)
        self._probe_started_s = now_s
        self._set_rate(now_s, self._fill.pace_per_s(self._answer_s))
        self.per_s = self._fill.per_s

    def _goes_on_filling(self, fill: WindowFill, now_s: float, refused_s: float) -> bool:
        """Let the window decide about the rate after a refusal. Return False if it shows that there is no window."""
        if fill.resume(now_s, refused_s):
            self.memory_s, self.per_s = fill.window_s, fill.per_s
            self._cycle_started_s = self._resumed_s = now_s
            return True
        self._fill, self._may_fill = None, False
        if not fill.is_known:
            return False
        per_s = fill.count / fill.window_s
        self.restart(now_s, replace(self.estimate, per_s=per_s, gap=MIN_GAP, fallback_per_s=None))
        return True

    def _goes_on_spacing(self, now_s: float, refused_s: float) -> bool:
        """Space submits by the time between them, or start to, if the limiter may have no burst."""
        if self._spacing is None and self._may_space:
            accepted_s = self._log.times_s(-math.inf, refused_s + SLACK_S)
            self._spacing = start_spacing(accepted_s, refused_s, now_s, 1.0 / self._max_per_s)
            self._may_space = False
        elif self._spacing is not None and not self._spacing.resume(now_s, refused_s):
            self.restart(
                now_s, replace(self.estimate, per_s=1.0 / self._spacing.spacing_s, gap=MIN_GAP, is_first=False)
            )
            return True
        if self._spacing is None:
            return False
        self._cycle_started_s = self._resumed_s = now_s
        self._set_rate(now_s, 1.0 / self._spacing.spacing_s)
        return True

    @property
    def is_new(self) -> bool:
        """Whether no submit was sent so far."""
        return self._cycle_started_s is None and self._refusal is None

    def assume(self, per_s: float, memory_s: float, *, gap: float, is_spaced: bool = False) -> None:
        """Start with an estimate of an earlier run, which is not confirmed."""
        if per_s < self._max_per_s:
            self.memory_s = memory_s
            self.estimate = Estimate(per_s, gap=gap, is_first=False, probe_delay_s=RESUMED_PROBE_DELAY_S)
            self._set_rate(-math.inf, per_s)
            if is_spaced and self._may_space:
                self._spacing = SpacingSearch((), 1.0 / per_s, -math.inf, 1.0 / self._max_per_s)
                self._may_space = False

    def restart(self, now_s: float, estimate: Estimate) -> None:
        """Start a cycle with another estimate."""
        self._fill = self._spacing = self._refusal = None
        self._may_space = False
        self._cycle_started_s = now_s
        self._hold(now_s, estimate)

    def _hold(self, now_s: float, estimate: Estimate) -> None:
        """Continue at an estimated rate, without a probe for now."""
        self.estimate = estimate
        self._resumed_s = self._step_started_s = now_s
        self._probe_step = self._sent_in_step = 0
        self._set_rate(now_s, self.estimate.per_s)

    # ---- steps of a probe --------------------------------------------------------------------------------

    def _take_step(self, now_s: float) -> None:
        """Raise the rate: evenly up to the rate that was refused before, then by steps that double."""
        self._probe_step += 1
        if self._probe_step == 1:
            self._probe_started_s = now_s
        beyond = self._probe_step - STEPS_TO_GAP
        steps = self._probe_step if beyond <= 0 else STEPS_TO_GAP + 2.0**beyond
        per_s = self.estimate.per_s * (1.0 + self.estimate.gap * steps / STEPS_TO_GAP)
        growth = KNOWN_GROWTH if self.estimate.refused_count >= KNOWN_COUNT else MAX_GROWTH
        self._set_rate(now_s, min(per_s, self.per_s * growth))

    def _set_rate(self, now_s: float, per_s: float) -> None:
        self.per_s = min(per_s, self._max_per_s)
        self._rates.append((now_s, self.per_s))

    def _step_s(self, answer_s: float) -> float:
        """Return how long a step of a probe takes."""
        return max(MIN_STEP_S, 1.25 * answer_s + 2.0 / self.per_s, self._horizon_s() / STEPS_PER_MEMORY)

    # ---- what a refusal shows ----------------------------------------------------------------------------

    def _horizon_s(self) -> float:
        """Return over how long a time a rate is judged."""
        return max(MIN_MEMORY_S, self.memory_s, MIN_REQUESTS / self.estimate.per_s)

    def _describe(self, sent_s: float) -> _Refusal:
        refused_per_s, previous_per_s = self._rates_until(sent_s)
        is_probe = refused_per_s > self.estimate.per_s
        cycle_started_s = sent_s if self._cycle_started_s is None else min(sent_s, self._cycle_started_s)
        before = [at_s for at_s in self._latest_sent_s if at_s < sent_s]
        return _Refusal(
            sent_s=sent_s,
            refused_per_s=refused_per_s,
            previous_per_s=max(previous_per_s, self.estimate.per_s),
            probe_started_s=self._probe_started_s if is_probe else None,
            was_used=not before or sent_s - before[0] <= 2 * len(before) / refused_per_s,
            base_held_s=(self._probe_started_s if is_probe else sent_s) - self._resumed_s,
            held_s=sent_s - self._resumed_s,
            cycle_started_s=cycle_started_s,
            accepted=self._log.count(cycle_started_s),
            estimate=self.estimate,
        )

    def _rates_until(self, sent_s: float) -> tuple[float, float]:
        """Return the rate at that time, and the last lower one before it."""
        rates = [per_s for from_s, per_s in self._rates if from_s <= sent_s] or [self._rates[0][1]]
        return rates[-1], next((per_s for per_s in reversed(rates) if per_s < rates[-1]), rates[-1])

    def _learn_memory(self, refusing_s: float, cycle_s: float, unproven_s: float) -> None:
        """Learn how far back the limiter looks, which is at least as long as it refuses submits."""
        is_saturated = refusing_s > SATURATED_SHARE * cycle_s
        full_s = math.sqrt(cycle_s * max(cycle_s - unproven_s, refusing_s))
        memory_s = min(full_s if is_saturated else refusing_s, MAX_MEMORY_S)
        if memory_s > self.memory_s:
            self.memory_s = memory_s
        elif is_saturated and cycle_s >= self.memory_s:
            self.memory_s = (self.memory_s + memory_s) / 2
