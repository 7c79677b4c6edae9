"""One seed: runs that end, stop, are killed or lose their power, and go on; and what must hold after each.

The laws, by the books of the world and the ledger alone:

- a job is paid once, and once more only for each ERROR, each word of somebody, each doubtful POST under `resubmit`;
- each paid request_id is on record under its job, or its job has a POST of which nobody knows what became;
- no POST without an intent on record, no poll of a request_id that is not; never faster than the rate;
- every picture under images/ is whole, and that of its job; what is not ours stays as it was;
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
from tests.engine_fixtures import query_ledger, rows, states
from tests.simulation.crash_loop import run_mortal
from tests.simulation.random_gateway import World, picture
from tests.virtual_time_runs import run_virtual
from tests.window_stats import max_in_window

IDS = ["a", "a-2", "a~2", "a.1", "A", "ä", "b", "b-2", "0001", "x y", "-", "c", "d", "e"]
FOREIGN = {"notes.txt": b"mine", "images/b.png": b"my own b", "images/c-2.png": b"", "images/e.png.part": b"e"}
ROUNDS = 6


class BrokenLaw(AssertionError):
    """What must hold does not; `seed` and `round` say when."""


Feed = Callable[[Engine, list[Job]], Coroutine[Any, Any, None]]


async def feed_run(engine: Engine, jobs: list[Job]) -> None:
    await engine.run(jobs)


async def feed_enqueue(engine: Engine, jobs: list[Job]) -> None:
    """As a service does: each job on record, then wait for all. What the run does not bring home is for the next."""
    try:
        handles = [await engine.enqueue(job, tenant=job.id[:1]) for job in jobs]
        for handle in handles:
            await handle
    except RunStopped:
        pass


class Play:
    """One seed. `play` raises BrokenLaw where the books do not agree."""

    def __init__(self, seed: int, out: Path) -> None:
        self.seed = seed
        self.out = out
        self.chance = Random(seed)
        self.world = World(seed, out)
        self.jobs = [Job(prompt=job_id, id=job_id) for job_id in IDS]
        self.may_resubmit = self.chance.random() < 0.3
        self.words: Counter[str] = Counter()  # of somebody, to submit a job again
        self.again: Counter[str] = Counter()  # those of them that were for jobs which had ended in vain
        self.told: list[str] = []
        self.deaths = 0
        self.beside = Random(f"{seed}/retries")  # a chance of its own, so that older seeds play as they did

    def play(self) -> None:
        (self.out / "images").mkdir(parents=True)
        for name, data in FOREIGN.items():
            (self.out / name).write_bytes(data)
        for n in range(ROUNDS + 1):
            self.world.calm = n == ROUNDS
            try:
                self.round()
                self.check()
                if not self.world.calm and self.chance.random() < 0.3:
                    self.resolve()
                    self.check()
                if not self.world.calm and self.beside.random() < 0.3:
                    self.retry()
                    self.check()
            except Exception as error:
                raise BrokenLaw(f"seed {self.seed}, round {n} ({self.told[-1]}): {error!r}") from error
        assert set(states(self.out)) == set(IDS), f"seed {self.seed}: jobs are missing"
        final = {"succeeded", "failed", "errored", "rejected", "ambiguous", "cancelled"}
        assert set(states(self.out).values()) <= final, f"seed {self.seed}: jobs are open"

    # ---- what happens ------------------------------------------------------------------------------------

    def round(self) -> None:
        chance, calm = self.chance, self.world.calm
        rate = chance.choice([1, 5, 50])
        options: dict[str, Any] = {
            "rate": f"{rate}/s",
            "max_in_flight": chance.choice([1, 3, 100]),
            "job_timeout_s": 1800.0 if calm else chance.choice([30.0, 1800.0]),
            "download_attempts": chance.choice([2, 8]),
            "ambiguous": "resubmit" if self.may_resubmit and chance.random() < 0.5 else "keep",
            "random": Random(chance.random()),
        }
        beside = Random(f"{self.seed}/{len(self.told)}/beside")
        options["webhook"] = Webhook("https://my.host/krea") if beside.random() < 0.5 else None
        feed = beside.choice([feed_run, feed_enqueue])
        self.world.submit_times_s.clear()
        latency, slow_s = Random(chance.random()), chance.choice([0.0001, 0.02, 0.5])
        until_s = chance.choice([0.05, 1.0, 4.0, 15.0, 60.0, 600.0]) * chance.random()
        ways = ["to the end", "stop", "stop_now", "leave", "die", "die", "lose power"]
        way = "to the end" if calm else chance.choice(ways)
        self.told.append(f"{way} {options}")
        chance.shuffle(self.jobs)
        if way in ("die", "lose power"):
            at_the_disk = chance.random() < 0.4
            work = self.work("to the end", math.inf, options, feed)
            steps, died = run_mortal(
                work,
                self.out,
                lambda: latency.random() * slow_s,
                dies_at=int(10 ** (chance.uniform(0, 2.2) if at_the_disk else chance.uniform(0.7, 3.3))),
                at_the_disk=at_the_disk,
                power=Random(chance.random()) if way == "lose power" else None,
                died=lambda: setattr(self.world, "gone", True),
            )
            self.world.gone = False
            self.deaths += died
            self.told[-1] += f", step {steps}{'' if died else ', lived'}"
        else:
            run_virtual(self.work(way, until_s, options, feed), lambda: latency.random() * slow_s)
            self.check_results()
        assert max_in_window(self.world.submit_times_s) <= rate + 1, "the rate was passed"

    async def work(self, way: str, until_s: float, options: dict[str, Any], feed: Feed) -> None:
        try:
            engine = Engine(self.out, gateway_client=self.world, **options)
            self.world.app = engine.callbacks_app() if options["webhook"] else None
            async with engine:
                if way == "to the end":
                    await feed(engine, self.jobs)
                    return
                running = asyncio.create_task(feed(engine, self.jobs))
                await asyncio.sleep(until_s)
                if way == "leave":
                    running.cancel()
                    raise LookupError
                getattr(engine, way)()
                await asyncio.wait([running])
                assert isinstance(running.exception(), KreaBatchError | None)
        except LookupError:
            pass

    def resolve(self) -> None:
        """Somebody decides about each ambiguous job; they know whether it was paid."""
        if not self.has_begun():
            return
        on_record = {request_id for (request_id,) in query_ledger(self.out, "SELECT request_id FROM submissions")}
        lost = {
            prompt: request_id for request_id, prompt in self.world.charged.items() if request_id not in on_record
        }
        self.told.append("resolve")
        with AmbiguousJobs(self.out) as doubts:
            for job_id in [doubt.id for doubt in doubts.jobs]:
                match self.chance.choice(["adopt", "abandon", "resubmit", "hold", "hold"]):
                    case "adopt" if job_id in lost:
                        doubts.adopt({job_id: lost[job_id]})
                    case "abandon":
                        doubts.abandon([job_id])
                    case "resubmit":
                        self.words[job_id] += 1
                        doubts.resubmit([job_id])
                    case _:
                        pass
        self.check_results()

    def retry(self) -> None:
        """Somebody has jobs that ended without a picture submitted again."""
        if not self.has_begun():
            return
        self.told.append("retry")
        with RetryPlan(self.out) as retries:
            chosen = [job_id for job_id in retries.jobs() if self.beside.random() < 0.5]
            self.words.update(chosen)
            self.again.update(chosen)
            retries.resubmit(chosen)
        self.check_results()

    # ---- the books ---------------------------------------------------------------------------------------

    def has_begun(self) -> bool:
        """False where the first process died before it had made the ledger."""
        return (self.out / "ledger.db").exists() and bool(query_ledger(self.out, "SELECT 1 FROM sqlite_schema"))

    def check(self) -> None:
        assert not self.world.broken, self.world.broken
        for name, data in FOREIGN.items():
            assert (self.out / name).read_bytes() == data, f"{name} is not ours"
        if self.has_begun():
            self.check_money()
            self.check_pictures()

    def check_money(self) -> None:
        sql = "SELECT job_id, result, s.request_id FROM submissions s JOIN jobs USING (job_no) ORDER BY submission_no"
        posts = query_ledger(self.out, sql)
        on_record = {request_id: job_id for job_id, _, request_id in posts if request_id}
        unclear = Counter(job_id for job_id, came_to, _ in posts if came_to in (None, "ambiguous"))
        paid = Counter(self.world.charged.values())
        lost = Counter(prompt for request_id, prompt in self.world.charged.items() if request_id not in on_record)
        for job_id in IDS:
            errors = len(self.world.told_errors.get(job_id, ()))
            again = unclear[job_id] + self.again[job_id] if self.may_resubmit else self.words[job_id]
            assert paid[job_id] <= 1 + errors + again, f"{job_id} was paid {paid[job_id]} times"
            assert lost[job_id] <= unclear[job_id], f"a paid POST of {job_id} is not on record"
        for request_id, job_id in on_record.items():
            assert self.world.charged[request_id] == job_id, f"{request_id} is not of {job_id}"

    def check_pictures(self) -> None:
        for path in (self.out / "images").glob("*.png"):
            if f"images/{path.name}" not in FOREIGN:
                walk = PngValidator()
                walk.feed(path.read_bytes())
                walk.finish()
        for job_id, files in query_ledger(self.out, "SELECT job_id, files FROM jobs WHERE state = 'succeeded'"):
            assert files != "[]", f"{job_id} succeeded without a picture"

    def check_results(self) -> None:
        """After a process that ended in order: what people read is what the ledger says, and each file its job's."""
        in_ledger = states(self.out)
        found = rows(self.out)
        ends = {job_id: state for job_id, state in in_ledger.items() if state in FINAL}
        assert {job_id: row["status"] for job_id, row in found.items()} == ends
        taken: set[str] = set()
        for job_id, row in found.items():
            for n, file in enumerate(row["files"], 1):
                data = (self.out / file["path"]).read_bytes()
                assert data == picture(job_id, n), f"{file['path']} is not of {job_id}"
                assert hashlib.sha256(data).hexdigest() == file["sha256"]
                assert len(data) == file["bytes"]
                assert file["path"] not in taken
                taken.add(file["path"])
            assert bool(row["files"]) == (row["status"] == "succeeded")
        self.check_summary(in_ledger)

    def check_summary(self, in_ledger: dict[str, str]) -> None:
        folder = RunTotals.read(self.out)
        assert {state.value: count for state, count in folder.counts.items()} == Counter(in_ledger.values())
        assert folder.all_succeeded == (set(in_ledger.values()) <= {"succeeded"})
        sql = "SELECT result, refunded, request_id FROM submissions"
        posts = query_ledger(self.out, sql)
        assert folder.charges.charged + folder.charges.refunded == sum(1 for *_, request_id in posts if request_id)
        assert folder.charges.refunded == sum(refunded for _, refunded, _ in posts)
        assert folder.charges.unknown == sum(came_to in (None, "ambiguous") for came_to, *_ in posts)
        known = folder.charges.charged + folder.charges.refunded
        assert known <= len(self.world.charged) <= known + folder.charges.unknown, "the charges do not add up"
