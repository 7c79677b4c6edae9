"""Decides whether an image may be fetched from a URL or a resolved address. Pure.

The URL comes from the gateway's response and is not trusted. Host names are checked here, and the address that a name
resolves to is checked again when the connection is made.

Some networks use addresses that stand for others: a NAT64 (RFC 6052), or a VPN whose DNS answers with fake addresses.
With the well-known NAT64 prefix, the embedded IPv4 address is checked. Users can allow other networks in
`Settings.allow_networks`, but never addresses of this machine, link-local addresses, or those of cloud metadata
services.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from urllib.parse import SplitResult

from krea_batch.errors import PicklableError, SettingsError
from krea_batch.settings import IPNetwork, is_loopback

MAX_IMAGE_BYTES = 64 << 20  # chosen: twenty times the largest PNG expected; bounds memory and disk

_GLOBAL_UNICAST_V6 = ip_network("2000::/3")  # RFC 4291, 2.4 and IANA's registry: nothing else is allocated
_NAT64 = ip_network("64:ff9b::/96")  # RFC 6052, 2.1
FAKE_IP = ip_network("198.18.0.0/15")  # RFC 2544, for benchmarks; fake-IP DNS uses it, since no host has them
LOCAL_NAT64 = ip_network("64:ff9b:1::/48")  # RFC 8215
PRIVATE_NETWORKS = tuple(
    map(ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7"))
)  # RFC 1918, RFC 6598, RFC 4193
_LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
_NEVER_ALLOWED = tuple(
    map(
        ip_network,
        (
            "0.0.0.0/8",  # RFC 1122: this host; Linux connects to itself
            "::/96",  # RFC 4291: deprecated addresses with an IPv4 address
            "255.255.255.255/32",  # RFC 919: broadcast
            "169.254.0.0/16",  # RFC 3927: link-local, and the metadata of most clouds
            "fe80::/10",  # RFC 4291: link-local
            "fec0::/10",  # RFC 3879: site-local, deprecated
            "fd00:ec2::/32",  # the metadata of AWS
            "fd20:ce::/32",  # the metadata of Google Cloud
            "100.100.100.200/32",  # the metadata of Alibaba Cloud
            "192.0.0.192/32",  # the metadata of Oracle Cloud
        ),
    )
)

_NUMBER = re.compile(r"\d+|0[xX][0-9a-fA-F]*")  # WHATWG URL Standard, "ends in a number": then it is an IPv4 address
_CONTENT_RANGE = re.compile(r"bytes (\d{1,12})-(\d{1,12})/(\d{1,12}|\*)")


class DownloadError(PicklableError):
    """An image could not be fetched this time. `status` is 0 if there was no response."""

    def __init__(self, reason: str, *, status: int = 0, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status
        self.retry_after_s = retry_after_s


@lru_cache(maxsize=64)  # The images of a run are on a few hosts.
def host_rejection_reason(
    scheme: str, netloc: str, allow_loopback: bool, networks: tuple[IPNetwork, ...]
) -> str | None:
    """Return why nothing may be fetched from a host, or None if it is allowed; see `image_urls.parse_allowed`.

    `netloc` is the part of the URL between scheme and path. Raises ValueError if it is invalid.
    """
    parts = SplitResult(scheme, netloc, "", "", "")
    host, _ = parts.hostname, parts.port
    if not host:
        return "the URL has no host"
    if parts.username is not None or parts.password is not None:
        return "the URL contains a user name"
    is_local = is_loopback(host)
    if scheme != "https" and not (scheme == "http" and allow_loopback and is_local):
        return "the URL is not https"
    if is_local and not allow_loopback:
        return "the URL points to this machine"
    if _is_numeric(host) and not is_allowed_address(host, allow_loopback=allow_loopback, networks=networks):
        return "the URL points to a private address"
    return None


def _is_numeric(host: str) -> bool:
    """Return whether the host is an address rather than a name, even in a form that few resolvers read (0x7f.1).

    Direct connections are checked again when they are made. A proxy resolves the host itself.
    """
    return ":" in host or _NUMBER.fullmatch(host.rstrip(".").rpartition(".")[2]) is not None


@lru_cache(maxsize=256)  # A run connects to few addresses, once for each image.
def is_allowed_address(address: str, *, allow_loopback: bool, networks: tuple[IPNetwork, ...] = ()) -> bool:
    """Return whether an image may be fetched from an address: a public one, or one of `networks`.

    A loopback address is allowed only with `allow_loopback`, whatever `networks` are.
    """
    try:
        ip = ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if ip in LOCAL_NAT64:
        readings = [_local_nat64_readings(ip, network) for network in networks if ip in network]
        return any(all(_is_allowed(ipv4, allow_loopback, networks) for ipv4 in ipv4s) for ipv4s in readings if ipv4s)
    return _is_allowed(_embedded_ipv4(ip), allow_loopback, networks)


def network_to_allow(address: str) -> IPNetwork | None:
    """Return the network that the settings would have to allow for a refused address; None if none would help."""
    ip = _embedded_ipv4(ip_address(address.partition("%")[0]))
    nat64 = ip_network((int(ip) >> 32 << 32, 96)) if ip in LOCAL_NAT64 else LOCAL_NAT64
    for network in (FAKE_IP, LOCAL_NAT64, nat64, *PRIVATE_NETWORKS):
        if ip in network and is_allowed_address(address, allow_loopback=False, networks=(network,)):
            return network
    return None


def check_networks(networks: Sequence[IPNetwork]) -> None:
    """Raise SettingsError for a network of the settings of which no address is ever allowed."""
    for network in networks:
        first = network.network_address
        if any(first in never and network.prefixlen >= never.prefixlen for never in _NEVER_ALLOWED + _LOOPBACK):
            problem = f"{network} is never allowed: its addresses are of this machine, its link or its cloud"
            raise SettingsError("allow_networks", problem, "leave it out")


def _is_allowed(ip: IPv4Address | IPv6Address, allow_loopback: bool, networks: Sequence[IPNetwork]) -> bool:
    if ip.is_loopback:
        return allow_loopback
    if ip.is_multicast or _is_in(ip, _NEVER_ALLOWED):
        return False
    return _is_in(ip, networks) or (ip.is_global and (ip.version == 4 or ip in _GLOBAL_UNICAST_V6))


def _is_in(ip: IPv4Address | IPv6Address, networks: Sequence[IPNetwork]) -> bool:
    return any(ip in network for network in networks)


def _embedded_ipv4(ip: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """Return the IPv4 address embedded in an IPv6 address (mapped, NAT64, 6to4), or the address itself."""
    if isinstance(ip, IPv4Address):
        return ip
    if ip in _NAT64:
        return IPv4Address(int(ip) & 0xFFFF_FFFF)
    return ip.ipv4_mapped or ip.sixtofour or ip


def _local_nat64_readings(ip: IPv4Address | IPv6Address, network: IPNetwork) -> list[IPv4Address]:
    """Return the IPv4 addresses that a NAT64 with a prefix in `network` may find in an address (RFC 6052, 2.2).

    If `network` is no prefix of one length, such as the whole of LOCAL_NAT64, both usual lengths are read.
    """
    lengths = (network.prefixlen,) if network.prefixlen in (56, 64, 96) else (48, 96)
    high, low = divmod(int(ip), 1 << 64)
    bits = high << 56 | low & ((1 << 56) - 1)  # without bits 64 to 71, which are no part of the IPv4 address
    readings = [bits >> 120 - 32 - (length if length <= 64 else length - 8) & 0xFFFF_FFFF for length in lengths]
    return [IPv4Address(ipv4) for ipv4 in readings if ipv4 >> 24]  # 0.0.0.0/8: there is none of this length


def announces_size(status: int, headers: Mapping[str, str]) -> bool:
    """Return whether a response says where the image ends, so that an incomplete one is noticed.

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
