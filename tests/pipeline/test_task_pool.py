"""Test pipeline.task_pool: only cancellable work is cancelled, and a failed task ends the stage."""

from __future__ import annotations

import asyncio

import anyio
import pytest

from krea_batch.pipeline.task_pool import TaskPool
from krea_batch.testing import run_virtual


class TaskLog:
    """Records how tasks ended."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    async def step(self, pool: TaskPool, *, cancellable: bool) -> None:
        """Sleep for ten seconds, then record the end."""
        try:
            if cancellable:
                await pool.cancellable(asyncio.sleep, 10)
            else:
                await asyncio.sleep(10)
            self.lines.append("done")
        except asyncio.CancelledError:
            self.lines.append("cancelled")
            raise


@pytest.mark.parametrize(("cancellable", "expected"), [(True, "cancelled"), (False, "done")])
def test_leaving_cancels_only_cancellable_work(cancellable: bool, expected: str) -> None:
    """A task that is not cancellable completes its step, although the stage is cancelled."""
    log = TaskLog()

    async def stage() -> None:
        with anyio.move_on_after(5):
            async with TaskPool() as pool:
                pool.spawn(log.step(pool, cancellable=cancellable))
                await anyio.sleep_forever()

    run_virtual(stage())
    assert log.lines == [expected]


def test_no_cancellable_work_starts_after_the_stage() -> None:
    """A task that enters `cancellable` after the stage has been left does not continue."""
    lines: list[str] = []

    async def two_steps(pool: TaskPool) -> None:
        await asyncio.sleep(10)
        lines.append("first")
        await pool.cancellable(asyncio.sleep, 10)
        lines.append("second")

    async def stage() -> None:
        async with TaskPool() as pool:
            pool.spawn(two_steps(pool))
            await asyncio.sleep(5)

    run_virtual(stage())
    assert lines == ["first"]


def test_an_error_ends_the_stage_after_the_other_tasks() -> None:
    """The stage is cancelled and raises the task's exception once the other tasks have ended."""
    log = TaskLog()

    async def fails() -> None:
        await asyncio.sleep(1)
        raise ZeroDivisionError

    async def stage() -> None:
        async with TaskPool() as pool:
            pool.spawn(log.step(pool, cancellable=False))
            pool.spawn(log.step(pool, cancellable=True))
            pool.spawn(fails())
            await anyio.sleep_forever()

    with pytest.raises(ZeroDivisionError):
        run_virtual(stage())
    assert sorted(log.lines) == ["cancelled", "done"]


def test_cancellable_returns_the_result_of_the_work() -> None:
    """`cancellable` passes arguments on, and returns the result or raises the exception."""

    async def half(number: int, *, divisor: int) -> float:
        return number / divisor

    results: list[object] = []

    async def run_half(pool: TaskPool) -> None:
        results.append(await pool.cancellable(half, 3, divisor=2))
        try:
            await pool.cancellable(half, 3, divisor=0)
        except ZeroDivisionError as error:
            results.append(type(error))

    async def stage() -> None:
        async with TaskPool() as pool:
            pool.spawn(run_half(pool))
            await asyncio.sleep(1)

    run_virtual(stage())
    assert results == [1.5, ZeroDivisionError]
