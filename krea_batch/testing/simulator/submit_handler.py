"""Handle submits: accept and charge a job, refuse it, or inject a fault.

The checks run in the order of a real gateway: key, rate limit, body, faults, balance. An accepted job is recorded
before the first byte of the response, so a job whose response is lost is charged.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from typing import Any

import msgspec
from aiohttp import web

from krea_batch.testing.simulator.accounting import ReceivedPost
from krea_batch.testing.simulator.body_validation import validate_body
from krea_batch.testing.simulator.job_log import JobLog
from krea_batch.testing.simulator.job_planner import SimulatedJob
from krea_batch.testing.simulator.responses import (
    abort_connection,
    bad_request,
    error,
    forbidden,
    html,
    insufficient_balance,
    json,
    model_not_found,
    new_request_id,
    raw_json,
    server_error,
    unauthorized,
)
from krea_batch.testing.simulator.state import SimulatorState
from krea_batch.testing.simulator.webhooks import Webhooks

SUBMIT_ROUTE = "/krea-2-large-text-to-image/v1/krea-2-large-text-to-image-request"
WEBHOOK_URL_HEADER = "X-Webhook-URL"
_decode_body = msgspec.json.Decoder().decode


class SubmitHandler:
    """The generate endpoint."""

    def __init__(self, state: SimulatorState, webhooks: Webhooks, job_log: JobLog | None) -> None:
        self.state = state
        self.webhooks = webhooks
        self.job_log = job_log

    async def post(self, request: web.Request) -> web.StreamResponse:
        state, accounting = self.state, self.state.accounting
        try:
            raw = await request.read()
        except web.HTTPRequestEntityTooLarge:
            return self._refuse(error(413, "Payload Too Large", "The body is too large."), None)
        body, problem = _read(raw, lenient=state.settings.lenient)
        # Two programs that send the same body see the same faults, however they format its JSON.
        content = raw if body is None else msgspec.json.encode(body)
        body_hash = hashlib.blake2b(content, digest_size=8).hexdigest()
        accounting.received[body_hash] += 1
        if refusal := self._check_request(request, problem):
            return self._refuse(refusal, body)
        if fault := state.fault_injector.first_fault(
            _FAULTS_BEFORE_ACCEPT, body_hash, accounting.received[body_hash]
        ):
            return self._inject_fault(fault, request, body)
        accounting.settle(state.now())
        if accounting.balance is not None and accounting.balance < 1:
            return self._refuse(insufficient_balance(), body)
        return await self._accept(request, body, body_hash)

    def _check_request(self, request: web.Request, problem: str | None) -> web.Response | None:
        if not self.state.accepts_key(request):
            return unauthorized()
        if limited := self.state.check_limit(self.state.submit_limit):
            return limited
        if request.content_type != "application/json":
            return bad_request("Content-Type has to be application/json")
        return bad_request(problem) if problem else None

    def _refuse(self, response: web.Response, body: Any, status: int | None = None) -> web.Response:
        at_s = self.state.now() - self.state.started_at
        self.state.accounting.record_post(at_s, response.status if status is None else status, body, None)
        return response

    def _inject_fault(self, fault: str, request: web.Request, body: Any) -> web.Response:
        """Return a response of a fault that occurs before the job is accepted."""
        if fault == "submit-cut":
            return self._refuse(abort_connection(request), body, 0)
        response = _FAULTS_BEFORE_ACCEPT[fault]()
        if fault == "submit-redirect":
            response.headers["Location"] = self.state.cdn_url + "/elsewhere"
        return self._refuse(response, body)

    async def _accept(self, request: web.Request, body: dict[str, Any], body_hash: str) -> web.StreamResponse:
        state, accounting = self.state, self.state.accounting
        attempt = accounting.received[body_hash]
        accounting.accepted[body_hash] += 1
        job = SimulatedJob(new_request_id(), body, state.now(), body_hash, accounting.accepted[body_hash])
        state.job_planner.plan(job, state.fault_injector)
        if state.submit_limit:
            state.submit_limit.on_accepted(job.done_at)
        fault = state.fault_injector.first_fault(_FAULTS_AFTER_ACCEPT, body_hash, attempt)
        status = 200 if state.fault_injector.should_fail("submit-200", body_hash, attempt) else 202
        recorded_status, delivered = _FAULTS_AFTER_ACCEPT.get(fault or "", (status, True))
        post = accounting.record_post(
            job.submitted_at - state.started_at, recorded_status, body, job, delivered=delivered
        )
        if self.job_log:
            self.job_log.append(job)
        if url := request.headers.get(WEBHOOK_URL_HEADER):
            self.webhooks.schedule(job, url)
        if fault is None:
            return self._accepted_response(job, status)
        return await self._faulty_response(fault, request, job, post)

    async def _faulty_response(
        self, fault: str, request: web.Request, job: SimulatedJob, post: ReceivedPost
    ) -> web.StreamResponse:
        """Return the faulty response to a POST that was accepted and charged."""
        match fault:
            case "submit-lost":
                return abort_connection(request)
            case "submit-504":
                return html(504)
            case "submit-garbled":
                return raw_json(202, b'{"request_id": "krea-2-la')
            case "submit-no-id":
                return json(202, {"status": "QUEUED"})
            case _:
                return await self._respond_late(request, job, post)

    async def _respond_late(self, request: web.Request, job: SimulatedJob, post: ReceivedPost) -> web.StreamResponse:
        await asyncio.sleep(self.state.settings.hang_duration_s)
        if request.transport is None or request.transport.is_closing():
            self.state.accounting.record_undelivered(post)
        return self._accepted_response(job, post.status)

    def _accepted_response(self, job: SimulatedJob, status: int) -> web.Response:
        if job.done_at <= job.submitted_at:
            return json(status, self.state.status_body(job))
        polling_url = f"{self.state.gateway_url}/v2/requests/status/{job.request_id}"
        return json(status, {"request_id": job.request_id, "status": "QUEUED", "polling_url": polling_url})

    async def other_model(self, request: web.Request) -> web.StreamResponse:
        """Handle a generate request for another model: the API document's 400."""
        return model_not_found(request.match_info["model"]) if self.state.accepts_key(request) else unauthorized()


def _read(raw: bytes, *, lenient: bool) -> tuple[Any, str | None]:
    """Return the decoded body, None if it is not JSON, and its first problem, None if it has none."""
    try:
        body = _decode_body(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None, "the body is not JSON"
    return body, validate_body(body, lenient=lenient)


def _quota_exceeded() -> web.Response:
    response = forbidden()
    response.headers["Retry-After"] = "1"
    return response


_FAULTS_BEFORE_ACCEPT: dict[str, Callable[[], web.Response]] = {
    "submit-cut": lambda: html(500),
    "submit-400": lambda: bad_request("The prompt was refused."),
    "submit-no-model": model_not_found,
    "submit-402": insufficient_balance,
    "submit-403": forbidden,
    "submit-403-quota": _quota_exceeded,
    "submit-500": server_error,
    "submit-503": lambda: server_error(503),
    "submit-502": lambda: html(502),
    "submit-408": lambda: html(408),
    "submit-redirect": lambda: html(307),
}
_FAULTS_AFTER_ACCEPT: dict[str, tuple[int, bool]] = {  # recorded status, and whether the response is delivered
    "submit-lost": (0, False),
    "submit-504": (504, True),
    "submit-garbled": (202, True),
    "submit-no-id": (202, True),
    "submit-hang": (202, True),
}
