"""Simulate a process that crashes at the Nth step of its event loop, or between two disk calls.

A step is one callback of the loop, so a crash can happen at any await, and before and after any commit. A crash with
power loss also loses what was not synced: bytes that were written but not synced, and file names that were given
since the directory was last synced.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from contextvars import Context
from pathlib import Path
from random import Random
from typing import Any, TypeVar, TypeVarTuple, Unpack
from unittest.mock import patch

from krea_batch.storage import atomic, image_file, run_dir
from tests.virtual_time_runs import VirtualTimeLoop, cancel_all_tasks

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Killed(BaseException):
    """The simulated process has crashed."""


class CrashingLoop(VirtualTimeLoop):
    """Crashes at step `crash_at_step`, counted in loop steps or in disk calls: from then on no callback runs."""

    def __init__(self, thread_duration_s: Callable[[], float], crash_at_step: int, *, at_disk_call: bool) -> None:
        self.steps = 0
        self.disk_steps = 0
        self.crashed = False
        self._crash_at_step = crash_at_step
        self._at_disk_call = at_disk_call
        self._skipped_callbacks: list[Callable[[], object]] = []
        super().__init__(thread_duration_s)
        self.set_exception_handler(_report_unless_killed)

    def step(self) -> None:
        """Count a step of the loop. Raises Killed at the step of the crash."""
        self.steps += 1
        self._crash_if_due(self.steps, at_disk_call=False)

    def disk_step(self) -> None:
        """Count a disk call. Raises Killed at the call of the crash."""
        self.disk_steps += 1
        self._crash_if_due(self.disk_steps, at_disk_call=True)

    def _crash_if_due(self, steps: int, *, at_disk_call: bool) -> None:
        if self.crashed or (steps == self._crash_at_step and at_disk_call == self._at_disk_call):
            self.crashed = True
            self.stop()
            raise Killed

    def _run_callback(self, callback: Callable[[Unpack[Ts]], object], *args: *Ts) -> None:
        with suppress(Killed):
            self.step()
        if self.crashed:
            self._skipped_callbacks.append(lambda: callback(*args))
        else:
            callback(*args)

    def call_soon(
        self, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        return super().call_soon(self._run_callback, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return super().call_at(when, self._run_callback, callback, *args, context=context)

    def run_skipped_callbacks(self) -> None:
        """Schedule the callbacks that did not run, so that all tasks can be cancelled in order."""
        self.crashed = False
        self._crash_at_step = -1
        for callback in self._skipped_callbacks:
            self.call_soon(callback)


def _stop_loop(task: asyncio.Task[Any]) -> None:
    task.get_loop().stop()


def _report_unless_killed(loop: Any, context: dict[str, Any]) -> None:
    if not isinstance(context.get("exception"), Killed):
        loop.default_exception_handler(context)


class SimulatedDisk:
    """Tracks what a power loss would leave in the images directory. Replaces `os` in the modules that write there."""

    def __init__(self, images: Path, step: Callable[[], None]) -> None:
        self._images = images
        self._step = step
        self._synced_bytes: dict[int, int] = {}  # by inode
        self._pinned_fds: dict[int, int] = {}  # an open file for each inode, so that its number is not reused
        self._synced_names: dict[str, int] = self._list_and_pin()  # as of the last sync of the directory
        self._tracked: set[int] = set()  # descriptors of the images directory and its files
        self._unsynced_changes: list[tuple[str | None, str | None, int]] = []  # (old name, new name, inode)

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def _is_tracked(self, path: str | Path) -> bool:
        """Return whether a path is the images directory or in it; other files survive every power loss."""
        return self._images in (Path(path), Path(path).parent)

    def open(self, path: Path, flags: int, mode: int = 0o777) -> int:
        if not self._is_tracked(path):
            fd = os.open(path, flags, mode)
            self._tracked.discard(fd)
            return fd
        self._step()
        fd = os.open(path, flags, mode)
        self._tracked.add(fd)
        if flags & os.O_CREAT:
            inode = os.fstat(fd).st_ino
            self._pinned_fds[inode] = os.open(path, os.O_RDONLY)
            self._synced_bytes[inode] = 0
            self._unsynced_changes.append((None, Path(path).name, inode))
        return fd

    def write(self, fd: int, data: memoryview) -> int:
        self._step()
        return os.write(fd, data)

    def replace(self, old: str, new: str) -> None:
        old_path = Path(old)
        if not self._is_tracked(old_path):
            old_path.replace(new)
            return
        self._step()
        self._unsynced_changes.append((old_path.name, Path(new).name, old_path.stat().st_ino))
        old_path.replace(new)

    def fsync(self, fd: int) -> None:
        if fd not in self._tracked:
            os.fsync(fd)
            return
        self._step()
        stat = os.fstat(fd)
        if stat.st_ino == self._images.stat().st_ino:
            self._synced_names, self._unsynced_changes = self._list_and_pin(), []
        else:
            self._synced_bytes[stat.st_ino] = stat.st_size
        self._step()

    @contextmanager
    def patched(self) -> Iterator[None]:
        """Replace the disk for the code inside the context."""
        unlink = Path.unlink

        def recording_unlink(path: Path, missing_ok: bool = False) -> None:
            if path.parent == self._images and path.exists():
                self._step()
                self._unsynced_changes.append((path.name, None, path.stat().st_ino))
            unlink(path, missing_ok=missing_ok)

        with (
            patch.object(image_file, "os", self),
            patch.object(atomic, "os", self),
            patch.object(Path, "unlink", recording_unlink),
        ):
            try:
                yield
            finally:
                for fd in self._pinned_fds.values():
                    os.close(fd)

    def lose_power(self, copy: Path, random: Random) -> None:
        """Reduce `copy`, a copy of the directory, to what would remain after a power loss."""
        names = dict(self._synced_names)
        kept_changes = random.choice([len(self._unsynced_changes), random.randint(0, len(self._unsynced_changes))])
        for old, new, inode in self._unsynced_changes[:kept_changes]:
            if old is not None:
                names.pop(old, None)
            if new is not None:
                names[new] = inode
        for name in self._list_and_pin():
            (copy / name).unlink()
        for name, inode in names.items():
            data = os.pread(self._pinned_fds[inode], os.fstat(self._pinned_fds[inode]).st_size, 0)
            synced = self._synced_bytes.get(inode, len(data))  # files from before this process are synced
            (copy / name).write_bytes(data[: random.randint(min(synced, len(data)), len(data))])

    def _list_and_pin(self) -> dict[str, int]:
        """Return names and inodes of the files, and keep each inode open."""
        if not self._images.is_dir():
            return {}
        files = [entry for entry in os.scandir(self._images) if entry.is_file(follow_symlinks=False)]
        for entry in files:
            if entry.inode() not in self._pinned_fds:
                self._pinned_fds[entry.inode()] = os.open(entry, os.O_RDONLY)
        return {entry.name: entry.inode() for entry in files}


def run_crashing(
    main: Coroutine[Any, Any, T],
    out: Path,
    thread_duration_s: Callable[[], float],
    *,
    crash_at_step: int,
    power_loss_random: Random | None,
    at_disk_call: bool,
    on_crash: Callable[[], None],
) -> tuple[int, bool]:
    """Run a coroutine as a process that crashes at a step, and leave `out` as it was at that moment.

    With `power_loss_random` the crash is a power loss. `on_crash` is called before the tasks are cancelled.
    Returns the number of steps that ran, and whether it crashed: it may end before that step.
    """
    loop = CrashingLoop(thread_duration_s, crash_at_step, at_disk_call=at_disk_call)
    disk = SimulatedDisk(out / run_dir.IMAGES, loop.disk_step)
    try:
        with disk.patched():
            task = loop.create_task(main)
            task.add_done_callback(_stop_loop)
            loop.run_forever()
            if not loop.crashed:
                task.result()
                return loop.steps, False
            snapshot = out.with_name(f"{out.name} snapshot")
            shutil.copytree(out, snapshot, symlinks=True)
            if power_loss_random is not None:
                disk.lose_power(snapshot / run_dir.IMAGES, power_loss_random)
            on_crash()
            loop.run_skipped_callbacks()
            task.remove_done_callback(_stop_loop)
        cancel_all_tasks(loop)
        shutil.rmtree(out)
        snapshot.rename(out)
        return loop.steps, True
    finally:
        loop.close()
