"""Checks whether a gateway is reachable, and returns its time.

No key is sent, and nothing that could be charged: it requests the status of a request that cannot exist.
"""

from __future__ import annotations

import aiohttp

from krea_batch.gateway import wire
from krea_batch.settings import Settings

HEALTH_TIMEOUT_S = 10.0  # chosen: no response by then counts as unreachable
PROBE_REQUEST_ID = "krea-batch-doctor"


class Unreachable(Exception):
    """There was no response; the message says why."""


async def fetch_server_date(settings: Settings) -> str | None:
    """Return the Date header of the gateway's response, whatever its status. Raises Unreachable."""
    url = settings.gateway.rstrip("/") + wire.STATUS_PATH + PROBE_REQUEST_ID
    timeout = aiohttp.ClientTimeout(total=HEALTH_TIMEOUT_S)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()) as session,
            session.get(url, allow_redirects=False) as response,
        ):
            return response.headers.get("Date")
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise Unreachable(str(error) or type(error).__name__) from None
