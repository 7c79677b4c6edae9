"""Parses the URLs of images with yarl, as aiohttp does, so that a URL names the same host wherever it is checked."""

from __future__ import annotations

from collections.abc import Iterable

from yarl import URL

from krea_batch.gateway.url_policy import DownloadError, host_rejection_reason
from krea_batch.settings import IPNetwork


def parse_allowed(url: str, *, allow_loopback: bool, networks: tuple[IPNetwork, ...] = ()) -> URL:
    """Return the parsed URL of an image. Raises DownloadError if nothing may be fetched from it.

    `allow_loopback` is True only if the gateway itself is on this machine. `networks` are those of the settings.
    """
    try:
        parsed = _parse(url)
        rejection = host_rejection_reason(parsed.scheme, parsed.raw_authority, allow_loopback, networks)
    except ValueError:
        rejection = "invalid URL"
    if rejection:
        raise refused_url(url, rejection)
    return parsed


def refused_url(url: str, rejection: str) -> DownloadError:
    """Return the error for a URL from which nothing is fetched."""
    return DownloadError(f"refused to fetch {url[:200]!r}: {rejection}")


def hosts_of(urls: Iterable[str]) -> list[str]:
    """Return the hosts in URLs of images, each once. A URL that is invalid, or has no host, is left out."""
    return [host for host in dict.fromkeys(map(_host, urls)) if host]


def _host(url: str) -> str | None:
    try:
        return _parse(url).host
    except ValueError:
        return None


def _parse(url: str) -> URL:
    """Return the URL unchanged, since it may be signed; only characters that a request line forbids are quoted."""
    return URL(url, encoded=url.isascii() and url.isprintable() and " " not in url)
