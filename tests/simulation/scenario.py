"""One seed: runs that end, are stopped, crash or lose power, and are resumed; and the invariants after each run.

The invariants are checked with the gateway's charges and the ledger only:

- a job is charged once, and once more only for each ERROR, each resubmission by the user, and each ambiguous POST
  with `ambiguous="resubmit"`;
- each charged request_id is recorded for its job, or its job has an ambiguous POST;
- there is no POST without a recorded intent, no poll of an unrecorded request_id, and the rate is never exceeded;
- every image under images/ is complete and belongs to its job; files of the user are unchanged;
- results.jsonl, the charges and the exit code agree with the ledger.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from random import Random
from typing import Any

from krea_batch import Engine, Job, KreaBatchError, RunStopped, Webhook
from krea_batch.cli.ui.summary import RunTotals
from krea_batch.jobs import FINAL
from krea_batch.maintenance.resolve import AmbiguousJobs
from krea_batch.maintenance.retry import RetryPlan
from krea_batch.storage.png import PngValidator
from tests.engine_fixtures import ledger_states, query_ledger, rows_by_id
from tests.simulation.crash_loop import run_crashing
from tests.simulation.random_gateway import RandomGateway, image_bytes
from tests.virtual_time_runs import run_virtual
from tests.window_stats import max_in_window

JOB_IDS = ["a", "a-2", "a~2", "a.1", "A", "ä", "b", "b-2", "0001", "x y", "-", "c", "d", "e"]
FOREIGN_FILES = {"notes.txt": b"mine", "images/b.png": b"my own b", "images/c-2.png": b"", "images/e.png.part": b"e"}
ROUNDS = 6


class InvariantViolation(AssertionError):
    """An invariant does not hold; the message names the seed and the round."""


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


class Scenario:
    """One seed. `run` raises InvariantViolation."""

    def __init__(self, seed: int, out: Path) -> None:
        self.seed = seed
        self.out = out
        self.random = Random(seed)
        self.gateway = RandomGateway(seed, out)
        self.jobs = [Job(prompt=job_id, id=job_id) for job_id in JOB_IDS]
        self.may_resubmit = self.random.random() < 0.3
        self.resubmit_decisions: Counter[str] = Counter()  # resubmissions by the user, by job
        self.user_retries: Counter[str] = Counter()  # those of them for jobs that had ended unsuccessfully
        self.log: list[str] = []
        self.crashes = 0
        self.retry_random = Random(f"{seed}/retries")  # separate, so that older seeds keep their outcomes

    def run(self) -> None:
        (self.out / "images").mkdir(parents=True)
        for name, data in FOREIGN_FILES.items():
            (self.out / name).write_bytes(data)
        for round_no in range(ROUNDS + 1):
            self.gateway.no_faults = round_no == ROUNDS
            try:
                self.run_round()
                self.check_all()
                if not self.gateway.no_faults and self.random.random() < 0.3:
                    self.resolve()
                    self.check_all()
                if not self.gateway.no_faults and self.retry_random.random() < 0.3:
                    self.retry()
                    self.check_all()
            except Exception as error:
                raise InvariantViolation(f"seed {self.seed}, round {round_no} ({self.log[-1]}): {error!r}") from error
        assert set(ledger_states(self.out)) == set(JOB_IDS), f"seed {self.seed}: jobs are missing"
        final = {"succeeded", "failed", "errored", "rejected", "ambiguous", "cancelled"}
        assert set(ledger_states(self.out).values()) <= final, f"seed {self.seed}: jobs are open"

    # ---- runs --------------------------------------------------------------------------------------------

    def run_round(self) -> None:
        random, no_faults = self.random, self.gateway.no_faults
        rate = random.choice([1, 5, 50])
        options: dict[str, Any] = {
            "rate": f"{rate}/s",
            "max_in_flight": random.choice([1, 3, 100]),
            "job_timeout_s": 1800.0 if no_faults else random.choice([30.0, 1800.0]),
            "download_patience_s": random.choice([5.0, 600.0]),
            "ambiguous": "resubmit" if self.may_resubmit and random.random() < 0.5 else "keep",
            "random": Random(random.random()),
        }
        callback_random = Random(f"{self.seed}/{len(self.log)}/beside")
        options["webhook"] = Webhook("https://my.host/krea") if callback_random.random() < 0.5 else None
        feed = callback_random.choice([feed_run, feed_enqueue])
        self.gateway.submit_times_s.clear()
        latency, slow_s = Random(random.random()), random.choice([0.0001, 0.02, 0.5])
        until_s = random.choice([0.05, 1.0, 4.0, 15.0, 60.0, 600.0]) * random.random()
        endings = ["to the end", "stop", "abort", "leave", "crash", "crash", "power loss"]
        ending = "to the end" if no_faults else random.choice(endings)
        self.log.append(f"{ending} {options}")
        random.shuffle(self.jobs)
        if ending in ("crash", "power loss"):
            at_disk_call = random.random() < 0.4
            engine_run = self.run_engine("to the end", math.inf, options, feed)
            steps, crashed = run_crashing(
                engine_run,
                self.out,
                lambda: latency.random() * slow_s,
                crash_at_step=int(10 ** (random.uniform(0, 2.2) if at_disk_call else random.uniform(0.7, 3.3))),
                at_disk_call=at_disk_call,
                power_loss_random=Random(random.random()) if ending == "power loss" else None,
                on_crash=lambda: setattr(self.gateway, "process_crashed", True),
            )
            self.gateway.process_crashed = False
            self.crashes += crashed
            self.log[-1] += f", step {steps}{'' if crashed else ', not reached'}"
        else:
            run_virtual(self.run_engine(ending, until_s, options, feed), lambda: latency.random() * slow_s)
            self.check_results()
        assert max_in_window(self.gateway.submit_times_s) <= rate + 1, "the rate was exceeded"

    async def run_engine(self, ending: str, until_s: float, options: dict[str, Any], feed: FeedJobs) -> None:
        try:
            engine = Engine(self.out, gateway_client=self.gateway, **options)
            self.gateway.app = engine.callbacks_app() if options["webhook"] else None
            async with engine:
                if ending == "to the end":
                    await feed(engine, self.jobs)
                    return
                running = asyncio.create_task(feed(engine, self.jobs))
                await asyncio.sleep(until_s)
                if ending == "leave":
                    running.cancel()
                    raise LookupError
                getattr(engine, ending)()
                await asyncio.wait([running])
                assert isinstance(running.exception(), KreaBatchError | None)
        except LookupError:
            pass

    def resolve(self) -> None:
        """Decide about each ambiguous job as a user who knows whether it was charged."""
        if not self.has_ledger():
            return
        recorded = {request_id for (request_id,) in query_ledger(self.out, "SELECT request_id FROM submissions")}
        unrecorded = {
            prompt: request_id for request_id, prompt in self.gateway.charged.items() if request_id not in recorded
        }
        self.log.append("resolve")
        with AmbiguousJobs(self.out) as ambiguous_jobs:
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
        self.check_results()

    def retry(self) -> None:
        """Resubmit some of the jobs that ended without an image."""
        if not self.has_ledger():
            return
        self.log.append("retry")
        with RetryPlan(self.out) as plan:
            chosen = [job_id for job_id in plan.jobs() if self.retry_random.random() < 0.5]
            self.resubmit_decisions.update(chosen)
            self.user_retries.update(chosen)
            plan.resubmit(chosen)
        self.check_results()

    # ---- invariants --------------------------------------------------------------------------------------

    def has_ledger(self) -> bool:
        """Return False if the first process crashed before it had created the ledger."""
        return (self.out / "ledger.db").exists() and bool(query_ledger(self.out, "SELECT 1 FROM sqlite_schema"))

    def check_all(self) -> None:
        assert not self.gateway.violations, self.gateway.violations
        for name, data in FOREIGN_FILES.items():
            assert (self.out / name).read_bytes() == data, f"{name} was changed"
        if self.has_ledger():
            self.check_charges()
            self.check_images()

    def check_charges(self) -> None:
        sql = "SELECT job_id, result, s.request_id FROM submissions s JOIN jobs USING (job_no) ORDER BY submission_no"
        posts = query_ledger(self.out, sql)
        recorded = {request_id: job_id for job_id, _, request_id in posts if request_id}
        ambiguous = Counter(job_id for job_id, result, _ in posts if result in (None, "ambiguous"))
        charged = Counter(self.gateway.charged.values())
        unrecorded = Counter(
            prompt for request_id, prompt in self.gateway.charged.items() if request_id not in recorded
        )
        for job_id in JOB_IDS:
            errors = len(self.gateway.reported_errors.get(job_id, ()))
            allowed_resubmits = (
                ambiguous[job_id] + self.user_retries[job_id]
                if self.may_resubmit
                else self.resubmit_decisions[job_id]
            )
            assert charged[job_id] <= 1 + errors + allowed_resubmits, f"{job_id} was charged {charged[job_id]} times"
            assert unrecorded[job_id] <= ambiguous[job_id], f"a charged POST of {job_id} is not recorded"
        for request_id, job_id in recorded.items():
            assert self.gateway.charged[request_id] == job_id, f"{request_id} does not belong to {job_id}"

    def check_images(self) -> None:
        for path in (self.out / "images").glob("*.png"):
            if f"images/{path.name}" not in FOREIGN_FILES:
                validator = PngValidator()
                validator.feed(path.read_bytes())
                validator.finish()
        for job_id, files in query_ledger(self.out, "SELECT job_id, files FROM jobs WHERE state = 'succeeded'"):
            assert files != "[]", f"{job_id} succeeded without an image"

    def check_results(self) -> None:
        """Check, after a process that did not crash, that results and files agree with the ledger."""
        in_ledger = ledger_states(self.out)
        by_id = rows_by_id(self.out)
        final = {job_id: state for job_id, state in in_ledger.items() if state in FINAL}
        assert {job_id: row["status"] for job_id, row in by_id.items()} == final
        seen_paths: set[str] = set()
        for job_id, row in by_id.items():
            for n, file in enumerate(row["files"], 1):
                data = (self.out / file["path"]).read_bytes()
                assert data == image_bytes(job_id, n), f"{file['path']} does not belong to {job_id}"
                assert hashlib.sha256(data).hexdigest() == file["sha256"]
                assert len(data) == file["bytes"]
                assert file["path"] not in seen_paths
                seen_paths.add(file["path"])
            assert bool(row["files"]) == (row["status"] == "succeeded")
        self.check_summary(in_ledger)

    def check_summary(self, in_ledger: dict[str, str]) -> None:
        summary = RunTotals.read(self.out)
        assert {state.value: count for state, count in summary.counts.items()} == Counter(in_ledger.values())
        assert summary.all_succeeded == (set(in_ledger.values()) <= {"succeeded"})
        sql = "SELECT result, refunded, request_id FROM submissions"
        posts = query_ledger(self.out, sql)
        assert summary.charges.charged + summary.charges.refunded == sum(1 for *_, request_id in posts if request_id)
        assert summary.charges.refunded == sum(refunded for _, refunded, _ in posts)
        assert summary.charges.unknown == sum(result in (None, "ambiguous") for result, *_ in posts)
        settled = summary.charges.charged + summary.charges.refunded
        assert settled <= len(self.gateway.charged) <= settled + summary.charges.unknown, "the charges do not add up"
