"""`RunDir` creates and locks the run directory for one process, or raises with the reason."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from krea_batch.errors import RunDirError
from krea_batch.storage.run_dir import IMAGES, LEDGER, RunDir, require_run
from tests.processes import clean_environment

LOCK_SCRIPT = """
import sys, time
from pathlib import Path
from krea_batch.storage.run_dir import RunDir
RunDir(Path(sys.argv[1])).lock()
print("locked", flush=True)
time.sleep(60)
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
    first, second = RunDir(tmp_path / "out"), RunDir(tmp_path / "out")
    first.lock()
    with pytest.raises(RunDirError, match="another krea-batch is using it"):
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
