"""Estimate a rate limit of unknown shape from a refusal. Pure.

A cycle lasts from the end of one pause to the end of the next. Each cycle gives a lower and an upper bound of the
limit. The lower bound is the number of submits accepted in the cycle divided by its duration, because the limiter has
allowed that rate. If the limiter is a window or a large bucket, this is the limit itself: what is not used during the
pause can be used after it. A bucket with a small burst overflows during a pause that is longer than necessary, so the
limit is higher. A pause may be too long by a second if Retry-After has whole seconds, and without Retry-After its
length is a guess. Therefore the upper bound leaves out the part of the pause in which a submit might have been
accepted.

A probe is a series of growing rates. If a rate is refused, the one before it is tried next; this is a trial. A
limiter that looks back far (its memory: a long window, a large bucket) accepts a rate that is too high for a while.
So a trial goes less far above the known rate if earlier trials have failed (`confidence`). If a trial achieves less
than the rate before it, that rate is used again.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

MIN_GAP = 0.02  # chosen: a limit that is known to 2 % is known well enough
NARROW = 1.1  # chosen: if the bounds differ by less than 10 %, the limit is taken to be in the middle
OTHER_RATE = 0.1  # chosen: rates that differ by less give the same count whatever the limiter is, so it shows nothing
SAME_COUNT = 0.25  # chosen: counts are the same if they differ by less than this share of the rates (as logarithms)
MIN_ACCEPTED = 4  # chosen: fewer accepted submits do not show a rate
FIRST_SURPLUS = 1.25  # chosen: the first estimate may be a quarter above what was accepted in its cycle
HELD_STEPS = 4.0  # chosen: a rate is held if accepted for four steps, as many as a probe has to the known refusal
LONG_MEMORIES = 4.0  # chosen: a rate that was accepted for this many memories is not too high
MAX_DECREASE = 1.0  # chosen: the rate is at most halved by one refusal, as by TCP (RFC 5681, 3.1)
MIN_CONFIDENCE = 1 / 16  # chosen: trials never stop entirely, since the limiter may change
MIN_TRIAL_CONFIDENCE = 1.0  # chosen: after a failed trial, the middle is tried once, as each trial costs a pause
FAILED_GAP_SHARE = 1 / 4  # chosen: after a failed trial, a quarter of the gap is still searched: one step of a probe
MIN_LOSS_S = 0.3  # chosen: a refused probe costs at least an answer and some 429s
PROBE_DELAY_POWER = 1.5  # measured: 2 repeats expensive probes of small gaps, 1 searches large gaps too slowly
MAX_PROBE_DELAY_S = 45.0  # chosen: with the probe itself, a limit that has doubled is used within a minute
MIN_LOSS_FACTOR = 25.0  # chosen: probes whose answers and pauses take seconds cost no more than 4 %
MIN_RATE_PER_S = 0.05  # chosen: users should configure limits below 3/min, which are slow to find


class Estimate(Struct, frozen=True):
    """What is known about the limit, and what follows from it.

    `gap` is the share by which the limit may be higher than `per_s`; infinite if nothing is known. `is_first`: no
    refusal has shown a rate yet. `decrease` is the share by which the rate was lowered last, while lowering it did
    not help. `fallback_per_s` is the rate to return to if `per_s`, which is a trial, is refused. `held_per_s` is the
    highest rate that was accepted for as long as the limiter remembers; 0.0 if none is known. `refused_per_s` and
    `refused_count` are the rate at the last refusal, and the accepted submits that the limiter remembered then.
    """

    per_s: float
    gap: float = MIN_GAP
    is_first: bool = True
    confidence: float = 1.0
    decrease: float = 0.0
    fallback_per_s: float | None = None
    held_per_s: float = 0.0
    refused_per_s: float = 0.0
    refused_count: int = 0
    upper_per_s: float = math.inf
    probe_delay_s: float = math.inf


class Cycle(NamedTuple):
    """The facts about a cycle that a refusal ended. If a probe was refused, the cycle starts with it."""

    refused_per_s: float  # the rate at the refusal
    previous_per_s: float  # the rate before the last step of a probe
    is_probe: bool
    was_used: bool  # submits were sent at the rate, rather than one now and then
    base_held_s: float  # from the end of the last pause to the refusal, or to the start of the probe
    held_s: float  # from the end of the last pause to the refusal
    duration_s: float
    accepted: int
    unproven_s: float  # the last part of the pause, in which a submit may have been accepted
    refused_count: int  # accepted submits in the memory of the limiter before the refusal
    achieved_per_s: float  # over the memory of the limiter, or the cycle if that is longer
    memory_s: float
    step_s: float  # of a probe
    fitted_per_s: tuple[float, float] | None = None  # the rates of the limiters that explain the latest refusals

    @property
    def lower_per_s(self) -> float:
        """The rate that the limiter has certainly allowed."""
        return max(self.accepted, 0.5) / self.duration_s

    @property
    def upper_per_s(self) -> float:
        """The highest rate that the limiter may allow, provided that submits were sent all the time."""
        counted_s = max(self.duration_s - self.unproven_s, 1e-3)
        return max(self.lower_per_s, min(self.refused_per_s, max(self.accepted, 0.5) / counted_s))

    @property
    def is_held(self) -> bool:
        """Whether the rate was accepted for long, so that lowering it helped."""
        is_long = self.held_s >= max(self.memory_s, HELD_STEPS * self.step_s)
        return is_long and (self.is_probe or NARROW * self.lower_per_s >= self.refused_per_s)


def after_refusal(before: Estimate, cycle: Cycle) -> tuple[Estimate, bool]:
    """Return the estimate after a refusal, and whether a new cycle starts; otherwise, the current one continues."""
    before = _update_held(before, cycle)
    is_over = True
    if not cycle.accepted:  # The limiter is closed, whatever the rate is.
        after = _estimate(before, before.per_s / 2, 2 * before.gap + 1)
    elif cycle.fitted_per_s is not None:
        after = _after_fit(before, cycle, *cycle.fitted_per_s)
    elif _is_same_count(before, cycle):
        count = min(before.refused_count, cycle.refused_count)
        after = _estimate(before, count / cycle.memory_s / (1.0 + MIN_GAP / 2), MIN_GAP)
    elif before.fallback_per_s is not None and _has_failed(before.per_s, before.fallback_per_s, cycle):
        after = _after_failed_trial(before, cycle, before.fallback_per_s)
    elif cycle.is_probe:
        after = _after_probe(_reward(before, cycle), cycle)
    elif before.is_first and cycle.was_used:
        after = _after_first_refusal(before, cycle)
    elif cycle.duration_s < cycle.memory_s or not cycle.was_used:
        after, is_over = _lower_slightly(_reward(before, cycle), cycle), False
    else:
        after = _after_refused_estimate(_reward(before, cycle), cycle)
    is_first = before.is_first and (cycle.accepted < MIN_ACCEPTED or cycle.duration_s < cycle.memory_s)
    after = replace(
        after,
        per_s=max(MIN_RATE_PER_S, min(after.per_s, max(before.per_s, cycle.refused_per_s))),
        is_first=is_first,
        refused_per_s=cycle.refused_per_s,
        refused_count=0 if math.isinf(before.gap) else cycle.refused_count,  # the rate was not constant until then
        upper_per_s=cycle.upper_per_s,
        probe_delay_s=_probe_delay_s(after, cycle),
    )
    return after, is_over


def _estimate(before: Estimate, per_s: float, gap: float) -> Estimate:
    """Return an estimate that is not a trial."""
    return replace(before, per_s=max(per_s, MIN_RATE_PER_S), gap=max(gap, MIN_GAP), decrease=0.0, fallback_per_s=None)


# ---- what the cycle shows about the estimate before it ---------------------------------------------------


def _update_held(before: Estimate, cycle: Cycle) -> Estimate:
    """Update the highest rate that the limiter has accepted for as long as it remembers."""
    if cycle.base_held_s >= cycle.memory_s * (1.0 if cycle.is_probe else LONG_MEMORIES):
        return replace(before, held_per_s=before.per_s)
    return replace(before, held_per_s=0.0) if before.per_s <= before.held_per_s else before


def _has_failed(per_s: float, fallback_per_s: float, cycle: Cycle) -> bool:
    """Whether a trial was no better than the rate before it."""
    if cycle.is_probe:  # A higher rate was refused. Was the trial itself too high for the memory of the limiter?
        return cycle.held_s < cycle.memory_s and per_s > cycle.refused_count / cycle.memory_s
    return cycle.held_s < cycle.memory_s or cycle.lower_per_s < fallback_per_s


def _reward(before: Estimate, cycle: Cycle) -> Estimate:
    """Trust trials more after one that was held; a rate that was held was lowered enough."""
    if not cycle.is_held:
        return before
    is_trial = before.fallback_per_s is not None
    confidence = min(1.0, 2 * before.confidence) if is_trial else before.confidence
    return replace(before, confidence=confidence, decrease=0.0)


def _is_same_count(before: Estimate, cycle: Cycle) -> bool:
    """Whether two refusals at different rates came after the same number of submits, which shows a window."""
    if min(before.refused_count, cycle.refused_count) < MIN_ACCEPTED:
        return False
    if cycle.refused_count / cycle.memory_s > min(before.upper_per_s, cycle.upper_per_s):
        return False  # These are the submits of two windows.
    rates = abs(math.log(cycle.refused_per_s / before.refused_per_s))
    counts = abs(math.log(cycle.refused_count / before.refused_count))
    return rates >= OTHER_RATE and max(counts, 1.0 / cycle.refused_count) <= SAME_COUNT * rates


# ---- the estimate after it -------------------------------------------------------------------------------


def _after_fit(before: Estimate, cycle: Cycle, low_per_s: float, high_per_s: float) -> Estimate:
    """Use the rate of a limiter that explains the refusals, or slightly less once it is known well."""
    per_s = math.sqrt(low_per_s * high_per_s)
    if high_per_s < NARROW * low_per_s:
        return _estimate(before, per_s / (1.0 + MIN_GAP / 2), MIN_GAP)
    return _estimate(before, per_s, high_per_s / per_s - 1.0)


def _after_first_refusal(before: Estimate, cycle: Cycle) -> Estimate:
    """Estimate the limit from the first cycle, in which a bucket may have been full."""
    in_memory_per_s = cycle.refused_count / cycle.memory_s
    per_s = max(cycle.lower_per_s, min(in_memory_per_s, FIRST_SURPLUS * cycle.lower_per_s))
    return _estimate(before, per_s, cycle.upper_per_s / per_s - 1.0)


def _after_failed_trial(before: Estimate, cycle: Cycle, fallback_per_s: float) -> Estimate:
    """Return to the rate before the trial. If that rate was never held, try the middle of both first."""
    per_s = max(fallback_per_s, min(before.per_s, cycle.achieved_per_s))
    middle_per_s = math.sqrt(fallback_per_s * before.per_s)
    confidence = max(before.confidence / 2, MIN_CONFIDENCE)
    if (
        before.confidence >= MIN_TRIAL_CONFIDENCE
        and fallback_per_s > before.held_per_s
        and middle_per_s > per_s * (1.0 + MIN_GAP)
    ):
        after = _estimate(before, middle_per_s, before.per_s / middle_per_s - 1.0)
        return replace(after, confidence=confidence, fallback_per_s=fallback_per_s)
    after = _estimate(before, per_s, FAILED_GAP_SHARE * min(before.gap, before.per_s / per_s - 1.0))
    return replace(after, confidence=confidence)


def _after_probe(before: Estimate, cycle: Cycle) -> Estimate:
    """Try a rate between the one that was held before the probe and the one before the refusal."""
    held_per_s = cycle.lower_per_s if math.isinf(before.gap) else max(before.per_s, cycle.lower_per_s)
    # If the memory is long, the steps of a probe are short compared with it, and show little.
    boldness = before.confidence * min(1.0, HELD_STEPS * cycle.step_s / cycle.memory_s)
    target_per_s = cycle.previous_per_s
    if math.isinf(before.gap):
        target_per_s = min(target_per_s, cycle.refused_count / cycle.memory_s)
    per_s = held_per_s * (max(target_per_s, held_per_s) / held_per_s) ** boldness
    per_s = min(per_s, cycle.refused_per_s)
    refused_factor = max(cycle.refused_per_s, held_per_s) / held_per_s
    gap = cycle.refused_per_s / per_s - 1.0 if boldness == 1.0 else refused_factor**boldness - 1.0
    after = _estimate(before, per_s, gap)
    return replace(after, fallback_per_s=held_per_s if per_s > held_per_s else None)


def _lower_slightly(before: Estimate, cycle: Cycle) -> Estimate:
    """Lower the rate by steps that double, but not below what was achieved.

    The limiter may remember what was sent before this cycle, so the refusal says little about this rate.
    """
    decrease = min(max(MIN_GAP, 2 * before.decrease), MAX_DECREASE)
    per_s = max(cycle.achieved_per_s if cycle.was_used else 0.0, before.per_s / (1.0 + decrease), MIN_RATE_PER_S)
    return replace(before, per_s=min(before.per_s, per_s), decrease=decrease, fallback_per_s=None)


def _after_refused_estimate(before: Estimate, cycle: Cycle) -> Estimate:
    """Estimate the limit after an estimate that was too high, or a limit that has changed."""
    lower_per_s, upper_per_s = cycle.lower_per_s, cycle.upper_per_s
    if upper_per_s / lower_per_s < NARROW:
        per_s = min(math.sqrt(lower_per_s * upper_per_s), before.per_s / (1.0 + MIN_GAP / 4))
        return _estimate(before, per_s, upper_per_s / per_s - 1.0)
    if lower_per_s < before.held_per_s < before.per_s / (1.0 + MIN_GAP):
        per_s = math.sqrt(before.held_per_s * before.per_s)
        per_s = before.held_per_s if per_s < before.held_per_s * (1.0 + MIN_GAP) else per_s
        return _estimate(before, per_s, before.per_s / per_s - 1.0)
    decrease = min(max(before.gap, 2 * MIN_GAP, 2 * before.decrease), MAX_DECREASE)
    per_s = max(lower_per_s, min(upper_per_s, before.per_s / (1.0 + decrease)))
    return replace(_estimate(before, per_s, before.per_s / per_s - 1.0), decrease=decrease)


def _probe_delay_s(after: Estimate, cycle: Cycle) -> float:
    """Return how long to wait with the next probe: longer if this refusal cost much, or the gap is small."""
    loss_s = max(MIN_LOSS_S, cycle.duration_s - cycle.accepted / after.per_s)
    delay_s = loss_s / MIN_GAP * math.pow(MIN_GAP / after.gap, PROBE_DELAY_POWER)
    return min(delay_s, max(MAX_PROBE_DELAY_S, cycle.memory_s, MIN_LOSS_FACTOR * loss_s))
