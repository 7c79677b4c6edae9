"""Checks whether a gateway is reachable, through which proxy, and returns its time.

No key is sent, and nothing that could be charged: it requests the status of a request that cannot exist.
"""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

from krea_batch.gateway import wire
from krea_batch.gateway.proxies import Proxy, find_proxy
from krea_batch.gateway.sessions import NETWORK_ERRORS, describe_error, open_session
from krea_batch.gateway.trusted_certificates import open_context
from krea_batch.settings import Settings

HEALTH_TIMEOUT_S = 10.0  # chosen: no response by then counts as unreachable
PROBE_REQUEST_ID = "krea-batch-doctor"


class Unreachable(Exception):
    """There was no response; the message says why."""


def gateway_proxy(settings: Settings) -> Proxy | None:
    """Return the proxy of requests to the gateway, or None. Raises InputError if it cannot be used."""
    parts = urlsplit(settings.gateway)
    return find_proxy(parts.scheme, parts.hostname or "", parts.port)


async def fetch_server_date(settings: Settings, proxy: Proxy | None = None) -> str | None:
    """Return the Date header of the gateway's response, whatever its status. Raises Unreachable, InputError."""
    url = settings.gateway.rstrip("/") + wire.STATUS_PATH + PROBE_REQUEST_ID
    options = proxy.request_options if proxy else {}
    try:
        async with (
            asyncio.timeout(HEALTH_TIMEOUT_S),
            open_session(tls=open_context()) as session,
            session.get(url, allow_redirects=False, **options) as response,
        ):
            return response.headers.get("Date")
    except NETWORK_ERRORS as error:
        raise Unreachable(describe_error(error)) from None
