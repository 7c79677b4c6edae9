"""Test the engine in virtual time: submit, stop, abort, kill and resume."""

from __future__ import annotations

import asyncio
import errno
import shutil
import socket
import sqlite3
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import orjson
import pytest

from krea_batch import (
    GatewayError,
    InputError,
    InternalError,
    Job,
    JobError,
    LedgerError,
    Outcome,
    RunDirError,
    RunStopped,
    SettingsError,
    State,
    Webhook,
)
from krea_batch.errors import KreaBatchError
from krea_batch.events import Event, RunStopping
from krea_batch.gateway.url_policy import DownloadError
from krea_batch.ledger.sqlite import SqliteLedger
from krea_batch.pipeline import executor
from krea_batch.rules.verdicts import Ambiguous, Errored, Failed, PollFailed, Refusal, Refused, Waiting
from krea_batch.storage.results_file import ResultsFile
from krea_batch.storage.results_file import encode_row as result_row
from krea_batch.storage.run_dir import is_locked
from krea_batch.testing import ACCEPT, ScriptedGateway, make_png, run_until_killed, run_virtual
from tests.engine_fixtures import (
    ledger_states,
    make_engine,
    make_jobs,
    query_ledger,
    result_statuses,
    rows_by_id,
    run_jobs,
)

NO_BALANCE = Refused(Refusal.FATAL, 402, "no money")


def disk_latency_s() -> float:
    return 0.05


def check_ledger(out: Path, gateway: ScriptedGateway) -> None:
    """Check that results equal the ledger, succeeded images are stored, and every charge is recorded.

    The charge of a POST whose response was lost is not recorded, but its job is ambiguous.
    """
    by_id = rows_by_id(out)
    final = {"succeeded", "failed", "errored", "rejected", "ambiguous", "timed_out", "cancelled"}
    assert {job_id: row["status"] for job_id, row in by_id.items()} == {
        job_id: state for job_id, state in ledger_states(out).items() if state in final
    }
    for row in by_id.values():
        if row["status"] == "succeeded":
            assert [(out / file["path"]).read_bytes() for file in row["files"]] == [
                make_png(text=row["request"]["prompt"].encode())
            ]
    recorded = {
        request_id
        for (request_id,) in query_ledger(out, "SELECT request_id FROM submissions WHERE result = 'accepted'")
    }
    ambiguous = {row["request"]["prompt"] for row in by_id.values() if row["status"] == "ambiguous"}
    assert {prompt for request_id, prompt in gateway.charged.items() if request_id not in recorded} <= ambiguous


class TestSubmitting:
    def test_generate(self, tmp_path: Path) -> None:
        """generate returns once the image is stored and recorded."""
        gateway = ScriptedGateway()

        async def main() -> None:
            async with make_engine(tmp_path, gateway) as engine:
                outcome = await engine.generate(Job(prompt="a cat"))
                assert outcome.succeeded
                assert ledger_states(tmp_path) == {outcome.id: "succeeded"}
                assert (tmp_path / outcome.files[0].path).read_bytes() == make_png(text=b"a cat")

        run_virtual(main())
        check_ledger(tmp_path, gateway)

    def test_submit(self, tmp_path: Path) -> None:
        """submit returns once the request_id is recorded; the handle can be awaited any number of times."""
        gateway = ScriptedGateway()

        async def main() -> None:
            async with make_engine(tmp_path, gateway) as engine:
                handle = await engine.submit(Job(prompt="a dog", id="dog"))
                assert handle.request_id in gateway.charged
                assert ledger_states(tmp_path) == {"dog": "accepted"}
                first, second = await handle, await handle
                assert first is second
                assert first.request_id == handle.request_id

        run_virtual(main(), thread_duration_s=disk_latency_s)

    @pytest.mark.parametrize("kind", ["list", "generator", "async generator"])
    def test_stream(self, tmp_path: Path, kind: str) -> None:
        """stream yields each outcome once, as jobs end, from any iterable."""
        gateway = ScriptedGateway()
        gateway.poll_script["j0"] = [Waiting("QUEUED")] * 9 + [Failed("late")]
        gateway.submit_script["j1"] = [Refused(Refusal.REJECTED, 400, "bad")]

        async def slow_source() -> AsyncIterator[Job]:
            for job in make_jobs(10):
                await asyncio.sleep(0.5)
                yield job

        async def main() -> list[Outcome]:
            source: Any = {"list": make_jobs(10), "generator": iter(make_jobs(10)), "async generator": slow_source()}[
                kind
            ]
            async with make_engine(tmp_path, gateway) as engine:
                return [outcome async for outcome in engine.stream(source)]

        outcomes = run_virtual(main())
        assert sorted(outcome.id for outcome in outcomes) == [job.id for job in make_jobs(10)]
        assert (outcomes[0].id, outcomes[-1].id) == ("j1", "j0")
        check_ledger(tmp_path, gateway)

    def test_stream_reads_only_as_fast_as_outcomes_are_taken(self, tmp_path: Path) -> None:
        """If outcomes are not taken, stream stops reading after max_in_flight jobs."""
        gateway = ScriptedGateway()
        read: list[str] = []

        def source() -> Iterator[Job]:
            for job in make_jobs(100):
                read.append(job.id)
                yield job

        async def main() -> None:
            async with make_engine(tmp_path, gateway, max_in_flight=5) as engine:
                taken = 0
                async for _ in engine.stream(source()):
                    taken += 1
                    await asyncio.sleep(3600.0)
                    assert len(read) <= taken + 5 + 1
                    if taken == 10:
                        break

        run_virtual(main())

    def test_stream_yields_charged_jobs_before_it_raises_the_stop(self, tmp_path: Path) -> None:
        """Without balance, the outcomes of jobs in flight come first, and then the error."""
        gateway = ScriptedGateway()
        for job in make_jobs(10)[5:]:
            gateway.submit_script[job.id] = [NO_BALANCE]
        outcomes: list[Outcome] = []

        async def main() -> None:
            async with make_engine(tmp_path, gateway, rate="2/s") as engine:
                async for outcome in engine.stream(make_jobs(10)):
                    outcomes.append(outcome)

        with pytest.raises(GatewayError, match="402"):
            run_virtual(main())
        assert {outcome.id for outcome in outcomes} == {"j0", "j1", "j2", "j3", "j4"}
        check_ledger(tmp_path, gateway)

    @pytest.mark.parametrize("ordered", [False, True])
    def test_stream_uses_the_rate(self, tmp_path: Path, ordered: bool) -> None:
        """stream submits at the rate, although each job is looked up in the ledger first."""
        gateway = ScriptedGateway()

        async def main() -> list[Outcome]:
            async with make_engine(tmp_path, gateway, rate="200/s", max_in_flight=5000) as engine:
                return [outcome async for outcome in engine.stream(make_jobs(2000), ordered=ordered)]

        outcomes = run_virtual(main(), thread_duration_s=lambda: 0.01)
        assert len(outcomes) == 2000
        assert not ordered or [outcome.id for outcome in outcomes] == [job.id for job in make_jobs(2000)]
        assert gateway.submitted_prompts == [job.id for job in make_jobs(2000)]
        times_s = gateway.submit_times_s
        assert (len(times_s) - 1) / (times_s[-1] - times_s[0]) >= 0.97 * 200

    def test_a_job_that_cannot_be_started_ends_the_stream(self, tmp_path: Path) -> None:
        """A job that is not valid ends the reading; the jobs before it succeed, and then its error is raised."""
        gateway, outcomes, read = ScriptedGateway(), list[Outcome](), list[str]()

        def source() -> Iterator[Job]:
            for job in [*make_jobs(3), Job(prompt="changed", id="j0"), *make_jobs(500)[3:]]:
                read.append(job.id)
                yield job

        async def main() -> None:
            async with make_engine(tmp_path, gateway) as engine:
                async for outcome in engine.stream(source()):
                    outcomes.append(outcome)

        with pytest.raises(JobError, match="j0"):
            run_virtual(main())
        assert {"j0", "j1", "j2"} <= {outcome.id for outcome in outcomes}
        assert len(read) < 100
        check_ledger(tmp_path, gateway)

    def test_leaving_a_stream_loses_nothing(self, tmp_path: Path) -> None:
        """Jobs that an abandoned stream had submitted succeed all the same."""
        gateway = ScriptedGateway()

        async def main() -> None:
            async with make_engine(tmp_path, gateway) as engine:
                async for _ in engine.stream(make_jobs(10)):
                    break

        run_virtual(main())
        assert set(result_statuses(tmp_path).values()) == {"succeeded"}
        assert len(rows_by_id(tmp_path)) == len(gateway.charged)
        check_ledger(tmp_path, gateway)

    def test_a_source_that_fails(self, tmp_path: Path) -> None:
        """An exception of the caller's iterable is raised by run and by stream."""

        def source() -> Iterator[Job]:
            yield from make_jobs(2)
            raise LookupError("mine")

        async def consume_stream(out: Path) -> None:
            async with make_engine(out, ScriptedGateway()) as engine:
                async for _ in engine.stream(source()):
                    pass

        with pytest.raises(LookupError, match="mine"):
            run_virtual(consume_stream(tmp_path / "stream"))
        with pytest.raises(LookupError, match="mine"):
            run_virtual(run_jobs(tmp_path / "run", ScriptedGateway(), source()))

    @pytest.mark.parametrize(
        "job", [{"prompt": 5}, {"prompt": "x", "aspect_ratio": "5:5"}, {"prompt": "x", "creativity": "wild"}]
    )
    def test_an_invalid_job_is_refused(self, tmp_path: Path, job: dict[str, Any]) -> None:
        """A job that is invalid for the API is a JobError before anything is sent, and affects no later job."""
        gateway = ScriptedGateway()

        async def main() -> None:
            async with make_engine(tmp_path, gateway) as engine:
                with pytest.raises((JobError, TypeError)):
                    await engine.generate(Job(**job))
                await engine.generate(Job(prompt="good"))

        run_virtual(main())
        assert gateway.submitted_prompts == ["good"]


class TestKnownIds:
    @pytest.mark.parametrize("later", [0.0, 0.05, 0.5, 4.0, 20.0], ids=lambda s: f"after {s} s")
    def test_a_known_id(self, tmp_path: Path, later: float) -> None:
        """A job submitted again, at any moment, has the outcome of the first, and nothing is sent."""
        gateway = ScriptedGateway()

        async def main() -> None:
            async with make_engine(tmp_path, gateway) as engine:
                first = asyncio.create_task(engine.generate(make_jobs(1)[0]))
                await asyncio.sleep(later)
                second = await engine.generate(make_jobs(1)[0])
                assert second == await first

        run_virtual(main(), thread_duration_s=disk_latency_s)
        assert len(gateway.submitted_bodies) == 1

    def test_a_known_id_of_an_earlier_run(self, tmp_path: Path) -> None:
        """The outcome of a job of an earlier engine is returned immediately."""
        gateway = ScriptedGateway()
        gateway.submit_script["j1"] = [Ambiguous("cut")]
        gateway.poll_script["j2"] = [Failed("no")]
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(3)))

        async def main() -> list[State]:
            async with make_engine(tmp_path, gateway) as engine:
                handles = [await engine.submit(job) for job in make_jobs(3)]
                assert handles[0].request_id in gateway.charged
                return [(await handle).status for handle in handles]

        assert run_virtual(main()) == [State.SUCCEEDED, State.AMBIGUOUS, State.FAILED]
        assert len(gateway.submitted_bodies) == 3

    def test_a_known_id_in_flight_from_an_earlier_run(self, tmp_path: Path) -> None:
        """A resumed job is waited for, and its request_id is known immediately."""
        gateway = ScriptedGateway()
        gateway.poll_script["j0"] = [Waiting("QUEUED")]
        assert run_until_killed(run_jobs(tmp_path, gateway, make_jobs(1)), 20.0, tmp_path) is None
        gateway.poll_script["j0"] = [Waiting("QUEUED")] * 3 + [Failed("no")]

        async def main() -> Outcome:
            async with make_engine(tmp_path, gateway) as engine:
                handle = await engine.submit(make_jobs(1)[0])
                assert handle.request_id in gateway.charged
                return await handle

        assert run_virtual(main()).status is State.FAILED
        assert len(gateway.submitted_bodies) == 1

    @pytest.mark.parametrize("later", [0.0, 0.05, 0.5, 4.0, 20.0], ids=lambda s: f"after {s} s")
    def test_a_changed_job(self, tmp_path: Path, later: float) -> None:
        """A different request with a known id is a JobError, at any moment."""
        gateway = ScriptedGateway()

        async def main() -> None:
            async with make_engine(tmp_path, gateway) as engine:
                first = asyncio.create_task(engine.generate(make_jobs(1)[0]))
                await asyncio.sleep(later)
                with pytest.raises(JobError, match="j0"):
                    await engine.generate(Job(prompt="other", id="j0"))
                assert (await first).succeeded

        run_virtual(main(), thread_duration_s=disk_latency_s)
        assert len(gateway.submitted_bodies) == 1

    def test_concurrent_submits_of_one_id(self, tmp_path: Path) -> None:
        """Fifty callers with one id cause one POST and get one outcome."""
        gateway = ScriptedGateway()

        async def main() -> list[Outcome]:
            async with make_engine(tmp_path, gateway) as engine:
                return await asyncio.gather(*(engine.generate(make_jobs(1)[0]) for _ in range(50)))

        outcomes = run_virtual(main(), thread_duration_s=disk_latency_s)
        assert len(gateway.submitted_bodies) == 1
        assert all(outcome == outcomes[0] for outcome in outcomes)

    def test_a_submit_beside_a_run(self, tmp_path: Path) -> None:
        """A job that run has queued, but not recorded yet, is not sent a second time for a submit."""
        gateway = ScriptedGateway()

        async def main() -> None:
            async with make_engine(tmp_path, gateway, rate="1/s") as engine:
                running = asyncio.create_task(engine.run(make_jobs(10)))
                await asyncio.sleep(2.5)
                outcomes = await asyncio.gather(*(engine.generate(job) for job in make_jobs(10)))
                assert all(outcome.succeeded for outcome in outcomes)
                await running

        run_virtual(main(), thread_duration_s=disk_latency_s)
        assert sorted(gateway.submitted_prompts) == sorted(job.id for job in make_jobs(10))

    @pytest.mark.parametrize("apart", [0, 1, 300])
    def test_an_id_twice_in_a_run(self, tmp_path: Path, apart: int) -> None:
        """A repeated job is done once; with another prompt it is a JobError, and the other jobs succeed."""
        gateway = ScriptedGateway()
        todo = [Job(prompt="twice", id="twice"), *make_jobs(apart), Job(prompt="twice", id="twice")]
        run_virtual(run_jobs(tmp_path / "same", gateway, todo, rate="20/s", max_in_flight=1000))
        assert gateway.submitted_prompts.count("twice") == 1
        todo[-1] = Job(prompt="other", id="twice")
        other = ScriptedGateway()
        with pytest.raises(JobError, match="twice"):
            run_virtual(run_jobs(tmp_path / "other", other, todo, rate="20/s", max_in_flight=1000))
        assert "other" not in other.submitted_prompts
        check_ledger(tmp_path / "other", other)


class TestCallers:
    @pytest.mark.parametrize("after_ms", [0, 20, 60, 120, 180, 250, 1000, 6000, 11_000])
    def test_cancelling_a_caller_loses_nothing(self, tmp_path: Path, after_ms: int) -> None:
        """The job of a cancelled caller continues; another caller gets its outcome, after one POST."""
        gateway = ScriptedGateway()

        async def main() -> None:
            async with make_engine(tmp_path, gateway) as engine:
                caller = asyncio.create_task(engine.generate(make_jobs(1)[0]))
                await asyncio.sleep(after_ms / 1000)
                caller.cancel()
                await asyncio.wait([caller])
                assert (await engine.generate(make_jobs(1)[0])).succeeded

        run_virtual(main(), thread_duration_s=disk_latency_s)
        assert len(gateway.submitted_bodies) == 1
        check_ledger(tmp_path, gateway)

    @pytest.mark.parametrize("after_ms", [100, 200, 1000])
    def test_cancelling_a_caller_that_waits_for_a_slot(self, tmp_path: Path, after_ms: int) -> None:
        """Other callers of the same job do not hang, no slot is lost, and the engine closes."""
        gateway = ScriptedGateway()

        async def main() -> None:
            async with make_engine(tmp_path, gateway, max_in_flight=1) as engine:
                first = asyncio.create_task(engine.generate(make_jobs(2)[0]))
                await asyncio.sleep(0.05)
                waits = [asyncio.create_task(engine.generate(make_jobs(2)[1])) for _ in range(3)]
                await asyncio.sleep(after_ms / 1000)
                waits[0].cancel()
                assert (await first).succeeded
                assert (await waits[1]).succeeded
                assert (await waits[2]).succeeded
                assert (await engine.generate(Job(prompt="more"))).succeeded

        run_virtual(main(), thread_duration_s=disk_latency_s)
        assert len(gateway.submitted_bodies) == 3

    def test_cancelling_callers_at_the_moment_a_slot_is_free(self, tmp_path: Path) -> None:
        """Callers that are cancelled while they get a slot do not keep it."""
        gateway = ScriptedGateway()

        async def main() -> None:
            async with make_engine(tmp_path, gateway, max_in_flight=1, rate="100/s") as engine:
                for n in range(40):
                    first = asyncio.create_task(engine.generate(Job(prompt="x", id=f"a{n}")))
                    await asyncio.sleep(0.3)
                    second = asyncio.create_task(engine.generate(Job(prompt="x", id=f"b{n}")))
                    await first
                    for _ in range(n % 10):
                        await asyncio.sleep(0)
                    second.cancel()
                    await asyncio.wait([second])
                assert (await engine.generate(Job(prompt="more"))).succeeded

        run_virtual(main())

    def test_cancelling_a_wait_for_a_known_job(self, tmp_path: Path) -> None:
        """A caller that is cancelled while the ledger is queried leaves no waiter that never ends."""
        gateway = ScriptedGateway()
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(1)))

        async def main() -> None:
            async with make_engine(tmp_path, gateway) as engine:
                for after_ms in (10, 60, 90, 110, 140):
                    caller = asyncio.create_task(engine.generate(make_jobs(1)[0]))
                    await asyncio.sleep(after_ms / 1000)
                    caller.cancel()
                    await asyncio.wait([caller])
                    assert (await engine.generate(make_jobs(1)[0])).succeeded

        run_virtual(main(), thread_duration_s=disk_latency_s)
        assert len(gateway.submitted_bodies) == 1

    def test_run_may_be_cancelled(self, tmp_path: Path) -> None:
        """Cancelling run stops reading jobs; submitted jobs succeed before the context is left."""
        gateway = ScriptedGateway()

        async def main() -> None:
            async with make_engine(tmp_path, gateway, max_in_flight=3) as engine:
                running = asyncio.create_task(engine.run(make_jobs(50)))
                await asyncio.sleep(1.0)
                running.cancel()
                await asyncio.wait([running])

        run_virtual(main())
        assert result_statuses(tmp_path) == {"j0": "succeeded", "j1": "succeeded", "j2": "succeeded"}
        check_ledger(tmp_path, gateway)

    def test_after_a_stop_no_caller_waits_forever(self, tmp_path: Path) -> None:
        """After a stop, new and deferred jobs raise RunStopped immediately, even without a free slot."""
        gateway = ScriptedGateway()
        gateway.poll_script["j0"] = [Waiting("QUEUED")]
        gateway.submit_script["j1"] = [NO_BALANCE]

        async def main() -> None:
            loop = asyncio.get_running_loop()
            async with make_engine(tmp_path, gateway, max_in_flight=2) as engine:
                await engine.submit(make_jobs(1)[0])
                waits = [asyncio.create_task(engine.generate(job)) for job in make_jobs(5)[1:]]
                await asyncio.sleep(1.0)
                started_s = loop.time()
                for result in await asyncio.gather(*waits, return_exceptions=True):
                    assert isinstance(result, GatewayError)
                for job in make_jobs(7)[1:]:
                    with pytest.raises(RunStopped):
                        await engine.generate(job)
                assert loop.time() - started_s < 1.0
                engine.abort()

        run_virtual(main(), thread_duration_s=disk_latency_s)
        assert ledger_states(tmp_path) == {"j0": "accepted", "j1": "pending"}

    def test_a_job_left_by_a_refused_key(self, tmp_path: Path) -> None:
        """Waiting for an accepted job that this run no longer polls raises the reason."""
        gateway = ScriptedGateway()
        gateway.poll_script["j0"] = [PollFailed("unauthorized", 401)]

        async def main() -> None:
            async with make_engine(tmp_path, gateway) as engine:
                with pytest.raises(GatewayError):
                    await engine.generate(make_jobs(1)[0])
                with pytest.raises(GatewayError):
                    await engine.generate(make_jobs(1)[0])

        run_virtual(main())
        assert ledger_states(tmp_path) == {"j0": "accepted"}

    def test_a_closed_engine(self, tmp_path: Path) -> None:
        """A closed engine raises RunStopped for new jobs and sends nothing."""
        gateway = ScriptedGateway()

        async def main() -> None:
            async with make_engine(tmp_path, gateway) as engine:
                pass
            for method in (engine.generate, engine.submit):
                with pytest.raises(RunStopped):
                    await method(make_jobs(1)[0])
            with pytest.raises(RunStopped):
                await engine.run(make_jobs(1))
            with pytest.raises(RunStopped):
                [outcome async for outcome in engine.stream(make_jobs(3))]

        run_virtual(main())
        assert gateway.submitted_bodies == []

    @pytest.mark.parametrize("after_ms", [0, 60, 120, 200, 400])
    def test_cancelling_the_start(self, tmp_path: Path, after_ms: int) -> None:
        """An engine whose start is cancelled unlocks the run directory, and the next one resumes."""
        gateway = ScriptedGateway()
        gateway.submit_script["j0"] = [NO_BALANCE]
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(1)))
        gateway.submit_script.clear()

        async def main() -> None:
            starting = asyncio.create_task(make_engine(tmp_path, gateway).start())
            await asyncio.sleep(after_ms / 1000)
            if starting.done():
                return
            starting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await starting
            await run_jobs(tmp_path, gateway, make_jobs(1))

        if after_ms < 400:
            run_virtual(main(), thread_duration_s=lambda: 0.1)
            assert result_statuses(tmp_path) == {"j0": "succeeded"}
            assert len(gateway.charged) == 1


class TestLeaving:
    def test_by_an_exception(self, tmp_path: Path) -> None:
        """The exception is raised, the engine closes soon, and the next one resumes without a POST."""
        gateway = ScriptedGateway()

        async def main() -> float:
            loop = asyncio.get_running_loop()
            with pytest.raises(LookupError, match="mine"):
                async with make_engine(tmp_path, gateway) as engine:
                    for job in make_jobs(3):
                        await engine.submit(job)
                    started_s = loop.time()
                    raise LookupError("mine")
            return loop.time() - started_s

        assert run_virtual(main()) < 1.0
        assert set(ledger_states(tmp_path).values()) == {"accepted"}
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(3)))
        assert set(result_statuses(tmp_path).values()) == {"succeeded"}
        assert len(gateway.submitted_bodies) == 3

    def test_leaving_waits_for_submitted_jobs(self, tmp_path: Path) -> None:
        """Leaving the context completes submitted jobs, even if no one waits for them."""
        gateway = ScriptedGateway()

        async def main() -> None:
            async with make_engine(tmp_path, gateway) as engine:
                for job in make_jobs(3):
                    await engine.submit(job)

        run_virtual(main())
        assert set(result_statuses(tmp_path).values()) == {"succeeded"}

    def test_by_a_cancel(self, tmp_path: Path) -> None:
        """Cancelling a task inside the context closes the engine and loses no charged job."""
        gateway = ScriptedGateway()

        async def work() -> None:
            async with make_engine(tmp_path, gateway) as engine:
                await engine.run(make_jobs(20))

        async def main() -> None:
            task = asyncio.create_task(work())
            await asyncio.sleep(1.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await run_jobs(tmp_path, gateway, make_jobs(20))

        run_virtual(main(), thread_duration_s=disk_latency_s)
        assert set(result_statuses(tmp_path).values()) == {"succeeded"}
        assert len(gateway.submitted_bodies) == 20

    def test_two_engines_on_one_run_directory(self, tmp_path: Path) -> None:
        """A second engine on the run directory is refused, and the first is not affected."""
        gateway = ScriptedGateway()

        async def main() -> None:
            async with make_engine(tmp_path, gateway) as engine:
                waiting = asyncio.create_task(engine.generate(make_jobs(1)[0]))
                await asyncio.sleep(0.5)
                with pytest.raises(RunDirError):
                    async with make_engine(tmp_path, gateway):
                        pass
                assert (await waiting).succeeded

        run_virtual(main())

    def test_two_engines_on_two_run_directories(self, tmp_path: Path) -> None:
        """Engines on different run directories work independently on one event loop."""
        gateways = [ScriptedGateway(), ScriptedGateway()]

        async def main() -> None:
            await asyncio.gather(
                *(run_jobs(tmp_path / str(n), gateway, make_jobs(10 + n)) for n, gateway in enumerate(gateways))
            )

        run_virtual(main())
        assert [len(rows_by_id(tmp_path / str(n))) for n in range(2)] == [10, 11]


class TestStops:
    def test_stop_drains(self, tmp_path: Path) -> None:
        """After stop nothing new is sent, jobs in flight are completed, and the next run does the rest."""
        gateway = ScriptedGateway()
        events: list[Event] = []

        async def main() -> int:
            async with make_engine(tmp_path, gateway, listeners=[events.append]) as engine:
                running = asyncio.create_task(engine.run(make_jobs(50)))
                await asyncio.sleep(1.05)
                engine.stop("enough")
                sent = len(gateway.submitted_bodies)
                await running
                assert engine.stopped is not None
                assert engine.stopped.reason == "enough"
            return sent

        sent = run_virtual(main())
        assert 0 < sent < 50
        assert len(gateway.submitted_bodies) == sent
        assert list(result_statuses(tmp_path).values()) == ["succeeded"] * sent
        assert [event.reason for event in events if isinstance(event, RunStopping)] == ["enough"]
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(50)))
        assert len(gateway.submitted_bodies) == 50
        assert set(result_statuses(tmp_path).values()) == {"succeeded"}

    @pytest.mark.parametrize("after_ms", [*range(0, 2000, 130), *range(5000, 6000, 130), *range(10_000, 12_000, 130)])
    def test_abort_at_any_moment(self, tmp_path: Path, after_ms: int) -> None:
        """An abort is fast, and the next engine resumes without a second charge."""
        gateway = ScriptedGateway()
        gateway.submit_duration_s = 0.7

        async def main() -> float:
            loop = asyncio.get_running_loop()
            async with make_engine(tmp_path, gateway, rate="5/s") as engine:
                running = asyncio.create_task(engine.run(make_jobs(6)))
                await asyncio.sleep(after_ms / 1000)
                engine.abort("now")
                started_s = loop.time()
                (ended,) = await asyncio.gather(running, return_exceptions=True)
                assert ended is None or (isinstance(ended, RunStopped) and ended.reason == "now")
            return loop.time() - started_s

        assert run_virtual(main(), thread_duration_s=disk_latency_s) < 6.5
        check_ledger(tmp_path, gateway)
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(6)))
        assert set(result_statuses(tmp_path).values()) == {"succeeded"}
        assert len(gateway.submitted_bodies) == len(gateway.charged) == 6
        check_ledger(tmp_path, gateway)

    def test_stop_then_abort(self, tmp_path: Path) -> None:
        """An abort after a stop is faster; the first reason is kept."""
        gateway = ScriptedGateway()
        gateway.poll_script["j0"] = [Waiting("QUEUED")]

        async def main() -> None:
            async with make_engine(tmp_path, gateway) as engine:
                await engine.submit(make_jobs(1)[0])
                engine.stop("first")
                await asyncio.sleep(100.0)
                engine.abort("second")
                engine.abort("third")
            assert engine.stopped is not None
            assert engine.stopped.reason == "first"

        run_virtual(main())
        assert ledger_states(tmp_path) == {"j0": "accepted"}


PrepareRun = Callable[[Path, ScriptedGateway], None]


def _pending(out: Path, gateway: ScriptedGateway) -> None:
    gateway.submit_script["j0"] = [NO_BALANCE]
    run_virtual(run_jobs(out, gateway, make_jobs(1)))


def _submitting(out: Path, gateway: ScriptedGateway) -> None:
    gateway.submit_script["j0"] = [(100.0, ACCEPT)]
    assert run_until_killed(run_jobs(out, gateway, make_jobs(1)), 5.0, out) is None


def _accepted(out: Path, gateway: ScriptedGateway) -> None:
    assert run_until_killed(run_jobs(out, gateway, make_jobs(1)), 1.0, out) is None


def _finished(out: Path, gateway: ScriptedGateway) -> None:
    gateway.download_script["j0"] = [[make_png(text=b"j0")[:40], 3600.0]]
    assert run_until_killed(run_jobs(out, gateway, make_jobs(1)), 60.0, out) is None


def _succeeded(out: Path, gateway: ScriptedGateway) -> None:
    run_virtual(run_jobs(out, gateway, make_jobs(1)))


def _failed(out: Path, gateway: ScriptedGateway) -> None:
    gateway.poll_script["j0"] = [Failed("no")]
    run_virtual(run_jobs(out, gateway, make_jobs(1)))


def _errored(out: Path, gateway: ScriptedGateway) -> None:
    gateway.poll_script["j0"] = [Errored("gpu")]
    run_virtual(run_jobs(out, gateway, make_jobs(1), max_attempts=1))


def _rejected(out: Path, gateway: ScriptedGateway) -> None:
    gateway.submit_script["j0"] = [Refused(Refusal.REJECTED, 400, "bad")]
    run_virtual(run_jobs(out, gateway, make_jobs(1)))


def _ambiguous(out: Path, gateway: ScriptedGateway) -> None:
    gateway.submit_script["j0"] = [Ambiguous("cut")]
    run_virtual(run_jobs(out, gateway, make_jobs(1)))


def _timed_out_waiting(out: Path, gateway: ScriptedGateway) -> None:
    gateway.poll_script["j0"] = [Waiting("QUEUED")]
    run_virtual(run_jobs(out, gateway, make_jobs(1), job_timeout_s=20.0))


def _timed_out_fetching(out: Path, gateway: ScriptedGateway) -> None:
    gateway.download_script["j0"] = [DownloadError("HTTP 404", status=404)]
    run_virtual(run_jobs(out, gateway, make_jobs(1)))


class TestResume:
    """The next engine resumes from every state."""

    @pytest.mark.parametrize(
        ("build", "state", "final_state", "posts"),
        [
            (_pending, "pending", "succeeded", 2),
            (_submitting, "submitting", "ambiguous", 1),
            (_accepted, "accepted", "succeeded", 1),
            (_finished, "finished", "succeeded", 1),
            (_succeeded, "succeeded", "succeeded", 1),
            (_failed, "failed", "failed", 1),
            (_errored, "errored", "succeeded", 2),
            (_rejected, "rejected", "rejected", 1),
            (_ambiguous, "ambiguous", "ambiguous", 1),
            (_timed_out_waiting, "timed_out", "succeeded", 1),
            (_timed_out_fetching, "timed_out", "succeeded", 1),
        ],
    )
    def test_from_each_state(
        self, tmp_path: Path, build: PrepareRun, state: str, final_state: str, posts: int
    ) -> None:
        """A job of each state ends as expected, with no POST that could charge it twice."""
        out, gateway = tmp_path / "out", ScriptedGateway()
        build(out, gateway)
        assert ledger_states(out) == {"j0": state}
        gateway.submit_script.clear()
        gateway.poll_script.clear()
        gateway.download_script.clear()
        for _ in range(2):
            run_virtual(run_jobs(out, gateway, make_jobs(1)))
            assert result_statuses(out) == {"j0": final_state}
            assert len(gateway.submitted_bodies) == posts
            check_ledger(out, gateway)

    @pytest.mark.parametrize("build", [_submitting, _ambiguous])
    def test_resubmit(self, tmp_path: Path, build: PrepareRun) -> None:
        """Only a run with ambiguous=resubmit submits ambiguous jobs again."""
        out, gateway = tmp_path / "out", ScriptedGateway()
        build(out, gateway)
        gateway.submit_script.clear()
        run_virtual(run_jobs(out, gateway, make_jobs(1), ambiguous="resubmit"))
        assert result_statuses(out) == {"j0": "succeeded"}
        assert len(gateway.submitted_bodies) == 2

    @pytest.mark.parametrize(
        "killed_ms", [*range(220, 3000, 170), *range(5000, 6500, 110), *range(10_000, 13_000, 170)]
    )
    def test_killed_at_any_moment(self, tmp_path: Path, killed_ms: int) -> None:
        """Pending POSTs are ambiguous, all other jobs succeed, and no job is charged twice."""
        out, gateway = tmp_path / "out", ScriptedGateway()
        gateway.submit_duration_s = 0.4
        run_until_killed(
            run_jobs(out, gateway, make_jobs(5), rate="4/s"), killed_ms / 1000, out, thread_duration_s=disk_latency_s
        )
        submitting = {job_id for job_id, state in ledger_states(out).items() if state == "submitting"}
        run_virtual(run_jobs(out, gateway, make_jobs(5)))
        found = result_statuses(out)
        assert {job_id for job_id, status in found.items() if status == "ambiguous"} == submitting
        assert {status for job_id, status in found.items() if job_id not in submitting} <= {"succeeded"}
        assert len(gateway.charged) == len(set(gateway.charged.values()))
        assert len(found) == 5

    def test_a_copy_of_a_run_directory_in_use(self, tmp_path: Path) -> None:
        """A copy of a run directory in use resumes from the moment of the copy, without another POST."""
        gateway = ScriptedGateway()

        async def main() -> None:
            async with make_engine(tmp_path / "out", gateway) as engine:
                run_task = asyncio.create_task(engine.run(make_jobs(10)))
                await asyncio.sleep(8.0)
                shutil.copytree(tmp_path / "out", tmp_path / "copy")
                await run_task

        run_virtual(main())
        run_virtual(run_jobs(tmp_path / "copy", gateway, make_jobs(10)))
        assert set(result_statuses(tmp_path / "copy").values()) == {"succeeded"}
        assert len(gateway.submitted_bodies) == 10

    def test_a_smaller_max_in_flight(self, tmp_path: Path) -> None:
        """All open jobs are resumed, even above the limit; new ones wait until the count is below it."""
        out, gateway = tmp_path / "out", ScriptedGateway()
        run_until_killed(run_jobs(out, gateway, make_jobs(30), rate="100/s"), 2.0, out)
        in_flight: list[int] = []
        sql = "SELECT count(*) FROM jobs WHERE state != 'succeeded'"
        gateway.on_submit = lambda _: in_flight.append(query_ledger(out, sql)[0][0])
        run_virtual(run_jobs(out, gateway, make_jobs(60), rate="100/s", max_in_flight=4))
        assert max(in_flight) <= 4
        assert set(result_statuses(out).values()) == {"succeeded"}
        assert len(gateway.submitted_bodies) == 60

    def test_a_changed_job_in_a_run(self, tmp_path: Path) -> None:
        """run raises JobError for a changed job after the jobs in flight have ended."""
        gateway = ScriptedGateway()
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(2)))
        with pytest.raises(JobError, match="j1"):
            run_virtual(run_jobs(tmp_path, gateway, [Job(prompt="new", id="new"), Job(prompt="other", id="j1")]))
        assert set(result_statuses(tmp_path).values()) == {"succeeded"}
        assert "other" not in gateway.submitted_prompts
        check_ledger(tmp_path, gateway)

    def test_another_gateway(self, tmp_path: Path) -> None:
        """A run directory of another gateway is refused: its request_ids are unknown there."""
        gateway = ScriptedGateway()
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(1)))

        async def main() -> None:
            async with make_engine(tmp_path, gateway, gateway="https://other.example"):
                pass

        with pytest.raises(RunDirError):
            run_virtual(main())


class TestResults:
    def test_rows_are_written_as_jobs_end(self, tmp_path: Path) -> None:
        """During the run, results.jsonl has a complete row for each job that has ended."""
        gateway = ScriptedGateway()
        row_counts: list[int] = []

        async def main() -> None:
            async with make_engine(tmp_path, gateway, rate="2/s") as engine:
                async for _ in engine.stream(make_jobs(10)):
                    await asyncio.sleep(0.01)
                    lines = (tmp_path / "results.jsonl").read_bytes().splitlines()
                    assert all(orjson.loads(line)["status"] == "succeeded" for line in lines)
                    row_counts.append(len(lines))

        run_virtual(main())
        assert row_counts == list(range(1, 11))

    def test_a_job_that_ended_twice_has_one_row(self, tmp_path: Path) -> None:
        """A job that ended in two runs has one row, the last; partial rows of a crash are removed."""
        gateway = ScriptedGateway()
        _timed_out_waiting(tmp_path, gateway)
        gateway.poll_script.clear()
        results = tmp_path / "results.jsonl"
        results.write_bytes(results.read_bytes() + b'{"id": "half')
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(3)))
        check_ledger(tmp_path, gateway)
        assert set(result_statuses(tmp_path).values()) == {"succeeded"}

    @pytest.mark.parametrize("after_s", [2.0, 5.2, 5.3, 60.0])
    def test_results_are_rewritten_at_the_start_only_if_needed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after_s: float
    ) -> None:
        """Results are rewritten in the background after a kill, and only at the end otherwise."""
        times: list[int] = []
        rewrite = ResultsFile.rewrite

        async def count_rewrites(self: ResultsFile, groups: Any, **options: Any) -> None:
            times.append(1)
            await rewrite(self, groups, **options)

        gateway, out = ScriptedGateway(), tmp_path / "out"
        killed = run_until_killed(run_jobs(out, gateway, make_jobs(8)), after_s, out) is None
        assert killed == (after_s < 60)
        monkeypatch.setattr(ResultsFile, "rewrite", count_rewrites)
        run_virtual(run_jobs(out, gateway, make_jobs(12)))
        assert len(times) == (2 if killed else 1)
        assert len(result_statuses(out)) == 12
        check_ledger(out, gateway)

    @pytest.mark.parametrize("all_ended", [True, False])
    def test_only_rows_that_can_have_changed_are_read_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, all_ended: bool
    ) -> None:
        """If all jobs had ended, rows of earlier runs are not read again, and the file is the same."""
        gateway, out = ScriptedGateway(), tmp_path / "out"
        if all_ended:
            run_virtual(run_jobs(out, gateway, make_jobs(3)))
        else:
            _timed_out_waiting(out, gateway)
            gateway.poll_script.clear()
        read_after: list[int] = []
        outcomes = SqliteLedger.outcomes

        def record_read(self: SqliteLedger, after_job_no: int, limit: int) -> Any:
            read_after.append(after_job_no)
            return outcomes(self, after_job_no, limit)

        monkeypatch.setattr(SqliteLedger, "outcomes", record_read)
        run_virtual(run_jobs(out, gateway, make_jobs(7)))
        assert (min(read_after) == 3) == all_ended
        check_ledger(out, gateway)
        with closing(SqliteLedger.open(out / "ledger.db", read_only=True)) as store:
            expected, _ = outcomes(store, 0, 100)
        assert (out / "results.jsonl").read_bytes() == b"".join(map(result_row, expected))
        assert len(expected) == 7

    def test_a_removed_results_file_is_restored(self, tmp_path: Path) -> None:
        """A results.jsonl that is removed during the run is restored, even if a new one has grown larger."""
        gateway = ScriptedGateway()
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(3)))

        async def main() -> None:
            async with make_engine(tmp_path, gateway) as engine:
                (tmp_path / "results.jsonl").rename(tmp_path / "renamed.jsonl")
                await engine.run(make_jobs(12))

        run_virtual(main())
        assert len(result_statuses(tmp_path)) == 12
        check_ledger(tmp_path, gateway)

    def test_a_start_after_a_failed_start(self, tmp_path: Path) -> None:
        """Rows that were valid at a failed start of an engine are checked again at the next."""
        gateway = ScriptedGateway()
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(3)))

        async def main() -> None:
            with socket.socket() as taken:
                taken.bind(("127.0.0.1", 0))
                taken.listen()
                webhook = Webhook(listen=f"127.0.0.1:{taken.getsockname()[1]}")
                engine = make_engine(tmp_path, gateway, webhook=webhook)
                with pytest.raises(SettingsError):
                    await engine.start()
            (tmp_path / "results.jsonl").write_bytes(b"")
            await engine.start()
            await engine.run(make_jobs(5))
            await engine.aclose()

        asyncio.run(main())
        assert len(result_statuses(tmp_path)) == 5

    def test_a_retried_job_has_no_row_until_it_ends(self, tmp_path: Path) -> None:
        """A job that timed out in the last run and is polled in this one never has two rows."""
        gateway = ScriptedGateway()
        _timed_out_waiting(tmp_path, gateway)
        gateway.poll_script.clear()
        checks = 0

        async def main() -> None:
            nonlocal checks
            async with make_engine(tmp_path, gateway) as engine:
                running = asyncio.create_task(engine.run(make_jobs(3)))
                while not running.done():
                    await asyncio.sleep(0.05)
                    rows_by_id(tmp_path)  # each id once
                    checks += 1
                await running

        run_virtual(main())
        assert checks > 10
        check_ledger(tmp_path, gateway)

    def test_the_fields_of_a_row(self, tmp_path: Path) -> None:
        """A row of results.jsonl has exactly the documented fields."""
        gateway = ScriptedGateway()
        run_virtual(run_jobs(tmp_path, gateway, [Job(prompt="x", id="x", metadata={"a": [1]})], clock=lambda: 0.0))
        row = rows_by_id(tmp_path)["x"]
        assert set(row) == {
            "id", "status", "request_id", "files", "error", "request", "metadata", "polls", "attempts",
            "submitted_at", "accepted_at", "finished_at", "stored_at",
        }  # fmt: skip
        assert set(row["files"][0]) == {"path", "bytes", "sha256", "width", "height", "media_type"}
        assert row["metadata"] == {"a": [1]}
        assert row["request"] == gateway.submitted_bodies[0]
        assert (row["attempts"], row["polls"], row["error"]) == (1, 2, None)
        assert row["stored_at"] == "1970-01-01T00:00:00.000Z"

    def test_a_full_disk_for_results(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """If rows cannot be appended the run stops, and the next one resumes."""
        gateway = ScriptedGateway()

        def raise_disk_full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr("krea_batch.storage.results_file._append", raise_disk_full)
            engine = run_virtual(run_jobs(tmp_path, gateway, make_jobs(30), rate="1/s"))
        assert engine.stopped is not None
        assert "No space left" in str(engine.stopped)
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(30)))
        assert len(gateway.submitted_bodies) == 30
        check_ledger(tmp_path, gateway)


class TestBackpressure:
    def test_a_slow_cdn_slows_submits(self, tmp_path: Path) -> None:
        """A slot is held from POST to image: with a slow CDN, no more is submitted than can be stored."""
        gateway = ScriptedGateway()
        read: list[str] = []
        unstored: list[int] = []
        sql = "SELECT count(*) FROM jobs WHERE state != 'succeeded'"
        gateway.on_submit = lambda _: unstored.append(query_ledger(tmp_path, sql)[0][0])
        for job in make_jobs(300):
            gateway.download_script[job.id] = [[50.0, make_png(text=job.id.encode())]]

        def source() -> Iterator[Job]:
            for job in make_jobs(300):
                read.append(job.id)
                assert len(read) <= len(set(gateway.submitted_prompts)) + 256 + 8
                yield job

        run_virtual(run_jobs(tmp_path, gateway, source(), rate="100/s", max_in_flight=8, downloads=2))
        assert max(unstored) <= 8
        assert gateway.submit_times_s[-1] - gateway.submit_times_s[0] > 290 / 2 * 50.0 * 0.9
        assert set(result_statuses(tmp_path).values()) == {"succeeded"}

    def test_the_source_is_read_no_further_than_a_batch(self, tmp_path: Path) -> None:
        """An endless source is read at most one batch and the free slots ahead."""
        gateway = ScriptedGateway()
        read: list[int] = []

        def endless() -> Iterator[Job]:
            while True:
                read.append(len(read))
                yield Job(prompt="x", id=f"e{read[-1]}")

        async def main() -> None:
            async with make_engine(tmp_path, gateway, max_in_flight=10) as engine:
                running = asyncio.create_task(engine.run(endless()))
                await asyncio.sleep(60.0)
                engine.stop()
                await running

        run_virtual(main())
        assert len(read) <= len(gateway.submitted_bodies) + 256 + 10
        assert len(rows_by_id(tmp_path)) == len(gateway.submitted_bodies)

    def test_two_thousand_in_flight(self, tmp_path: Path) -> None:
        """Two thousand jobs are in flight simultaneously on one event loop, and all end."""
        gateway = ScriptedGateway()
        gateway.on_poll = lambda _: charged_counts.append(len(gateway.charged))
        charged_counts: list[int] = []
        for job in make_jobs(2000):
            gateway.poll_script[job.id] = [Waiting("QUEUED"), Failed("done")]
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(2000), rate="1000/s", max_in_flight=2000))
        assert list(result_statuses(tmp_path).values()) == ["failed"] * 2000
        assert len(gateway.submitted_bodies) == 2000


def within(seconds: float, work: Coroutine[Any, Any, Any]) -> Any:
    """Run `work` with a deadline, which costs no time in virtual time."""

    async def main() -> Any:
        async with asyncio.timeout(seconds):
            return await work

    return run_virtual(main())


FAILING_TRANSITIONS = [
    "record_intents", "mark_accepted_many", "mark_finished_many", "mark_stored_many", "mark_failed", "mark_ambiguous",
    "revert_intent", "mark_rejected",
]  # fmt: skip


class TestBroken:
    """Three jobs succeed; one each fails, is ambiguous, is refused and retried, and is rejected."""

    @staticmethod
    def gateway() -> ScriptedGateway:
        gateway = ScriptedGateway()
        gateway.poll_script["j3"] = [Failed("no")]
        gateway.submit_script["j4"] = [Ambiguous("cut")]
        gateway.submit_script["j5"] = [Refused(Refusal.RETRYABLE, 500, "later"), ACCEPT]
        gateway.submit_script["j6"] = [Refused(Refusal.REJECTED, 400, "bad")]
        return gateway

    @pytest.mark.parametrize("method", FAILING_TRANSITIONS)
    @pytest.mark.parametrize(
        ("error", "raised"),
        [
            (sqlite3.OperationalError("disk I/O error"), LedgerError),
            (InternalError("no such transition"), InternalError),
        ],
        ids=["disk", "bug"],
    )
    @pytest.mark.parametrize("way", ["run", "generate", "stream"])
    def test_a_transition_that_fails(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        method: str,
        error: Exception,
        raised: type[KreaBatchError],
        way: str,
    ) -> None:
        """Submits stop immediately, every wait raises the error, and no job is charged twice later."""
        gateway = self.gateway()
        failed_s: list[float] = []

        def raise_error(*_: object, **__: object) -> None:
            failed_s.append(asyncio.get_running_loop().time())
            raise error

        async def work() -> None:
            async with make_engine(tmp_path, gateway, rate="4/s") as engine:
                if way == "run":
                    await engine.run(make_jobs(100))
                elif way == "generate":
                    await asyncio.gather(*(engine.generate(job) for job in make_jobs(100)))
                else:
                    [outcome async for outcome in engine.stream(make_jobs(100))]

        with monkeypatch.context() as patch:
            patch.setattr(SqliteLedger, method, raise_error)
            with pytest.raises(raised):
                within(600.0, work())
        assert all(at_s <= failed_s[0] for at_s in gateway.submit_times_s)
        assert len(gateway.submitted_bodies) < 60
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(7)))
        assert len(set(gateway.charged.values())) == len(gateway.charged)

    @pytest.mark.parametrize("method", ["submit", "poll", "download"])
    @pytest.mark.parametrize("caught", [True, False])
    def test_a_bug_in_a_stage(self, tmp_path: Path, method: str, caught: bool) -> None:
        """An unexpected exception is raised by run and by aclose, and nothing hangs."""
        gateway = ScriptedGateway()

        async def raise_bug(*_: object, **__: object) -> None:
            await asyncio.sleep(0.05)
            raise ZeroDivisionError("a bug")

        setattr(gateway, method, raise_bug)

        async def work() -> None:
            engine = make_engine(tmp_path, gateway)
            await engine.start()
            if caught:
                with pytest.raises(ZeroDivisionError):
                    await engine.run(make_jobs(5))
            else:
                waits = [asyncio.create_task(engine.generate(job)) for job in make_jobs(5)]
                await asyncio.sleep(60.0)
                ends = await asyncio.gather(*waits, return_exceptions=True)
                assert {type(end) for end in ends} == {ZeroDivisionError}
            with pytest.raises((RunStopped, ZeroDivisionError)):
                await engine.generate(Job(prompt="more"))
            with pytest.raises(ZeroDivisionError):
                await engine.aclose()

        within(600.0, work())
        gateway_without_bug = ScriptedGateway()
        gateway_without_bug.charged.update(gateway.charged)
        run_virtual(run_jobs(tmp_path, gateway_without_bug, make_jobs(5)))
        assert len(rows_by_id(tmp_path)) == 5
        assert (
            set(result_statuses(tmp_path).values()) == {"ambiguous", "succeeded"}
            if method == "submit"
            else {"succeeded"}
        )

    def test_the_ledger_fails_with_a_pending_post(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A charged request_id that the ledger cannot take is kept beside it, and the next run stores the image."""
        gateway = ScriptedGateway()

        def raise_disk_error(*_: object) -> None:
            raise sqlite3.OperationalError("disk I/O error")

        with monkeypatch.context() as patch:
            patch.setattr(SqliteLedger, "mark_accepted_many", raise_disk_error)
            with pytest.raises(LedgerError):
                run_virtual(run_jobs(tmp_path, gateway, make_jobs(1)))
        (request_id,) = gateway.charged
        assert request_id in caplog.text
        assert request_id in (tmp_path / "unrecorded.jsonl").read_text()
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(1)))
        assert result_statuses(tmp_path) == {"j0": "succeeded"}
        assert len(gateway.submitted_bodies) == 1

    def test_neither_the_ledger_nor_a_file_takes_a_request_id(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """A charged request_id that no file takes is written to standard error."""
        gateway = ScriptedGateway()

        def raise_disk_error(*_: object) -> None:
            raise sqlite3.OperationalError("disk I/O error")

        def raise_os_error(*_: object) -> None:
            raise OSError(errno.EIO, "disk I/O error")

        monkeypatch.setattr(SqliteLedger, "mark_accepted_many", raise_disk_error)
        monkeypatch.setattr(executor, "write_spill", raise_os_error)
        with pytest.raises(LedgerError):
            run_virtual(run_jobs(tmp_path, gateway, make_jobs(1)))
        (request_id,) = gateway.charged
        assert f"job 'j0' of {tmp_path} was charged; its request_id is {request_id}" in capfd.readouterr().err

    def test_a_listener_that_raises(self, tmp_path: Path, listener_failures: list[BaseException]) -> None:
        """A bug in a listener is logged once for each kind of event; the run and other listeners are not affected."""
        events: list[Event] = []

        def raising_listener(_: Event) -> None:
            raise ZeroDivisionError("a listener")

        gateway = ScriptedGateway()
        within(600.0, run_jobs(tmp_path, gateway, make_jobs(5), listeners=[raising_listener, events.append]))
        assert set(result_statuses(tmp_path).values()) == {"succeeded"}
        assert len(gateway.charged) == 5
        assert len(listener_failures) == len({type(event) for event in events})
        listener_failures.clear()


class TestMisuse:
    """An engine that is used before its start, twice, or after its end says so."""

    def test_methods_before_the_start(self, tmp_path: Path) -> None:
        """Before the start, methods raise InputError with the next step, closing does nothing, and nothing hangs."""

        async def main() -> None:
            engine = make_engine(tmp_path, ScriptedGateway())
            await engine.aclose()
            assert engine.stopped is None
            for method in (engine.stop, engine.stats):
                with pytest.raises(InputError, match="async with Engine"):
                    method()
            for work in (engine.generate(Job(prompt="a")), engine.get("a"), engine.charges(), engine.run([])):
                with pytest.raises(InputError, match="async with Engine"):
                    await work
            with pytest.raises(InputError, match="async with Engine"):
                [outcome async for outcome in engine.stream([Job(prompt="a")])]
            with pytest.raises(InputError, match="async with Engine"):
                [event async for event in engine.events()]

        within(60.0, main())

    def test_started_twice(self, tmp_path: Path) -> None:
        """A second start raises InputError, during the run and after it; the run is not affected."""

        async def main() -> None:
            engine = make_engine(tmp_path, ScriptedGateway())
            async with engine:
                with pytest.raises(InputError, match="started before"):
                    await engine.start()
                assert (await engine.generate(Job(prompt="a"))).succeeded
            with pytest.raises(InputError, match="started before"):
                await engine.start()
            await engine.aclose()

        within(60.0, main())


class TestCancelledScopes:
    """Whichever kind of cancellation ends the context of an engine, nothing runs on and no request_id is lost."""

    @pytest.mark.parametrize("kind", ["anyio", "asyncio"])
    def test_a_cancelled_context(self, tmp_path: Path, kind: str) -> None:
        """The engine is closed when the cancelled code is left; answers that arrive within the grace are recorded."""
        gateway = ScriptedGateway()
        gateway.submit_duration_s = 2.0

        async def use_engine() -> None:
            async with make_engine(tmp_path, gateway, rate="100/s") as engine:
                await engine.run(make_jobs(16))

        async def main() -> None:
            if kind == "anyio":
                with anyio.move_on_after(1.0):
                    await use_engine()
            else:
                task = asyncio.create_task(use_engine())
                await asyncio.sleep(1.0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            assert not is_locked(tmp_path)
            assert len(asyncio.all_tasks()) == 1

        within(600.0, main())
        assert set(ledger_states(tmp_path).values()) == {"accepted"}
        assert len(gateway.charged) == 16


def test_stats_and_counts(tmp_path: Path) -> None:
    """The counters of the engine agree with what happened."""
    gateway = TestBroken.gateway()

    async def main() -> None:
        async with make_engine(tmp_path, gateway) as engine:
            await engine.run(make_jobs(7))
            stats = engine.stats()
            assert stats.ended_by_state == {
                State.SUCCEEDED: 4,
                State.FAILED: 1,
                State.AMBIGUOUS: 1,
                State.REJECTED: 1,
            }
            assert (stats.submits, stats.accepted, stats.in_flight) == (8, 5, 0)
            assert await engine.counts() == {
                State.SUCCEEDED: 4,
                State.FAILED: 1,
                State.AMBIGUOUS: 1,
                State.REJECTED: 1,
            }
            charges = await engine.charges()
            assert (charges.charged, charges.refunded, charges.unknown) == (5, 0, 1)

    run_virtual(main())
