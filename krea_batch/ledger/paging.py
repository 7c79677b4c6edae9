"""Iterates over rows of the ledger in pages."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from typing import Any, TypeVar

from krea_batch.jobs import Outcome
from krea_batch.ledger.protocol import LedgerReader

_Page = tuple[list[Outcome], int | None]


async def pages(read_page: Callable[[int], Awaitable[_Page]], after_job_no: int = 0) -> AsyncIterator[list[Outcome]]:
    """Yield pages of outcomes. `read_page` returns those after a number, and the number to continue after."""
    next_job_no: int | None = after_job_no
    while next_job_no is not None:
        outcomes, next_job_no = await read_page(next_job_no)
        yield outcomes


def read_outcomes(ledger: LedgerReader, after_job_no: int, limit: int) -> _Page:
    """Return a page of outcomes, as `LedgerReader.outcomes` does. Raises LedgerError."""
    page: _Page
    (page,) = ledger.read(partial(LedgerReader.outcomes, after_job_no=after_job_no, limit=limit))
    return page


T = TypeVar("T")
PAGE_ROWS = 500  # chosen: rows in memory


def iter_rows(
    read: Callable[[int, int], list[T]], job_no_of: Callable[[T], int], after_job_no: int = 0
) -> Iterator[T]:
    """Yield every row after a number. `read` takes a number and the maximum number of rows."""
    while page := read(after_job_no, PAGE_ROWS):
        yield from page
        after_job_no = job_no_of(page[-1])


def first_column(row: tuple[Any, ...]) -> int:
    """Return the number in the first column of a row."""
    return int(row[0])
