"""Read the images of a run with their requests, in submit order.

The ledger is read as a snapshot, so a run in progress does not change the result.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Self

import msgspec

from krea_batch.errors import InputError
from krea_batch.jobs import Outcome, State, StoredFile
from krea_batch.ledger import read_outcomes, snapshot_ledger
from krea_batch.sources.values import LIST_FIELDS
from krea_batch.storage.ratings import read_ratings
from krea_batch.storage.run_dir import IMAGES, RATINGS, require_run

EXPORT_PAGE_ROWS = 500  # chosen: ledger rows per query, which limits the memory used


class ExportedImage(msgspec.Struct, frozen=True):
    """One image of a job. `path` is the file on disk.

    `number` counts the images of the run from 1, and `output` those of the job. `rating` is that of the job, 1 to 5.
    """

    number: int
    outcome: Outcome
    file: StoredFile
    path: Path
    output: int = 1
    rating: int | None = None

    @property
    def stem(self) -> str:
        """The path below images/, with slashes and without extension."""
        parts = PurePosixPath(self.file.path.replace(os.sep, "/")).with_suffix("").parts
        return "/".join(parts[1:] if parts[0] == IMAGES else parts[-1:])

    def read(self) -> bytes:
        """Return the bytes of the file. Raises InputError if it cannot be read or differs from the ledger."""
        try:
            data = self.path.read_bytes()
        except OSError as error:
            raise self._error(f"cannot be read ({error.strerror})") from None
        if len(data) != self.file.bytes or hashlib.sha256(data).hexdigest() != self.file.sha256:
            raise self._error("differs from the ledger")
        return data

    def columns(self) -> dict[str, Any]:
        """Return the data of the image as a flat dict: the same keys for every image, lists and metadata as JSON."""
        request, outcome = self.outcome.request, self.outcome
        return {
            "id": outcome.id,
            "prompt": request["prompt"],
            "aspect_ratio": request.get("aspect_ratio"),
            "creativity": request.get("creativity"),
            "seed": request.get("seed"),
            **{name: _json_text(request.get(name, [])) for name in LIST_FIELDS},
            "request_id": outcome.request_id,
            "width": self.file.width,
            "height": self.file.height,
            "bytes": self.file.bytes,
            "sha256": self.file.sha256,
            "submitted_at": outcome.submitted_at,
            "stored_at": outcome.stored_at,
            "rating": self.rating,
            "metadata": _json_text(outcome.metadata),
        }

    def _error(self, problem: str) -> InputError:
        return InputError(f"image {self.path} {problem}", "see krea-batch verify OUT --repair")


class RunImages:
    """The images of a run at the time this was opened; a context manager.

    `ids` selects jobs; None selects all. Raises RunDirError if there is no run, and InputError if its ratings
    cannot be read.
    """

    def __init__(self, out: Path, ids: Collection[str] | None = None) -> None:
        require_run(out)
        self.out = out
        self._ids = None if ids is None else set(ids)
        try:
            self._ratings = read_ratings(out)
        except OSError as error:
            raise InputError(f"cannot read {out / RATINGS} ({error.strerror})", "check its owner and mode") from None
        self._store = snapshot_ledger(out)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._store.close()

    def images(self) -> Iterator[ExportedImage]:
        """Yield each image. Every call starts again. Raises InputError for an image in an object store."""
        number = 0
        for outcome in self._outcomes():
            for output, file in enumerate(outcome.files, 1):
                if "://" in file.path:
                    hint = "copy them to a local directory with the tools of your object store"
                    raise InputError(f"the images are in {file.path.rpartition('/')[0]}, not on this disk", hint)
                if Path(file.path).is_absolute() or ".." in Path(file.path).parts:
                    raise InputError(f"{file.path} is not in the run directory", "the ledger may be someone else's")
                number += 1
                rating = self._ratings.get(outcome.id)
                yield ExportedImage(number, outcome, file, self.out / file.path, output, rating)

    def count(self) -> int:
        """Return the number of images. Raises InputError if one of `ids` has none, and as `images` does."""
        total = 0
        missing = set(self._ids or ())
        for image in self.images():
            total += 1
            missing.discard(image.outcome.id)
        if missing:
            examples = ", ".join(sorted(missing)[:5]) + (" …" if len(missing) > 5 else "")
            problem = f"{len(missing):,} of the ids {'has' if len(missing) == 1 else 'have'} no image: {examples}"
            raise InputError(problem, "see krea-batch status OUT")
        return total

    def _outcomes(self) -> Iterator[Outcome]:
        after: int | None = 0
        while after is not None:
            page, after = read_outcomes(self._store, after, EXPORT_PAGE_ROWS)
            for outcome in page:
                if outcome.status is State.SUCCEEDED and (self._ids is None or outcome.id in self._ids):
                    yield outcome


def _json_text(value: object) -> str:
    return msgspec.json.encode(value).decode()
