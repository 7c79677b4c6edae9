"""`krea-batch recover` after a ledger was deleted, restored from an older copy, or copied without its WAL."""

from __future__ import annotations

import shlex
import shutil
import sqlite3
import stat
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tests.crash.crash_scenario import SIMULATOR_OPTIONS, CrashScenario
from tests.docs.pages import code_blocks
from tests.engine_fixtures import ledger_states
from tests.processes import (
    PROCESS_TIMEOUT_S,
    StartSimulator,
    answer_in_terminal,
    result_rows,
    run_command,
    wait_until,
)

pytestmark = pytest.mark.slow

JOBS = 60


@pytest.fixture
def scenario(simulate: StartSimulator, tmp_path: Path) -> CrashScenario:
    return CrashScenario(simulate(*SIMULATOR_OPTIONS), tmp_path, JOBS)


def posts(scenario: CrashScenario) -> list[str]:
    """Return the prompts of all POSTs that the simulator has charged."""
    answer = scenario.simulator.admin_request("/ledger")
    return [post["body"]["prompt"] for post in answer["posts"] if post["charged"]]


def require_refused(scenario: CrashScenario) -> str:
    """Check that the run is refused with exit code 2 and sends nothing. Return what it prints."""
    before = posts(scenario)
    refused = run_command(*scenario.command, cwd=scenario.directory)
    assert refused.returncode == 2, refused.stderr
    assert posts(scenario) == before
    assert f"krea-batch recover {scenario.out}" in refused.stderr
    return refused.stderr


def recover(scenario: CrashScenario) -> str:
    done = run_command("recover", scenario.out, "--yes", cwd=scenario.directory)
    assert done.returncode == 0, done.stderr
    assert "and their number is unknown" in " ".join(done.stdout.split())
    return done.stdout


def test_the_ledger_is_deleted(scenario: CrashScenario) -> None:
    """60 of 60 images are refused, recovered, and not paid again."""
    assert scenario.finish() == 0
    for path in scenario.out.glob("ledger.db*"):
        path.unlink()
    assert "ledger.db is missing, but results.jsonl has 60 rows" in require_refused(scenario)
    status = run_command("status", scenario.out, cwd=scenario.directory)
    assert f"rebuild it with krea-batch recover {scenario.out}" in status.stderr
    printed = recover(scenario)
    assert "60 jobs to add: 60 succeeded" in printed
    assert scenario.finish() == 0
    assert scenario.check_accounting() == 0
    assert len(posts(scenario)) == JOBS


def test_an_older_copy(scenario: CrashScenario) -> None:
    """A backup of the middle of the run is refused, recovered, and no job with a row is paid again."""
    process = scenario.start()
    wait_for_rows(scenario, process, 20)
    process.kill()
    process.wait()
    (scenario.directory / "backup").mkdir()
    for path in scenario.out.glob("ledger.db*"):
        shutil.copy(path, scenario.directory / "backup")
    scenario.finish()
    for path in scenario.out.glob("ledger.db*"):
        path.unlink()
    for path in (scenario.directory / "backup").iterdir():
        shutil.copy(path, scenario.out)
    paid = posts(scenario)
    assert "ledger.db is older than results.jsonl" in require_refused(scenario)
    recover(scenario)
    scenario.finish()
    assert posts(scenario) == paid
    again = run_command("recover", scenario.out, cwd=scenario.directory)
    assert again.returncode == 0
    assert "nothing to rebuild" in again.stdout


def test_a_copy_without_its_wal(scenario: CrashScenario) -> None:
    """A killed run that is copied without ledger.db-wal is refused; jobs with a row are not paid again."""
    process = scenario.start()
    wait_for_rows(scenario, process, 20)
    process.kill()
    process.wait()
    # The worst case: nothing of the run was copied into ledger.db.
    copy_without_jobs(scenario.out / "ledger.db")
    rows = {row["request"]["prompt"] for row in result_rows(scenario.out)}
    require_refused(scenario)
    recover(scenario)
    run_command(*scenario.command, cwd=scenario.directory)
    paid_twice = {prompt for prompt, count in Counter(posts(scenario)).items() if count > 1}
    assert not paid_twice & rows


def test_the_backup_of_the_documentation(scenario: CrashScenario) -> None:
    """The documented command copies a ledger during a run; the copy alone has every job that had a row."""
    if shutil.which("sqlite3") is None:
        pytest.skip("sqlite3 is not installed (apt install sqlite3)")
    [command] = [
        line for block in code_blocks("sh") for line in block.text.splitlines() if line.startswith("sqlite3")
    ]
    process = scenario.start()
    wait_for_rows(scenario, process, 20)
    rows = {row["id"] for row in result_rows(scenario.out)}
    local = command.replace("runs/cats", str(scenario.out))
    subprocess.run(shlex.split(local), cwd=scenario.directory, check=True, timeout=PROCESS_TIMEOUT_S)
    process.kill()
    process.wait()
    copy = scenario.directory / "copy"
    copy.mkdir()
    shutil.copy(scenario.directory / "cats-ledger.db", copy / "ledger.db")
    assert {job_id for job_id, state in ledger_states(copy).items() if state == "succeeded"} >= rows


def wait_for_rows(scenario: CrashScenario, process: subprocess.Popen[bytes], count: int) -> None:
    """Wait until results.jsonl has this many rows."""
    results = scenario.out / "results.jsonl"
    wait_until(lambda: results.exists() and results.read_bytes().count(b"\n") >= count, process)


def copy_without_jobs(ledger: Path) -> None:
    """Replace a ledger by one with the same tables and no jobs, and remove its WAL."""
    connection = sqlite3.connect(ledger)
    connection.executescript("DELETE FROM submissions; DELETE FROM jobs; DELETE FROM checkpoint;")
    connection.execute("DELETE FROM results_mark")
    connection.commit()
    connection.close()


def test_only_images_are_left(scenario: CrashScenario) -> None:
    """Without ledger and results, a run stops before its first POST if images have the names of its jobs."""
    scenario.finish()
    for path in [*scenario.out.glob("ledger.db*"), scenario.out / "results.jsonl"]:
        path.unlink()
    stopped = run_command(*scenario.command, cwd=scenario.directory)
    assert stopped.returncode == 3
    assert "images/ has 60 images of jobs that ledger.db would submit for the first time" in stopped.stderr
    assert len(posts(scenario)) == JOBS


def test_a_new_run_directory_is_private(tmp_path: Path) -> None:
    """Whichever option creates the run directory, only its owner can enter it."""
    (tmp_path / "jobs.txt").write_text("a cat\n")
    options = ("--simulate", "--time-scale=100", "--poll-interval=0.1", "--log-file=out/run.log", "--verbose")
    assert run_command("run", "jobs.txt", "--out", "out", *options, cwd=tmp_path).returncode == 0
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o700


def test_it_asks(scenario: CrashScenario) -> None:
    """Without --yes it asks in a terminal, and elsewhere ends with exit code 2; nothing is changed without a yes."""
    scenario.finish()
    for path in scenario.out.glob("ledger.db*"):
        path.unlink()
    refused = run_command("recover", scenario.out, cwd=scenario.directory)
    assert refused.returncode == 2
    assert "pass --yes" in refused.stderr
    assert not (scenario.out / "ledger.db").exists()
    for answer, code in (("n\n", 2), ("y\n", 0)):
        assert answer_in_terminal(answer, "recover", scenario.out, cwd=scenario.directory, key="") == code
        assert (scenario.out / "ledger.db").exists() is (code == 0)
    assert set(ledger_states(scenario.out).values()) == {"succeeded"}


def test_a_directory_without_results(tmp_path: Path) -> None:
    """Without a results.jsonl the exit code is 2, and nothing is created."""
    (tmp_path / "out").mkdir()
    done = run_command("recover", "out", cwd=tmp_path)
    assert done.returncode == 2
    assert "no results.jsonl to rebuild a ledger from" in done.stderr
    assert list((tmp_path / "out").iterdir()) == []
