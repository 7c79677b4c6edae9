"""The callbacks of the random gateway, most of which are lost, late, doubled or wrong."""

from __future__ import annotations

import asyncio
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, Any

from tests.asgi_client import call_asgi
from tests.simulation.weighted_choice import weighted_choice

if TYPE_CHECKING:
    from tests.simulation.random_gateway import RandomGateway

CALLBACK_OUTCOMES: list[tuple[int, str]] = [
    (40, "lost"),
    (35, "one"),
    (10, "two"),
    (5, "for another request"),
    (5, "forged"),
    (5, "unreadable"),
]


class RandomCallbacks:
    """Sends callbacks for a gateway's jobs to `app`, the engine's endpoint, or nowhere if it is None."""

    def __init__(self, gateway: RandomGateway) -> None:
        self._gateway = gateway
        self.app: Any = None

    def schedule(self, request_id: str, url: str) -> None:
        """Send callbacks after random delays; for a slow POST, mostly before its response."""
        random = self._gateway.random_for("call", request_id)
        outcome = weighted_choice(random, CALLBACK_OUTCOMES)
        loop = asyncio.get_running_loop()
        for _ in range(0 if outcome == "lost" else 2 if outcome == "two" else 1):
            delay_s = random.choice([0.0, 0.3, 4.0, 30.0])
            # The gateway calls: in an empty context, it belongs to no process.
            send = partial(self._send, outcome, request_id, url)
            loop.call_later(delay_s, lambda send: loop.create_task(send()), send, context=Context())

    async def _send(self, outcome: str, request_id: str, url: str) -> None:
        gateway = self._gateway
        if gateway.process.has_crashed or self.app is None:
            return
        named_request_id = request_id
        if outcome == "for another request":
            sql = "SELECT request_id FROM submissions WHERE result = 'accepted'"
            recorded = [named for (named,) in gateway.ledger.query(sql)]
            named_request_id = gateway.random_for("named", request_id).choice([*recorded, "unknown"])
        if outcome == "forged":
            url = url[:-1] + ("0" if url[-1] != "0" else "1")
        elif outcome != "unreadable":
            gateway.named.add(named_request_id)
        body = b'{"request_id": "%s", "status": "COMPLETED"}' % named_request_id.encode()
        status = await call_asgi(self.app, url, b"\xff" if outcome == "unreadable" else body)
        if (outcome == "forged") != (status == 404) and status != 503:
            gateway.violations.append(f"a callback ({outcome}) was answered {status}")
