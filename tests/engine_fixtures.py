"""Run jobs on a scripted gateway, and read the run directory."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

import orjson

from krea_batch import Engine, Job
from krea_batch.testing import ScriptedGateway


def make_jobs(count: int) -> list[Job]:
    """Return jobs j0, j1 …, whose prompts are their ids."""
    return [Job(prompt=f"j{n}", id=f"j{n}") for n in range(count)]


def make_engine(out: Path, client: ScriptedGateway, **options: Any) -> Engine:
    """Return an engine whose random numbers are the same each time."""
    return Engine(out, gateway_client=client, random=Random(0), **options)


async def run_jobs(out: Path, gateway: ScriptedGateway, jobs_to_run: Iterable[Job], **options: Any) -> Engine:
    """Run jobs until they have ended, close the engine and return it."""
    options.setdefault("random", Random(0))
    async with Engine(out, gateway_client=gateway, **options) as engine:
        await engine.run(jobs_to_run)
    return engine


def rows_by_id(out: Path) -> dict[str, dict[str, Any]]:
    """Return the rows of results.jsonl by job id, and check that no id is repeated."""
    lines = [orjson.loads(line) for line in (out / "results.jsonl").read_bytes().splitlines()]
    by_id = {line["id"]: line for line in lines}
    assert len(by_id) == len(lines)
    return by_id


def result_statuses(out: Path) -> dict[str, str]:
    """Return the status of each job in results.jsonl."""
    return {job_id: row["status"] for job_id, row in rows_by_id(out).items()}


def query_ledger(out: Path, sql: str, *values: Any) -> list[tuple[Any, ...]]:
    """Query the ledger through a separate connection, which sees only what is committed."""
    with closing(sqlite3.connect(out / "ledger.db")) as ledger:
        return ledger.execute(sql, values).fetchall()


def change_ledger(out: Path, sql: str) -> None:
    """Change the ledger through a separate connection, as no run does."""
    with closing(sqlite3.connect(out / "ledger.db")) as ledger, ledger:
        ledger.execute(sql)


def ledger_states(out: Path) -> dict[str, str]:
    """Return the state of each job in the ledger."""
    return dict(query_ledger(out, "SELECT job_id, state FROM jobs"))
