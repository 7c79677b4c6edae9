"""An empty bucket for tests of object stores."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.storage.s3_server import S3Server


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with S3Server() as s3_server:
        yield s3_server


@pytest.fixture
def bucket(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """An empty bucket whose proxy forwards everything; the environment of this process leads to it."""
    server.reset()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return server
