"""The run that a page shows: its jobs as they are in the ledger, their ratings, and the jobs that are planned.

The ledger is read from the first job that has not ended, and what has changed is sent to every open page.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Collection, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio.to_thread
import msgspec

from krea_batch.gallery.new_jobs import SEEDS, Changes, job_line, make_jobs
from krea_batch.gallery.page_commands import PageCommands
from krea_batch.gallery.rendering import item
from krea_batch.gallery.thumbnail_files import LocalImage, local_image
from krea_batch.gallery.thumbnails import ThumbnailCache
from krea_batch.jobs import FINAL, Job, Outcome, State
from krea_batch.ledger import LedgerReader, RunObserver, read_ledger
from krea_batch.ledger.paging import first_column, iter_rows
from krea_batch.ledger.rows import RunRecord
from krea_batch.storage.ratings import append_ratings, read_ratings
from krea_batch.storage.run_dir import SIMULATOR_STATE_FILE, require_run


class JobPlan(msgspec.Struct, frozen=True):
    """New jobs that were shown with their price, under a name that cannot be guessed.

    `pending` is the number of jobs of the run that are submitted with them.
    """

    name: str
    jobs: tuple[Job, ...]
    pending: int


class ShownRun:
    """The run of one directory, and the pages that follow it."""

    def __init__(self, out: Path, *, price: float | None = None, run_variables: Collection[str] = ()) -> None:
        require_run(out)
        self.out = out
        self.price = price
        self._observer = RunObserver(out)
        self.secret = secrets.token_urlsafe()
        self.token = secrets.token_urlsafe()
        self.commands = PageCommands(out, with_key=not self.simulated, run_variables=run_variables)
        self._plan: JobPlan | None = None
        self._latest_run: RunRecord | None = None
        self._reread_all = False  # read all jobs again, including those that had ended
        self.ratings = read_ratings(out)
        self.run_status: dict[str, Any] = {}  # the number of jobs, and whether a process is running
        self._outcomes: dict[int, Outcome] = {}
        self._subscribers: set[asyncio.Queue[bytes]] = set()
        self._thumbnail_cache = ThumbnailCache(out)

    @property
    def simulated(self) -> bool:
        return (self.out / SIMULATOR_STATE_FILE).is_file()

    def has_jobs(self, ids: list[str]) -> bool:
        """Return whether each of these is the id of a job."""
        return {outcome.id for outcome in self._outcomes.values()}.issuperset(ids)

    def items(self) -> bytes:
        """Return all jobs as JSON."""
        return msgspec.json.encode([self._item(job_no, outcome) for job_no, outcome in self._outcomes.items()])

    def _item(self, job_no: int, outcome: Outcome) -> dict[str, Any]:
        return item(job_no, outcome, self.ratings.get(outcome.id))

    async def rate(self, ids: list[str], rating: int | None) -> None:
        """Give these jobs a rating, or none, and send it to the pages. Raises OSError, InputError."""
        await anyio.to_thread.run_sync(append_ratings, self.out, ids, rating)
        for job_id in ids:
            self.ratings.pop(job_id, None)
            if rating is not None:
                self.ratings[job_id] = rating
        chosen = set(ids)
        rated = [(job_no, outcome) for job_no, outcome in self._outcomes.items() if outcome.id in chosen]
        self.broadcast("items", [self._item(job_no, outcome) for job_no, outcome in rated])

    def image(self, job_no: int, file_index: int) -> LocalImage | None:
        """Return an image of a job, with `file_index` from 0; None if it is not in the run directory."""
        outcome = self._outcomes.get(job_no)
        if outcome is None or not 0 <= file_index < len(outcome.files):
            return None
        return local_image(self.out, outcome.files[file_index])

    def thumbnail(self, image: LocalImage) -> bytes | None:
        """Return the thumbnail of an image; None if it cannot be read. Blocks."""
        return self._thumbnail_cache.get(image)

    async def refresh(self) -> None:
        """Read what has changed since the last refresh, and send it to the pages."""
        before = self.run_status
        changed = await anyio.to_thread.run_sync(self._read_changes)
        if self.run_status != before:
            self.broadcast("run_status", self.run_status)
        if changed:
            self.broadcast("items", [self._item(job_no, outcome) for job_no, outcome in changed])

    def broadcast(self, event: str, data: object) -> None:
        """Send an event to every open page."""
        message = sse_event(event, data)
        for queue in self._subscribers:
            queue.put_nowait(message)

    @asynccontextmanager
    async def subscribe(self) -> AsyncIterator[asyncio.Queue[bytes]]:
        """Yield a queue of the events that are broadcast from now on, encoded."""
        queue: asyncio.Queue[bytes] = asyncio.Queue()
        self._subscribers.add(queue)
        try:
            yield queue
        finally:
            self._subscribers.discard(queue)

    def _read_changes(self) -> list[tuple[int, Outcome]]:
        with read_ledger(self.out) as store:
            running = self._observer.is_running(store)
            counts, run = store.read(LedgerReader.counts, LedgerReader.latest_run)
            ended = Counter(outcome.status for outcome in self._outcomes.values() if outcome.status in FINAL)
            # If a final state has fewer jobs than before, jobs that had ended were resubmitted.
            reread_all = self._reread_all or any(count > counts.get(state, 0) for state, count in ended.items())
            self._reread_all = False
            open_jobs = (job_no for job_no, outcome in self._outcomes.items() if outcome.status not in FINAL)
            after_job_no = 0 if reread_all else next(open_jobs, len(self._outcomes) + 1) - 1
            rows = iter_rows(partial(_jobs_page, store), first_column, after_job_no)
            changed = [row for row in rows if self._outcomes.get(row[0]) != row[1]]
        self._outcomes.update(changed)
        self._latest_run = run
        self.run_status = {
            "expected_jobs": run.expected_jobs if run else None,
            "max_charges": run.max_charges if run else None,
            "running": running,
        }
        return changed

    def plan(self, ids: list[str], changes: Changes) -> JobPlan:
        """Plan new jobs, which replace the last plan. Raises ValueError with the reason why there are none."""
        chosen = set(ids)
        outcomes = [outcome for outcome in self._outcomes.values() if outcome.id in chosen]
        taken_ids = {outcome.id for outcome in self._outcomes.values()}
        jobs = make_jobs(outcomes, changes, taken_ids, lambda: secrets.randbelow(SEEDS))
        pending = sum(outcome.status is State.PENDING for outcome in self._outcomes.values())
        self._plan = JobPlan(secrets.token_urlsafe(), tuple(jobs), pending)
        return self._plan

    def take_plan(self, name: str) -> JobPlan | None:
        """Return the plan of this name, once; None if there is no such plan any more."""
        if self._plan is None or not secrets.compare_digest(name.encode(), self._plan.name.encode()):
            return None
        plan, self._plan = self._plan, None
        return plan

    async def retry(self, ids: list[str]) -> None:
        """Resubmit these jobs, and send the last lines to the pages."""
        await self._broadcast_output(self.commands.retry(ids))

    async def submit(self, plan: JobPlan) -> None:
        """Submit the jobs of a plan, and send the last lines to the pages."""
        lines = b"".join(map(job_line, plan.jobs))
        await self._broadcast_output(self.commands.submit(lines, self._latest_run))

    async def _broadcast_output(self, command: Coroutine[Any, Any, tuple[bool, str]]) -> None:
        try:
            ok, text = await command
        finally:
            self._reread_all = True
        self.broadcast("command_output", {"ok": ok, "text": text})


def _jobs_page(store: LedgerReader, after_job_no: int, limit: int) -> list[tuple[int, Outcome]]:
    """Read a page of jobs in one transaction. Raises LedgerError."""
    (page,) = store.read(lambda store: store.jobs_page(after_job_no, limit))
    return page  # type: ignore[no-any-return]


def sse_event(name: str, data: object) -> bytes:
    """Encode a server-sent event."""
    return f"event: {name}\ndata: ".encode() + msgspec.json.encode(data) + b"\n\n"
