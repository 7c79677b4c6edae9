"""GETs of the status endpoint come in; what the document says of a job, or a fault that was asked for, goes out.

Newcomers: every poll is on the books before it is judged, also one that is refused: the gaps that the judge is
told are those between requests, not between answers.
"""

from __future__ import annotations

import asyncio

from aiohttp import web

from krea_batch.testing.simulator.job_planner import SimulatedJob
from krea_batch.testing.simulator.responses import cut, encoded, error, json, server_error, unauthorized
from krea_batch.testing.simulator.state import State

STATUS_PATH = "/v2/requests/status/{request_id}"
_FAULTS = ("poll-500", "poll-404", "poll-cut", "poll-hang", "poll-garbled")


class Polls:
    """The universal status endpoint."""

    def __init__(self, state: State) -> None:
        self.state = state

    async def get(self, request: web.Request) -> web.StreamResponse:
        state, books = self.state, self.state.books
        books.counts["polls"] += 1
        job = books.jobs.get(request.match_info["request_id"])
        if job:
            books.polled(job, state.now())
        if not state.knows_key(request):
            return unauthorized()
        if limited := state.over(state.poll_limit):
            books.counts["polls_429"] += 1
            return limited
        if job is None:
            return not_found()
        if fault := state.dice.first(_FAULTS, job.about, job.polls):
            return await self._struck(fault, request, job)
        return self._answer(job)

    def _answer(self, job: SimulatedJob) -> web.Response:
        told = self.state.told(job)
        waits = told["status"] in ("QUEUED", "PROCESSING")
        if waits and self.state.dice.strikes("poll-unknown", job.about, job.polls):
            told["status"] = "UPSCALING"
        return json(200, told)

    async def _struck(self, fault: str, request: web.Request, job: SimulatedJob) -> web.Response:
        match fault:
            case "poll-500":
                return server_error()
            case "poll-404":
                return not_found()
            case "poll-cut":
                return cut(request)
            case "poll-garbled":
                return encoded(200, b'{"status": "COMPL')
            case _:
                await asyncio.sleep(self.state.settings.hang_duration_s)
                return self._answer(job)


def not_found() -> web.Response:
    return error(404, "Not Found", "There is no such request.")
