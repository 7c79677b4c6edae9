"""Shared by all tests: their files and working directory, simulators, children of tests, failures of listeners."""

from __future__ import annotations

import gc
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.postgres_server import remove_shared_server
from tests.processes import (
    MEMORY,
    RunningSimulator,
    StartSimulator,
    ThreadedSimulator,
    has_room_in_memory,
    let_children_be_interrupted,
)

PORTABLE_FOLDERS = ("forecast", "rules", "sources")

let_children_be_interrupted()

# Images of containers often set it. The hundreds of processes that the tests start would then each compile the
# package, which is a third of the processor time of a short run. Workers of pytest-xdist inherit the change.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# On a disk, waiting for fsync takes most of the time of the tests, much more when other processes use it.
if "TMPDIR" not in os.environ and has_room_in_memory():
    os.environ["TMPDIR"] = tempfile.tempdir = MEMORY

# On a busy machine an example may take any time. The other settings are those of the current profile (on CI: "ci").
settings.register_profile(
    "without deadline", settings.get_profile(settings.get_current_profile_name()), deadline=None
)
settings.load_profile("without deadline")


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Leave bytes out of the names of tests: they may differ in each worker (the time in gzip), which refuse that."""
    return argname if isinstance(val, bytes) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of PORTABLE_FOLDERS. Others carry the marker themselves, or need what only Unix has."""
    for item in items:
        if item.path.parent.name in PORTABLE_FOLDERS:
            item.add_marker(pytest.mark.portable)


def pytest_collection_finish() -> None:
    """Exclude modules and tests from garbage collection. Otherwise each full collection takes 0.1 s."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _no_database_server_is_left() -> Iterator[None]:
    """Remove the database server, if a test has started it."""
    yield
    remove_shared_server()


@pytest.fixture
def anyio_backend() -> str:
    """Run coroutines on asyncio only: older versions of anyio also use trio."""
    return "asyncio"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to an empty working directory, and return it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def simulate() -> Iterator[StartSimulator]:
    """Start simulators, which are stopped at the end of the test."""
    started: list[RunningSimulator] = []

    def start(*options: str) -> RunningSimulator:
        started.append(ThreadedSimulator(*options))
        return started[-1]

    yield start
    for simulator in started:
        simulator.close()


class ListenerFailures(logging.Handler):
    """Collects the exceptions of listeners, which the engine only logs."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.errors: list[BaseException] = []

    def emit(self, record: logging.LogRecord) -> None:
        if "listener failed" in record.getMessage() and record.exc_info and record.exc_info[1]:
            self.errors.append(record.exc_info[1])


@pytest.fixture(autouse=True)
def listener_failures() -> Iterator[list[BaseException]]:
    """Fail a test whose listener raised, for example in an assertion; a test that expects this clears the list."""
    handler = ListenerFailures()
    logger = logging.getLogger("krea_batch")
    logger.addHandler(handler)
    yield handler.errors
    logger.removeHandler(handler)
    if handler.errors:
        raise handler.errors[0]
