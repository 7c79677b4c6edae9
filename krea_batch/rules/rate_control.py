"""Decide how fast submits may be sent, from the answers of the gateway.

The configured rate is a ceiling: `send_window` keeps it in each window of one second. Below it, `rate_search` looks
for a lower limit once a submit is refused, and `jobs_limit` for a limit on the jobs in process. This rule pauses all
submits after a 429 and puts the parts together. `now_s` and `sent_s` are monotonic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from msgspec.structs import replace

from krea_batch.rules.answer_latency import AnswerLatency
from krea_batch.rules.found_limit import RESUMED_SHARE, FoundLimit
from krea_batch.rules.jobs_limit import JobsLimit, Submit
from krea_batch.rules.limit_estimate import MIN_GAP, Estimate
from krea_batch.rules.rate_search import RateSearch
from krea_batch.rules.send_window import MARGIN_S, WINDOW_S, SendWindow

FULL_SHARE = 0.95  # chosen: if this share of the configured rate was accepted, the configured rate is correct
PAUSE_WITHOUT_RETRY_AFTER_S = 0.25  # chosen: after a 429 without Retry-After, at first
PAUSE_GROWTH = 1.5  # chosen: all pauses until a submit is accepted are together too long by a third at most
MAX_PAUSE_WITHOUT_RETRY_AFTER_S = 60.0  # chosen: reached within a window of five minutes
DISCOVERY_START_PER_S = 10.0  # chosen: a conservative start
CAPPED_GROWTH = 2.0  # chosen: with a cap on jobs, the rate only spreads the submits of a second
SHARED_MARGIN_S = 2 * MARGIN_S  # chosen: a delay of a send is reported in steps, and that of its arrival adds to it
TIMER_S = 0.005  # chosen: timers are late by a millisecond or two; submits closer than this go in small groups
LATE_S = 0.002  # measured: a submit that waits is sent 0.5 ms late, more under load; without it, 3 % of 60/s are lost
LATE_SMOOTHING = 0.125  # RFC 6298, 2: alpha
MAX_CATCH_UP = 0.1  # chosen: share of the time between two submits; a limiter without any burst refuses closer ones


class RateController:
    """The current submit rate. `per_s` is the rate now, `ceiling_per_s` its upper limit.

    With `discover`, the user has not configured a rate: it starts low and grows fast until the first 429.
    """

    def __init__(self, ceiling_per_s: float, *, discover: bool = False, is_shared: bool = False) -> None:
        self.ceiling_per_s = ceiling_per_s
        start_per_s = min(DISCOVERY_START_PER_S, ceiling_per_s) if discover else ceiling_per_s
        self._window = SendWindow(ceiling_per_s, SHARED_MARGIN_S if is_shared else MARGIN_S)
        self._latency = AnswerLatency()
        self._search = RateSearch(start_per_s, ceiling_per_s, is_known=not discover, may_space=not is_shared)
        self._jobs = JobsLimit()
        self._due_s = -math.inf  # when the next submit is due at an even rate
        self._late_s = 0.0  # how late submits usually are
        self._latest_sent_s = -math.inf
        self._paused_until_s = -math.inf

        # The current refusal: from a 429 until the end of its pause.
        self._refused_s: float | None = None  # when the first refused submit was sent
        self._refused_submit: Submit | None = None
        self._refusing_until_s = -math.inf  # until then, the limiter would have refused every submit
        self._rate_valid_from_s = -math.inf  # the end of the last pause: earlier submits show nothing new
        self._consecutive_429 = 0  # without an accepted submit between them
        self._accepted_since_pause = 0
        self._estimate_before_cap: Estimate | None = None

    @property
    def per_s(self) -> float:
        """The rate now."""
        return self._search.per_s

    @property
    def pace_per_s(self) -> float:
        """The rate of submits that follow each other: higher than `per_s` while a window is filled."""
        return self._search.pace_per_s

    @property
    def is_spaced(self) -> bool:
        """Whether the time between two submits counts, because the limiter has no burst."""
        return self._search.is_spaced

    def has_room(self, now_s: float, unsent: int = 0) -> bool:
        """Return whether another job may be in process, besides those that are about to be submitted."""
        self._end_pause(now_s)  # which may lower the cap
        return self._jobs.has_room(unsent)

    def on_full(self, now_s: float) -> None:
        """Record that a submit waits because too many jobs are in process."""
        self._jobs.on_full(now_s)

    @property
    def jobs_in_process(self) -> int:
        """The jobs in process, and submits without an answer, as far as they are known."""
        return self._jobs.jobs

    @property
    def found(self) -> FoundLimit | None:
        """The limit of the gateway, if refusals have shown one below the configured rate; else None."""
        per_s, max_jobs = self._search.limit_per_s, self._jobs.cap
        if max_jobs is None and per_s is None:
            return None
        return FoundLimit(per_s or self.per_s, self._search.memory_s, max_jobs, self.is_spaced)

    def resume(self, found: FoundLimit) -> None:
        """Start slightly below a limit that an earlier run has found, unless submits were sent already."""
        if self._search.is_new:
            gap = 1.0 / RESUMED_SHARE - 1.0
            self._search.assume(RESUMED_SHARE * found.per_s, found.memory_s, gap=gap, is_spaced=found.is_spaced)
            self._jobs.assume(found.max_jobs)

    # ---- when the next request may be sent ---------------------------------------------------------------

    def wait_s(self, now_s: float, unsent: int = 0) -> float:
        """Return the seconds until a submit may be sent, besides `unsent` others that are about to be; 0 if now."""
        self._end_pause(now_s)
        free_s = self._window.free_s()
        if self.per_s < self.ceiling_per_s:
            if self._due_s > now_s:
                group_s = 0.0 if self.is_spaced else max(0.0, TIMER_S - 1.0 / self.pace_per_s)
                free_s = max(free_s, self._due_s - group_s)
            free_s = max(free_s, self._search.free_s(unsent))
        return max(0.0, self._paused_until_s - now_s, free_s - now_s)

    def paused_s(self, now_s: float) -> float:
        """Return for how many more seconds all submits are paused."""
        return max(0.0, self._paused_until_s - now_s)

    def pause(self, now_s: float, wait_s: float) -> None:
        """Pause all submits for `wait_s` seconds, without a change of the rate."""
        self._paused_until_s = max(self._paused_until_s, now_s + wait_s)
        self._search.restart_cycle()

    # ---- what happened -----------------------------------------------------------------------------------

    def on_sent(self, now_s: float) -> None:
        """Record that a submit is sent."""
        self._window.add(now_s)
        self._jobs.on_sent(now_s, self.per_s)
        self._search.on_sent(now_s, max(self._due_s, self._paused_until_s), self._latency.long_s)
        gap_s, late_s = 1.0 / self.pace_per_s, now_s - self._due_s
        self._due_s = max(self._due_s, now_s) + gap_s
        if late_s <= LATE_S and not self.is_spaced:  # else it is the first one after a break
            self._late_s += LATE_SMOOTHING * (max(0.0, late_s) - self._late_s)
            if late_s > 0.0:
                self._due_s -= min(self._late_s, MAX_CATCH_UP * gap_s)
        self._latest_sent_s = now_s

    def on_late(self, sent_s: float, late_s: float) -> None:
        """Record that a submit that was planned for `sent_s` was sent later."""
        self._window.delay(sent_s, late_s)

    def remember_sent(self, sent_s: Sequence[float]) -> None:
        """Count requests that were sent before this rule was created, in order."""
        for at_s in sent_s:
            self._window.add(at_s)

    def on_other_request(self, now_s: float) -> None:
        """Record that another request is sent that counts against the same limit."""
        self._window.add(now_s)
        self._due_s = max(self._due_s, now_s) + 1.0 / self.pace_per_s
        self._search.on_accepted(now_s)

    def on_response(self, sent_s: float, now_s: float, *, accepted: bool = True) -> None:
        """Record an answer, other than 429, to a submit sent at `sent_s`."""
        delay_s = self._observe_latency(sent_s, now_s)
        self._search.on_accepted(sent_s, delay_s)
        if sent_s >= self._rate_valid_from_s:
            self._consecutive_429 = 0
            self._accepted_since_pause += 1
        if accepted:
            self._jobs.on_accepted(sent_s)
        else:
            self._jobs.on_not_accepted(sent_s)

    def on_not_sent(self, sent_s: float) -> None:
        """Record that a submit was not sent after all."""
        self._search.on_not_accepted(sent_s)
        self._jobs.on_not_accepted(sent_s)

    def on_job_resumed(self) -> None:
        """Count a job in process that an earlier run submitted."""
        self._jobs.on_resumed()

    def on_job_ended(self) -> None:
        """Record that a job is not in process any more."""
        self._jobs.on_ended()

    def on_rate_limited(self, sent_s: float, now_s: float, retry_after_s: float | None) -> None:
        """Record a 429 for a submit sent at `sent_s`, and pause all submits.

        Submits that were sent before the last pause show nothing new about the rate.
        """
        delay_s = self._observe_latency(sent_s, now_s)
        submit = self._jobs.on_not_accepted(sent_s)
        self._search.on_refused(sent_s, delay_s)
        is_new = sent_s >= self._rate_valid_from_s
        if is_new and self._refused_s is None and self._is_configured_rate(sent_s) and self._window.widen():
            self._pause_after_429(now_s, retry_after_s)
            return
        if is_new or retry_after_s is not None:
            self._pause_after_429(now_s, retry_after_s)
        # A Retry-After in whole seconds may be rounded up.
        certain_s = max(0.0, retry_after_s - (retry_after_s % 1 == 0)) if retry_after_s is not None else 0.0
        self._refusing_until_s = max(self._refusing_until_s, sent_s + certain_s)
        if is_new:
            self._consecutive_429 += 1
            if self._refused_s is None or sent_s < self._refused_s:
                self._refused_s, self._refused_submit = sent_s, submit
        if self._refused_s is not None:
            self._rate_valid_from_s = max(now_s, self._paused_until_s)

    def _pause_after_429(self, now_s: float, retry_after_s: float | None) -> None:
        if retry_after_s is None:
            growth = PAUSE_GROWTH ** min(self._consecutive_429, 50)
            retry_after_s = min(PAUSE_WITHOUT_RETRY_AFTER_S * growth, MAX_PAUSE_WITHOUT_RETRY_AFTER_S)
        self._paused_until_s = max(self._paused_until_s, now_s + retry_after_s)

    def _observe_latency(self, sent_s: float, now_s: float) -> float:
        """Record how long an answer took. Return by how much its submit was probably delayed on its way."""
        late_s = self._latency.observe(now_s - sent_s, self.per_s)
        if late_s > 0:
            self._window.delay(sent_s, late_s)
        if not self.is_spaced:
            return 0.0
        spacing_s = 1.0 / self.pace_per_s
        delay_s = self._latency.delay_s(now_s - sent_s, spacing_s)
        if sent_s == self._latest_sent_s:
            self._due_s = sent_s + delay_s + spacing_s
        return delay_s

    def _is_configured_rate(self, sent_s: float) -> bool:
        """Whether the gateway accepted about as many submits in the last window as the user configured."""
        accepted = self._search.accepted_between(sent_s - WINDOW_S, sent_s)
        return self.per_s == self.ceiling_per_s and accepted >= FULL_SHARE * self.per_s * WINDOW_S

    def _end_pause(self, now_s: float) -> None:
        if self._refused_s is not None and now_s >= self._paused_until_s:
            self._resume(now_s, self._refused_s)

    def _resume(self, now_s: float, refused_s: float) -> None:
        """Decide on the rate, or on the cap on jobs, at the end of a pause."""
        submit = self._refused_submit
        if submit is None or not self._is_about_jobs(submit, refused_s, now_s):
            self._search.resume(now_s, refused_s, self._refusing_until_s, self._latency.long_s)
        self._refused_s = self._refused_submit = None
        self._accepted_since_pause = 0
        self._rate_valid_from_s = now_s
        # A submit that was pending at the refusal may have been accepted after it.
        self._due_s = max(now_s, self._latest_sent_s + 1.0 / self.pace_per_s)

    def _is_about_jobs(self, submit: Submit, refused_s: float, now_s: float) -> bool:
        """Whether the refusal is about the jobs in process. If so, the rate is not lowered."""
        had_cap, estimate = self._jobs.cap is not None, self._search.estimate
        if self._search.is_probing_window and not had_cap:
            return False  # Probes are refused at the same number of jobs, if each window is filled fast.
        if self._jobs.explains(submit, refused_s, now_s, self._accepted_since_pause):
            if not had_cap:
                self._estimate_before_cap = estimate
                estimate = replace(estimate, per_s=CAPPED_GROWTH * estimate.per_s, gap=MIN_GAP, fallback_per_s=None)
            self._search.restart(now_s, replace(estimate, per_s=max(estimate.per_s, self.per_s)))
            return True
        if had_cap and self._jobs.cap is None and self._estimate_before_cap is not None:
            self._search.restart(now_s, self._estimate_before_cap)
        return False
