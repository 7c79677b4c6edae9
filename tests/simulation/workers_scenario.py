"""One seed with several workers on one run directory, which crash, stall or are cut off from the ledger.

In each round some workers join at different times, all on one event loop and one ledger. The round ends when all of
them have ended or crashed. The last round has one worker without faults: all jobs end.
"""

from __future__ import annotations

import asyncio
import io
import shutil
from collections.abc import Awaitable, Callable
from contextlib import redirect_stderr
from contextvars import Context
from pathlib import Path
from random import Random
from typing import Any

from krea_batch import Engine, Job, KreaBatchError, LedgerError
from krea_batch.errors import FencedError, RunDirError
from krea_batch.testing.kill import cancel_all_tasks
from tests.simulation.outages import CDN_OUTAGES, GATEWAY_OUTAGES, random_outages
from tests.simulation.run_plan import CRASH, TO_THE_END
from tests.simulation.scenario import JOB_IDS, Scenario
from tests.simulation.worker_faults import WorkerFiles, watched_files
from tests.simulation.worker_invariants import WorkerInvariants
from tests.simulation.worker_loop import SimulatedWorker, WorkerLoop, current_worker
from tests.simulation.worker_plan import AFTER_COMMIT, WorkerPlan
from tests.simulation.workers_gateway import WorkersGateway

WORKER_JOB_IDS = [*JOB_IDS, *(f"j{n}" for n in range(10))]  # more than a worker claims in one step
WORKER_ROUNDS = 2  # and one without faults
MAX_ROUND_S = 10_800.0  # no job needs as long


class WorkersScenario(Scenario):
    """One seed. `run` raises InvariantViolation."""

    gateway: WorkersGateway
    invariants: WorkerInvariants

    def __init__(self, seed: int, out: Path) -> None:
        super().__init__(seed, out)
        self.job_ids = WORKER_JOB_IDS
        self.jobs = [Job(prompt=job_id, id=job_id) for job_id in self.job_ids]
        self.rounds = WORKER_ROUNDS
        self.max_charges = self.random.choice([None, None, 10, 20, 26, 30])
        self.gateway = WorkersGateway(seed, self.ledger, self.clock, few_faults=False)
        self.gateway.callbacks.app = self._callbacks_app
        self.invariants = WorkerInvariants(self)
        self.workers: list[SimulatedWorker] = []
        self._apps: dict[SimulatedWorker, Callable[..., Awaitable[None]]] = {}
        self._joining = 0
        self._last_end: asyncio.Event
        self._errors: list[BaseException] = []
        self._plans: dict[SimulatedWorker, WorkerPlan] = {}

    def now_s(self) -> float:
        """Return the time of the event loop."""
        assert self._loop
        return self._loop.time()

    def run_round(self, round_no: int) -> None:
        self.gateway.no_faults = round_no == self.rounds
        no_faults = self.gateway.no_faults
        if no_faults:
            self.max_charges = None
        random = Random(f"{self.seed}/{round_no}/workers")
        plans = [self._plan(random) for _ in range(1 if no_faults else random.randint(2, 4))]
        self.run_workers(plans, random)
        self.invariants.check_always()
        if no_faults:
            self.invariants.check_all_ended()
            return
        if self.random.random() < 0.3:
            self.resolve()
            self.invariants.check_always()
        if self.random.random() < 0.3:
            self.retry()
            self.invariants.check_always()

    def _plan(self, random: Random) -> WorkerPlan:
        return WorkerPlan(
            random,
            no_faults=self.gateway.no_faults,
            may_resubmit=self.may_resubmit,
            max_charges=self.max_charges,
        )

    def run_workers(self, plans: list[WorkerPlan], random: Random) -> None:
        """Run some workers, until all have ended or crashed, and check the invariants."""
        self.log.append(f"max_charges {self.max_charges}, " + "; ".join(map(str, plans)))
        share = 0.0 if self.gateway.no_faults else 0.2
        outages = random_outages(random, GATEWAY_OUTAGES, share)
        self.gateway.start_process(outages, random_outages(random, CDN_OUTAGES, share / 2))
        self._before_loop_s += random.choice([1.0, 60.0, 7200.0])
        self._loop = loop = WorkerLoop(self._thread_duration_s)
        self.workers, self._plans, self._apps = [], {}, {}
        files = self.gateway.files = {}
        stderr = io.StringIO()
        with redirect_stderr(stderr), watched_files(loop, files, self.invariants.check_commit, self.out.parent):
            loop.run_until_complete(self._work(plans, random))
            self._clean_up(loop)
        self._before_loop_s, self._loop = self.clock(), None
        self.runs += len(self.workers)
        self.crashes += sum(worker.has_crashed for worker in self.workers)
        assert not self._errors, self._errors
        assert not loop.unhandled, loop.unhandled
        self.invariants.check_workers(stderr.getvalue())

    async def _work(self, plans: list[WorkerPlan], random: Random) -> None:
        loop = self._loop
        assert isinstance(loop, WorkerLoop)
        self._last_end = asyncio.Event()
        self._joining = len(plans)
        for plan in plans:
            random.shuffle(self.jobs)
            loop.call_later(plan.joins_after_s, self._join, plan, list(self.jobs))
        if not self.gateway.no_faults and random.random() < 0.2:  # the machine is suspended
            after_s, duration_s = random.choice([3.0, 30.0]) * random.random(), 30.0 * random.random()
            loop.call_later(after_s, self._stand_still, duration_s)
        try:
            async with asyncio.timeout(MAX_ROUND_S):
                await self._last_end.wait()
        except TimeoutError:
            open_jobs = self.ledger.query(
                "SELECT state, jobs.run_no, fenced, ended_at, count(*) FROM jobs LEFT JOIN runs USING (run_no)"
                " WHERE disposition IS NULL GROUP BY 1, 2, 3, 4"
            )
            left = [str(self._plans[worker]) for worker in self.workers if not worker.is_gone]
            raise AssertionError(f"the round does not end: open are {open_jobs}, and {left}") from None

    def _join(self, plan: WorkerPlan, jobs: list[Job]) -> None:
        """Start a worker."""
        assert isinstance(self._loop, WorkerLoop)
        worker = plan.create_worker(self._loop)
        self.gateway.files[worker] = WorkerFiles(
            worker,
            cut_off_s=self._loop.time() + plan.cut_off_after_s,
            commits_once=plan.cut_off == AFTER_COMMIT,
            pause_after=plan.pause_after_commit,
            wakes_when_dead=plan.wakes_when_dead,
            loses_lock_file=plan.loses_lock_file,
        )
        self._joining -= 1
        self.workers.append(worker)
        self._plans[worker] = plan
        worker.on_crash = lambda: self._on_crash(worker)
        task = self._loop.create_task(self._run_worker(worker, plan, jobs), context=worker.context)
        task.add_done_callback(lambda task: self._on_end(worker, task), context=Context())

    async def _run_worker(self, worker: SimulatedWorker, plan: WorkerPlan, jobs: list[Job]) -> None:
        try:
            engine = Engine(self.out, api_key="simulation", clock=self.clock, **plan.engine_options())
            if plan.options["webhook"]:
                self._apps[worker] = engine.callbacks_app()
            async with engine:
                try:
                    await self._use_engine(engine, worker, plan, jobs)
                except FencedError:
                    # An engine that has started again aborts its new run when the exception leaves the context.
                    worker.gives_up_early |= bool(engine._run and not engine._run.is_fenced)
                    raise
        except LookupError:
            pass
        except FencedError:
            if plan.restarts:
                self._joining += 1
                new_plan = self._plan(Random(str(plan)))
                assert self._loop
                self._loop.call_later(1.0, self._join, new_plan, jobs, context=Context())
        except LedgerError:
            if not self.gateway.files[worker].was_cut_off:
                raise
        except RunDirError as error:
            if "using it" not in error.problem:  # Another worker stalled while it opened or closed it.
                raise

    async def _use_engine(self, engine: Engine, worker: SimulatedWorker, plan: WorkerPlan, jobs: list[Job]) -> None:
        """Use an engine until it ends as the plan says."""
        if plan.ending in (TO_THE_END, CRASH):
            await plan.feed(engine, jobs)
            return
        running = asyncio.create_task(plan.feed(engine, jobs))
        await asyncio.wait([running], timeout=plan.until_s)
        if running.done():
            running.result()
            return
        worker.gives_up_early |= plan.ending != "stop"
        if plan.ending == "leave":
            running.cancel()
            raise LookupError
        getattr(engine, plan.ending)()
        await asyncio.wait([running])
        if error := running.exception():
            assert isinstance(error, KreaBatchError)
            if isinstance(error, LedgerError):
                raise error

    # ---- what happens to workers -------------------------------------------------------------------------

    def _on_crash(self, worker: SimulatedWorker) -> None:
        self.gateway.files[worker].release()
        self._end_if_last()

    def _on_end(self, worker: SimulatedWorker, task: asyncio.Task[None]) -> None:
        if worker.has_crashed:
            return
        worker.has_ended = True
        if error := task.exception():
            self._errors.append(error)
        self._end_if_last()

    def _end_if_last(self) -> None:
        if not self._joining and all(worker.is_gone for worker in self.workers):
            self._last_end.set()

    def _stand_still(self, duration_s: float) -> None:
        for worker in self.workers:
            worker.stand_still(duration_s)

    def _thread_duration_s(self) -> float:
        worker = current_worker()
        return self._plans[worker].next_thread_s() if worker else 0.0

    def _clean_up(self, loop: WorkerLoop) -> None:
        """Cancel the tasks of crashed workers, and leave the directory as it was before."""
        snapshot = self.out.with_name(f"{self.out.name} snapshot")
        shutil.copytree(self.out, snapshot, symlinks=True)
        for worker in self.workers:
            worker.run_withheld()
        cancel_all_tasks(loop)
        loop.close()
        self.ledger.close()  # only now: the tasks that were cancelled may have read it
        shutil.rmtree(self.out)
        snapshot.rename(self.out)

    # ---- callbacks ---------------------------------------------------------------------------------------

    async def _callbacks_app(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a callback on to one of the workers, as a load balancer does."""
        apps = [(worker, app) for worker, app in self._apps.items() if not worker.is_gone]
        if not apps:
            await send({"type": "http.response.start", "status": 503, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            return
        worker, app = self.gateway.random_for("worker").choice(apps)
        loop = asyncio.get_running_loop()

        async def call() -> None:
            await app(scope, receive, send)

        await loop.create_task(call(), context=worker.context)
