"""`RunDir` creates and locks the run directory for one process, or raises with the reason."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest
from click.testing import CliRunner

from krea_batch.cli.app import app
from krea_batch.errors import RunDirError
from krea_batch.storage.run_dir import IMAGES, LEDGER, RunDir, has_images, is_locked, require_run
from tests.processes import clean_environment

LOCK_SCRIPT = """
import sys, time
from pathlib import Path
from krea_batch.storage.run_dir import RunDir
RunDir(Path(sys.argv[1])).lock()
print("locked", flush=True)
time.sleep(60)
"""

FORK_SCRIPT = """
import asyncio, os, sys
from multiprocessing import get_context
from krea_batch import Engine
from krea_batch.testing import ScriptedGateway

stdin = os.dup(0)  # multiprocessing replaces the standard input of a child

def child():
    print("forked", flush=True)
    os.read(stdin, 1)  # until the test closes it

async def main():
    async with Engine(sys.argv[1], gateway_client=ScriptedGateway()):
        get_context("fork").Process(target=child).start()
        os._exit(0)  # as if killed

asyncio.run(main())
"""


def test_it_is_created_with_its_parents(tmp_path: Path) -> None:
    """A missing directory is created with its parents and the directory of images, and nothing else."""
    out = tmp_path / "runs" / "ä cat"
    run_dir = RunDir(out)
    run_dir.lock()
    assert [path.name for path in out.iterdir()] == [IMAGES]
    assert run_dir.ledger == out / LEDGER
    run_dir.unlock()


def test_one_owner_at_a_time(tmp_path: Path) -> None:
    """A second lock in the same process is refused until the first is released. Releasing twice does no harm."""
    first, second = RunDir(tmp_path / "out"), RunDir(tmp_path / ".." / tmp_path.name / "out")
    first.lock()
    with pytest.raises(RunDirError, match="another Engine of this process is using it; close it"):
        second.lock()
    first.unlock()
    first.unlock()
    second.lock()
    second.unlock()


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    """A directory that another process has locked is refused. After that process is killed, it is free."""
    holder = subprocess.Popen(
        [sys.executable, "-c", LOCK_SCRIPT, tmp_path], stdout=subprocess.PIPE, text=True, env=clean_environment()
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "locked\n"
    run_dir = RunDir(tmp_path)
    with pytest.raises(RunDirError, match="another krea-batch"):
        run_dir.lock()
    holder.kill()
    holder.communicate()
    run_dir.lock()
    run_dir.unlock()


@pytest.mark.parametrize(
    ("path", "file"),
    [("out", "out"), ("out", f"out/{IMAGES}"), ("file/out", "file")],
    ids=["a file", "images is a file", "a parent is a file"],
)
def test_a_file_instead_of_a_directory(tmp_path: Path, path: str, file: str) -> None:
    """If a file prevents the directory, the error has the path and the reason, and the file is unchanged."""
    foreign = tmp_path / file
    foreign.parent.mkdir(exist_ok=True)
    foreign.write_text("mine")
    with pytest.raises(RunDirError, match="cannot use") as caught:
        RunDir(tmp_path / path).lock()
    assert caught.value.path == tmp_path / path
    assert foreign.read_text() == "mine"


def test_a_directory_without_a_run(tmp_path: Path) -> None:
    """`require_run` raises for a directory without a ledger, and accepts one with a ledger."""
    with pytest.raises(RunDirError, match="not a run directory"):
        require_run(tmp_path)
    (tmp_path / LEDGER).touch()
    require_run(tmp_path)


def test_a_forked_child_keeps_no_lock(tmp_path: Path) -> None:
    """A process that was forked while an engine ran does not keep the directory locked after its parent has ended."""
    with subprocess.Popen(
        [sys.executable, "-c", FORK_SCRIPT, tmp_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=clean_environment(),
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        assert parent.stdout.readline() == "forked\n"
        parent.wait()
        try:
            run_dir = RunDir(tmp_path)
            run_dir.lock()
            run_dir.unlock()
        finally:
            parent.stdin.close()  # ends the child
            assert parent.stdout.read() == ""


def test_the_parent_of_a_fork_keeps_its_lock(tmp_path: Path) -> None:
    """A forked child gives up its copy of the lock only: the directory stays locked, and the child may unlock it."""
    run_dir = RunDir(tmp_path)
    run_dir.lock()
    child = os.fork()
    if child == 0:
        run_dir.unlock()
        os._exit(0 if is_locked(tmp_path) else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert is_locked(tmp_path)
    run_dir.unlock()
    assert not is_locked(tmp_path)


NO_LOCKS = [errno.EBADF, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL]


@pytest.mark.parametrize("code", NO_LOCKS, ids=errno.errorcode.get)
def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """Where directories cannot be locked, the run does not start, and the error says so and where it would work."""

    def fail(*_: int) -> NoReturn:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", fail)
    run_dir = RunDir(tmp_path / "out")
    with pytest.raises(RunDirError, match=f"cannot be locked.*{os.strerror(code)}.*local disk"):
        run_dir.lock()
    assert not is_locked(tmp_path)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red kite\n")
    result = CliRunner().invoke(app, ["run", str(prompts), "--out", str(tmp_path / "out"), "--simulate"])
    assert isinstance(result.exception, RunDirError)
    assert "another krea-batch" not in str(result.exception)
    assert not (tmp_path / "out" / LEDGER).exists()


def test_whether_a_run_directory_has_images(tmp_path: Path) -> None:
    """Only a run directory with something in images/ has images."""
    assert not has_images(tmp_path)
    (tmp_path / IMAGES).mkdir()
    assert not has_images(tmp_path)
    (tmp_path / IMAGES / "animals").mkdir()
    assert has_images(tmp_path)


def test_what_cannot_be_read_may_have_images(tmp_path: Path) -> None:
    """If images/ cannot be listed, it counts as having images, so that none of them is paid for again."""
    (tmp_path / IMAGES).touch()
    assert has_images(tmp_path)
