"""Serves the metrics of a registry over HTTP, from a thread.

Everyone who can reach the address can read the metrics, and nothing else. By default that is this machine only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import prometheus_client
from msgspec import Struct
from prometheus_client import CollectorRegistry

from krea_batch.errors import SettingsError

METRICS_PORT = "metrics_port"


class Address(Struct, frozen=True):
    """An address to listen on. Port 0 means any free port."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """Parse `9100`, `0.0.0.0:9100` or `[::1]:9100`. Raises SettingsError for anything else."""
        host, colon, port = text.strip().rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not (port.isascii() and port.isdecimal()) or int(port) > 65535 or (colon and not host):
            raise SettingsError(
                METRICS_PORT, f"invalid port {text!r}", "use e.g. 9100, 0.0.0.0:9100, or 0 for any free port"
            )
        return cls(host or "127.0.0.1", int(port))

    @property
    def url(self) -> str:
        """The URL of the metrics."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/metrics"


@contextmanager
def serve_registry(registry: CollectorRegistry, address: Address) -> Iterator[Address]:
    """Serve the metrics until the block ends; yield the address with its actual port.

    Raises SettingsError if it cannot listen there.
    """
    try:
        server, thread = prometheus_client.start_http_server(address.port, address.host, registry)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "invalid host name"
        problem = f"cannot listen on {address.host}:{address.port} ({reason})"
        raise SettingsError(METRICS_PORT, problem, "use another port, or 0 for any free port") from None
    try:
        yield Address(address.host, server.server_port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
