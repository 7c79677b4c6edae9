"""Tests of pipeline.crew: a task is cancelled only where it says so, and what it raises ends the stage."""

from __future__ import annotations

import asyncio

import anyio
import pytest

from krea_batch.pipeline.task_pool import TaskPool
from tests.virtual_time_runs import run_virtual


class Diary:
    """What tasks came to."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    async def step(self, crew: TaskPool, *, exposed: bool) -> None:
        """One step of ten seconds and a word after it."""
        try:
            if exposed:
                await crew.cancellable(asyncio.sleep, 10)
            else:
                await asyncio.sleep(10)
            self.lines.append("done")
        except asyncio.CancelledError:
            self.lines.append("cancelled")
            raise


@pytest.mark.parametrize(("exposed", "came_to"), [(True, "cancelled"), (False, "done")])
def test_leaving_cancels_only_the_exposed(exposed: bool, came_to: str) -> None:
    """A task in the middle of its step comes to its end, though the stage around it is cancelled."""
    diary = Diary()

    async def stage() -> None:
        with anyio.move_on_after(5):
            async with TaskPool() as crew:
                crew.spawn(diary.step(crew, exposed=exposed))
                await anyio.sleep_forever()

    run_virtual(stage())
    assert diary.lines == [came_to]


def test_nothing_is_exposed_after_the_dismissal() -> None:
    """A task that comes to its exposed part after the stage was left goes no further."""
    lines: list[str] = []

    async def two_steps(crew: TaskPool) -> None:
        await asyncio.sleep(10)
        lines.append("first")
        await crew.cancellable(asyncio.sleep, 10)
        lines.append("second")

    async def stage() -> None:
        async with TaskPool() as crew:
            crew.spawn(two_steps(crew))
            await asyncio.sleep(5)

    run_virtual(stage())
    assert lines == ["first"]


def test_an_error_ends_the_stage_and_spares_the_others() -> None:
    """The stage is cancelled and raises what the task raised, once the other tasks have ended."""
    diary = Diary()

    async def fails() -> None:
        await asyncio.sleep(1)
        raise ZeroDivisionError

    async def stage() -> None:
        async with TaskPool() as crew:
            crew.spawn(diary.step(crew, exposed=False))
            crew.spawn(diary.step(crew, exposed=True))
            crew.spawn(fails())
            await anyio.sleep_forever()

    with pytest.raises(ZeroDivisionError):
        run_virtual(stage())
    assert sorted(diary.lines) == ["cancelled", "done"]


def test_exposed_gives_what_the_work_gives() -> None:
    """Its arguments go in, its result and its errors come out."""

    async def half(number: int, *, of: int) -> float:
        return number / of

    results: list[object] = []

    async def asks(crew: TaskPool) -> None:
        results.append(await crew.cancellable(half, 3, of=2))
        try:
            await crew.cancellable(half, 3, of=0)
        except ZeroDivisionError as error:
            results.append(type(error))

    async def stage() -> None:
        async with TaskPool() as crew:
            crew.spawn(asks(crew))
            await asyncio.sleep(1)

    run_virtual(stage())
    assert results == [1.5, ZeroDivisionError]
