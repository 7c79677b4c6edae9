"""One transition of one job comes in; SQL goes out. One public method is one transition is one transaction.

Newcomers: each UPDATE names the state it starts from. When it touches no row, two parts of the engine disagree
about a job, and that is a bug to be shown, not to be written over.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import msgspec

from krea_batch.errors import KreaBatchBug, LedgerError, RunFolderError
from krea_batch.jobs import Outcome, State, StoredFile, Trouble
from krea_batch.rules import lifecycle
from krea_batch.rules.verdicts import Finished

APPLICATION_ID = 0x4B524541  # "KREA"
SCHEMA_VERSION = 3
SQLITE_VERSION = sqlite3.sqlite_version
BUSY_TIMEOUT_S = 10.0  # chosen: `status` of another process holds its read lock for far less
CACHE_KIB = 16_384  # measured: with the 2 MB of the default, a job among 100,000 costs 1.3 times one among 3,000

_OUTCOME = (
    "id, state, request_id, files, error_kind, error_message, body, metadata, polls, attempts, "
    "submitted_at, accepted_at, finished_at, stored_at"
)
_OVER = {  # states that no run goes on with
    State.SUCCEEDED: "'well'",
    State.FAILED: "'in vain'",
    State.REJECTED: "'in vain'",
    State.CANCELLED: "'in vain'",
}
_NOT_OVER = "over IS NULL"  # word for word the index's
_IN_VAIN = "over = 'in vain'"  # word for word the other's
_BODY = "CAST(body AS TEXT)"
_KIND = f"json_extract({_BODY}, '$.aspect_ratio') || ' ' || json_extract({_BODY}, '$.creativity')"  # rules/kinds
_OPEN = f"n, id, state, request_id, media, attempts, errors, polls, accepted_at, coalesce({_KIND}, ''), tenant"
_read_files = msgspec.json.Decoder(tuple[StoredFile, ...]).decode
_read_media = msgspec.json.Decoder(Finished).decode


class OpenJob(msgspec.Struct, frozen=True):
    """A job of the ledger that has not ended. `accepted_at` is seconds since 1970."""

    n: int
    id: str
    state: State
    request_id: str | None
    media: Finished | None
    attempts: int
    errors: int
    polls: int
    accepted_at: float | None
    kind: str
    tenant: str


class Doubt(msgspec.Struct, frozen=True):
    """A job of which nobody knows whether it was accepted. `submitted_at` is UTC, ISO 8601; `body` as sent."""

    n: int
    id: str
    submitted_at: str | None
    why: str
    body: bytes


class Charges(msgspec.Struct, frozen=True):
    """Accepted POSTs that are paid, those that came to ERROR (free), and those nobody knows of."""

    charged: int = 0
    free: int = 0
    unknown: int = 0


class RunRow(msgspec.Struct, frozen=True):
    """A run of the folder. `per_s` is None where its limit was to be found, `jobs` where nobody told."""

    started_at: float
    per_s: float | None
    jobs: int | None


class Stay(msgspec.Struct, frozen=True):
    """When a job was accepted, seen to be finished, and stored; `took_s` by the gateway's own word, or None."""

    n: int
    accepted_at: float
    finished_at: float | None
    stored_at: float | None
    took_s: float | None
    polls: int


class Store:
    """The SQLite file of one run. Not thread-safe: `Ledger` calls it from its one thread."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._sql = connection

    @classmethod
    def snapshot(cls, path: Path) -> Store:
        """The file as it is now, for reading, whatever is written to it later. Raises as `open`."""
        store = cls.open(path, read_only=True)
        try:
            store._sql.execute("BEGIN")
            store._sql.execute("SELECT max(n) FROM jobs").fetchone()  # SQLite takes its snapshot at the first look
        except sqlite3.Error as error:
            store.close()
            raise store._unreadable(error) from error
        return store

    @classmethod
    def open(cls, path: Path, *, read_only: bool = False) -> Store:
        """Open the file, making it unless `read_only`. Raises RunFolderError for a stranger's or newer one."""
        mode = "rw" if read_only else "rwc"  # "ro" would leave WAL files behind, having no right to clear them up
        try:
            connection = _connect(path, mode)
            try:
                _check_owner(connection, path)
                if not read_only:
                    _make_ready(connection)
            except BaseException:
                connection.close()
                raise
            if read_only:
                connection = _reading(connection)
        except sqlite3.Error as error:
            raise RunFolderError(path, f"the ledger cannot be opened ({error})", "choose another --out") from error
        return cls(path, connection)

    def close(self) -> None:
        self._sql.close()

    def transaction(self, works: Iterable[Callable[[Store], Any]]) -> list[Any]:
        """Carry out all works and make them durable, or none of them."""
        self._sql.execute("BEGIN IMMEDIATE")
        try:
            answers = [work(self) for work in works]
            self._sql.execute("COMMIT")
        except BaseException:
            if self._sql.in_transaction:
                self._sql.execute("ROLLBACK")
            raise
        return answers

    def read(self, *works: Callable[[Store], Any]) -> list[Any]:
        """The answers to several questions, all of one instant. Raises LedgerError where the file cannot be read."""
        try:
            self._sql.execute("BEGIN")
            try:
                return [work(self) for work in works]
            finally:
                self._sql.execute("ROLLBACK")
        except sqlite3.Error as error:
            raise self._unreadable(error) from error

    # ---- the way to a POST -------------------------------------------------------------------------------

    def enqueue(self, job_id: str, body: bytes, fingerprint: bytes, metadata: bytes, tenant: str) -> None:
        """A new job is to be submitted when its turn comes. One that is on record stays as it is."""
        self._sql.execute(
            "INSERT INTO jobs (id, state, body, fingerprint, metadata, tenant) VALUES (?, 'pending', ?, ?, ?, ?)"
            " ON CONFLICT (id) DO NOTHING",
            (job_id, body, fingerprint, metadata, tenant),
        )

    def intend(
        self, job_id: str, body: bytes, fingerprint: bytes, metadata: bytes, at: float, tenant: str = ""
    ) -> int:
        """A new or pending job is about to be POSTed. Returns its number in the ledger."""
        row = self._sql.execute(
            "INSERT INTO jobs (id, state, body, fingerprint, metadata, tenant, attempts, submitted_at)"
            " VALUES (?1, 'submitting', ?2, ?3, ?4, ?6, 1, ?5)"
            " ON CONFLICT (id) DO UPDATE SET state = 'submitting', attempts = attempts + 1, submitted_at = ?5"
            " WHERE state = 'pending' AND fingerprint = ?3 RETURNING n",
            (job_id, body, fingerprint, metadata, at, tenant),
        ).fetchone()
        if row is None:
            raise KreaBatchBug(f"job {job_id!r} is not pending, so it cannot be submitted")
        self._sql.execute("INSERT INTO posts (job, sent_at) VALUES (?, ?)", (row[0], at))
        return int(row[0])

    def take_back(self, n: int, came_to: str) -> None:
        """The POST was `refused` or `not_sent`: nothing was queued, the job is pending."""
        self._move(n, State.SUBMITTING, State.PENDING)
        self._came_to(n, came_to)

    def accept(self, n: int, request_id: str, at: float) -> bool:
        """The POST was accepted and is paid. False, and nothing is changed, where another has that request_id."""
        try:
            self._came_to(n, "accepted", request_id)
        except sqlite3.IntegrityError:  # posts.request_id is UNIQUE
            return False
        self._move(n, State.SUBMITTING, State.ACCEPTED, "request_id = ?, accepted_at = ?", (request_id, at))
        return True

    def reject(self, n: int, why: Trouble, at: float) -> Outcome:
        """The gateway will never take this body."""
        self._came_to(n, "refused")
        return self._end(n, State.SUBMITTING, State.REJECTED, why, at)

    def hold(self, n: int, why: Trouble, at: float) -> Outcome:
        """The POST left and nobody knows what became of it."""
        self._came_to(n, "unclear")
        return self._end(n, State.SUBMITTING, State.AMBIGUOUS, why, at)

    # ---- out of doubt ------------------------------------------------------------------------------------

    def resubmit(self, n: int) -> None:
        """Somebody decided that an ambiguous job is worth another POST."""
        self._move(n, State.AMBIGUOUS, State.PENDING, "error_kind = NULL, error_message = NULL")

    def abandon(self, n: int, at: float) -> Outcome:
        """Somebody decided that an ambiguous job is not to be submitted again; its charge stays unknown."""
        return self._end(n, State.AMBIGUOUS, State.CANCELLED, _ABANDONED, at)

    def adopt(self, n: int, request_id: str, at: float) -> bool:
        """Somebody learnt the request_id of an ambiguous job: it was accepted. False where another job has it."""
        if self._has_request_id(request_id):
            return False
        also = "request_id = ?, accepted_at = ?, finished_at = NULL, error_kind = NULL, error_message = NULL"
        self._move(n, State.AMBIGUOUS, State.ACCEPTED, also, (request_id, at))
        self._sql.execute(
            "UPDATE posts SET came_to = 'accepted', request_id = ?1"
            " WHERE n = (SELECT max(n) FROM posts WHERE job = ?2 AND came_to = 'unclear')",
            (request_id, n),
        )
        return True

    def doubted(self, n: int) -> OpenJob | None:
        """The job of this number, where it is ambiguous."""
        row = self._sql.execute(f"SELECT {_OPEN} FROM jobs WHERE n = ? AND state = 'ambiguous'", (n,)).fetchone()
        return _open_job(row) if row else None

    def callback_secret(self, new: bytes) -> bytes:
        """What makes this folder's callback addresses; `new` where there is none yet."""
        self._sql.execute("INSERT INTO callbacks VALUES (1, ?) ON CONFLICT (only) DO NOTHING", (new,))
        (secret,) = self._sql.execute("SELECT secret FROM callbacks").fetchone()
        return bytes(secret)

    def hold_in_air(self) -> None:
        """The process that had POSTs in the air is dead: their jobs are ambiguous."""
        self._sql.execute("UPDATE posts SET came_to = 'unclear' WHERE came_to IS NULL")
        for (n,) in self._sql.execute(f"SELECT n FROM jobs WHERE {_NOT_OVER} AND state = 'submitting'").fetchall():
            self._end(n, State.SUBMITTING, State.AMBIGUOUS, _KILLED, 0.0)

    def in_vain(self, states: Collection[State]) -> list[tuple[int, str, State]]:
        """Number, id and state of the jobs that ended in one of these states (of lifecycle.IN_VAIN)."""
        rows = self._sql.execute(
            f"SELECT n, id, state FROM jobs WHERE {_IN_VAIN}"
            f" UNION ALL SELECT n, id, state FROM jobs WHERE {_NOT_OVER} AND state = 'errored' ORDER BY n"
        )
        return [(n, job_id, State(word)) for n, job_id, word in rows if State(word) in states]

    def retry(self, n: int, state: State) -> None:
        """Somebody decided that a job which ended in vain is worth another POST. What it was paid stays on record."""
        if state not in lifecycle.IN_VAIN:
            raise KreaBatchBug(f"a job that is {state} is not to be submitted again")
        also = "errors = 0, finished_at = NULL, error_kind = NULL, error_message = NULL"
        self._set(n, state, State.PENDING, also)

    def doubts(self) -> list[Doubt]:
        """The jobs that are ambiguous, or whose POST is in the air (for ever, where its process is dead)."""
        rows = self._sql.execute(
            "SELECT n, id, submitted_at, coalesce(error_message, 'being submitted'), body FROM jobs"
            f" WHERE {_NOT_OVER} AND state IN ('ambiguous', 'submitting') ORDER BY n"
        )
        return [Doubt(n, job_id, _iso(at), why, bytes(body)) for n, job_id, at, why, body in rows]

    # ---- the way to a picture ----------------------------------------------------------------------------

    def finish(self, n: int, finished: Finished, at: float, polls: int) -> None:
        """The pictures can be fetched."""
        self._move(
            n,
            State.ACCEPTED,
            State.FINISHED,
            "media = ?, finished_at = ?, polls = ?",
            (msgspec.json.encode(finished).decode(), at, polls),
        )

    def store(self, n: int, stored: Sequence[StoredFile], at: float) -> Outcome:
        """Every picture of the job is on disk and synced."""
        self._move(
            n,
            State.FINISHED,
            State.SUCCEEDED,
            "files = ?, stored_at = ?, error_kind = NULL, error_message = NULL",
            (msgspec.json.encode(stored).decode(), at),
        )
        return self.outcome(n)

    def fail(self, n: int, why: Trouble, at: float, polls: int) -> Outcome:
        """The gateway said FAILED."""
        return self._end(n, State.ACCEPTED, State.FAILED, why, at, polls)

    def error(self, n: int, why: Trouble, at: float, polls: int) -> Outcome:
        """The gateway said ERROR, and no try is left."""
        self._refund(n)
        return self._end(n, State.ACCEPTED, State.ERRORED, why, at, polls)

    def error_again(self, n: int, polls: int) -> None:
        """The gateway said ERROR, which is free, and the job is pending again."""
        self._refund(n)
        lifecycle.check_move(State.ERRORED, State.PENDING)
        self._move(n, State.ACCEPTED, State.ERRORED, "polls = ?", (polls,))
        self._move(n, State.ERRORED, State.PENDING)

    def time_out(self, n: int, why: Trouble, at: float, polls: int) -> Outcome:
        """This run waits no longer for the job; its request_id stays, and the next run asks again."""
        finished = self._sql.execute("SELECT 1 FROM jobs WHERE n = ? AND state = 'finished'", (n,)).fetchone()
        old = State.FINISHED if finished else State.ACCEPTED
        return self._end(n, old, State.TIMED_OUT, why, at, polls)

    # ---- a new run ---------------------------------------------------------------------------------------

    def start_run(self, gateway: str, version: str, at: float, per_s: float | None = None) -> int:
        """Note that a run begins, of at most `per_s` submits a second.

        Raises RunFolderError where the folder's jobs live at another gateway.
        """
        before = self._sql.execute("SELECT gateway FROM runs ORDER BY n DESC LIMIT 1").fetchone()
        if before and before[0] != gateway:
            raise RunFolderError(
                self.path,
                f"its jobs were submitted to {before[0]}, not to {gateway}",
                "use the same gateway, or another --out",
            )
        cursor = self._sql.execute(
            "INSERT INTO runs (started_at, gateway, version, per_s) VALUES (?, ?, ?, ?)",
            (at, gateway, version, per_s),
        )
        return int(cursor.lastrowid or 0)

    def expect(self, jobs: int) -> None:
        """Note how many jobs the folder is to come to."""
        self._sql.execute("UPDATE runs SET jobs = ? WHERE n = (SELECT max(n) FROM runs)", (jobs,))

    def latest_run(self) -> RunRow | None:
        """What is on record of the latest run; None where none began."""
        row = self._sql.execute("SELECT started_at, per_s, jobs FROM runs ORDER BY n DESC LIMIT 1").fetchone()
        return RunRow(*row) if row else None

    def gateway(self) -> str | None:
        """Where this folder's jobs were submitted: `Settings.origin` of its latest run."""
        row = self._sql.execute("SELECT gateway FROM runs ORDER BY n DESC LIMIT 1").fetchone()
        return row[0] if row else None

    def results_written(self, size_bytes: int | None) -> None:
        """Note that results.jsonl holds what the ledger does; None: it does not."""
        self._sql.execute("UPDATE runs SET results_bytes = ? WHERE n = (SELECT max(n) FROM runs)", (size_bytes,))

    def results_bytes(self) -> int | None:
        """How large results.jsonl is, where nothing has happened since it was written; None: something may have."""
        row = self._sql.execute("SELECT results_bytes FROM runs ORDER BY n DESC LIMIT 1").fetchone()
        return row[0] if row else None

    def set_bookmark(self, what: bytes) -> None:
        """Note how far job files have been read of which every job is on record."""
        self._sql.execute("INSERT INTO bookmark VALUES (1, ?1) ON CONFLICT (only) DO UPDATE SET what = ?1", (what,))

    def bookmark(self) -> bytes | None:
        """What `set_bookmark` noted last."""
        row = self._sql.execute("SELECT what FROM bookmark").fetchone()
        return bytes(row[0]) if row else None

    def end_run(self, run: int, at: float) -> None:
        """Note that a run has ended in order."""
        self._sql.execute("UPDATE runs SET ended_at = ? WHERE n = ?", (at, run))

    def reopen(self, *, max_attempts: int, resubmit_ambiguous: bool) -> bool:
        """Bring what the last run left into the states in which this one goes on. True where ends are no more."""
        reopened = False
        self.hold_in_air()
        rows = self._sql.execute(f"SELECT n, state, errors FROM jobs WHERE {_NOT_OVER}").fetchall()
        for n, word, errors in rows:
            old = State(word)
            new = lifecycle.on_resume(
                old, errors=errors, max_attempts=max_attempts, resubmit_ambiguous=resubmit_ambiguous
            )
            if new is not None and new is not old:
                self._move(n, old, new, "error_kind = NULL, error_message = NULL")
                reopened = reopened or old in lifecycle.ENDS
        return reopened

    def open_jobs(self, after_n: int, limit: int) -> list[OpenJob]:
        """Jobs to go on with, `limit` at most, in the order of their numbers from `after_n` on."""
        rows = self._sql.execute(
            f"SELECT {_OPEN} FROM jobs WHERE {_NOT_OVER}"
            " AND state IN ('pending', 'accepted', 'finished') AND n > ? ORDER BY n LIMIT ?",
            (after_n, limit),
        )
        return [_open_job(row) for row in rows]

    def latencies(self, limit: int) -> list[tuple[str, float]]:
        """Kinds of the latest finished jobs, and the seconds they took, by the gateway's word where it gave one."""
        rows = self._sql.execute(
            f"SELECT coalesce({_KIND}, ''), coalesce(json_extract(media, '$.took_s'), finished_at - accepted_at)"
            " FROM jobs WHERE media IS NOT NULL ORDER BY n DESC LIMIT ?",
            (limit,),
        )
        return [(kind, took_s) for kind, took_s in rows if took_s is not None and took_s >= 0][::-1]

    def sending(self, n: int) -> tuple[bytes, bytes, bytes]:
        """Body, fingerprint and metadata of a job, for another POST of it."""
        row = self._sql.execute("SELECT body, fingerprint, metadata FROM jobs WHERE n = ?", (n,)).fetchone()
        return bytes(row[0]), bytes(row[1]), bytes(row[2])

    # ---- asking ------------------------------------------------------------------------------------------

    def fingerprints(self, job_ids: Sequence[str]) -> dict[str, bytes]:
        """The fingerprints of those ids that are on record."""
        marks = ",".join("?" * len(job_ids))
        rows = self._sql.execute(f"SELECT id, fingerprint FROM jobs WHERE id IN ({marks})", job_ids)
        return {job_id: bytes(fingerprint) for job_id, fingerprint in rows}

    def outcome(self, n: int) -> Outcome:
        """The result row of one job."""
        row = self._sql.execute(f"SELECT {_OUTCOME} FROM jobs WHERE n = ?", (n,)).fetchone()
        return _outcome(row)

    def known(self, job_id: str) -> Outcome | None:
        """The row of a job on record, whether it has ended or not; None where there is none."""
        row = self._sql.execute(f"SELECT {_OUTCOME} FROM jobs WHERE id = ?", (job_id,)).fetchone()
        return _outcome(row) if row else None

    def outcomes(self, after_n: int, limit: int) -> tuple[list[Outcome], int | None]:
        """Result rows of ended jobs from `after_n` on, and the number to go on from (None: that was all)."""
        rows = self._sql.execute(
            f"SELECT {_OUTCOME}, n FROM jobs WHERE n > ? ORDER BY n LIMIT ?",
            (after_n, limit),
        ).fetchall()
        ended = [_outcome(row[:-1]) for row in rows if State(row[1]) in lifecycle.ENDS]
        return ended, rows[-1][-1] if rows else None

    def glimpses(self, after_n: int, limit: int) -> list[tuple[int, Outcome]]:
        """Number and row of jobs, ended or not, `limit` at most, in the order of their numbers after `after_n`."""
        sql = f"SELECT {_OUTCOME}, n FROM jobs WHERE n > ? ORDER BY n LIMIT ?"
        return [(row[-1], _outcome(row[:-1])) for row in self._sql.execute(sql, (after_n, limit))]

    def past_outcomes(self, after_n: int, limit: int) -> tuple[list[Outcome], int | None]:
        """The same of a snapshot. Raises LedgerError where the file cannot be read."""
        try:
            return self.outcomes(after_n, limit)
        except sqlite3.Error as error:
            raise self._unreadable(error) from error

    def counts(self) -> dict[State, int]:
        """How many jobs stand in each state that any job stands in."""
        few = self._sql.execute(
            f"SELECT state, count(*) FROM jobs WHERE {_NOT_OVER} GROUP BY state UNION ALL"
            f" SELECT state, count(*) FROM jobs WHERE {_IN_VAIN} GROUP BY state"
        )
        counts = {State(state): count for state, count in few}
        (all_of_them,) = self._sql.execute("SELECT coalesce(max(n), 0) FROM jobs").fetchone()  # none is ever deleted
        if succeeded := all_of_them - sum(counts.values()):
            counts[State.SUCCEEDED] = succeeded
        return counts

    def posts(self) -> int:
        """How many POSTs were about to leave, in all runs."""
        (count,) = self._sql.execute("SELECT coalesce(max(n), 0) FROM posts").fetchone()  # none is ever deleted
        return int(count)

    def commonest_errors(self, limit: int) -> list[tuple[str, int]]:
        """Why jobs have no picture, most often first, and how often."""
        sql = (
            f"SELECT message, count(*) FROM (SELECT error_message AS message FROM jobs WHERE {_IN_VAIN} UNION ALL"
            f" SELECT error_message FROM jobs WHERE {_NOT_OVER} AND error_message IS NOT NULL)"
            " GROUP BY message ORDER BY 2 DESC, 1 LIMIT ?"
        )
        return self._sql.execute(sql, (limit,)).fetchall()

    def sent(self, after_n: int, limit: int) -> list[tuple[int, float, str]]:
        """Number, instant and upshot of POSTs, in the order in which they left, after that of number `after_n`."""
        sql = "SELECT n, sent_at, coalesce(came_to, 'in_air') FROM posts WHERE n > ? ORDER BY n LIMIT ?"
        return self._sql.execute(sql, (after_n, limit)).fetchall()

    def stays(self, after_n: int, limit: int) -> list[Stay]:
        """How long jobs stayed where, in the order of their numbers, after that of number `after_n`."""
        sql = (
            "SELECT n, accepted_at, finished_at, stored_at, json_extract(media, '$.took_s'), polls FROM jobs"
            " WHERE n > ? AND accepted_at IS NOT NULL ORDER BY n LIMIT ?"
        )
        return [Stay(*row) for row in self._sql.execute(sql, (after_n, limit))]

    def has_succeeded(self) -> bool:
        """Whether any job has."""
        return self._sql.execute("SELECT 1 FROM jobs WHERE state = 'succeeded' LIMIT 1").fetchone() is not None

    def charges(self) -> Charges:
        """What the POSTs of all runs in this folder came to."""
        row = self._sql.execute(
            "SELECT count(*) FILTER (WHERE came_to = 'accepted' AND NOT refunded),"
            " count(*) FILTER (WHERE refunded),"
            " count(*) FILTER (WHERE came_to = 'unclear' OR came_to IS NULL) FROM posts"
        ).fetchone()
        return Charges(*row)

    # ---- parts -------------------------------------------------------------------------------------------

    def _move(self, n: int, old: State, new: State, also: str = "", values: tuple[Any, ...] = ()) -> None:
        lifecycle.check_move(old, new)
        self._set(n, old, new, also, values)

    def _set(self, n: int, old: State, new: State, also: str = "", values: tuple[Any, ...] = ()) -> None:
        more = f", {also}" if also else ""
        if new in _OVER or old in _OVER:
            more += f", over = {_OVER.get(new, 'NULL')}"
        cursor = self._sql.execute(
            f"UPDATE jobs SET state = ?{more} WHERE n = ? AND state = ?",
            (new.value, *values, n, old.value),
        )
        if cursor.rowcount != 1:
            raise KreaBatchBug(f"job number {n} was to go from {old} to {new}, but is not {old}")

    def _end(self, n: int, old: State, new: State, why: Trouble, at: float, polls: int | None = None) -> Outcome:
        self._move(
            n,
            old,
            new,
            "error_kind = ?, error_message = ?, polls = coalesce(?, polls), finished_at = nullif(?, 0)",
            (why.kind, why.message, polls, at),
        )
        return self.outcome(n)

    def _unreadable(self, error: sqlite3.Error) -> LedgerError:
        return LedgerError(self.path, f"the ledger cannot be read ({error})", "see whether the disk works")

    def _has_request_id(self, request_id: str) -> bool:
        return self._sql.execute("SELECT 1 FROM posts WHERE request_id = ?", (request_id,)).fetchone() is not None

    def _came_to(self, n: int, came_to: str, request_id: str | None = None) -> None:
        self._sql.execute(
            "UPDATE posts SET came_to = ?, request_id = ? WHERE job = ? AND came_to IS NULL",
            (came_to, request_id, n),
        )

    def _refund(self, n: int) -> None:
        self._sql.execute(
            "UPDATE posts SET refunded = 1 WHERE request_id = (SELECT request_id FROM jobs WHERE n = ?)", (n,)
        )
        self._sql.execute("UPDATE jobs SET errors = errors + 1 WHERE n = ?", (n,))


_ABANDONED = Trouble("abandoned", "ambiguous, and it was decided not to submit it again")
_KILLED = Trouble("ambiguous", "the process ended while the POST was in the air")


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        timeout=BUSY_TIMEOUT_S,
        isolation_level=None,
        check_same_thread=False,
    )


def _check_owner(connection: sqlite3.Connection, path: Path) -> None:
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    has_tables = _has_tables(connection)
    if has_tables and application_id != APPLICATION_ID:
        raise RunFolderError(path, "this is not a krea-batch ledger", "choose another --out")
    if version > SCHEMA_VERSION:
        raise RunFolderError(
            path,
            f"a newer krea-batch wrote it (schema {version})",
            "update krea-batch, or choose another --out",
        )
    if has_tables and version < SCHEMA_VERSION:
        raise RunFolderError(
            path,
            f"a krea-batch from before the first release wrote it (schema {version})",
            "go on with that one, or choose another --out",
        )


def _reading(connection: sqlite3.Connection) -> sqlite3.Connection:
    """The same for reading only; an empty ledger where a process died while it made this one."""
    if not _has_tables(connection):
        connection.close()
        connection = sqlite3.connect(":memory:", isolation_level=None)
        _make_tables(connection)
    connection.execute("PRAGMA query_only = ON")
    return connection


def _has_tables(connection: sqlite3.Connection) -> bool:
    return bool(connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0])


def _make_ready(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    connection.execute("BEGIN")
    connection.execute("PRAGMA user_version = 0")  # SQLite opens a file that cannot be written, too: tell it now
    connection.execute("ROLLBACK")
    _make_tables(connection)


def _make_tables(connection: sqlite3.Connection) -> None:
    if _has_tables(connection):
        return
    schema = files("krea_batch.ledger").joinpath("schema.sql").read_text()
    connection.executescript(
        f"BEGIN; PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION};{schema} COMMIT;"
    )


def _open_job(row: tuple[Any, ...]) -> OpenJob:
    n, job_id, state, request_id, media, *rest = row
    return OpenJob(n, job_id, State(state), request_id, _read_media(media) if media else None, *rest)


def _outcome(row: Sequence[Any]) -> Outcome:
    job_id, state, request_id, stored, kind, message, body, metadata, polls, attempts, *instants = row
    submitted_at, accepted_at, finished_at, stored_at = (_iso(at) for at in instants)
    return Outcome(
        id=job_id,
        status=State(state),
        request_id=request_id,
        files=_read_files(stored),
        error=Trouble(kind, message) if kind is not None else None,
        request=msgspec.json.decode(body),
        metadata=msgspec.json.decode(metadata),
        polls=polls,
        attempts=attempts,
        submitted_at=submitted_at,
        accepted_at=accepted_at,
        finished_at=finished_at,
        stored_at=stored_at,
    )


def _iso(at: float | None) -> str | None:
    """An instant as ISO 8601, in whole milliseconds."""
    if at is None:
        return None
    second, rest_us = divmod(round(at * 1_000_000), 1_000_000)
    return f"{_iso_second(second)}.{rest_us // 1000:03}Z"


@lru_cache(maxsize=1024)
def _iso_second(second: int) -> str:
    """The seconds of a run are few, each written for many jobs; that is most of what a result row costs."""
    return datetime.fromtimestamp(second, UTC).isoformat(timespec="seconds").removesuffix("+00:00")
