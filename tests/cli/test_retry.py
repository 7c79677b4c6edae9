"""`krea-batch retry` resubmits jobs that ended without an image, and no others."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from krea_batch.errors import InternalError, JobError
from krea_batch.jobs import State
from krea_batch.ledger.sqlite import SqliteLedger
from krea_batch.maintenance.retry import RetryPlan
from tests.engine_fixtures import change_ledger, ledger_states, query_ledger
from tests.processes import (
    PROCESS_TIMEOUT_S,
    RunningSimulator,
    StartSimulator,
    answer_in_terminal,
    run_command,
    start_command,
    wait_until,
    write_jobs,
)
from tests.test_readme import make_ambiguous

pytestmark = pytest.mark.slow

GATEWAY_OPTIONS = ("--latency=fixed:0.1", "--tiny")
RETRY_RUN_OPTIONS = ("--poll-interval=0.1", "--rate=100/s")


@pytest.fixture
def gateway(simulate: StartSimulator) -> RunningSimulator:
    return simulate(*GATEWAY_OPTIONS)


def run_jobs_at(gateway: RunningSimulator, folder: Path, jobs: int = 4) -> Path:
    """Run jobs in `out`, and return that run directory."""
    write_jobs(folder / "jobs.jsonl", jobs)
    run_command(
        "run", "jobs.jsonl", "--out", "out", "--gateway", gateway.gateway_url, *RETRY_RUN_OPTIONS, "-q", cwd=folder
    )
    return folder / "out"


FailedRun = Callable[..., tuple[RunningSimulator, Path]]
"""The fixture `failed_run`: return a gateway without faults and a run directory whose jobs all failed at it."""


@pytest.fixture(scope="module")
def made_runs() -> dict[str, Path]:
    """Return the folders of failed runs by fault, of which tests use copies."""
    return {}


@pytest.fixture
def failed_run(
    simulate: StartSimulator, made_runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> FailedRun:
    def make(fault: str) -> Path:
        folder = tmp_path_factory.mktemp(fault)
        gateway = simulate(*GATEWAY_OPTIONS, "--fault", f"{fault}=1", "--state-file", str(folder / "state.jsonl"))
        run_jobs_at(gateway, folder)
        gateway.close()
        return folder

    def copy(fault: str = "job-failed") -> tuple[RunningSimulator, Path]:
        if fault not in made_runs:
            made_runs[fault] = make(fault)
        shutil.copytree(made_runs[fault], tmp_path, dirs_exist_ok=True)
        return simulate(*GATEWAY_OPTIONS, "--state-file", str(tmp_path / "state.jsonl")), tmp_path / "out"

    return copy


def charge_counts(out: Path) -> dict[str, int]:
    done = run_command("status", out, "--json", cwd=out.parent)
    counts: dict[str, int] = json.loads(done.stdout)["charges"]
    return counts


@pytest.mark.parametrize(
    ("fault", "state", "charged"),
    [("job-failed", "failed", 8), ("submit-400", "rejected", 4), ("job-error", "errored", 4)],
)
def test_all_unsuccessful_jobs(failed_run: FailedRun, tmp_path: Path, fault: str, state: str, charged: int) -> None:
    """Each job is submitted once more and gets its image; earlier charges stay in the ledger."""
    gateway, out = failed_run(fault)
    assert set(ledger_states(out).values()) == {state}
    done = run_command("retry", out, "--yes", "--gateway", gateway.gateway_url, *RETRY_RUN_OPTIONS, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert set(ledger_states(out).values()) == {"succeeded"}
    assert len(list((out / "images").glob("*.png"))) == 4
    assert charge_counts(out)["charged"] == charged
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [row["status"] for row in rows] == ["succeeded"] * 4
    again = run_command(
        "run", "jobs.jsonl", "--out", "out", "--gateway", gateway.gateway_url, *RETRY_RUN_OPTIONS, cwd=tmp_path
    )
    assert again.returncode == 0
    assert charge_counts(out)["charged"] == charged


def test_only_the_given_ids(failed_run: FailedRun, tmp_path: Path) -> None:
    """With ids, on the command line or in a file, only these jobs are resubmitted."""
    gateway, out = failed_run()
    options = ("--yes", "--gateway", gateway.gateway_url, *RETRY_RUN_OPTIONS)
    assert run_command("retry", out, "00002", *options, cwd=tmp_path).returncode == 1
    assert ledger_states(out) == {"00001": "failed", "00002": "succeeded", "00003": "failed", "00004": "failed"}
    assert run_command("retry", out, "--ids-from=-", *options, cwd=tmp_path, stdin=b"00003\n00001\n").returncode == 1
    assert [job for job, state in ledger_states(out).items() if state == "failed"] == ["00004"]


def test_without_a_terminal_to_confirm(failed_run: FailedRun, tmp_path: Path) -> None:
    """Without a terminal and without --yes, the exit code is 2, and nothing is submitted."""
    gateway, out = failed_run()
    done = run_command("retry", out, "--gateway", gateway.gateway_url, cwd=tmp_path)
    assert done.returncode == 2
    assert "4 jobs to resubmit (4 failed): up to 4 charges" in done.stderr
    assert "pass --yes" in done.stderr
    assert set(ledger_states(out).values()) == {"failed"}
    assert not gateway.admin_request("/ledger")["posts"]


def test_pending_jobs_are_counted_as_charges(failed_run: FailedRun, tmp_path: Path) -> None:
    """Jobs that were never submitted are resumed too, so the question counts their charges."""
    gateway, out = failed_run()
    store = SqliteLedger.open(out / "ledger.db")
    store.transaction(lambda store: store.enqueue("later", b'{"prompt":"a"}', bytes(32), b"{}", ""))
    store.close()
    done = run_command("retry", out, "--gateway", gateway.gateway_url, cwd=tmp_path)
    assert done.returncode == 2
    assert "4 jobs to resubmit (4 failed), 1 not submitted yet: up to 5 charges" in done.stderr


@pytest.mark.parametrize(("answer", "state", "code"), [("n\n", "failed", 2), ("y\n", "succeeded", 0)])
def test_confirmation_in_a_terminal(
    failed_run: FailedRun, tmp_path: Path, answer: str, state: str, code: int
) -> None:
    """In a terminal the answer decides whether the jobs are resubmitted."""
    gateway, out = failed_run()
    command = ("retry", out, "--gateway", gateway.gateway_url, *RETRY_RUN_OPTIONS)
    assert answer_in_terminal(answer, *command, cwd=tmp_path) == code
    assert set(ledger_states(out).values()) == {state}


def test_jobs_that_cannot_be_retried(gateway: RunningSimulator, tmp_path: Path) -> None:
    """A job with its image, an ambiguous job and an unknown id are refused with the reason; nothing is submitted."""
    out = run_jobs_at(gateway, tmp_path)
    make_ambiguous(out)
    for job_id, expected in (
        ("00001", "it already has its image"),
        ("fox", "it may have been charged; use krea-batch resolve"),
        ("none", "the job is not in this run"),
    ):
        done = run_command("retry", out, job_id, "--yes", "--gateway", gateway.gateway_url, cwd=tmp_path)
        assert done.returncode == 2
        assert expected in done.stderr
    done = run_command("retry", out, "--yes", "--gateway", gateway.gateway_url, cwd=tmp_path)
    assert (done.returncode, ledger_states(out)["fox"]) == (0, "ambiguous")
    assert "nothing to resubmit" in done.stdout
    assert len(gateway.admin_request("/ledger")["posts"]) == 4


def test_abandoned_jobs_only_with_status_cancelled(gateway: RunningSimulator, tmp_path: Path) -> None:
    """An abandoned job is not resubmitted by default, but with --status cancelled."""
    out = run_jobs_at(gateway, tmp_path, 1)
    make_ambiguous(out)
    assert run_command("resolve", out, "--abandon", cwd=tmp_path).returncode == 0
    options = ("--yes", "--gateway", gateway.gateway_url, *RETRY_RUN_OPTIONS)
    run_command("retry", out, *options, cwd=tmp_path)
    assert ledger_states(out)["fox"] == "cancelled"
    assert run_command("retry", out, "--status", "cancelled", *options, cwd=tmp_path).returncode == 0
    assert ledger_states(out)["fox"] == "succeeded"
    assert charge_counts(out) == {"charged": 2, "refunded": 0, "unknown": 1, "server_errors": 0}


def test_a_killed_retry_resumes(failed_run: FailedRun, tmp_path: Path) -> None:
    """After kill -9 during a retry, `run` resumes the jobs, and each job has at most one further POST."""
    gateway, out = failed_run()
    process = start_command("retry", out, "--yes", "--gateway", gateway.gateway_url, "--rate=2/s", cwd=tmp_path)
    wait_until(lambda: gateway.admin_request("/ledger")["posts"], process)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=PROCESS_TIMEOUT_S)
    options: dict[str, Any] = {"cwd": tmp_path}
    run_command("run", "jobs.jsonl", "--out", "out", "--gateway", gateway.gateway_url, *RETRY_RUN_OPTIONS, **options)
    found = ledger_states(out)
    assert set(found.values()) <= {"succeeded", "ambiguous"}
    assert len(gateway.admin_request("/ledger")["posts"]) <= 4
    assert len([post for post in gateway.admin_request("/ledger")["posts"] if post["charged"]]) <= 4


class TestLimit:
    def stopped_run(self, failed_run: FailedRun) -> tuple[RunningSimulator, Path]:
        """Return a gateway, and a run with --max-charges 6 whose four jobs have failed and are charged."""
        gateway, out = failed_run()
        options = ("--gateway", gateway.gateway_url, *RETRY_RUN_OPTIONS, "-q")
        run_command("run", "jobs.jsonl", "--out", "out", "--max-charges", "6", *options, cwd=out.parent)
        assert charge_counts(out)["charged"] == 4
        return gateway, out

    def retry(self, gateway: RunningSimulator, out: Path, *options: str) -> tuple[int, str]:
        common = ("--yes", "--gateway", gateway.gateway_url, *RETRY_RUN_OPTIONS)
        done = run_command("retry", out, *common, *options, cwd=out.parent)
        return done.returncode, done.stderr

    def test_of_the_latest_run(self, failed_run: FailedRun) -> None:
        """Without --max-charges a retry keeps to that of the latest run, and says so; so does the next one."""
        gateway, out = self.stopped_run(failed_run)
        for _ in range(2):
            code, said = self.retry(gateway, out)
            assert code == 3
            assert "--max-charges 6, as in the latest run; --max-charges none removes the limit" in said
            assert charge_counts(out)["charged"] == 6

    @pytest.mark.parametrize(("limit", "charged", "code"), [("7", 7, 3), ("none", 8, 0), ("0", 4, 3)])
    def test_a_given_one_is_used(self, failed_run: FailedRun, limit: str, charged: int, code: int) -> None:
        """A given --max-charges replaces the remembered one, and `none` removes it."""
        gateway, out = self.stopped_run(failed_run)
        exit_code, said = self.retry(gateway, out, "--max-charges", limit)
        assert (exit_code, charge_counts(out)["charged"]) == (code, charged)
        assert "latest run" not in said

    def test_an_invalid_one(self, failed_run: FailedRun) -> None:
        """A limit that is neither a number nor none is an error, and nothing is submitted."""
        gateway, out = self.stopped_run(failed_run)
        for limit in ("all", "-1", "", "1.5"):
            assert self.retry(gateway, out, f"--max-charges={limit}")[0] == 2
        assert charge_counts(out)["charged"] == 4


def test_simulated_runs_need_no_confirmation(tmp_path: Path) -> None:
    """With --simulate nothing is charged, so the command does not ask."""
    write_jobs(tmp_path / "jobs.jsonl", 1)
    simulated = ("--simulate", "--time-scale=100", *RETRY_RUN_OPTIONS)
    assert run_command("run", "jobs.jsonl", "--out", "out", *simulated, cwd=tmp_path).returncode == 0
    change_ledger(tmp_path / "out", "UPDATE jobs SET state = 'failed', disposition = 'unsuccessful', files = '[]'")
    done = run_command("retry", "out", *simulated, cwd=tmp_path, key="")
    assert done.returncode == 0, done.stderr
    assert ledger_states(tmp_path / "out") == {"00001": "succeeded"}


class TestRules:
    def test_retry_is_all_or_nothing(self, gateway: RunningSimulator, tmp_path: Path) -> None:
        """If one of the jobs cannot be retried, none of them changes."""
        out = run_jobs_at(gateway, tmp_path)
        change_ledger(out, "UPDATE jobs SET state = 'failed', disposition = 'unsuccessful' WHERE job_id < '00003'")
        [(n,)] = query_ledger(out, "SELECT job_no FROM jobs WHERE job_id = '00003'")
        with closing(SqliteLedger.open(out / "ledger.db")) as store, pytest.raises(InternalError, match="succeeded"):
            store.retry(n, State.SUCCEEDED)
        with RetryPlan(out) as retries:
            assert retries.jobs() == {"00001": State.FAILED, "00002": State.FAILED}
            assert retries.jobs([State.REJECTED]) == {}
            with pytest.raises(KeyError):
                retries.resubmit(["00001", "00003"])
            assert retries.jobs() == {"00001": State.FAILED, "00002": State.FAILED}
            with pytest.raises(JobError, match="it already has its image"):
                retries.select(["00001", "00003"])
