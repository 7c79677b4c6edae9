"""A proxy between a client and PostgreSQL that cuts the connection at a COMMIT: before it, after it, or earlier.

"during the commit" is the worst case: the client has lost its connection, and connects again, while its COMMIT is
still on the way.
"""

from __future__ import annotations

import socket
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import Literal

import psycopg

SOCKET = ".s.PGSQL.5432"  # PostgreSQL, unix_socket_directories
COMMIT = b"COMMIT\0"  # in the Parse message of the extended query protocol

Cut = Literal["before the commit", "after the commit", "during the commit"]


class CuttingProxy:
    """A Unix socket in a folder of its own. With `cut`, the next COMMIT is lost, or its answer is."""

    def __init__(self, server_folder: Path) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="krea-px-")
        self._server_folder = server_folder
        self._server = str(server_folder / SOCKET)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(f"{self._folder.name}/{SOCKET}")
        self._listener.listen()
        self._pairs: list[threading.Thread] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()
        self.cut: Cut | None = None
        self.cuts = 0
        self.round_trips = 0  # answers that followed a request

    @property
    def url(self) -> str:
        return f"postgresql://postgres@/postgres?host={self._folder.name}"

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in (self._thread, *self._pairs):
            thread.join()
        self._folder.cleanup()

    def wait_until_asked(self) -> None:
        """Wait until another transaction waits for the lock of a batch."""
        pause = threading.Event()
        sql = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        url = f"postgresql://postgres@/postgres?host={self._server_folder}"
        with psycopg.connect(url, autocommit=True) as asking:
            while not asking.execute(sql).fetchall():
                pause.wait(0.01)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            try:
                server.connect(self._server)
            except OSError:  # it is being restarted
                client.close()
                server.close()
                continue
            self._pairs.append(threading.Thread(target=_Pair(self, client, server).forward, daemon=True))
            self._pairs[-1].start()


class _Pair:
    """One connection of a client, and the one to the server."""

    def __init__(self, proxy: CuttingProxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        self._drops_answers = False
        self._is_asking = False

    def forward(self) -> None:
        """Forward both ways until one of the ends is closed."""
        with self._client, self._server:
            answers = threading.Thread(target=self._forward_answers, daemon=True)
            answers.start()
            self._forward_requests()
            answers.join()

    def _forward_requests(self) -> None:
        with suppress(OSError):
            while data := self._client.recv(1 << 16):
                if self._proxy.cut and COMMIT in data:
                    cut, self._proxy.cut = self._proxy.cut, None
                    self._proxy.cuts += 1
                    if cut == "before the commit":
                        break
                    self._drops_answers = True
                    if cut == "during the commit":
                        self._client.shutdown(socket.SHUT_RDWR)
                        self._proxy.wait_until_asked()
                self._is_asking = True
                self._server.sendall(data)
        self._end()

    def _forward_answers(self) -> None:
        with suppress(OSError):
            while data := self._server.recv(1 << 16):
                if self._drops_answers:  # The server answers when the commit is durable.
                    break
                self._proxy.round_trips += self._is_asking
                self._is_asking = False
                self._client.sendall(data)
        self._end()

    def _end(self) -> None:
        for end in (self._client, self._server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
