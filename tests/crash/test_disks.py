"""Disks that are full, that cannot be written, and that lose their power."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest

from tests.crash.crash_scenario import SIMULATOR_OPTIONS, CrashScenario
from tests.processes import PROCESS_TIMEOUT_S, StartSimulator, result_rows, run_command

pytestmark = pytest.mark.slow


EXT4_SHUTDOWN_IOCTL = 0x8004587D  # EXT4_IOC_SHUTDOWN: from now on every write fails with EIO
JOURNAL_FLUSHED, JOURNAL_LOST = 1, 2  # what the disk's journal holds is written before, or is not


MAX_PENDING_POSTS = 10  # POSTs, at 200/s


def require_mounts(*tools: str) -> None:
    """Skip, and say why, where this machine cannot mount."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a disk of its own")
    if missing := [tool for tool in ("mount", "umount", *tools) if shutil.which(tool) is None]:
        pytest.skip(f"{', '.join(missing)} not installed: no disk of its own can be made")


@contextmanager
def mounted(directory: Path, *arguments: str) -> Iterator[Path]:
    """A disk of its own; skips where it cannot be mounted."""
    directory.mkdir()
    done = subprocess.run(["mount", *arguments, str(directory)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mount does not work here: {done.stderr.strip()}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


def test_a_full_disk_stops_the_run_and_freed_space_completes_it(simulate: StartSimulator, tmp_path: Path) -> None:
    """No room: exit 3 and why; submits have stopped. With room, the same command ends the run."""
    require_mounts()
    simulator = simulate("--image-bytes", "20000", "--latency", "uniform:0.2,0.8")
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=1m", "tmpfs") as disk:
        scenario = CrashScenario(simulator, tmp_path, 200, disk / "out")
        full = run_command(*scenario.command, cwd=tmp_path)
        assert full.returncode == 3, full.stderr
        assert "No space left on device" in full.stderr or "disk is full" in full.stderr, full.stderr
        assert "run the same command again" in full.stderr
        charged = simulator.admin_request("/totals")["charged"]
        assert charged < 200
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        scenario.finish()
        assert scenario.check_accounting() <= MAX_PENDING_POSTS  # whose answers found no room in the ledger
        assert simulator.admin_request("/totals")["charged"] <= 200


@pytest.mark.parametrize("flags", [JOURNAL_FLUSHED, JOURNAL_LOST], ids=["the disk breaks", "and forgets"])
def test_a_disk_that_breaks(simulate: StartSimulator, tmp_path: Path, flags: int) -> None:
    """Every write fails from one instant on: exit 3 and why, and no POST leaves whose intent is not on the disk.

    Mended, the same command ends the run; in doubt is none of which the disk held that it was accepted.
    """
    require_mounts("mkfs.ext4", "losetup")
    simulator = simulate(*SIMULATOR_OPTIONS)
    image = new_image(tmp_path / "disk.img")
    with mounted(tmp_path / "disk", "-o", "loop", str(image)) as disk:
        scenario = CrashScenario(simulator, tmp_path, 600, disk / "out")
        process = scenario.start(stderr=subprocess.PIPE)
        while not scenario.ledger.is_file() or len(recorded := scenario.accepted_request_ids()) < 50:
            assert process.poll() is None
        fd = os.open(disk, os.O_RDONLY)
        fcntl.ioctl(fd, EXT4_SHUTDOWN_IOCTL, struct.pack("I", flags))
        os.close(fd)
        _, stderr = process.communicate(timeout=PROCESS_TIMEOUT_S)
        assert process.returncode == 3
        assert b"run the same command again" in stderr
        charged = simulator.admin_request("/totals")["accepted"]
    with mounted(tmp_path / "mended", "-o", "loop", str(image)) as disk:
        scenario = CrashScenario(simulator, tmp_path, 600, disk / "out")
        ((intents,),) = scenario.query("SELECT count(*) FROM submissions")
        assert charged <= intents < 600, "submits went on"
        assert recorded <= scenario.accepted_request_ids()
        max_ambiguous = intents - len(scenario.accepted_request_ids())
        scenario.finish()
        assert scenario.check_accounting() <= max_ambiguous


def test_a_folder_that_cannot_be_written_from_the_start(simulate: StartSimulator, tmp_path: Path) -> None:
    """A read-only disk: exit 2 with the reason, nothing sent; and a run that was there is readable by status."""
    require_mounts()
    simulator = simulate(*SIMULATOR_OPTIONS)
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=64m", "tmpfs") as disk:
        scenario = CrashScenario(simulator, tmp_path, 5, disk / "out")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        done = run_command(*scenario.command, cwd=tmp_path)
        assert done.returncode == 2
        assert "Read-only file system" in done.stderr
        assert simulator.admin_request("/totals")["accepted"] == 0


def test_a_power_cut(simulate: StartSimulator, tmp_path: Path) -> None:
    """What an ext4 disk holds at a random instant, no more, is enough to pay nothing twice and to lose nothing."""
    require_mounts("mkfs.ext4", "losetup")
    simulator = simulate(*SIMULATOR_OPTIONS)
    image, random = new_image(tmp_path / "disk.img"), Random(5)
    ambiguous = cuts = 0
    while cuts < 5:
        with mounted(tmp_path / f"disk {cuts}", "-o", "loop", str(image)) as disk:
            scenario = CrashScenario(simulator, tmp_path, 300, disk / "out")
            process = scenario.start()
            time.sleep(random.uniform(0.6, 1.6))
            process.send_signal(signal.SIGSTOP)  # the same instant for process and disk
            snapshot = copy_consistent(image, tmp_path / "snapshot.img")
            process.kill()
            process.wait(PROCESS_TIMEOUT_S)
            cuts += 1
        snapshot.replace(image)
    with mounted(tmp_path / "disk at last", "-o", "loop", str(image)) as disk:
        scenario = CrashScenario(simulator, tmp_path, 300, disk / "out")
        scenario.finish()
        ambiguous = scenario.check_accounting()
        assert len(result_rows(scenario.out)) == 300
    assert ambiguous <= 8 * cuts


def new_image(path: Path) -> Path:
    """A file that can be mounted as an ext4 disk."""
    with path.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-E", "lazy_itable_init=0", str(path)], check=True)
    return path


def copy_consistent(image: Path, target: Path) -> Path:
    """A copy of the disk as it is: while it was made, nothing was written."""
    for _ in range(20):
        changed_at = image.stat().st_mtime_ns
        subprocess.run(["cp", "--sparse=always", str(image), str(target)], check=True)
        if image.stat().st_mtime_ns == changed_at:
            return target
        time.sleep(0.05)
    raise AssertionError("the disk is never still")
