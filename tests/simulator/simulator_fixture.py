"""Run a simulator with a plain HTTP client and a clock that tests set.

The client is written from the API document and shares no code with the engine. It does not retry a GET whose
connection was cut, as aiohttp would: each request of a test is exactly one request.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from io import BytesIO
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

import aiohttp

from krea_batch.testing import Simulator, SimulatorSettings
from tests.processes import PROCESS_TIMEOUT_S

T = TypeVar("T")
SIMULATOR_KEY = "s3cret-k3y-0123456789"
CLOCK_START_AT = 1774951200.0  # 2026-03-31T10:00:00Z, the time of the API document's example
CLIENT_TIMEOUT_S = PROCESS_TIMEOUT_S
SUBMIT_PATH = "/krea-2-large-text-to-image/v1/krea-2-large-text-to-image-request"
MODEL = "krea-2-large-text-to-image"
CAT_BODY: dict[str, Any] = {"prompt": "a cat"}


class ManualClock:
    """A clock for the simulator that moves only when a test sets `at`."""

    def __init__(self) -> None:
        self.at = CLOCK_START_AT

    def __call__(self) -> float:
        return self.at


class SimulatorResponse(NamedTuple):
    """A response as the client sees it. `status` is 0 if there was none; `complete` is False if the body was cut."""

    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes
    complete: bool = True

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class SimulatorClient:
    """An HTTP client of a simulator."""

    def __init__(self, simulator: Simulator, clock: ManualClock) -> None:
        self.simulator = simulator
        self.clock = clock
        self.gateway = simulator.gateway_url
        self.cdn = simulator.cdn_url

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(force_close=True, limit=20),
            timeout=aiohttp.ClientTimeout(total=CLIENT_TIMEOUT_S),
            auto_decompress=False,
        )
        self._session._retry_connection = False
        return self

    async def __aexit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._session.close()

    async def request(self, method: str, url: str, **options: Any) -> SimulatorResponse:
        """Send one request. A broken connection is also a response."""
        status, headers = 0, {}
        body = bytearray()
        try:
            async with self._session.request(method, url, allow_redirects=False, **options) as response:
                status = response.status
                headers = {name.lower(): value for name, value in response.headers.items()}
                async for chunk in response.content.iter_any():
                    body += chunk
        except aiohttp.ClientError:
            return SimulatorResponse(status, headers, bytes(body), complete=False)
        return SimulatorResponse(status, headers, bytes(body))

    async def post(
        self, body: object = CAT_BODY, *, key: str | None = SIMULATOR_KEY, **headers: str
    ) -> SimulatorResponse:
        """Send a generate request; `body` is sent unchanged if it is bytes."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request_headers = {"Content-Type": "application/json"} | {
            name.replace("_", "-"): text for name, text in headers.items()
        }
        return await self.request(
            "POST", self.gateway + SUBMIT_PATH, data=BytesIO(data), headers=_with_key(request_headers, key)
        )

    async def poll(self, request_id: str, *, key: str | None = SIMULATOR_KEY) -> SimulatorResponse:
        url = f"{self.gateway}/v2/requests/status/{request_id}"
        return await self.request("GET", url, headers=_with_key({}, key))

    async def submit_accepted(self, body: object = CAT_BODY, **headers: str) -> str:
        """Submit, and return the request_id from the ledger, which has it even if the response does not."""
        await self.post(body, **headers)
        request_id = self.posts()[-1]["request_id"]
        assert isinstance(request_id, str)
        return request_id

    async def get(self, url: str, method: str = "GET", **headers: str) -> SimulatorResponse:
        return await self.request(method, url, headers=_header_names(headers))

    async def download_image(self, body: object = CAT_BODY) -> bytes:
        """Submit to a simulator whose jobs take no time, and download the image."""
        return (await self.get(self.image_url(await self.submit_accepted(body)))).body

    def image_url(self, request_id: str, name: str = "output.png") -> str:
        return f"{self.cdn}/v1/{request_id}/{name}"

    async def admin(self, path: str, body: object = None) -> SimulatorResponse:
        """GET an admin URL, or POST `body` to it."""
        url = f"{self.simulator.admin_url}/{path}"
        if body is None:
            return await self.request("GET", url)
        return await self.request("POST", url, data=body if isinstance(body, bytes) else json.dumps(body).encode())

    def totals(self) -> dict[str, Any]:
        return self.simulator.totals()

    def posts(self) -> list[dict[str, Any]]:
        posts: list[dict[str, Any]] = self.simulator.ledger()["posts"]
        return posts


def _header_names(headers: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): text for name, text in headers.items()}


def _with_key(headers: dict[str, str], key: str | None) -> dict[str, str]:
    return headers if key is None else headers | {"Ocp-Apim-Subscription-Key": key}


def install_clock(simulator: Simulator) -> ManualClock:
    """Give the simulator a clock that does not move by itself."""
    clock, state = ManualClock(), simulator._state
    state.now, state.started_at = clock, clock.at
    return clock


def run_with_simulator(
    ask: Callable[[SimulatorClient], Coroutine[Any, Any, T]], *, frozen_clock: bool = True, **settings: Any
) -> T:
    """Start a simulator with these settings and tiny images, run `ask`, and stop it.

    Time does not move unless `frozen_clock` is False.
    """

    options: dict[str, Any] = {"tiny": True, "latency": "fixed:15"} | settings

    async def main() -> T:
        simulator = Simulator(SimulatorSettings(**options))
        clock = install_clock(simulator) if frozen_clock else ManualClock()
        async with asyncio.timeout(CLIENT_TIMEOUT_S), simulator, SimulatorClient(simulator, clock) as client:
            return await ask(client)

    return asyncio.run(main())
