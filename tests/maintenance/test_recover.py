"""A ledger that is not the one of its results stops a run before anything is sent, and `recover` rebuilds it."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krea_batch import Engine, Job
from krea_batch.errors import RunDirError
from krea_batch.gateway import wire
from krea_batch.jobs import State
from krea_batch.ledger import Charges
from krea_batch.ledger.consistency import RowHead, check_run_dir, is_later
from krea_batch.ledger.rows import KnownJob
from krea_batch.ledger.sqlite import SqliteLedger
from krea_batch.maintenance.recover import RecoverReport, decode_row, recover_run
from krea_batch.maintenance.retry import RetryPlan
from krea_batch.rules.verdicts import Ambiguous, Errored, Failed, Refusal, Refused, Waiting
from krea_batch.storage.results_file import encode_row
from krea_batch.storage.sinks.folder import FolderSink
from krea_batch.testing import ScriptedGateway, make_png, run_until_killed, run_virtual
from tests.engine_fixtures import ledger_states, make_jobs, result_statuses, rows_by_id, run_jobs

JOBS = 60
MIXED = {
    "j0": "failed", "j1": "errored", "j2": "rejected", "j3": "ambiguous", "j4": "timed_out", "j5": "succeeded",
}  # fmt: skip
LEDGER_FILES = ("ledger.db", "ledger.db-wal", "ledger.db-shm")


def mixed_gateway() -> ScriptedGateway:
    """Return a gateway where the jobs end as in MIXED, and all others succeed."""
    gateway = ScriptedGateway()
    gateway.poll_script["j0"] = [Failed("bad luck")]
    gateway.poll_script["j1"] = [Errored("try again")]
    gateway.submit_script["j2"] = [Refused(Refusal.REJECTED, 400, "no")]
    gateway.submit_script["j3"] = [Ambiguous("cut")]
    gateway.poll_script["j4"] = [Waiting("PROCESSING")]
    return gateway


def delete_ledger(out: Path) -> None:
    for name in LEDGER_FILES:
        (out / name).unlink(missing_ok=True)


def run(out: Path, gateway: ScriptedGateway, count: int = JOBS, **options: Any) -> Engine:
    return run_virtual(run_jobs(out, gateway, make_jobs(count), rate="100/s", job_timeout_s=600.0, **options))


def files_of(out: Path) -> dict[str, bytes]:
    """Return the bytes of every file but the ledger's."""
    paths = [path for path in out.rglob("*") if path.is_file() and path.name not in LEDGER_FILES]
    return {str(path.relative_to(out)): path.read_bytes() for path in paths}


def require_refused(out: Path, gateway: ScriptedGateway, count: int = JOBS) -> str:
    """Check that a run is refused, sends nothing and changes no file. Return the error."""
    posts, before = len(gateway.submitted_bodies), files_of(out)
    with pytest.raises(RunDirError) as caught:
        run(out, gateway, count)
    assert len(gateway.submitted_bodies) == posts
    assert files_of(out) == before
    return str(caught.value)


class TestRefused:
    def test_the_ledger_is_deleted(self, tmp_path: Path) -> None:
        """Without its ledger, a directory with results is refused before a POST; the error names the command."""
        gateway = ScriptedGateway()
        run(tmp_path, gateway)
        delete_ledger(tmp_path)
        error = require_refused(tmp_path, gateway)
        assert "ledger.db is missing, but results.jsonl has 60 rows (jobs j" in error
        assert f"krea-batch recover {tmp_path}" in error
        assert not (tmp_path / "ledger.db").exists()

    def test_library_calls_are_refused_too(self, tmp_path: Path) -> None:
        """`generate` in a directory without its ledger raises at the start of the engine."""
        gateway = ScriptedGateway()
        run(tmp_path, gateway, 2)
        delete_ledger(tmp_path)

        async def main() -> None:
            async with Engine(tmp_path, gateway_client=gateway) as engine:
                await engine.generate(Job(prompt="j0", id="j0"))

        with pytest.raises(RunDirError):
            run_virtual(main())
        assert len(gateway.charged) == 2

    def test_an_older_copy(self, tmp_path: Path) -> None:
        """A ledger of an earlier run is older than results.jsonl: the error says how many rows it does not have."""
        gateway = ScriptedGateway()
        run(tmp_path, gateway, 20)
        shutil.copy(tmp_path / "ledger.db", tmp_path / "backup")
        run(tmp_path, gateway)
        shutil.copy(tmp_path / "backup", tmp_path / "ledger.db")
        error = require_refused(tmp_path, gateway)
        assert "ledger.db is older than results.jsonl, which has 40 rows of jobs that it does not have (j" in error

    def test_an_older_copy_with_the_jobs_pending(self, tmp_path: Path) -> None:
        """A ledger in which all jobs are still pending is refused: results.jsonl says that they are paid."""
        gateway = ScriptedGateway()

        async def enqueue() -> None:
            engine = Engine(tmp_path, gateway_client=gateway, rate="100/s")
            await engine.start()
            for job in make_jobs(JOBS):
                await engine.enqueue(job)
            await engine.aclose(detach=True)

        run_virtual(enqueue())
        paid_before = len(gateway.charged)
        shutil.copy(tmp_path / "ledger.db", tmp_path / "backup")
        run(tmp_path, gateway)
        assert len(gateway.charged) == JOBS > paid_before
        shutil.copy(tmp_path / "backup", tmp_path / "ledger.db")
        assert "in an earlier state" in require_refused(tmp_path, gateway)

    def test_a_wal_without_its_ledger(self, tmp_path: Path) -> None:
        """A WAL whose ledger.db is missing is not deleted: the directory is refused."""
        gateway = ScriptedGateway()
        run_until_killed(run_jobs(tmp_path / "out", gateway, make_jobs(9), rate="100/s"), 3.0, tmp_path / "out")
        out = tmp_path / "out"
        (out / "ledger.db").unlink()
        wal = (out / "ledger.db-wal").read_bytes()
        assert wal
        for refuse in (lambda: run(out, gateway), lambda: recover_run(out), lambda: check_run_dir(out)):
            (out / "results.jsonl").touch()
            with pytest.raises(RunDirError, match="has transactions of it"):
                refuse()
            assert (out / "ledger.db-wal").read_bytes() == wal

    @pytest.mark.parametrize("count", [JOBS, 600])
    def test_only_images_are_left(self, tmp_path: Path, count: int) -> None:
        """An image that has the name of a job to be submitted stops the run: the job is probably paid for."""
        gateway = ScriptedGateway()
        run(tmp_path, gateway, count)
        delete_ledger(tmp_path)
        (tmp_path / "results.jsonl").unlink()
        error = require_refused_in_run(tmp_path, gateway, count)
        assert "of jobs that ledger.db would submit for the first time (j0.png, j1.png, j2.png …)" in error

    def test_only_images_are_left_for_the_library(self, tmp_path: Path) -> None:
        """The same for one job: its POST is not sent, others are."""
        gateway = ScriptedGateway()
        run(tmp_path, gateway, 2)
        delete_ledger(tmp_path)
        (tmp_path / "results.jsonl").unlink()

        async def main() -> None:
            async with Engine(tmp_path, gateway_client=gateway) as engine:
                for _ in range(2):  # the refusal leaves no trace in the engine
                    with pytest.raises(RunDirError, match=r"j0\.png"):
                        await engine.generate(Job(prompt="j0", id="j0"))
                assert (await engine.generate(Job(prompt="new", id="new"))).succeeded

        run_virtual(main())
        assert list(gateway.charged.values()) == ["j0", "j1", "new"]

    def test_an_image_like_a_further_one_of_another_job(self, tmp_path: Path) -> None:
        """`j0-2.png` is the image of a job `j0-2` if j0 is stored and does not have it."""
        gateway = ScriptedGateway()
        run(tmp_path, gateway, 1)
        (tmp_path / "images" / "j0-2.png").write_bytes(make_png())
        with pytest.raises(RunDirError, match=r"an image of jobs .* \(j0-2\.png\)"):
            run_virtual(run_jobs(tmp_path, gateway, [*make_jobs(1), Job(prompt="j0-2", id="j0-2")]))
        assert len(gateway.submitted_bodies) == 1

    def test_images_of_an_older_ledger_without_results(self, tmp_path: Path) -> None:
        """If results.jsonl is gone, too, images of jobs that an older ledger has as pending are refused."""
        gateway = ScriptedGateway()
        run(tmp_path, gateway, 1)
        store = SqliteLedger.open(tmp_path / "ledger.db")
        store.transaction(lambda store: store.enqueue("paid", b'{"prompt":"paid"}', bytes(32), b"{}", ""))
        store.close()
        (tmp_path / "images" / "paid.png").write_bytes(make_png())
        (tmp_path / "results.jsonl").unlink()
        assert "paid.png" in require_refused(tmp_path, gateway, 1)

    def test_unfinished_downloads_are_left(self, tmp_path: Path) -> None:
        """A partial download without a ledger is of a paid job: the directory is refused."""
        (tmp_path / "images").mkdir()
        (tmp_path / "images" / "j0.1.png.part").write_bytes(b"half")
        error = require_refused(tmp_path, ScriptedGateway(), 1)
        assert "unfinished downloads (j0.1.png.part)" in error

    def test_a_results_file_of_others(self, tmp_path: Path) -> None:
        """A results.jsonl without rows of krea-batch, in a directory without a ledger, is not overwritten."""
        (tmp_path / "results.jsonl").write_text('{"score": 1}\n')
        assert "results.jsonl has a line that is not a row of krea-batch" in require_refused(
            tmp_path, ScriptedGateway(), 1
        )

    def test_decisions_are_refused_too(self, tmp_path: Path) -> None:
        """`retry` and `resolve` on an older ledger do not replace the rows that it does not have."""
        gateway = mixed_gateway()
        run(tmp_path, gateway, 6)
        shutil.copy(tmp_path / "ledger.db", tmp_path / "backup")
        run(tmp_path, gateway, 9)
        shutil.copy(tmp_path / "backup", tmp_path / "ledger.db")
        before = files_of(tmp_path)
        with pytest.raises(RunDirError, match="older than results"), RetryPlan(tmp_path):
            pass
        assert files_of(tmp_path) == before


def require_refused_in_run(out: Path, gateway: ScriptedGateway, count: int) -> str:
    """Do the same where the jobs have to be read before the run is refused."""
    posts = len(gateway.submitted_bodies)
    with pytest.raises(RunDirError) as caught:
        run(out, gateway, count)
    assert len(gateway.submitted_bodies) == posts
    return str(caught.value)


class TestNotRefused:
    def test_foreign_files(self, tmp_path: Path) -> None:
        """Files in images/ that are no images of the jobs do not matter."""
        (tmp_path / "images").mkdir()
        foreign = {
            "holiday.png": make_png(), "j0.png": b"a text", "j1.jpg": b"", "j2.png.part": b"", "j3.x.png.part": b"",
        }  # fmt: skip
        for name, data in foreign.items():
            (tmp_path / "images" / name).write_bytes(data)
        run(tmp_path, ScriptedGateway(), 5)
        assert set(result_statuses(tmp_path).values()) == {"succeeded"}
        assert {name: (tmp_path / "images" / name).read_bytes() for name in foreign} == foreign

    def test_a_further_image_of_another_job(self, tmp_path: Path) -> None:
        """A new job `j0-2` is submitted although `j0-2.png` exists: it is the second image of j0."""
        gateway = ScriptedGateway()
        gateway.poll_script["j0"] = [gateway.finished("krea-2-large-text-to-image_00000000", 2)]
        run(tmp_path, gateway, 1)
        assert (tmp_path / "images" / "j0-2.png").exists()
        job = Job(prompt="j0-2", id="j0-2")
        run_virtual(run_jobs(tmp_path, gateway, [*make_jobs(1), job]))
        assert result_statuses(tmp_path) == {"j0": "succeeded", "j0-2": "succeeded"}

    def test_names_that_differ_in_case_only(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """On a file system where J0.png and j0.png are one file, a new job J0 is submitted beside j0."""
        gateway = ScriptedGateway()
        run(tmp_path, gateway, 1)
        monkeypatch.setattr(
            "krea_batch.ledger.consistency.existing_images",
            lambda _, job_ids: [f"{job_id}.png" for job_id in job_ids],
        )
        run_virtual(run_jobs(tmp_path, gateway, [*make_jobs(1), Job(prompt="J0", id="J0")]))
        assert result_statuses(tmp_path) == {"j0": "succeeded", "J0": "succeeded"}

    @pytest.mark.parametrize("end", [b'{"id":"j9","sta', b"\0" * 5000, b'{"id":1}\n', b"\n\n"])
    def test_a_damaged_end_of_results(self, tmp_path: Path, end: bytes) -> None:
        """A last line that a power cut has torn is no row; the run resumes, and the file is whole again."""
        out, gateway = tmp_path / "out", ScriptedGateway()
        run_until_killed(run_jobs(out, gateway, make_jobs(9), rate="5/s"), 9.0, out)
        with (out / "results.jsonl").open("ab") as file:
            file.write(end)
        run(out, gateway, 9)
        assert set(result_statuses(out).values()) == {"succeeded"}
        assert len(gateway.submitted_bodies) == 9

    def test_results_are_behind_the_ledger(self, tmp_path: Path) -> None:
        """Missing rows are normal: the file is appended after the ledger is written."""
        gateway = mixed_gateway()
        run(tmp_path, gateway, 9)
        posts = len(gateway.submitted_bodies)
        results = tmp_path / "results.jsonl"
        for keep in (1, 0):
            results.write_bytes(b"".join(results.read_bytes().splitlines(keepends=True)[:keep]))
            run(tmp_path, gateway, 9)
            assert len(rows_by_id(tmp_path)) == 9
        results.unlink()
        run(tmp_path, gateway, 9)
        assert len(gateway.submitted_bodies) == posts

    def test_rows_that_are_older_than_the_ledger(self, tmp_path: Path) -> None:
        """A retry that was killed before its results were written, and repeated rows, are no contradiction."""
        gateway = mixed_gateway()
        run(tmp_path, gateway, 6)
        rows = (tmp_path / "results.jsonl").read_bytes()
        with RetryPlan(tmp_path) as plan:
            plan.resubmit(plan.jobs())
        (tmp_path / "results.jsonl").write_bytes(rows + rows)
        gateway.poll_script.clear()
        gateway.submit_script.clear()
        run(tmp_path, gateway, 6)
        assert set(result_statuses(tmp_path).values()) == {"succeeded", "ambiguous"}

    def test_rows_with_unknown_fields(self, tmp_path: Path) -> None:
        """Fields that a user or a newer version added do not matter."""
        gateway = ScriptedGateway()
        run(tmp_path, gateway, 3)
        rows = [row | {"note": {"by": "me"}} for row in rows_by_id(tmp_path).values()]
        (tmp_path / "results.jsonl").write_text("".join(json.dumps(row, indent=None) + "\n" for row in rows))
        run(tmp_path, gateway, 3)
        assert len(gateway.submitted_bodies) == 3

    def test_a_run_in_a_sink(self, tmp_path: Path) -> None:
        """A run whose images are in a sink is compared by its rows, and resumes."""
        gateway = ScriptedGateway()
        for _ in range(2):
            run(tmp_path / "out", gateway, 3, sink=FolderSink(tmp_path / "sink"))
        assert len(gateway.submitted_bodies) == 3
        delete_ledger(tmp_path / "out")
        require_refused(tmp_path / "out", gateway, 3)
        assert recover_run(tmp_path / "out").missing_images == 0
        run(tmp_path / "out", gateway, 3, sink=FolderSink(tmp_path / "sink"))
        assert len(gateway.submitted_bodies) == 3


class TestOnlyTheRestIsRead:
    def read_rows(self, out: Path, monkeypatch: pytest.MonkeyPatch) -> int:
        """Return how many rows a check of the directory reads."""
        count = 0
        decode = RowHead

        def counting(line: bytes) -> RowHead:
            nonlocal count
            count += 1
            return decode(**{name: json.loads(line)[name] for name in ("id", "status", "request_id", "attempts")})

        with monkeypatch.context() as patch:
            patch.setattr("krea_batch.ledger.consistency._read_head", counting)
            check_run_dir(out)
        return count

    def test_after_a_normal_end(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """After a normal end no row is read; if the file was changed, every row is."""
        run(tmp_path, ScriptedGateway(), 9)
        assert self.read_rows(tmp_path, monkeypatch) == 0
        rows = (tmp_path / "results.jsonl").read_bytes().splitlines(keepends=True)
        (tmp_path / "results.jsonl").write_bytes(b"".join(rows[::-1]))
        assert self.read_rows(tmp_path, monkeypatch) == 9

    def test_after_a_kill(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """After a kill only the rows of the last second are read."""
        out = tmp_path / "out"
        run_until_killed(run_jobs(out, ScriptedGateway(), make_jobs(200), rate="10/s"), 28.0, out)
        rows = len(rows_by_id(out))
        assert rows > 40
        assert self.read_rows(out, monkeypatch) <= 20


class TestRecover:
    @pytest.mark.parametrize("shuffle", [list, lambda rows: [*rows[::-1], *rows]], ids=["as it is", "repeated rows"])
    def test_the_ledger_is_deleted(self, tmp_path: Path, shuffle: Callable[[list[bytes]], list[bytes]]) -> None:
        """Every job gets its state, request_id and files again, charges are the same, and nothing is paid again."""
        gateway = mixed_gateway()
        run(tmp_path, gateway)
        rows, charges, posts = rows_by_id(tmp_path), charges_of(tmp_path), len(gateway.submitted_bodies)
        assert {job_id: rows[job_id]["status"] for job_id in MIXED} == MIXED
        lines = (tmp_path / "results.jsonl").read_bytes().splitlines(keepends=True)
        (tmp_path / "results.jsonl").write_bytes(b"".join(shuffle(lines)))
        delete_ledger(tmp_path)
        before = files_of(tmp_path)
        report = recover_run(tmp_path)
        assert report.ledger_was_missing
        assert report.added == {State(state): 1 for state in MIXED.values()} | {State.SUCCEEDED: JOBS - 5}
        assert files_of(tmp_path) == before
        assert ledger_states(tmp_path) == {job_id: row["status"] for job_id, row in rows.items()}
        assert charges_of(tmp_path)["charged"] == charges["charged"]
        assert charges_of(tmp_path)["unknown"] == charges["unknown"] == 1
        gateway.poll_script["j4"] = []
        run(tmp_path, gateway)
        assert len(gateway.submitted_bodies) == posts
        after = rows_by_id(tmp_path)
        assert after["j4"]["status"] == "succeeded", "it is polled by its request_id"
        assert {key: row for key, row in after.items() if key != "j4"} == {
            key: row for key, row in rows.items() if key != "j4"
        }
        assert recover_run(tmp_path).changes == 0

    def test_a_job_that_was_answered_500(self, tmp_path: Path) -> None:
        """The last POST of a job that ended so is a server error again, which is counted apart."""
        gateway = ScriptedGateway()
        gateway.submit_script["j0"] = [Refused(Refusal.RETRYABLE, 500, "internal error")]
        run(tmp_path, gateway, 600, max_in_flight=20)
        assert rows_by_id(tmp_path)["j0"]["status"] == "rejected"
        delete_ledger(tmp_path)
        recover_run(tmp_path)
        with closing(SqliteLedger.open(tmp_path / "ledger.db", read_only=True)) as store:
            assert store.charges() == Charges(charged=599, server_errors=1)

    def test_the_rest_of_the_jobs_is_submitted(self, tmp_path: Path) -> None:
        """After `recover`, new jobs of the same file are submitted, and a changed one is refused as before."""
        gateway = ScriptedGateway()
        run(tmp_path, gateway, 20)
        delete_ledger(tmp_path)
        recover_run(tmp_path)
        run(tmp_path, gateway, 30)
        assert len(gateway.submitted_bodies) == 30

    @pytest.mark.parametrize("killed_s", [2.0, 6.0, 9.0, 12.0, 15.0])
    def test_an_older_copy(self, tmp_path: Path, killed_s: float) -> None:
        """Whenever the copy was made, `recover` updates what is behind; only jobs without a row are submitted."""
        out, gateway = tmp_path / "out", mixed_gateway()

        async def main() -> None:
            async with Engine(out, gateway_client=gateway, rate="10/s", job_timeout_s=600.0) as engine:
                running = asyncio.create_task(engine.run(make_jobs(JOBS)))
                await asyncio.sleep(killed_s)
                source = SqliteLedger.open(out / "ledger.db", read_only=True)
                store = SqliteLedger.open(tmp_path / "backup")
                source._sql.backup(store._sql)
                store.close()
                source.close()
                await running

        run_virtual(main())
        rows, posts, charges = rows_by_id(out), len(gateway.submitted_bodies), charges_of(out)
        delete_ledger(out)
        shutil.copy(tmp_path / "backup", out / "ledger.db")
        require_refused(out, gateway)
        report = recover_run(out)
        assert report.changes > 0
        # A timed-out job is the same as an accepted one to the next run.
        states = {job_id: state.replace("accepted", "timed_out") for job_id, state in ledger_states(out).items()}
        assert states == {job_id: row["status"] for job_id, row in rows.items()}
        # The copy may have an accepted submission whose ERROR it did not hear of: that counts as charged.
        assert charges_of(out)["charged"] - charges["charged"] in (0, 1)
        assert charges_of(out)["unknown"] == charges["unknown"]
        gateway.poll_script["j4"] = [Waiting("PROCESSING")]
        run(out, gateway)
        assert len(gateway.submitted_bodies) == posts
        assert recover_run(out).changes == 0

    def test_a_later_state_is_kept(self, tmp_path: Path) -> None:
        """Older rows beside a newer ledger change nothing."""
        gateway = mixed_gateway()
        run(tmp_path, gateway, 9)
        rows = (tmp_path / "results.jsonl").read_bytes()
        gateway.poll_script.clear()
        gateway.submit_script.clear()
        with RetryPlan(tmp_path) as plan:
            plan.resubmit(plan.jobs())
        run(tmp_path, gateway, 9)
        states = ledger_states(tmp_path)
        (tmp_path / "results.jsonl").write_bytes(rows)
        assert recover_run(tmp_path).changes == 0
        assert ledger_states(tmp_path) == states

    def test_it_is_not_confirmed(self, tmp_path: Path) -> None:
        """If the user does not confirm, nothing is changed, and no ledger is left."""
        run(tmp_path, ScriptedGateway(), 3)
        delete_ledger(tmp_path)
        before = files_of(tmp_path)
        asked: list[RecoverReport] = []

        def decline(report: RecoverReport) -> bool:
            asked.append(report)
            return False

        recover_run(tmp_path, decline)
        assert asked[0].changes == 3
        assert files_of(tmp_path) == before
        assert not [name for name in LEDGER_FILES if (tmp_path / name).exists()]

    def test_what_is_reported(self, tmp_path: Path) -> None:
        """Lines that are no rows, images and downloads without a row, and missing images are reported and kept."""
        run(tmp_path, ScriptedGateway(), 4)
        lines = (tmp_path / "results.jsonl").read_bytes().splitlines(keepends=True)
        bad_id = lines[1].replace(b'"id":"j1"', b'"id":"../j1"')
        (tmp_path / "results.jsonl").write_bytes(lines[0] + b"nonsense\n" + bad_id + lines[2] + lines[3][:-20])
        (tmp_path / "images" / "j2.png").unlink()
        (tmp_path / "images" / "j9.7.png.part").write_bytes(b"half")
        delete_ledger(tmp_path)
        before = files_of(tmp_path)
        report = recover_run(tmp_path)
        assert (report.rows, report.added) == (2, {State.SUCCEEDED: 2})
        assert (report.unreadable_lines, report.unreadable) == (2, [2, 3])
        assert report.last_line_incomplete
        assert report.unknown_images == ["j1.png", "j3.png"]
        assert report.unfinished_downloads == ["j9.7.png.part"]
        assert report.missing_images == 1
        assert files_of(tmp_path) == before

    def test_rows_of_another_run(self, tmp_path: Path) -> None:
        """Rows whose requests, or request_ids, are those of other jobs in the ledger are refused as a whole."""
        gateway = ScriptedGateway()
        run(tmp_path / "a", gateway, 3)
        run_virtual(run_jobs(tmp_path / "b", gateway, [Job(prompt="other", id="j1"), Job(prompt="n", id="n")]))
        run_virtual(run_jobs(tmp_path / "c", ScriptedGateway(), [Job(prompt="x", id="x")]))
        for other in ("b", "c"):  # c has the request_ids of a
            shutil.copy(tmp_path / other / "results.jsonl", tmp_path / "a" / "results.jsonl")
            states = ledger_states(tmp_path / "a")
            with pytest.raises(RunDirError, match="different runs"):
                recover_run(tmp_path / "a")
            assert ledger_states(tmp_path / "a") == states

    def test_a_damaged_ledger(self, tmp_path: Path) -> None:
        """A damaged ledger is not built upon: the error says to move it away, and that works."""
        gateway = ScriptedGateway()
        run(tmp_path, gateway, 40)
        with (tmp_path / "ledger.db").open("r+b") as file:
            file.seek(8192)
            file.write(b"\xff" * 8192)
        (tmp_path / "results.jsonl").open("ab").close()
        with pytest.raises(RunDirError, match=r"damaged(?s:.*)move ledger\.db away"):
            recover_run(tmp_path)
        (tmp_path / "ledger.db").rename(tmp_path / "damaged.db")
        assert recover_run(tmp_path).changes == 40
        run(tmp_path, gateway, 40)
        assert len(gateway.submitted_bodies) == 40

    def test_a_directory_in_use(self, tmp_path: Path) -> None:
        """While an engine uses the directory, `recover` is refused."""

        async def main() -> None:
            async with Engine(tmp_path, gateway_client=ScriptedGateway()):
                (tmp_path / "results.jsonl").touch()
                with pytest.raises(RunDirError, match="another Engine of this process"):
                    recover_run(tmp_path)

        run_virtual(main())

    def test_no_results(self, tmp_path: Path) -> None:
        """Without a results.jsonl there is nothing to rebuild from, and nothing is created."""
        with pytest.raises(RunDirError, match=r"no results\.jsonl"):
            recover_run(tmp_path)
        assert list(tmp_path.iterdir()) == []


def charges_of(out: Path) -> dict[str, int]:
    store = SqliteLedger.open(out / "ledger.db", read_only=True)
    charges = store.charges()
    store.close()
    return {"charged": charges.charged, "unknown": charges.unknown}


# ---- rules -----------------------------------------------------------------------------------------------

numbers = st.floats(allow_nan=False, allow_infinity=False)
references = st.lists(
    st.builds(lambda strength: {"image_url": "https://a.example/ü.png", "strength": strength}, numbers), max_size=3
)
requests = st.fixed_dictionaries(
    {"prompt": st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda text: not text.isspace())},
    optional={
        "seed": st.integers(-(2**63), 2**64 - 1),
        "aspect_ratio": st.sampled_from(["1:1", "2.35:1"]),
        "image_style_references": references,
        "styles": st.lists(st.builds(lambda strength: {"id": "s", "strength": strength}, numbers), max_size=2),
    },
)


@given(requests, st.booleans())
def test_a_rebuilt_fingerprint_is_the_one_of_the_job_line(request: dict[str, Any], sort_keys: bool) -> None:
    """A row's request, parsed and encoded again, has the bytes that were sent, whatever a tool did to key order."""
    job = job_of(request)
    row = {
        "id": "a", "status": "succeeded", "request_id": "r-1", "files": [], "error": None,
        "request": json.loads(wire.encode_body(job)), "metadata": {}, "polls": 1, "attempts": 1, "submitted_at": None,
        "accepted_at": None, "finished_at": None, "stored_at": None,
    }  # fmt: skip
    outcome, body = decode_row(json.dumps(row, sort_keys=sort_keys).encode())
    assert body == wire.encode_body(job)
    assert decode_row(encode_row(outcome))[1] == body
    assert wire.fingerprint_of(body) == wire.fingerprint(job)


def job_of(fields: dict[str, Any]) -> Job:
    import msgspec

    return msgspec.convert(fields | {"id": "a"}, Job)


@pytest.mark.parametrize(
    ("row", "attempts", "job", "job_attempts", "request_known", "later"),
    [
        ("succeeded", 1, "pending", 0, False, True),
        ("succeeded", 1, "submitting", 1, False, True),
        ("succeeded", 1, "accepted", 1, True, True),
        ("succeeded", 1, "succeeded", 1, True, False),
        ("failed", 1, "pending", 1, True, False),  # retried by the user
        ("failed", 1, "submitting", 2, True, False),
        ("failed", 2, "pending", 1, False, True),
        ("failed", 1, "accepted", 1, True, True),
        ("timed_out", 1, "accepted", 1, True, False),  # resumed
        ("timed_out", 1, "submitting", 1, False, True),
        ("rejected", 1, "submitting", 1, True, True),
        ("rejected", 1, "pending", 1, True, False),
        ("ambiguous", 1, "pending", 1, True, False),  # to be resubmitted
        ("ambiguous", 2, "pending", 1, True, True),
        ("ambiguous", 1, "accepted", 1, True, False),  # adopted
        ("cancelled", 1, "ambiguous", 1, True, True),
        ("ambiguous", 1, "cancelled", 1, True, False),
        ("unheard_of", 1, "accepted", 1, True, False),
        ("unheard_of", 2, "accepted", 1, True, True),
    ],
)
def test_which_is_later(
    row: str, attempts: int, job: str, job_attempts: int, request_known: bool, later: bool
) -> None:
    """A row is later than the ledger if it shows a submission or a result that the ledger does not have."""
    head = RowHead("a", row, "r-1", attempts)
    known = KnownJob(1, State(job), job_attempts, "r-1" if request_known else None)
    assert is_later(head, known, request_known=request_known) is later
