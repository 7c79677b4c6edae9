"""Runs whose ledger is in PostgreSQL, while the process is killed and the database crashes."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random
from typing import Any

import pytest

from krea_batch.rules.pending_limit import INITIAL_PENDING
from tests.crash.crash_scenario import SIMULATOR_OPTIONS, CrashScenario
from tests.postgres_server import PostgresServer, shared_server
from tests.processes import PROCESS_TIMEOUT_S, RunningSimulator, StartSimulator

pytestmark = pytest.mark.slow

DATABASE_RUNS = max(1, int(os.environ.get("KILLS", "10")) // 10)


class DatabaseScenario(CrashScenario):
    """A run whose ledger is a batch of the server."""

    def __init__(
        self, simulator: RunningSimulator, directory: Path, count: int, url: str, batch: str, *, out: str = ""
    ) -> None:
        super().__init__(simulator, directory, count, directory / (out or batch))
        self._options = ["--ledger", url, "--batch", batch, *self._options]
        self._url, self._batch = url, batch

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        import psycopg

        with psycopg.connect(self._url, options=f'-c search_path="krea_batch_{self._batch}"') as connection:
            return connection.execute(sql.encode()).fetchall()

    def crash_database_after(self, accepted: int, server: PostgresServer) -> None:
        """Let the database crash and start again when so many jobs are accepted. The run goes on to its end."""
        process = self.start()
        self.wait_for_accepted(accepted, process)
        server.restart("immediate")
        assert process.wait(PROCESS_TIMEOUT_S) == 0


def test_killed_and_crashed_at_random_moments(simulate: StartSimulator, tmp_path: Path) -> None:
    """Whenever the process is killed or the database crashes, no job is charged twice and no charged job is lost.

    If only the database crashes, the run goes on, and no job is ambiguous.
    """
    server = shared_server()
    simulator = simulate(*SIMULATOR_OPTIONS)
    random = Random(os.environ.get("KILL_SEED", "1"))
    kills = ambiguous = 0
    for run in range(DATABASE_RUNS):
        simulator.admin_request("/reset", {})
        killed = DatabaseScenario(simulator, tmp_path, 300, server.url, f"killed-{run}")
        for _ in range(4):
            killed.kill_after(random.uniform(0.5, 2.0))
        killed.finish()
        run_ambiguous = killed.check_accounting()
        assert run_ambiguous <= INITIAL_PENDING * killed.kills
        simulator.admin_request("/reset", {})
        crashed = DatabaseScenario(simulator, tmp_path, 300, server.url, f"crashed-{run}")
        crashed.crash_database_after(random.randint(1, 250), server)
        assert crashed.check_accounting() == 0
        kills, ambiguous = kills + killed.kills, ambiguous + run_ambiguous
    assert kills
    print(f"{kills} kills, {DATABASE_RUNS} crashes of the database: 0 charged twice, 0 lost, {ambiguous} ambiguous")
