"""Reads the images of a run with their requests, in submit order."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Self

import msgspec

from krea_batch.errors import InputError
from krea_batch.jobs import Outcome, State, StoredFile
from krea_batch.ledger import LedgerStore
from krea_batch.storage.run_dir import LEDGER, require_run

EXPORT_PAGE_ROWS = 500  # chosen: ledger rows in memory at once

LIST_FIELDS = ("image_style_references", "styles", "moodboards")


class ExportedImage(msgspec.Struct, frozen=True):
    """One image of a job. `path` is the file; `number` counts all images from 1."""

    number: int
    outcome: Outcome
    file: StoredFile
    path: Path

    @property
    def name(self) -> str:
        """The file name."""
        return PurePosixPath(self.file.path.replace(os.sep, "/")).name

    def read(self) -> bytes:
        """Return its bytes. Raises InputError if they differ from the ledger."""
        try:
            data = self.path.read_bytes()
        except OSError as error:
            raise self._error(f"cannot be read ({error.strerror})") from None
        if len(data) != self.file.bytes or hashlib.sha256(data).hexdigest() != self.file.sha256:
            raise self._error("differs from the ledger")
        return data

    def columns(self) -> dict[str, Any]:
        """Return its data as a flat dict with the same keys for every image; lists and metadata are JSON."""
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
            "metadata": _json_text(outcome.metadata),
        }

    def _error(self, problem: str) -> InputError:
        return InputError(f"the image {self.path} {problem}", "see krea-batch verify OUT --repair")


class RunImages:
    """The images of a run at the time this was opened; a context manager.

    `ids`: only these jobs. Raises RunDirError if there is no run, InputError if an id has no image or the images are
    not on this disk.
    """

    def __init__(self, out: Path, ids: Collection[str] | None = None) -> None:
        require_run(out)
        self.out = out
        self._ids = None if ids is None else set(ids)
        self._store = LedgerStore.snapshot(out / LEDGER)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._store.close()

    def images(self) -> Iterator[ExportedImage]:
        """Yield each image; may be called repeatedly. Raises InputError for an image in an object store."""
        number = 0
        for outcome in self._outcomes():
            for file in outcome.files:
                if "://" in file.path:
                    hint = "copy them to a directory with your object store's own tool"
                    raise InputError(f"the images are in {file.path.rpartition('/')[0]}, not on this disk", hint)
                number += 1
                yield ExportedImage(number, outcome, file, self.out / file.path)

    def count(self) -> int:
        """Return the number of images. Raises InputError if one of `ids` has none."""
        total = 0
        missing = set(self._ids or ())
        for image in self.images():
            total += 1
            missing.discard(image.outcome.id)
        if missing:
            examples = ", ".join(sorted(missing)[:5]) + (" …" if len(missing) > 5 else "")
            raise InputError(f"{len(missing):,} of the ids have no image: {examples}", "see krea-batch status OUT")
        return total

    def _outcomes(self) -> Iterator[Outcome]:
        after: int | None = 0
        while after is not None:
            page, after = self._store.outcomes_page(after, EXPORT_PAGE_ROWS)
            for outcome in page:
                if outcome.status is State.SUCCEEDED and (self._ids is None or outcome.id in self._ids):
                    yield outcome


def _json_text(value: object) -> str:
    return msgspec.json.encode(value).decode()
