"""A real run whose ledger another process locks while answers to POSTs arrive: no request_id is lost."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from krea_batch.storage.run_dir import LEDGER
from krea_batch.storage.spill import SPILL, read_spill
from tests.engine_fixtures import query_ledger
from tests.gateway.test_client import RawRequest
from tests.processes import PROCESS_TIMEOUT_S, clean_environment, result_rows, run_command, start_command, write_jobs
from tests.surplus_gateway import SurplusGateway, serving

pytestmark = pytest.mark.slow

JOBS = 12
HELD_POSTS = 6  # whose answers arrive while the ledger is locked
RUN = ("run", "jobs.jsonl", "--out", "out", "--rate", "100/s", "--poll-interval", "0.2", "-v")

LOCK_SCRIPT = """
import sqlite3, sys
ledger = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=60)
ledger.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.read()
"""
IMPATIENT_SCRIPT = """
from krea_batch.ledger import waiting
waiting.MAX_WAIT_S = 0.5
from krea_batch.cli.app import main
main()
"""


class OtherProcess:
    """A process that locks the ledger until `release`."""

    def __init__(self, ledger: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", LOCK_SCRIPT, ledger], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "locked\n"

    def release(self) -> None:
        """Let it end, which ends the lock."""
        self._process.communicate(timeout=PROCESS_TIMEOUT_S)


class LockingGateway(SurplusGateway):
    """Holds the first answers to POSTs until another process has locked the ledger, and then sends them."""

    def __init__(self, ledger: Path) -> None:
        super().__init__("nowhere", set())
        self._ledger = ledger
        self._posts = 0
        self._is_locked = asyncio.Event()
        self._other: OtherProcess | None = None

    async def __call__(self, request: RawRequest, writer: asyncio.StreamWriter) -> None:
        if request.method == "POST" and not self._is_locked.is_set():
            self._posts += 1
            if self._posts == HELD_POSTS:
                self._other = await asyncio.get_running_loop().run_in_executor(None, OtherProcess, self._ledger)
                self._is_locked.set()
            await self._is_locked.wait()
        await super().__call__(request, writer)

    def release(self) -> None:
        """End the lock."""
        assert self._other is not None
        self._other.release()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    write_jobs(tmp_path / "jobs.jsonl", JOBS)
    return tmp_path / "out"


def assert_each_charged_once(gateway: LockingGateway, out: Path) -> None:
    """Assert that every job has its image, from the request_id of its only POST."""
    assert Counter(gateway.prompts) == dict.fromkeys((f"image {n}" for n in range(JOBS)), 1)
    rows = {row["request"]["prompt"]: row for row in result_rows(out)}
    assert {row["status"] for row in rows.values()} == {"succeeded"}
    assert {prompt: row["request_id"] for prompt, row in rows.items()} == gateway.request_ids
    assert query_ledger(out, "SELECT DISTINCT result FROM submissions") == [("accepted",)]


def test_locked_for_longer_than_the_busy_timeout(tmp_path: Path, out: Path) -> None:
    """The run waits, says so, and continues by itself; every job is charged once and stored."""
    gateway = LockingGateway(out / LEDGER)
    with serving(gateway) as url, start_command(*RUN, "--gateway", url, cwd=tmp_path) as run:
        assert run.stderr is not None
        waited = 0
        for line in run.stderr:
            if "ledger locked by another program, waiting" in line:
                waited += 1
                gateway.release()
        assert run.wait(PROCESS_TIMEOUT_S) == 0
    assert waited == 1
    assert_each_charged_once(gateway, out)


def test_locked_for_longer_than_the_patience(tmp_path: Path, out: Path) -> None:
    """The run ends with what to do; the request_ids that had arrived are kept, and the next run uses them."""
    gateway = LockingGateway(out / LEDGER)
    with serving(gateway) as url:
        ended = subprocess.run(
            [sys.executable, "-c", IMPATIENT_SCRIPT, *RUN, "--gateway", url],
            cwd=tmp_path,
            env=clean_environment(PIXAZO_API_KEY="k"),
            capture_output=True,
            text=True,
            timeout=PROCESS_TIMEOUT_S,
        )
        assert ended.returncode == 3, ended.stderr
        assert "another program has locked the ledger" in ended.stdout
        assert "close the program that has it open" in ended.stdout
        kept = {line.spilled.request_id for line in read_spill(out) if line.spilled}
        assert kept == set(gateway.request_ids.values())
        assert len(kept) >= HELD_POSTS
        gateway.release()
        done = run_command(*RUN, "--gateway", url, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not (out / SPILL).exists()
    assert_each_charged_once(gateway, out)
