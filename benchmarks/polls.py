"""How near to the best possible are the polls, and how much better than polling every 5 or 10 seconds?

    python -m benchmarks.polls                 2,500 jobs from a cold start, for each kind of latency
    python -m benchmarks.polls --jobs 60       the short form

The real engine runs on a loop with virtual time against a gateway with the given latencies. Cost is polls plus lag in
units of the poll interval, a job. The best possible is computed by dynamic programming for the very latencies drawn:
one sequence of ages to poll at, known beforehand, that costs least. No engine can know it.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections.abc import Callable
from random import Random
from typing import Any

from benchmarks.report import tell_goal
from krea_batch import Engine, Job
from krea_batch.jobs import Creativity
from krea_batch.rules.verdicts import Finished, PollVerdict, PostVerdict, Waiting
from krea_batch.testing.scripted_gateway import ScriptedGateway
from tests.virtual_time import run_virtual

INTERVAL_S = 5.0
RATE_PER_S = 50
MOST = 1.15

LATENCIES: dict[str, Callable[[Random], float]] = {
    "lognormal, median 12 s": lambda chance: chance.lognormvariate(2.485, 0.4),
    "lognormal, median 40 s": lambda chance: chance.lognormvariate(3.689, 0.3),
    "uniform, 5-30 s": lambda chance: chance.uniform(5, 30),
    "two humps, 6 and 25 s": lambda chance: (25 if chance.random() < 0.3 else 6) * chance.uniform(0.8, 1.2),
    "all 15 s": lambda _: 15.0,
    "shifts from 8 to 25 s": lambda chance: chance.lognormvariate(2.08, 0.2),  # and see below
}


class Timed(ScriptedGateway):
    """Ends each job after its latency; keeps when it was polled."""

    def __init__(self, latencies_s: list[float], *, tells: bool) -> None:
        super().__init__()
        self.post_s = 0.0
        self.latencies_s = latencies_s
        self.tells = tells  # the status says how long the job took
        self.began_s: dict[str, float] = {}
        self.polls_made = 0
        self.lag_s = 0.0

    async def submit(self, body: bytes, *, callback: str = "") -> PostVerdict:
        accepted: Any = await super().submit(body)
        self.began_s[accepted.request_id] = asyncio.get_running_loop().time()
        return accepted  # type: ignore[no-any-return]

    async def poll(self, request_id: str) -> PollVerdict:
        self.polls_made += 1
        latency_s = self.latencies_s[int(self.charged[request_id])]
        age_s = asyncio.get_running_loop().time() - self.began_s[request_id]
        if age_s < latency_s:
            return Waiting("PROCESSING")
        self.lag_s += age_s - latency_s
        finished = self.finished(request_id)
        return Finished(finished.media_urls, "image/png", latency_s if self.tells else None)


def engines(latencies_s: list[float], *, tells: bool, kinds: tuple[Creativity, ...] = ("medium",)) -> float:
    """Cost a job of the real engine; the jobs are of these kinds in turn."""
    gateway = Timed(latencies_s, tells=tells)

    async def main(out: str) -> None:
        async with Engine(
            out, gateway_client=gateway, rate=f"{RATE_PER_S}/s", max_in_flight=100_000, random=Random(1)
        ) as engine:
            jobs = range(len(latencies_s))
            await engine.run(Job(prompt=str(n), id=str(n), creativity=kinds[n % len(kinds)]) for n in jobs)

    with tempfile.TemporaryDirectory() as out:
        run_virtual(main(out))
    return (gateway.polls_made + gateway.lag_s / INTERVAL_S) / len(latencies_s)


def fixed(latencies_s: list[float], every_s: float) -> float:
    """Cost a job of polling every so many seconds."""
    polls = [max(1, -(-latency_s // every_s)) for latency_s in latencies_s]
    pairs = zip(polls, latencies_s, strict=True)
    return sum(count + (count * every_s - latency_s) / INTERVAL_S for count, latency_s in pairs) / len(latencies_s)


def best(latencies_s: list[float]) -> float:
    """Cost a job of the best sequence of ages to poll at, on a grid of a hundredth of the interval."""
    ends = sorted(latencies_s)
    step_s = INTERVAL_S / 100
    cells = int(ends[-1] / step_s) + 2
    gone, gone_s, at = [0] * (cells + 1), [0.0] * (cells + 1), 0
    for cell in range(cells + 1):
        if cell:
            gone[cell], gone_s[cell] = gone[cell - 1], gone_s[cell - 1]
        while at < len(ends) and ends[at] <= cell * step_s + 1e-9:
            gone[cell] += 1
            gone_s[cell] += ends[at]
            at += 1
    spacing, total = 100, len(ends)
    cost = [0.0] * (cells + 1)
    for cell in range(cells, -1, -1):
        alive = total - gone[cell]
        if alive == 0:
            continue
        least = float("inf")
        for poll in range(min(cell + spacing, cells), cells + 1):
            seen = gone[poll] - gone[cell]
            lag = (poll * step_s * seen - (gone_s[poll] - gone_s[cell])) / INTERVAL_S
            if lag >= least:
                break
            least = min(least, lag + cost[poll])
        cost[cell] = alive + least
    return cost[0] / total


def _two_kinds(jobs: int) -> None:
    """Jobs of low creativity take 6 s, those of high creativity 25 s; the best possible knows which is which."""
    chance = Random(7)
    latencies_s = [(25 if n % 2 else 6) * chance.uniform(0.8, 1.2) for n in range(jobs)]
    least = (best(latencies_s[::2]) * len(latencies_s[::2]) + best(latencies_s[1::2]) * len(latencies_s[1::2])) / jobs
    told, untold = (engines(latencies_s, tells=tells, kinds=("low", "high")) for tells in (True, False))
    fives, tens = fixed(latencies_s, 5.0), fixed(latencies_s, 10.0)
    _tell("two kinds of jobs, 6 and 25 s", least, told, untold, fives, tens)


def _tell(name: str, least: float, told: float, untold: float, fives: float, tens: float) -> None:
    print(
        f"| {name} | {least:.3f} | {told:.3f} | **{told / least:.3f}** | {untold:.3f} | {untold / least:.3f} "
        f"| {fives:.3f} | {tens:.3f} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=2500)
    jobs = parser.parse_args().jobs
    print("| latencies | best | engine | ÷ best | without timestamps | ÷ best | every 5 s | every 10 s |")
    print("|---|---|---|---|---|---|---|---|")
    worst = 0.0
    for name, draw in LATENCIES.items():
        chance = Random(7)
        latencies_s = [draw(chance) for _ in range(jobs)]
        if name.startswith("shifts"):
            latencies_s[jobs // 2 :] = [latency_s * 3.1 for latency_s in latencies_s[jobs // 2 :]]
        least = best(latencies_s)
        told, untold = engines(latencies_s, tells=True), engines(latencies_s, tells=False)
        fives, tens = fixed(latencies_s, 5.0), fixed(latencies_s, 10.0)
        _tell(name, least, told, untold, fives, tens)
        worst = max(worst, told / least)
    _two_kinds(jobs)  # half of them are submitted before the first slow one ends; no goal was set for that
    what = "polls + lag ÷ the best possible, one kind of jobs, with timestamps"
    tell_goal(what, f"≤ {MOST}", f"{worst:.3f} at the most", met=worst <= MOST)


if __name__ == "__main__":
    main()
