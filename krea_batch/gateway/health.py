"""The address of a gateway comes in; whether it can be reached, and what time it is there, goes out.

Newcomers: no key is sent, and nothing that could be paid. The status of a request that cannot be is asked for.
"""

from __future__ import annotations

import aiohttp

from krea_batch.gateway import wire
from krea_batch.settings import Settings

HEALTH_TIMEOUT_S = 10.0  # chosen: who has not answered by then is as good as away
PROBE_REQUEST_ID = "krea-batch-doctor"


class Unreachable(Exception):
    """No answer came; the text says why."""


async def fetch_server_date(settings: Settings) -> str | None:
    """The Date header of the gateway's answer, whatever it answers. Raises Unreachable."""
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
