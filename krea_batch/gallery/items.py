"""Rows of the ledger come in; what the page knows of each job goes out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from krea_batch.jobs import Outcome

T = TypeVar("T")

PAGE_ROWS = 500  # chosen: rows of the ledger in memory at once
PARAMETERS = ("aspect_ratio", "creativity", "seed", "styles", "moodboards", "image_style_references")


def item(n: int, outcome: Outcome) -> dict[str, Any]:
    """A job as the page has it. `files` holds names and sizes; what is empty is left out of `parameters`."""
    request = outcome.request
    return {
        "n": n,
        "id": outcome.id,
        "status": outcome.status.value,
        "prompt": request["prompt"],
        "parameters": {name: request[name] for name in PARAMETERS if request.get(name) not in (None, [])},
        "metadata": outcome.metadata,
        "request_id": outcome.request_id,
        "error": outcome.error.message if outcome.error else None,
        "attempts": outcome.attempts,
        "polls": outcome.polls,
        "submitted_at": outcome.submitted_at,
        "stored_at": outcome.stored_at,
        "files": [{"path": file.path, "width": file.width, "height": file.height} for file in outcome.files],
    }


def all_rows(read: Callable[[int, int], list[T]], number: Callable[[T], int], after_n: int = 0) -> Iterator[T]:
    """Every row whose number is above this one, a page at a time. `read` takes a number and how many rows at most."""
    while page := read(after_n, PAGE_ROWS):
        yield from page
        after_n = number(page[-1])


def number_of(row: tuple[Any, ...]) -> int:
    """The number that a row of the ledger begins with."""
    return int(row[0])


def place_of(out: Path, path: str) -> Path | None:
    """The file of a picture; None where it is kept in an object store, or would lie outside of the run's folder."""
    inside = "://" not in path and not Path(path).is_absolute() and ".." not in Path(path).parts
    return out / path if inside else None
