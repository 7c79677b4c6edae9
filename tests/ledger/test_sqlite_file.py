"""The SQLite file of a ledger: what is not one, who may read it, and what a kill leaves."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from krea_batch.errors import LedgerError, RunDirError
from krea_batch.jobs import State
from krea_batch.ledger import Charges
from krea_batch.ledger.sqlite import SqliteLedger
from krea_batch.ledger.sqlite.database import APPLICATION_ID, SCHEMA_VERSION, next_step_of
from tests.ledger.operations import accept, apply_all, finish, intent, state_of
from tests.processes import PROCESS_TIMEOUT_S


@pytest.fixture
def store(path: Path) -> Iterator[SqliteLedger]:
    opened = SqliteLedger.open(path)
    yield opened
    opened.close()


# ---- files that are not ledgers --------------------------------------------------------------------------


def create_foreign_file(path: Path, *statements: str) -> Path:
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()
    return path


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        lambda path: create_foreign_file(path, "CREATE TABLE mine (x)"),
        lambda path: create_foreign_file(path, "PRAGMA application_id = 7", "CREATE TABLE jobs (x)"),
        lambda path: create_foreign_file(
            path, f"PRAGMA application_id = {APPLICATION_ID}", f"PRAGMA user_version = {SCHEMA_VERSION + 1}",
            "CREATE TABLE jobs (x)",
        ),
        lambda path: create_foreign_file(
            path, f"PRAGMA application_id = {APPLICATION_ID}", f"PRAGMA user_version = {SCHEMA_VERSION - 1}",
            "CREATE TABLE jobs (x)",
        ),
        lambda path: path.write_text("this is a text, and longer than the head of a database\n" * 100),
        lambda path: path.write_bytes(b"SQLite format 3\0" + b"\xff" * 4000),
        lambda path: path.mkdir(),
    ],
    ids=["other tables", "other application", "newer schema", "older schema", "a text", "a damaged file", "a folder"],
)  # fmt: skip
def test_foreign_files(path: Path, make: Callable[[Path], object], read_only: bool) -> None:
    """A foreign, newer, older or damaged file raises RunDirError with its path, and is not changed."""
    make(path)
    before = path.read_bytes() if path.is_file() else b""
    with pytest.raises(RunDirError) as caught:
        SqliteLedger.open(path, read_only=read_only)
    assert caught.value.path == path
    assert (path.read_bytes() if path.is_file() else b"") == before
    if path.is_file():
        path.unlink()  # on some systems this fails for an open file


def test_a_missing_file(path: Path) -> None:
    """Opening a missing ledger for reading raises RunDirError and does not create it."""
    with pytest.raises(RunDirError):
        SqliteLedger.open(path, read_only=True)
    assert not path.exists()
    with pytest.raises(RunDirError):
        SqliteLedger.open(path.parent / "none" / "ledger.db")


def test_an_empty_file_reads_as_an_empty_ledger(path: Path) -> None:
    """After a kill during the creation of the ledger, readers see an empty ledger."""
    path.touch()
    reader = SqliteLedger.open(path, read_only=True)
    assert (reader.counts(), reader.charges(), reader.ambiguous_jobs()) == ({}, Charges(), [])
    assert reader.fingerprints(["a"]) == {}
    reader.close()
    assert path.stat().st_size == 0


def test_an_empty_file_becomes_a_ledger(path: Path) -> None:
    """An empty file, which a crash may leave, is opened as a new ledger."""
    path.touch()
    store = SqliteLedger.open(path)
    apply_all(store, intent())
    store.close()


@pytest.mark.parametrize("name", ["a b.db", "what?.db", "hash#.db", "50%25.db", "ünï.db"])
def test_file_names_with_special_characters(tmp_path: Path, name: str) -> None:
    """Characters with a meaning in URLs are allowed in the path."""
    store = SqliteLedger.open(tmp_path / name)
    store.close()
    assert (tmp_path / name).is_file()


OPEN_UNPRIVILEGED = """
import os, sys
from pathlib import Path
from krea_batch.errors import RunDirError
from krea_batch.ledger.sqlite import SqliteLedger
if os.geteuid() == 0:
    os.setuid(65534)
try:
    SqliteLedger.open(Path(sys.argv[1]))
except RunDirError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other permissions")
@pytest.mark.parametrize("folder_mode", [0o555, 0o777])
def test_a_read_only_file(path: Path, folder_mode: int) -> None:
    """A ledger that cannot be written is refused when it is opened, before anything is charged."""
    store = SqliteLedger.open(path)
    apply_all(store, intent())
    store.close()
    public = Path(tempfile.mkdtemp())  # other users cannot read pytest's own directories
    try:
        copy = shutil.copy(path, public / "ledger.db")
        Path(copy).chmod(0o444)
        public.chmod(folder_mode)
        process = subprocess.run(
            [sys.executable, "-c", OPEN_UNPRIVILEGED, copy],
            # The other user cannot write the data of coverage.py, which would complain.
            env={name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")},
            capture_output=True,
            text=True,
            timeout=PROCESS_TIMEOUT_S,
        )
    finally:
        public.chmod(0o755)
        shutil.rmtree(public)
    if "Permission denied" in process.stderr and "import" in process.stderr:
        pytest.skip("another user cannot read the interpreter or the package")
    assert process.stderr == ""
    assert "ledger.db: " in process.stdout


def test_a_reader_beside_a_writer(store: SqliteLedger, path: Path) -> None:
    """A second connection can read the ledger while the first one writes, and cannot write."""
    apply_all(store, intent())
    reader = SqliteLedger.open(path, read_only=True)
    apply_all(store, accept())
    assert state_of(reader) is State.ACCEPTED
    with pytest.raises(LedgerError, match="readonly"):
        apply_all(reader, finish())
    reader.close()
    assert state_of(store) is State.ACCEPTED


def test_commits_are_synced(store: SqliteLedger, path: Path) -> None:
    """The ledger uses WAL mode and syncs each commit, since the request_id of a charge must survive a power cut."""
    (mode,) = store._sql.execute("PRAGMA journal_mode").fetchone()
    (synchronous,) = store._sql.execute("PRAGMA synchronous").fetchone()
    assert (mode, synchronous) == ("wal", 2)


KILLED_SCRIPT = """
import os, sys
from pathlib import Path
from krea_batch.ledger.sqlite import SqliteLedger
store = SqliteLedger.open(Path(sys.argv[1]))
store.transaction(lambda s: s.record_intent("a", b"{}", b"f" * 32, b"{}", 1.0, ""))
store.transaction(lambda s: s.mark_accepted(1, "r-1", 2.0))
store._sql.execute("BEGIN IMMEDIATE")
store.record_intent("b", b"{}", b"f" * 32, b"{}", 1.0, "")
os.kill(os.getpid(), 9)
"""


def test_killed_in_a_transaction(path: Path) -> None:
    """After kill -9, committed transitions are in the ledger and others are not."""
    subprocess.run([sys.executable, "-c", KILLED_SCRIPT, path], timeout=PROCESS_TIMEOUT_S)
    store = SqliteLedger.open(path)
    assert store.counts() == {State.ACCEPTED: 1}
    assert apply_all(store, intent("b")) == 2
    store.close()


@pytest.fixture
def damaged(path: Path) -> Path:
    """A ledger whose page with the first jobs was overwritten."""
    store = SqliteLedger.open(path)
    apply_all(store, intent())
    (page_bytes,) = store._sql.execute("PRAGMA page_size").fetchone()
    (page,) = store._sql.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'jobs'").fetchone()
    store.close()
    with path.open("r+b") as file:
        file.seek((page - 1) * page_bytes)
        file.write(b"\xff" * page_bytes)
    return path


def test_a_damaged_file_cannot_be_read(damaged: Path) -> None:
    """A snapshot of a damaged ledger, and any other query, is an error with its path and what to do."""
    with pytest.raises(LedgerError, match=r"ledger\.db: cannot read the ledger .*restore the ledger from a copy"):
        SqliteLedger.snapshot(damaged)


def test_the_damage_is_found(damaged: Path, tmp_path: Path) -> None:
    """SQLite's check names the damage of a file, and nothing for a file that is whole."""
    store, whole = SqliteLedger.open(damaged), SqliteLedger.open(tmp_path / "whole.db")
    assert store.find_damage()
    assert whole.find_damage() is None
    assert whole.latest_run() is None
    store.close()
    whole.close()


def test_what_to_do_about_a_full_disk() -> None:
    """An error of the operating system and one of SQLite lead to the same advice."""
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorname = "SQLITE_FULL"
    assert next_step_of(error) == next_step_of(OSError(errno.ENOSPC, "No space left")) == "free some disk space"


def test_a_file_that_is_no_database(path: Path) -> None:
    """The error of a file that SQLite does not know says what to do, once."""
    path.write_bytes(b"x" * 4096)
    with pytest.raises(RunDirError, match=r"restore the ledger from a copy, or use another run directory$"):
        SqliteLedger.open(path)
