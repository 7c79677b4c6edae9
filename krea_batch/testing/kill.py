"""Kill a process at a chosen moment of virtual time, and leave the files that a real kill would leave.

    from krea_batch import Engine, Job
    from krea_batch.testing import ScriptedGateway, run_until_killed, run_virtual

    def test_a_kill_costs_nothing(tmp_path):
        gateway = ScriptedGateway()
        out = tmp_path / "out"

        async def generate():
            async with Engine(out, gateway_client=gateway) as engine:
                return await engine.generate(Job(prompt="a fox", id="fox"))

        run_until_killed(generate(), kill_after_s=3.0, directory=out)  # the job is in flight
        assert run_virtual(generate()).succeeded
        assert gateway.submitted_prompts == ["a fox"]

Everything of the killed process happens in one thread, so its files are those of one instant. What a real kill leaves
in the middle of a write of the operating system is not part of this; `kill -9` of a real process shows that.
"""

from __future__ import annotations

import asyncio
import gc
import shutil
import warnings
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from krea_batch.testing.virtual_time import VirtualTimeLoop

__all__ = ["cancel_all_tasks", "run_until_killed"]

T = TypeVar("T")


def run_until_killed(
    main: Coroutine[Any, Any, T],
    kill_after_s: float,
    directory: Path,
    thread_duration_s: Callable[[], float] | None = None,
) -> T | None:
    """Run a coroutine as a process that is killed after `kill_after_s` of virtual time.

    `directory`, which has all files of the process, is left as it was at that moment: what the process does at its
    end, which a killed process does not, is undone. Returns the result of the coroutine if it ended before, or None.
    """
    loop = VirtualTimeLoop(thread_duration_s)
    try:
        task = loop.create_task(main)
        task.add_done_callback(_stop_loop)
        loop.call_later(kill_after_s, loop.stop)
        loop.run_forever()
        if task.done():
            return task.result()
        task.remove_done_callback(_stop_loop)
        _cancel_with_files_kept(loop, directory)
        return None
    finally:
        loop.close()


def cancel_all_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel all tasks of a killed process without warnings or logged errors."""
    loop.set_exception_handler(lambda *_: None)
    with warnings.catch_warnings(action="ignore"):
        _cancel_all(loop)
        gc.collect()


def _stop_loop(task: asyncio.Task[Any]) -> None:
    task.get_loop().stop()


def _cancel_with_files_kept(loop: asyncio.AbstractEventLoop, directory: Path) -> None:
    snapshot = directory.with_name(f"{directory.name} snapshot")
    existed = directory.exists()
    if existed:
        shutil.copytree(directory, snapshot)
    cancel_all_tasks(loop)
    shutil.rmtree(directory, ignore_errors=not existed)
    if existed:
        snapshot.rename(directory)


def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    while tasks := asyncio.all_tasks(loop):
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.wait(tasks))
        for task in tasks:
            if not task.cancelled():
                task.exception()
    loop.run_until_complete(loop.shutdown_asyncgens())
