"""Test that many files are read as one checked stream of jobs, each with its own id."""

from __future__ import annotations

import io
import os
import sys
import threading
import tracemalloc
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krea_batch.errors import InputError, InternalError, JobFileError, LineProblem
from krea_batch.gateway.wire import fingerprint
from krea_batch.jobs import Job
from krea_batch.sources import CheckResult, InputOptions, JobFiles, check, duplicate_ids, hash_buckets

WriteLines = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> WriteLines:
    """Return a function that writes lines to a file in the test's directory and returns its path."""

    def writer(name: str, *lines: str | bytes) -> str:
        path = tmp_path / name
        path.write_bytes(b"".join((line.encode() if isinstance(line, str) else line) + b"\n" for line in lines))
        return str(path)

    return writer


def read_jobs(*paths: str, keep_extra: bool = False, skip_invalid: bool = False) -> tuple[CheckResult, list[Job]]:
    with JobFiles(paths, options=InputOptions(keep_extra=keep_extra), skip_invalid=skip_invalid) as files:
        return files.check(), list(files)


def problem_texts(problems: Sequence[LineProblem], folder: Path) -> list[str]:
    """Return the problems as they are printed, without the test's directory."""
    return [str(problem).replace(f"{folder}/", "") for problem in problems]


def test_given_and_default_ids(write: WriteLines) -> None:
    """A line without an id, or with an empty one, gets its line number as id; blank lines count."""
    path = write("a.jsonl", '{"prompt": "x"}', "", '{"prompt": "y", "id": "why"}', '{"prompt": "z", "id": ""}')
    checked, jobs = read_jobs(path)
    assert checked == CheckResult(jobs=3, rows=3, bad_lines=0, duplicates=0, problems=(), notes=())
    assert jobs == [
        Job(prompt="x", id="00001"),
        Job(prompt="y", id="why"),
        Job(prompt="z", id="00004"),
    ]


def test_numbers_continue_over_files(write: WriteLines) -> None:
    """Adding a file at the end changes no id of the files before it."""
    first, second = write("a.jsonl", '{"prompt": "x"}', ""), write("b.jsonl", '{"prompt": "y"}')
    assert [job.id for job in read_jobs(first)[1]] == ["00001"]
    assert [job.id for job in read_jobs(first, second)[1]] == ["00001", "00003"]


def test_no_files_and_no_lines(write: WriteLines) -> None:
    """No files, an empty file and blank lines give no jobs and no error."""
    assert read_jobs() == (CheckResult(0, 0, 0, 0, (), ()), [])
    assert read_jobs(write("empty.jsonl"), write("blank.jsonl", "", " ")) == (CheckResult(0, 0, 0, 0, (), ()), [])


def test_all_problems_are_reported(write: WriteLines, tmp_path: Path) -> None:
    """Every invalid line is passed to `on_problem`; the result has the first 100, and counts all."""
    path = write("a.jsonl", *['{"promt": "x"}'] * 250, '{"prompt": "x"}')
    problems: list[LineProblem] = []
    with JobFiles([path]) as files:
        checked = files.check(on_problem=problems.append)
    assert (checked.jobs, checked.bad_lines, len(checked.problems), len(problems)) == (1, 250, 100, 250)
    assert problem_texts(problems[249:], tmp_path) == [
        'a.jsonl:250: "promt" is not a field of a job; did you mean "prompt"?'
    ]


def test_invalid_lines(write: WriteLines) -> None:
    """Files with invalid lines give no jobs, except with `skip_invalid`."""
    path = write("a.jsonl", '{"prompt": "x"}', "{", '{"prompt": "z"}')
    with JobFiles([path]) as files:
        files.check()
        with pytest.raises(JobFileError, match="1 invalid line"):
            iter(files)
    assert [job.id for job in read_jobs(path, skip_invalid=True)[1]] == ["00001", "00003"]


def test_unchecked_files(write: WriteLines) -> None:
    """Iterating before the check raises InternalError."""
    with JobFiles([write("a.jsonl", '{"prompt": "x"}')]) as files, pytest.raises(InternalError):
        iter(files)


def test_same_id_in_one_file(write: WriteLines, tmp_path: Path) -> None:
    """If two lines have the same id, the later one is invalid, and the problem names both lines."""
    path = write("a.jsonl", *(f'{{"prompt": "{name}", "id": "{name}"}}' for name in "abcbab"))
    checked, jobs = read_jobs(path, skip_invalid=True)
    assert sorted(problem_texts(checked.problems, tmp_path)) == [
        'a.jsonl:4: a.jsonl:2 and a.jsonl:4 both have the id "b"; give one of them another id',
        'a.jsonl:5: a.jsonl:1 and a.jsonl:5 both have the id "a"; give one of them another id',
        'a.jsonl:6: a.jsonl:2 and a.jsonl:6 both have the id "b"; give one of them another id',
    ]
    assert (checked.jobs, checked.bad_lines) == (3, 3)
    assert [job.prompt for job in jobs] == ["a", "b", "c"]


def test_same_id_in_two_files(write: WriteLines, tmp_path: Path) -> None:
    """The same id in two files is found, and the problem names each file and line."""
    first = write("a.jsonl", "", '{"prompt": "x", "id": "cat"}')
    second = write("b.jsonl", '{"prompt": "y"}', '{"prompt": "z", "id": "cat"}')
    checked, jobs = read_jobs(first, second, skip_invalid=True)
    assert problem_texts(checked.problems, tmp_path) == [
        'b.jsonl:2: a.jsonl:2 and b.jsonl:2 both have the id "cat"; give one of them another id'
    ]
    assert [job.id for job in jobs] == ["cat", "00003"]


@pytest.mark.parametrize("lines", [('"id": "00002"', ""), ("", '"id": "00001"')])
def test_id_equals_a_default_id(write: WriteLines, tmp_path: Path, lines: tuple[str, str]) -> None:
    """An id that equals the default id of another line is a duplicate, whichever line is first."""
    path = write("a.jsonl", *('{"prompt": "x"' + (f", {line}" if line else "") + "}" for line in lines))
    checked, jobs = read_jobs(path, skip_invalid=True)
    (problem,) = problem_texts(checked.problems, tmp_path)
    assert problem.startswith("a.jsonl:2: a.jsonl:1 and a.jsonl:2 both have the id ")
    assert "a line without an id gets its number as id" in problem
    assert len(jobs) == 1


def test_id_equals_its_own_line_number(write: WriteLines) -> None:
    """A line may have its own line number as id, and the id of an invalid line is free for another."""
    path = write(
        "a.jsonl", '{"prompt": "x", "id": "00001"}', '{"prompt": "", "id": "y"}', '{"prompt": "y", "id": "y"}'
    )
    checked, jobs = read_jobs(path, skip_invalid=True)
    assert checked.bad_lines == 1
    assert [job.id for job in jobs] == ["00001", "y"]


def test_equal_hashes_of_different_ids(write: WriteLines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Different ids are never reported as duplicates, even if all their hashes are equal."""
    monkeypatch.setattr(duplicate_ids, "hash", lambda _: 7, raising=False)
    names = [f"job-{number}" for number in range(2000)]
    path = write("a.jsonl", *(f'{{"prompt": "x", "id": "{name}"}}' for name in [*names, "job-1999"]))
    checked, jobs = read_jobs(path, skip_invalid=True)
    assert problem_texts(checked.problems, tmp_path) == [
        'a.jsonl:2001: a.jsonl:2000 and a.jsonl:2001 both have the id "job-1999"; give one of them another id'
    ]
    assert [job.id for job in jobs] == names


def test_many_candidates_are_checked_in_batches(write: WriteLines, monkeypatch: pytest.MonkeyPatch) -> None:
    """With more duplicates than one batch holds, the files are read once per batch, and all are found."""
    monkeypatch.setattr(check, "CANDIDATE_BATCH", 10)
    lines = [f'{{"prompt": "x", "id": "{number}"}}' for number in range(100)]
    checked, jobs = read_jobs(write("a.jsonl", *lines), write("b.jsonl", *lines), skip_invalid=True)
    assert (checked.jobs, checked.bad_lines) == (100, 100)
    assert [job.id for job in jobs] == [str(number) for number in range(100)]


JOB_ID = st.sampled_from(["", "", "a", "b", "00001", "00002", "00004"])


@given(st.lists(st.lists(JOB_ID | st.just("bad"), max_size=4), max_size=3))
def test_each_id_once(tmp_path_factory: pytest.TempPathFactory, ids_by_file: list[list[str]]) -> None:
    """For any ids, each id is yielded once, for its first line, and every other line is counted as invalid."""
    folder = tmp_path_factory.mktemp("jobs")
    paths, expected, number = [], [], 0
    for file_index, file_ids in enumerate(ids_by_file):
        paths.append(str(folder / f"{file_index}.jsonl"))
        lines = ["{" if given_id == "bad" else f'{{"prompt": "x", "id": "{given_id}"}}' for given_id in file_ids]
        Path(paths[-1]).write_text("".join(f"{line}\n" for line in lines))
        for given_id in file_ids:
            number += 1
            job_id = given_id or f"{number:05d}"
            if given_id != "bad" and job_id not in expected:
                expected.append(job_id)
    checked, jobs = read_jobs(*paths, skip_invalid=True)
    assert [job.id for job in jobs] == expected
    assert (checked.jobs, checked.bad_lines) == (len(expected), number - len(expected))


def test_recorded_jobs(write: WriteLines, tmp_path: Path) -> None:
    """A line is invalid if the ledger has its id with another fingerprint; unchanged and new lines are valid."""
    lines = [f'{{"prompt": "{number}", "id": "id-{number}"}}' for number in range(1, 1201)]
    path = write("a.jsonl", *lines, '{"prompt": "x"}')
    recorded = {"id-7": fingerprint(Job(prompt="7")), "id-9": b"other", "id-1100": b"other", "01201": b"other"}
    batch_sizes: list[int] = []

    def lookup(batch: Sequence[str]) -> dict[str, bytes]:
        batch_sizes.append(len(batch))
        return {job_id: recorded[job_id] for job_id in batch if job_id in recorded}

    with JobFiles([path], skip_invalid=True) as files:
        checked = files.check(lookup)
        jobs = list(files)
    restore_hint = "restore it; or use another --out, or --submit-changed, which pays for new images"
    submitted_and_hint = "was submitted; restore it, give the line a new id, or use another --out"
    assert problem_texts(checked.problems, tmp_path) == [
        f'a.jsonl:9: the line or an option changed since its id "id-9" {submitted_and_hint}',
        f'a.jsonl:1100: the line or an option changed since its id "id-1100" {submitted_and_hint}',
        f'a.jsonl:1201: the line or an option changed since its id "01201" was submitted; {restore_hint}',
    ]
    assert batch_sizes == [500, 500, 201]
    assert (checked.jobs, checked.bad_lines, len(jobs)) == (1198, 3, 1198)


def test_a_line_with_two_conflicts_counts_once(write: WriteLines) -> None:
    """A line with a duplicate id and a changed fingerprint is counted as one invalid line."""
    path = write("a.jsonl", '{"prompt": "x", "id": "a"}', '{"prompt": "y", "id": "a"}')
    with JobFiles([path], skip_invalid=True) as files:
        checked = files.check(lambda ids: dict.fromkeys(ids, fingerprint(Job(prompt="z"))))
        assert (checked.jobs, checked.bad_lines) == (0, 2)
        assert list(files) == []


def test_notes_on_unknown_fields(write: WriteLines, tmp_path: Path) -> None:
    """An unknown field that looks mistyped is noted once, with its first line; other fields are not."""
    path = write("a.jsonl", '{"prompt": "x", "tag": 1}', *['{"prompt": "x", "sead": 5}'] * 3)
    checked, jobs = read_jobs(path, keep_extra=True)
    assert problem_texts(checked.notes, tmp_path) == [
        'a.jsonl:2: "sead" was put into the metadata; did you mean "seed"?'
    ]
    assert [job.metadata for job in jobs] == [{"tag": 1}, {"sead": 5}, {"sead": 5}, {"sead": 5}]


def test_changed_between_check_and_run(write: WriteLines) -> None:
    """If a file is edited after its check, iterating raises InputError before an unchecked job is yielded."""
    path = write("a.jsonl", '{"prompt": "x"}')
    with JobFiles([path], skip_invalid=True) as files:
        files.check()
        write("a.jsonl", '{"prompt": "y"}')
        with pytest.raises(InputError, match="changed since it was checked"):
            list(files)


def test_deleted_between_check_and_run(write: WriteLines) -> None:
    """If a file is deleted after its check, iterating raises an InputError that names it."""
    path = write("a.jsonl", '{"prompt": "x"}')
    with JobFiles([path]) as files:
        files.check()
        Path(path).unlink()
        with pytest.raises(InputError, match="there is no such file"):
            list(files)


def test_second_check(write: WriteLines) -> None:
    """A second check of an unchanged file has the same result; of an edited file, it raises InputError."""
    path = write("a.jsonl", '{"prompt": "x"}')
    with JobFiles([path]) as files:
        assert files.check() == files.check()
        write("a.jsonl", '{"prompt": "y"}')
        with pytest.raises(InputError, match="changed since"):
            files.check()


def test_standard_input(tmp_path: Path) -> None:
    """Standard input is spooled, so it can be iterated twice; no named temporary file is left."""
    stdin = io.BytesIO(b'\xef\xbb\xbf{"prompt": "x"}\r\n{"prompt": "y"}\r\n{')
    with JobFiles(["-"], skip_invalid=True, stdin=stdin, spool_dir=tmp_path) as files:
        checked = files.check()
        assert [job.prompt for job in files] == [job.prompt for job in files] == ["x", "y"]
        assert not list(tmp_path.iterdir())
    assert str(checked.problems[0]).startswith("<stdin>:3: the line ends before")


def test_standard_input_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the `stdin` parameter, "-" is the standard input of the process."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"prompt": "x"}')))
    assert read_jobs("-")[1] == [Job(prompt="x", id="00001")]


def test_named_pipe(tmp_path: Path) -> None:
    """A pipe given by path, such as a shell's `<(command)`, is read like standard input; problems name its path."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(b'{"prompt": "x"}\n{',))
    writer.start()
    checked, jobs = read_jobs(str(pipe), skip_invalid=True)
    writer.join()
    assert [job.prompt for job in jobs] == ["x"]
    assert problem_texts(checked.problems, tmp_path)[0].startswith("pipe:2: ")


def test_standard_input_cannot_be_spooled(tmp_path: Path) -> None:
    """If standard input cannot be copied to a temporary file, InputError names TMPDIR."""
    with pytest.raises(InputError, match="TMPDIR"):
        JobFiles(["-"], stdin=io.BytesIO(b""), spool_dir=tmp_path / "none")


def test_same_file_twice(write: WriteLines, tmp_path: Path) -> None:
    """The same file by two paths raises InputError, since its lines without ids would be charged twice."""
    path = write("a.jsonl", '{"prompt": "x"}')
    (tmp_path / "b.jsonl").symlink_to(path)
    for paths in ([path, path], [path, str(tmp_path / "b.jsonl")], ["-", "-"]):
        with pytest.raises(InputError, match="the same file as"):
            JobFiles(paths, stdin=io.BytesIO(b""))


def test_missing_file(write: WriteLines, tmp_path: Path) -> None:
    """A missing file among others raises an InputError that names it."""
    with pytest.raises(InputError, match=r"none\.jsonl: there is no such file"):
        JobFiles([write("a.jsonl", '{"prompt": "x"}'), str(tmp_path / "none.jsonl")])


def test_memory_does_not_grow_with_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four times as many lines, half of them with default ids, take no more memory."""
    # With small buckets, even the smaller file fills all of them and writes them to the temporary file.
    monkeypatch.setattr(hash_buckets, "BUCKET_ITEMS", 32)

    def peak_bytes(lines: int) -> int:
        path = tmp_path / f"{lines}.jsonl"
        path.write_text(
            "".join(f'{{"prompt": "x", "id": "cat-{n}"}}\n{{"prompt": "y"}}\n' for n in range(lines // 2))
        )
        tracemalloc.start()
        try:
            with JobFiles([str(path)]) as files:
                checked = files.check().jobs
                jobs = sum(1 for _ in files)
            assert checked == jobs == lines
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak_bytes(100)  # allocate what is allocated only once
    assert peak_bytes(80_000) < peak_bytes(20_000) + 300_000


def test_progress(write: WriteLines, monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress is reported in bytes read and total bytes, and ends with all bytes read."""
    monkeypatch.setattr(check, "PROGRESS_LINES", 10)
    path = write("a.jsonl", *['{"prompt": "x"}'] * 30)
    reports: list[tuple[int, int]] = []
    with JobFiles([path]) as files:
        files.check(on_progress=lambda done, total: reports.append((done, total)))
    assert reports == [(480, 480)] * 4


def test_progress_of_standard_input(tmp_path: Path) -> None:
    """Progress of spooled standard input increases to the total, and reporting it does not disturb the reading."""
    stdin = io.BytesIO(b'{"prompt": "x"}\n' * 100_000)
    reports: list[tuple[int, int]] = []
    with JobFiles(["-"], stdin=stdin, spool_dir=tmp_path) as files:
        checked = files.check(on_progress=lambda done, total: reports.append((done, total)))
    assert checked.jobs == 100_000
    assert reports == sorted(reports)
    assert reports[0][0] < reports[-1][0] == reports[-1][1] == 1_600_000


@given(st.lists(st.binary(max_size=60) | st.just(b'{"prompt":"x"}'), max_size=5), st.booleans())
def test_any_files(tmp_path_factory: pytest.TempPathFactory, contents: list[bytes], keep_extra: bool) -> None:
    """Any bytes in any number of files give jobs, problems or an InputError, and no other exception."""
    folder = tmp_path_factory.mktemp("any")
    paths = [str(folder / f"{file_index}.jsonl") for file_index in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        Path(path).write_bytes(content)
    with suppress(InputError):
        checked, jobs = read_jobs(*paths, keep_extra=keep_extra, skip_invalid=True)
        assert len(jobs) == checked.jobs
