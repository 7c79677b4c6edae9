"""A run whose ledger is in PostgreSQL, worked on from two directories, as from two machines, through the commands."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pytest

from tests.postgres_server import USER, PostgresServer, shared_server
from tests.processes import (
    PROCESS_TIMEOUT_S,
    RunningSimulator,
    StartSimulator,
    ThreadedSimulator,
    exit_code,
    result_rows,
    run_command,
    start_command,
    wait_until,
    write_jobs,
)

pytestmark = pytest.mark.slow

OPTIONS = ("--rate", "30/s", "--poll-interval", "0.3", "--quiet")
JOBS = 90
_numbers = count(1)


@pytest.fixture
def server() -> PostgresServer:
    return shared_server()


@pytest.fixture
def batch() -> str:
    """The name of a batch that does not exist."""
    return f"command-{next(_numbers)}"


class SharedRun(NamedTuple):
    """A run that has ended: two directories in `folder`, each of which a process worked in."""

    folder: Path
    batch: str
    simulator: RunningSimulator
    workers_shown: list[str]
    exit_codes: tuple[int, int]

    @property
    def gateway(self) -> tuple[str, str]:
        """The option that names its gateway."""
        return "--gateway", self.simulator.gateway_url


@pytest.fixture(scope="module")
def shared_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedRun]:
    """A run of 90 jobs, of which some failed and some are ambiguous; each machine has done a part of it.

    The gateway refuses all submits until both processes work on the run, so that neither is late.
    """
    server, folder = shared_server(), tmp_path_factory.mktemp("machines")
    simulator = ThreadedSimulator("--tiny", "--latency", "uniform:0.2,0.8", "--fault", "submit-503=1")
    batch = f"command-{next(_numbers)}"
    write_jobs(folder / "jobs.jsonl", JOBS)
    ledger = ("--ledger", server.url, "--batch", batch, "--gateway", simulator.gateway_url)
    run = start_command("run", "jobs.jsonl", "--out", "one", *ledger, *OPTIONS, cwd=folder)
    wait_until(lambda: simulator.admin_request("/totals")["posts"], run)
    worker = start_command("worker", "two", *ledger, *OPTIONS, cwd=folder)
    wait_until(lambda: len(workers_of(folder / "one")) == 2, worker)
    shown = run_command("status", "one", cwd=folder).stdout.splitlines()
    simulator.admin_request("/settings", {"faults": {"job-failed": 0.1, "submit-lost": 0.1}})
    codes = exit_code(run), exit_code(worker)
    yield SharedRun(folder, batch, simulator, [line for line in shown if "  worker " in line], codes)
    simulator.close()


def workers_of(out: Path) -> list[object]:
    if not (out / "ledger.toml").exists():
        return []
    workers: list[object] = status_of(out)["workers"]
    return workers


def status_of(out: Path) -> dict[str, Any]:
    done = run_command("status", out.name, "--json", cwd=out.parent)
    assert done.returncode == 0, done.stderr
    status: dict[str, Any] = orjson.loads(done.stdout)
    return status


def check_results(run: SharedRun, out: Path) -> None:
    assert len(result_rows(out)) == JOBS


def check_status(run: SharedRun, out: Path) -> None:
    assert f"{JOBS} jobs in {out.name}" in run_command("status", out.name, cwd=run.folder).stdout
    assert workers_of(out) == []


def check_watch(run: SharedRun, out: Path) -> None:
    done = run_command("watch", out.name, cwd=run.folder)
    assert (done.returncode, f"{JOBS}/{JOBS} done" in done.stdout + done.stderr) == (1, True)


def check_verify(run: SharedRun, out: Path) -> None:
    """Fetch the images that the other machine has stored."""
    done = run_command("verify", out.name, "--repair", *run.gateway, cwd=run.folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list((out / "images").glob("*.png"))) >= status_of(out)["jobs"]["succeeded"]


def check_export(run: SharedRun, out: Path) -> None:
    done = run_command("export", out.name, "--format", "csv", "-o", f"{out.name}.csv", cwd=run.folder)
    assert done.returncode == 0, done.stderr
    rows = (run.folder / f"{out.name}.csv").read_text().splitlines()
    assert len(rows) - 1 == status_of(out)["jobs"]["succeeded"]


def check_report(run: SharedRun, out: Path) -> None:
    done = run_command("report", out.name, "-o", f"{out.name}.html", cwd=run.folder)
    assert done.returncode == 0, done.stderr
    assert "image 0" in (run.folder / f"{out.name}.html").read_text()


def check_view(run: SharedRun, out: Path) -> None:
    process = start_command("view", out.name, "--port", "0", "--no-open", cwd=run.folder)
    assert process.stdout
    line = process.stdout.readline()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PROCESS_TIMEOUT_S)
    assert "http://127.0.0.1:" in line


def check_resolve(run: SharedRun, out: Path) -> None:
    listed = json.loads(run_command("resolve", out.name, "--json", cwd=run.folder).stdout)["ambiguous"]
    assert len(listed) == status_of(out)["jobs"]["ambiguous"]
    done = run_command("resolve", out.name, listed[0]["id"], "--abandon", cwd=run.folder)
    assert done.returncode == 0, done.stderr
    assert {row["id"]: row["status"] for row in result_rows(out)}[listed[0]["id"]] == "cancelled"


def check_retry(run: SharedRun, out: Path) -> None:
    failed, before = status_of(out)["jobs"]["failed"], run.simulator.accepted()
    options = ("--yes", "--status", "failed", "--rate", "30/s", "--poll-interval", "0.3")
    done = run_command("retry", out.name, *options, *run.gateway, cwd=run.folder)
    assert done.returncode == 1, done.stderr
    assert run.simulator.accepted() - before == failed


COMMAND_CHECKS = (
    check_results,
    check_status,
    check_watch,
    check_verify,
    check_export,
    check_report,
    check_view,
    check_resolve,
    check_retry,
)
"""What each command must do in a directory of the run."""


def test_a_run_on_two_machines(shared_run: SharedRun) -> None:
    """Both end when all jobs have ended. No job is charged twice, and `status` shows the processes of both."""
    assert shared_run.exit_codes == (1, 1)
    posts = shared_run.simulator.admin_request("/ledger")["posts"]
    charged = [post["body"]["prompt"] for post in posts if post["charged"]]
    assert len(set(charged)) == len(charged) == JOBS
    assert len(shared_run.workers_shown) == 2
    assert all(list((shared_run.folder / machine / "images").iterdir()) for machine in ("one", "two"))


@pytest.mark.parametrize("check", COMMAND_CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize("machine", ["one", "two"])
def test_each_command(shared_run: SharedRun, machine: str, check: Callable[[SharedRun, Path], None]) -> None:
    """Each command works on the directory of either machine, for all jobs of the run."""
    check(shared_run, shared_run.folder / machine)


def test_a_run_that_was_killed_is_resolved(simulate: StartSimulator, server: PostgresServer, tmp_path: Path) -> None:
    """`resolve` waits until the process is known to be dead, and decides about the jobs whose POST was pending."""
    simulator = simulate("--tiny", "--fault", "submit-hang=1")
    write_jobs(tmp_path / "jobs.jsonl", 5)
    ledger = ("--ledger", server.url, "--gateway", simulator.gateway_url)
    name = f"killed-{next(_numbers)}"
    process = start_command("run", "jobs.jsonl", "--out", name, *ledger, *OPTIONS, cwd=tmp_path)
    wait_until(lambda: simulator.accepted() >= 1, process)
    process.kill()
    process.communicate(timeout=PROCESS_TIMEOUT_S)
    assert len(workers_of(tmp_path / name)) == 1
    pending = json.loads(run_command("resolve", name, "--json", cwd=tmp_path).stdout)["ambiguous"]
    done = run_command("resolve", name, "--abandon", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert workers_of(tmp_path / name) == []
    assert status_of(tmp_path / name)["jobs"]["cancelled"] == len(pending) >= simulator.accepted()


# ---- what is refused -------------------------------------------------------------------------------------


def refused(folder: Path, *arguments: str) -> str:
    """Return the message with which a command ends that has changed nothing."""
    write_jobs(folder / "jobs.jsonl", 1)
    before = sorted(folder.rglob("*"))
    done = run_command(*arguments, "--gateway", "http://127.0.0.1:9", cwd=folder)
    assert done.returncode == 2, done.stderr
    assert sorted(folder.rglob("*")) == before
    return done.stderr


RUN = ("run", "jobs.jsonl", "--out", "out")


def test_a_password_in_the_url(tmp_path: Path) -> None:
    """It would be in the list of processes and in ledger.toml. It is not repeated."""
    message = refused(tmp_path, *RUN, "--ledger", "postgresql://krea:very-secret@db.example/krea")
    assert "--ledger: the url has a password; pass it in PGPASSWORD, or write it into ~/.pgpass" in message
    assert "very-secret" not in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--ledger", "mysql://db/krea"), "--ledger: the url does not start with postgresql://"),
        (("--ledger", "postgresql://db/krea?passfile=/x"), "--ledger: the url sets passfile"),
        (("--ledger", "postgresql://[db/krea"), "--ledger: the url is not a valid URL"),
        (("--batch", "cats"), "--batch: requires ledger"),
        (("--ledger", "postgresql://db/krea", "--batch", "My Cats"), "--batch: 'My Cats' is not up to 50"),
        (("--ledger", "postgresql://127.0.0.1:9/krea"), "cannot open the ledger"),
    ],
)
def test_options_that_are_refused(tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    """The message says what is wrong, and nothing is written."""
    assert message in refused(tmp_path, *RUN, *options)


def test_another_database_than_before(server: PostgresServer, tmp_path: Path, batch: str) -> None:
    """A run directory keeps its ledger: another one would not know what was paid for."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "ledger.toml").write_text(f'url = "{server.url}"\nbatch = "{batch}"\n')
    assert f"batch '{batch}', not" in refused(tmp_path, *RUN, "--ledger", server.url, "--batch", "other")
    assert f"batch '{batch}', not" in refused(tmp_path, *RUN, "--ledger", f"{server.url}&connect_timeout=3")


def test_a_run_with_a_ledger_of_its_own(server: PostgresServer, tmp_path: Path) -> None:
    """Its jobs would be unknown in the database."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "ledger.db").touch()
    assert "its ledger is ledger.db" in refused(tmp_path, *RUN, "--ledger", server.url)


def test_a_worker_of_a_batch_that_does_not_exist(server: PostgresServer, tmp_path: Path, batch: str) -> None:
    """A name that is mistyped starts nothing."""
    message = refused(tmp_path, "worker", "out", "--ledger", server.url, "--batch", batch)
    assert f"has no batch '{batch}'; check --batch" in message


# ---- doctor ----------------------------------------------------------------------------------------------


def ledger_finding(folder: Path, *options: str) -> dict[str, str]:
    """Return what `doctor` says about the ledger."""
    done = run_command("doctor", "--gateway", "http://127.0.0.1:9", "--json", *options, cwd=folder)
    findings: list[dict[str, str]] = json.loads(done.stdout)["findings"]
    (finding,) = [each for each in findings if each["check"] == "ledger"]
    return finding


def test_doctor(server: PostgresServer, shared_run: SharedRun, tmp_path: Path) -> None:
    """It says what it has found out about the server, for a run directory or for a planned one."""
    found = ledger_finding(shared_run.folder, "--out", "two")
    assert found["state"] == "ok"
    assert "fsync = on, synchronous_commit = on, no standby; batch" in found["detail"]
    assert found["detail"].endswith("exists")
    planned = ledger_finding(tmp_path, "--out", "new", "--ledger", server.url)
    assert planned["detail"].endswith("batch 'new' does not exist yet")
    assert os.listdir(tmp_path) == []


def test_doctor_on_a_server_that_may_forget(server: PostgresServer, tmp_path: Path) -> None:
    """What a run refuses, and a server that cannot be reached, is a failure."""
    url = f"{server.url}&options=-csynchronous_commit%3Doff"
    found = ledger_finding(tmp_path, "--out", "new", "--ledger", url)
    assert (found["state"], "synchronous_commit is off" in found["detail"]) == ("fail", True)
    found = ledger_finding(tmp_path, "--out", "new", "--ledger", "postgresql://127.0.0.1:9/krea")
    assert (found["state"], "cannot open the ledger" in found["detail"]) == ("fail", True)


# ---- PgBouncer -------------------------------------------------------------------------------------------


@pytest.fixture
def pooled_url(server: PostgresServer) -> Iterator[str]:
    """The URL of a PgBouncer that gives each transaction another session."""
    program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        pytest.skip("PgBouncer is not installed, so no test runs through it")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folder = server.folder / "pgbouncer"
    folder.mkdir()
    settings = {
        "listen_addr": "127.0.0.1", "listen_port": port, "unix_socket_dir": "", "auth_type": "any",
        "pool_mode": "transaction", "default_pool_size": 3, "pidfile": folder / "pid",
    }  # fmt: skip
    lines = [f"{name} = {value}" for name, value in settings.items()]
    database = f"postgres = host={server.folder} port={server.port} user={USER}"
    (folder / "ini").write_text("\n".join(["[databases]", database, "[pgbouncer]", *lines, ""]))
    user = USER if os.geteuid() == 0 else None  # It refuses to run as root.
    if user:
        shutil.chown(folder, user)
    process = subprocess.Popen([program, str(folder / "ini")], user=user, cwd="/", stderr=subprocess.DEVNULL)

    def listens() -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", port)) == 0

    wait_until(listens, process)
    yield f"postgresql://{USER}@127.0.0.1:{port}/postgres"
    process.terminate()
    process.wait(PROCESS_TIMEOUT_S)
    shutil.rmtree(folder)


def test_a_run_through_pgbouncer(simulate: StartSimulator, pooled_url: str, batch: str, tmp_path: Path) -> None:
    """Nothing depends on the session, so a run works through a pool in transaction mode."""
    simulator = simulate("--tiny", "--latency", "uniform:0.2,0.8")
    write_jobs(tmp_path / "jobs.jsonl", 100)
    ledger = ("--ledger", pooled_url, "--batch", batch, "--gateway", simulator.gateway_url)
    done = run_command("run", "jobs.jsonl", "--out", "out", *ledger, *OPTIONS, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert simulator.accepted() == 100
    assert len(result_rows(tmp_path / "out")) == 100
