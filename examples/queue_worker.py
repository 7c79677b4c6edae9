"""A worker for a durable queue: each message becomes an image once, however often the worker is killed.

    krea-batch simulate --port 8787                                    # a gateway that charges nothing
    python examples/queue_worker.py put queue.db "a cat" "a dog"
    PIXAZO_API_KEY=any python examples/queue_worker.py work queue.db --out images --gateway http://127.0.0.1:8787

The queue is an SQLite table, to which any process can add messages; a message broker would work too. It delivers each
message at least once: a message is done only when its result is written back, so after a crash the worker reads it
again. The id of its job is made from the number of the message. The engine knows the ids in its ledger, so the job is
charged once.

SIGTERM leaves unfinished jobs to the next worker; `--once` ends the worker when the queue is empty.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

from krea_batch import Engine, Job, KreaBatchError, Outcome, RunStopped

QUEUE_POLL_INTERVAL_S = 0.2
SCHEMA = """
CREATE TABLE IF NOT EXISTS messages (
    id     INTEGER PRIMARY KEY,
    prompt TEXT NOT NULL,
    status TEXT,                -- NULL until it is done
    result TEXT                 -- the path of the image, or the error
)"""


class Queue:
    """A queue of messages, each a prompt."""

    def __init__(self, path: Path) -> None:
        self._sql = sqlite3.connect(path, isolation_level=None, timeout=10.0)
        self._sql.execute("PRAGMA journal_mode = WAL")
        self._sql.execute(SCHEMA)

    def put(self, prompt: str) -> int:
        """Add a message. Returns its number."""
        return int(self._sql.execute("INSERT INTO messages (prompt) VALUES (?)", (prompt,)).lastrowid or 0)

    def pending_after(self, message_id: int) -> list[tuple[int, str]]:
        """Return the next messages after this one that are not done, in order, at most 100."""
        sql = "SELECT id, prompt FROM messages WHERE id > ? AND status IS NULL ORDER BY id LIMIT 100"
        return self._sql.execute(sql, (message_id,)).fetchall()

    def complete(self, message_id: int, status: str, result: str) -> None:
        """Write back the result of a message, which is then done."""
        self._sql.execute("UPDATE messages SET status = ?, result = ? WHERE id = ?", (status, result, message_id))


async def queued_jobs(queue: Queue, *, once: bool) -> AsyncIterator[Job]:
    """Yield a job for each message, as they arrive. The engine asks for the next one when it has capacity.

    A message that is not a valid prompt is completed as rejected.
    """
    last = 0
    while True:
        for number, prompt in queue.pending_after(last):
            last = number
            try:
                job = Job(prompt=prompt, id=f"message-{number}")
            except ValueError as error:
                queue.complete(number, "rejected", str(error))
            else:
                yield job
        if not queue.pending_after(last):
            if once:
                return
            await asyncio.sleep(QUEUE_POLL_INTERVAL_S)


def write_back(queue: Queue, outcome: Outcome) -> None:
    """Complete the message of a job that has ended."""
    result = outcome.files[0].path if outcome.succeeded else outcome.error.message if outcome.error else ""
    queue.complete(int(outcome.id.removeprefix("message-")), outcome.status, result)


async def work(queue: Queue, engine: Engine, *, once: bool) -> None:
    """Process the queue until SIGTERM, or with `once` until it is empty."""
    stop_requested = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop_requested.set)
    await engine.start()
    worker_task = asyncio.create_task(process_queue(queue, engine, once=once))
    stop_task = asyncio.create_task(stop_requested.wait())
    await asyncio.wait([worker_task, stop_task], return_when=asyncio.FIRST_COMPLETED)
    stop_task.cancel()
    await engine.aclose(detach=stop_requested.is_set())
    try:
        await worker_task
    except RunStopped as stopped:
        print(f"stopped: {stopped}")  # noqa: T201 - unfinished jobs stay in the queue and in the ledger


async def process_queue(queue: Queue, engine: Engine, *, once: bool) -> None:
    async for outcome in engine.stream(queued_jobs(queue, once=once)):
        write_back(queue, outcome)


def main() -> None:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    put = commands.add_parser("put")
    put.add_argument("queue", type=Path)
    put.add_argument("prompts", nargs="+")
    worker = commands.add_parser("work")
    worker.add_argument("queue", type=Path)
    worker.add_argument("--out", type=Path, required=True)
    worker.add_argument("--gateway", default="https://gateway.pixazo.ai")
    worker.add_argument("--rate", default="10/s")
    worker.add_argument("--poll-interval", type=float, default=5.0)
    worker.add_argument("--once", action="store_true")
    options = parser.parse_args()
    queue = Queue(options.queue)
    if options.command == "put":
        for prompt in options.prompts:
            queue.put(prompt)
        return
    try:
        engine = Engine(
            options.out, gateway=options.gateway, rate=options.rate, poll_interval_s=options.poll_interval
        )
        asyncio.run(work(queue, engine, once=options.once))
    except KreaBatchError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
