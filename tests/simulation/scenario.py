"""One seed: runs that end, are stopped, crash or lose power, and are resumed. `invariants` is checked after each.

The gateway, its CDN, the network, the ledger, the listeners and the clock have faults, which the seed decides. The
last run has none: all jobs end. A few seeds have many jobs and few other faults, so that an outage of the gateway
meets many jobs that would be submitted.
"""

from __future__ import annotations

import asyncio
import io
from collections import Counter
from contextlib import redirect_stderr
from functools import lru_cache
from pathlib import Path
from random import Random
from unittest.mock import patch

from krea_batch import Engine, Job, KreaBatchError, LedgerError
from krea_batch.maintenance.resolve import AmbiguousJobs
from krea_batch.maintenance.retry import RetryPlan
from krea_batch.rules import poll_schedule
from tests.simulation.invariants import FOREIGN_FILES, Invariants
from tests.simulation.ledger_reader import LedgerFileReader
from tests.simulation.network import connected_to
from tests.simulation.process import CrashingLoop, SimulatedLoop, run_crashing, run_to_the_end
from tests.simulation.random_gateway import RandomGateway
from tests.simulation.run_plan import TO_THE_END, RunPlan
from tests.window_stats import max_in_window

JOB_IDS = ["a", "a-2", "a~2", "a.1", "A", "ä", "b", "b-2", "0001", "x y", "-", "c", "d", "e"]
MANY_JOBS = 80  # of which an outage must not leave more than 25 in doubt
ROUNDS = 6  # and one without faults
FIRST_DAY_S = 1.8e9  # seconds since 1970


class InvariantViolation(AssertionError):
    """An invariant does not hold; the message names the seed and the round."""


class Scenario:
    """One seed. `run` raises InvariantViolation."""

    def __init__(self, seed: int, out: Path) -> None:
        self.seed = seed
        self.out = out
        self.random = Random(seed)
        has_many_jobs = Random(f"{seed}/jobs").random() < 0.1
        self.job_ids = [f"j{n}" for n in range(MANY_JOBS)] if has_many_jobs else JOB_IDS
        self.jobs = [Job(prompt=job_id, id=job_id) for job_id in self.job_ids]
        self.rounds = 2 if has_many_jobs else ROUNDS
        self.ledger = LedgerFileReader(out)
        self.gateway = RandomGateway(seed, self.ledger, self.clock, few_faults=has_many_jobs)
        self.invariants = Invariants(self)
        self.may_resubmit = self.random.random() < 0.3
        self.max_charges = self.random.choice([None, None, None, 5, 10]) if not has_many_jobs else None
        self.resubmit_decisions: Counter[str] = Counter()  # resubmissions by the user, by job
        self.user_retries: Counter[str] = Counter()  # those of them for jobs that had ended unsuccessfully
        self.log: list[str] = []
        self.runs = 0
        self.crashes = 0
        self._loop: SimulatedLoop | None = None
        self._before_loop_s = FIRST_DAY_S

    def clock(self) -> float:
        """Return the seconds since 1970, which go on from process to process."""
        return self._before_loop_s + (self._loop.time() if self._loop else 0.0)

    def run(self) -> None:
        """Run all rounds, and check the invariants."""
        (self.out / "images").mkdir(parents=True)
        for name, data in FOREIGN_FILES.items():
            (self.out / name).write_bytes(data)
        with connected_to(self.gateway, self.clock), patch.object(poll_schedule, "optimal_polls", _optimal_polls):
            for round_no in range(self.rounds + 1):
                try:
                    self.run_round(round_no)
                except Exception as error:
                    last = self.log[-1]
                    raise InvariantViolation(f"seed {self.seed}, round {round_no} ({last}): {error!r}") from error
        self.ledger.close()

    # ---- runs --------------------------------------------------------------------------------------------

    def run_round(self, round_no: int) -> None:
        self.gateway.no_faults = round_no == self.rounds
        if self.gateway.no_faults:
            self.max_charges = None  # the user raises it
        random = Random(f"{self.seed}/{round_no}")
        random.shuffle(self.jobs)
        plan = RunPlan(
            random,
            no_faults=self.gateway.no_faults,
            many_jobs=self.gateway.few_faults,
            may_resubmit=self.may_resubmit,
            max_charges=self.max_charges,
        )
        self.run_process(plan)
        self.invariants.check_always()
        if self.gateway.no_faults:
            self.invariants.check_all_ended()
        if not self.gateway.no_faults and self.random.random() < 0.3:
            self.resolve()
            self.invariants.check_always()
        if not self.gateway.no_faults and self.random.random() < 0.3:
            self.retry()
            self.invariants.check_always()

    def run_process(self, plan: RunPlan) -> None:
        """Run the engine as one process that ends in some way, and check the invariants."""
        self.log.append(str(plan))
        self.gateway.start_process(plan.outages, plan.cdn_outages)
        self._before_loop_s += plan.idle_s
        self._loop = loop = plan.create_loop()
        engine_run = self.run_engine(plan)
        stderr, has_crashed = io.StringIO(), False
        with redirect_stderr(stderr), plan.ledger_faults.injected(loop, self.on_ledger_failure):
            if isinstance(loop, CrashingLoop):
                power_loss = plan.power_loss_random
                has_crashed = run_crashing(
                    loop, engine_run, self.out, power_loss_random=power_loss, on_crash=self.on_crash
                )
            else:
                run_to_the_end(loop, engine_run)
        assert has_crashed or not loop.unhandled, loop.unhandled
        self._before_loop_s, self._loop = self.clock(), None
        self.runs += 1
        self.crashes += has_crashed
        self.invariants.check_run(
            has_ended=not has_crashed, ledger_failed=plan.ledger_faults.has_failed, stderr=stderr.getvalue()
        )
        assert max_in_window(self.gateway.process.submit_times_s) <= plan.per_s + 1, "the rate was exceeded"

    async def run_engine(self, plan: RunPlan) -> None:
        """Run an engine until it ends as the plan says."""
        try:
            engine = Engine(self.out, api_key="simulation", clock=self.clock, **plan.engine_options())
            self.gateway.callbacks.app = engine.callbacks_app() if plan.options["webhook"] else None
            async with engine:
                if plan.ending == TO_THE_END or plan.may_crash:
                    await plan.feed(engine, self.jobs)
                    return
                running = asyncio.create_task(plan.feed(engine, self.jobs))
                await asyncio.sleep(plan.until_s)
                self.gateway.process.gives_up_early |= plan.ending != "stop"
                if plan.ending == "leave":
                    running.cancel()
                    raise LookupError
                getattr(engine, plan.ending)()
                await asyncio.wait([running])
                assert isinstance(running.exception(), KreaBatchError | None)
        except LookupError:
            pass
        except LedgerError:
            if not plan.ledger_faults.has_failed:
                raise

    def on_crash(self) -> None:
        """Cut the process off: nothing of it reaches the gateway any more."""
        self.gateway.process.has_crashed = True
        self.ledger.close()

    def on_ledger_failure(self) -> None:
        self.gateway.process.gives_up_early = True

    # ---- decisions of the user ---------------------------------------------------------------------------

    def resolve(self) -> None:
        """Decide about each ambiguous job as a user who knows whether it was charged."""
        if not self.ledger.states():
            return
        self.log.append("resolve")
        with AmbiguousJobs(self.out, self.clock) as ambiguous_jobs:
            recorded = {request_id for (request_id,) in self.ledger.query("SELECT request_id FROM submissions")}
            charged = self.gateway.charged.items()
            unrecorded = {prompt: request_id for request_id, prompt in charged if request_id not in recorded}
            for job_id in [job.job_id for job in ambiguous_jobs.jobs]:
                match self.random.choice(["adopt", "abandon", "resubmit", "keep", "keep"]):
                    case "adopt" if job_id in unrecorded:
                        ambiguous_jobs.adopt({job_id: unrecorded[job_id]})
                    case "abandon":
                        ambiguous_jobs.abandon([job_id])
                    case "resubmit":
                        self.resubmit_decisions[job_id] += 1
                        ambiguous_jobs.resubmit([job_id])
                    case _:
                        pass
        self.invariants.check_results()

    def retry(self) -> None:
        """Resubmit some of the jobs that ended without an image."""
        if not self.ledger.states():
            return
        self.log.append("retry")
        with RetryPlan(self.out, self.clock) as plan:
            chosen = [job_id for job_id in plan.jobs() if self.random.random() < 0.5]
            self.resubmit_decisions.update(chosen)
            self.user_retries.update(chosen)
            plan.resubmit(chosen)
        self.invariants.check_results()


_optimal_polls_of = lru_cache(maxsize=256)(poll_schedule.optimal_polls)


def _optimal_polls(survival: list[float], spacing: int, lag_cost: float) -> list[int]:
    """Return what the poll schedule plans; the runs of a seed, and all seeds, plan the same many times."""
    return _optimal_polls_of(tuple(survival), spacing, lag_cost)
