"""What the seed decides about one worker: when it joins, what it does, which faults it meets, and how it ends."""

from __future__ import annotations

import math
from random import Random
from typing import Any

from krea_batch import Engine, Job, Webhook
from krea_batch.rules.lease import LEASE_S
from tests.simulation.run_plan import CRASH, TO_THE_END, FeedJobs, feed_enqueue, feed_run
from tests.simulation.worker_loop import SimulatedWorker, WorkerLoop

ENDINGS = [TO_THE_END, TO_THE_END, TO_THE_END, "stop", "abort", "leave", CRASH, CRASH, CRASH]
BEFORE_COMMIT, AFTER_COMMIT = "before a commit", "after a commit"


async def feed_nothing(engine: Engine, _: list[Job]) -> None:
    """Work on the jobs of other workers until none is open."""
    await engine.run([])


async def feed_some(engine: Engine, jobs: list[Job]) -> None:
    await engine.run(jobs[: len(jobs) // 2])


async def enqueue_some(engine: Engine, jobs: list[Job]) -> None:
    await feed_enqueue(engine, jobs[: len(jobs) // 2])


class WorkerPlan:
    """One worker. With `no_faults` it ends by itself, and every job with it.

    With `wakes_when_dead` it stops stalling in the moment in which another worker has seen enough of it.
    `cut_off` says when its ledger fails from `cut_off_after_s` on: before a commit, or after one that it is not told
    of; '' means never. With `restarts` it starts again if the others took it for dead. With `loses_lock_file` the
    others cannot see when it crashes, but by its lease.
    """

    def __init__(self, random: Random, *, no_faults: bool, may_resubmit: bool, max_charges: int | None) -> None:
        self.per_s = random.choice([1, 5, 50])
        self.options: dict[str, Any] = {
            "rate": f"{self.per_s}/s",
            "max_in_flight": random.choice([1, 3, 100]),
            "job_timeout_s": 1800.0 if no_faults else random.choice([30.0, 100.0]),
            "download_patience_s": random.choice([5.0, 60.0]),
            "ambiguous": "resubmit" if may_resubmit and random.random() < 0.5 else "keep",
            "max_charges": max_charges,
            "webhook": Webhook("https://my.host/krea") if random.random() < 0.5 else None,
            "shared": True,
        }
        feeds: list[FeedJobs] = [feed_run, feed_run, feed_some, feed_enqueue, enqueue_some, feed_nothing]
        self.feed: FeedJobs = feed_run if no_faults else random.choice(feeds)
        self.ending = TO_THE_END if no_faults else random.choice(ENDINGS)
        self.until_s = random.choice([0.05, 1.0, 4.0, 15.0, 60.0]) * random.random()
        self.joins_after_s = 0.0 if no_faults else random.choice([0.0, 0.0, 1.0, 15.0, 60.0]) * random.random()
        self._max_thread_s = random.choice([0.0001, 0.02, 0.5, 2.0])
        self.pauses: list[tuple[float, float]] = []  # when, and for how many seconds it stalls
        self.pauses_at_step: dict[int, float] = {}
        if not no_faults and random.random() < 0.5:
            self.pauses = [(random.choice([1.0, 10.0, 40.0]) * random.random(), _pause_s(random))]
        if not no_faults and random.random() < 0.5:
            self.pauses_at_step = {int(10 ** random.uniform(1.0, 3.5)): _pause_s(random)}
        self.pause_after_commit = 0, 0.0  # after its Nth commit, before it knows of it, and for how many seconds
        if not no_faults and random.random() < 0.5:
            self.pause_after_commit = random.randint(5, 80), _pause_s(random)
        self.cut_off = random.choice([BEFORE_COMMIT, AFTER_COMMIT])
        self.cut_off_after_s = random.choice([1.0, 10.0, 60.0]) * random.random()
        if no_faults or random.random() > 0.15:
            self.cut_off, self.cut_off_after_s = "", math.inf
        self.wakes_when_dead = random.random() < 0.3
        self.restarts = random.random() < 0.5
        self.loses_lock_file = random.random() < 0.3
        self._crash_at_step = int(10 ** random.uniform(1.0, 3.5)) if self.ending == CRASH else None
        self._seed = random.random()
        self._latency = Random(f"{self._seed}/latency")

    def __str__(self) -> str:
        parts = [self.ending, self.feed.__name__, f"joins after {self.joins_after_s:.1f} s"]
        parts += [f"stalls {self.pauses} {self.pauses_at_step} {self.pause_after_commit}"]
        parts += [f"cut off {self.cut_off}"] if self.cut_off else []
        parts += ["loses its lock file"] if self.loses_lock_file else []
        return ", ".join(parts)

    def create_worker(self, loop: WorkerLoop) -> SimulatedWorker:
        """Return the worker, which joins now."""
        worker = SimulatedWorker(loop, crash_at_step=self._crash_at_step, pauses_at_step=self.pauses_at_step)
        for after_s, duration_s in self.pauses:
            loop.call_later(after_s, worker.stand_still, duration_s)
        return worker

    def next_thread_s(self) -> float:
        """Return how long the next call in an executor takes."""
        return self._latency.random() * self._max_thread_s

    def engine_options(self) -> dict[str, Any]:
        """Return the options of the engine."""
        return {**self.options, "random": Random(f"{self._seed}/engine")}


def _pause_s(random: Random) -> float:
    """Return from 0.3 to 3 leases, often a little more than one: the others find out just then."""
    return LEASE_S * (random.uniform(1.0, 1.2) if random.random() < 0.3 else random.uniform(0.3, 3.0))
