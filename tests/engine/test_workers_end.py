"""Several engines share a run directory, and one of them is stopped or taken for dead. In virtual time."""

from __future__ import annotations

import asyncio
from contextlib import closing
from pathlib import Path
from random import Random

import pytest

from krea_batch import Engine, Job, RunStopped
from krea_batch.errors import FencedError
from krea_batch.ledger.opening import open_for_changes
from krea_batch.rules.verdicts import Waiting
from krea_batch.testing import ACCEPT, ScriptedGateway, run_virtual
from tests.engine_fixtures import ledger_states, make_jobs, query_ledger

pytestmark = pytest.mark.slow


def open_worker(out: Path, gateway: ScriptedGateway) -> Engine:
    return Engine(out, gateway_client=gateway, random=Random(0), shared=True)


def fence_run(out: Path) -> None:
    """Do what another process does that has seen the run stand still."""
    with closing(open_for_changes(out)) as ledger:
        (run,) = ledger.live_runs()
        assert ledger.transaction(lambda ledger: ledger.fence(run.run_no, run.beat))


def test_a_stopped_engine_does_not_wait_for_the_jobs_of_others(tmp_path: Path) -> None:
    """A caller that waits for a job of another engine gets RunStopped, as for a job of the engine itself."""
    gateway = ScriptedGateway()
    gateway.poll_script["j0"] = [Waiting("PROCESSING")]

    async def main() -> None:
        async with open_worker(tmp_path, gateway) as first, open_worker(tmp_path, gateway) as second:
            (job,) = make_jobs(1)
            await first.submit(job)
            handle = await second.enqueue(job)
            second.stop()
            with pytest.raises(RunStopped):
                await handle
            first.abort()

    run_virtual(main())
    assert ledger_states(tmp_path) == {"j0": "accepted"}


def test_a_fenced_engine_records_what_its_posts_return(tmp_path: Path) -> None:
    """An engine that was taken for dead waits for the answers to its POSTs, even if its caller does not wait."""
    gateway = ScriptedGateway()
    gateway.submit_script["j0"] = [(60.0, ACCEPT)]

    async def main() -> None:
        with pytest.raises(FencedError):
            async with open_worker(tmp_path, gateway) as engine:
                running = asyncio.create_task(engine.run([Job(prompt="j0", id="j0")]))
                while not gateway.pending_submits:
                    await asyncio.sleep(0.1)
                fence_run(tmp_path)
                await running

    run_virtual(main())
    assert query_ledger(tmp_path, "SELECT result FROM submissions") == [("accepted",)]
