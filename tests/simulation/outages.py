"""Times in which every request fails in the same way: outages of the gateway and of its CDN."""

from __future__ import annotations

import asyncio
from random import Random

import aiohttp

from tests.simulation.network import Reply, Request, broken
from tests.simulation.process import START_S

HANGS_S = 1e6  # longer than any time-out
GATEWAY_OUTAGES = ["502", "404", "cut", "hang", "not sent"]
CDN_OUTAGES = ["503", "404", "HTML", "cut", "hang"]


class Outage:
    """Requests that are sent from `start_s` to `end_s`, in the event loop's time, fail in the way that `kind` says.

    `prompts_s` has the POSTs that failed: prompt and time.
    """

    def __init__(self, kind: str, start_s: float, end_s: float) -> None:
        self.kind = kind
        self.start_s = start_s
        self.end_s = end_s
        self.prompts_s: list[tuple[str, float]] = []

    def __repr__(self) -> str:
        return f"{self.kind} from {self.start_s:.1f} to {self.end_s:.1f}"

    @property
    def answers_after_s(self) -> float:
        """When a client knows that a POST has failed."""
        return {"cut": 0.3, "hang": 240.0}.get(self.kind, 0.05)

    def may_charge(self, random: Random) -> bool:
        """Return whether a POST is queued although its answer fails."""
        return self.kind in ("502", "cut", "hang") and random.random() < 0.2

    def reply(self, request: Request) -> Reply:
        """Return the answer to a request."""
        match self.kind:
            case "502" | "503":
                return Reply(int(self.kind), b"<html>Bad Gateway</html>", delay_s=0.05, to=request)
            case "404":
                return Reply(404, b'{"error": "no such endpoint"}', delay_s=0.05, to=request)
            case "HTML":
                return Reply(200, b"<html>Please log in</html>", delay_s=0.05, to=request)
            case "hang":
                return Reply(504, delay_s=HANGS_S, to=request)
            case _:
                return broken(aiohttp.ServerDisconnectedError(), 0.3)


def random_outages(random: Random, kinds: list[str], share: float) -> list[Outage]:
    """Return the outages of a round, mostly none."""
    if random.random() >= share:
        return []
    start_s = START_S + random.choice([0.0, 0.5, 2.0, 15.0]) * random.random()
    return [Outage(random.choice(kinds), start_s, start_s + random.choice([2.0, 10.0, 60.0, 300.0]))]


def current_outage(outages: list[Outage]) -> Outage | None:
    """Return the outage of this moment, if there is one."""
    now_s = asyncio.get_running_loop().time()
    return next((outage for outage in outages if outage.start_s <= now_s < outage.end_s), None)
