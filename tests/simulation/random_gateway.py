"""A gateway and its CDN that do what the seed says. They charge, and they watch.

Newcomers: what happens to a request hangs on the seed, on what it is about and on how often that was tried, and not
on the order of things: a run with the same seed meets the same fates.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

from krea_batch.gateway.url_policy import DownloadError
from krea_batch.rules.verdicts import (
    Accepted,
    Ambiguous,
    Errored,
    Failed,
    Finished,
    NotSent,
    PollFailed,
    PollVerdict,
    PostVerdict,
    Refusal,
    Refused,
    Waiting,
)
from krea_batch.testing.scripted_gateway import ScriptedDownload, ScriptedGateway, make_png
from tests.asgi_client import call_asgi
from tests.engine_fixtures import query_ledger

POSTS: list[tuple[int, Any]] = [
    (60, "accept"),
    (5, "accept, and the answer is lost"),
    (1, "accept, and the answer names another job's request"),
    (4, Ambiguous("cut before it was queued")),
    (6, Refused(Refusal.RATE_LIMITED, 429, "slow down", 3.0)),
    (2, Refused(Refusal.RATE_LIMITED, 429, "slow down")),
    (2, Refused(Refusal.RATE_LIMITED, 403, "quota", 20.0)),
    (6, Refused(Refusal.RETRYABLE, 500, "internal")),
    (3, Refused(Refusal.RETRYABLE, 503, "unavailable", 5.0)),
    (6, NotSent("no connection")),
    (2, Refused(Refusal.REJECTED, 422, "bad")),
    (1, Refused(Refusal.FATAL, 402, "no money")),
]
POLLS: list[tuple[int, Any]] = [
    (50, "the truth"),
    (20, Waiting("PROCESSING")),
    (5, Waiting("PONDERING")),
    (4, PollFailed("internal", 500)),
    (3, PollFailed("slow down", 429, 8.0)),
    (2, PollFailed("slow down", 429)),
    (2, PollFailed("unauthorized", 401)),
    (3, PollFailed("no answer in time")),
    (2, PollFailed("not found", 404)),
]
ENDS: list[tuple[int, str]] = [(75, "one"), (10, "two"), (7, "failed"), (12, "error")]
CALLS: list[tuple[int, str]] = [
    (40, "lost"),
    (35, "one"),
    (10, "two"),
    (5, "of another request"),
    (5, "forged"),
    (5, "unreadable"),
]
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


class World(ScriptedGateway):
    """Draws what happens from the seed and from what it happens to. `broken` holds the laws it saw broken."""

    def __init__(self, seed: int, out: Path) -> None:
        super().__init__()
        self.seed = seed
        self.out = out
        self.calm = False  # nothing goes wrong any more
        self.gone = False  # the process that asks is dead
        self.broken: list[str] = []
        self.tries: Counter[str] = Counter()
        self.told_errors: dict[str, set[str]] = {}
        self.app: Any = None  # takes callbacks
        self.named: set[str] = set()  # by callbacks

    def chance(self, *what: str) -> Random:
        """The next chance of one thing."""
        name = "/".join(what)
        self.tries[name] += 1
        return Random(f"{self.seed}/{name}/{self.tries[name]}")

    def _somebody_asks(self) -> None:
        if self.gone:
            raise asyncio.CancelledError

    # ---- POSTs -------------------------------------------------------------------------------------------

    async def submit(self, body: bytes, *, callback: str = "") -> PostVerdict:
        self._somebody_asks()
        prompt = body.split(b'"')[3].decode()
        sql = "SELECT state, result FROM jobs JOIN submissions USING (job_no) WHERE job_id = ? ORDER BY submission_no DESC LIMIT 1"
        if query_ledger(self.out, sql, prompt) != [("submitting", None)]:
            self.broken.append(f"a POST of {prompt} without an intent on record")
        self.submit_times_s.append(asyncio.get_running_loop().time())
        chance = self.chance("post", prompt)
        fate = "accept" if self.calm else draw(chance, POSTS)
        request_id = f"krea_{len(self.charged):04d}"
        if isinstance(fate, str):
            self.charged[request_id] = prompt  # however the answer fares
            if callback:
                self._plan_call(request_id, callback)
        await asyncio.sleep(chance.choice([0.01, 0.1, 0.5, 2.0, 20.0]))
        if fate == "accept, and the answer is lost":
            return Ambiguous("the connection was cut")
        if fate == "accept, and the answer names another job's request":
            on_record = query_ledger(
                self.out, "SELECT min(request_id) FROM submissions"
            )  # of two that come alike, the first counts
            request_id = on_record[0][0] or request_id
        return Accepted(request_id, Waiting("QUEUED")) if isinstance(fate, str) else fate

    # ---- callbacks ---------------------------------------------------------------------------------------

    def _plan_call(self, request_id: str, address: str) -> None:
        """Call when the job ends, as chance will have it; mostly before the answer to a POST that takes long."""
        chance = self.chance("call", request_id)
        fate = draw(chance, CALLS)
        loop = asyncio.get_running_loop()
        for _ in range(0 if fate == "lost" else 2 if fate == "two" else 1):
            after_s = chance.choice([0.0, 0.3, 4.0, 30.0])
            loop.call_later(after_s, lambda: loop.create_task(self._call(fate, request_id, address)))

    async def _call(self, fate: str, request_id: str, address: str) -> None:
        if self.gone or self.app is None:
            return
        named = request_id
        if fate == "of another request":
            on_record = [
                named
                for (named,) in query_ledger(self.out, "SELECT request_id FROM submissions WHERE result = 'accepted'")
            ]
            named = self.chance("named", request_id).choice([*on_record, "nobody's"])
        if fate == "forged":
            address = address[:-1] + ("0" if address[-1] != "0" else "1")
        elif fate != "unreadable":
            self.named.add(named)
        body = b"\xff" if fate == "unreadable" else b'{"request_id": "%s", "status": "COMPLETED"}' % named.encode()
        status = await call_asgi(self.app, address, body)
        if (fate == "forged") != (status == 404) and status != 503:
            self.broken.append(f"a call, {fate}, was answered {status}")

    # ---- polls -------------------------------------------------------------------------------------------

    async def poll(self, request_id: str) -> PollVerdict:
        self._somebody_asks()
        on_record = query_ledger(
            self.out, "SELECT 1 FROM submissions WHERE request_id = ? AND result = 'accepted'", request_id
        )
        if not on_record and request_id not in self.named:
            self.broken.append(f"a poll of {request_id}, which is not on record")
        chance = self.chance("poll", request_id)
        await asyncio.sleep(chance.choice([0.05, 0.2, 3.0]))
        if request_id not in self.charged:
            return PollFailed("not found", 404)
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

    async def fetch(self, url: str, *, offset: int = 0, etag: str | None = None) -> ScriptedDownload:
        self._somebody_asks()
        chance = self.chance("fetch", url)
        await asyncio.sleep(chance.choice([0.05, 0.5]))
        fate = "whole" if self.calm else draw(chance, FETCHES)
        request_id, name = url.split("/")[-2:]
        whole = picture(self.charged[request_id], int(name[0]))
        start = offset if etag == '"e"' and fate != "from the begin" else 0
        rest = whole[start:]
        at = chance.randrange(len(rest)) if rest else 0
        cut = DownloadError("the connection was cut")
        pause_s = chance.choice([0.0, 0.3, 5.0])
        match fate:
            case "404" | "429":
                raise DownloadError(f"HTTP {fate}", status=int(fate), retry_after_s=5.0 if fate == "429" else None)
            case "HTML":
                return ScriptedDownload([b"<html>"])
            case "cut" | "cut without an ETag":
                return ScriptedDownload([rest[:at], pause_s, cut], start, '"e"' if fate == "cut" else None)
            case "trailing":
                return ScriptedDownload([rest, b"more"], start)
            case "a wrong byte":
                return ScriptedDownload([rest[:at], bytes([rest[at] ^ 1]), rest[at + 1 :]], start)
            case "short":
                return ScriptedDownload([rest[:at]], start)
            case _:
                return ScriptedDownload([rest[:at], pause_s, rest[at:]], start)


def picture(prompt: str, n: int) -> bytes:
    """Each output of each job is a picture of its own."""
    return make_png(text=f"{prompt}/{n}".encode())
