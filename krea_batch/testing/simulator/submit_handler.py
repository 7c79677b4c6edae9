"""POSTs come in; a job on the books and its request_id, a refusal, or a fault that was asked for, go out.

Newcomers: the order of the questions is a gateway's: key, limit, then the body, then faults, then the balance.
What was accepted is on the books before the first byte of the answer, so a lost answer has been charged.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from typing import Any

import msgspec
from aiohttp import web

from krea_batch.testing.simulator.accounting import Post
from krea_batch.testing.simulator.body_validation import complaint
from krea_batch.testing.simulator.job_log import Memory
from krea_batch.testing.simulator.job_planner import SimulatedJob
from krea_batch.testing.simulator.responses import (
    bad_request,
    cut,
    encoded,
    error,
    forbidden,
    html,
    json,
    new_request_id,
    no_balance,
    no_model,
    server_error,
    unauthorized,
)
from krea_batch.testing.simulator.state import State
from krea_batch.testing.simulator.webhooks import Webhooks

SUBMIT_PATH = "/krea-2-large-text-to-image/v1/krea-2-large-text-to-image-request"
WEBHOOK_HEADER = "X-Webhook-URL"
_decode = msgspec.json.Decoder().decode


class Submits:
    """The generate endpoint."""

    def __init__(self, state: State, webhooks: Webhooks, memory: Memory | None) -> None:
        self.state = state
        self.webhooks = webhooks
        self.memory = memory

    async def post(self, request: web.Request) -> web.StreamResponse:
        state, books = self.state, self.state.books
        try:
            raw = await request.read()
        except web.HTTPRequestEntityTooLarge:
            return self._refused(error(413, "Payload Too Large", "The body is too large."), None)
        mark = hashlib.blake2b(raw, digest_size=8).hexdigest()
        books.received[mark] += 1
        body, wrong = _read(raw, lenient=state.settings.lenient)
        if refusal := self._refusal(request, wrong):
            return self._refused(refusal, body)
        if struck := state.dice.first(_BEFORE, mark, books.received[mark]):
            return self._struck(struck, request, body)
        books.settle(state.now())
        if books.balance is not None and books.balance < 1:
            return self._refused(no_balance(), body)
        return await self._accept(request, body, mark)

    def _refusal(self, request: web.Request, wrong: str | None) -> web.Response | None:
        if not self.state.knows_key(request):
            return unauthorized()
        if limited := self.state.over(self.state.submit_limit):
            return limited
        if request.content_type != "application/json":
            return bad_request("Content-Type has to be application/json")
        return bad_request(wrong) if wrong else None

    def _refused(self, answer: web.Response, body: Any, status: int | None = None) -> web.Response:
        at_s = self.state.now() - self.state.began_at
        self.state.books.post(at_s, answer.status if status is None else status, body, None)
        return answer

    def _struck(self, fault: str, request: web.Request, body: Any) -> web.Response:
        """A fault that strikes before anything is accepted."""
        if fault == "submit-cut":
            return self._refused(cut(request), body, 0)
        answer = _BEFORE[fault]()
        if fault == "submit-redirect":
            answer.headers["Location"] = self.state.cdn_url + "/elsewhere"
        return self._refused(answer, body)

    async def _accept(self, request: web.Request, body: dict[str, Any], mark: str) -> web.StreamResponse:
        state, books = self.state, self.state.books
        tried = books.received[mark]
        books.accepted[mark] += 1
        job = SimulatedJob(new_request_id(), body, state.now(), mark, books.accepted[mark])
        state.factory.take(job, state.dice)
        fault = state.dice.first(_AFTER, mark, tried)
        status = 200 if state.dice.strikes("submit-200", mark, tried) else 202
        noted, delivered = _AFTER.get(fault or "", (status, True))
        post = books.post(job.submitted_at - state.began_at, noted, body, job, delivered=delivered)
        if self.memory:
            self.memory.keep(job)
        if url := request.headers.get(WEBHOOK_HEADER):
            self.webhooks.plan(job, url)
        if fault is None:
            return self._accepted(job, status)
        return await self._spoiled(fault, request, job, post)

    async def _spoiled(self, fault: str, request: web.Request, job: SimulatedJob, post: Post) -> web.StreamResponse:
        """The answer that is spoiled, of a POST that was accepted and charged."""
        match fault:
            case "submit-lost":
                return cut(request)
            case "submit-504":
                return html(504)
            case "submit-garbled":
                return encoded(202, b'{"request_id": "krea-2-la')
            case "submit-no-id":
                return json(202, {"status": "QUEUED"})
            case _:
                return await self._hang(request, job, post)

    async def _hang(self, request: web.Request, job: SimulatedJob, post: Post) -> web.StreamResponse:
        await asyncio.sleep(self.state.settings.hang_duration_s)
        if request.transport is None or request.transport.is_closing():
            self.state.books.lost(post)
        return self._accepted(job, post.status)

    def _accepted(self, job: SimulatedJob, status: int) -> web.Response:
        if job.done_at <= job.submitted_at:
            return json(status, self.state.told(job))
        polling_url = f"{self.state.gateway_url}/v2/requests/status/{job.request_id}"
        return json(status, {"request_id": job.request_id, "status": "QUEUED", "polling_url": polling_url})

    async def other_model(self, request: web.Request) -> web.StreamResponse:
        """A generate request for a model that is not served here; the document's 400."""
        return no_model(request.match_info["model"]) if self.state.knows_key(request) else unauthorized()


def _read(raw: bytes, *, lenient: bool) -> tuple[Any, str | None]:
    """The body and what is wrong with it."""
    try:
        body = _decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None, "the body is not JSON"
    return body, complaint(body, lenient=lenient)


def _quota() -> web.Response:
    answer = forbidden()
    answer.headers["Retry-After"] = "1"
    return answer


_BEFORE: dict[str, Callable[[], web.Response]] = {
    "submit-cut": lambda: html(500),
    "submit-400": lambda: bad_request("The prompt was refused."),
    "submit-no-model": no_model,
    "submit-402": no_balance,
    "submit-403": forbidden,
    "submit-403-quota": _quota,
    "submit-500": server_error,
    "submit-503": lambda: server_error(503),
    "submit-502": lambda: html(502),
    "submit-408": lambda: html(408),
    "submit-redirect": lambda: html(307),
}
_AFTER: dict[str, tuple[int, bool]] = {  # what the ledger notes: the status, and whether the answer arrives
    "submit-lost": (0, False),
    "submit-504": (504, True),
    "submit-garbled": (202, True),
    "submit-no-id": (202, True),
    "submit-hang": (202, True),
}
