"""Tests of marks in job files: what a run has on record, the next one need not look at again."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import pytest

from krea_batch import Engine, InputError, Job
from krea_batch.gateway import wire
from krea_batch.ledger import LedgerStore
from krea_batch.pipeline import producer
from krea_batch.sources import InputOptions, JobFiles, check
from krea_batch.sources.checkpoint import Checkpoint
from krea_batch.sources.formats import line_file
from krea_batch.sources.inputs import Row
from krea_batch.sources.parser import RowParser
from krea_batch.testing.scripted_gateway import ScriptedGateway
from tests.engine_fixtures import query_ledger, statuses
from tests.virtual_time_runs import run_until_killed, run_virtual

BLOCK_BYTES = 200  # four lines or so

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_file, "BLOCK_BYTES", BLOCK_BYTES)
    monkeypatch.setattr(producer, "BATCH", 7)


def written(path: Path, begin: int, end: int, how: str = "w") -> str:
    """A job file with these jobs, or one that has grown by them."""
    text = "".join(json.dumps({"prompt": f"picture {n}", "metadata": {"row": n}}) + "\n" for n in range(begin, end))
    with path.open(how) as file:
        file.write(text)
    return str(path)


def marked(*paths: str, keep_extra: bool = False) -> bytes:
    """The mark of files that have been read to their end."""
    with JobFiles(paths, reading=InputOptions(keep_extra=keep_extra)) as files:
        files.check()
        list(files)
        mark = files.checkpoint()
    assert mark
    return mark[1]


def passed(bookmark: bytes, *paths: str, keep_extra: bool = False) -> tuple[int, int]:
    """How many jobs the mark spares, and how many are left."""
    with JobFiles(paths, reading=InputOptions(keep_extra=keep_extra)) as files:
        files.resume_from(bookmark)
        checked = files.check()
        left = list(files)
    assert files.skipped + len(left) == checked.jobs
    return files.skipped, len(left)


class TestWhatFits:
    def test_the_same_file(self, tmp_path: Path) -> None:
        """Read to its end and unchanged, no job is left."""
        jobs = written(tmp_path / "jobs.jsonl", 0, 50)
        assert passed(marked(jobs), jobs) == (50, 0)

    def test_a_file_that_has_grown(self, tmp_path: Path) -> None:
        """The new lines are left, and have the ids they would have had."""
        jobs = written(tmp_path / "jobs.jsonl", 0, 50)
        bookmark = marked(jobs)
        written(tmp_path / "jobs.jsonl", 50, 60, "a")
        assert passed(bookmark, jobs) == (50, 10)
        with JobFiles([jobs]) as files:
            files.resume_from(bookmark)
            files.check()
            assert [job.id for job in files] == [f"{n:05}" for n in range(51, 61)]

    def test_another_file_behind_it(self, tmp_path: Path) -> None:
        """A file more changes nothing of those before it; marks go on over files."""
        first, second = written(tmp_path / "a.jsonl", 0, 20), written(tmp_path / "b.jsonl", 20, 50)
        assert passed(marked(first), first, second) == (20, 30)
        assert passed(marked(first, second), first, second) == (50, 0)

    @pytest.mark.parametrize("form", ["gzip", "BOM", "CRLF", "blank lines", "no last newline"])
    def test_files_of_any_form(self, tmp_path: Path, form: str) -> None:
        """What the mark counts is the text, however it is packed."""
        path = tmp_path / "jobs.jsonl"
        text = Path(written(path, 0, 30)).read_bytes()
        left = 0
        match form:
            case "gzip":
                path.write_bytes(gzip.compress(text))
            case "BOM":
                path.write_bytes(b"\xef\xbb\xbf" + text)
            case "CRLF":
                path.write_bytes(text.replace(b"\n", b"\r\n"))
            case "blank lines":
                path.write_bytes(text.replace(b"\n", b"\n\n"))
            case _:
                path.write_bytes(text[:-1])
                left = 30 - Checkpoint.decode(marked(str(path))).jobs  # type: ignore[union-attr]
                assert 0 < left <= 6, "the lines of the last block"
        assert passed(marked(str(path)), str(path)) == (30 - left, left)


OLD_AND_NEW = {  # lines of an earlier run, and lines behind them with an id that stands there already
    "named alike": ('{"prompt": "a", "id": "cat"}', '{"prompt": "a", "id": "cat"}'),
    "named by its number, then by itself": ('{"prompt": "a"}', '{"prompt": "a", "id": "00013"}'),
    "named by itself, then by its number": ('{"prompt": "a", "id": "00031"}', '{"prompt": "a"}'),
    "one of a sweep": (
        '{"prompt": "a", "id": "cat", "sweep": {"seed": [1, 2]}}',
        '{"prompt": "a", "id": "cat-seed=2", "seed": 2}',
    ),
    "of another picture": ('{"prompt": "a", "id": "cat"}', '{"prompt": "b", "id": "cat"}'),
}


class TestIdsOnBothSides:
    @pytest.mark.parametrize("most", [0, 50])
    @pytest.mark.parametrize("asked", [True, False])
    @pytest.mark.parametrize("kind", OLD_AND_NEW)
    def test_are_found(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, most: int, *, asked: bool
    ) -> None:
        """As well as with no mark, though few lines before it are read: the new line is bad, and no other."""
        old, new = OLD_AND_NEW[kind]
        monkeypatch.setattr(check, "MOST_MET", most)
        jobs = tmp_path / "jobs.jsonl"
        written(jobs, 0, 12)
        jobs.write_text(f"{jobs.read_text()}{old}\n")
        written(jobs, 13, 30, "a")
        record = {job.id: wire.fingerprint(job) for job in read(str(jobs))}
        bookmark = marked(str(jobs))
        jobs.write_text(f"{jobs.read_text()}{new}\n")
        found = []
        for mark in (bookmark, None):
            with JobFiles([str(jobs)]) as files:
                files.resume_from(mark)
                checked = files.check(known=record_of(record) if asked else None)
            found.append((checked.rows, checked.jobs, checked.bad_lines, [str(each) for each in checked.problems]))
        assert found[0] == found[1]
        assert found[0][2] == 1

    def test_are_found_behind_a_mark_that_a_kill_left(self, tmp_path: Path) -> None:
        """Lines behind it that are on record are no clash by themselves."""
        jobs = Path(written(tmp_path / "jobs.jsonl", 0, 30))
        bookmark = marked(str(jobs))
        written(jobs, 30, 40, "a")
        record = {job.id: wire.fingerprint(job) for job in read(str(jobs))}
        with JobFiles([str(jobs)]) as files:
            files.resume_from(bookmark)
            checked = files.check(known=record_of(record))
        assert (checked.jobs, checked.bad_lines) == (40, 0)

    def test_lines_before_the_mark_are_not_read_where_all_is_new(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of a million recorded jobs, that would be most of the time to the first new submit."""
        jobs = Path(written(tmp_path / "jobs.jsonl", 0, 30))
        bookmark = marked(str(jobs))
        written(jobs, 30, 40, "a")
        numbers: list[int] = []

        def read_one(_: RowParser, number: int, row: Row) -> tuple[Job, ...]:
            numbers.append(number)
            return (Job(prompt=str(row)),)

        monkeypatch.setattr(RowParser, "read", read_one)
        with JobFiles([str(jobs)]) as files:
            files.resume_from(bookmark)
            files.check(known=record_of({}))
            assert len(list(files)) == 10
        assert numbers == [*range(31, 41), *range(31, 41)]


def read(*paths: str) -> list[Job]:
    with JobFiles(paths) as files:
        files.check()
        return list(files)


def record_of(record: dict[str, bytes]) -> Callable[[Sequence[str]], dict[str, bytes]]:
    """What a ledger answers that has these jobs."""
    return lambda ids: {job_id: record[job_id] for job_id in ids if job_id in record}


class TestWhatDoesNot:
    @pytest.mark.parametrize("at", [0, 13, 49])
    def test_a_line_that_has_changed(self, tmp_path: Path, at: int) -> None:
        """Whichever it is, all lines are looked at."""
        path = tmp_path / "jobs.jsonl"
        bookmark = marked(written(path, 0, 50))
        path.write_text(path.read_text().replace(f'"picture {at}"', f'"picturE {at}"'))
        assert passed(bookmark, str(path)) == (0, 50)

    def test_a_file_that_is_shorter(self, tmp_path: Path) -> None:
        """Its last lines are gone."""
        path = tmp_path / "jobs.jsonl"
        bookmark = marked(written(path, 0, 50))
        written(path, 0, 40)
        assert passed(bookmark, str(path)) == (0, 40)

    def test_a_first_file_that_has_grown(self, tmp_path: Path) -> None:
        """The numbers of all lines of the second one have changed, and with them their ids."""
        first, second = written(tmp_path / "a.jsonl", 0, 20), written(tmp_path / "b.jsonl", 20, 50)
        bookmark = marked(first, second)
        written(tmp_path / "a.jsonl", 90, 91, "a")
        assert passed(bookmark, first, second) == (0, 51)

    def test_a_first_file_whose_last_line_has_no_end(self, tmp_path: Path) -> None:
        """Nothing behind that line is marked."""
        first, second = written(tmp_path / "a.jsonl", 0, 20), written(tmp_path / "b.jsonl", 20, 50)
        Path(first).write_text(Path(first).read_text()[:-1])
        spared, left = passed(marked(first, second), first, second)
        assert 0 < spared < 20
        assert spared + left == 50

    def test_other_files(self, tmp_path: Path) -> None:
        """In another order, or fewer of them."""
        first, second = written(tmp_path / "a.jsonl", 0, 20), written(tmp_path / "b.jsonl", 20, 50)
        bookmark = marked(first, second)
        assert passed(bookmark, second, first) == (0, 50)
        assert passed(bookmark, first) == (0, 20)

    def test_another_reading(self, tmp_path: Path) -> None:
        """With --keep-extra lines mean something else."""
        jobs = written(tmp_path / "jobs.jsonl", 0, 20)
        assert passed(marked(jobs), jobs, keep_extra=True) == (0, 20)

    @pytest.mark.parametrize("data", [b"", b"{}", b"\xff", b'{"parts":[],"rows":0,"jobs":"x","reading":""}'])
    def test_what_is_no_mark(self, tmp_path: Path, data: bytes) -> None:
        """A ledger that somebody has changed by hand spares no look."""
        jobs = written(tmp_path / "jobs.jsonl", 0, 20)
        assert passed(data, jobs) == (0, 20)

    def test_a_file_that_changes_after_the_look_at_its_mark(self, tmp_path: Path) -> None:
        """The check notices: else a line that nobody submitted would count as on record from the next mark on."""
        path = tmp_path / "jobs.jsonl"
        bookmark = marked(written(path, 0, 50))
        with JobFiles([str(path)]) as files:
            files.resume_from(bookmark)
            path.write_text(path.read_text().replace('"picture 20"', '"picturE 20"'))
            with pytest.raises(InputError, match="has changed since it was checked"):
                files.check()

    def test_bad_lines_leave_no_mark(self, tmp_path: Path) -> None:
        """They are told at each start, so each start looks at all lines."""
        jobs = written(tmp_path / "jobs.jsonl", 0, 20)
        with (tmp_path / "jobs.jsonl").open("a") as file:
            file.write('{"promt": "x"}\n')
        with JobFiles([jobs], skip_invalid=True) as files:
            files.check()
            list(files)
            assert files.checkpoint() is None


async def go(out: Path, gateway: ScriptedGateway, path: str, max_in_flight: int = 500) -> Engine:
    """One run of the job file, as the command does it."""
    with JobFiles([path]) as files:
        if (out / "ledger.db").is_file():
            store = LedgerStore.open(out / "ledger.db", read_only=True)
            files.resume_from(*store.read(LedgerStore.checkpoint))
            store.close()
        files.check()
        async with Engine(
            out, gateway_client=gateway, rate="100/s", max_in_flight=max_in_flight, random=Random(0)
        ) as engine:
            await engine.run(files)
    return engine


def test_the_next_run_passes_over_what_is_on_record(tmp_path: Path) -> None:
    """It counts those jobs as taken and skipped, submits the new ones, and nothing twice."""
    gateway, path = ScriptedGateway(), tmp_path / "jobs.jsonl"
    run_virtual(go(tmp_path / "out", gateway, written(path, 0, 60)))
    assert query_ledger(tmp_path / "out", "SELECT count(*) FROM checkpoint") == [(1,)]
    written(path, 60, 75, "a")
    engine = run_virtual(go(tmp_path / "out", gateway, str(path)))
    assert (engine.stats().jobs_read, engine.stats().skipped, engine.stats().submits) == (75, 60, 15)
    assert sorted(gateway.submitted_prompts) == sorted(f"picture {n}" for n in range(75))
    assert set(statuses(tmp_path / "out").values()) == {"succeeded"}
    assert len(statuses(tmp_path / "out")) == 75


marks_seen: set[int] = set()


@pytest.mark.parametrize("after_ms", range(400, 60_000, 1_900))
def test_a_mark_covers_only_what_is_on_record(tmp_path: Path, after_ms: int) -> None:
    """Wherever the process is killed, every job before the mark is in the ledger, and none is left out later."""
    out, gateway, path = tmp_path / "out", ScriptedGateway(), tmp_path / "jobs.jsonl"
    written(path, 0, 120)
    run_until_killed(go(out, gateway, str(path), max_in_flight=30), after_ms / 1000, out)
    if (out / "ledger.db").is_file() and query_ledger(out, "SELECT name FROM sqlite_schema WHERE name = 'bookmark'"):
        for (what,) in query_ledger(out, "SELECT data FROM checkpoint"):
            bookmark = Checkpoint.decode(bytes(what))
            assert bookmark
            marks_seen.add(bookmark.lines)
            on_record = {job_id for (job_id,) in query_ledger(out, "SELECT job_id FROM jobs")}
            assert {f"{n:05}" for n in range(1, bookmark.lines + 1)} <= on_record
    run_virtual(go(out, gateway, str(path)))
    assert len(statuses(out)) == 120
    assert set(statuses(out).values()) <= {"succeeded", "ambiguous"}
    assert len(set(gateway.submitted_prompts)) == len(gateway.submitted_prompts) == 120


def test_marks_were_there_to_be_checked() -> None:
    """The kills above have met marks in the middle of the file."""
    assert len(marks_seen) > 3, marks_seen
