"""Everything goes wrong by chance, again and again, and in the end the books agree.

Each seed is a run of its own: latencies, faults of every kind, and stops, kills and resumes until all jobs have
ended. A failing seed is named by its test, and goes the same way again:

    python -m pytest "tests/test_chaos.py::test_chaos[17]"

`CHAOS_SEEDS=5000 python -m pytest tests/test_chaos.py` tries more of them.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import os
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest

from krea_batch import Engine, Job, KreaBatchError
from krea_batch.gateway.media import MediaError
from krea_batch.gateway.png import PngWalk
from krea_batch.rules.verdicts import (
    Accepted,
    Errored,
    Failed,
    Finished,
    NotSent,
    PollTrouble,
    PollVerdict,
    PostVerdict,
    Refusal,
    Refused,
    Unclear,
    Waiting,
)
from tests.pipeline.test_submitter import most_in_a_window
from tests.scripted_gateway import ScriptedGateway, ScriptedMedia, ask, png, rows, states
from tests.virtual_time import run_until_killed, run_virtual

SEEDS = range(int(os.environ.get("CHAOS_SEEDS", "100")))
IDS = ["a", "a-2", "a~2", "a.1", "A", "ä", "b", "b-2", "0001", "x y", "-", "c", "d", "e"]
ROUNDS = 6

POSTS: list[tuple[int, Any]] = [
    (60, "accept"),
    (5, "accept, and the answer is lost"),
    (4, Unclear("cut before it was queued")),
    (6, Refused(Refusal.SLOW_DOWN, 429, "slow down", 3.0)),
    (2, Refused(Refusal.SLOW_DOWN, 429, "slow down")),
    (2, Refused(Refusal.SLOW_DOWN, 403, "quota", 20.0)),
    (6, Refused(Refusal.TRY_AGAIN, 500, "internal")),
    (3, Refused(Refusal.TRY_AGAIN, 503, "unavailable", 5.0)),
    (6, NotSent("no connection")),
    (2, Refused(Refusal.REJECTED, 422, "bad")),
    (1, Refused(Refusal.STOP, 402, "no money")),
]
POLLS: list[tuple[int, Any]] = [
    (50, "the truth"),
    (20, Waiting("PROCESSING")),
    (5, Waiting("PONDERING")),
    (4, PollTrouble("internal", 500)),
    (3, PollTrouble("slow down", 429, 8.0)),
    (2, PollTrouble("slow down", 429)),
    (2, PollTrouble("unauthorized", 401)),
    (3, PollTrouble("no answer in time")),
    (2, PollTrouble("not found", 404)),
]
ENDS: list[tuple[int, str]] = [(75, "one"), (10, "two"), (7, "failed"), (12, "error")]
FETCHES: list[tuple[int, str]] = [
    (50, "whole"),
    (15, "cut"),
    (5, "cut without an ETag"),
    (5, "from the begin"),
    (5, "HTML"),
    (4, "trailing"),
    (4, "a wrong byte"),
    (4, "short"),
    (4, "404"),
    (4, "429"),
]


def draw(chance: Random, table: list[tuple[int, Any]]) -> Any:
    return chance.choices([entry for _, entry in table], [weight for weight, _ in table])[0]


class Chaos(ScriptedGateway):
    """Draws what happens from the seed and from what it happens to, not from the order of things."""

    def __init__(self, seed: int, out: Path) -> None:
        super().__init__()
        self.seed = seed
        self.out = out
        self.calm = False
        self.tries: Counter[str] = Counter()
        self.told_errors: dict[str, set[str]] = {}

    def chance(self, *what: str) -> Random:
        """The next chance of one thing."""
        name = "/".join(what)
        self.tries[name] += 1
        return Random(f"{self.seed}/{name}/{self.tries[name]}")

    # ---- POSTs -------------------------------------------------------------------------------------------

    async def submit(self, body: bytes) -> PostVerdict:
        prompt = body.split(b'"')[3].decode()
        sql = "SELECT state, came_to FROM jobs j JOIN posts p ON p.job = j.n WHERE j.id = ? ORDER BY p.n DESC"
        assert ask(self.out, sql, prompt)[0] == ("submitting", None), "a POST without an intent"
        self.post_times_s.append(asyncio.get_running_loop().time())
        chance = self.chance("post", prompt)
        fate = "accept" if self.calm else draw(chance, POSTS)
        request_id = f"krea_{len(self.charged):04d}"
        if isinstance(fate, str):
            self.charged[request_id] = prompt  # however the answer fares
        await asyncio.sleep(chance.choice([0.01, 0.1, 0.5, 2.0, 20.0]))
        if fate == "accept, and the answer is lost":
            return Unclear("the connection was cut")
        return Accepted(request_id, Waiting("QUEUED")) if isinstance(fate, str) else fate

    # ---- polls -------------------------------------------------------------------------------------------

    async def poll(self, request_id: str) -> PollVerdict:
        chance = self.chance("poll", request_id)
        await asyncio.sleep(chance.choice([0.05, 0.2, 3.0]))
        fate: PollVerdict | str = "the truth" if self.calm else draw(chance, POLLS)
        return self.end(request_id) if isinstance(fate, str) else fate

    def end(self, request_id: str) -> PollVerdict:
        """The same however often it is asked for."""
        end = draw(Random(f"{self.seed}/end/{request_id}"), ENDS)
        if end == "failed":
            return Failed("nsfw")
        if end == "error":
            self.told_errors.setdefault(self.charged[request_id], set()).add(request_id)
            return Errored("gpu")
        outputs = 2 if end == "two" else 1
        return Finished(
            tuple(f"https://cdn.example/{request_id}/{n}.png" for n in range(1, outputs + 1)), "image/png"
        )

    # ---- pictures ----------------------------------------------------------------------------------------

    async def fetch(self, url: str, *, offset: int = 0, etag: str | None = None) -> ScriptedMedia:
        chance = self.chance("fetch", url)
        await asyncio.sleep(chance.choice([0.05, 0.5]))
        fate = "whole" if self.calm else draw(chance, FETCHES)
        request_id, name = url.split("/")[-2:]
        whole = picture(self.charged[request_id], int(name[0]))
        start = offset if etag == '"e"' and fate != "from the begin" else 0
        rest = whole[start:]
        at = chance.randrange(len(rest)) if rest else 0
        cut = MediaError("the connection was cut")
        pause_s = chance.choice([0.0, 0.3, 5.0])
        match fate:
            case "404" | "429":
                raise MediaError(f"HTTP {fate}", status=int(fate), retry_after_s=5.0 if fate == "429" else None)
            case "HTML":
                return ScriptedMedia([b"<html>"])
            case "cut" | "cut without an ETag":
                return ScriptedMedia([rest[:at], pause_s, cut], start, '"e"' if fate == "cut" else None)
            case "trailing":
                return ScriptedMedia([rest, b"more"], start)
            case "a wrong byte":
                return ScriptedMedia([rest[:at], bytes([rest[at] ^ 1]), rest[at + 1 :]], start)
            case "short":
                return ScriptedMedia([rest[:at]], start)
            case _:
                return ScriptedMedia([rest[:at], pause_s, rest[at:]], start)


def picture(prompt: str, n: int) -> bytes:
    """Each output of each job is a picture of its own."""
    return png(text=f"{prompt}/{n}".encode())


class Run:
    """One seed: the rounds, and what has to be true after each of them."""

    def __init__(self, seed: int, out: Path) -> None:
        self.out = out
        self.chance = Random(seed)
        self.gateway = Chaos(seed, out)
        self.jobs = [Job(prompt=job_id, id=job_id) for job_id in IDS]
        self.may_resubmit = self.chance.random() < 0.3

    def play(self) -> None:
        for _ in range(ROUNDS):
            self.round()
            self.check()
        self.gateway.calm = True
        self.round()
        self.check()
        assert set(states(self.out)) == set(IDS)
        assert set(states(self.out).values()) <= {"succeeded", "failed", "errored", "rejected", "ambiguous"}

    def round(self) -> None:
        chance, calm = self.chance, self.gateway.calm
        rate = chance.choice([1, 5, 50])
        options: dict[str, Any] = {
            "rate": f"{rate}/s",
            "max_in_flight": chance.choice([1, 3, 100]),
            "job_timeout_s": chance.choice([30.0, 1800.0]) if not calm else 1800.0,
            "download_attempts": chance.choice([2, 8]),
            "ambiguous": "resubmit" if self.may_resubmit and chance.random() < 0.5 else "hold",
            "random": Random(chance.random()),
        }
        self.gateway.post_times_s.clear()
        latency, slow_s = Random(chance.random()), chance.choice([0.0, 0.02, 0.5])
        until_s = chance.choice([0.05, 1.0, 4.0, 15.0, 60.0, 600.0]) * chance.random()
        how = "to the end" if calm else chance.choice(["to the end", "stop", "stop_now", "leave", "kill", "kill"])
        self.chance.shuffle(self.jobs)
        if how == "kill":
            run_until_killed(
                self.work("to the end", math.inf, options), until_s, self.out, lambda: latency.random() * slow_s
            )
        else:
            run_virtual(self.work(how, until_s, options), lambda: latency.random() * slow_s)
            self.check_results()
        assert most_in_a_window(self.gateway.post_times_s) <= rate + 1

    async def work(self, how: str, until_s: float, options: dict[str, Any]) -> None:
        try:
            async with Engine(self.out, gateway_client=self.gateway, **options) as engine:
                if how == "to the end":
                    await engine.run(self.jobs)
                    return
                running = asyncio.create_task(engine.run(self.jobs))
                await asyncio.sleep(until_s)
                if how == "leave":
                    running.cancel()
                    raise LookupError
                getattr(engine, how)()
                await asyncio.wait([running])
                assert isinstance(running.exception(), KreaBatchError | None)
        except LookupError:
            pass

    # ---- the books ---------------------------------------------------------------------------------------

    def check(self) -> None:
        if not (self.out / "ledger.db").exists() or not ask(self.out, "SELECT 1 FROM sqlite_schema"):
            return  # killed before it had begun
        self.check_money()
        self.check_pictures()

    def check_money(self) -> None:
        sql = "SELECT j.id, p.came_to, p.request_id FROM posts p JOIN jobs j ON j.n = p.job ORDER BY p.n"
        posts = ask(self.out, sql)
        on_record = {request_id: job_id for job_id, _, request_id in posts if request_id}
        unclear = Counter(job_id for job_id, came_to, _ in posts if came_to in (None, "unclear"))
        paid = Counter(self.gateway.charged.values())
        lost = Counter(prompt for request_id, prompt in self.gateway.charged.items() if request_id not in on_record)
        for job_id in IDS:
            errors = len(self.gateway.told_errors.get(job_id, ()))
            resubmits = unclear[job_id] if self.may_resubmit else 0
            assert paid[job_id] <= 1 + errors + resubmits, f"{job_id} was paid {paid[job_id]} times"
            assert lost[job_id] <= unclear[job_id], f"a paid POST of {job_id} is not on record"
        for request_id, job_id in on_record.items():
            assert self.gateway.charged[request_id] == job_id

    def check_pictures(self) -> None:
        in_ledger = states(self.out)
        sql = "SELECT id, request_id, files FROM jobs WHERE state = 'succeeded'"
        assert {row[0] for row in ask(self.out, sql)} == {i for i, state in in_ledger.items() if state == "succeeded"}
        for path in (self.out / "images").glob("*.png"):
            walk = PngWalk()
            walk.feed(path.read_bytes())
            walk.finish()

    def check_results(self) -> None:
        """After an engine that was closed in order: results equal the ledger, and the files are the jobs' own."""
        in_ledger = states(self.out)
        found = rows(self.out)
        ends = {"succeeded", "failed", "errored", "rejected", "ambiguous", "timed_out", "cancelled"}
        assert {job_id: row["status"] for job_id, row in found.items()} == {
            job_id: state for job_id, state in in_ledger.items() if state in ends
        }
        taken: set[str] = set()
        for job_id, row in found.items():
            for n, file in enumerate(row["files"], 1):
                data = (self.out / file["path"]).read_bytes()
                assert data == picture(job_id, n)
                assert hashlib.sha256(data).hexdigest() == file["sha256"]
                assert len(data) == file["bytes"]
                assert file["path"] not in taken
                taken.add(file["path"])
            assert bool(row["files"]) == (row["status"] == "succeeded")


@pytest.mark.parametrize("seed", SEEDS)
def test_chaos(tmp_path: Path, seed: int) -> None:
    """Whatever goes wrong, no job is paid twice, no paid one is lost, and what succeeded is whole."""
    run = Run(seed, tmp_path / "out")
    run.out.mkdir()
    run.play()
