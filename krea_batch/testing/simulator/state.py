"""The state that all handlers share: clock, settings, randomness, limits and accounting."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from aiohttp import web

from krea_batch.testing.simulator.accounting import Accounting
from krea_batch.testing.simulator.faults import FaultInjector
from krea_batch.testing.simulator.job_planner import MODEL_ID, JobPlanner, SimulatedJob
from krea_batch.testing.simulator.request_limits import RequestLimit, parse_limit, parse_poll_limit
from krea_batch.testing.simulator.responses import format_instant, rate_limited
from krea_batch.testing.simulator.settings import SimulatorSettings

API_KEY_HEADER = "Ocp-Apim-Subscription-Key"
_ERROR_MESSAGES = {"FAILED": "The model could not generate this image.", "ERROR": "The worker of this job was lost."}


def steady_clock() -> Callable[[], float]:
    """Return a clock of seconds since 1970 that never jumps, based on the monotonic clock."""
    offset_s = time.time() - time.monotonic()
    return lambda: offset_s + time.monotonic()


class SimulatorState:
    """State of one simulator. `now` returns seconds since 1970; the URLs are set once the ports are open."""

    def __init__(self, settings: SimulatorSettings, now: Callable[[], float] | None = None) -> None:
        self.now = now or steady_clock()
        self.gateway_url = ""
        self.cdn_url = ""
        self.settings = settings
        self.submit_limit: RequestLimit | None = None
        self.poll_limit: RequestLimit | None = None
        self.configure(settings, initial=True)
        self.reset()

    def configure(self, settings: SimulatorSettings, *, initial: bool = False) -> None:
        """Use these settings from now on. Accepted jobs keep their times, and an unchanged limit keeps its count."""
        old, self.settings = self.settings, settings

        def changed(*names: str) -> bool:
            return initial or any(getattr(old, name) != getattr(settings, name) for name in names)

        self.fault_injector = FaultInjector(settings.seed, settings.faults, settings.fault_max_attempts)
        if changed("latency", "time_scale", "workers", "outputs"):
            self.job_planner = JobPlanner(settings.latency, settings.time_scale, settings.workers, settings.outputs)
        if changed("submit_limit"):
            self.submit_limit = parse_limit(settings.submit_limit)
            if not initial:
                self.count_jobs_in_process()
        if changed("poll_limit"):
            self.own_poll_limit = parse_poll_limit(settings.poll_limit)
        self.poll_limit = self.submit_limit if settings.shared_limit else self.own_poll_limit
        if not initial and changed("balance"):
            self.accounting.balance = settings.balance

    def count_jobs_in_process(self) -> None:
        """Let the limit of submits know the accepted jobs."""
        if self.submit_limit:
            for job in self.accounting.jobs.values():
                self.submit_limit.on_accepted(job.done_at)

    def reset(self) -> None:
        """Forget all jobs and counts, and set the balance to that of the settings."""
        self.accounting = Accounting(self.settings.balance)
        if self.submit_limit:
            self.submit_limit.forget_jobs()
        self.started_at = self.now()

    def accepts_key(self, request: web.Request) -> bool:
        key = request.headers.get(API_KEY_HEADER, "")
        max_accepted = self.settings.revoke_after
        if not key or (max_accepted and self.accounting.counts["accepted"] >= max_accepted):
            return False
        return self.settings.key in ("", key)

    def check_limit(self, limit: RequestLimit | None) -> web.Response | None:
        """Count a request against a limit. Return a 429 if it exceeds the limit, or None."""
        if limit is None:
            return None
        now = self.now()
        wait_s = limit.take(now)
        return rate_limited(wait_s, self.settings.retry_after, now) if wait_s > 0 else None

    def status_body(self, job: SimulatedJob) -> dict[str, Any]:
        """Return the current status body of a job, as the status endpoint and webhooks send it."""
        now = self.now()
        status = job.status(now)
        ended = now >= job.done_at
        updated_at = job.done_at if ended else job.processing_at if now >= job.processing_at else job.submitted_at
        return {
            "request_id": job.request_id,
            "status": status,
            "model_id": MODEL_ID,
            "error": _ERROR_MESSAGES.get(status),
            "output": self._output(job) if status == "COMPLETED" else None,
            "created_at": format_instant(job.submitted_at),
            "updated_at": format_instant(updated_at),
            "completed_at": format_instant(job.done_at) if ended else None,
        }

    def _output(self, job: SimulatedJob) -> dict[str, Any]:
        urls = [f"{self.cdn_url}/v1/{job.request_id}/output.png"]
        urls += [f"{self.cdn_url}/v1/{job.request_id}/output-{number}.png" for number in range(2, job.outputs + 1)]
        as_string = len(urls) == 1 and self.fault_injector.should_fail("media-string", job.body_hash, job.occurrence)
        return {"media_url": urls[0] if as_string else urls, "media_type": "image/png"}
