"""An S3 server on loopback, and a proxy before it that can reject requests, drop responses and run code of a test.

The server is moto's, in a process of its own. It is not for production, but it serves S3 over HTTP to any client,
supports `If-None-Match`, is plain Python on PyPI, and starts in a third of a second. Servers for production cannot be
installed by a test: MinIO and Garage are in no Python registry, and Ceph's gateway needs a cluster.
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import quote, unquote, urlsplit
from xml.etree import ElementTree

from tests.processes import PROCESS_TIMEOUT_S

BUCKET = "images"
NAMESPACE = "{http://s3.amazonaws.com/doc/2006-03-01/}"
SIGNED_HEADERS = {"Authorization": "AWS an-id-of-a-key:moto-checks-none", "Content-Type": "application/octet-stream"}
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "date", "server"}


class RecordedRequest:
    """A request to the proxy."""

    def __init__(self, method: str, target: str, headers: dict[str, str]) -> None:
        self.method = method
        self.key = unquote(urlsplit(target).path).removeprefix(f"/{BUCKET}").removeprefix("/")
        self.headers = headers

    @property
    def is_upload(self) -> bool:
        return self.method == "PUT" and bool(self.key)


class DropResponse(Exception):
    """Raised by `after_request`: the server has handled the request, and the client gets no response."""


class S3Server:
    """The server, its bucket and the proxy. The three hooks may be set at any time.

    `reject_status` returns None to forward a request, a status to reject it with, with `reject_body` as the body, or
    0 to close the connection without a response. `after_request` is called when the server has handled a request,
    before the response is sent.
    """

    def __init__(self) -> None:
        self._reset_hooks()

    def _reset_hooks(self) -> None:
        self.reject_status: Callable[[RecordedRequest], int | None] = lambda _: None
        self.after_request: Callable[[RecordedRequest], None] = lambda _: None
        self.reject_body = b""
        self.requests: list[RecordedRequest] = []

    def reset(self) -> None:
        """Reset the hooks, and create an empty bucket."""
        self._reset_hooks()
        self.forward("POST", "/moto-api/reset", {}, b"")
        self.create()

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
        self._server = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        assert self._server.stderr
        lines = []
        for line in self._server.stderr:
            lines.append(line)
            if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                self._port = int(found[1])
                break
        else:
            raise AssertionError("".join(lines))
        self._stderr_thread = threading.Thread(target=self._server.stderr.read)  # a full pipe would stop it
        self._stderr_thread.start()
        self._proxy = ThreadingHTTPServer(("127.0.0.1", 0), _proxy_handler(self))
        self._proxy_thread = threading.Thread(target=self._proxy.serve_forever)
        self._proxy_thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._proxy.shutdown()
        self._proxy_thread.join(PROCESS_TIMEOUT_S)
        self._proxy.server_close()
        self._server.terminate()
        self._server.wait(PROCESS_TIMEOUT_S)
        self._stderr_thread.join(PROCESS_TIMEOUT_S)
        if self._server.stderr:
            self._server.stderr.close()

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables with which a process finds the proxy."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._proxy.server_port}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "an-id-of-a-key",
            "AWS_SECRET_ACCESS_KEY": "a-secret-of-a-key",
            "AWS_REGION": "us-east-1",
        }

    # ---- the bucket, without the proxy ----------------------------------------------------------------------

    def create(self) -> None:
        self._request("PUT", "")

    def delete(self) -> None:
        self._request("DELETE", "")

    def put(self, key: str, data: bytes) -> None:
        """Store a foreign object."""
        self._request("PUT", f"/{key}", data)

    def objects(self) -> dict[str, bytes]:
        """Return all objects by their keys."""
        listing = ElementTree.fromstring(self._request("GET", "")[0])  # noqa: S314 - our own server's
        keys = [element.text or "" for element in listing.iter(f"{NAMESPACE}Key")]
        return {key: self._request("GET", f"/{key}")[0] for key in keys}

    def headers(self, key: str) -> dict[str, str]:
        """Return the response headers of an object, with names in lower case."""
        return self._request("GET", f"/{key}")[1]

    def uploaded_keys(self) -> list[str]:
        """Return the keys of all uploads to the proxy, in order."""
        return [request.key for request in self.requests if request.is_upload]

    def forward(self, method: str, target: str, headers: dict[str, str], body: bytes) -> tuple[int, Any, bytes]:
        """Send a request to the server, and return the status, headers and body of its response."""
        server = HTTPConnection("127.0.0.1", self._port, timeout=PROCESS_TIMEOUT_S)
        try:
            server.request(method, target, body, headers)
            response = server.getresponse()
            return response.status, response.headers, response.read()
        finally:
            server.close()

    def _request(self, method: str, path: str, data: bytes | None = None) -> tuple[bytes, dict[str, str]]:
        url = f"http://127.0.0.1:{self._port}/{BUCKET}{quote(path)}"
        request = urllib.request.Request(url, data, SIGNED_HEADERS, method=method)
        with urllib.request.urlopen(request, timeout=PROCESS_TIMEOUT_S) as response:  # noqa: S310 - loopback
            return response.read(), {name.lower(): value for name, value in response.headers.items()}


def _proxy_handler(server: S3Server) -> type[BaseHTTPRequestHandler]:
    class ProxyHandler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            request = RecordedRequest(
                self.command, self.path, {name.lower(): value for name, value in self.headers.items()}
            )
            server.requests.append(request)
            status = server.reject_status(request)
            if status == 0:
                self.close_connection = True
            elif status is not None:
                self._respond(status, {}, server.reject_body)
            else:
                response = server.forward(self.command, self.path, dict(self.headers.items()), body)
                try:
                    server.after_request(request)
                except DropResponse:
                    self.close_connection = True
                    return
                self._respond(*response)

        do_PUT = do_HEAD = do_POST = do_DELETE = do_GET  # noqa: N815 - http.server's own names

        def _respond(self, status: int, headers: Any, body: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in HOP_BY_HOP:
                    self.send_header(name, value)
            size_bytes = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(body))
            self.send_header("Content-Length", size_bytes)
            self.end_headers()
            try:
                self.wfile.write(body)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True  # the client was killed

        def log_message(self, *_: object) -> None: ...

    return ProxyHandler
