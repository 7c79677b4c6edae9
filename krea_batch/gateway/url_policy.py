"""Decides whether an image may be fetched from a URL or a resolved address. Pure.

The URL comes from the gateway's response and is not trusted. Host names are checked here, and the address that a name
resolves to is checked again when the connection is made.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from urllib.parse import urlsplit

from krea_batch.errors import PicklableError
from krea_batch.settings import is_loopback

MAX_IMAGE_BYTES = 64 << 20  # chosen: twenty times the largest PNG expected; bounds memory and disk

_GLOBAL_UNICAST_V6 = ip_network("2000::/3")  # RFC 4291, 2.4 and IANA's registry: nothing else is allocated
_NAT64 = ip_network("64:ff9b::/96")  # RFC 6052, 2.1

_NUMBER = re.compile(r"\d+|0[xX][0-9a-fA-F]*")  # WHATWG URL Standard, "ends in a number": then it is an IPv4 address
_CONTENT_RANGE = re.compile(r"bytes (\d{1,12})-(\d{1,12})/(\d{1,12}|\*)")


class DownloadError(PicklableError):
    """An image could not be fetched this time. `status` is 0 if there was no response."""

    def __init__(self, reason: str, *, status: int = 0, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status
        self.retry_after_s = retry_after_s


def url_rejection_reason(url: str, *, allow_loopback: bool) -> str | None:
    """Return why nothing may be fetched from this URL, or None if it is allowed.

    `allow_loopback` is True only if the gateway itself is on this machine.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "invalid URL"
    if not host:
        return "the URL has no host"
    if parts.username is not None or parts.password is not None:
        return "the URL contains a user name"
    is_local = is_loopback(host)
    if parts.scheme != "https" and not (parts.scheme == "http" and allow_loopback and is_local):
        return "the URL is not https"
    if is_local and not allow_loopback:
        return "the URL points to this machine"
    if _is_numeric(host) and not is_public_address(host, allow_loopback=allow_loopback):
        return "the URL points to a private address"
    return None


def _is_numeric(host: str) -> bool:
    """Return whether the host is an address and no name, also in a form that only some resolvers read (0x7f.1).

    Direct connections are checked again when they are made. A proxy resolves the host itself.
    """
    return ":" in host or _NUMBER.fullmatch(host.rstrip(".").rpartition(".")[2]) is not None


def is_public_address(address: str, *, allow_loopback: bool) -> bool:
    """Return True for a global unicast address; for a loopback address only with `allow_loopback`."""
    try:
        ip = ip_address(address.partition("%")[0])
    except ValueError:
        return False
    ip = _embedded_ipv4(ip)
    if ip.is_loopback:
        return allow_loopback
    if isinstance(ip, IPv6Address) and ip not in _GLOBAL_UNICAST_V6:
        return False
    return ip.is_global and not ip.is_multicast


def _embedded_ipv4(ip: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """Return the IPv4 address embedded in an IPv6 address (mapped, NAT64, 6to4), or the address itself."""
    if isinstance(ip, IPv4Address):
        return ip
    if ip in _NAT64:
        return IPv4Address(int(ip) & 0xFFFF_FFFF)
    return ip.ipv4_mapped or ip.sixtofour or ip


def announces_size(status: int, headers: Mapping[str, str]) -> bool:
    """Return whether a response says where the image ends, so that one that breaks off is noticed.

    A part (206) must be the last one.
    """
    if status == 206:
        match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
        return match is not None and match[3] == str(int(match[2]) + 1)
    return "Content-Length" in headers or headers.get("Transfer-Encoding", "").lower() == "chunked"


def response_offset(status: int, content_range: str | None, requested_offset: int) -> int:
    """Return the offset of the first byte of a response to a request for bytes from `requested_offset` on.

    Raises DownloadError if the response is not a usable part.
    """
    if status == 200:
        return 0
    match = _CONTENT_RANGE.fullmatch(content_range or "")
    if status == 206 and match and int(match[1]) == requested_offset:
        return requested_offset
    raise DownloadError(f"HTTP {status} with Content-Range {content_range!r:.60}", status=status)
