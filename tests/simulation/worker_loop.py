"""One event loop for several simulated workers, each of which can crash or stall while the others go on.

Every callback of a worker has the worker in its context (`CURRENT_PROCESS`), and so have the tasks and the calls in
executors that it starts. A worker that stalls (SIGSTOP) runs no callback; those that become due in the
meantime run one after the other when it goes on. A worker that has crashed (SIGKILL) never runs one again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context, copy_context
from typing import TypeVarTuple, Unpack

from krea_batch.rules.lease import LEASE_S
from tests.simulation.client_process import CURRENT_PROCESS, ClientProcess
from tests.simulation.process import SimulatedLoop

Ts = TypeVarTuple("Ts")

MIN_PAUSE_S = 1e-6  # a timer of the loop may be this early


class SimulatedWorker(ClientProcess):
    """One worker. It crashes at step `crash_at_step`, a callback of its own; None: it does not.

    `on_crash` is called in that step. `pauses_at_step` maps steps to how many seconds it stalls from there on.
    """

    def __init__(
        self, loop: WorkerLoop, *, crash_at_step: int | None = None, pauses_at_step: dict[int, float] | None = None
    ) -> None:
        super().__init__()
        self.has_ended = False
        self.on_crash: Callable[[], None] = lambda: None
        self.context = Context()
        self.context.run(CURRENT_PROCESS.set, self)
        self.steps = 0
        self._loop = loop
        self._crash_at_step = crash_at_step
        self._pauses_at_step = pauses_at_step or {}
        self._paused_until_s = 0.0
        self.is_cancelled = False  # at the end of the round
        self._withheld: list[WorkerStep] = []
        self._blind: list[tuple[float, float]] = []  # pauses so long that it has not watched the others

    @property
    def is_gone(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self.has_ended or self.has_crashed

    def stand_still(self, duration_s: float) -> None:
        """Run no callback for so long."""
        now_s = self._loop.time()
        if duration_s > LEASE_S / 2:
            start_s = max(now_s, self._blind[-1][1] if self._blind else 0.0)
            self._blind.append((start_s, max(start_s, now_s + duration_s)))
        self._paused_until_s = max(self._paused_until_s, now_s + duration_s)
        self._loop.call_later(duration_s, self._go_on, context=Context())

    def wake(self) -> None:
        """Go on now."""
        now_s = self._loop.time()
        self._blind = [(start_s, min(end_s, now_s)) for start_s, end_s in self._blind if start_s < now_s]
        self._paused_until_s = now_s
        self._go_on()

    def watched_s(self, since_s: float) -> float:
        """Return for how long it has watched the others since then."""
        now_s = self._loop.time()
        blind_s = sum(max(0.0, min(end_s, now_s) - max(start_s, since_s)) for start_s, end_s in self._blind)
        return now_s - since_s - blind_s

    def take_step(self, step: WorkerStep) -> None:
        """Run a callback, now or later, or never."""
        if self.is_cancelled:
            step.run()
            return
        if self.has_crashed or self._stands_still():
            self._withheld.append(step)
            return
        self.steps += 1
        if self.steps == self._crash_at_step:
            self._withheld.append(step)
            self.has_crashed = True
            self.on_crash()
            return
        step.run()
        if duration_s := self._pauses_at_step.pop(self.steps, 0.0):
            self.stand_still(duration_s)

    def run_withheld(self) -> None:
        """Schedule all callbacks that did not run, so that all tasks can be cancelled in order."""
        self.is_cancelled = True
        self._go_on()

    def _go_on(self) -> None:
        if self.is_cancelled or not (self.has_crashed or self._stands_still()):
            steps, self._withheld = self._withheld, []
            for step in steps:
                step.schedule(self._loop)

    def _stands_still(self) -> bool:
        return self._loop.time() + MIN_PAUSE_S < self._paused_until_s


class WorkerStep:
    """A callback of a worker. `handle` is what the caller of `call_soon` or `call_at` has got."""

    __slots__ = ("_callback", "_context", "_worker", "handle")

    def __init__(self, worker: SimulatedWorker, callback: Callable[[], object], context: Context) -> None:
        self._worker = worker
        self._callback = callback
        self._context = context
        self.handle: asyncio.Handle

    def __call__(self) -> None:
        self._worker.take_step(self)

    def schedule(self, loop: WorkerLoop) -> None:
        """Schedule it again, because it was withheld."""
        loop.call_soon_uncounted(self, self._context)

    def run(self) -> None:
        """Run the callback, unless it was cancelled while it was withheld."""
        if not self.handle.cancelled():
            self._callback()


class WorkerLoop(SimulatedLoop):
    """The event loop of all workers, and of the scenario itself, whose context has no worker."""

    def call_soon(
        self, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        context = copy_context() if context is None else context
        if not (worker := _worker_of(context)):
            return super().call_soon(callback, *args, context=context)
        step = WorkerStep(worker, lambda: callback(*args), context)
        step.handle = super().call_soon(step, context=context)
        return step.handle

    def call_at(
        self, when: float, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        context = copy_context() if context is None else context
        if not (worker := _worker_of(context)):
            return super().call_at(when, callback, *args, context=context)
        step = WorkerStep(worker, lambda: callback(*args), context)
        handle = step.handle = super().call_at(when, step, context=context)
        return handle

    def call_soon_uncounted(self, step: WorkerStep, context: Context) -> None:
        """Call a step that has its handle already."""
        super().call_soon(step, context=context)


def current_worker() -> SimulatedWorker | None:
    """Return the worker whose callback runs just now."""
    return _worker_of(copy_context())


def _worker_of(context: Context) -> SimulatedWorker | None:
    worker = context.get(CURRENT_PROCESS)
    return worker if isinstance(worker, SimulatedWorker) else None
