"""A path goes in; the folder is made and held by one, or refused with the reason."""

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
print("held", flush=True)
time.sleep(60)
"""


def test_it_is_made_with_its_parents(tmp_path: Path) -> None:
    """A folder that is not there is made, with the one for images; nothing else."""
    out = tmp_path / "runs" / "ä cat"
    folder = RunDir(out)
    folder.lock()
    assert [path.name for path in out.iterdir()] == [IMAGES]
    assert folder.ledger == out / LEDGER
    folder.unlock()


def test_one_process_locks_it(tmp_path: Path) -> None:
    """In one process, too, the second is refused until the first lets go; letting go twice does no harm."""
    first, second = RunDir(tmp_path / "out"), RunDir(tmp_path / "out")
    first.lock()
    with pytest.raises(RunDirError, match="another krea-batch is using it"):
        second.lock()
    first.unlock()
    first.unlock()
    second.lock()
    second.unlock()


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    """While another process has the folder it is refused; when that is killed, it is free."""
    holder = subprocess.Popen(
        [sys.executable, "-c", LOCK_SCRIPT, tmp_path], stdout=subprocess.PIPE, text=True, env=clean_environment()
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    folder = RunDir(tmp_path)
    with pytest.raises(RunDirError, match="another krea-batch"):
        folder.lock()
    holder.kill()
    holder.communicate()
    folder.lock()
    folder.unlock()


@pytest.mark.parametrize("there", ["out", f"out/{IMAGES}", "."], ids=["a file", "images is a file", "a file above"])
def test_what_is_no_folder(tmp_path: Path, there: str) -> None:
    """Where a file is in the way, the error names the path and the reason, and nothing is left behind."""
    out = tmp_path / "out" if there != "." else tmp_path / "file" / "out"
    in_the_way = tmp_path / there if there != "." else tmp_path / "file"
    in_the_way.parent.mkdir(exist_ok=True)
    in_the_way.write_text("mine")
    with pytest.raises(RunDirError, match="cannot use") as caught:
        RunDir(out).lock()
    assert caught.value.path == out
    assert in_the_way.read_text() == "mine"


def test_where_there_is_no_run(tmp_path: Path) -> None:
    """A folder without a ledger holds no run, and is told so; one with a ledger does."""
    with pytest.raises(RunDirError, match="not a run directory"):
        require_run(tmp_path)
    (tmp_path / LEDGER).touch()
    require_run(tmp_path)
