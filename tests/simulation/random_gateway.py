"""A gateway and CDN with random outcomes, which charges and checks the requests of the engine.

The outcome of a request depends on the seed, on its subject and on the number of the attempt, not on the order of
requests. The strings in the keys are part of the seed: a change gives every seed different outcomes.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
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

SUBMIT_OUTCOMES: list[tuple[int, Any]] = [
    (60, "accept"),
    (5, "accept, but the response is lost"),
    (1, "accept, but the response has another job's request_id"),
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
POLL_OUTCOMES: list[tuple[int, Any]] = [
    (50, "actual status"),
    (20, Waiting("PROCESSING")),
    (5, Waiting("PONDERING")),
    (4, PollFailed("internal", 500)),
    (3, PollFailed("slow down", 429, 8.0)),
    (2, PollFailed("slow down", 429)),
    (2, PollFailed("unauthorized", 401)),
    (3, PollFailed("no answer in time")),
    (2, PollFailed("not found", 404)),
]
JOB_OUTCOMES: list[tuple[int, str]] = [(75, "one"), (10, "two"), (7, "failed"), (12, "error")]
CALLBACK_OUTCOMES: list[tuple[int, str]] = [
    (40, "lost"),
    (35, "one"),
    (10, "two"),
    (5, "for another request"),
    (5, "forged"),
    (5, "unreadable"),
]
DOWNLOAD_OUTCOMES: list[tuple[int, str]] = [
    (50, "whole"),
    (15, "cut"),
    (5, "cut without an ETag"),
    (5, "from the start"),
    (5, "HTML"),
    (4, "trailing"),
    (4, "a wrong byte"),
    (4, "short"),
    (4, "404"),
    (4, "429"),
]


def weighted_choice(random: Random, table: list[tuple[int, Any]]) -> Any:
    """Return an entry of a table of weights and entries."""
    return random.choices([entry for _, entry in table], [weight for weight, _ in table])[0]


class RandomGateway(ScriptedGateway):
    """Chooses each outcome from the seed and its subject. `violations` lists requests that must not happen."""

    def __init__(self, seed: int, out: Path) -> None:
        super().__init__()
        self.seed = seed
        self.out = out
        self.no_faults = False
        self.process_crashed = False  # a request of a crashed process does not reach the gateway
        self.violations: list[str] = []
        self.attempts: Counter[str] = Counter()
        self.reported_errors: dict[str, set[str]] = {}  # request_ids that ended in ERROR, by prompt
        self.app: Any = None  # receives callbacks
        self.callback_request_ids: set[str] = set()  # named by valid callbacks

    def random_for(self, *key: str) -> Random:
        """Return the random generator of the next attempt on a subject."""
        name = "/".join(key)
        self.attempts[name] += 1
        return Random(f"{self.seed}/{name}/{self.attempts[name]}")

    def _require_running_process(self) -> None:
        if self.process_crashed:
            raise asyncio.CancelledError

    # ---- POSTs -------------------------------------------------------------------------------------------

    async def submit(
        self, body: bytes, *, callback: str = "", on_sending: Callable[[], None] | None = None
    ) -> PostVerdict:
        self._require_running_process()
        if on_sending:
            on_sending()
        prompt = body.split(b'"')[3].decode()
        sql = (
            "SELECT state, result FROM jobs JOIN submissions USING (job_no) WHERE job_id = ?"
            " ORDER BY submission_no DESC LIMIT 1"
        )
        if query_ledger(self.out, sql, prompt) != [("submitting", None)]:
            self.violations.append(f"a POST of {prompt} without a recorded intent")
        self.submit_times_s.append(asyncio.get_running_loop().time())
        random = self.random_for("post", prompt)
        outcome = "accept" if self.no_faults else weighted_choice(random, SUBMIT_OUTCOMES)
        request_id = f"krea_{len(self.charged):04d}"
        if isinstance(outcome, str):
            self.charged[request_id] = prompt  # whatever happens to the response
            if callback:
                self._schedule_callback(request_id, callback)
        await asyncio.sleep(random.choice([0.01, 0.1, 0.5, 2.0, 20.0]))
        if outcome == "accept, but the response is lost":
            return Ambiguous("the connection was cut")
        if outcome == "accept, but the response has another job's request_id":
            recorded = query_ledger(self.out, "SELECT min(request_id) FROM submissions")
            request_id = recorded[0][0] or request_id
        return Accepted(request_id, Waiting("QUEUED")) if isinstance(outcome, str) else outcome

    # ---- callbacks ---------------------------------------------------------------------------------------

    def _schedule_callback(self, request_id: str, url: str) -> None:
        """Send callbacks after random delays; for a slow POST, mostly before its response."""
        random = self.random_for("call", request_id)
        outcome = weighted_choice(random, CALLBACK_OUTCOMES)
        loop = asyncio.get_running_loop()
        for _ in range(0 if outcome == "lost" else 2 if outcome == "two" else 1):
            delay_s = random.choice([0.0, 0.3, 4.0, 30.0])
            loop.call_later(delay_s, lambda: loop.create_task(self._send_callback(outcome, request_id, url)))

    async def _send_callback(self, outcome: str, request_id: str, url: str) -> None:
        if self.process_crashed or self.app is None:
            return
        named_request_id = request_id
        if outcome == "for another request":
            recorded = [
                named
                for (named,) in query_ledger(self.out, "SELECT request_id FROM submissions WHERE result = 'accepted'")
            ]
            named_request_id = self.random_for("named", request_id).choice([*recorded, "unknown"])
        if outcome == "forged":
            url = url[:-1] + ("0" if url[-1] != "0" else "1")
        elif outcome != "unreadable":
            self.callback_request_ids.add(named_request_id)
        body = (
            b"\xff"
            if outcome == "unreadable"
            else b'{"request_id": "%s", "status": "COMPLETED"}' % named_request_id.encode()
        )
        status = await call_asgi(self.app, url, body)
        if (outcome == "forged") != (status == 404) and status != 503:
            self.violations.append(f"a callback ({outcome}) was answered {status}")

    # ---- polls -------------------------------------------------------------------------------------------

    async def poll(self, request_id: str) -> PollVerdict:
        self._require_running_process()
        recorded = query_ledger(
            self.out, "SELECT 1 FROM submissions WHERE request_id = ? AND result = 'accepted'", request_id
        )
        if not recorded and request_id not in self.callback_request_ids:
            self.violations.append(f"a poll of {request_id}, which is not recorded")
        random = self.random_for("poll", request_id)
        await asyncio.sleep(random.choice([0.05, 0.2, 3.0]))
        if request_id not in self.charged:
            return PollFailed("not found", 404)
        outcome: PollVerdict | str = "actual status" if self.no_faults else weighted_choice(random, POLL_OUTCOMES)
        return self.final_verdict(request_id) if isinstance(outcome, str) else outcome

    def final_verdict(self, request_id: str) -> PollVerdict:
        """Return how a job ends; the same at every call."""
        outcome = weighted_choice(Random(f"{self.seed}/end/{request_id}"), JOB_OUTCOMES)
        if outcome == "failed":
            return Failed("nsfw")
        if outcome == "error":
            self.reported_errors.setdefault(self.charged[request_id], set()).add(request_id)
            return Errored("gpu")
        outputs = 2 if outcome == "two" else 1
        return Finished(
            tuple(f"https://cdn.example/{request_id}/{n}.png" for n in range(1, outputs + 1)), "image/png"
        )

    # ---- images ------------------------------------------------------------------------------------------

    async def download(self, url: str, *, offset: int = 0, etag: str | None = None) -> ScriptedDownload:
        self._require_running_process()
        random = self.random_for("fetch", url)
        await asyncio.sleep(random.choice([0.05, 0.5]))
        outcome = "whole" if self.no_faults else weighted_choice(random, DOWNLOAD_OUTCOMES)
        request_id, name = url.split("/")[-2:]
        full_image = image_bytes(self.charged[request_id], int(name[0]))
        start = offset if etag == '"e"' and outcome != "from the start" else 0
        rest = full_image[start:]
        position = random.randrange(len(rest)) if rest else 0
        connection_cut = DownloadError("the connection was cut")
        delay_s = random.choice([0.0, 0.3, 5.0])
        match outcome:
            case "404" | "429":
                raise DownloadError(
                    f"HTTP {outcome}", status=int(outcome), retry_after_s=5.0 if outcome == "429" else None
                )
            case "HTML":
                return ScriptedDownload([b"<html>"])
            case "cut" | "cut without an ETag":
                return ScriptedDownload(
                    [rest[:position], delay_s, connection_cut], start, '"e"' if outcome == "cut" else None
                )
            case "trailing":
                return ScriptedDownload([rest, b"more"], start)
            case "a wrong byte":
                return ScriptedDownload([rest[:position], bytes([rest[position] ^ 1]), rest[position + 1 :]], start)
            case "short":
                return ScriptedDownload([rest[:position]], start)
            case _:
                return ScriptedDownload([rest[:position], delay_s, rest[position:]], start)


def image_bytes(prompt: str, file_index: int) -> bytes:
    """Return the image of one output of a job; all of them differ."""
    return make_png(text=f"{prompt}/{file_index}".encode())
