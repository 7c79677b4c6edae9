"""A process learns that another one of this machine has ended from its lock, and concludes nothing without it."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from krea_batch.storage import process_lock
from krea_batch.storage.process_lock import ProcessLock, is_released, remove_lock_file
from tests.processes import PROCESS_TIMEOUT_S, clean_environment, wait_until

HOLDER = """
import os, sys, time
from krea_batch.storage.process_lock import ProcessLock
lock = ProcessLock()
lock.acquire()
if "fork" in sys.argv and os.fork() == 0:
    sys.stdin.read()  # until the test closes it
    os._exit(0)
print(lock.name, flush=True)
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files of this process."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def lock() -> Iterator[ProcessLock]:
    """A lock that is held."""
    held = ProcessLock()
    held.acquire()
    assert held.name
    yield held
    held.release()


@contextmanager
def holder(temporary: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that holds a lock, and the name of the lock."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**clean_environment(), "TMPDIR": str(temporary)},
    ) as process:
        assert process.stdin
        assert process.stdout
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()
            process.wait(PROCESS_TIMEOUT_S)
            process.stdin.close()


def files(temporary: Path) -> list[Path]:
    return list(temporary.glob("*/*"))


def is_stopped(process: subprocess.Popen[str]) -> bool:
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def test_a_lock_is_released_once(lock: ProcessLock, temporary: Path) -> None:
    """While a run holds its lock, no one takes it for dead; afterwards everyone does, until its file is removed."""
    assert [is_released(lock.name) for _ in range(2)] == [False, False]
    lock.release()
    lock.release()
    assert [is_released(lock.name) for _ in range(2)] == [True, True]
    remove_lock_file(lock.name)
    assert not is_released(lock.name)
    assert files(temporary) == []
    remove_lock_file(lock.name)


def test_a_killed_process(temporary: Path) -> None:
    """A process that stalls keeps its lock. The operating system releases it when the process is killed."""
    with holder(temporary) as (process, name):
        process.send_signal(signal.SIGSTOP)
        wait_until(lambda: is_stopped(process), process)
        assert not is_released(name)
        process.kill()
        process.wait(PROCESS_TIMEOUT_S)
        assert is_released(name)


def test_a_forked_child(temporary: Path) -> None:
    """A child that lives longer than its parent does not keep the lock of the parent."""
    with holder(temporary, "fork") as (process, name):
        assert not is_released(name)
        process.kill()
        process.wait(PROCESS_TIMEOUT_S)
        wait_until(lambda: is_released(name))  # The child may not have closed its copy yet.


def test_a_descriptor_that_another_process_has(lock: ProcessLock) -> None:
    """Where a copy of the descriptor is open, as in a child of other code, the lock is kept."""
    copy = os.dup(lock._fd)
    lock.release()
    assert not is_released(lock.name)
    os.close(copy)
    assert is_released(lock.name)


# ---- what proves nothing ---------------------------------------------------------------------------------


def remove_file(temporary: Path, _: pytest.MonkeyPatch) -> None:
    (path,) = files(temporary)
    path.unlink()


def remove_folder(temporary: Path, _: pytest.MonkeyPatch) -> None:
    (path,) = files(temporary)
    shutil.rmtree(path.parent)


def look_from_a_container(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(temporary / "another"))


def look_from_another_machine(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boot_id = temporary / "boot_id"
    boot_id.write_text("6e7f8a52-another\n")
    monkeypatch.setattr(process_lock, "BOOT_ID", boot_id)


def let_others_read_the_folder(temporary: Path, _: pytest.MonkeyPatch) -> None:
    (path,) = files(temporary)
    path.parent.chmod(0o755)


def replace_the_folder_by_a_link(temporary: Path, _: pytest.MonkeyPatch) -> None:
    (path,) = files(temporary)
    folder = path.parent.rename(temporary / "moved")
    path.parent.symlink_to(folder)


def replace_the_file_by_a_link(temporary: Path, _: pytest.MonkeyPatch) -> None:
    (path,) = files(temporary)
    path.symlink_to(path.rename(temporary / "moved"))


def remove_the_file_during_the_look(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flock = fcntl.flock

    def flock_later(fd: int, operation: int) -> None:
        for path in files(temporary):
            path.unlink()
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", flock_later)


def forbid_locks(_: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", fail)


@pytest.mark.parametrize(
    "change",
    [
        remove_file, remove_folder, look_from_a_container, look_from_another_machine, let_others_read_the_folder,
        replace_the_folder_by_a_link, replace_the_file_by_a_link, remove_the_file_during_the_look, forbid_locks,
    ],
    ids=lambda change: change.__name__,
)  # fmt: skip
def test_what_proves_nothing(
    lock: ProcessLock,
    temporary: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path, pytest.MonkeyPatch], None],
) -> None:
    """A file that is missing, or is not surely the one that the process has locked, does not prove its end."""
    lock.release()
    assert is_released(lock.name)
    change(temporary, monkeypatch)
    assert not is_released(lock.name)


@pytest.mark.parametrize("name", ["", "0" * 32, "../moved", "a/b", "a\0b"])
def test_names_without_a_lock(lock: ProcessLock, temporary: Path, name: str) -> None:
    """A run without a lock, an unknown name, or one that leads elsewhere proves nothing. Nothing is removed."""
    lock.release()
    before = files(temporary)
    assert not is_released(name)
    remove_lock_file(name)
    assert files(temporary) == before


# ---- without a lock --------------------------------------------------------------------------------------


def test_only_its_owner_can_see_it(lock: ProcessLock, temporary: Path) -> None:
    """Other users can neither list the locks nor open them."""
    (path,) = files(temporary)
    assert (path.parent.stat().st_mode & 0o777, path.stat().st_mode & 0o777) == (0o700, 0o600)
    assert path.parent.name == f"krea-batch-{os.geteuid()}"


def make_a_file(folder: Path) -> None:
    folder.touch()


def make_a_folder_of_everyone(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)


@pytest.mark.parametrize("spoil", [make_a_file, make_a_folder_of_everyone], ids=lambda spoil: spoil.__name__)
def test_a_folder_that_cannot_be_used(
    temporary: Path, caplog: pytest.LogCaptureFixture, spoil: Callable[[Path], None]
) -> None:
    """A run works without a lock as well. The log says what that means."""
    spoil(temporary / f"krea-batch-{os.geteuid()}")
    lock = ProcessLock()
    lock.acquire()
    assert lock.name == ""
    assert "if this process is killed, others notice it after 10 s" in caplog.text
    lock.release()


def test_a_system_without_locks(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a file cannot be locked, none is left behind."""
    forbid_locks(temporary, monkeypatch)
    lock = ProcessLock()
    lock.acquire()
    assert lock.name == ""
    assert files(temporary) == []


def test_a_system_that_is_not_linux(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an identifier of the boot, the name of the machine tells machines apart."""
    monkeypatch.setattr(process_lock, "BOOT_ID", temporary / "missing")
    lock = ProcessLock()
    lock.acquire()
    assert not is_released(lock.name)
    lock.release()
    assert is_released(lock.name)
