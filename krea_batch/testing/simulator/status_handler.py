"""Handle polls: return the status of a job, or an injected fault.

Every poll is counted before anything else, including those that are refused: the poll gaps in the accounting are
between requests, not between responses.
"""

from __future__ import annotations

import asyncio

from aiohttp import web

from krea_batch.testing.simulator.job_planner import SimulatedJob
from krea_batch.testing.simulator.responses import abort_connection, error, json, raw_json, server_error, unauthorized
from krea_batch.testing.simulator.state import SimulatorState

STATUS_ROUTE = "/v2/requests/status/{request_id}"
_POLL_FAULTS = ("poll-500", "poll-404", "poll-cut", "poll-hang", "poll-garbled")


class StatusHandler:
    """The universal status endpoint."""

    def __init__(self, state: SimulatorState) -> None:
        self.state = state

    async def get(self, request: web.Request) -> web.StreamResponse:
        state, accounting = self.state, self.state.accounting
        accounting.counts["polls"] += 1
        job = accounting.jobs.get(request.match_info["request_id"])
        if job:
            accounting.record_poll(job, state.now())
        if not state.accepts_key(request):
            return unauthorized()
        if limited := state.check_limit(state.poll_limit):
            accounting.counts["polls_429"] += 1
            return limited
        if job is None:
            return request_not_found()
        if fault := state.fault_injector.first_fault(_POLL_FAULTS, job.fault_key, job.polls):
            return await self._inject_fault(fault, request, job)
        return self._respond(job)

    def _respond(self, job: SimulatedJob) -> web.Response:
        body = self.state.status_body(job)
        is_pending = body["status"] in ("QUEUED", "PROCESSING")
        if is_pending and self.state.fault_injector.should_fail("poll-unknown", job.fault_key, job.polls):
            body["status"] = "UPSCALING"
        return json(200, body)

    async def _inject_fault(self, fault: str, request: web.Request, job: SimulatedJob) -> web.Response:
        match fault:
            case "poll-500":
                return server_error()
            case "poll-404":
                return request_not_found()
            case "poll-cut":
                return abort_connection(request)
            case "poll-garbled":
                return raw_json(200, b'{"status": "COMPL')
            case _:
                await asyncio.sleep(self.state.settings.hang_duration_s)
                return self._respond(job)


def request_not_found() -> web.Response:
    return error(404, "Not Found", "There is no such request.")
