"""Test the check of the addresses of hosts: alone, and through the command."""

from __future__ import annotations

import asyncio
import json
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from krea_batch.errors import InputError, SettingsError
from krea_batch.gateway import address_check
from krea_batch.gateway.address_check import CDN_HOST, RefusedHost, find_refused_host
from krea_batch.gateway.image_urls import hosts_of
from krea_batch.settings import GATEWAY_URL, Settings
from tests.certificates import make_certificate
from tests.processes import PROCESS_TIMEOUT_S, clean_environment, result_rows, write_jobs
from tests.surplus_gateway import SurplusGateway, serving

GATEWAY_HOST = "gateway.pixazo.ai"
PUBLIC, FAKE = "93.184.216.34", "198.18.0.7"


class Names:
    """A DNS that knows some names, and records which are looked up."""

    def __init__(self) -> None:
        self.addresses: dict[str, list[str]] = {}
        self.looked_up: list[str] = []

    def getaddrinfo(self, host: str, port: int, *_: Any, **__: Any) -> list[tuple[Any, ...]]:
        self.looked_up.append(host)
        if host not in self.addresses:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in self.addresses[host]]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    names = Names()
    monkeypatch.setattr(socket, "getaddrinfo", names.getaddrinfo)
    for variable in ("HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
    return names


def check(gateway: str = GATEWAY_URL, cdn_hosts: tuple[str, ...] = (), *networks: str) -> RefusedHost | None:
    settings = Settings.from_options(Path("out"), gateway=gateway, allow_networks=networks)
    return asyncio.run(find_refused_host(settings, cdn_hosts))


class TestHosts:
    @pytest.mark.parametrize(
        ("address", "network"),
        [
            (FAKE, "198.18.0.0/15"),
            ("64:ff9b:1::93.184.216.34", "64:ff9b:1::/48"),
            ("10.1.2.3", "10.0.0.0/8"),
            ("64:ff9b::10.1.2.3", "10.0.0.0/8"),
        ],
    )
    def test_a_cdn_that_is_refused(self, names: Names, address: str, network: str) -> None:
        """The host of the document's images is checked, and named with the network that would allow it."""
        names.addresses = {GATEWAY_HOST: [PUBLIC], CDN_HOST: [address]}
        refused = check()
        assert refused
        assert (refused.host, refused.address, str(refused.network)) == (CDN_HOST, address, network)
        assert isinstance(refused.error, SettingsError)
        assert refused.error.parameter == "allow_networks"
        assert network in refused.error.hint
        assert check(GATEWAY_URL, (), network) is None

    @pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "169.254.1.1", "::1"])
    def test_an_address_that_is_never_allowed(self, names: Names, address: str) -> None:
        """A name that is blocked by DNS is an error that suggests no network."""
        names.addresses = {GATEWAY_HOST: [PUBLIC], CDN_HOST: [address]}
        refused = check()
        assert refused
        assert type(refused.error) is InputError
        assert "check the DNS" in str(refused.error)

    @pytest.mark.parametrize("addresses", [[PUBLIC], [FAKE, PUBLIC], ["64:ff9b::93.184.216.34"], ["2606:4700::1"]])
    def test_a_cdn_that_is_reached(self, names: Names, addresses: list[str]) -> None:
        """One address that is allowed is enough; NAT64 with the prefix of all networks needs no setting."""
        names.addresses = {GATEWAY_HOST: [PUBLIC], CDN_HOST: addresses}
        assert check() is None
        assert names.looked_up == [GATEWAY_HOST, CDN_HOST]

    def test_hosts_of_earlier_images(self, names: Names) -> None:
        """The hosts of images that the run had before are checked, at another gateway only they are."""
        names.addresses = {"gateway.test": [PUBLIC], "cdn.test": [FAKE], CDN_HOST: [FAKE]}
        assert check("https://gateway.test") is None
        refused = check("https://gateway.test", ("cdn.test",))
        assert refused
        assert refused.host == "cdn.test"

    def test_a_gateway_with_a_fake_address(self, names: Names) -> None:
        """If the gateway's name has a fake address, those of images will have one, too."""
        names.addresses = {"gateway.test": [FAKE]}
        refused = check("https://gateway.test")
        assert refused
        assert (refused.host, str(refused.network)) == ("gateway.test", "198.18.0.0/15")
        assert check("https://gateway.test", (), "198.18.0.0/15") is None

    def test_a_gateway_in_a_private_network(self, names: Names) -> None:
        """The gateway itself may have a private address: it is chosen by the user."""
        names.addresses = {"gateway.test": ["10.0.0.1"]}
        assert check("https://gateway.test") is None


class TestNoAnswer:
    def test_an_unknown_name(self, names: Names) -> None:
        """A name that cannot be resolved is left to the run, which tries again."""
        assert check() is None
        assert names.looked_up == [GATEWAY_HOST, CDN_HOST]

    def test_a_dns_that_does_not_answer(self, names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
        """A DNS that hangs does not hold up the run for long."""
        monkeypatch.setattr(address_check, "DNS_TIMEOUT_S", 0.01)
        hanging = threading.Event()
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: hanging.wait(PROCESS_TIMEOUT_S))

        async def main() -> None:
            settings = Settings.from_options(Path("out"))
            assert await find_refused_host(settings, ()) is None
            hanging.set()

        asyncio.run(main())

    def test_behind_a_proxy(self, names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
        """Hosts behind a proxy are not looked up here; those in NO_PROXY are."""
        names.addresses = {GATEWAY_HOST: [FAKE], CDN_HOST: [FAKE]}
        monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:3128")
        assert check() is None
        assert names.looked_up == []
        monkeypatch.setenv("NO_PROXY", ".r2.dev")
        refused = check()
        assert refused
        assert (refused.host, names.looked_up) == (CDN_HOST, [CDN_HOST])

    @pytest.mark.parametrize("gateway", ["http://127.0.0.1:8080", "http://localhost:8080", "https://93.184.216.34"])
    def test_addresses_are_not_looked_up(self, names: Names, gateway: str) -> None:
        """Where the gateway is an address, or on this machine, there is nothing to look up."""
        assert check(gateway, ("127.0.0.1",)) is None
        assert names.looked_up == []


def test_hosts_of_urls() -> None:
    """The hosts of URLs are found once each; a URL that is invalid, or has no host, has none."""
    urls = ["https://a.test/1.png", "https://a.test:8443/2.png", "nothing", "https://[::1/a.png", "https://b.test/"]
    assert hosts_of(urls) == ["a.test", "b.test"]


# ---- through the command ---------------------------------------------------------------------------------

# The command with a DNS of its own, whose addresses are all reached on loopback.
COMMAND_WITH_NAMES = """
import asyncio.selector_events, json, os, socket, sys
sys.modules["uvloop"] = None  # it has its own resolver
names = json.loads(os.environ["NAMES"])
system_getaddrinfo = socket.getaddrinfo

def getaddrinfo(host, port, *args, **options):
    if host in names:
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (names[host], port))]
    return system_getaddrinfo(host, port, *args, **options)

Loop = asyncio.selector_events.BaseSelectorEventLoop
connect = Loop.sock_connect

async def sock_connect(self, sock, address):
    await connect(self, sock, ("127.0.0.1", *address[1:]) if address[0] in names.values() else address)

socket.getaddrinfo, Loop.sock_connect = getaddrinfo, sock_connect
from krea_batch.cli.app import main
main()
"""


@pytest.mark.slow
class TestCommand:
    """Hosts are gateway.test and cdn.test, with the addresses of a test."""

    @pytest.fixture
    def gateway(self, tmp_path: Path) -> Iterator[SurplusGateway]:
        write_jobs(tmp_path / "jobs.jsonl", 3)
        pem = make_certificate(tmp_path / "hosts.pem", "gateway.test", "cdn.test")
        gateway = SurplusGateway("nowhere", set())
        with serving(gateway, pem) as url:
            gateway.cdn_url = url.replace("localhost", "cdn.test")
            yield gateway

    def call(
        self, tmp_path: Path, gateway: SurplusGateway, *arguments: str, names: dict[str, str]
    ) -> subprocess.CompletedProcess[str]:
        url = gateway.url.replace("localhost", "gateway.test")
        return subprocess.run(
            [sys.executable, "-c", COMMAND_WITH_NAMES, *arguments, "--out", "out", "--gateway", url],
            cwd=tmp_path,
            env=clean_environment(
                PIXAZO_API_KEY="k", SSL_CERT_FILE=str(tmp_path / "hosts.pem"), NAMES=json.dumps(names)
            ),
            capture_output=True,
            text=True,
            timeout=PROCESS_TIMEOUT_S,
        )

    def test_a_fake_address(self, tmp_path: Path, gateway: SurplusGateway) -> None:
        """With fake addresses a run ends before the first POST and names the option; with it, all is stored."""
        names = {"gateway.test": FAKE, "cdn.test": "198.18.0.8"}
        run = ("run", "jobs.jsonl", "--poll-interval", "0.1")
        refused = self.call(tmp_path, gateway, *run, names=names)
        assert refused.returncode == 2, refused.stderr
        assert "--allow-network: gateway.test resolves to 198.18.0.7" in refused.stderr
        assert "pass 198.18.0.0/15" in refused.stderr
        assert gateway.prompts == []
        other = self.call(tmp_path, gateway, *run, "--allow-network", "10.0.0.0/8", names=names)
        assert (other.returncode, gateway.prompts) == (2, [])
        done = self.call(tmp_path, gateway, *run, "--allow-network", "198.18.0.0/15", names=names)
        assert done.returncode == 0, done.stderr
        assert [row["status"] for row in result_rows(tmp_path / "out")] == ["succeeded"] * 3
        assert len(gateway.prompts) == 3

    def test_the_host_of_earlier_images(self, tmp_path: Path, gateway: SurplusGateway) -> None:
        """A later run knows the host of the images, and checks it before it sends more; so does doctor."""
        run = ("run", "jobs.jsonl", "--poll-interval", "0.1")
        names = {"gateway.test": PUBLIC, "cdn.test": "93.184.216.35"}
        assert self.call(tmp_path, gateway, *run, names=names).returncode == 0
        with (tmp_path / "jobs.jsonl").open("a") as file:
            file.write('{"prompt": "one more"}\n')
        names["cdn.test"] = FAKE
        refused = self.call(tmp_path, gateway, *run, names=names)
        assert refused.returncode == 2, refused.stderr
        assert "cdn.test resolves to 198.18.0.7" in refused.stderr
        assert len(gateway.prompts) == 3
        found = self.call(tmp_path, gateway, "doctor", names=names)
        assert found.returncode == 2
        assert "fail images   cdn.test resolves to 198.18.0.7" in found.stdout
        assert "--allow-network: pass 198.18.0.0/15" in found.stdout
        allowed = self.call(tmp_path, gateway, "doctor", "--allow-network", "198.18.0.0/15", names=names)
        assert "fail" not in allowed.stdout
        done = self.call(tmp_path, gateway, *run, "--allow-network", "198.18.0.0/15", names=names)
        assert done.returncode == 0, done.stderr
        assert len(gateway.prompts) == 4

    def test_an_invalid_url_of_an_earlier_image(self, tmp_path: Path, gateway: SurplusGateway) -> None:
        """A run whose ledger has a URL that cannot be parsed, of an image that was not fetched, goes on."""
        run = ("run", "jobs.jsonl", "--poll-interval", "0.1")
        names = {"gateway.test": PUBLIC, "cdn.test": "93.184.216.35"}
        assert self.call(tmp_path, gateway, *run, names=names).returncode == 0
        with closing(sqlite3.connect(tmp_path / "out" / "ledger.db")) as ledger, ledger:
            ledger.execute("UPDATE jobs SET media = replace(media, 'https://cdn.test', 'https://[::1')")
        with (tmp_path / "jobs.jsonl").open("a") as file:
            file.write('{"prompt": "one more"}\n')
        found = self.call(tmp_path, gateway, "doctor", names=names)
        assert found.returncode == 0, found.stderr
        done = self.call(tmp_path, gateway, *run, names=names)
        assert done.returncode == 0, done.stderr
        assert len(gateway.prompts) == 4
