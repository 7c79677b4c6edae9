"""Test that a checkpoint covers only recorded jobs, and that the next run skips exactly the lines before it."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import pytest

from krea_batch import Engine, InputError, Job
from krea_batch.gateway import wire
from krea_batch.ledger import Ledger
from krea_batch.ledger.sqlite import SqliteLedger
from krea_batch.pipeline import producer
from krea_batch.sources import InputOptions, JobFiles, check
from krea_batch.sources.checkpoint import Checkpoint
from krea_batch.sources.formats import line_file
from krea_batch.sources.formats.renamed_keys import Row
from krea_batch.sources.parser import RowParser
from krea_batch.testing import ScriptedGateway, run_until_killed, run_virtual
from tests.engine_fixtures import query_ledger, result_statuses

TEST_BLOCK_BYTES = 200  # about four lines

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_file, "BLOCK_BYTES", TEST_BLOCK_BYTES)
    monkeypatch.setattr(producer, "BATCH_JOBS", 7)


def write_job_file(path: Path, start: int, end: int, mode: str = "w") -> str:
    """Write these jobs to a job file, or append them with mode "a". Return its path."""
    text = "".join(json.dumps({"prompt": f"image {n}", "metadata": {"row": n}}) + "\n" for n in range(start, end))
    with path.open(mode) as file:
        file.write(text)
    return str(path)


def read_to_checkpoint(*paths: str, keep_extra: bool = False) -> bytes:
    """Read the files to their end, and return their checkpoint."""
    with JobFiles(paths, options=InputOptions(keep_extra=keep_extra)) as files:
        files.check()
        list(files)
        saved = files.checkpoint()
    assert saved
    return saved[1]


def skipped_and_remaining(checkpoint: bytes, *paths: str, keep_extra: bool = False) -> tuple[int, int]:
    """Return how many jobs the checkpoint skips, and how many remain."""
    with JobFiles(paths, options=InputOptions(keep_extra=keep_extra)) as files:
        files.resume_from(checkpoint)
        checked = files.check()
        remaining = list(files)
    assert files.skipped + len(remaining) == checked.jobs
    return files.skipped, len(remaining)


class TestMatchingCheckpoints:
    def test_the_same_file(self, tmp_path: Path) -> None:
        """If a file was read to its end and is unchanged, all its jobs are skipped."""
        jobs = write_job_file(tmp_path / "jobs.jsonl", 0, 50)
        assert skipped_and_remaining(read_to_checkpoint(jobs), jobs) == (50, 0)

    def test_a_file_that_has_grown(self, tmp_path: Path) -> None:
        """Only the appended lines remain, and they have the ids of a run without a checkpoint."""
        jobs = write_job_file(tmp_path / "jobs.jsonl", 0, 50)
        checkpoint = read_to_checkpoint(jobs)
        write_job_file(tmp_path / "jobs.jsonl", 50, 60, "a")
        assert skipped_and_remaining(checkpoint, jobs) == (50, 10)
        with JobFiles([jobs]) as files:
            files.resume_from(checkpoint)
            files.check()
            assert [job.id for job in files] == [f"{n:05}" for n in range(51, 61)]

    def test_an_additional_file(self, tmp_path: Path) -> None:
        """A checkpoint still matches if a file is added at the end, and it may span files."""
        first, second = write_job_file(tmp_path / "a.jsonl", 0, 20), write_job_file(tmp_path / "b.jsonl", 20, 50)
        assert skipped_and_remaining(read_to_checkpoint(first), first, second) == (20, 30)
        assert skipped_and_remaining(read_to_checkpoint(first, second), first, second) == (50, 0)

    @pytest.mark.parametrize("variant", ["gzip", "BOM", "CRLF", "blank lines", "no last newline"])
    def test_file_variants(self, tmp_path: Path, variant: str) -> None:
        """Compression, a byte order mark, CRLF, blank lines and a missing final newline do not prevent a match."""
        path = tmp_path / "jobs.jsonl"
        text = Path(write_job_file(path, 0, 30)).read_bytes()
        remaining = 0
        match variant:
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
                remaining = 30 - Checkpoint.decode(read_to_checkpoint(str(path))).jobs  # type: ignore[union-attr]
                assert 0 < remaining <= 6, "only lines of the last block remain"
        assert skipped_and_remaining(read_to_checkpoint(str(path)), str(path)) == (30 - remaining, remaining)


OLD_AND_NEW_LINES = {  # a line of an earlier run, and a later line that has the same id
    "same id": ('{"prompt": "a", "id": "cat"}', '{"prompt": "a", "id": "cat"}'),
    "default id, then the same id": ('{"prompt": "a"}', '{"prompt": "a", "id": "00013"}'),
    "id, then the same default id": ('{"prompt": "a", "id": "00031"}', '{"prompt": "a"}'),
    "id of a sweep": (
        '{"prompt": "a", "id": "cat", "sweep": {"seed": [1, 2]}}',
        '{"prompt": "a", "id": "cat-seed=2", "seed": 2}',
    ),
    "same id, other request": ('{"prompt": "a", "id": "cat"}', '{"prompt": "b", "id": "cat"}'),
}


class TestDuplicateIdsAcrossCheckpoint:
    @pytest.mark.parametrize("max_recorded_ids", [0, 50])
    @pytest.mark.parametrize("with_ledger", [True, False])
    @pytest.mark.parametrize("lines", OLD_AND_NEW_LINES)
    def test_are_found(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: str, max_recorded_ids: int, *, with_ledger: bool
    ) -> None:
        """With and without a checkpoint, the new line is the only invalid one and the problem is the same."""
        old, new = OLD_AND_NEW_LINES[lines]
        monkeypatch.setattr(check, "MAX_RECORDED_IDS", max_recorded_ids)
        jobs = tmp_path / "jobs.jsonl"
        write_job_file(jobs, 0, 12)
        jobs.write_text(f"{jobs.read_text()}{old}\n")
        write_job_file(jobs, 13, 30, "a")
        recorded = {job.id: wire.fingerprint(job) for job in read_all(str(jobs))}
        checkpoint = read_to_checkpoint(str(jobs))
        jobs.write_text(f"{jobs.read_text()}{new}\n")
        results = []
        for start_from in (checkpoint, None):
            with JobFiles([str(jobs)]) as files:
                files.resume_from(start_from)
                checked = files.check(lookup=ledger_lookup(recorded) if with_ledger else None)
            results.append((checked.rows, checked.jobs, checked.bad_lines, [str(each) for each in checked.problems]))
        assert results[0] == results[1]
        assert results[0][2] == 1

    def test_are_found_after_a_checkpoint_left_by_a_kill(self, tmp_path: Path) -> None:
        """After a kill, lines after the checkpoint may be in the ledger. They are not duplicates of themselves."""
        jobs = Path(write_job_file(tmp_path / "jobs.jsonl", 0, 30))
        checkpoint = read_to_checkpoint(str(jobs))
        write_job_file(jobs, 30, 40, "a")
        recorded = {job.id: wire.fingerprint(job) for job in read_all(str(jobs))}
        with JobFiles([str(jobs)]) as files:
            files.resume_from(checkpoint)
            checked = files.check(lookup=ledger_lookup(recorded))
        assert (checked.jobs, checked.bad_lines) == (40, 0)

    def test_lines_before_the_checkpoint_are_not_read_for_new_ids(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Lines before the checkpoint are not parsed. With a million of them, that would delay the first submit."""
        jobs = Path(write_job_file(tmp_path / "jobs.jsonl", 0, 30))
        checkpoint = read_to_checkpoint(str(jobs))
        write_job_file(jobs, 30, 40, "a")
        numbers: list[int] = []

        def read_one(_: RowParser, number: int, row: Row) -> tuple[Job, ...]:
            numbers.append(number)
            return (Job(prompt=str(row)),)

        monkeypatch.setattr(RowParser, "read", read_one)
        with JobFiles([str(jobs)]) as files:
            files.resume_from(checkpoint)
            files.check(lookup=ledger_lookup({}))
            assert len(list(files)) == 10
        assert numbers == [*range(31, 41), *range(31, 41)]


def read_all(*paths: str) -> list[Job]:
    with JobFiles(paths) as files:
        files.check()
        return list(files)


def ledger_lookup(jobs: dict[str, bytes]) -> Callable[[Sequence[str]], dict[str, bytes]]:
    """Return the lookup of a ledger that has these jobs: id to fingerprint."""
    return lambda ids: {job_id: jobs[job_id] for job_id in ids if job_id in jobs}


class TestMismatchedCheckpoints:
    @pytest.mark.parametrize("at", [0, 13, 49])
    def test_a_line_that_has_changed(self, tmp_path: Path, at: int) -> None:
        """If any line changed, the checkpoint does not match and all lines are read."""
        path = tmp_path / "jobs.jsonl"
        checkpoint = read_to_checkpoint(write_job_file(path, 0, 50))
        path.write_text(path.read_text().replace(f'"image {at}"', f'"imagE {at}"'))
        assert skipped_and_remaining(checkpoint, str(path)) == (0, 50)

    def test_a_file_that_is_shorter(self, tmp_path: Path) -> None:
        """If the last lines are missing, the checkpoint does not match."""
        path = tmp_path / "jobs.jsonl"
        checkpoint = read_to_checkpoint(write_job_file(path, 0, 50))
        write_job_file(path, 0, 40)
        assert skipped_and_remaining(checkpoint, str(path)) == (0, 40)

    def test_a_first_file_that_has_grown(self, tmp_path: Path) -> None:
        """If the first of two files has grown, the checkpoint does not match, since ids in the second changed."""
        first, second = write_job_file(tmp_path / "a.jsonl", 0, 20), write_job_file(tmp_path / "b.jsonl", 20, 50)
        checkpoint = read_to_checkpoint(first, second)
        write_job_file(tmp_path / "a.jsonl", 90, 91, "a")
        assert skipped_and_remaining(checkpoint, first, second) == (0, 51)

    def test_a_first_file_without_a_final_newline(self, tmp_path: Path) -> None:
        """The checkpoint covers no line after a missing newline, since that line may still grow."""
        first, second = write_job_file(tmp_path / "a.jsonl", 0, 20), write_job_file(tmp_path / "b.jsonl", 20, 50)
        Path(first).write_text(Path(first).read_text()[:-1])
        skipped, remaining = skipped_and_remaining(read_to_checkpoint(first, second), first, second)
        assert 0 < skipped < 20
        assert skipped + remaining == 50

    def test_other_files(self, tmp_path: Path) -> None:
        """A checkpoint does not match the files in another order, or fewer of them."""
        first, second = write_job_file(tmp_path / "a.jsonl", 0, 20), write_job_file(tmp_path / "b.jsonl", 20, 50)
        checkpoint = read_to_checkpoint(first, second)
        assert skipped_and_remaining(checkpoint, second, first) == (0, 50)
        assert skipped_and_remaining(checkpoint, first) == (0, 20)

    def test_different_input_options(self, tmp_path: Path) -> None:
        """A checkpoint does not match other input options, since they make other jobs from the same lines."""
        jobs = write_job_file(tmp_path / "jobs.jsonl", 0, 20)
        assert skipped_and_remaining(read_to_checkpoint(jobs), jobs, keep_extra=True) == (0, 20)

    @pytest.mark.parametrize(
        "data", [b"", b"{}", b"\xff", b'{"prefixes":[],"rows":0,"jobs":"x","options_fingerprint":""}']
    )
    def test_invalid_checkpoints(self, tmp_path: Path, data: bytes) -> None:
        """If the ledger holds an invalid checkpoint, all lines are read."""
        jobs = write_job_file(tmp_path / "jobs.jsonl", 0, 20)
        assert skipped_and_remaining(data, jobs) == (0, 20)

    def test_a_file_that_changes_after_its_checkpoint_was_verified(self, tmp_path: Path) -> None:
        """The check raises InputError. Otherwise the next checkpoint would cover a line that was never submitted."""
        path = tmp_path / "jobs.jsonl"
        checkpoint = read_to_checkpoint(write_job_file(path, 0, 50))
        with JobFiles([str(path)]) as files:
            files.resume_from(checkpoint)
            path.write_text(path.read_text().replace('"image 20"', '"imagE 20"'))
            with pytest.raises(InputError, match="changed since it was checked"):
                files.check()

    def test_invalid_lines_prevent_a_checkpoint(self, tmp_path: Path) -> None:
        """Files with invalid lines have no checkpoint, since every run reports these lines again."""
        jobs = write_job_file(tmp_path / "jobs.jsonl", 0, 20)
        with (tmp_path / "jobs.jsonl").open("a") as file:
            file.write('{"promt": "x"}\n')
        with JobFiles([jobs], skip_invalid=True) as files:
            files.check()
            list(files)
            assert files.checkpoint() is None


async def run_job_file(out: Path, gateway: ScriptedGateway, path: str, max_in_flight: int = 500) -> Engine:
    """Run the job file once, as the command does."""
    with JobFiles([path]) as files:
        if (out / "ledger.db").is_file():
            store = SqliteLedger.open(out / "ledger.db", read_only=True)
            files.resume_from(*store.read(Ledger.checkpoint))
            store.close()
        files.check()
        async with Engine(
            out, gateway_client=gateway, rate="100/s", max_in_flight=max_in_flight, random=Random(0)
        ) as engine:
            await engine.run(files)
    return engine


def test_the_next_run_skips_recorded_jobs(tmp_path: Path) -> None:
    """The next run counts recorded jobs as read and skipped, submits only the new ones, and nothing twice."""
    gateway, path = ScriptedGateway(), tmp_path / "jobs.jsonl"
    run_virtual(run_job_file(tmp_path / "out", gateway, write_job_file(path, 0, 60)))
    assert query_ledger(tmp_path / "out", "SELECT count(*) FROM checkpoint") == [(1,)]
    write_job_file(path, 60, 75, "a")
    engine = run_virtual(run_job_file(tmp_path / "out", gateway, str(path)))
    assert (engine.stats().jobs_read, engine.stats().skipped, engine.stats().submits) == (75, 60, 15)
    assert sorted(gateway.submitted_prompts) == sorted(f"image {n}" for n in range(75))
    assert set(result_statuses(tmp_path / "out").values()) == {"succeeded"}
    assert len(result_statuses(tmp_path / "out")) == 75


def run_killed_after(tmp_path: Path, after_ms: int) -> set[int]:
    """Kill a run after some time, check its checkpoints, and finish it. Return the line counts of the checkpoints."""
    tmp_path.mkdir()
    out, gateway, path = tmp_path / "out", ScriptedGateway(), tmp_path / "jobs.jsonl"
    write_job_file(path, 0, 120)
    covered_lines: set[int] = set()
    run_until_killed(run_job_file(out, gateway, str(path), max_in_flight=30), after_ms / 1000, out)
    if (out / "ledger.db").is_file() and query_ledger(
        out, "SELECT name FROM sqlite_schema WHERE name = 'checkpoint'"
    ):
        for (data,) in query_ledger(out, "SELECT data FROM checkpoint"):
            checkpoint = Checkpoint.decode(bytes(data))
            assert checkpoint
            covered_lines.add(checkpoint.lines)
            recorded = {job_id for (job_id,) in query_ledger(out, "SELECT job_id FROM jobs")}
            assert {f"{n:05}" for n in range(1, checkpoint.lines + 1)} <= recorded
    run_virtual(run_job_file(out, gateway, str(path)))
    assert len(result_statuses(out)) == 120
    assert set(result_statuses(out).values()) <= {"succeeded", "ambiguous"}
    assert len(set(gateway.submitted_prompts)) == len(gateway.submitted_prompts) == 120
    return covered_lines


def test_a_checkpoint_covers_only_recorded_jobs(tmp_path: Path) -> None:
    """Whenever a run is killed, every job before the checkpoint is in the ledger, and the next run loses none."""
    covered_lines = [run_killed_after(tmp_path / str(after_ms), after_ms) for after_ms in range(400, 60_000, 1_900)]
    assert len(set().union(*covered_lines)) > 3, "the kills must hit several checkpoints within the file"
