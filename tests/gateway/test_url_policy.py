"""Which URLs and addresses an image may be fetched from."""

from __future__ import annotations

import ipaddress
import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from krea_batch.errors import SettingsError
from krea_batch.gateway.image_urls import parse_allowed
from krea_batch.gateway.url_policy import (
    DownloadError,
    check_networks,
    is_allowed_address,
    network_to_allow,
    response_offset,
)


def rejection_reason(url: str, **options: Any) -> str | None:
    """Return why nothing may be fetched from a URL as the gateway sent it; None if it is allowed."""
    try:
        parse_allowed(url, **options)
    except DownloadError as refused:
        return refused.reason
    return None


DOCUMENT_URL = (  # API document, Response (Completed)
    "https://pub-582b7213209642b9b995c96c95a30381.r2.dev/v1/krea-2-large-text-to-image_019dxxxx/output.png"
)


@pytest.mark.parametrize("loopback", [False, True])
@pytest.mark.parametrize(
    "url",
    [
        DOCUMENT_URL,
        "https://cdn.example:8443/a.png?token=x&y=%20#z",
        "HTTPS://CDN.EXAMPLE/a.png",
        "https://93.184.216.34/a.png",
        "https://[2606:2800:220:1::1]/a.png",
        "https://localhost.example/a.png",
        "https://127.0.0.1.example/a.png",
    ],
)
def test_urls_that_may_be_fetched(url: str, loopback: bool) -> None:
    """An https URL of a public host may be fetched, such as that of the API document."""
    assert rejection_reason(url, allow_loopback=loopback) is None


@pytest.mark.parametrize("loopback", [False, True])
@pytest.mark.parametrize(
    "url",
    [
        "http://cdn.example/a.png",
        "ftp://cdn.example/a.png",
        "file:///etc/passwd",
        "file://localhost/etc/passwd",
        "data:image/png;base64,AAAA",
        "gopher://127.0.0.1/",
        "//cdn.example/a.png",
        "/a.png",
        "a.png",
        "",
        " ",
        "https:",
        "https://",
        "https:///a.png",
        "https://user@cdn.example/a.png",
        "https://user:word@cdn.example/a.png",
        "https://@cdn.example/a.png",
        "https://:@cdn.example/a.png",
        "https://cdn.example\\@evil.example/a.png",
        "https://cdn.example:port/a.png",
        "https://cdn.example:99999/a.png",
        "https://[::1/a.png",
        "https://[cdn]/a.png",
        "http://127.0.0.1.example/a.png",
        "http://127.0.0.1@evil.example/a.png",
        "http://localhost.example/a.png",
        "http://notlocalhost/a.png",
        "http://127.1/a.png",
        "http://127.0.0.256/a.png",
        "http://2130706433/a.png",
        "http://0x7f000001/a.png",
        "http://0.0.0.0/a.png",
        "http://128.0.0.1/a.png",
        "http://192.168.1.1/a.png",
        "https://①⑨②.①⑥⑧.①.①/a.png",  # yarl, and so aiohttp, reads these digits as the address
        "https://１９２．１６８．１．１/a.png",
        "http://169.254.169.254/latest/meta-data",
    ],
)
def test_urls_that_may_not(url: str, loopback: bool) -> None:
    """Other schemes, user names, missing hosts, and http beyond loopback are refused with a reason."""
    assert rejection_reason(url, allow_loopback=loopback)


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "127.8.8.8", "LOCALHOST"])
def test_loopback_urls(scheme: str, host: str) -> None:
    """A URL on loopback may be fetched only with `allow_loopback`, and then also over http."""
    url = f"{scheme}://{host}:8080/a.png"
    assert rejection_reason(url, allow_loopback=False)
    assert rejection_reason(url, allow_loopback=True) is None


PRIVATE_ADDRESSES = [
    "10.0.0.1",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.0.1",
    "169.254.169.254",
    "100.64.0.1",
    "0.0.0.0",
    "255.255.255.255",
    "224.0.0.1",
    "240.0.0.1",
    "192.0.2.1",
    "198.18.0.1",
    "::",
    "fe80::1",
    "fe80::1%eth0",
    "fc00::1",
    "fd12:3456::1",
    "fec0::1",
    "ff02::1",
    "ff0e::1",
    "2001:db8::1",
]
EMBEDDED_ADDRESSES = ["10.0.0.1", "192.168.0.1", "169.254.169.254", "127.0.0.1", "0.0.0.0"]


def networks(*texts: str) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    return tuple(ipaddress.ip_network(text) for text in texts)


def six_to_four_address(ip: str) -> str:
    return str(ipaddress.IPv6Address((0x2002 << 112) | (int(ipaddress.IPv4Address(ip)) << 80) | 1))


@pytest.mark.parametrize("loopback", [False, True])
@pytest.mark.parametrize("address", PRIVATE_ADDRESSES)
def test_private_addresses(address: str, loopback: bool) -> None:
    """No private, link-local, site-local, shared, multicast or reserved address is public, also with loopback."""
    assert not is_allowed_address(address, allow_loopback=loopback)


@pytest.mark.parametrize("ip", EMBEDDED_ADDRESSES)
@pytest.mark.parametrize("form", ["::ffff:{}", "::{}", "64:ff9b::{}", "6to4"])
def test_embedded_addresses(ip: str, form: str) -> None:
    """An IPv6 address with an embedded private IPv4 address (mapped, compatible, NAT64, 6to4) is not public."""
    address = six_to_four_address(ip) if form == "6to4" else form.format(ip)
    assert not is_allowed_address(address, allow_loopback=False)


@pytest.mark.parametrize(
    "address",
    [
        "93.184.216.34",
        "1.1.1.1",
        "172.32.0.1",
        "2606:4700::6810:1",
        "::ffff:93.184.216.34",
        "64:ff9b::93.184.216.34",  # NAT64: an IPv6-only network reaches the IPv4 address with it
        six_to_four_address("93.184.216.34"),
    ],
)
def test_public_addresses(address: str) -> None:
    """Global unicast addresses are public."""
    assert is_allowed_address(address, allow_loopback=False)
    assert is_allowed_address(address, allow_loopback=True)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.255.0.1", "::1", "::ffff:127.0.0.1"])
def test_loopback_addresses(address: str) -> None:
    """Loopback addresses are allowed only with `allow_loopback`."""
    assert is_allowed_address(address, allow_loopback=True)
    assert not is_allowed_address(address, allow_loopback=False)


@given(st.text(max_size=30) | st.from_regex(r"[0-9a-f:.%]{1,40}", fullmatch=True), st.booleans())
def test_no_address_raises(address: str, loopback: bool) -> None:
    """A text that is not an address is not public. No text raises."""
    try:
        ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        assert not is_allowed_address(address, allow_loopback=loopback)
    else:
        is_allowed_address(address, allow_loopback=loopback)


@given(st.text(max_size=60) | st.from_regex(r"https?://[\[\]@:/?#\\.a-z0-9%-]{0,30}", fullmatch=True), st.booleans())
@example(url="https://0?@", loopback=False)
def test_no_url_raises(url: str, loopback: bool) -> None:
    """No text raises. A URL that is allowed without loopback is https and has no user name."""
    if rejection_reason(url, allow_loopback=loopback) is None and not loopback:
        assert url.lower().lstrip().startswith("https:")
        assert "@" not in re.split("[/?#]", url.split("//", 1)[1])[0]


@given(st.ip_addresses())
def test_no_private_address_passes(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    """Every address that is public is global and unicast, or has a public IPv4 address in it."""
    if is_allowed_address(str(ip), allow_loopback=False):
        embedded = (ip.ipv4_mapped or ip.sixtofour) if isinstance(ip, ipaddress.IPv6Address) else None
        assert ip.is_global or (embedded and embedded.is_global)
        assert not (ip.is_multicast or ip.is_loopback or ip.is_link_local or ip.is_unspecified)


# ---- networks of the settings ---------------------------------------------------------------------------

NEVER_ALLOWED = [
    "127.0.0.1",
    "127.8.8.8",
    "::1",
    "::ffff:127.0.0.1",
    "::127.0.0.1",
    "0.0.0.0",
    "::",
    "169.254.169.254",
    "::ffff:169.254.169.254",
    "64:ff9b::169.254.169.254",
    "64:ff9b:1::169.254.169.254",
    "64:ff9b:1:a9fe:a9:fe00::",
    "64:ff9b:1::127.0.0.1",
    six_to_four_address("169.254.169.254"),
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "fd00:ec2::254",
    "fd20:ce::254",
    "100.100.100.200",
    "192.0.0.192",
    "255.255.255.255",
    "224.0.0.1",
    "ff02::1",
]
EVERYTHING = networks("0.0.0.0/0", "::/0", "64:ff9b:1::/48", "64:ff9b:1::/96")


@pytest.mark.parametrize("address", NEVER_ALLOWED)
def test_addresses_that_no_network_allows(address: str) -> None:
    """Loopback, link-local, multicast and cloud metadata addresses are refused, whatever the settings allow."""
    assert not is_allowed_address(address, allow_loopback=False, networks=EVERYTHING)
    assert network_to_allow(address) is None
    host = f"[{address}]" if ":" in address else address
    assert rejection_reason(f"https://{host}/a.png", allow_loopback=False, networks=EVERYTHING)


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("198.18.0.7", "198.18.0.0/15"),
        ("198.19.255.255", "198.18.0.0/15"),
        ("::ffff:198.18.0.7", "198.18.0.0/15"),
        ("10.1.2.3", "10.0.0.0/8"),
        ("192.168.1.1", "192.168.0.0/16"),
        ("100.64.0.1", "100.64.0.0/10"),
        ("fd12:3456::1", "fc00::/7"),
        ("64:ff9b:1::93.184.216.34", "64:ff9b:1::/48"),
        ("64:ff9b:1:5db8:d8:2200::", "64:ff9b:1::/48"),
        ("64:ff9b:1:fffe::93.184.216.34", "64:ff9b:1:fffe::/96"),
    ],
)
def test_addresses_of_a_network(address: str, network: str) -> None:
    """An address of a network that the settings allow is allowed, and only then; so is a URL with it."""
    allowed = networks(network)
    assert not is_allowed_address(address, allow_loopback=False)
    assert is_allowed_address(address, allow_loopback=False, networks=allowed)
    assert not is_allowed_address(
        address, allow_loopback=False, networks=networks("198.51.100.0/24", "2001:db8::/32")
    )
    url = f"https://[{address}]/a.png" if ":" in address else f"https://{address}/a.png"
    assert rejection_reason(url, allow_loopback=False)
    assert rejection_reason(url, allow_loopback=False, networks=allowed) is None
    assert rejection_reason(url.replace("https", "http"), allow_loopback=False, networks=allowed)
    assert network_to_allow(address) == ipaddress.ip_network(network)


@pytest.mark.parametrize("prefix", ["64:ff9b:1::/48", "64:ff9b:1::/96"])
@pytest.mark.parametrize("ip", ["10.0.0.1", "192.168.0.1", "198.18.0.1"])
def test_private_addresses_behind_a_local_nat64(ip: str, prefix: str) -> None:
    """Behind a NAT64 that is allowed, an embedded private address is refused unless its own network is allowed."""
    address = f"64:ff9b:1::{ip}"
    assert not is_allowed_address(address, allow_loopback=False, networks=networks(prefix))
    assert is_allowed_address(address, allow_loopback=False, networks=networks(prefix, f"{ip}/32"))


@pytest.mark.parametrize("length", [48, 56, 64, 96])
@pytest.mark.parametrize(
    ("ip", "is_allowed"), [("93.184.216.34", True), ("93.10.0.1", True), ("10.184.216.34", False)]
)
def test_prefixes_of_a_nat64(length: int, ip: str, is_allowed: bool) -> None:
    """The IPv4 address is read where a prefix of that length has it (RFC 6052, 2.2)."""
    high_bits = {48: 16, 56: 8, 64: 0}.get(length)
    ipv4 = int(ipaddress.IPv4Address(ip))
    if high_bits is None:
        embedded = ipv4
    else:  # some bits before bits 64 to 71, which are zero, and the others behind them
        low_bits = 32 - high_bits
        embedded = (ipv4 >> low_bits) << 64 | (ipv4 & ((1 << low_bits) - 1)) << 56 - low_bits
    address = ipaddress.IPv6Address(int(ipaddress.IPv6Address("64:ff9b:1::")) | embedded)
    network = networks(f"64:ff9b:1::/{length}")
    assert is_allowed_address(str(address), allow_loopback=False, networks=network) is is_allowed


@given(st.ip_addresses(), st.ip_addresses().map(ipaddress.ip_network) | st.sampled_from(EVERYTHING))
def test_no_network_allows_this_machine(
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address, network: ipaddress.IPv4Network | ipaddress.IPv6Network
) -> None:
    """With any network of the settings, no address of this machine, its link or a multicast group is allowed."""
    if is_allowed_address(str(ip), allow_loopback=False, networks=(network, *networks(str(ip)))):
        assert not (ip.is_multicast or ip.is_loopback or ip.is_link_local or ip.is_unspecified)


@pytest.mark.parametrize("network", ["127.0.0.0/8", "127.0.0.1/32", "::1/128", "169.254.169.254/32", "fe80::/64"])
def test_networks_that_allow_nothing(network: str) -> None:
    """A network of addresses that are never allowed is an error."""
    with pytest.raises(SettingsError, match="never allowed"):
        check_networks(networks(network))


# ---- partial responses -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "content_range", "requested", "offset"),
    [
        (200, None, 0, 0),
        (200, None, 500, 0),  # the image changed, or the CDN does not support ranges: the whole image is sent
        (200, "bytes 500-999/1000", 500, 0),
        (206, "bytes 500-999/1000", 500, 500),
        (206, "bytes 500-999/*", 500, 500),
        (206, "bytes 0-999/1000", 0, 0),
    ],
)
def test_response_offset(status: int, content_range: str | None, requested: int, offset: int) -> None:
    """A complete response starts at 0, whatever was requested. A part starts at the requested offset."""
    assert response_offset(status, content_range, requested) == offset


@pytest.mark.parametrize(
    ("status", "content_range"),
    [
        (206, None),
        (206, ""),
        (206, "bytes 400-999/1000"),
        (206, "bytes 0-999/1000"),
        (206, "bytes */1000"),
        (206, "items 500-999/1000"),
        (206, "bytes 500-999"),
        (206, "bytes=500-999/1000"),
        (206, "bytes -500-999/1000"),
        (206, "bytes 500-999/1000, bytes 0-1/1000"),
        (416, "bytes */1000"),
        (204, None),
        (404, None),
    ],
)
def test_partial_responses_that_cannot_be_used(status: int, content_range: str | None) -> None:
    """A part that does not start at the requested offset is refused, since it would damage the file."""
    with pytest.raises(DownloadError) as caught:
        response_offset(status, content_range, 500)
    assert caught.value.status == status


@given(st.integers(100, 599), st.none() | st.text(max_size=40), st.integers(0, 10**12))
def test_no_content_range_raises_anything_else(status: int, content_range: str | None, requested: int) -> None:
    """Any response starts at 0 or at the requested offset, or raises DownloadError."""
    try:
        assert response_offset(status, content_range, requested) in (0, requested)
    except DownloadError as error:
        assert str(error).isprintable()
