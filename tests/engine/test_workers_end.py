"""Several engines share a run directory, and one of them is stopped, killed or taken for dead. In virtual time."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from random import Random

import pytest

from krea_batch import Engine, Job, RunDirError, RunStopped
from krea_batch.errors import FencedError
from krea_batch.ledger.opening import open_for_changes
from krea_batch.rules.lease import LEASE_S, LOOK_INTERVAL_S
from krea_batch.rules.verdicts import Waiting
from krea_batch.testing import ACCEPT, ScriptedGateway, run_virtual
from tests.engine_fixtures import ledger_states, make_jobs, query_ledger
from tests.processes import PROCESS_TIMEOUT_S, clean_environment

pytestmark = pytest.mark.slow

OTHER_PROCESS = """
import asyncio, sys
from krea_batch import Engine, Job
from krea_batch.testing import ScriptedGateway

async def main():
    async with Engine(sys.argv[1], gateway_client=ScriptedGateway(), shared=True) as engine:
        handle = await engine.submit(Job(prompt="a fox", id="fox"))
        print(handle.request_id, flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


def open_worker(out: Path, gateway: ScriptedGateway) -> Engine:
    return Engine(out, gateway_client=gateway, random=Random(0), shared=True)


def fence_run(out: Path) -> None:
    """Do what another process does that has seen the run stall."""
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


def kill_other_process(out: Path, temporary: Path) -> str:
    """Let another process join the run and submit a job, kill it, and return the request_id of the job."""
    environment = clean_environment(TMPDIR=str(temporary))
    with subprocess.Popen(
        [sys.executable, "-c", OTHER_PROCESS, out], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout
        request_id = process.stdout.readline().strip()
        process.kill()
        process.wait(PROCESS_TIMEOUT_S)
    return request_id


@pytest.mark.parametrize("has_lock", [True, False], ids=["with its lock", "with a lock that was removed"])
def test_a_killed_process_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_lock: bool) -> None:
    """The next look shows that it has ended, and its job is taken over. Without a lock, its lease must end first."""
    out, temporary = tmp_path / "out", tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    gateway = ScriptedGateway()

    async def main() -> None:
        async with open_worker(out, gateway):
            (own_file,) = temporary.glob("*/*")
            gateway.charged[kill_other_process(out, temporary)] = "a fox"
            (other_file,) = {*temporary.glob("*/*")} - {own_file}
            if not has_lock:
                other_file.unlink()
            await asyncio.sleep(3 * LOOK_INTERVAL_S)
            assert query_ledger(out, "SELECT run_no, fenced FROM runs") == [(1, 0), (2, int(has_lock))]
            await asyncio.sleep(LEASE_S)
            assert query_ledger(out, "SELECT run_no, fenced FROM runs") == [(1, 0), (2, 1)]
            assert query_ledger(out, "SELECT run_no FROM jobs") == [(1,)]
            assert list(temporary.glob("*/*")) == [own_file]
            await asyncio.sleep(60.0)

    run_virtual(main())
    assert ledger_states(out) == {"fox": "succeeded"}
    assert list(temporary.glob("*/*")) == []


def test_a_run_that_is_refused_leaves_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run with another gateway than before does not start, and its lock file is removed."""
    out, temporary = tmp_path / "out", tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))

    async def open_with(gateway: str) -> None:
        async with Engine(out, gateway_client=ScriptedGateway(), shared=True, gateway=gateway):
            pass

    run_virtual(open_with("https://one.example"))
    with pytest.raises(RunDirError, match="submitted to"):
        run_virtual(open_with("https://two.example"))
    assert list(temporary.glob("*/*")) == []
