"""`--ids-from` names exactly the jobs whose ids are in the file: no id is changed into that of another job."""

from __future__ import annotations

import zipfile
from functools import partial
from hashlib import sha256
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from krea_batch.cli.app import app
from krea_batch.cli.options.job_id_file import read_ids
from krea_batch.errors import InputError, RunDirError
from krea_batch.jobs import ErrorInfo, State, check_id
from krea_batch.ledger.sqlite import SqliteLedger
from tests.engine_fixtures import ledger_states, query_ledger
from tests.processes import run_command

BODY = b'{"prompt":"a"}'
AWKWARD_IDS = (
    "cat", " cat", "cat ", "\u2028cat", "a\u2028b", "a", "b", "a\u2029b", "\ufeffcat", "\u00a0", " ", "é",
    "=1+1", "-", "#cat", '"cat"', "🦊",
)  # fmt: skip
"""Ids that a careless reader would confuse with each other."""


def make_failed_run(out: Path, *ids: str) -> Path:
    """Write a ledger in which each of these jobs has failed."""
    out.mkdir(exist_ok=True)
    store = SqliteLedger.open(out / "ledger.db")

    def insert(store: SqliteLedger, job_id: str) -> None:
        job_no = store.record_intent(job_id, BODY, sha256(BODY).digest(), b"{}", 1.0, "")
        store.mark_rejected(job_no, ErrorInfo("http_400", "no"), 2.0)

    for job_id in ids:
        store.transaction(partial(insert, job_id=job_id))
    store.close()
    return out


def ids_in(tmp_path: Path, data: bytes) -> list[str] | None:
    (tmp_path / "ids").write_bytes(data)
    return read_ids(str(tmp_path / "ids"), tmp_path / "out")


@pytest.mark.parametrize("job_id", AWKWARD_IDS)
@pytest.mark.parametrize("newline", ["\n", "\r\n", ""])
def test_an_awkward_id_is_that_job(tmp_path: Path, job_id: str, newline: str) -> None:
    """A line is the id of exactly that job, with any kind of line end, or none at the end of the file."""
    check_id(job_id)
    make_failed_run(tmp_path / "out", *AWKWARD_IDS)
    assert ids_in(tmp_path, f"{job_id}{newline}".encode()) == [job_id]


@pytest.mark.parametrize(
    "data", [b" cat\n", b"cat \n", b"CAT\n", b"a\xe2\x80\xa8b\n", b"\xef\xbb\xbfcat\ndog\xef\xbb\xbf\n"]
)
def test_a_changed_id_is_an_error(tmp_path: Path, data: bytes) -> None:
    """An id with another space, case or line separator is not taken for that of another job."""
    make_failed_run(tmp_path / "out", "cat", "a", "b", "dog")
    with pytest.raises(InputError, match=r"ids:\d: the job .* is not in this run; write one id per line, exactly"):
        ids_in(tmp_path, data)


def test_what_belongs_to_the_file(tmp_path: Path) -> None:
    """CRLF line ends, a byte order mark at the start and empty lines belong to the file, unless an id has them."""
    make_failed_run(tmp_path / "out", "cat", "dog")
    assert ids_in(tmp_path, b"\xef\xbb\xbfcat\r\n\r\n\ndog\r\n") == ["cat", "dog"]
    make_failed_run(tmp_path / "out", "\ufeffcat")
    assert ids_in(tmp_path, b"\xef\xbb\xbfcat\r\ndog\r\n") == ["\ufeffcat", "dog"]


def test_a_carriage_return_of_an_id(tmp_path: Path) -> None:
    """An id that ends with a carriage return, in a ledger that has such ids, is matched exactly."""
    make_failed_run(tmp_path / "out", "cat", "cat\r")
    assert ids_in(tmp_path, b"cat\r\n") == ["cat\r"]
    assert ids_in(tmp_path, b"cat\n") == ["cat"]


def test_many_ids(tmp_path: Path) -> None:
    """Thousands of ids are read in their order."""
    ids = [f"job {n}" for n in range(2000)]
    make_failed_run(tmp_path / "out", *ids)
    assert ids_in(tmp_path, "\n".join(reversed(ids)).encode()) == ids[::-1]


@pytest.mark.parametrize(
    ("data", "problem"), [(b"", "no ids found"), (b"\n\r\n", "no ids"), (b"\xff\n", "not UTF-8")]
)
def test_files_without_ids(tmp_path: Path, data: bytes, problem: str) -> None:
    """An empty file, and one that is not UTF-8, is an error."""
    make_failed_run(tmp_path / "out", "cat")
    with pytest.raises(InputError, match=problem):
        ids_in(tmp_path, data)


def test_no_run(tmp_path: Path) -> None:
    """Without a run directory, that is the error."""
    with pytest.raises(RunDirError, match="not a run directory"):
        read_ids("ids", tmp_path)


def is_valid_id(job_id: str) -> bool:
    try:
        check_id(job_id)
    except ValueError:
        return False
    return True


VALID_IDS = st.text(min_size=1, max_size=8).filter(is_valid_id)


@settings(max_examples=60, deadline=None)
@given(ids=st.lists(VALID_IDS, min_size=1, max_size=6, unique=True))
def test_every_list_of_ids_survives(tmp_path_factory: pytest.TempPathFactory, ids: list[str]) -> None:
    """What the gallery page saves, each id and a newline, is read as the same ids."""
    folder = tmp_path_factory.mktemp("ids")
    make_failed_run(folder / "out", *ids)
    assert ids_in(folder, "".join(f"{job_id}\n" for job_id in ids).encode()) == ids


def test_an_unknown_id_spends_nothing(tmp_path: Path) -> None:
    """With one unknown id, `retry` exits with 2 and no job has changed, though other ids are known."""
    out = make_failed_run(tmp_path / "out", "cat", "dog")
    (tmp_path / "ids").write_text("dog\n cat\n")
    done = CliRunner().invoke(
        app,
        ["retry", str(out), "--ids-from", str(tmp_path / "ids"), "--yes", "--gateway", "http://127.0.0.1:9"],
        env={"PIXAZO_API_KEY": "k"},
    )
    assert isinstance(done.exception, InputError)
    assert "' cat'" in str(done.exception)
    assert set(ledger_states(out).values()) == {State.REJECTED}
    assert query_ledger(out, "SELECT count(*) FROM submissions") == [(2,)]


@pytest.mark.slow
def test_retry_pays_for_exactly_these(tmp_path: Path) -> None:
    """`retry --ids-from` submits the jobs with the ids of the file, and not those that resemble them."""
    out = make_failed_run(tmp_path / "out", "cat", " cat", "a\u2028b", "a", "b")
    options = ("--simulate", "--time-scale=100", "--poll-interval=0.1", "-q")
    stdin = " cat\na\u2028b\n".encode()
    done = run_command("retry", out, "--ids-from=-", *options, cwd=tmp_path, stdin=stdin)
    assert done.returncode == 1, done.stderr
    assert ledger_states(out) == {
        "cat": "rejected", " cat": "succeeded", "a\u2028b": "succeeded", "a": "rejected", "b": "rejected",
    }  # fmt: skip
    (tmp_path / "ids").write_text("a\u2028b\n", "utf-8")
    done = run_command("export", out, "--format=zip", "-o", "x.zip", "--ids-from", "ids", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(tmp_path / "x.zip") as file:
        assert len(file.namelist()) == 2
