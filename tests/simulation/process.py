"""Simulate a process: an event loop that can stall, or crash at its Nth step or between two disk calls.

A step is one callback of the loop, so a crash can happen at any await, and before and after any commit. A process
that stalls (SIGSTOP, a suspended machine) runs no callback while time passes.
"""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import Context
from pathlib import Path
from random import Random
from typing import Any, TypeVar, TypeVarTuple, Unpack

from krea_batch.storage import run_dir
from krea_batch.testing import VirtualTimeLoop
from krea_batch.testing.kill import cancel_all_tasks
from tests.simulation.simulated_disk import SimulatedDisk

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

START_S = 1000.0  # the time of a VirtualTimeLoop when it is created


class Killed(BaseException):
    """The simulated process has crashed."""


class SimulatedLoop(VirtualTimeLoop):
    """An event loop in virtual time. With `runs_threads`, calls in executors may wait without stopping the loop."""

    def __init__(self, thread_duration_s: Callable[[], float]) -> None:
        self.runs_threads = False
        self.unhandled: list[str] = []  # errors of callbacks and forgotten tasks
        super().__init__(thread_duration_s)
        self.set_exception_handler(self._record_unhandled)

    def _record_unhandled(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not isinstance(context.get("exception"), Killed):
            self.unhandled.append(str(context))

    def stand_still(self, duration_s: float) -> None:
        """Let time pass without running any callback."""
        self._clock_selector.now_s += duration_s

    def _run_call(
        self,
        resolve: Callable[..., object],
        future: asyncio.Future[T],
        func: Callable[[Unpack[Ts]], T],
        *args: *Ts,
    ) -> None:
        run_call = super()._run_call
        if self.runs_threads:
            WaitingThread(self, lambda: run_call(resolve, future, func, *args)).resume()
        else:
            run_call(resolve, future, func, *args)


class WaitingThread(threading.Thread):
    """A thread that can sleep in virtual time. Either it runs or the thread of the event loop, never both."""

    def __init__(self, loop: SimulatedLoop, work: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self._loop = loop
        self._work = work
        self._error: BaseException | None = None
        self._may_run = threading.Semaphore(0)
        self._has_stopped = threading.Semaphore(0)
        self.start()

    def run(self) -> None:
        """Do the work when the loop lets it."""
        self._may_run.acquire()
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001 - `resume` raises it
            self._error = error
        self._has_stopped.release()

    def resume(self) -> None:
        """Let the thread run until it sleeps or ends. Called by the loop. Raises what the work raises."""
        self._may_run.release()
        self._has_stopped.acquire()
        if self._error:
            raise self._error

    def sleep(self, duration_s: float) -> None:
        """Let the loop run for so long. Called by the work."""
        self._loop.call_later(duration_s, self.resume)
        self._has_stopped.release()
        self._may_run.acquire()


def sleep_in_thread(duration_s: float) -> None:
    """Sleep in virtual time, in place of `time.sleep`, in a call that a loop with `runs_threads` runs."""
    thread = threading.current_thread()
    assert isinstance(thread, WaitingThread)
    thread.sleep(duration_s)


class CrashingLoop(SimulatedLoop):
    """Crashes at step `crash_at_step`, counted in loop steps or in disk calls: from then on no callback runs."""

    def __init__(self, thread_duration_s: Callable[[], float], crash_at_step: int, *, at_disk_call: bool) -> None:
        self.steps = 0
        self.disk_steps = 0
        self.crashed = False
        self._crash_at_step = crash_at_step
        self._at_disk_call = at_disk_call
        self._skipped_callbacks: list[Callable[[], object]] = []
        super().__init__(thread_duration_s)

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


def run_to_the_end(loop: SimulatedLoop, main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on a loop as a process that ends by itself, and return its result. Closes the loop."""
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(main)


def run_crashing(
    loop: CrashingLoop,
    main: Coroutine[Any, Any, T],
    out: Path,
    *,
    power_loss_random: Random | None,
    on_crash: Callable[[], None],
) -> bool:
    """Run a coroutine as a process that crashes, and leave `out` as it was at that moment. Closes the loop.

    With `power_loss_random` the crash is a power loss. `on_crash` is called before the tasks are cancelled. Returns
    whether it crashed: it may end before that step.
    """
    disk = SimulatedDisk(out / run_dir.IMAGES, loop.disk_step)
    has_ended = False  # then the end of the task must not stop the loop that cancels the others
    try:
        with disk.patched():
            task = loop.create_task(main)
            task.add_done_callback(lambda _: None if has_ended else loop.stop())
            loop.run_forever()
            if not loop.crashed:
                task.result()
                return False
            snapshot = out.with_name(f"{out.name} snapshot")
            shutil.copytree(out, snapshot, symlinks=True)
            if power_loss_random is not None:
                disk.lose_power(snapshot / run_dir.IMAGES, power_loss_random)
            on_crash()
            has_ended = True
            loop.run_skipped_callbacks()
        cancel_all_tasks(loop)
        shutil.rmtree(out)
        snapshot.rename(out)
        return True
    finally:
        loop.close()
