"""Runs in virtual time, including runs of processes that are killed."""

from __future__ import annotations

import asyncio
import gc
import shutil
import warnings
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from krea_batch.testing.virtual_time import VirtualTimeLoop, run_virtual

__all__ = ["VirtualTimeLoop", "cancel_all_tasks", "run_until_killed", "run_virtual"]

T = TypeVar("T")


def run_until_killed(
    main: Coroutine[Any, Any, T],
    kill_after_s: float,
    directory: Path,
    thread_duration_s: Callable[[], float] | None = None,
) -> T | None:
    """Run a coroutine as a process that is killed after `kill_after_s`. `directory` is left as it was at that moment.

    Returns None if it was killed, or else the result of the coroutine.
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
        snapshot = directory.with_name(f"{directory.name} snapshot")
        shutil.copytree(directory, snapshot)
        cancel_all_tasks(loop)
        shutil.rmtree(directory)
        snapshot.rename(directory)
        return None
    finally:
        loop.close()


def _stop_loop(task: asyncio.Task[Any]) -> None:
    task.get_loop().stop()


def cancel_all_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel all tasks of a killed process without warnings or logged errors."""
    loop.set_exception_handler(lambda *_: None)
    with warnings.catch_warnings(action="ignore"):
        _cancel_all(loop)
        gc.collect()


def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    while tasks := asyncio.all_tasks(loop):
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.wait(tasks))
        for task in tasks:
            if not task.cancelled():
                task.exception()
    loop.run_until_complete(loop.shutdown_asyncgens())
