"""The star ratings of a run, kept in a file that is only appended to."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from krea_batch.errors import InputError
from krea_batch.storage.ratings import append_ratings, read_ratings
from krea_batch.storage.run_dir import RATINGS


def test_the_last_rating_counts(tmp_path: Path) -> None:
    """A rating can be changed and removed."""
    assert read_ratings(tmp_path) == {}
    append_ratings(tmp_path, ["a", "b", "c"], 5)
    append_ratings(tmp_path, ["b"], 2)
    append_ratings(tmp_path, ["c"], None)
    assert read_ratings(tmp_path) == {"a": 5, "b": 2}


def test_a_line_that_a_kill_has_cut(tmp_path: Path) -> None:
    """A cut line is skipped, and the next rating does not become a part of it."""
    append_ratings(tmp_path, ["a"], 5)
    with (tmp_path / RATINGS).open("ab") as file:
        file.write(b'{"id":"b","rat')
    assert read_ratings(tmp_path) == {"a": 5}
    append_ratings(tmp_path, ["c"], 1)
    assert read_ratings(tmp_path) == {"a": 5, "c": 1}


FULL_DISK = """
import resource, sys
from pathlib import Path
from krea_batch.storage.ratings import append_ratings

resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
append_ratings(Path(sys.argv[1]), [f"job-{n}" for n in range(20)], 5)
"""


def test_a_full_disk(tmp_path: Path) -> None:
    """Ratings that fit only in part are an error, not a loss that nothing shows."""
    done = subprocess.run([sys.executable, "-c", FULL_DISK, tmp_path], capture_output=True, text=True)
    assert "OSError: [Errno 27] File too large" in done.stderr
    assert read_ratings(tmp_path) == {"job-0": 5, "job-1": 5, "job-2": 5}


@pytest.mark.parametrize(
    "line", ['{"id":"a","rating":6}', '{"id":"a","rating":0}', '{"id":1,"rating":1}', "x", "\xff"]
)
def test_lines_that_are_no_ratings(line: str, tmp_path: Path) -> None:
    """What is no rating from 1 to 5 is skipped."""
    (tmp_path / RATINGS).write_bytes(line.encode("latin-1") + b'\n{"id":"b","rating":3}\n')
    assert read_ratings(tmp_path) == {"b": 3}


def test_a_foreign_file(tmp_path: Path) -> None:
    """Nothing is appended to a file of something else, or through a link."""
    (tmp_path / RATINGS).write_text("a letter to a friend\n")
    with pytest.raises(InputError, match="is no ratings file of krea-batch"):
        append_ratings(tmp_path, ["a"], 5)
    (tmp_path / RATINGS).rename(tmp_path / "letter")
    (tmp_path / RATINGS).symlink_to(tmp_path / "letter")
    with pytest.raises(OSError, match="symbolic links"):
        append_ratings(tmp_path, ["a"], 5)
    assert (tmp_path / "letter").read_text() == "a letter to a friend\n"
