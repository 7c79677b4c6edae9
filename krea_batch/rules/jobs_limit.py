"""Recognise a limit on the jobs in process, and keep it by a cap on their number instead of by the rate.

Such a limit refuses a submit whenever the maximum number of jobs is in process, whatever the rate is. A rate limit
does not depend on this number. So refusals are compared with the accepted submits around them. If the refusals come
at nearly the same number of jobs, which is among the highest, but not at the highest rates, the limit is on the jobs.

The cap includes jobs that have ended at the gateway and are not yet known to have ended here, so it is a little
higher than the gateway's limit. It is lowered by one at each refusal. As long as no refusal follows, it is raised in
steps that double. `sent_s` is monotonic.
"""

from __future__ import annotations

from collections import deque
from statistics import mean, pstdev
from typing import NamedTuple

REFUSALS = 8  # measured: with five, half as many rate limits again are taken for limits on jobs
MAX_DEVIATION = 0.1  # chosen: share of the mean number at the refusals; jobs not known to have ended vary as much
MIN_DEVIATION_JOBS = 1.5
MIN_TURNOVER = 0.25  # chosen: share of the jobs that must have been replaced, so that their number could have changed
MIN_ACCEPTED = 4
KEPT_SUBMITS = 2000  # chosen: twice the turnover of a thousand jobs
MIN_RANK = 0.74  # chosen: eight refusals that do not depend on the jobs reach it in 1 % of cases
MIN_RANK_ADVANTAGE = 0.3  # measured: with 0.15, half as many rate limits again are taken for limits on jobs
EXACT_DEVIATION_JOBS = 0.5  # chosen: the same number at all refusals but a few
MIN_EXACT_RANK = 0.9  # chosen: hardly any submit was accepted with that number of jobs
MIN_BUSY_SHARE = 0.7  # chosen: accepted with half the number or more; a half of them if it grows from none each time
BOUND_SHARE = 0.9  # chosen: a refusal with fewer jobs than this share of the cap is not about the jobs
RAISE_AFTER_JOBS = 10.0  # chosen: at most one refusal per ten accepted jobs
RAISE_AFTER_SHARE = 1 / 16  # chosen: share of the cap; a limit that has doubled is followed within a turnover
MAX_RAISE_AFTER_JOBS = 40.0  # chosen: at most one refusal per forty jobs if raising a small cap did not help
RAISE_AFTER_S = 45.0  # chosen: but a limit that was raised is noticed within this time, unless jobs are slow
RAISE_AFTER_TURNOVERS = 1.0  # chosen: a limit that was raised is noticed after at most this many turnovers
LARGEST_CUT = 8  # chosen: in a series of refusals, each lowers the cap by an eighth at most
MAX_UNEXPLAINED = 2  # chosen: after this many refusals in a row far below the cap, the limit is not on jobs
DROP_BELOW = 0.75  # chosen: below this share of the first cap, the limit has changed or never existed
MAX_FULL_S = 120.0  # chosen: if no job ends for this time, one more is tried; a 429 costs a waiting run nothing
DISTRUST_S = 300.0  # chosen: after a limit was recognised by mistake, none is looked for during this time


class Submit(NamedTuple):
    """A submit: the jobs in process when it was sent, and the rate."""

    jobs: int
    per_s: float


class JobsLimit:
    """Counts the jobs in process, and caps them once their number is known to be limited.

    `jobs` counts submits that are pending, too, because they may be accepted. `cap` is None without a limit.
    """

    def __init__(self) -> None:
        self.jobs = 0
        self.cap: int | None = None
        self._pending: dict[float, list[Submit]] = {}  # by the time at which they were sent
        self._accepted_count = 0
        self._accepted: deque[tuple[float, Submit]] = deque(maxlen=KEPT_SUBMITS)
        self._refusals: deque[tuple[Submit, int]] = deque(maxlen=REFUSALS)  # with the accepted submits until then
        self._first_cap = 0
        self._held_cap = 0  # the cap before it was raised in steps
        self._raise_by = 1
        self._raise_after = 0.0  # so many accepted submits at the cap
        self._lower_by = 1
        self._patience = RAISE_AFTER_JOBS
        self._accepted_at_cap = 0
        self._lowered_s = -float("inf")
        self._unexplained = 0
        self._distrust_until_s = -float("inf")
        self._full_since_s: float | None = None

    def has_room(self, unsent: int = 0) -> bool:
        """Return whether another job may be submitted, besides those that are about to be."""
        return self.cap is None or self.jobs + unsent < self.cap

    def on_full(self, now_s: float) -> None:
        """Record that a submit waits for room. If no job ends for MAX_FULL_S, let one more through.

        Jobs that the gateway has lost, and others that never end, would hold up a run until they time out.
        """
        if self._full_since_s is None:
            self._full_since_s = now_s
        elif self.cap is not None and now_s - self._full_since_s >= MAX_FULL_S:
            self.cap += 1
            self._full_since_s = now_s

    def on_sent(self, sent_s: float, per_s: float) -> None:
        """Count a submit."""
        self._pending.setdefault(sent_s, []).append(Submit(self.jobs, per_s))
        self.jobs += 1

    def on_resumed(self) -> None:
        """Count a job that an earlier run submitted."""
        self.jobs += 1

    def on_accepted(self, sent_s: float) -> None:
        """Record that a submit was accepted; its job stays in process until `on_ended`."""
        submit = self._pop(sent_s)
        self._accepted_count += 1
        if submit is None:
            return
        self._accepted.append((sent_s, submit))
        if self.cap is not None and submit.jobs >= self.cap - 1:
            self._accepted_at_cap += 1
            is_due = self._accepted_at_cap >= self._raise_after or sent_s - self._lowered_s >= RAISE_AFTER_S
            if is_due and self._accepted_at_cap >= max(RAISE_AFTER_JOBS, RAISE_AFTER_SHARE * self.cap):
                self._accepted_at_cap, self._raise_after, self._lower_by = 0, 0.0, 1
                self.cap += self._raise_by
                self._raise_by *= 2

    def on_not_accepted(self, sent_s: float) -> Submit | None:
        """Record that a submit was refused, or not sent. Return what it was, or None if it was not counted."""
        submit = self._pop(sent_s)
        self.jobs -= submit is not None
        return submit

    def _pop(self, sent_s: float) -> Submit | None:
        submits = self._pending.get(sent_s)
        if submits is None:
            return None
        submit = submits.pop()
        if not submits:
            del self._pending[sent_s]
        return submit

    def on_ended(self) -> None:
        """Record that a job has ended."""
        self.jobs -= 1
        self._full_since_s = None

    # ---- is the limit on jobs? ---------------------------------------------------------------------------

    def explains(self, refusal: Submit, sent_s: float, now_s: float, accepted: int) -> bool:
        """Return whether a refusal is about the number of jobs, and adjust the cap.

        `accepted` submits were accepted between the last pause and this one.
        """
        if self.cap is not None:
            return self._adjust(self.cap, refusal, now_s, accepted)
        if accepted:
            self._refusals.append((refusal, self._accepted_count))
        if now_s < self._distrust_until_s or not self._is_limit_on_jobs(sent_s):
            return False
        self.assume(max(1, round(mean(submit.jobs for submit, _ in self._refusals))))
        return True

    def assume(self, cap: int | None) -> None:
        """Use this cap from now on."""
        self.cap = cap
        self._first_cap = self._held_cap = cap or 0
        self._raise_by, self._lower_by, self._raise_after = 1, 1, 0.0
        self._accepted_at_cap = self._unexplained = 0

    def _is_limit_on_jobs(self, sent_s: float) -> bool:
        if len(self._refusals) < REFUSALS:
            return False
        counts = [submit.jobs for submit, _ in self._refusals]
        highest, turnover = max(counts), self._refusals[-1][1] - self._refusals[0][1]
        is_same = pstdev(counts) <= max(MIN_DEVIATION_JOBS, MAX_DEVIATION * mean(counts))
        if not is_same or turnover < max(MIN_ACCEPTED, MIN_TURNOVER * highest):
            return False
        before = [submit for at_s, submit in self._accepted if at_s < sent_s][-max(2 * turnover, 2 * MIN_ACCEPTED) :]
        jobs_rank = self._mean_rank([submit.jobs for submit in before], counts)
        rate_rank = self._mean_rank([submit.per_s for submit in before], [s.per_s for s, _ in self._refusals])
        if pstdev(counts) <= EXACT_DEVIATION_JOBS and jobs_rank >= MIN_EXACT_RANK:
            # A window that is filled fast has the same number at each refusal, too, but starts with none.
            busy = sum(2 * submit.jobs >= min(counts) for submit in before)
            if busy >= MIN_BUSY_SHARE * len(before):
                return True
        return jobs_rank >= MIN_RANK and jobs_rank >= rate_rank + MIN_RANK_ADVANTAGE

    @staticmethod
    def _mean_rank(accepted: list[float] | list[int], refused: list[float] | list[int]) -> float:
        """Return the mean share of the accepted values that are below a refused one; equal ones count half."""
        below = sum((value < limit) + 0.5 * (value == limit) for limit in refused for value in accepted)
        return below / max(1, len(accepted) * len(refused))

    def _adjust(self, cap: int, refusal: Submit, now_s: float, accepted: int) -> bool:
        # Without an accepted submit since the last pause, the limit may have been lowered far below the cap.
        if accepted and refusal.jobs < BOUND_SHARE * min(cap, self._held_cap) - 1:
            self._unexplained += 1
            if self._unexplained >= MAX_UNEXPLAINED:
                self._drop(now_s + DISTRUST_S)
            return False
        self._unexplained = 0
        is_hasty = accepted < RAISE_AFTER_JOBS
        self._lower_by = min(2 * self._lower_by, max(1, cap // LARGEST_CUT)) if is_hasty else 1
        self.cap = max(1, min(cap - max(self._lower_by, self._raise_by // 2), refusal.jobs))
        self._held_cap = self.cap
        if not accepted:  # The limit has been lowered: the jobs in process have to become fewer.
            self._first_cap = self.cap
        # Raising the cap by one gains a job per turnover; a refusal costs as many jobs as ended during its pause.
        ended = max(0, refusal.jobs - self.jobs)
        self._patience = 2 * self._patience if self._raise_by <= 4 else RAISE_AFTER_JOBS
        self._patience = min(self._patience, max(MAX_RAISE_AFTER_JOBS, RAISE_AFTER_TURNOVERS * cap))
        self._lowered_s = now_s
        self._raise_after = max(self._patience, min(ended**2 / 2, RAISE_AFTER_TURNOVERS * cap))
        self._raise_by, self._accepted_at_cap = 1, 0
        if self.cap < DROP_BELOW * self._first_cap:
            self._drop(now_s + DISTRUST_S)
        return self.cap is not None

    def _drop(self, distrust_until_s: float) -> None:
        """Forget the cap."""
        self.cap = None
        self._refusals.clear()
        self._distrust_until_s = distrust_until_s
