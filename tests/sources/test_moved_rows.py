"""Test that the rows of an edited file keep the ids under which their requests were submitted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from krea_batch.gateway.wire import fingerprint
from krea_batch.jobs import Job
from krea_batch.sources import CheckResult, InputOptions, JobFiles
from krea_batch.sources.moved_rows import RecordedJobs, number_of

ADVICE = "or use another --out, or --submit-changed, which pays for new images"

Ledger = dict[str, bytes]


def read(
    path: Path, ledger: Ledger, *, submit_changed: bool = False, checkpoint: bytes | None = None
) -> tuple[CheckResult, list[Job], bytes | None]:
    """Check and read a file against a ledger. Return the result, the jobs and the checkpoint."""

    def lookup(ids: Sequence[str]) -> Ledger:
        return {job_id: ledger[job_id] for job_id in ids if job_id in ledger}

    options = InputOptions(submit_changed=submit_changed)
    with JobFiles([str(path)], options=options, skip_invalid=True) as files:
        files.resume_from(checkpoint)
        recorded = RecordedJobs(len(ledger), lambda: iter(ledger.items()))
        checked = files.check(lookup, recorded_jobs=recorded)
        jobs = list(files)
        position = files.checkpoint()
    return checked, jobs, position[1] if position else None


def run(path: Path, ledger: Ledger, lines: Sequence[str], *, jobs: int | None = None) -> list[str]:
    """Write the lines, and record the jobs that the ledger does not have, at most `jobs`. Return their prompts."""
    path.write_text("".join(f"{line}\n" for line in lines))
    new = [job for job in read(path, ledger, submit_changed=True)[1] if job.id not in ledger][:jobs]
    ledger.update({job.id: fingerprint(job) for job in new})
    return [job.prompt for job in new]


def test_a_line_put_in(tmp_path: Path) -> None:
    """A line put in gets the next free number; the lines after it keep their ids. There is no checkpoint."""
    path, ledger = tmp_path / "p.txt", Ledger()
    assert run(path, ledger, ["kite", "door", "boat"]) == ["kite", "door", "boat"]
    path.write_text("new\nkite\ndoor\nboat\n")
    checked, jobs, checkpoint = read(path, ledger)
    assert (checked.bad_lines, checked.recorded, checkpoint) == (0, 3, None)
    ids = {job.prompt: job.id for job in jobs}
    assert ids == {"new": "00005", "kite": "00001", "door": "00002", "boat": "00003"}
    ledger["00005"] = fingerprint(Job(prompt="new"))
    assert {job.prompt: job.id for job in read(path, ledger)[1]} == ids


def test_a_line_taken_out(tmp_path: Path) -> None:
    """If a line is taken out, the others keep their ids and nothing is new."""
    path, ledger = tmp_path / "p.txt", Ledger()
    run(path, ledger, ["kite", "door", "boat"])
    path.write_text("kite\nboat\n")
    checked, jobs, _ = read(path, ledger)
    assert (checked.bad_lines, checked.recorded) == (0, 2)
    assert [job.id for job in jobs] == ["00001", "00003"]


def test_a_changed_line(tmp_path: Path) -> None:
    """A changed line is refused, with advice that works: it gets a new id, and the others keep theirs."""
    path, ledger = tmp_path / "p.txt", Ledger()
    run(path, ledger, ["kite", "door", "boat"])
    path.write_text("kite\na green door\nboat\n")
    checked, _, _ = read(path, ledger)
    assert [str(problem) for problem in checked.problems] == [
        f'{path}:2: the line or an option changed since its id "00002" was submitted; restore it; {ADVICE}'
    ]
    checked, jobs, _ = read(path, ledger, submit_changed=True)
    assert checked.bad_lines == 0
    assert [job.id for job in jobs] == ["00001", "00004", "00003"]


def test_ids_that_are_numbers(tmp_path: Path) -> None:
    """Ids given in the file are never taken by other rows, and new numbers are above them."""
    path = tmp_path / "p.jsonl"
    ledger = {f"{n:05d}": fingerprint(Job(prompt=prompt)) for n, prompt in enumerate(["a", "b", "c"], 1)}
    path.write_text(
        '{"prompt": "new"}\n{"prompt": "a"}\n{"prompt": "b"}\n'
        '{"prompt": "c", "id": "00003"}\n{"prompt": "x", "id": "00070"}\n'
    )
    checked, jobs, _ = read(path, ledger)
    assert checked.bad_lines == 0
    assert [job.id for job in jobs] == ["00071", "00001", "00002", "00003", "00070"]


def test_checkpoints_of_edited_files(tmp_path: Path) -> None:
    """A checkpoint covers only lines before the edit, and these count as the owners of their ids."""
    path, ledger = tmp_path / "p.txt", Ledger()
    lines = [f"{n} {'x' * 2000}" for n in range(400)]
    run(path, ledger, lines[:300])
    checkpoint = read(path, ledger)[2]
    assert checkpoint
    path.write_text("".join(f"{line}\n" for line in [*lines[:300], lines[0], "new", *lines[300:]]))
    checked, jobs, _ = read(path, ledger, checkpoint=checkpoint)
    assert (checked.jobs, checked.recorded, checked.bad_lines) == (402, 300, 0)
    assert [job.id for job in jobs if job.id not in ledger] == [f"{n:05d}" for n in range(301, 403)]
    path.write_text("".join(f"{line}\n" for line in ["new", *lines[:300]]))
    checked, jobs, _ = read(path, ledger, checkpoint=checkpoint)
    assert (checked.recorded, [job.id for job in jobs if job.id not in ledger]) == (300, ["00302"])


PROMPTS = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=8)


@given(st.lists(st.tuples(PROMPTS, st.integers(0, 8)), min_size=1, max_size=6))
def test_nothing_is_paid_twice(tmp_path_factory, edits: list[tuple[list[str], int]]) -> None:  # type: ignore[no-untyped-def]
    """However a list is edited, and wherever runs are killed, a prompt is paid for as often as a list has it.

    The ids of a list are distinct, and a run that follows a complete one pays for nothing.
    """
    path, ledger = tmp_path_factory.mktemp("edits") / "p.txt", Ledger()
    paid: list[str] = []
    most: dict[str, int] = {}
    for lines, killed_after in edits:
        for prompt in lines:
            most[prompt] = max(most.get(prompt, 0), lines.count(prompt))
        paid += run(path, ledger, lines, jobs=killed_after)
        paid += run(path, ledger, lines)
        assert run(path, ledger, lines) == []
        jobs = read(path, ledger)[1]
        assert [job.prompt for job in jobs] == lines
        assert len({job.id for job in jobs}) == len(lines)
        assert all(ledger[job.id] == fingerprint(job) for job in jobs)
    assert {prompt: paid.count(prompt) for prompt in most} == most


def test_numbers() -> None:
    """Only an id that a row could have by default is a number."""
    assert [number_of(job_id) for job_id in ("00001", "123456", "1", "000001", "٠٠٠٠١", "a", "9" * 30)] == [
        1,
        123456,
        *[None] * 5,
    ]
