"""Keeps the star ratings of a run in `ratings.jsonl`, beside the ledger.

They are no part of the ledger, which is written by one process at a time: a rating never waits for a run, and a run
never waits for a rating. The file is only appended to, and the last line of a job counts. A kill may cut a line, so
lines that cannot be read are skipped.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import msgspec

from krea_batch.storage.atomic import sync_fd
from krea_batch.storage.outputs import open_for_append
from krea_batch.storage.run_dir import RATINGS

Stars = Annotated[int, msgspec.Meta(ge=1, le=5)]
"""A rating; 5 is the best."""


class RatingLine(msgspec.Struct, frozen=True):
    """A line of the file. None removes the rating of the job."""

    id: str
    rating: Stars | None


_decode_line = msgspec.json.Decoder(RatingLine).decode


def read_ratings(out: Path) -> dict[str, int]:
    """Return the rating of each job that has one, by its id. Raises OSError if the file cannot be read."""
    try:
        lines = (out / RATINGS).read_bytes().split(b"\n")
    except FileNotFoundError:
        return {}
    ratings: dict[str, int] = {}
    for line in lines:
        try:
            entry = _decode_line(line)
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue  # a line that a kill has cut, or the end of the file
        ratings.pop(entry.id, None)
        if entry.rating is not None:
            ratings[entry.id] = entry.rating
    return ratings


def append_ratings(out: Path, job_ids: Iterable[str], rating: int | None) -> None:
    """Give these jobs a rating, or none. Durable at return. Raises OSError, and InputError for a foreign file."""
    # The first newline ends a line that a kill has cut; after a whole line, it is an empty one, which is skipped.
    lines = [b"", *(msgspec.json.encode(RatingLine(job_id, rating)) for job_id in job_ids), b""]
    fd = open_for_append(out / RATINGS, lambda line: line == b"" or line.startswith(b'{"id":'), "ratings file")
    with os.fdopen(fd, "ab") as file:
        file.write(b"\n".join(lines))
        file.flush()
        sync_fd(fd)
