"""Checks before a run whether images could be fetched from the addresses of their hosts.

A VPN or proxy tool with fake-IP DNS, or a local NAT64, answers with addresses from which images are not fetched.
Without this check, images would be paid for before this is noticed. A host behind a proxy is not checked, because the
proxy resolves its name.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable
from functools import partial
from ipaddress import ip_address
from urllib.parse import urlsplit

import msgspec

from krea_batch.errors import InputError, SettingsError
from krea_batch.gateway.proxies import find_proxy
from krea_batch.gateway.url_policy import FAKE_IP, LOCAL_NAT64, is_allowed_address, network_to_allow
from krea_batch.settings import GATEWAY_URL, IPNetwork, Settings, is_loopback

CDN_HOST = "pub-582b7213209642b9b995c96c95a30381.r2.dev"  # API document, Response (Completed)
DNS_TIMEOUT_S = 5.0  # chosen: resolvers ask their next server after as long

_REASONS = {
    FAKE_IP: "if a VPN or proxy tool of yours answers DNS with fake addresses",
    LOCAL_NAT64: "if this network has such a NAT64",
}


class RefusedHost(msgspec.Struct, frozen=True):
    """A host from which no image could be fetched. `network` is the one that would allow it, or None."""

    host: str
    address: str
    network: IPNetwork | None

    @property
    def error(self) -> InputError:
        """The error for it."""
        problem = f"{self.host} resolves to {self.address}: images would be paid for, and not fetched from there"
        if self.network is None:
            return InputError(problem, "check the DNS of this machine")
        reason = next((text for network, text in _REASONS.items() if self._is_of(network)), "if that is right")
        return SettingsError("allow_networks", problem, f"pass {self.network} {reason}")

    def _is_of(self, network: IPNetwork) -> bool:
        return ip_address(self.address) in network


async def find_refused_host(settings: Settings, cdn_hosts: Iterable[str]) -> RefusedHost | None:
    """Return the first host from which no image could be fetched, or None.

    `cdn_hosts` are those from which images of the run came before; that of the API document is added for its gateway.
    A name that cannot be resolved is not an error here; the run reports it. Raises InputError if the proxy of the
    environment cannot be used.
    """
    gateway = urlsplit(settings.gateway)
    gateway_host = gateway.hostname or ""
    is_allowed = partial(
        is_allowed_address, allow_loopback=is_loopback(gateway_host), networks=settings.allowed_networks
    )
    # The gateway may have any address. But if DNS gives a fake address for it, it also does so for images.
    addresses = await _addresses(gateway_host, gateway.port or 443)
    if addresses and all(_is_in_place_of_another(each) and not is_allowed(each) for each in addresses):
        return RefusedHost(gateway_host, addresses[0], network_to_allow(addresses[0]))
    documented = [CDN_HOST] if settings.gateway.rstrip("/") == GATEWAY_URL else []
    for host in dict.fromkeys([*cdn_hosts, *documented]):
        addresses = await _addresses(host, 443)
        if addresses and not any(map(is_allowed, addresses)):
            return RefusedHost(host, addresses[0], network_to_allow(addresses[0]))
    return None


async def _addresses(host: str, port: int) -> list[str]:
    """Return the addresses of a host name; none if DNS does not answer, or a proxy resolves the name."""
    if _is_address(host) or is_loopback(host) or find_proxy("https", host, port):
        return []
    try:
        async with asyncio.timeout(DNS_TIMEOUT_S):
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError, TimeoutError):
        return []
    return [str(sockaddr[0]) for *_, sockaddr in found]


def _is_in_place_of_another(address: str) -> bool:
    ip = ip_address(address.partition("%")[0])
    return ip in FAKE_IP or ip in LOCAL_NAT64


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
