"""Futures come in; waits that asyncio has no word for go out."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, TypeVar

T = TypeVar("T")


async def to_the_end(work: asyncio.Future[T]) -> T:
    """Wait for work in a thread. A cancel waits, too: whoever comes next may not meet it at the same file."""
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        raise


def answer_all(futures: Iterable[asyncio.Future[Any]], answers: Iterable[Any]) -> None:
    """Give each future its answer, errors as what is raised; one that nobody waits for any more is left alone."""
    for future, answer in zip(futures, answers, strict=True):
        if future.done():
            continue
        if isinstance(answer, BaseException):
            future.set_exception(answer)
        else:
            future.set_result(answer)
