"""Many files are one checked stream of jobs, each with its own id."""

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
from krea_batch.sources import CheckResult, InputOptions, JobFiles, check, duplicate_ids

WriteLines = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> WriteLines:
    """Writes lines to a file of the test's folder, and gives its path."""

    def writer(name: str, *lines: str | bytes) -> str:
        path = tmp_path / name
        path.write_bytes(b"".join((line.encode() if isinstance(line, str) else line) + b"\n" for line in lines))
        return str(path)

    return writer


def read_jobs(*paths: str, keep_extra: bool = False, skip_invalid: bool = False) -> tuple[CheckResult, list[Job]]:
    with JobFiles(paths, options=InputOptions(keep_extra=keep_extra), skip_invalid=skip_invalid) as files:
        return files.check(), list(files)


def problem_texts(problems: Sequence[LineProblem], folder: Path) -> list[str]:
    """The problems as users see them, without the test's folder."""
    return [str(problem).replace(f"{folder}/", "") for problem in problems]


def test_ids_by_number_and_by_name(write: WriteLines) -> None:
    """A line has the id that it gives, or its number, blank lines counted."""
    path = write("a.jsonl", '{"prompt": "x"}', "", '{"prompt": "y", "id": "why"}', '{"prompt": "z", "id": ""}')
    checked, jobs = read_jobs(path)
    assert checked == CheckResult(jobs=3, rows=3, bad_lines=0, duplicates=0, problems=(), notes=())
    assert jobs == [
        Job(prompt="x", id="00001"),
        Job(prompt="y", id="why"),
        Job(prompt="z", id="00004"),
    ]


def test_numbers_go_on_over_files(write: WriteLines) -> None:
    """A file that is added behind others renames none of their jobs."""
    first, second = write("a.jsonl", '{"prompt": "x"}', ""), write("b.jsonl", '{"prompt": "y"}')
    assert [job.id for job in read_jobs(first)[1]] == ["00001"]
    assert [job.id for job in read_jobs(first, second)[1]] == ["00001", "00003"]


def test_no_file_and_no_line(write: WriteLines) -> None:
    """Nothing given is nothing to do, and no error."""
    assert read_jobs() == (CheckResult(0, 0, 0, 0, (), ()), [])
    assert read_jobs(write("empty.jsonl"), write("blank.jsonl", "", " ")) == (CheckResult(0, 0, 0, 0, (), ()), [])


def test_all_problems_are_reported(write: WriteLines, tmp_path: Path) -> None:
    """Every bad line is told as it is found, the first ones are kept, and all are counted."""
    path = write("a.jsonl", *['{"promt": "x"}'] * 250, '{"prompt": "x"}')
    problems: list[LineProblem] = []
    with JobFiles([path]) as files:
        checked = files.check(on_problem=problems.append)
    assert (checked.jobs, checked.bad_lines, len(checked.problems), len(problems)) == (1, 250, 100, 250)
    assert problem_texts(problems[249:], tmp_path) == [
        'a.jsonl:250: "promt" is not a field of a job; did you mean "prompt"?'
    ]


def test_bad_lines_give_no_jobs(write: WriteLines) -> None:
    """Jobs of files with bad lines are refused, unless these are to be skipped."""
    path = write("a.jsonl", '{"prompt": "x"}', "{", '{"prompt": "z"}')
    with JobFiles([path]) as files:
        files.check()
        with pytest.raises(JobFileError, match="1 invalid line"):
            iter(files)
    assert [job.id for job in read_jobs(path, skip_invalid=True)[1]] == ["00001", "00003"]


def test_unchecked_files_give_no_jobs(write: WriteLines) -> None:
    """Jobs that nobody has checked cannot be taken."""
    with JobFiles([write("a.jsonl", '{"prompt": "x"}')]) as files, pytest.raises(InternalError):
        iter(files)


def test_same_id_in_one_file(write: WriteLines, tmp_path: Path) -> None:
    """Two lines with one id are an error that names both places, and the later one is the bad one."""
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
    """One id in two files is found, and each place is named by its own file and line."""
    first = write("a.jsonl", "", '{"prompt": "x", "id": "cat"}')
    second = write("b.jsonl", '{"prompt": "y"}', '{"prompt": "z", "id": "cat"}')
    checked, jobs = read_jobs(first, second, skip_invalid=True)
    assert problem_texts(checked.problems, tmp_path) == [
        'b.jsonl:2: a.jsonl:2 and b.jsonl:2 both have the id "cat"; give one of them another id'
    ]
    assert [job.id for job in jobs] == ["cat", "00003"]


@pytest.mark.parametrize("lines", [('"id": "00002"', ""), ("", '"id": "00001"')])
def test_id_that_is_the_number_of_another_line(write: WriteLines, tmp_path: Path, lines: tuple[str, str]) -> None:
    """An id that a line without one has by its number clashes with it, whichever comes first."""
    path = write("a.jsonl", *('{"prompt": "x"' + (f", {line}" if line else "") + "}" for line in lines))
    checked, jobs = read_jobs(path, skip_invalid=True)
    (problem,) = problem_texts(checked.problems, tmp_path)
    assert problem.startswith("a.jsonl:2: a.jsonl:1 and a.jsonl:2 both have the id ")
    assert "a line without an id gets its number as id" in problem
    assert len(jobs) == 1


def test_id_that_is_its_own_number(write: WriteLines) -> None:
    """A line may give its own number as its id, and a bad line takes no id."""
    path = write(
        "a.jsonl", '{"prompt": "x", "id": "00001"}', '{"prompt": "", "id": "y"}', '{"prompt": "y", "id": "y"}'
    )
    checked, jobs = read_jobs(path, skip_invalid=True)
    assert checked.bad_lines == 1
    assert [job.id for job in jobs] == ["00001", "y"]


def test_forged_hashes(write: WriteLines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids that differ are never reported as the same, though all their hashes be one."""
    monkeypatch.setattr(duplicate_ids, "hash", lambda _: 7, raising=False)
    names = [f"job-{number}" for number in range(2000)]
    path = write("a.jsonl", *(f'{{"prompt": "x", "id": "{name}"}}' for name in [*names, "job-1999"]))
    checked, jobs = read_jobs(path, skip_invalid=True)
    assert problem_texts(checked.problems, tmp_path) == [
        'a.jsonl:2001: a.jsonl:2000 and a.jsonl:2001 both have the id "job-1999"; give one of them another id'
    ]
    assert [job.id for job in jobs] == names


def test_many_candidates_are_checked_in_batches(write: WriteLines, monkeypatch: pytest.MonkeyPatch) -> None:
    """More equal ids than are held in memory are found all the same, by reading the files again and again."""
    monkeypatch.setattr(check, "CANDIDATE_BATCH", 10)
    lines = [f'{{"prompt": "x", "id": "{number}"}}' for number in range(100)]
    checked, jobs = read_jobs(write("a.jsonl", *lines), write("b.jsonl", *lines), skip_invalid=True)
    assert (checked.jobs, checked.bad_lines) == (100, 100)
    assert [job.id for job in jobs] == [str(number) for number in range(100)]


FILE_NAME = st.sampled_from(["", "", "a", "b", "00001", "00002", "00004"])


@given(st.lists(st.lists(FILE_NAME | st.just("bad"), max_size=4), max_size=3))
def test_each_id_once(tmp_path_factory: pytest.TempPathFactory, names: list[list[str]]) -> None:
    """Whatever the ids, the jobs given have each id once, first come first served, and every line is counted."""
    folder = tmp_path_factory.mktemp("jobs")
    paths, expected, number = [], [], 0
    for place, file_names in enumerate(names):
        paths.append(str(folder / f"{place}.jsonl"))
        lines = ["{" if name == "bad" else f'{{"prompt": "x", "id": "{name}"}}' for name in file_names]
        Path(paths[-1]).write_text("".join(f"{line}\n" for line in lines))
        for name in file_names:
            number += 1
            job_id = name or f"{number:05d}"
            if name != "bad" and job_id not in expected:
                expected.append(job_id)
    checked, jobs = read_jobs(*paths, skip_invalid=True)
    assert [job.id for job in jobs] == expected
    assert (checked.jobs, checked.bad_lines) == (len(expected), number - len(expected))


def test_known_jobs(write: WriteLines, tmp_path: Path) -> None:
    """A line whose id is in the ledger with another fingerprint is a bad line; what is the same, or new, is good."""
    lines = [f'{{"prompt": "{number}", "id": "id-{number}"}}' for number in range(1, 1201)]
    path = write("a.jsonl", *lines, '{"prompt": "x"}')
    record = {"id-7": fingerprint(Job(prompt="7")), "id-9": b"other", "id-1100": b"other", "01201": b"other"}
    asked: list[int] = []

    def known(batch: Sequence[str]) -> dict[str, bytes]:
        asked.append(len(batch))
        return {job_id: record[job_id] for job_id in batch if job_id in record}

    with JobFiles([path], skip_invalid=True) as files:
        checked = files.check(known)
        jobs = list(files)
    right = "was submitted; give it a new id, or choose another --out"
    assert problem_texts(checked.problems, tmp_path) == [
        f'a.jsonl:9: the line changed since its id "id-9" {right}',
        f'a.jsonl:1100: the line changed since its id "id-1100" {right}',
        f'a.jsonl:1201: the line changed since its id "01201" {right}',
    ]
    assert asked == [500, 500, 201]
    assert (checked.jobs, checked.bad_lines, len(jobs)) == (1198, 3, 1198)


def test_a_line_that_is_bad_twice_counts_once(write: WriteLines) -> None:
    """A line that has an id twice and another fingerprint has two problems, and is one bad line."""
    path = write("a.jsonl", '{"prompt": "x", "id": "a"}', '{"prompt": "y", "id": "a"}')
    with JobFiles([path], skip_invalid=True) as files:
        checked = files.check(lambda ids: dict.fromkeys(ids, fingerprint(Job(prompt="z"))))
        assert (checked.jobs, checked.bad_lines) == (0, 2)
        assert list(files) == []


def test_notes_on_extra_fields(write: WriteLines, tmp_path: Path) -> None:
    """A kept field that looks like a mistyped one is noted once, with its first place; others are not."""
    path = write("a.jsonl", '{"prompt": "x", "tag": 1}', *['{"prompt": "x", "sead": 5}'] * 3)
    checked, jobs = read_jobs(path, keep_extra=True)
    assert problem_texts(checked.notes, tmp_path) == [
        'a.jsonl:2: "sead" was put into the metadata; did you mean "seed"?'
    ]
    assert [job.metadata for job in jobs] == [{"tag": 1}, {"sead": 5}, {"sead": 5}, {"sead": 5}]


def test_changed_between_check_and_run(write: WriteLines) -> None:
    """A file that is edited after its check gives no unchecked job."""
    path = write("a.jsonl", '{"prompt": "x"}')
    with JobFiles([path], skip_invalid=True) as files:
        files.check()
        write("a.jsonl", '{"prompt": "y"}')
        with pytest.raises(InputError, match="changed since it was checked"):
            list(files)


def test_gone_between_check_and_run(write: WriteLines) -> None:
    """A file that is gone after its check is an InputError that names it."""
    path = write("a.jsonl", '{"prompt": "x"}')
    with JobFiles([path]) as files:
        files.check()
        Path(path).unlink()
        with pytest.raises(InputError, match="there is no such file"):
            list(files)


def test_checking_again_takes_the_file_as_it_was(write: WriteLines) -> None:
    """One JobFiles stands for one content: a second check of an edited file is refused like a run."""
    path = write("a.jsonl", '{"prompt": "x"}')
    with JobFiles([path]) as files:
        assert files.check() == files.check()
        write("a.jsonl", '{"prompt": "y"}')
        with pytest.raises(InputError, match="changed since"):
            files.check()


def test_standard_input(tmp_path: Path) -> None:
    """Standard input is read once and given twice, whatever its line ends, and leaves nothing behind."""
    stdin = io.BytesIO(b'\xef\xbb\xbf{"prompt": "x"}\r\n{"prompt": "y"}\r\n{')
    with JobFiles(["-"], skip_invalid=True, stdin=stdin, spool_dir=tmp_path) as files:
        checked = files.check()
        assert [job.prompt for job in files] == [job.prompt for job in files] == ["x", "y"]
        assert not list(tmp_path.iterdir())
    assert str(checked.problems[0]).startswith("<stdin>:3: the line ends before")


def test_the_process_own_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without another, "-" is the standard input of the process."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"prompt": "x"}')))
    assert read_jobs("-")[1] == [Job(prompt="x", id="00001")]


def test_named_pipe(tmp_path: Path) -> None:
    """A pipe by its path, such as a shell's <(command), is read like standard input, and named by its path."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(b'{"prompt": "x"}\n{',))
    writer.start()
    checked, jobs = read_jobs(str(pipe), skip_invalid=True)
    writer.join()
    assert [job.prompt for job in jobs] == ["x"]
    assert problem_texts(checked.problems, tmp_path)[0].startswith("pipe:2: ")


def test_no_room_for_standard_input(tmp_path: Path) -> None:
    """Standard input that cannot be kept is an InputError with the way out."""
    with pytest.raises(InputError, match="TMPDIR"):
        JobFiles(["-"], stdin=io.BytesIO(b""), spool_dir=tmp_path / "none")


def test_one_file_named_twice(write: WriteLines, tmp_path: Path) -> None:
    """One file under two names is refused, for its lines without ids would be paid for twice."""
    path = write("a.jsonl", '{"prompt": "x"}')
    (tmp_path / "b.jsonl").symlink_to(path)
    for paths in ([path, path], [path, str(tmp_path / "b.jsonl")], ["-", "-"]):
        with pytest.raises(InputError, match="the same file as"):
            JobFiles(paths, stdin=io.BytesIO(b""))


def test_missing_file(write: WriteLines, tmp_path: Path) -> None:
    """A missing file among others is an InputError that names it."""
    files = JobFiles([write("a.jsonl", '{"prompt": "x"}'), str(tmp_path / "none.jsonl")])
    with files, pytest.raises(InputError, match=r"none\.jsonl: there is no such file"):
        files.check()


def test_memory_does_not_grow_with_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four times the lines take no more memory, ids of one's own and ids by number alike."""
    monkeypatch.setattr(
        duplicate_ids, "BUCKET_ITEMS", 32
    )  # full, and in the file, long before the smaller of the two ends

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

    peak_bytes(100)  # what is made once
    assert peak_bytes(80_000) < peak_bytes(20_000) + 300_000


def test_progress(write: WriteLines, monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress is told in bytes read of all bytes, and ends with all of them."""
    monkeypatch.setattr(check, "PROGRESS_LINES", 10)
    path = write("a.jsonl", *['{"prompt": "x"}'] * 30)
    reports: list[tuple[int, int]] = []
    with JobFiles([path]) as files:
        files.check(on_progress=lambda done, of: reports.append((done, of)))
    assert reports == [(480, 480)] * 4


def test_progress_of_standard_input(tmp_path: Path) -> None:
    """Asking how far the reading of standard input is does not disturb it, over many blocks."""
    stdin = io.BytesIO(b'{"prompt": "x"}\n' * 100_000)
    reports: list[tuple[int, int]] = []
    with JobFiles(["-"], stdin=stdin, spool_dir=tmp_path) as files:
        checked = files.check(on_progress=lambda done, of: reports.append((done, of)))
    assert checked.jobs == 100_000
    assert reports == sorted(reports)
    assert reports[0][0] < reports[-1][0] == reports[-1][1] == 1_600_000


@given(st.lists(st.binary(max_size=60) | st.just(b'{"prompt":"x"}'), max_size=5), st.booleans())
def test_any_files(tmp_path_factory: pytest.TempPathFactory, contents: list[bytes], keep_extra: bool) -> None:
    """Any bytes in any number of files give jobs, problems, or an error of our own."""
    folder = tmp_path_factory.mktemp("any")
    paths = [str(folder / f"{place}.jsonl") for place in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        Path(path).write_bytes(content)
    with suppress(InputError):
        checked, jobs = read_jobs(*paths, keep_extra=keep_extra, skip_invalid=True)
        assert len(jobs) == checked.jobs
