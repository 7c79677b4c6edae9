"""The statuses of the random gateway: how its jobs end, and how the answers to polls are damaged."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any

import aiohttp

from tests.simulation import answers
from tests.simulation.answers import refusal
from tests.simulation.network import Connection, Reply, Request, broken
from tests.simulation.weighted_choice import weighted_choice

if TYPE_CHECKING:
    from tests.simulation.random_gateway import RandomGateway

NEVER_IN_TIME_S = 120.0  # twice the default of request_timeout_s

POLL_OUTCOMES: list[tuple[int, Any]] = [
    (46, "actual status"),
    (18, "PROCESSING"),
    (5, "PONDERING"),
    (4, refusal(500, "internal")),
    (3, refusal(429, "slow down", "8")),
    (2, refusal(429, "slow down")),
    (2, refusal(401, "unauthorized")),
    (2, refusal(404, "not found")),
    (3, "no answer in time"),
    (4, "cut"),
    (3, "unreadable"),
    (4, "a surplus answer before it"),
    (4, "a surplus answer after it"),
]
JOB_OUTCOMES: list[tuple[int, str]] = [
    (68, "one"),
    (10, "two"),
    (7, "failed"),
    (9, "error"),
    (3, "an unknown word with an output"),
    (3, "an unknown word without one"),
]


class RandomStatuses:
    """Answers polls. In one seed of ten, the statuses do not name their requests."""

    def __init__(self, gateway: RandomGateway) -> None:
        self._gateway = gateway
        self._names_requests = gateway.few_faults or Random(f"{gateway.seed}/names").random() < 0.9
        self._latest: list[Reply] = []
        self.reported_errors: dict[str, set[str]] = {}  # request_ids that ended in ERROR, by prompt

    def answer(self, request: Request, connection: Connection, request_id: str) -> list[Reply]:
        """Return what is sent on this connection because of a poll."""
        random = self._gateway.random_for("poll", request_id)
        delay_s = random.choice([0.05, 0.2, 3.0])
        if request_id not in self._gateway.charged:
            return [answers.refusal_reply(request, delay_s, 404, "not found")]
        outcome = "actual status" if self._gateway.no_faults else weighted_choice(random, POLL_OUTCOMES)
        if isinstance(outcome, dict):
            return [answers.refusal_reply(request, delay_s, **outcome)]
        if outcome == "cut" and connection.requests:  # servers close connections that are idle
            return [broken(aiohttp.ServerDisconnectedError(), delay_s)]
        if outcome == "no answer in time":
            delay_s = NEVER_IN_TIME_S
        named = request_id if self._names_requests else None
        body = answers.status_body(named, outcome) if outcome.isupper() else self._final_body(request_id, named)
        if outcome in ("cut", "unreadable"):
            return [_damaged(request, body, outcome, delay_s, random)]
        reply = Reply(200, body, delay_s=delay_s, to=request, names=request_id)
        return self._with_surplus(reply, outcome, random)

    def _with_surplus(self, reply: Reply, outcome: str, random: Random) -> list[Reply]:
        others = [other for other in self._latest if other.names != reply.names]
        self._latest = [*self._latest[-5:], reply]
        if not outcome.startswith("a surplus answer"):
            return [reply]
        surplus = answers.surplus_replies(random, random.choice(others) if others else None)
        # On a fresh connection, a status that does not name its request is believed (wire.read_poll_answer).
        is_before = outcome.endswith("before it") and self._names_requests
        return [*surplus, reply] if is_before else [reply, *surplus]

    def _final_body(self, request_id: str, named: str | None) -> bytes:
        """Return how a job ends, which is the same at every call except for the URLs."""
        outcome = weighted_choice(Random(f"{self._gateway.seed}/end/{request_id}"), JOB_OUTCOMES)
        if outcome == "failed":
            return answers.status_body(named, "FAILED", error="nsfw")
        if outcome == "error":
            self.reported_errors.setdefault(self._gateway.charged[request_id], set()).add(request_id)
            return answers.status_body(named, "ERROR", error="gpu")
        if outcome == "an unknown word without one":
            return answers.status_body(named, "EXPIRED", completed_at="2026-06-18T14:46:46Z")
        outputs = range(1, 3 if outcome == "two" else 2)
        urls = [self._gateway.cdn.url_of(request_id, n) for n in outputs]
        status = "DELIVERED" if outcome == "an unknown word with an output" else "COMPLETED"
        return answers.status_body(named, status, output={"media_url": urls, "media_type": "image/png"})


def _damaged(request: Request, body: bytes, outcome: str, delay_s: float, random: Random) -> Reply:
    """Return a status that was cut off, or another body that cannot be read."""
    if outcome == "cut":
        cut = body[: random.randrange(len(body))]
        return Reply(200, cut, aiohttp.ClientPayloadError(), delay_s=delay_s, to=request)
    body = random.choice([b"", b"[]", b"null", b"<html>", body[:-9], b"[%s]" % body])
    return Reply(200, body, delay_s=delay_s, to=request)
