"""Disks that are full, read-only, broken, or lose power."""

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

from krea_batch.rules.pending_limit import INITIAL_PENDING
from tests.crash.crash_scenario import SIMULATOR_OPTIONS, CrashScenario
from tests.processes import PROCESS_TIMEOUT_S, StartSimulator, result_rows, run_command, wait_until

pytestmark = pytest.mark.slow

EXT4_SHUTDOWN_IOCTL = 0x8004587D  # EXT4_IOC_SHUTDOWN: from now on every write fails with EIO
JOURNAL_FLUSHED, JOURNAL_LOST = 1, 2  # whether the file system's journal is written first


def require_mounts(*tools: str) -> None:
    """Skip the test with a reason if this machine cannot mount a disk."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a disk")
    if missing := [tool for tool in ("mount", "umount", *tools) if shutil.which(tool) is None]:
        pytest.skip(f"{', '.join(missing)} not installed: cannot create a disk")


@contextmanager
def mounted(directory: Path, *arguments: str) -> Iterator[Path]:
    """Mount a disk; skip the test if it cannot be mounted."""
    directory.mkdir()
    done = subprocess.run(["mount", *arguments, str(directory)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mount does not work here: {done.stderr.strip()}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


def test_a_full_disk_stops_the_run_and_freed_space_completes_it(simulate: StartSimulator, tmp_path: Path) -> None:
    """On a full disk the run stops with exit code 3 and the reason. With free space it can be resumed."""
    require_mounts()
    simulator = simulate("--image-bytes", "20000", "--latency", "uniform:0.2,0.8")
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=1m", "tmpfs") as disk:
        scenario = CrashScenario(simulator, tmp_path, 200, disk / "out")
        full = run_command(*scenario.command, cwd=tmp_path)
        assert full.returncode == 3, full.stderr
        assert "No space left on device" in full.stderr or "disk is full" in full.stderr, full.stderr
        assert "run again to resume" in full.stderr
        charged = simulator.admin_request("/totals")["charged"]
        assert charged < 200
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        ((pending,),) = scenario.query("SELECT count(*) FROM jobs WHERE state = 'submitting'")
        scenario.finish()
        assert scenario.check_accounting() == pending  # those whose responses could not be recorded
        assert simulator.admin_request("/totals")["charged"] <= 200


@pytest.mark.parametrize("flags", [JOURNAL_FLUSHED, JOURNAL_LOST], ids=["journal written", "journal lost"])
def test_a_disk_that_breaks(simulate: StartSimulator, tmp_path: Path, flags: int) -> None:
    """Once every write fails, the run stops with exit code 3 and the reason, and sends no POST without an intent.

    On the repaired disk it can be resumed, and no job whose acceptance is on the disk is ambiguous.

    The process stalls while the disk breaks. An fdatasync of it that overlaps with this ioctl may return 0
    although ext4 drops what it wrote: the end of a write that finds the file system shut down is not reported.
    """
    require_mounts("mkfs.ext4", "losetup")
    simulator = simulate(*SIMULATOR_OPTIONS)
    image = new_image(tmp_path / "disk.img")
    with mounted(tmp_path / "disk", "-o", "loop", str(image)) as disk:
        scenario = CrashScenario(simulator, tmp_path, 600, disk / "out")
        process = scenario.start(stderr=subprocess.PIPE)
        scenario.wait_for_accepted(50, process)
        stop(process)
        recorded = scenario.accepted_request_ids()
        assert recorded
        fd = os.open(disk, os.O_RDONLY)
        fcntl.ioctl(fd, EXT4_SHUTDOWN_IOCTL, struct.pack("I", flags))
        os.close(fd)
        process.send_signal(signal.SIGCONT)
        _, stderr = process.communicate(timeout=PROCESS_TIMEOUT_S)
        assert process.returncode == 3
        assert b"run again to resume" in stderr
        charged = simulator.accepted()
    with mounted(tmp_path / "repaired", "-o", "loop", str(image)) as disk:
        scenario = CrashScenario(simulator, tmp_path, 600, disk / "out")
        ((intents,),) = scenario.query("SELECT count(*) FROM submissions")
        assert charged <= intents < 600, "submits continued"
        assert recorded <= scenario.accepted_request_ids()
        max_ambiguous = intents - len(scenario.accepted_request_ids())
        scenario.finish()
        assert scenario.check_accounting() <= max_ambiguous


def test_a_read_only_disk(simulate: StartSimulator, tmp_path: Path) -> None:
    """On a read-only disk the command ends with exit code 2 and the reason, and sends nothing."""
    require_mounts()
    simulator = simulate(*SIMULATOR_OPTIONS)
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=64m", "tmpfs") as disk:
        scenario = CrashScenario(simulator, tmp_path, 5, disk / "out")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        done = run_command(*scenario.command, cwd=tmp_path)
        assert done.returncode == 2
        assert "Read-only file system" in done.stderr
        assert simulator.accepted() == 0


def test_a_power_cut(simulate: StartSimulator, tmp_path: Path) -> None:
    """With only what an ext4 disk holds at a random moment, no job is charged twice and none is lost."""
    require_mounts("mkfs.ext4", "losetup")
    simulator = simulate(*SIMULATOR_OPTIONS)
    image, random = new_image(tmp_path / "disk.img"), Random(5)
    cuts, accepted = 5, 0
    for cut in range(cuts):
        accepted += random.randrange(5, 55)
        with mounted(tmp_path / f"disk {cut}", "-o", "loop", str(image)) as disk:
            scenario = CrashScenario(simulator, tmp_path, 300, disk / "out")
            process = scenario.start()
            scenario.wait_for_accepted(accepted, process)
            stop(process)
            snapshot = copy_consistent(image, tmp_path / "snapshot.img")
            process.kill()
            process.wait(PROCESS_TIMEOUT_S)
        snapshot.replace(image)
    with mounted(tmp_path / "last disk", "-o", "loop", str(image)) as disk:
        scenario = CrashScenario(simulator, tmp_path, 300, disk / "out")
        scenario.finish()
        ambiguous = scenario.check_accounting()
        assert len(result_rows(scenario.out)) == 300
    assert ambiguous <= INITIAL_PENDING * cuts


def new_image(path: Path) -> Path:
    """Create a file that can be mounted as an ext4 disk."""
    with path.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-E", "lazy_itable_init=0", str(path)], check=True)
    return path


def stop(process: subprocess.Popen[bytes]) -> None:
    """Stop a process with SIGSTOP, and wait until its threads have finished their system calls and stall."""
    process.send_signal(signal.SIGSTOP)
    threads = Path(f"/proc/{process.pid}/task")
    wait_until(
        lambda: {stat.read_text().rpartition(")")[2].split()[0] for stat in threads.glob("*/stat")} == {"T"}, process
    )


def copy_consistent(image: Path, target: Path) -> Path:
    """Copy a disk, again until nothing was written during the copy."""
    for _ in range(20):
        changed_at = image.stat().st_mtime_ns
        subprocess.run(["cp", "--sparse=always", str(image), str(target)], check=True)
        if image.stat().st_mtime_ns == changed_at:
            return target
        time.sleep(0.05)
    raise AssertionError("the disk was written during every copy")
