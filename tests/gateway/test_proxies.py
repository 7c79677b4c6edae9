"""Proxies of the environment: which requests go through them, and what is sent to them."""

from __future__ import annotations

import asyncio
import base64
import os
from pathlib import Path
from unittest.mock import AsyncMock
from urllib.parse import urlsplit

import pytest

from krea_batch.errors import InputError
from krea_batch.gateway.client import GatewayClient
from krea_batch.gateway.proxies import find_proxy
from krea_batch.gateway.url_policy import DownloadError
from krea_batch.rules.verdicts import NotSent, PollFailed
from tests.certificates import make_certificate
from tests.cli.test_tls import tls_proxy_port
from tests.connect_proxy import PASSWORD, PASSWORD_IN_URL, USER, ConnectProxy, running
from tests.gateway.test_client import (
    ACCEPTED_RESPONSE,
    CLIENT_KEY,
    SUBMIT_BODY,
    RawServer,
    client,
    fixed_response,
    http_response,
    read,
    run_against_server,
)
from tests.processes import StartSimulator, result_rows, run_command, write_jobs
from tests.surplus_gateway import SurplusGateway, serving


@pytest.fixture(autouse=True)
def no_proxy_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the proxy variables of the machine that runs the tests."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("variables", "proxy"),
    [
        ({}, None),
        ({"HTTPS_PROXY": "http://proxy.example:3128"}, "http://proxy.example:3128"),
        ({"https_proxy": "http://proxy.example:3128"}, "http://proxy.example:3128"),
        ({"HTTPS_PROXY": "proxy.example:3128"}, "http://proxy.example:3128"),
        ({"HTTPS_PROXY": "http://proxy.example"}, "http://proxy.example:80"),
        ({"HTTPS_PROXY": "http://[::1]:3128"}, "http://[::1]:3128"),
        ({"HTTPS_PROXY": ""}, None),
        ({"HTTP_PROXY": "http://proxy.example:3128"}, None),
        ({"HTTPS_PROXY": "http://proxy.example:3128", "NO_PROXY": "other.example"}, "http://proxy.example:3128"),
        ({"HTTPS_PROXY": "http://proxy.example:3128", "NO_PROXY": "gateway.example"}, None),
        ({"HTTPS_PROXY": "http://proxy.example:3128", "NO_PROXY": "localhost, .example"}, None),
        ({"HTTPS_PROXY": "http://proxy.example:3128", "NO_PROXY": "gateway.example:443"}, None),
        (
            {"HTTPS_PROXY": "http://proxy.example:3128", "NO_PROXY": "gateway.example:444"},
            "http://proxy.example:3128",
        ),
        ({"HTTPS_PROXY": "http://proxy.example:3128", "no_proxy": "*"}, None),
    ],
)
def test_proxies_of_the_environment(
    variables: dict[str, str], proxy: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HTTPS_PROXY and NO_PROXY decide on the proxy of an https host."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = find_proxy("https", "gateway.example", 443)
    assert (found and found.url) == proxy


def test_http_never_goes_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests over plain http stay on this machine, whatever the environment says."""
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://proxy.example:3128")
    assert find_proxy("http", "127.0.0.1", 8080) is None


@pytest.mark.parametrize(
    "url", ["socks5://proxy.example:1080", "https://proxy.example", "http://", "http://[::1", "http://proxy:port"]
)
def test_proxies_that_cannot_be_used(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that cannot be used is an error, before anything is sent past it."""
    monkeypatch.setenv("HTTPS_PROXY", url)
    with pytest.raises(InputError, match=r"HTTPS_PROXY .*http://HOST:PORT"):
        find_proxy("https", "gateway.example")


def test_passwords_of_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy's password goes into its header alone: neither its URL, nor its repr, nor an error shows it."""
    monkeypatch.setenv("HTTPS_PROXY", f"http://{USER}:{PASSWORD_IN_URL}@proxy.example:3128")
    proxy = find_proxy("https", "gateway.example")
    assert proxy
    scheme, _, credentials = proxy.headers["Proxy-Authorization"].partition(" ")
    assert (scheme, base64.b64decode(credentials).decode()) == ("Basic", f"{USER}:{PASSWORD}")
    assert USER not in proxy.url + repr(proxy)
    monkeypatch.setenv("HTTPS_PROXY", f"socks5://{USER}:{PASSWORD_IN_URL}@proxy.example:3128")
    with pytest.raises(InputError) as caught:
        find_proxy("https", "gateway.example")
    assert PASSWORD_IN_URL not in str(caught.value)


# ---- requests --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (407, "the proxy refused to connect (HTTP 407)"),
        (502, "the proxy refused to connect (HTTP 502)"),
        (0, "the connection was lost"),
    ],
)
def test_a_refused_connect(status: int, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the proxy does not connect, nothing was sent, and neither key nor body reached the proxy."""
    on_sending = AsyncMock()

    async def main() -> None:
        async with client("https://gateway.example") as gateway:
            assert await gateway.submit(SUBMIT_BODY, on_sending=on_sending) == NotSent(reason)
            assert await gateway.poll("abc-1") == PollFailed(reason)
            with pytest.raises(DownloadError) as caught:
                await read(gateway, "https://cdn.example/a.png")
            assert caught.value.reason == reason

    with running(ConnectProxy(status=status)) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        asyncio.run(main())
    assert proxy.targets == ["gateway.example:443"] * 2 + ["cdn.example:443"]
    assert CLIENT_KEY not in str(proxy.heads)
    on_sending.assert_not_called()


def test_a_proxy_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the proxy cannot be reached, nothing was sent."""
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")

    async def main() -> None:
        async with client("https://gateway.example") as gateway:
            verdict = await gateway.submit(SUBMIT_BODY)
            assert isinstance(verdict, NotSent)
            assert verdict.reason.startswith("no connection to the proxy")

    asyncio.run(main())


def test_addresses_behind_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy resolves names, so only an address in the URL itself is refused."""

    async def main() -> None:
        async with client("https://gateway.example") as gateway:
            for host in (
                "10.0.0.1",
                "169.254.169.254",
                "[fd00::1]",
                "127.0.0.1",
                "localhost",
                "0x7f.1",
                "2130706433",
            ):
                with pytest.raises(DownloadError, match="refused to fetch"):
                    await read(gateway, f"https://{host}/a.png")
            with pytest.raises(DownloadError, match="proxy refused"):
                await read(gateway, "https://intranet.example/a.png")

    with running(ConnectProxy(status=403)) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        asyncio.run(main())
    assert proxy.targets == ["intranet.example:443"]


def test_netrc_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Passwords of ~/.netrc are sent neither to the gateway, nor to the CDN, nor to a proxy."""
    netrc = tmp_path / "netrc"
    netrc.write_text("default login netrc-user password netrc-password\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))

    async def use(gateway: GatewayClient, server: RawServer) -> None:
        await gateway.submit(SUBMIT_BODY)
        await gateway.poll("abc-1")
        await read(gateway, server.url + "/a.png")
        assert len(server.requests) == 3
        assert all("authorization" not in request.headers for request in server.requests)

    run_against_server(fixed_response(http_response(200, ACCEPTED_RESPONSE)), use)

    async def main() -> None:
        async with client("https://gateway.example") as gateway:
            assert isinstance(await gateway.submit(SUBMIT_BODY), NotSent)

    with running(ConnectProxy()) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
        asyncio.run(main())
    assert len(proxy.heads) == 1
    assert "authorization" not in proxy.heads[0].lower()


# ---- through the command ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_through_a_proxy(simulate: StartSimulator, tmp_path: Path) -> None:
    """200 jobs succeed through a proxy with a password, against the simulator behind TLS."""
    write_jobs(tmp_path / "jobs.jsonl", 200)
    pem = make_certificate(tmp_path / "localhost.pem")
    simulator = simulate("--tiny", "--latency", "fixed:0.2")
    port = urlsplit(simulator.gateway_url).port
    assert port
    with tls_proxy_port(port, pem) as tls_port, running(ConnectProxy()) as proxy:
        done = run_command(
            "run", "jobs.jsonl", "--out", "out", "--gateway", f"https://localhost:{tls_port}", "--rate", "50/s",
            "--poll-interval", "0.2", "--max-charges", "200",
            cwd=tmp_path, SSL_CERT_FILE=str(pem), HTTPS_PROXY=proxy.url,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [row["status"] for row in result_rows(tmp_path / "out")] == ["succeeded"] * 200
    assert simulator.admin_request("/totals")["charged"] == 200
    assert set(proxy.targets) == {f"localhost:{tls_port}"}
    assert len(proxy.targets) > 200  # each POST, and the connections of polls


@pytest.mark.slow
def test_images_through_a_proxy(tmp_path: Path) -> None:
    """Images go through the proxy too, except those of hosts in NO_PROXY."""
    write_jobs(tmp_path / "jobs.jsonl", 10)
    pem = make_certificate(tmp_path / "localhost.pem")
    options = ("--rate", "50/s", "--poll-interval", "0.1")
    for no_proxy in ("", "localhost"):
        gateway = SurplusGateway("nowhere", set())
        with serving(gateway, pem) as url, running(ConnectProxy()) as proxy:
            done = run_command(
                "run", "jobs.jsonl", "--out", f"out{no_proxy}", "--gateway", url, *options,
                cwd=tmp_path, SSL_CERT_FILE=str(pem), HTTPS_PROXY=proxy.url, NO_PROXY=no_proxy,
            )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert len(proxy.targets) >= 20 if not no_proxy else proxy.targets == []


@pytest.mark.slow
def test_doctor_names_the_proxy(tmp_path: Path) -> None:
    """`doctor` names the proxy, without its user and password, whether it works or not."""
    pem = make_certificate(tmp_path / "localhost.pem")
    with serving(SurplusGateway("nowhere", set()), pem) as url, running(ConnectProxy()) as proxy:
        address = f"http://127.0.0.1:{proxy.port}"
        done = run_command("doctor", "--gateway", url, cwd=tmp_path, SSL_CERT_FILE=str(pem), HTTPS_PROXY=proxy.url)
        refused = run_command("doctor", "--gateway", url, cwd=tmp_path, SSL_CERT_FILE=str(pem), HTTPS_PROXY=address)
    assert f"{url} answers through the proxy {address}" in done.stdout
    problem = f"{url} is not reachable through the proxy {address} (the proxy refused to connect (HTTP 407))"
    assert problem in " ".join(refused.stdout.split())
    assert "set HTTPS_PROXY" not in refused.stdout
    assert not {USER, PASSWORD, PASSWORD_IN_URL} & set(done.stdout.replace("@", " ").split())
    assert PASSWORD_IN_URL not in done.stdout + done.stderr
    unusable = run_command("doctor", "--gateway", url, cwd=tmp_path, HTTPS_PROXY="socks5://proxy.example:1080")
    assert "HTTPS_PROXY is a socks5:// proxy" in unusable.stdout


@pytest.mark.slow
def test_a_proxy_that_cannot_be_used_stops_the_run(tmp_path: Path) -> None:
    """A run with such a proxy ends with exit code 2 and says what to set, before anything is sent."""
    write_jobs(tmp_path / "jobs.jsonl", 1)
    done = run_command("run", "jobs.jsonl", "--out", "out", cwd=tmp_path, HTTPS_PROXY="socks5://proxy.example:1080")
    assert done.returncode == 2, done.stderr
    assert "HTTPS_PROXY is a socks5:// proxy, which is not supported" in done.stderr
