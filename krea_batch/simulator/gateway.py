"""Requests of the documented API come in; what the document says, or a fault that was asked for, goes out."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

import orjson
from aiohttp import web

from krea_batch.simulator.books import MODEL_ID, Books, Factory, Post, SimulatedJob
from krea_batch.simulator.checks import complaint
from krea_batch.simulator.faults import Dice
from krea_batch.simulator.limits import Limit, parse_limit
from krea_batch.simulator.settings import SimulatorSettings

SUBMIT_PATH = "/krea-2-large-text-to-image/v1/krea-2-large-text-to-image-request"
STATUS_PATH = "/v2/requests/status/{request_id}"
KEY_HEADER = "Ocp-Apim-Subscription-Key"
WEBHOOK_HEADER = "X-Webhook-URL"
HTML = "<html><body><h1>Something is wrong</h1></body></html>"


class Gateway:
    """The two documented endpoints over one set of books."""

    def __init__(self, settings: SimulatorSettings, books: Books, now: Any = time.time) -> None:
        self.books = books
        self.now = now
        self.began_at = now()
        self.gateway_url = ""
        self.cdn_url = ""
        self.accepted_hooks: list[Any] = []  # called with (job, webhook URL or None)
        self.order = 0
        self.configure(settings)

    def configure(self, settings: SimulatorSettings) -> None:
        """Behave by these settings from now on; what was accepted keeps the times it was given."""
        self.settings = settings
        self.dice = Dice(settings.seed, settings.faults)
        self.factory = Factory(
            settings.latency, settings.time_scale, settings.workers, settings.outputs, self.dice
        )
        self.submit_limit: Limit | None = parse_limit(settings.submit_limit)
        self.poll_limit: Limit | None = (
            self.submit_limit if settings.shared_limit else parse_limit(settings.poll_limit)
        )

    # ---- submit ------------------------------------------------------------------------------------------

    async def submit(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        self.order += 1
        body = _json(raw)
        refusal = self._refusal(request, raw, body)
        if refusal is not None:
            self._note(refusal.status, body, None)
            return refusal
        if broken := self._break_before(request, body):
            return broken
        if self.books.balance is not None and self.books.balance < 1:
            self._note(402, body, None)
            return error(402, "Insufficient Balance", "Your wallet does not have enough balance.")
        return self._accept(request, body)

    def _refusal(self, request: web.Request, raw: bytes, body: Any) -> web.Response | None:
        if not self._key_is_good(request):
            return error(401, "Unauthorized", "Access denied due to invalid subscription key.")
        if (limited := self._over(self.submit_limit)) is not None:
            return limited
        if request.content_type != "application/json":
            return error(400, "Bad Request", "Content-Type has to be application/json")
        if body is None and raw.strip() != b"null":
            return error(400, "Bad Request", "the body is not JSON")
        if wrong := complaint(body, lenient=self.settings.lenient):
            return error(400, "Bad Request", wrong)
        return None

    def _break_before(self, request: web.Request, body: Any) -> web.StreamResponse | None:
        """A fault that strikes before anything is accepted."""
        struck = next((name for name in _BEFORE if self.dice.strikes(name, self.order)), None)
        if struck is None:
            return None
        status = _BEFORE[struck]
        self._note(status, body, None)
        if struck == "submit-cut":
            return cut(request)
        if status == 307:
            return web.Response(status=307, headers={"Location": self.cdn_url + "/elsewhere"})
        if status in (408, 502):
            return web.Response(status=status, text=HTML, content_type="text/html")
        return error(status, "Internal Server Error" if status == 500 else "Refused", "asked for by a fault")

    def _accept(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        job = SimulatedJob(new_request_id(), body, self.now())
        key = orjson.dumps(body, option=orjson.OPT_SORT_KEYS).hex()
        self.factory.take(job, self.books.seen[key], self.order)
        self.books.seen[key] += 1
        self.books.jobs[job.request_id] = job
        if self.books.balance is not None:
            self.books.balance -= 1
        if self.dice.strikes("submit-done", self.order):
            job.done_at = job.submitted_at
        lost = next((name for name in _AFTER if self.dice.strikes(name, self.order)), None)
        status = 200 if self.dice.strikes("submit-200", self.order) else 202
        self._note(_AFTER.get(lost or "", status), body, job.request_id, delivered=lost is None)
        for hook in self.accepted_hooks:
            hook(job, request.headers.get(WEBHOOK_HEADER))
        return self._break_after(request, lost) or self._accepted(job, status)

    def _break_after(self, request: web.Request, lost: str | None) -> web.StreamResponse | None:
        match lost:
            case "submit-lost":
                return cut(request)
            case "submit-504":
                return web.Response(status=504, text=HTML, content_type="text/html")
            case "submit-garbled":
                return web.Response(status=202, body=b'{"request_id": "krea-2-la', content_type="application/json")
            case "submit-no-id":
                return json(202, {"status": "QUEUED"})
            case _:
                return None

    def _accepted(self, job: SimulatedJob, status: int) -> web.Response:
        if job.done_at <= job.submitted_at:
            return json(status, self.told(job))
        polling_url = f"{self.gateway_url}/v2/requests/status/{job.request_id}"
        return json(status, {"request_id": job.request_id, "status": "QUEUED", "polling_url": polling_url})

    def _note(self, status: int, body: Any, request_id: str | None, *, delivered: bool = True) -> None:
        accepted = request_id is not None
        at_s = self.now() - self.began_at
        self.books.post(Post(at_s, status, body, request_id, accepted, False, delivered))

    # ---- status ------------------------------------------------------------------------------------------

    async def status(self, request: web.Request) -> web.StreamResponse:
        books = self.books
        books.counts["polls"] += 1
        if not self._key_is_good(request):
            return error(401, "Unauthorized", "Access denied due to invalid subscription key.")
        if (limited := self._over(self.poll_limit)) is not None:
            books.counts["polls_429"] += 1
            return limited
        job = books.jobs.get(request.match_info["request_id"])
        if job is None:
            return error(404, "Not Found", "There is no such request.")
        books.polled(job, self.now())
        about = (job.request_id, books.counts["polls"])
        for name, answer in _POLL_FAULTS.items():
            if self.dice.strikes(name, *about):
                return cut(request) if answer is None else answer()
        told = self.told(job)
        if told["status"] != "COMPLETED" and self.dice.strikes("poll-unknown", *about):
            told["status"] = "UPSCALING"
        return json(200, told)

    def told(self, job: SimulatedJob) -> dict[str, Any]:
        """What the status endpoint and a webhook say of a job now."""
        now = self.now()
        status = job.status(now)
        if status == "ERROR":
            self.books.settle(job)
        ended = status not in ("QUEUED", "PROCESSING")
        return {
            "request_id": job.request_id,
            "status": status,
            "model_id": MODEL_ID,
            "error": {"FAILED": "The model could not make this picture", "ERROR": "A worker was lost"}.get(status),
            "output": self._output(job) if status == "COMPLETED" else None,
            "created_at": instant(job.submitted_at),
            "updated_at": instant(min(now, job.done_at) if ended else max(job.submitted_at, job.start_at)),
            "completed_at": instant(job.done_at) if ended else None,
        }

    def _output(self, job: SimulatedJob) -> dict[str, Any]:
        names = ["output.png", *(f"output-{n}.png" for n in range(2, job.outputs + 1))]
        urls = [f"{self.cdn_url}/v1/{job.request_id}/{name}" for name in names]
        alone = len(urls) == 1 and self.dice.strikes("media-string", job.request_id)
        return {"media_url": urls[0] if alone else urls, "media_type": "image/png"}

    # ---- parts -------------------------------------------------------------------------------------------

    def _key_is_good(self, request: web.Request) -> bool:
        key = request.headers.get(KEY_HEADER, "")
        revoked = self.settings.revoke_after and self.books.counts["accepted"] >= self.settings.revoke_after
        return bool(key) and not revoked and self.settings.key in ("", key)

    def _over(self, limit: Limit | None) -> web.Response | None:
        wait_s = limit.take(self.now()) if limit else 0.0
        if wait_s <= 0:
            return None
        answer = error(429, "Too Many Requests", "Rate limit is exceeded.")
        if self.settings.retry_after == "seconds":
            answer.headers["Retry-After"] = str(int(wait_s) + 1)
        elif self.settings.retry_after == "date":
            answer.headers["Retry-After"] = format_datetime(
                datetime.fromtimestamp(self.now() + wait_s + 1, UTC), usegmt=True
            )
        return answer


_BEFORE = {
    "submit-cut": 0,
    "submit-400": 400,
    "submit-500": 500,
    "submit-503": 503,
    "submit-502": 502,
    "submit-408": 408,
    "submit-redirect": 307,
}
_AFTER = {"submit-lost": 0, "submit-504": 504, "submit-garbled": 202, "submit-no-id": 202}


def json(status: int, fields: dict[str, Any]) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(fields), content_type="application/json")


def error(status: int, name: str, message: str) -> web.Response:
    """The document's error body."""
    return json(status, {"error": name, "message": message})


_POLL_FAULTS: dict[str, Any] = {
    "poll-500": lambda: error(500, "Internal Server Error", "asked for by a fault"),
    "poll-404": lambda: error(404, "Not Found", "asked for by a fault"),
    "poll-garbled": lambda: web.Response(body=b'{"status": "COMPL', content_type="application/json"),
    "poll-cut": None,
}


def cut(request: web.Request) -> web.StreamResponse:
    """Cut the connection without an answer."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=500)  # goes nowhere


def instant(at: float) -> str:
    """As the document writes instants: 2026-03-31T10:00:00.000Z."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def new_request_id() -> str:
    """The document's form: the model's name and a UUID of version 7 (RFC 9562, 5.7)."""
    stamp = int(time.time() * 1000).to_bytes(6)
    noise = bytearray(os.urandom(10))
    noise[0] = noise[0] & 0x0F | 0x70
    noise[2] = noise[2] & 0x3F | 0x80
    digits = (stamp + bytes(noise)).hex()
    return f"{MODEL_ID}_{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def _json(raw: bytes) -> Any:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
