"""What the seed decides about one run: how jobs are fed, how the process ends, and which faults it meets."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from random import Random
from typing import Any

from krea_batch import Engine, Job, RunStopped, Webhook
from tests.simulation.ledger_faults import LedgerFaults
from tests.simulation.listeners import FaultyListener
from tests.simulation.outages import CDN_OUTAGES, GATEWAY_OUTAGES, random_outages
from tests.simulation.process import CrashingLoop, SimulatedLoop

CRASH, POWER_LOSS, TO_THE_END = "crash", "power loss", "to the end"
ENDINGS = [TO_THE_END, "stop", "abort", "leave", CRASH, CRASH, POWER_LOSS, POWER_LOSS]

FeedJobs = Callable[[Engine, list[Job]], Coroutine[Any, Any, None]]


async def feed_run(engine: Engine, jobs: list[Job]) -> None:
    await engine.run(jobs)


async def feed_enqueue(engine: Engine, jobs: list[Job]) -> None:
    """Enqueue all jobs, then wait for them, as a service does. The next run continues those that are left."""
    try:
        handles = [await engine.enqueue(job, tenant=job.id[:1]) for job in jobs]
        for handle in handles:
            await handle
    except RunStopped:
        pass


class RunPlan:
    """One run. With `no_faults` it ends by itself, and every job with it.

    With `many_jobs` nothing is slow, neither the disk nor a listener, and there is an outage: what delays the engine
    delays its view of the gateway, too, and then more POSTs are pending when the outage begins.
    """

    def __init__(
        self, random: Random, *, no_faults: bool, many_jobs: bool, may_resubmit: bool, max_charges: int | None
    ) -> None:
        is_calm = no_faults or many_jobs
        self.per_s = 50 if many_jobs else random.choice([1, 5, 50])
        self.options: dict[str, Any] = {
            "rate": f"{self.per_s}/s",
            "max_in_flight": 100 if many_jobs else random.choice([1, 3, 100]),
            "job_timeout_s": 1800.0 if is_calm else random.choice([30.0, 1800.0]),
            "download_patience_s": random.choice([5.0, 600.0]),
            "ambiguous": "resubmit" if may_resubmit and random.random() < 0.5 else "keep",
            "max_charges": max_charges,
            "webhook": Webhook("https://my.host/krea") if random.random() < 0.5 else None,
        }
        self.feed: FeedJobs = random.choice([feed_run, feed_enqueue])
        self.ending = TO_THE_END if no_faults else random.choice(ENDINGS)
        self.until_s = random.choice([0.05, 1.0, 4.0, 15.0, 60.0, 600.0]) * random.random()
        self.outages = random_outages(random, GATEWAY_OUTAGES, 0.0 if no_faults else 1.0 if many_jobs else 0.2)
        self.cdn_outages = random_outages(random, CDN_OUTAGES, 0.0 if no_faults else 0.1)
        self.ledger_faults = LedgerFaults(random, 0.0 if is_calm else 0.2)
        self.stands_still: list[tuple[float, float]] = []  # when, and for how many seconds
        if not is_calm and random.random() < 0.2:
            after_s = random.choice([1.0, 20.0, 100.0]) * random.random()
            self.stands_still = [(after_s, random.choice([70.0, 300.0]))]
        self.idle_s = random.choice([1.0, 60.0, 7200.0])  # since the last run
        self._has_listener = random.random() < 0.3
        self._never_blocks = many_jobs
        self._max_thread_s = random.choice([0.0001, 0.02] if many_jobs else [0.0001, 0.02, 0.5])
        self._at_disk_call = random.random() < (0.7 if self.ending == POWER_LOSS else 0.3)
        self._crash_at_step = int(10 ** random.uniform(*((0, 2.2) if self._at_disk_call else (0.7, 3.5))))
        self._seed = random.random()

    def __str__(self) -> str:
        parts = [self.ending, self.options, self.outages, f"CDN {self.cdn_outages}", self.ledger_faults.kind]
        parts += [f"stalls {self.stands_still}"] if self.stands_still else []
        return ", ".join(str(part) for part in parts if part)

    @property
    def may_crash(self) -> bool:
        """Whether the process crashes, if it gets that far."""
        return self.ending in (CRASH, POWER_LOSS)

    @property
    def power_loss_random(self) -> Random | None:
        """Decides what a power loss leaves; None if there is none."""
        return Random(f"{self._seed}/power") if self.ending == POWER_LOSS else None

    def engine_options(self) -> dict[str, Any]:
        """Return the options of the engine."""
        listener = FaultyListener(Random(f"{self._seed}/listener"), never_blocks=self._never_blocks)
        return {
            **self.options,
            "random": Random(f"{self._seed}/engine"),
            "listeners": [listener] if self._has_listener else [],
        }

    def create_loop(self) -> SimulatedLoop:
        """Return the event loop of the process."""
        latency = Random(f"{self._seed}/latency")
        loop: SimulatedLoop

        def thread_duration_s() -> float:
            return latency.random() * self._max_thread_s

        if self.may_crash:
            loop = CrashingLoop(thread_duration_s, self._crash_at_step, at_disk_call=self._at_disk_call)
        else:
            loop = SimulatedLoop(thread_duration_s)
        for after_s, duration_s in self.stands_still:
            loop.call_later(after_s, loop.stand_still, duration_s)
        return loop
