"""Outcomes go in; `results.jsonl` is read back."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from krea_batch.jobs import ErrorInfo, Outcome, State, StoredFile
from krea_batch.storage.results_file import RESULTS, ResultsFile, encode_row

ROW_FIELDS = [  # docs/reference/files.md
    "id", "status", "request_id", "files", "error", "request", "metadata", "polls", "attempts",
    "submitted_at", "accepted_at", "finished_at", "stored_at",
]  # fmt: skip


def outcome(job_id: str = "a", **fields: Any) -> Outcome:
    known: dict[str, Any] = {
        "status": State.SUCCEEDED, "request_id": "r-1", "error": None, "request": {"prompt": "a cat"}, "metadata": {},
        "files": (StoredFile("images/a.png", 10, "0" * 64, 4, 3, "image/png"),), "polls": 2, "attempts": 1,
        "submitted_at": "2026-03-31T10:00:00.000Z", "accepted_at": None, "finished_at": None, "stored_at": None,
    }  # fmt: skip
    return Outcome(id=job_id, **(known | fields))


async def groups(*ids: list[str]) -> AsyncIterator[list[Outcome]]:
    for group in ids:
        yield [outcome(job_id) for job_id in group]


def ids_in(out: Path) -> list[str]:
    return [orjson.loads(line)["id"] for line in (out / RESULTS).read_bytes().splitlines()]


@pytest.fixture
def disk() -> Iterator[Executor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def with_results(out: Path, disk: Executor, use: Callable[[ResultsFile], Coroutine[Any, Any, None]]) -> list[OSError]:
    """Work on the results of a folder; returns what the disk said of it."""
    disk_error: list[OSError] = []

    async def main() -> None:
        results = ResultsFile(out, disk, disk_error.append)
        await use(results)
        await results.close()

    asyncio.run(main())
    return disk_error


def test_a_row_has_the_fields_of_the_design_in_their_order() -> None:
    """One line, the thirteen fields, and of a file its six."""
    line = encode_row(outcome(error=ErrorInfo("kind", "why")))
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    fields = orjson.loads(line)
    assert list(fields) == ROW_FIELDS
    assert list(fields["files"][0]) == ["path", "bytes", "sha256", "width", "height", "media_type"]
    assert fields["error"] == {"kind": "kind", "message": "why"}


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.text(), st.dictionaries(st.text(), values, max_size=4))
def test_any_text_is_one_line(prompt: str, metadata: dict[str, Any]) -> None:
    """Prompts and metadata with line ends, NULs, emoji or numbers of any size come back as they were."""
    import json

    line = encode_row(outcome(request={"prompt": prompt}, metadata=metadata))
    assert len(line.splitlines()) == 1 or b"\n" not in line[:-1]
    fields = json.loads(line)
    assert fields["request"]["prompt"] == prompt
    assert fields["metadata"] == metadata


def test_rows_come_in_their_order(tmp_path: Path, disk: Executor) -> None:
    """Rows appended while the disk is busy are written together afterwards, each once, in their order."""

    async def work(results: ResultsFile) -> None:
        for n in range(500):
            results.append(outcome(str(n)))
            if n % 50 == 0:
                await asyncio.sleep(0)

    assert with_results(tmp_path, disk, work) == []
    assert ids_in(tmp_path) == [str(n) for n in range(500)]


def test_after_a_rewrite_each_id_appears_once(tmp_path: Path, disk: Executor) -> None:
    """Whatever stood there, a torn last line included, the new file is what the ledger says; nothing else stays."""
    (tmp_path / RESULTS).write_bytes(encode_row(outcome("old")) + encode_row(outcome("a")) + b'{"id": "torn')
    (tmp_path / "results.jsonl.part").write_bytes(b"of a process that died here")

    async def work(results: ResultsFile) -> None:
        results.append(outcome("b"))
        await results.rewrite(groups(["a", "b"], [], ["c"]))

    assert with_results(tmp_path, disk, work) == []
    assert ids_in(tmp_path) == ["a", "b", "c"]
    assert [path.name for path in tmp_path.iterdir()] == [RESULTS]


def test_rows_that_will_not_change_stay_as_they_are(tmp_path: Path, disk: Executor) -> None:
    """So many first bytes are those of the old file; the rows behind them are given again."""
    old = b"not even looked at\n"
    (tmp_path / RESULTS).write_bytes(old + encode_row(outcome("b")) + b'{"id": "torn')

    async def work(results: ResultsFile) -> None:
        results.append(outcome("c"))
        await results.rewrite(groups(["b"], ["c"]), keep_bytes=len(old))

    assert with_results(tmp_path, disk, work) == []
    assert (tmp_path / RESULTS).read_bytes() == old + encode_row(outcome("b")) + encode_row(outcome("c"))


def test_a_file_that_lost_rows_is_not_complete(tmp_path: Path, disk: Executor) -> None:
    """Where fewer bytes are there than were to stay, the old file does."""
    (tmp_path / RESULTS).write_bytes(b"short")

    async def work(results: ResultsFile) -> None:
        with pytest.raises(OSError, match="the file was truncated while it was copied"):
            await results.rewrite(groups(["b"]), keep_bytes=6)

    assert with_results(tmp_path, disk, work) == []
    assert (tmp_path / RESULTS).read_bytes() == b"short"


def test_rows_that_arrive_during_a_rewrite_are_appended(tmp_path: Path, disk: Executor) -> None:
    """What ends meanwhile is in the new file, once; what had ended before the hold is not put there again."""
    (tmp_path / RESULTS).write_bytes(encode_row(outcome("old")))

    async def slow_rows(results: ResultsFile) -> AsyncIterator[list[Outcome]]:
        yield [outcome("a"), outcome("b")]
        results.append(outcome("d"))
        await asyncio.sleep(0.01)
        assert ids_in(tmp_path)[0] == "old"
        yield [outcome("c")]

    async def work(results: ResultsFile) -> None:
        results.append(outcome("b"))
        results.buffer()
        results.append(outcome("e"))
        await results.rewrite(slow_rows(results))
        results.append(outcome("f"))

    assert with_results(tmp_path, disk, work) == []
    assert ids_in(tmp_path) == ["a", "b", "c", "e", "d", "f"]


def test_rows_that_arrive_during_a_failed_rewrite_are_not_lost(tmp_path: Path, disk: Executor) -> None:
    """They go to the old file, which stays; and the next time, nothing is given twice."""
    (tmp_path / RESULTS).write_bytes(encode_row(outcome("old")))

    async def endless_rows() -> AsyncIterator[list[Outcome]]:
        yield [outcome("old")]
        await asyncio.sleep(3600)

    async def work(results: ResultsFile) -> None:
        rewriting = asyncio.create_task(results.rewrite(endless_rows()))
        await asyncio.sleep(0.01)
        results.append(outcome("a"))
        rewriting.cancel()
        await asyncio.wait([rewriting])
        while results._writing is not None:
            await asyncio.sleep(0.001)
        assert ids_in(tmp_path) == ["old", "a"]
        results.append(outcome("b"))
        await results.rewrite(groups(["old", "a", "b"]))

    assert with_results(tmp_path, disk, work) == []
    assert ids_in(tmp_path) == ["old", "a", "b"]


def test_the_old_file_stays_until_the_new_one_is_complete(tmp_path: Path, disk: Executor) -> None:
    """Where writing again breaks off, the old file is as it was."""
    old = encode_row(outcome("old"))
    (tmp_path / RESULTS).write_bytes(old)

    async def failing_rows() -> AsyncIterator[list[Outcome]]:
        yield [outcome("a")]
        raise OSError(errno.EIO, "Input/output error")

    async def work(results: ResultsFile) -> None:
        with pytest.raises(OSError, match="Input/output"):
            await results.rewrite(failing_rows())

    assert with_results(tmp_path, disk, work) == []
    assert (tmp_path / RESULTS).read_bytes() == old


def test_a_disk_failure_is_reported(tmp_path: Path, disk: Executor) -> None:
    """A row that cannot be written is told once, as what the disk said; it is not raised into the engine."""
    (tmp_path / RESULTS).mkdir()

    async def work(results: ResultsFile) -> None:
        results.append(outcome())

    (error,) = with_results(tmp_path, disk, work)
    assert error.errno == errno.EISDIR


def test_symbolic_links_are_not_followed(tmp_path: Path, disk: Executor) -> None:
    """A link in place of the file, or of its part, does not lead a row or a truncation elsewhere."""
    theirs = tmp_path / "theirs"
    theirs.write_text("mine")
    (tmp_path / RESULTS).symlink_to(theirs)
    (tmp_path / "results.jsonl.part").symlink_to(theirs)

    async def append(results: ResultsFile) -> None:
        results.append(outcome())

    async def rewrite(results: ResultsFile) -> None:
        await results.rewrite(groups(["a"]))

    (error,) = with_results(tmp_path, disk, append)
    assert error.errno == errno.ELOOP
    assert with_results(tmp_path, disk, rewrite) == []
    assert ids_in(tmp_path) == ["a"]
    assert not (tmp_path / RESULTS).is_symlink()
    assert theirs.read_text() == "mine"
