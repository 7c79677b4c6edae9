"""Tests of the metrics server: how addresses are parsed, and what a scrape returns."""

from __future__ import annotations

import socket
import threading
import urllib.error
import urllib.request
from contextlib import ExitStack, suppress

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from krea_batch import SettingsError
from krea_batch.events import RunStopping
from krea_batch.observability import MetricsListener, metrics_server
from krea_batch.observability.metrics_server import Address, serve_registry


@pytest.mark.parametrize(
    ("text", "host", "port", "url"),
    [
        ("9100", "127.0.0.1", 9100, "http://127.0.0.1:9100/metrics"),
        ("0.0.0.0:0", "0.0.0.0", 0, "http://0.0.0.0:0/metrics"),
        (" localhost:80 ", "localhost", 80, "http://localhost:80/metrics"),
        ("[::1]:9100", "::1", 9100, "http://[::1]:9100/metrics"),
    ],
)
def test_an_address(text: str, host: str, port: int, url: str) -> None:
    """A port alone is one on this machine; it may follow a host."""
    address = Address.parse(text)
    assert (address.host, address.port, address.url) == (host, port, url)


@pytest.mark.parametrize("text", ["", "http", "-1", "65536", ":9100", "localhost:", "[]:1", "²", "9100/metrics"])
def test_an_invalid_address(text: str) -> None:
    """The error has the invalid value and valid examples."""
    with pytest.raises(SettingsError, match=r"metrics_port: invalid port .*; use e.g. 9100"):
        Address.parse(text)


def test_metrics_are_served_until_closed() -> None:
    """Port 0 is replaced by a free port; a scrape returns the registry's values; after the block, nothing listens."""
    metrics = MetricsListener()
    metrics(RunStopping("no money"))
    with serve_registry(metrics.registry, Address("127.0.0.1", 0)) as address:
        assert address.port > 0
        assert samples(address)["krea_batch_early_stops_total"] == 1
    with pytest.raises(urllib.error.URLError):
        samples(address)


@pytest.mark.parametrize("data", [b"", b"GET /metrics HT"])
def test_idle_connections(data: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Connections that send no request take a bounded number of threads, and are closed after a time."""
    monkeypatch.setattr(metrics_server, "MAX_REQUEST_S", 0.2)
    threads = threading.active_count()
    with serve_registry(MetricsListener().registry, Address("127.0.0.1", 0)) as address, ExitStack() as stack:
        connections = [
            stack.enter_context(socket.create_connection((address.host, address.port))) for _ in range(100)
        ]
        for connection in connections:
            with suppress(ConnectionError):
                connection.sendall(data)
        assert threading.active_count() <= threads + 1 + metrics_server.MAX_CONNECTIONS
        for connection in connections:
            with suppress(ConnectionResetError):
                assert connection.recv(1) == b""
        assert "krea_batch_early_stops_total" in samples(address)
    assert "Traceback" not in capsys.readouterr().err


def samples(address: Address) -> dict[str, float]:
    """Return the values of a scrape by the names of their series."""
    with urllib.request.urlopen(address.url) as response:  # noqa: S310 - loopback
        families = text_string_to_metric_families(response.read().decode())
        return {sample.name: sample.value for family in families for sample in family.samples}


@pytest.mark.parametrize("host", ["127.0.0.1", "no.such.host.invalid", "..", "192.0.2.1"])
def test_an_address_that_cannot_be_bound(host: str) -> None:
    """A port in use and a host that is not this machine are errors of the setting `metrics_port`."""
    with serve_registry(CollectorRegistry(), Address("127.0.0.1", 0)) as used:
        server = serve_registry(CollectorRegistry(), Address(host, used.port))
        with pytest.raises(SettingsError, match="metrics_port: cannot listen on"), server:
            pass
