"""request_ids that the ledger could not take go to a file, and the next start records them in the ledger."""

from __future__ import annotations

import os
import resource
import sqlite3
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from krea_batch.errors import LedgerError, RunDirError
from krea_batch.ledger import Ledger, writer
from krea_batch.ledger.adoption import adopt_spill
from krea_batch.ledger.consistency import open_checked
from krea_batch.ledger.sqlite import SqliteLedger
from krea_batch.maintenance.resolve import AmbiguousJobs
from krea_batch.rules.verdicts import Ambiguous, PollFailed
from krea_batch.storage.spill import SPILL, SpilledId, keep_spill, read_spill, write_spill
from krea_batch.testing import ACCEPT, ScriptedGateway, run_virtual
from tests.engine_fixtures import ledger_states, make_jobs, query_ledger, result_statuses, run_jobs


def run_with_a_ledger_that_fails(out: Path, gateway: ScriptedGateway, count: int) -> None:
    """Run jobs whose acceptances the ledger cannot take, and write their request_ids to the file."""

    def fail(*_: object) -> Any:
        raise sqlite3.OperationalError("database or disk is full")

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(writer._BULK, Ledger.mark_accepted, fail)
        with pytest.raises(LedgerError):
            run_virtual(run_jobs(out, gateway, make_jobs(count), rate="100/s"))
    for request_id, prompt in gateway.charged.items():
        write_spill(out, prompt, request_id, 5.0)


@pytest.mark.parametrize("ambiguous", ["keep", "resubmit"])
def test_no_request_id_is_lost(tmp_path: Path, ambiguous: str) -> None:
    """After a ledger that failed, the next run polls the jobs by their request_ids and submits none again."""
    gateway = ScriptedGateway()
    run_with_a_ledger_that_fails(tmp_path, gateway, 5)
    assert len(gateway.charged) == 5
    assert set(ledger_states(tmp_path).values()) == {"submitting"}
    run_virtual(run_jobs(tmp_path, gateway, make_jobs(5), ambiguous=ambiguous))
    assert set(result_statuses(tmp_path).values()) == {"succeeded"}
    assert len(gateway.submitted_bodies) == 5
    assert not (tmp_path / SPILL).exists()
    charged = query_ledger(tmp_path, "SELECT count(*) FROM submissions WHERE result = 'accepted'")
    assert charged == [(5,)]


def test_a_job_that_another_run_has_submitted_again(tmp_path: Path) -> None:
    """Runs that share a directory may submit a job again before the file is read. Both charges count."""
    gateway = ScriptedGateway()
    gateway.submit_script["j0"] = [Ambiguous("cut"), ACCEPT]
    run_virtual(run_jobs(tmp_path, gateway, make_jobs(1), ambiguous="resubmit"))
    write_spill(tmp_path, "j0", "krea_first", 5.0)
    run_virtual(run_jobs(tmp_path, gateway, []))
    assert query_ledger(tmp_path, "SELECT result, s.request_id = 'krea_first' FROM submissions s") == [
        ("accepted", 1),
        ("accepted", 0),
    ]
    assert result_statuses(tmp_path) == {"j0": "succeeded"}
    assert not (tmp_path / SPILL).exists()


def test_a_doubt_that_cannot_be_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Why a POST is ambiguous, and which request_id it may have, is written to standard error as the last resort."""
    gateway = ScriptedGateway()
    gateway.charged["krea_maybe"] = "j0"
    gateway.submit_script["j0"] = [Ambiguous("the answer is cut", b"{", ("krea_maybe",))]
    gateway.poll_script["j0"] = [PollFailed("no answer in time")]

    def fail(*_: object) -> Any:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(SqliteLedger, "mark_ambiguous", fail)
    with pytest.raises(LedgerError):
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(1)))
    error = capsys.readouterr().err
    assert f"job 'j0' of {tmp_path}" in error
    assert "the answer is cut; its request_id may be krea_maybe" in error


def test_before_a_decision(tmp_path: Path) -> None:
    """`resolve` does not offer jobs as ambiguous whose request_ids are in the file."""
    gateway = ScriptedGateway()
    run_with_a_ledger_that_fails(tmp_path, gateway, 2)
    with AmbiguousJobs(tmp_path) as decisions:
        assert decisions.jobs == []
    assert set(ledger_states(tmp_path).values()) == {"accepted"}


def test_an_ambiguous_job_is_adopted(tmp_path: Path) -> None:
    """A job that an earlier start has marked as ambiguous is accepted when the file is read."""
    gateway = ScriptedGateway()
    run_with_a_ledger_that_fails(tmp_path, gateway, 1)
    (tmp_path / SPILL).rename(tmp_path / "aside")
    run_virtual(run_jobs(tmp_path, gateway, make_jobs(1)))
    assert result_statuses(tmp_path) == {"j0": "ambiguous"}
    (tmp_path / "aside").rename(tmp_path / SPILL)
    run_virtual(run_jobs(tmp_path, gateway, make_jobs(1)))
    assert result_statuses(tmp_path) == {"j0": "succeeded"}
    assert len(gateway.submitted_bodies) == 1


def test_the_file_is_kept_until_the_adoption_is_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the ledger fails again, or the process ends before the file is removed, the next start repeats it."""
    gateway = ScriptedGateway()
    run_with_a_ledger_that_fails(tmp_path, gateway, 3)
    before = (tmp_path / SPILL).read_bytes()

    def fail(*_: object) -> Any:
        raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as patch:
        patch.setattr(SqliteLedger, "mark_accepted", fail)
        with pytest.raises(LedgerError):
            open_checked(tmp_path)
    assert (tmp_path / SPILL).read_bytes() == before
    with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
        patch.setattr("krea_batch.ledger.adoption.keep_spill", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        open_checked(tmp_path)
    assert (tmp_path / SPILL).read_bytes() == before
    assert set(ledger_states(tmp_path).values()) == {"accepted"}
    open_checked(tmp_path).close()
    assert not (tmp_path / SPILL).exists()


def test_lines_that_cannot_be_recorded_stay(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A line that is torn, or whose job has another request_id, stays in the file and is logged; others are done."""
    gateway = ScriptedGateway()
    run_virtual(run_jobs(tmp_path, gateway, make_jobs(2)))
    store = SqliteLedger.open(tmp_path / "ledger.db")
    store.transaction(lambda store: store.record_intent("new", b"{}", bytes(32), b"{}", 1.0, ""))
    write_spill(tmp_path, "j0", "another-request_id", 1.0)
    with (tmp_path / SPILL).open("ab") as file:
        file.write(b'{"job_id":"j1","requ')
    write_spill(tmp_path, "new", "r-new", 2.0)
    write_spill(tmp_path, "j1", next(iter(gateway.charged)), 2.0)  # of j0
    adopt_spill(store, tmp_path)
    store.close()
    kept = [line.spilled.job_id if line.spilled else None for line in read_spill(tmp_path)]
    assert kept == ["j0", None, "j1"]
    assert caplog.text.count("request_id not recorded") == 3
    assert stat.S_IMODE((tmp_path / SPILL).stat().st_mode) == 0o600
    assert ledger_states(tmp_path)["new"] == "accepted"


def test_a_job_that_the_ledger_does_not_have(tmp_path: Path) -> None:
    """A request_id of an unknown job shows that the ledger is not the one of this run: it is refused."""
    gateway = ScriptedGateway()
    run_virtual(run_jobs(tmp_path, gateway, make_jobs(1)))
    write_spill(tmp_path, "lost", "r-1", 1.0)
    with pytest.raises(RunDirError, match=r"unrecorded\.jsonl has the request_id of job 'lost'"):
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(2)))
    assert len(gateway.submitted_bodies) == 1


# ---- the file --------------------------------------------------------------------------------------------


def test_it_is_private_and_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line is synced when `write_spill` returns, and only the owner can read the file."""
    synced: list[int] = []
    real = os.fsync

    def record_sync(fd: int) -> None:
        synced.append(os.fstat(fd).st_size if stat.S_ISREG(os.fstat(fd).st_mode) else -1)
        real(fd)

    monkeypatch.setattr(os, "fsync", record_sync)
    write_spill(tmp_path, "a", "r-1", 1.5)
    size_bytes = (tmp_path / SPILL).stat().st_size
    assert synced == [size_bytes, -1]
    assert stat.S_IMODE((tmp_path / SPILL).stat().st_mode) == 0o600
    assert [line.spilled for line in read_spill(tmp_path)] == [SpilledId("a", "r-1", 1.5)]


def test_a_torn_line_does_not_damage_the_next(tmp_path: Path) -> None:
    """After a line that was cut off, the next one starts on a line of its own."""
    (tmp_path / SPILL).write_bytes(b'{"job_id":"a","request_id":"r')
    write_spill(tmp_path, "ü\n", "r-2", 1.0)
    assert [line.spilled for line in read_spill(tmp_path)] == [None, SpilledId("ü\n", "r-2", 1.0)]


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    """A symbolic link at its place raises OSError, and its target is not changed."""
    target = tmp_path / "target"
    target.write_text("mine")
    (tmp_path / SPILL).symlink_to(target)
    with pytest.raises(OSError, match="symbolic"):
        write_spill(tmp_path, "a", "r-1", 1.0)
    assert target.read_text() == "mine"


def test_a_full_disk(tmp_path: Path) -> None:
    """A disk without room raises OSError, so that the caller can say the request_id elsewhere."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_spill(tmp_path, "a", "r-1", 1.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [spilled for _, spilled in read_spill(tmp_path)] == [None]


def test_no_file(tmp_path: Path) -> None:
    """Without a file there are no lines, and removing it does nothing."""
    assert read_spill(tmp_path) == []
    keep_spill(tmp_path, [])
    assert list(tmp_path.iterdir()) == []


def test_a_request_id_of_an_unknown_job(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """If the ledger has none of the jobs, the file stays as it is, and each line is logged."""
    store = SqliteLedger.open(tmp_path / "ledger.db")
    write_spill(tmp_path, "never seen", "r-1", 1.0)
    before = (tmp_path / SPILL).read_bytes()
    adopt_spill(store, tmp_path)
    store.close()
    assert (tmp_path / SPILL).read_bytes() == before
    assert "r-1" in caplog.text
