"""A media URL or a connected address comes in; whether an image may be fetched from there goes out. Pure.

Newcomers: the URL comes from the gateway's answer, so it is a stranger's word. Names are checked here, and the
address that the name turned out to be is checked again at the moment of connecting.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from urllib.parse import urlsplit

from krea_batch.settings import is_loopback

MAX_IMAGE_BYTES = 64 << 20  # DESIGN, Safety

_GLOBAL_UNICAST_V6 = ip_network("2000::/3")  # RFC 4291, 2.4 and IANA's registry: nothing else is given out
_NAT64 = ip_network("64:ff9b::/96")  # RFC 6052, 2.1

_CONTENT_RANGE = re.compile(r"bytes (\d{1,12})-(\d{1,12})/(\d{1,12}|\*)")


class DownloadError(Exception):
    """An image could not be fetched this time. `status` is 0 where no answer came."""

    def __init__(self, reason: str, *, status: int = 0, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status
        self.retry_after_s = retry_after_s


def url_rejection_reason(url: str, *, allow_loopback: bool) -> str | None:
    """Why nothing is fetched from this URL, or None where it may be.

    `allow_loopback` is true only when the gateway itself is on this machine.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "it cannot be read"
    if not host:
        return "it has no host"
    if parts.username is not None or parts.password is not None:
        return "it holds a user name"
    is_local = is_loopback(host)
    if parts.scheme != "https" and not (parts.scheme == "http" and allow_loopback and is_local):
        return "it is not https"
    if is_local and not allow_loopback:
        return "it points to this machine"
    return None


def is_public_address(address: str, *, allow_loopback: bool) -> bool:
    """True for a global unicast address; for this machine's own only with `allow_loopback`."""
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
    """The IPv4 address to which an IPv6 one leads (mapped, NAT64, 6to4), or the address itself."""
    if isinstance(ip, IPv4Address):
        return ip
    if ip in _NAT64:
        return IPv4Address(int(ip) & 0xFFFF_FFFF)
    return ip.ipv4_mapped or ip.sixtofour or ip


def response_offset(status: int, content_range: str | None, requested_offset: int) -> int:
    """The offset of an answer's first byte, when bytes from `asked` on were asked for.

    Raises MediaError where the answer is no part that can be used.
    """
    if status == 200:
        return 0
    match = _CONTENT_RANGE.fullmatch(content_range or "")
    if status == 206 and match and int(match[1]) == requested_offset:
        return requested_offset
    raise DownloadError(f"an answer {status} with Content-Range {content_range!r:.60}", status=status)
