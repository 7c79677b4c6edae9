"""Finds the proxy of a host in the environment: HTTPS_PROXY and NO_PROXY, as the standard library reads them.

aiohttp's `trust_env` is not used, because it also sends the passwords of ~/.netrc, reads that file for each request,
and does not say which requests go through a proxy. The caller must know that, because the address of a host behind a
proxy cannot be checked (SECURITY.md).

Plain http is used on this machine only (Settings, url_policy). It never goes through a proxy, because the key would
leave the machine unencrypted.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from krea_batch.errors import InputError
from krea_batch.settings import url_host


class Proxy(NamedTuple):
    """A proxy for https requests. `url` has no password; `headers` go to the proxy only, with CONNECT."""

    url: str
    headers: Mapping[str, str]

    @property
    def request_options(self) -> dict[str, Any]:
        """The options of a request of aiohttp that goes through this proxy."""
        return {"proxy": self.url, "proxy_headers": self.headers}

    def __repr__(self) -> str:
        return f"Proxy({self.url!r})"  # the headers contain the password


def find_proxy(scheme: str, host: str, port: int | None = None) -> Proxy | None:
    """Return the proxy for requests to this host, or None. Raises InputError if it cannot be used."""
    # NO_PROXY may name a host with its port; an IPv6 address with a port would match nothing there.
    if scheme != "https" or proxy_bypass(f"{host}:{port}" if port and ":" not in host else host):
        return None
    url = getproxies().get("https", "")
    return _parse(url) if url else None


def _parse(url: str) -> Proxy:
    """Return the proxy of a variable's value; without a scheme it is http."""
    hint = "set it as http://HOST:PORT or http://USER:PASSWORD@HOST:PORT, with % codes for special characters"
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        host, port = parts.hostname, parts.port
    except ValueError:
        raise InputError("HTTPS_PROXY is not a valid URL", hint) from None
    if parts.scheme != "http" or not host:
        problem = f"is a {parts.scheme}:// proxy, which is not supported" if host else "has no host"
        raise InputError(f"HTTPS_PROXY {problem}", hint)
    headers = {}
    if parts.username is not None:
        credentials = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Proxy-Authorization"] = f"Basic {base64.b64encode(credentials.encode()).decode()}"  # RFC 7617
    return Proxy(f"http://{url_host(host)}:{port or 80}", headers)
