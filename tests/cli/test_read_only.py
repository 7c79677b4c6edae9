"""Commands that only look at a run work on read-only media, and in directories that belong to someone else."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import click
import pytest

from krea_batch.cli.app import app
from krea_batch.ledger.sqlite import SqliteLedger
from krea_batch.storage.run_dir import LEDGER, RunDir
from tests.processes import COMMAND, PROCESS_TIMEOUT_S, clean_environment, run_command

pytestmark = pytest.mark.slow

WAL, SHM = f"{LEDGER}-wal", f"{LEDGER}-shm"

GALLERY_SCRIPT = """
import asyncio, json, sys
from pathlib import Path
from krea_batch.gallery.shown_run import ShownRun
gallery = ShownRun(Path(sys.argv[1]))
asyncio.run(gallery.refresh())
print([item["status"] for item in json.loads(gallery.items())])
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a run of three jobs that has ended."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "prompts.txt").write_text("a red kite\na blue kite\na green kite\n")
    options = ("--simulate", "--no-thumbnails", "--time-scale=1000", "--poll-interval=0.1", "-q")
    done = run_command("run", "prompts.txt", "--out", "out", *options, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "out"


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Iterator[Path]:
    """Return a copy of the finished run, which is made writable again at the end."""
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    yield copy
    for folder in (copy, copy / "images"):
        folder.chmod(0o755)


def make_read_only(out: Path) -> None:
    for path in [*out.rglob("*"), out]:
        path.chmod(0o555 if path.is_dir() else 0o444)


def leave_wal(out: Path) -> None:
    """Leave the files of a process that was killed after it had started a fourth job."""
    with closing(SqliteLedger.open(out / LEDGER)) as store:
        store.transaction(lambda store: store.record_intent("late", b'{"prompt":"x"}', b"f" * 32, b"{}", 9.0, ""))
        for name in (WAL, SHM):
            shutil.copyfile(out / name, out.with_name(name))
    for name in (WAL, SHM):
        out.with_name(name).rename(out / name)


def run_as_reader(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command that may not write what its user may not write, also if the user is root."""
    prefix: list[str] = []
    if os.geteuid() == 0:
        if not shutil.which("setpriv"):
            pytest.skip("setpriv is not installed: root may write everything")
        prefix = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]
    return subprocess.run(
        [*prefix, *map(str, command)],
        cwd=cwd,
        env=clean_environment(PIXAZO_API_KEY="k"),
        capture_output=True,
        text=True,
        timeout=PROCESS_TIMEOUT_S,
    )


COMMANDS = {
    "status": ["status", "{out}"],
    "watch": ["watch", "{out}"],
    "verify": ["verify", "{out}"],
    "export": ["export", "{out}", "--format", "csv", "--output", "images.csv"],
    "report": ["report", "{out}", "--output", "report.html"],
    "inspect": ["inspect", "{out}/images/00001.png"],
    "plan": ["plan", "prompts.txt", "--latency-from", "{out}"],
    "resolve": ["resolve", "{out}", "--list"],
}


NOT_IN_TABLE = {
    "demo": "test_a_command_that_writes",
    "view": "test_the_page_of_a_read_only_directory",
    "retry": "test_a_command_that_writes",
    "worker": "test_a_command_that_writes",
    "recover": "test_a_command_that_writes",
}
WRITING = {
    "demo": ["demo", "{out}"],
    "retry": ["retry", "{out}", "--yes"],
    "worker": ["worker", "{out}"],
    "recover": ["recover", "{out}", "--yes"],
    "resolve": ["resolve", "{out}", "--abandon"],
}


def test_every_command_on_a_run_is_tested() -> None:
    """A new command on the directory of a run needs a line in COMMANDS, or a test of its own."""
    group = click.Context(app)
    with_run = {
        name
        for name in app.list_commands(group)
        if any(param.name == "out" and isinstance(param, click.Argument) for param in load(group, name).params)
    }
    assert with_run - {"run", "doctor"} == (set(COMMANDS) - {"inspect", "plan"}) | set(NOT_IN_TABLE)


def load(group: click.Context, name: str) -> click.Command:
    command = app.get_command(group, name)
    assert command
    return command


@pytest.mark.parametrize("name", WRITING)
def test_a_command_that_writes(out: Path, tmp_path: Path, name: str) -> None:
    """It says which path it may not write, and changes nothing."""
    make_read_only(out)
    arguments = [argument.replace("{out}", str(out)) for argument in WRITING[name]]
    done = run_as_reader(*COMMAND, *arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    denied = rf"cannot write {re.escape(str(out))}(/\S+)? \(Permission denied\); check the permissions"
    assert re.search(denied, done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    assert {path.name for path in out.iterdir()} == {"images", LEDGER, "results.jsonl", "simulated.jsonl"}


def test_a_run_of_another_user(out: Path, tmp_path: Path) -> None:
    """If its files may not be read either, the command names the first of them."""
    (out / LEDGER).chmod(0)
    done = run_as_reader(*COMMAND, "status", out, cwd=tmp_path)
    assert done.returncode == 2
    assert f"cannot read {out / LEDGER} (Permission denied); check the permissions" in done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_a_read_only_directory(out: Path, tmp_path: Path, name: str) -> None:
    """The command does the same as in a writable directory, and changes nothing."""
    arguments = [argument.replace("{out}", str(out)) for argument in COMMANDS[name]]
    (tmp_path / "prompts.txt").write_text("a red kite\n")
    expected = run_command(*arguments, cwd=tmp_path)
    for made in (tmp_path / "images.csv", tmp_path / "report.html"):
        made.unlink(missing_ok=True)
    before = sorted(out.rglob("*"))  # `report` has made thumbnails
    make_read_only(out)
    done = run_as_reader(*COMMAND, *arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, expected.stdout, expected.stderr)
    assert sorted(out.rglob("*")) == before


def test_the_page_of_a_read_only_directory(out: Path, tmp_path: Path) -> None:
    """The page of `view` shows all jobs."""
    make_read_only(out)
    done = run_as_reader(sys.executable, "-c", GALLERY_SCRIPT, out, cwd=tmp_path)
    assert done.stdout == "['succeeded', 'succeeded', 'succeeded']\n", done.stderr


def test_jobs_in_the_wal_of_a_killed_run_are_seen(out: Path, tmp_path: Path) -> None:
    """What a killed run left in the write-ahead log is read, too."""
    leave_wal(out)
    make_read_only(out)
    done = run_as_reader(*COMMAND, "status", out, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["jobs"] == {"succeeded": 3, "submitting": 1}


def test_a_wal_that_cannot_be_read_is_said(out: Path, tmp_path: Path) -> None:
    """If the write-ahead log cannot be read, the command says so and what to do, and shows no old numbers."""
    leave_wal(out)
    (out / SHM).unlink()
    make_read_only(out)
    done = run_as_reader(*COMMAND, "status", out, "--json", cwd=tmp_path)
    if done.returncode == 0:  # Newer versions of SQLite may read it.
        assert json.loads(done.stdout)["jobs"] == {"succeeded": 3, "submitting": 1}
        return
    assert done.stdout == ""
    assert "ledger.db-wal" in done.stderr
    assert "copy" in done.stderr
    (tmp_path / "copy").mkdir()
    for name in (LEDGER, WAL):
        shutil.copyfile(out / name, tmp_path / "copy" / name)
    advised = run_as_reader(*COMMAND, "status", "copy", "--json", cwd=tmp_path)
    assert json.loads(advised.stdout)["jobs"] == {"succeeded": 3, "submitting": 1}


def test_a_run_in_progress_is_read_as_it_is(out: Path, tmp_path: Path) -> None:
    """While another user's run is in progress, its latest jobs are seen."""
    run_dir = RunDir(out)
    run_dir.lock()
    with closing(SqliteLedger.open(out / LEDGER)) as store:
        store.transaction(lambda store: store.record_intent("late", b'{"prompt":"x"}', b"f" * 32, b"{}", 9.0, ""))
        make_read_only(out)
        done = run_as_reader(*COMMAND, "status", out, "--json", cwd=tmp_path)
        out.chmod(0o755)
    run_dir.unlock()
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["jobs"] == {"succeeded": 3, "submitting": 1}


@pytest.mark.parametrize("options", [["--simulate"], ["--gateway", "http://127.0.0.1:9"]], ids=" ".join)
def test_a_run_directory_that_cannot_be_created(tmp_path: Path, options: list[str]) -> None:
    """`run` says so, also for a run on the simulator, which keeps a file there."""
    (tmp_path / "prompts.txt").write_text("a red kite\n")
    parent = tmp_path / "parent"
    parent.mkdir(0o555)
    done = run_as_reader(*COMMAND, "run", "prompts.txt", "--out", parent / "out", *options, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "cannot use the directory (Permission denied); check the permissions" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_in_a_read_only_directory_does_not_start(out: Path, tmp_path: Path) -> None:
    """`run` says that the directory cannot be written, and the ledger stays as it is."""
    before = (out / LEDGER).read_bytes()
    make_read_only(out)
    (tmp_path / "prompts.txt").write_text("a red kite\n")
    done = run_as_reader(
        *COMMAND, "run", "prompts.txt", "--out", out, "--gateway", "http://127.0.0.1:9", cwd=tmp_path
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "permissions" in done.stderr
    assert (out / LEDGER).read_bytes() == before
