"""Webhooks: content, retries, and which hosts are called."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from aiohttp import web

from krea_batch.testing.simulator import webhooks
from krea_batch.testing.simulator.webhooks import MAX_DELIVERY_ATTEMPTS, is_loopback
from tests.simulator.simulator_fixture import MODEL, SimulatorClient, run_with_simulator

FAST_JOBS: dict[str, Any] = {"latency": "fixed:1", "time_scale": 100.0, "frozen_clock": False}


class WebhookReceiver:
    """A webhook endpoint. It answers with these statuses, repeats the last one, and stores the requests."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = list(statuses) or [200]
        self.url = ""
        self.requests: asyncio.Queue[tuple[str, str, Any]] = asyncio.Queue()

    async def handle(self, request: web.Request) -> web.Response:
        await self.requests.put((request.path, request.content_type, await request.json()))
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        return web.Response(status=status, headers={"Location": self.url + "/elsewhere"})

    async def next(self) -> Any:
        """Wait for the next body and return it."""
        path, kind, body = await self.requests.get()
        assert (path, kind) == ("/hook", "application/json")
        return body


def serve_with_receiver(
    receiver: WebhookReceiver,
    ask: Callable[[SimulatorClient], Coroutine[Any, Any, None]],
    *,
    host: str = "127.0.0.1",
    **options: Any,
) -> None:
    """Run `ask` with a simulator while the receiver is served."""

    async def with_receiver(client: SimulatorClient) -> None:
        app = web.Application()
        app.router.add_post("/{path:.*}", receiver.handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        receiver.url = f"http://{host}:{runner.addresses[0][1]}/hook"
        try:
            await ask(client)
        finally:
            await runner.cleanup()

    run_with_simulator(with_receiver, **(FAST_JOBS | options))


async def wait_for_count(client: SimulatorClient, name: str, count: int) -> None:
    """Wait until a total reaches a count."""
    while client.totals()[name] < count:
        await client.admin("totals")


@pytest.mark.parametrize(
    ("faults", "status"), [({}, "COMPLETED"), ({"job-failed": 1.0}, "FAILED"), ({"job-error": 1.0}, "ERROR")]
)
def test_a_webhook(faults: dict[str, float], status: str) -> None:
    """When a job ends its webhook URL receives the status body once."""
    receiver = WebhookReceiver()

    async def ask(client: SimulatorClient) -> None:
        request_id = await client.submit_accepted(X_Webhook_URL=receiver.url)
        body = await receiver.next()
        assert (body["request_id"], body["status"], body["model_id"]) == (request_id, status, MODEL)
        assert body == (await client.poll(request_id)).json
        await wait_for_count(client, "webhooks", 1)
        assert receiver.requests.empty()

    serve_with_receiver(receiver, ask, faults=faults)


def test_a_webhook_of_a_job_that_takes_no_time() -> None:
    """A job that completes immediately sends its webhook, too."""
    receiver = WebhookReceiver()

    async def ask(client: SimulatorClient) -> None:
        await client.post(X_Webhook_URL=receiver.url)
        assert (await receiver.next())["status"] == "COMPLETED"

    serve_with_receiver(receiver, ask, faults={"submit-done": 1.0})


def test_no_webhook_without_the_header() -> None:
    """A refused POST and one without the header send no webhook."""
    receiver = WebhookReceiver()

    async def ask(client: SimulatorClient) -> None:
        await client.post()
        await client.post({}, X_Webhook_URL=receiver.url)
        request_id = await client.submit_accepted(X_Webhook_URL=receiver.url)
        assert (await receiver.next())["request_id"] == request_id
        await wait_for_count(client, "webhooks", 1)
        assert receiver.requests.empty()

    serve_with_receiver(receiver, ask)


def test_a_webhook_twice() -> None:
    """With webhook-twice the same body is sent twice."""
    receiver = WebhookReceiver()

    async def ask(client: SimulatorClient) -> None:
        await client.post(X_Webhook_URL=receiver.url)
        assert await receiver.next() == await receiver.next()
        await wait_for_count(client, "webhooks", 2)

    serve_with_receiver(receiver, ask, faults={"webhook-twice": 1.0})


def test_a_lost_webhook() -> None:
    """With webhook-lost nothing is sent although the job completes."""
    receiver = WebhookReceiver()

    async def ask(client: SimulatorClient) -> None:
        lost_job = await client.submit_accepted(X_Webhook_URL=receiver.url)
        while (await client.poll(lost_job)).json["status"] != "COMPLETED":
            pass
        await client.admin("settings", {"faults": {}})
        later_job = await client.submit_accepted(X_Webhook_URL=receiver.url)
        assert (await receiver.next())["request_id"] == later_job
        await wait_for_count(client, "webhooks", 1)
        assert receiver.requests.empty()

    serve_with_receiver(receiver, ask, faults={"webhook-lost": 1.0})


@pytest.mark.parametrize("refusal", [500, 404, 307])
def test_a_webhook_is_retried(refusal: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A webhook is sent again with the same body until the response is 2xx; redirects are not followed."""
    monkeypatch.setattr(webhooks, "RETRY_DELAY_S", 0.0)
    receiver = WebhookReceiver(refusal, refusal, 204)

    async def ask(client: SimulatorClient) -> None:
        await client.post(X_Webhook_URL=receiver.url)
        first, *others = [await receiver.next() for _ in range(MAX_DELIVERY_ATTEMPTS)]
        assert others == [first, first]
        await wait_for_count(client, "webhooks", 1)
        assert client.totals()["webhooks_failed"] == 0
        assert receiver.requests.empty()

    serve_with_receiver(receiver, ask)


def test_a_webhook_that_is_never_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the last attempt a webhook has failed and is not sent again; the job is not affected."""
    monkeypatch.setattr(webhooks, "RETRY_DELAY_S", 0.0)
    receiver = WebhookReceiver(503)

    async def ask(client: SimulatorClient) -> None:
        request_id = await client.submit_accepted(X_Webhook_URL=receiver.url)
        await wait_for_count(client, "webhooks_failed", 1)
        assert receiver.requests.qsize() == MAX_DELIVERY_ATTEMPTS
        assert client.totals()["webhooks"] == 0
        assert (await client.poll(request_id)).json["status"] == "COMPLETED"

    serve_with_receiver(receiver, ask)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/", "http://127.0.0.1:99999/", "http://localhost:1/a b"])
def test_a_webhook_to_a_closed_port(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A closed port or an invalid URL is a failed webhook and nothing else."""
    monkeypatch.setattr(webhooks, "RETRY_DELAY_S", 0.0)

    async def ask(client: SimulatorClient) -> None:
        assert (await client.post(X_Webhook_URL=url)).status == 202
        await wait_for_count(client, "webhooks_failed", 1)

    run_with_simulator(ask, **FAST_JOBS)


def test_no_webhook_to_other_hosts() -> None:
    """A webhook URL on another host is not called, and the POST is still accepted."""
    receiver = WebhookReceiver()

    async def ask(client: SimulatorClient) -> None:
        assert (await client.post(X_Webhook_URL="https://example.org/hook")).status == 202
        assert (await client.post(X_Webhook_URL=receiver.url)).status == 202
        totals = client.totals()
        assert (totals["webhooks_refused"], totals["accepted"]) == (2, 2)
        await client.admin("settings", {"allow_remote_webhooks": True})
        allowed = await client.submit_accepted(X_Webhook_URL=receiver.url)
        assert (await receiver.next())["request_id"] == allowed
        assert client.totals()["webhooks_refused"] == 2

    serve_with_receiver(receiver, ask, host="0.0.0.0")  # not loopback by its text, but leads here


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1/a", True),
        ("https://127.9.9.9:8443/", True),
        ("http://localhost:80/hook?x=1", True),
        ("http://LOCALHOST/", True),
        ("http://[::1]:9/", True),
        ("http://user:pass@127.0.0.1/", True),
        ("http://example.org/", False),
        ("http://127.0.0.1@example.org/", False),
        ("http://127.0.0.1.example.org/", False),
        ("http://localhost.example.org/", False),
        ("http://0.0.0.0/", False),
        ("http://10.0.0.1/", False),
        ("http://169.254.169.254/latest", False),
        ("http://[::2]/", False),
        ("http://[::1/", False),
        ("ftp://127.0.0.1/", False),
        ("file:///etc/passwd", False),
        ("//127.0.0.1/", False),
        ("127.0.0.1", False),
        ("", False),
    ],
)
def test_loopback_urls(url: str, expected: bool) -> None:
    """Only http and https URLs with a loopback address or localhost are this machine."""
    assert is_loopback(url) == expected


def test_a_reset_cancels_webhooks() -> None:
    """A reset cancels waiting webhooks; those of later jobs are sent."""
    receiver = WebhookReceiver()

    async def ask(client: SimulatorClient) -> None:
        await client.post(X_Webhook_URL=receiver.url)
        (timer,) = client.simulator._webhooks._timers
        await client.admin("reset", {})
        assert timer.cancelled()
        await client.admin("settings", {"time_scale": 100.0})
        later_job = await client.submit_accepted(X_Webhook_URL=receiver.url)
        assert (await receiver.next())["request_id"] == later_job
        assert receiver.requests.empty()

    serve_with_receiver(receiver, ask, time_scale=0.01)


def test_close_does_not_wait_for_webhooks() -> None:
    """Closing the simulator cancels webhooks that are waiting or being retried."""
    receiver = WebhookReceiver(503)

    async def ask(client: SimulatorClient) -> None:
        await client.post(X_Webhook_URL=receiver.url)
        await receiver.next()
        await client.admin("settings", {"latency": "fixed:1000000"})
        await client.post(X_Webhook_URL=receiver.url)

    serve_with_receiver(receiver, ask)
