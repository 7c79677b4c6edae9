"""`ResultsFile` appends and rewrites results.jsonl without losing, repeating or tearing a row."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from krea_batch.jobs import ErrorInfo, Outcome, State, StoredFile
from krea_batch.storage import results_file
from krea_batch.storage.atomic import open_for_writing
from krea_batch.storage.results_file import ResultsFile, encode_row
from krea_batch.storage.run_dir import RESULTS

ROW_FIELDS = [  # docs/reference/files.md
    "id", "status", "request_id", "files", "error", "request", "metadata", "polls", "attempts",
    "submitted_at", "accepted_at", "finished_at", "stored_at",
]  # fmt: skip


def outcome(job_id: str = "a", **fields: Any) -> Outcome:
    defaults: dict[str, Any] = {
        "status": State.SUCCEEDED, "request_id": "r-1", "error": None, "request": {"prompt": "a cat"}, "metadata": {},
        "files": (StoredFile("images/a.png", 10, "0" * 64, 4, 3, "image/png"),), "polls": 2, "attempts": 1,
        "submitted_at": "2026-03-31T10:00:00.000Z", "accepted_at": None, "finished_at": None, "stored_at": None,
    }  # fmt: skip
    return Outcome(id=job_id, **(defaults | fields))


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
    """Use the results file of a run directory, and return the errors that it reported."""
    disk_errors: list[OSError] = []

    async def main() -> None:
        results = ResultsFile(out, disk, disk_errors.append)
        await use(results)
        await results.close()

    asyncio.run(main())
    return disk_errors


def test_a_row_has_the_documented_fields_in_order() -> None:
    """A row is one line with the thirteen fields of a job, and the six of each file."""
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
    """Prompts and metadata with line breaks, NULs, emoji or numbers of any size are read back unchanged."""
    import json

    line = encode_row(outcome(request={"prompt": prompt}, metadata=metadata))
    assert len(line.splitlines()) == 1 or b"\n" not in line[:-1]
    fields = json.loads(line)
    assert fields["request"]["prompt"] == prompt
    assert fields["metadata"] == metadata


def test_rows_are_appended_in_order(tmp_path: Path, disk: Executor) -> None:
    """Rows appended while the disk is busy are written together afterwards, each once, in order."""

    async def use(results: ResultsFile) -> None:
        for n in range(500):
            results.append(outcome(str(n)))
            if n % 50 == 0:
                await asyncio.sleep(0)

    assert with_results(tmp_path, disk, use) == []
    assert ids_in(tmp_path) == [str(n) for n in range(500)]


def test_after_a_rewrite_each_id_appears_once(tmp_path: Path, disk: Executor) -> None:
    """A rewrite replaces the whole file, also a torn last line, by the given rows, and leaves no other file."""
    (tmp_path / RESULTS).write_bytes(encode_row(outcome("old")) + encode_row(outcome("a")) + b'{"id": "torn')
    (tmp_path / "results.jsonl.part").write_bytes(b"left by a killed process")

    async def use(results: ResultsFile) -> None:
        results.append(outcome("b"))
        await results.rewrite(groups(["a", "b"], [], ["c"]))

    assert with_results(tmp_path, disk, use) == []
    assert ids_in(tmp_path) == ["a", "b", "c"]
    assert [path.name for path in tmp_path.iterdir()] == [RESULTS]


def test_a_rewrite_can_keep_the_first_bytes(tmp_path: Path, disk: Executor) -> None:
    """The first `keep_bytes` are copied from the old file; the rows after them are written again."""
    old = b"not read\n"
    (tmp_path / RESULTS).write_bytes(old + encode_row(outcome("b")) + b'{"id": "torn')

    async def use(results: ResultsFile) -> None:
        results.append(outcome("c"))
        await results.rewrite(groups(["b"], ["c"]), keep_bytes=len(old))

    assert with_results(tmp_path, disk, use) == []
    assert (tmp_path / RESULTS).read_bytes() == old + encode_row(outcome("b")) + encode_row(outcome("c"))


def test_a_file_that_was_truncated_is_not_copied(tmp_path: Path, disk: Executor) -> None:
    """If the old file is shorter than `keep_bytes`, the rewrite raises OSError and the old file stays."""
    (tmp_path / RESULTS).write_bytes(b"short")

    async def use(results: ResultsFile) -> None:
        with pytest.raises(OSError, match="the file was truncated while it was copied"):
            await results.rewrite(groups(["b"]), keep_bytes=6)

    assert with_results(tmp_path, disk, use) == []
    assert (tmp_path / RESULTS).read_bytes() == b"short"


def test_rows_that_arrive_during_a_rewrite_are_appended(tmp_path: Path, disk: Executor) -> None:
    """Rows appended after `buffer` are in the new file once; rows appended before it are not repeated."""
    (tmp_path / RESULTS).write_bytes(encode_row(outcome("old")))

    async def slow_rows(results: ResultsFile) -> AsyncIterator[list[Outcome]]:
        yield [outcome("a"), outcome("b")]
        results.append(outcome("d"))
        await asyncio.sleep(0.01)
        assert ids_in(tmp_path)[0] == "old"
        yield [outcome("c")]

    async def use(results: ResultsFile) -> None:
        results.append(outcome("b"))
        results.buffer()
        results.append(outcome("e"))
        await results.rewrite(slow_rows(results))
        results.append(outcome("f"))

    assert with_results(tmp_path, disk, use) == []
    assert ids_in(tmp_path) == ["a", "b", "c", "e", "d", "f"]


def test_rows_that_arrive_during_a_failed_rewrite_are_not_lost(tmp_path: Path, disk: Executor) -> None:
    """They are appended to the old file, which stays, and the next rewrite repeats none of them."""
    (tmp_path / RESULTS).write_bytes(encode_row(outcome("old")))

    async def endless_rows() -> AsyncIterator[list[Outcome]]:
        yield [outcome("old")]
        await asyncio.sleep(3600)

    async def use(results: ResultsFile) -> None:
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

    assert with_results(tmp_path, disk, use) == []
    assert ids_in(tmp_path) == ["old", "a", "b"]


def test_the_old_file_stays_until_the_new_one_is_complete(tmp_path: Path, disk: Executor) -> None:
    """If a rewrite fails, the old file is unchanged."""
    old = encode_row(outcome("old"))
    (tmp_path / RESULTS).write_bytes(old)

    async def failing_rows() -> AsyncIterator[list[Outcome]]:
        yield [outcome("a")]
        raise OSError(errno.EIO, "Input/output error")

    async def use(results: ResultsFile) -> None:
        with pytest.raises(OSError, match="Input/output"):
            await results.rewrite(failing_rows())

    assert with_results(tmp_path, disk, use) == []
    assert (tmp_path / RESULTS).read_bytes() == old


def test_a_disk_failure_is_reported(tmp_path: Path, disk: Executor) -> None:
    """A row that cannot be written is reported once, with the OSError. Nothing is raised."""
    (tmp_path / RESULTS).mkdir()

    async def use(results: ResultsFile) -> None:
        results.append(outcome())

    (error,) = with_results(tmp_path, disk, use)
    assert error.errno == errno.EISDIR


@pytest.mark.parametrize("failures", [1, 3])
def test_too_many_open_files_are_waited_for(
    tmp_path: Path, disk: Executor, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    """While too many files are open, rows wait, in order, and no error is reported."""
    left = [errno.EMFILE] * failures
    written = threading.Event()

    def fail_at_first(path: Path, flags: int = 0) -> int:
        if left:
            raise OSError(left[0], os.strerror(left.pop()))
        written.set()
        return open_for_writing(path, flags)

    async def use(results: ResultsFile) -> None:
        results.append(outcome("a"))
        results.append(outcome("b"))
        await asyncio.to_thread(written.wait)

    monkeypatch.setattr(results_file, "open_for_writing", fail_at_first)
    monkeypatch.setattr(results_file, "RETRY_INTERVAL_S", 0.0)
    monkeypatch.setattr(results_file, "APPEND_INTERVAL_S", 0.0)
    assert with_results(tmp_path, disk, use) == []
    assert (tmp_path / RESULTS).read_bytes() == encode_row(outcome("a")) + encode_row(outcome("b"))


def test_closing_does_not_wait_for_open_files_forever(
    tmp_path: Path, disk: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If too many files are still open at the end, that is reported."""

    def fail(*_: object) -> NoReturn:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async def use(results: ResultsFile) -> None:
        results.append(outcome("a"))

    monkeypatch.setattr(results_file, "open_for_writing", fail)
    (error,) = with_results(tmp_path, disk, use)
    assert error.errno == errno.EMFILE


def test_symbolic_links_are_not_followed(tmp_path: Path, disk: Executor) -> None:
    """A symbolic link at the path of the file or of its part file is not followed; its target is not changed."""
    target = tmp_path / "target"
    target.write_text("mine")
    (tmp_path / RESULTS).symlink_to(target)
    (tmp_path / "results.jsonl.part").symlink_to(target)

    async def append(results: ResultsFile) -> None:
        results.append(outcome())

    async def rewrite(results: ResultsFile) -> None:
        await results.rewrite(groups(["a"]))

    (error,) = with_results(tmp_path, disk, append)
    assert error.errno == errno.ELOOP
    assert with_results(tmp_path, disk, rewrite) == []
    assert ids_in(tmp_path) == ["a"]
    assert not (tmp_path / RESULTS).is_symlink()
    assert target.read_text() == "mine"
