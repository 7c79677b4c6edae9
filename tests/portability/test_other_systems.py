"""Real runs of the command on systems that lack what Linux has, as `simulated_system` simulates them, and on NTFS."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.crash.crash_scenario import SIMULATOR_OPTIONS, CrashScenario
from tests.portability.simulated_system import DIFFERENCES
from tests.processes import (
    PROCESS_TIMEOUT_S,
    RunningSimulator,
    StartSimulator,
    clean_environment,
    result_rows,
)

SIMULATED_SYSTEM = Path(__file__).with_name("simulated_system.py")
UNUSUAL_IDS = ["con", "aux.txt", "a:b", "end.", "Cat", "cat", "what?", "ä"]  # some are no file names on Windows


def simulated(difference: str, module: str = "krea_batch") -> list[str]:
    """Return the command that runs a module as on a system with this difference."""
    return [sys.executable, str(SIMULATED_SYSTEM), difference, module]


class OtherSystem(CrashScenario):
    """A run on a system that lacks something."""

    def __init__(
        self, difference: str, simulator: RunningSimulator, directory: Path, out: Path | None = None
    ) -> None:
        super().__init__(simulator, directory, 40, out)
        self._difference = difference

    def start(self, *wrapper: str, stderr: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        """Start the command on that system."""
        return subprocess.Popen(
            [*wrapper, *simulated(self._difference), *self.command],
            cwd=self.directory,
            env=clean_environment(PIXAZO_API_KEY="test-key"),
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )

    def finish(self) -> int:
        """Run the command to its end and return its exit code, 0 or 1."""
        process = self.start(stderr=subprocess.PIPE)
        _, errors = process.communicate(timeout=PROCESS_TIMEOUT_S)
        assert process.returncode in (0, 1), errors.decode()
        return process.returncode

    def start_and_wait(self) -> subprocess.Popen[bytes]:
        """Start the command, and wait until it has some jobs in flight."""
        process = self.start()
        self.wait_for_accepted(5, process)
        return process


@pytest.fixture(params=DIFFERENCES)
def other_system(request: pytest.FixtureRequest, simulate: StartSimulator, tmp_path: Path) -> OtherSystem:
    """A run on each of the systems that can be simulated."""
    return OtherSystem(request.param, simulate(*SIMULATOR_OPTIONS), tmp_path)


PROBES = {
    "without_flock": ["import fcntl", "import resource"],
    "without_uvloop": ["import uvloop"],
    "without_unix_signals": [
        "import signal; signal.SIGHUP",
        "import asyncio, signal; asyncio.SelectorEventLoop().add_signal_handler(signal.SIGINT, print)",
    ],
    "without_directory_sync": ["import os; os.open('.', os.O_RDONLY)", "import fcntl"],
    "without_renames_of_open_files": [
        "import os; file = open('new', 'w'); os.replace('new', 'newer')",
        "import os; file = open('new', 'w'); os.unlink('new')",
        "import os; open('new', 'w').close(); os.replace('new', 'newer')",
    ],
    "macos": ["import os; os.posix_fadvise", "import time; time.CLOCK_BOOTTIME"],
    "windows": ["import os; os.fchmod", "import os; os.pread", "import fcntl", "import os; os.open('.', 0)"],
}
"""Statements that fail where the difference is simulated, and work here."""


@pytest.mark.portable
@pytest.mark.parametrize("difference", DIFFERENCES)
def test_a_difference_is_real(difference: str, tmp_path: Path) -> None:
    """What a simulated system lacks is not there, and it is on this machine, unless that lacks it itself."""
    for number, statement in enumerate(PROBES[difference]):
        (tmp_path / f"probe{number}.py").write_text(statement)
        environment = clean_environment()
        environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), environment.get("PYTHONPATH", "")])
        probe = subprocess.run(
            simulated(difference, f"probe{number}"), cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert probe.returncode == 1, statement
        assert probe.stderr.splitlines()[-1].startswith(
            ("ModuleNotFoundError", "AttributeError", "NotImplementedError", "PermissionError")
        ), probe.stderr


@pytest.mark.portable
@pytest.mark.slow
def test_a_run(other_system: OtherSystem) -> None:
    """All jobs succeed, all images are whole, and nothing but the files of a run is left in its directory."""
    assert other_system.finish() == 0
    assert other_system.check_accounting() == 0
    left = {path.name for path in other_system.out.iterdir()}
    assert left - {"thumbnails"} == {"images", "ledger.db", "results.jsonl"}
    assert {path.suffix for path in (other_system.out / "images").iterdir()} == {".png"}


@pytest.mark.portable
@pytest.mark.slow
def test_a_killed_run_is_resumed(other_system: OtherSystem) -> None:
    """After a kill, the lock is free: the next start resumes. No job is charged twice, and none is lost."""
    process = other_system.start_and_wait()
    process.kill()
    process.wait(PROCESS_TIMEOUT_S)
    other_system.finish()
    assert other_system.check_accounting() <= other_system.count


@pytest.mark.portable
@pytest.mark.slow
def test_a_second_start_and_an_interrupt(other_system: OtherSystem) -> None:
    """While a run is in progress, a second start is refused. A Ctrl-C stops the first one in order, to be resumed."""
    first = other_system.start_and_wait()
    first.send_signal(signal.SIGSTOP)  # so that it does not end before the second one starts
    second = other_system.start(stderr=subprocess.PIPE)
    _, errors = second.communicate(timeout=PROCESS_TIMEOUT_S)
    assert (second.returncode, b"another krea-batch is using it" in errors) == (2, True), errors
    first.send_signal(signal.SIGINT)
    first.send_signal(signal.SIGCONT)
    assert first.wait(PROCESS_TIMEOUT_S) == 130
    assert {row["status"] for row in result_rows(other_system.out)} <= {"succeeded"}
    assert other_system.finish() == 0
    assert other_system.check_accounting() == 0


@pytest.mark.slow
def test_portable_tests_where_much_is_missing() -> None:
    """Tests that are marked as portable pass without flock, Unix signals and directories that can be opened.

    The forecast runs the whole engine with a ledger; the others show that the tests themselves need nothing of Unix.
    """
    missing = "without_flock,without_unix_signals,without_directory_sync"
    tests = ["tests/forecast", "tests/rules/test_lease.py", "tests/sources/test_jsonl.py"]
    options = ["-q", "-p", "no:cacheprovider", "-W", "ignore:only soft file lock", "-m", "portable and not slow"]
    done = subprocess.run(
        [*simulated(missing, "pytest"), *options, *tests],
        cwd=SIMULATED_SYSTEM.parents[2],
        env=clean_environment(PYTEST_DISABLE_PLUGIN_AUTOLOAD="1"),
        capture_output=True,
        text=True,
        timeout=PROCESS_TIMEOUT_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert " skipped" not in done.stdout


@pytest.mark.portable
@pytest.mark.slow
def test_unusual_ids_on_windows(simulate: StartSimulator, tmp_path: Path) -> None:
    """Ids that Windows does not take as file names become names that it takes, and a second run changes nothing."""
    system = OtherSystem("windows", simulate(*SIMULATOR_OPTIONS), tmp_path)
    check_unusual_ids(system)
    names = {path.stem for path in (system.out / "images").iterdir()}
    assert names == {"con_", "aux_.txt", "a_b", "end", "Cat", "cat", "what_", "ä"}


def check_unusual_ids(system: OtherSystem) -> None:
    """Run jobs with such ids, twice. Each has its own image."""
    rows = (f'{{"id": "{job_id}", "prompt": "image {n}"}}\n' for n, job_id in enumerate(UNUSUAL_IDS))
    (system.directory / "jobs.jsonl").write_text("".join(rows), "utf-8")
    system.count = len(UNUSUAL_IDS)
    for _ in range(2):
        assert system.finish() == 0
        assert system.check_accounting() == 0
    assert {row["id"] for row in result_rows(system.out)} == set(UNUSUAL_IDS)
    assert len({file["path"] for row in result_rows(system.out) for file in row["files"]}) == len(UNUSUAL_IDS)


@contextmanager
def ntfs(directory: Path) -> Iterator[Path]:
    """Mount an empty NTFS file system that has Windows' rules for names and does not see their case.

    Skip the test with a reason if this machine cannot do that.
    """
    if missing := [tool for tool in ("mkntfs", "lowntfs-3g", "umount") if shutil.which(tool) is None]:
        pytest.skip(f"{', '.join(missing)} not installed: cannot create an NTFS file system")
    disk, mounted = directory / "disk", directory / "mounted"
    with disk.open("wb") as file:
        file.truncate(32 << 20)
    mounted.mkdir()
    subprocess.run(["mkntfs", "-q", "-F", disk], check=True, capture_output=True)
    done = subprocess.run(
        ["lowntfs-3g", "-o", "ignore_case,windows_names", disk, mounted], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"an NTFS file system cannot be mounted here: {done.stderr.strip()}")
    try:
        yield mounted
    finally:
        subprocess.run(["umount", "-l", mounted], check=True)


@pytest.mark.slow
def test_ntfs(simulate: StartSimulator, tmp_path: Path) -> None:
    """On a file system of Windows, ids that differ in case only have their own images, and all names are valid.

    The file system refuses what is no name on Windows, which is checked first.
    """
    with ntfs(tmp_path) as mounted:
        (mounted / "Cat").touch()
        assert (mounted / "cat").exists()
        with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
            (mounted / "a:b").touch()
        system = OtherSystem("windows", simulate(*SIMULATOR_OPTIONS), tmp_path, mounted / "out")
        check_unusual_ids(system)
        names = {path.stem.casefold() for path in (system.out / "images").iterdir()}
        assert names == {"con_", "aux_.txt", "a_b", "end", "cat", "cat~2", "what_", "ä"}


@pytest.mark.slow
def test_a_kill_on_ntfs(simulate: StartSimulator, tmp_path: Path) -> None:
    """A run on a file system of Windows that is killed is resumed."""
    with ntfs(tmp_path) as mounted:
        system = OtherSystem("without_uvloop", simulate(*SIMULATOR_OPTIONS), tmp_path, mounted / "out")
        process = system.start_and_wait()
        process.kill()
        process.wait(PROCESS_TIMEOUT_S)
        system.finish()
        assert system.check_accounting() <= system.count
