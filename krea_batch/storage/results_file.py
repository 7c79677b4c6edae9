"""results.jsonl: one row per job that has ended, complete lines only.

The ledger is authoritative; this file is a copy for people and tools. Rows are appended as jobs end. At the end of a
run, the file is rewritten from the ledger, so that each id occurs once. If a run did not do so, the next one does it
when it starts. Rows that cannot have changed are copied.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import os
from collections.abc import AsyncIterable, Callable, Iterable
from concurrent.futures import Executor
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar, TypeVarTuple, Unpack

import msgspec

from krea_batch.jobs import Outcome
from krea_batch.storage.async_io import MinInterval, run_to_completion
from krea_batch.storage.atomic import commit, open_for_writing
from krea_batch.storage.os_errors import is_out_of_files
from krea_batch.storage.run_dir import RESULTS

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

COPY_CHUNK_BYTES = 1 << 20
APPEND_INTERVAL_S = 0.1  # chosen: minimum interval between appends
RETRY_INTERVAL_S = 1.0  # chosen: minimum interval between appends while too many files are open


class StablePrefix(NamedTuple):
    """The first `size_bytes` of the file: the rows of jobs up to number `last_job_no`, which will not change.

    `identity` is that of the file, see `ResultsFile.identity`; None if there is none.
    """

    last_job_no: int
    size_bytes: int
    identity: tuple[int, int] | None


EMPTY_PREFIX = StablePrefix(0, 0, None)


def encode_row(outcome: Outcome) -> bytes:
    """Return a line of results.jsonl, with its newline: the fields of `Outcome` in order."""
    return msgspec.json.encode(outcome) + b"\n"


class ResultsFile:
    """The results file of one run. File work runs in `executor`; `on_error` is called if it fails."""

    def __init__(self, out: Path, executor: Executor, on_error: Callable[[OSError], None]) -> None:
        self._path = out / RESULTS
        self._executor = executor
        self._on_error = on_error
        self._rows: list[bytes] = []
        self._buffering = False
        self._closing = False
        self._writing: asyncio.Future[None] | None = None
        self._append_trigger = MinInterval(self._write)

    def append(self, outcome: Outcome) -> None:
        """Append a row, together with those that follow soon, or while the disk is busy."""
        self._rows.append(encode_row(outcome))
        if self._writing is None and not self._append_trigger.is_scheduled:
            self._append_trigger.schedule(APPEND_INTERVAL_S)

    def buffer(self) -> None:
        """Buffer the rows appended from now on until the file is rewritten with the others."""
        self._rows.clear()
        self._buffering = True

    def size_bytes(self) -> int | None:
        """Return the size of the file, or None if there is none."""
        info = self._stat()
        return info.st_size if info else None

    def identity(self) -> tuple[int, int] | None:
        """Return device and inode, which change if the file is replaced; None if there is none."""
        info = self._stat()
        return (info.st_dev, info.st_ino) if info else None

    async def close(self) -> None:
        """Write buffered rows."""
        self._closing = True
        self._buffering = False
        while self._rows or self._writing is not None:
            self._write()
            if self._writing is not None:
                await asyncio.wait([self._writing])

    async def rewrite(self, groups: AsyncIterable[Iterable[Outcome]], *, keep_bytes: int = 0) -> None:
        """Replace the file: keep its first `keep_bytes`, then write the outcomes.

        `groups` has the jobs that had ended when `buffer` was called, or now. The old file stays until the new one
        is durable. Raises OSError.
        """
        if not self._buffering:
            self.buffer()
        try:
            while self._writing is not None:
                await asyncio.wait([self._writing])
            await self._replace(groups, keep_bytes)
        finally:
            self._buffering = False
            self._write()

    def _stat(self) -> os.stat_result | None:
        try:
            return self._path.stat()
        except OSError:
            return None

    async def _replace(self, groups: AsyncIterable[Iterable[Outcome]], keep_bytes: int) -> None:
        new = self._path.with_suffix(".jsonl.part")
        await self._run_in_executor(_create_with_prefix, new, self._path, keep_bytes)
        async for outcomes in groups:
            await self._run_in_executor(_append, new, list(map(encode_row, outcomes)))
        await self._run_in_executor(commit, new, self._path)

    async def _run_in_executor(self, function: Callable[[Unpack[Ts]], T], *args: *Ts) -> T:
        return await run_to_completion(asyncio.get_running_loop().run_in_executor(self._executor, function, *args))

    def _write(self) -> None:
        if not self._rows or self._buffering or self._writing is not None:
            return
        rows, self._rows = self._rows, []
        self._append_trigger.record_start()
        self._writing = asyncio.get_running_loop().run_in_executor(self._executor, _append, self._path, rows)
        self._writing.add_done_callback(functools.partial(self._on_written, rows))

    def _on_written(self, rows: list[bytes], done: asyncio.Future[None]) -> None:
        self._writing = None
        error = None if done.cancelled() else done.exception()
        if isinstance(error, OSError) and is_out_of_files(error) and not self._closing:
            self._rows[:0] = [] if self._buffering else rows  # The file was not opened, so no row is in it.
            self._append_trigger.schedule(RETRY_INTERVAL_S)
        elif isinstance(error, OSError):
            self._on_error(error)
        elif error is not None:
            raise error
        elif self._rows:
            self._append_trigger.schedule(APPEND_INTERVAL_S)


def _append(path: Path, rows: list[bytes]) -> None:
    with os.fdopen(open_for_writing(path, os.O_CREAT | os.O_APPEND), "ab") as file:
        file.write(b"".join(rows))  # one system call if the disk has room, so that no line is torn


def _create_with_prefix(path: Path, old: Path, keep_bytes: int) -> None:
    """Create the new file with the first bytes of the old one."""
    path.unlink(missing_ok=True)
    with os.fdopen(open_for_writing(path, os.O_CREAT | os.O_EXCL), "wb") as file:
        if keep_bytes:
            with old.open("rb") as old_file:
                _copy(old_file, file, keep_bytes)


def _copy(source: BinaryIO, target: BinaryIO, size_bytes: int) -> None:
    while size_bytes:
        chunk = source.read(min(size_bytes, COPY_CHUNK_BYTES))
        if not chunk:
            raise OSError(errno.EIO, "the file was truncated while it was copied")
        size_bytes -= target.write(chunk)
