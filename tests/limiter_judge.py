"""Judge the rate rule in virtual time against random limiters of a gateway. They share no code with the product.

    judge(draw_limiter(17), configured_per_s=600.0)   with a configured rate
    judge(draw_limiter(17))                           it has to find the limit (`auto`)

The client submits an endless backlog as the submitter does: the rate limiter spreads submits evenly below the rate
rule, and no more POSTs are pending than `PendingLimit` allows. A seed always gives the same limiter and the same run.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from random import Random
from typing import NamedTuple

from krea_batch.pipeline.rate_limiter import RateLimiter
from krea_batch.pipeline.task_pool import TaskPool
from krea_batch.rules.pending_limit import EXTRA_PENDING, PendingLimit
from krea_batch.rules.rate_control import RateController
from krea_batch.rules.send_window import BURST_S
from krea_batch.settings import AUTO, MAX_PER_S, Rate
from krea_batch.testing import run_virtual

MAX_PENDING = 256  # as many POSTs as the submitter lets be pending
START_S = 1000.0
MIN_RUN_S, MIN_WINDOWS = 600.0, 20  # a run is this long after its first window, whichever is longer
SETTLE_S, SETTLE_WINDOWS = 60.0, 2  # within this time a changed limit is to be followed, whichever is longer
JOB_SIGMA = 0.3  # as the simulator's latencies
CLOCK_STEP_S = 1e-6
COMMIT_S = 0.012  # the longest time until the intent of a submit is durable
KIND_WEIGHTS = {"bucket": 35, "fixed window": 25, "sliding window": 25, "jobs in process": 15}
RETRY_AFTER_FORMS = ("exact", "seconds", "missing")


class LimiterCase(NamedTuple):
    """A limiter, and the network between it and the client."""

    seed: int
    kind: str
    per_s: float  # what the limiter allows in the long run
    number: int  # the burst of a bucket, the requests of a window, or the jobs in process
    window_s: float  # the length of a window; how long a bucket takes to fill; `job_s`
    job_s: float  # the mean time from accepted to ended
    retry_after: str
    counts_refused: bool
    jitter_s: float  # the longest delay of a request on its way
    latency_s: float  # the mean time until the answer
    lag_s: float  # the longest time until the client knows that a job has ended
    change: float  # the factor by which the limit changes in the middle of the run

    @property
    def first_window_s(self) -> float:
        return max(1.0, self.window_s)

    @property
    def run_s(self) -> float:
        """The time after the first window: a whole number of windows."""
        windows = max(MIN_WINDOWS, math.ceil(MIN_RUN_S / self.first_window_s))
        return (windows if self.change == 1.0 else 2 * windows) * self.first_window_s


class JudgeResult(NamedTuple):
    """`share` is accepted ÷ allowed after the first window; if the limit changes, once it has to be followed."""

    case: LimiterCase
    share: float
    rate_limited_per_job: float
    jobs: int


def log_uniform(random: Random, low: float, high: float) -> float:
    """Return a random number that is equally likely in each factor of ten."""
    return float(low * (high / low) ** random.random())


def draw_limiter(seed: int, *, changes: bool = False, max_per_s: float = 200.0) -> LimiterCase:
    """Return the random limiter of a seed. With `changes`, it halves or doubles in the middle of the run."""
    random = Random(f"limiter {seed}")
    kind = random.choices([*KIND_WEIGHTS], [*KIND_WEIGHTS.values()])[0]
    per_s = log_uniform(random, 0.5, max_per_s)
    job_s = log_uniform(random, 2.0, 60.0)
    if kind == "jobs in process":
        window_s, number = job_s, min(500, max(2, round(per_s * job_s)))
        per_s = number / job_s
    elif kind == "bucket":
        number = 1 if random.random() < 0.25 else math.ceil(log_uniform(random, 1.0, max(1.0, 300.0 * per_s)))
        window_s = number / per_s
    else:
        window_s = log_uniform(random, 1.0, 300.0)
        number = max(1, round(per_s * window_s))
        per_s = number / window_s
    return LimiterCase(
        seed=seed,
        kind=kind,
        per_s=per_s,
        number=number,
        window_s=window_s,
        job_s=job_s,
        retry_after=random.choice(RETRY_AFTER_FORMS),
        counts_refused=kind != "jobs in process" and random.random() < 0.25,
        jitter_s=log_uniform(random, 0.0001, 0.02),
        # Single answers take up to one and a half times as long: 2 s. The pending POSTs must not be the limit.
        latency_s=log_uniform(random, 0.02, min(2.0 / 1.5, 0.5 * MAX_PENDING / per_s)),
        lag_s=log_uniform(random, 0.1, min(5.0, job_s / 2)),
        change=random.choice((0.5, 2.0)) if changes else 1.0,
    )


def draw_configured_per_s(case: LimiterCase) -> float:
    """Return a rate that is far too high for a limiter."""
    return case.per_s * log_uniform(Random(f"told {case.seed}"), 3.0, 30.0)


# ---- the limiters ----------------------------------------------------------------------------------------


class JudgedLimiter:
    """A limiter. Requests arrive in the order of their times."""

    def take(self, now_s: float) -> float:
        """Return 0.0 if the request is accepted, or else the seconds until one would be."""
        raise NotImplementedError

    def scale(self, factor: float) -> None:
        """Change the limit."""
        raise NotImplementedError


class RefillingTokens(JudgedLimiter):
    """Tokens that come back evenly. With a burst of one it is GCRA without tolerance."""

    def __init__(self, case: LimiterCase, random: Random) -> None:
        self._per_s, self._burst, self._counts_refused = case.per_s, float(case.number), case.counts_refused
        self._tokens, self._at_s = self._burst, START_S

    def take(self, now_s: float) -> float:
        self._tokens = min(self._burst, self._tokens + (now_s - self._at_s) * self._per_s)
        self._at_s = now_s
        if self._tokens >= 1.0 - 1e-9:
            self._tokens -= 1.0
            return 0.0
        if self._counts_refused:
            self._tokens = 0.0
        return (1.0 - self._tokens) / self._per_s

    def scale(self, factor: float) -> None:
        self._per_s *= factor
        self._burst = max(1.0, self._burst * factor)


class ClockWindow(JudgedLimiter):
    """So many requests in each window of the clock. The client does not know when windows start."""

    def __init__(self, case: LimiterCase, random: Random) -> None:
        self._count, self._window_s = case.number, case.window_s
        self._end_s, self._used = START_S + case.window_s * (1.0 - random.random()), 0

    def take(self, now_s: float) -> float:
        while now_s >= self._end_s:
            self._end_s += self._window_s
            self._used = 0
        if self._used < self._count:
            self._used += 1
            return 0.0
        return self._end_s - now_s

    def scale(self, factor: float) -> None:
        self._count = max(1, round(self._count * factor))


class LoggedWindow(JudgedLimiter):
    """So many requests in any window, from a log of the requests that count."""

    def __init__(self, case: LimiterCase, random: Random) -> None:
        self._count, self._window_s, self._counts_refused = case.number, case.window_s, case.counts_refused
        self._counted_s: deque[float] = deque()

    def take(self, now_s: float) -> float:
        counted_s = self._counted_s
        while counted_s and counted_s[0] <= now_s - self._window_s:
            counted_s.popleft()
        if len(counted_s) < self._count:
            counted_s.append(now_s)
            return 0.0
        if self._counts_refused:
            counted_s.append(now_s)
        return max(counted_s[-self._count] + self._window_s - now_s, CLOCK_STEP_S)

    def scale(self, factor: float) -> None:
        self._count = max(1, round(self._count * factor))


class ProcessedJobs(JudgedLimiter):
    """So many jobs in process. `start` says when an accepted job will end."""

    def __init__(self, case: LimiterCase, random: Random) -> None:
        self._count = case.number
        self._ends_s: list[float] = []

    def take(self, now_s: float) -> float:
        while self._ends_s and self._ends_s[0] <= now_s:
            heappop(self._ends_s)
        return 0.0 if len(self._ends_s) < self._count else self._ends_s[0] - now_s

    def start(self, end_s: float) -> None:
        heappush(self._ends_s, end_s)

    def scale(self, factor: float) -> None:
        self._count = max(1, round(self._count * factor))


LIMITERS: dict[str, Callable[[LimiterCase, Random], JudgedLimiter]] = {
    "bucket": RefillingTokens,
    "fixed window": ClockWindow,
    "sliding window": LoggedWindow,
    "jobs in process": ProcessedJobs,
}


class JudgedGateway:
    """A limiter that accepts jobs, and the accounts of the judge."""

    def __init__(self, case: LimiterCase) -> None:
        self.case = case
        self.random = Random(f"run {case.seed}")
        self._limiter = LIMITERS[case.kind](case, self.random)
        self._mu = math.log(case.job_s) - JOB_SIGMA**2 / 2
        self.accepted_s: list[float] = []
        self.rate_limited = 0
        self.end_s = START_S + case.first_window_s + case.run_s
        self._change_s = START_S + case.first_window_s + case.run_s / 2
        self._changed = case.change == 1.0

    def submit(self, now_s: float) -> tuple[float, float]:
        """Take a request that arrives now. Return 0 and the end of its job, or the wait and 0."""
        if not self._changed and now_s >= self._change_s:
            self._limiter.scale(self.case.change)
            self._changed = True
        wait_s = self._limiter.take(now_s)
        if wait_s > 0.0:
            self.rate_limited += 1
            return wait_s, 0.0
        self.accepted_s.append(now_s)
        end_s = now_s + self.random.lognormvariate(self._mu, JOB_SIGMA)
        if isinstance(self._limiter, ProcessedJobs):
            self._limiter.start(end_s)
        return 0.0, end_s

    def delay_s(self) -> float:
        """Return how long a request is on its way."""
        return self.random.random() * self.case.jitter_s

    def latency_s(self) -> float:
        """Return how long an answer takes."""
        return self.case.latency_s * (0.5 + self.random.random())

    def lag_s(self) -> float:
        """Return how long it takes until the client knows that a job has ended."""
        return self.random.random() * self.case.lag_s

    def retry_after_s(self, wait_s: float) -> float | None:
        """Return the Retry-After of a 429."""
        forms = {"exact": wait_s, "seconds": float(max(1, math.ceil(wait_s))), "missing": None}
        return forms[self.case.retry_after]

    def result(self) -> JudgeResult:
        """Return what was accepted of what was allowed."""
        case = self.case
        start_s, end_s, per_s = START_S + case.first_window_s, self.end_s, case.per_s
        if case.change != 1.0:
            settle_s = max(SETTLE_S, SETTLE_WINDOWS * case.first_window_s)
            start_s = self._change_s + settle_s
            end_s = min(end_s, start_s + settle_s)
            per_s *= case.change if case.kind == "bucket" else max(1, round(case.number * case.change)) / case.number
        accepted = sum(1 for at_s in self.accepted_s if start_s < at_s <= end_s)
        jobs = len(self.accepted_s)
        return JudgeResult(case, accepted / (per_s * (end_s - start_s)), self.rate_limited / max(1, jobs), jobs)


# ---- the client ------------------------------------------------------------------------------------------


def judge(case: LimiterCase, configured_per_s: float | None = None) -> JudgeResult:
    """Run the rate rule against a limiter. Without a configured rate, it has to find the limit (`auto`)."""
    controller = RateController(configured_per_s or MAX_PER_S, discover=configured_per_s is None)
    gateway = JudgedGateway(case)
    run_client(gateway, controller)
    return gateway.result()


def run_client(gateway: JudgedGateway, controller: RateController) -> None:
    """Submit an endless backlog until the end of the run, with queues of events instead of an event loop.

    When the next request may be sent changes only with an answer, at the end of a pause, and with the end of a job if
    jobs are capped, so the controller is not asked more often.
    """
    pending_limit = PendingLimit(MAX_PENDING)
    numbers = count()
    arrivals: list[tuple[float, int, float]] = []  # when it arrives, a number, when it was sent
    answers: list[tuple[float, int, float, float]] = []  # when, a number, when it was sent, the wait
    job_ends_s: list[float] = []  # when the client knows that a job has ended
    pending, now_s, due_s, was_paused = 0, START_S, START_S, False
    send_s: float | None = None  # when the next request is sent; None if the controller has to be asked
    while now_s < gateway.end_s:
        if send_s is None:
            was_paused = controller.paused_s(now_s) > 0  # if so, the rule decides at the end of the pause
            # So few may always be pending, and asking for more takes time.
            may_send = controller.has_room(now_s) and (
                pending < EXTRA_PENDING or pending < pending_limit.max_pending(controller.pace_per_s)
            )
            send_s = max(now_s + controller.wait_s(now_s), due_s - BURST_S) if may_send else math.inf
        answer_s = answers[0][0] if answers else math.inf
        job_end_s = job_ends_s[0] if job_ends_s else math.inf
        event_s = min(answer_s, job_end_s, send_s)
        if arrivals and arrivals[0][0] <= event_s:
            arrive_s, number, sent_s = heappop(arrivals)
            wait_s, end_s = gateway.submit(arrive_s)
            heappush(answers, (arrive_s + gateway.latency_s(), number, sent_s, wait_s))
            if not wait_s:
                heappush(job_ends_s, end_s + gateway.lag_s())
        elif event_s == job_end_s:
            now_s = heappop(job_ends_s)
            controller.on_job_ended()
            if send_s == math.inf or was_paused:
                send_s = None
        elif event_s == answer_s:
            now_s, _, sent_s, wait_s = heappop(answers)
            pending -= 1
            pending_limit.record_answer(now_s - sent_s)
            if wait_s:
                controller.on_rate_limited(sent_s, now_s, gateway.retry_after_s(wait_s))
            else:
                controller.on_response(sent_s, now_s)
            send_s = None
        elif was_paused and send_s > now_s:
            now_s = max(send_s, now_s + CLOCK_STEP_S)
            send_s = None
        else:
            now_s = max(now_s, send_s)
            controller.on_sent(now_s)
            pending += 1
            due_s = max(due_s, now_s) + 1.0 / controller.pace_per_s
            heappush(arrivals, (now_s + gateway.delay_s(), next(numbers), now_s))
            send_s = None


# ---- the same client with the real rate limiter ----------------------------------------------------------


def judge_rate_limiter(case: LimiterCase, configured_per_s: float | None = None) -> JudgeResult:
    """Run the real `RateLimiter` against a limiter, in virtual time. It takes ten times as long as `judge`."""
    gateway = JudgedGateway(case)
    rate = Rate(MAX_PER_S, AUTO) if configured_per_s is None else Rate(configured_per_s, f"{configured_per_s}/s")
    run_virtual(RateLimiterClient(gateway, RateLimiter(rate)).run())
    return gateway.result()


class RateLimiterClient:
    """Submits an endless backlog in tasks, as the submitter does."""

    def __init__(self, gateway: JudgedGateway, rate_limiter: RateLimiter) -> None:
        self._gateway, self._rate_limiter = gateway, rate_limiter
        self._pending_limit = PendingLimit(MAX_PENDING)
        self._pending = 0
        self._answered = asyncio.Event()

    async def run(self) -> None:
        """Run until the end of the run of the gateway."""
        loop = asyncio.get_running_loop()
        self._rate_limiter.bind_loop()
        async with TaskPool() as posts:
            while loop.time() < self._gateway.end_s:
                while self._pending >= self._pending_limit.max_pending(self._rate_limiter.controller.pace_per_s):
                    self._answered.clear()
                    await self._answered.wait()
                await self._rate_limiter.acquire()
                self._pending += 1
                posts.spawn(self._submit(loop))

    async def _submit(self, loop: asyncio.AbstractEventLoop) -> None:
        gateway, controller = self._gateway, self._rate_limiter.controller
        await asyncio.sleep(gateway.random.random() * COMMIT_S)
        sent_s = await self._rate_limiter.confirm()
        if sent_s is not None:
            await asyncio.sleep(gateway.delay_s())
            wait_s, end_s = gateway.submit(loop.time())
            if not wait_s:
                loop.call_at(end_s + gateway.lag_s(), self._rate_limiter.on_job_ended)
            await asyncio.sleep(gateway.latency_s())
            self._pending_limit.record_answer(loop.time() - sent_s)
            if wait_s:
                controller.on_rate_limited(sent_s, loop.time(), gateway.retry_after_s(wait_s))
            else:
                controller.on_response(sent_s, loop.time())
        self._pending -= 1
        self._answered.set()
