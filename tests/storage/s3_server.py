"""An S3 server on loopback, and a door before it that a test can shut, or have do something when an image is in.

Newcomers: the server is moto's, in a process of its own. It is no store for production, but it speaks S3 over HTTP
to any client, knows `If-None-Match`, comes from PyPI as plain Python and is up in a third of a second. Those made for
production cannot be installed by a test: MinIO and Garage are in no registry, and Ceph's gateway needs a cluster.
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
    """One request that came to the door."""

    def __init__(self, method: str, target: str, headers: dict[str, str]) -> None:
        self.method = method
        self.key = unquote(urlsplit(target).path).removeprefix(f"/{BUCKET}").removeprefix("/")
        self.headers = headers

    @property
    def is_upload(self) -> bool:
        return self.method == "PUT" and bool(self.key)


class DropResponse(Exception):
    """Raised by `after`: what was asked is done, and anyone who asked never hears of it."""


class S3Server:
    """The server, its bucket and the door before it. `shut`, `says` and `after` may be set at any time.

    `shut` says for a request what status it is answered with instead, and the body `says`, 0 for none at all, or
    None to let it in;
    `after` is called when the server has done what was asked, and before the response is sent.
    """

    def __init__(self) -> None:
        self._reset_hooks()

    def _reset_hooks(self) -> None:
        self.reject_status: Callable[[RecordedRequest], int | None] = lambda _: None
        self.after_request: Callable[[RecordedRequest], None] = lambda _: None
        self.reject_body = b""
        self.requests: list[RecordedRequest] = []

    def reset(self) -> None:
        """Open the door, and empty the bucket."""
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
        """What a process needs in its environment to find the server."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._proxy.server_port}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "an-id-of-a-key",
            "AWS_SECRET_ACCESS_KEY": "a-secret-of-a-key",
            "AWS_REGION": "us-east-1",
        }

    # ---- what is in it, past the door -----------------------------------------------------------------------

    def create(self) -> None:
        self._request("PUT", "")

    def delete(self) -> None:
        self._request("DELETE", "")

    def put(self, key: str, data: bytes) -> None:
        """Someone else's object."""
        self._request("PUT", f"/{key}", data)

    def objects(self) -> dict[str, bytes]:
        """All objects by their keys."""
        listing = ElementTree.fromstring(self._request("GET", "")[0])  # noqa: S314 - our own server's
        keys = [element.text or "" for element in listing.iter(f"{NAMESPACE}Key")]
        return {key: self._request("GET", f"/{key}")[0] for key in keys}

    def headers(self, key: str) -> dict[str, str]:
        """The headers that an object is sent with, their names in small letters."""
        return self._request("GET", f"/{key}")[1]

    def uploaded_keys(self) -> list[str]:
        """The keys that images were sent to, in their order."""
        return [request.key for request in self.requests if request.is_upload]

    def forward(self, method: str, target: str, headers: dict[str, str], body: bytes) -> tuple[int, Any, bytes]:
        """Have the server do what was asked at the door."""
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
                self.close_connection = True  # anyone who asked was killed meanwhile

        def log_message(self, *_: object) -> None: ...

    return ProxyHandler
