"""Serves the metrics of a registry over HTTP, from a thread.

Everyone who can reach the address can read the metrics, and nothing else. By default that is this machine only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import BoundedSemaphore
from typing import Any
from wsgiref.simple_server import WSGIServer

import prometheus_client
from msgspec import Struct
from prometheus_client import CollectorRegistry

from krea_batch.errors import SettingsError
from krea_batch.settings import url_host

METRICS_PORT = "metrics_port"
MAX_CONNECTIONS = 16  # chosen: a Prometheus server needs one
MAX_REQUEST_S = 5.0  # chosen: a request is sent in one packet


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
        return f"http://{url_host(self.host)}:{self.port}/metrics"


def _limit_connections(server: WSGIServer) -> None:
    """Bound the number and the time of connections: each takes a thread and a file descriptor from the run."""
    free = BoundedSemaphore(MAX_CONNECTIONS)

    class LimitedHandler(server.RequestHandlerClass):  # type: ignore[misc, name-defined]
        timeout = MAX_REQUEST_S  # of the socket, see socketserver.StreamRequestHandler

        def __init__(self, *args: Any) -> None:
            try:
                super().__init__(*args)  # handles the request
            except TimeoutError:
                pass  # the client sent nothing
            finally:
                free.release()

    server.RequestHandlerClass = LimitedHandler
    server.verify_request = lambda *_: free.acquire(blocking=False)  # type: ignore[method-assign]


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
    _limit_connections(server)
    try:
        yield Address(address.host, server.server_port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
