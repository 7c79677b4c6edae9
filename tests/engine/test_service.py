"""Test the engine inside a service: handles, events, tenants and shared rate limiters, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from krea_batch import (
    Engine,
    Event,
    EventsDropped,
    Job,
    JobEnded,
    JobError,
    Outcome,
    RateLimiter,
    RetryScheduled,
    RunStopped,
    SettingsError,
    State,
    StateChanged,
)
from krea_batch.pipeline.event_stream import EventStream
from krea_batch.rules.verdicts import Ambiguous, PollFailed, Refusal, Refused
from krea_batch.testing import ACCEPT, FINISH, ScriptedGateway, run_until_killed, run_virtual
from tests.engine_fixtures import ledger_states, make_engine, rows_by_id
from tests.window_stats import max_in_window

PAYMENT_REQUIRED = Refused(Refusal.FATAL, 402, "no money")

pytestmark = pytest.mark.slow


def numbered_job(n: int | str) -> Job:
    return Job(prompt=f"image {n}", id=f"job-{n}")


class TestHandles:
    def test_status_follows_the_job(self, tmp_path: Path) -> None:
        """A handle has the current state, the request_id once there is one, and the outcome at the end."""
        gateway = ScriptedGateway()
        states: list[State] = []

        async def main() -> None:
            async with make_engine(tmp_path, gateway) as engine:
                handle = await engine.enqueue(numbered_job(1))
                states.append(handle.status)
                assert (handle.id, handle.request_id, handle.outcome) == ("job-1", None, None)
                async for event in handle:
                    assert isinstance(event, (StateChanged, JobEnded))
                    states.append(handle.status)
                assert handle.request_id in gateway.charged
                assert handle.outcome == await handle

        run_virtual(main())
        assert states[0] is State.PENDING
        assert State.ACCEPTED in states
        assert states[-1] is State.SUCCEEDED

    def test_events_of_a_job(self, tmp_path: Path) -> None:
        """Every iteration over a handle yields all events of its job, and of no other, until its end."""
        gateway = ScriptedGateway()
        gateway.poll_script["image 1"] = [PollFailed("HTTP 500", 500), FINISH]

        async def read(handle: Any) -> list[Event]:
            return [event async for event in handle]

        async def main() -> None:
            async with make_engine(tmp_path, gateway) as engine:
                first, _ = await engine.enqueue(numbered_job(1)), await engine.enqueue(numbered_job(2))
                one, other = await asyncio.gather(read(first), read(first))
                assert one == other
                new_states = [event.new for event in one if isinstance(event, StateChanged)]
                assert new_states[-3:] == [State.ACCEPTED, State.FINISHED, State.SUCCEEDED]
                assert [event.stage for event in one if isinstance(event, RetryScheduled)] == ["poll"]
                assert one[-1] == JobEnded(await first)
                assert await read(first) == [JobEnded(await first)]

        run_virtual(main())

    def test_a_reader_that_leaves_early(self, tmp_path: Path) -> None:
        """A caller that stops reading events loses nothing else."""

        async def main() -> None:
            async with make_engine(tmp_path, ScriptedGateway()) as engine:
                handle = await engine.submit(numbered_job(1))
                async for _ in handle:
                    break
                assert (await handle).succeeded

        run_virtual(main())

    def test_the_engine_stops_before_the_end(self, tmp_path: Path) -> None:
        """If the engine stops first, iterating over a handle raises what awaiting it raises."""

        async def main() -> None:
            engine = make_engine(tmp_path, ScriptedGateway())
            await engine.start()
            handle = await engine.submit(numbered_job(1))
            reading = asyncio.create_task(_read_events(handle))
            await asyncio.sleep(0.1)
            await engine.aclose(detach=True)
            with pytest.raises(RunStopped):
                await reading
            with pytest.raises(RunStopped):
                await handle
            assert handle.outcome is None
            assert handle.status is State.ACCEPTED

        run_virtual(main())

    def test_events_of_the_run(self, tmp_path: Path) -> None:
        """engine.events yields the events of the whole run until the engine closes."""

        async def main() -> list[Event]:
            events: list[Event] = []

            async def collect_events(engine: Engine) -> None:
                async for event in engine.events():
                    events.append(event)

            async with make_engine(tmp_path, ScriptedGateway()) as engine:
                listening = asyncio.create_task(collect_events(engine))
                await asyncio.sleep(0)
                await asyncio.gather(*(engine.generate(numbered_job(n)) for n in range(3)))
            await listening
            return events

        events = run_virtual(main())
        assert {event.outcome.id for event in events if isinstance(event, JobEnded)} == {"job-0", "job-1", "job-2"}

    def test_a_slow_reader_gets_events_dropped(self) -> None:
        """Unread events are bounded; the oldest are dropped, and their number is reported."""

        async def main() -> list[Event]:
            stream = EventStream(max_unread=3)
            for n in range(5):
                stream.push(RetryScheduled(f"job-{n}", "poll", "HTTP 500"))
            stream.close()
            return [event async for event in stream]

        assert run_virtual(main()) == [
            EventsDropped(2),
            *(RetryScheduled(f"job-{n}", "poll", "HTTP 500") for n in (2, 3, 4)),
        ]


class TestGet:
    def test_in_every_state(self, tmp_path: Path) -> None:
        """get finds jobs that wait, that are in flight and that have ended; None for an unknown id."""
        gateway = ScriptedGateway()

        async def main() -> None:
            async with make_engine(tmp_path, gateway, max_in_flight=1) as engine:
                await engine.submit(numbered_job(1))
                await engine.enqueue(numbered_job(2))
                waiting = asyncio.create_task(engine.submit(numbered_job(3)))
                await asyncio.sleep(0.01)
                found = [await engine.get(f"job-{n}") for n in (1, 2, 3)]
                handles = [handle for handle in found if handle]
                assert [handle.status for handle in handles] == [State.ACCEPTED, State.PENDING, State.PENDING]
                assert [(await handle).id for handle in handles] == ["job-1", "job-2", "job-3"]
                assert await engine.get("job-4") is None
                assert (await waiting).status is State.SUCCEEDED
                ended = await engine.get("job-1")
                assert ended is not None
                assert ended.outcome is not None

        run_virtual(main())

    @pytest.mark.parametrize("killed_ms", range(10, 900, 60))
    def test_after_a_kill(self, tmp_path: Path, killed_ms: int) -> None:
        """Every recorded job is found by the next engine, wherever the first was killed; no job is charged twice."""
        gateway, recorded = ScriptedGateway(), set[str]()

        async def first() -> None:
            async with make_engine(tmp_path, gateway, rate="20/s", max_in_flight=5) as engine:
                for n in range(20):
                    recorded.add((await engine.enqueue(numbered_job(n), tenant=f"t{n % 3}")).id)
                await asyncio.sleep(3600)

        async def second() -> dict[str, Outcome]:
            async with make_engine(tmp_path, gateway, rate="20/s", max_in_flight=5) as engine:
                handles = {job_id: await engine.get(job_id) for job_id in recorded}
                return {job_id: await handle for job_id, handle in handles.items() if handle}

        run_until_killed(first(), killed_ms / 1000, tmp_path, thread_duration_s=lambda: 0.01)
        outcomes = run_virtual(second())
        assert outcomes.keys() == recorded
        assert {outcome.status for outcome in outcomes.values()} <= {State.SUCCEEDED, State.AMBIGUOUS}
        charged = list(gateway.charged.values())
        assert len(charged) == len(set(charged))

    def test_of_an_earlier_run(self, tmp_path: Path) -> None:
        """A job that an earlier run stored is found with its outcome, and nothing is submitted."""
        gateway = ScriptedGateway()

        async def main() -> None:
            async with make_engine(tmp_path, gateway) as engine:
                outcome = await engine.generate(numbered_job(1))
            async with make_engine(tmp_path, gateway) as engine:
                handle = await engine.get("job-1")
                assert handle is not None
                assert handle.outcome == outcome
                assert handle.request_id == outcome.request_id

        run_virtual(main())
        assert len(gateway.charged) == 1

    def test_a_cancelled_get_leaves_no_waiter(self, tmp_path: Path) -> None:
        """A get that is cancelled during its lookup does not prevent the next one from finding the job."""
        gateway = ScriptedGateway()

        async def main() -> None:
            async with make_engine(tmp_path, gateway) as engine:
                await engine.generate(numbered_job(1))
            async with make_engine(tmp_path, gateway) as engine:
                for _ in range(5):
                    get_task = asyncio.create_task(engine.get("job-1"))
                    await asyncio.sleep(0)
                    get_task.cancel()
                    await asyncio.wait([get_task])
                handle = await engine.get("job-1")
                assert handle is not None
                assert (await handle).succeeded

        run_virtual(main())


class TestEnqueue:
    def test_it_returns_before_the_submit(self, tmp_path: Path) -> None:
        """enqueue returns when the job is recorded as pending; it does not wait for a slow gateway."""
        gateway = ScriptedGateway()
        gateway.submit_duration_s = 30.0

        async def main() -> None:
            async with make_engine(tmp_path, gateway) as engine:
                loop = asyncio.get_running_loop()
                started_s = loop.time()
                handle = await engine.enqueue(numbered_job(1))
                assert loop.time() - started_s < 1
                assert ledger_states(tmp_path) in ({"job-1": "pending"}, {"job-1": "submitting"})
                assert (await handle).succeeded

        run_virtual(main())

    def test_an_id_twice(self, tmp_path: Path) -> None:
        """A job enqueued twice, at the same time or later, is one job; a different job with its id is refused."""
        gateway = ScriptedGateway()

        async def main() -> None:
            async with make_engine(tmp_path, gateway) as engine:
                handles = await asyncio.gather(
                    *(engine.enqueue(numbered_job(1)) for _ in range(5)), engine.submit(numbered_job(1))
                )
                assert len({(await handle).request_id for handle in handles}) == 1
                with pytest.raises(JobError, match="changed"):
                    await engine.enqueue(Job(prompt="another", id="job-1"))

        run_virtual(main())
        assert len(gateway.charged) == 1

    def test_a_stopped_run_accepts_no_jobs(self, tmp_path: Path) -> None:
        """Once there is no balance, enqueue raises RunStopped immediately, and so do waiting callers."""
        gateway = ScriptedGateway()
        gateway.submit_script["image 1"] = [PAYMENT_REQUIRED]

        async def main() -> None:
            async with make_engine(tmp_path, gateway, rate="1/s") as engine:
                first, second = await engine.enqueue(numbered_job(1)), await engine.enqueue(numbered_job(2))
                for handle in (first, second):
                    with pytest.raises(RunStopped):
                        await handle
                with pytest.raises(RunStopped):
                    await engine.enqueue(numbered_job(3))

        run_virtual(main())
        assert ledger_states(tmp_path) == {"job-1": "pending", "job-2": "pending"}

    def test_closing_waits_for_queued_jobs(self, tmp_path: Path) -> None:
        """Leaving the context completes enqueued jobs, too; detaching leaves them to the next engine."""
        gateway = ScriptedGateway()

        async def drain() -> None:
            async with make_engine(tmp_path, gateway, rate="5/s", max_in_flight=2) as engine:
                for n in range(20):
                    await engine.enqueue(numbered_job(n))

        async def detach() -> None:
            engine = make_engine(tmp_path, gateway, rate="5/s", max_in_flight=2)
            await engine.start()
            for n in range(20, 40):
                await engine.enqueue(numbered_job(n))
            await engine.aclose(detach=True)

        run_virtual(drain())
        assert set(ledger_states(tmp_path).values()) == {"succeeded"}
        run_virtual(detach())
        assert len(gateway.charged) < 30
        run_virtual(drain())
        assert set(ledger_states(tmp_path).values()) == {"succeeded"}
        assert len(ledger_states(tmp_path)) == len(gateway.charged) == len(rows_by_id(tmp_path)) == 40


class TestStream:
    def test_ordered(self, tmp_path: Path) -> None:
        """An ordered stream yields outcomes in the order of its jobs, whichever end first."""
        gateway = ScriptedGateway()
        gateway.poll_script["image 0"] = [*[PollFailed("HTTP 500", 500)] * 4, FINISH]

        async def main(*, ordered: bool, prefix: int) -> list[str]:
            async def some() -> AsyncIterator[Job]:
                for n in range(prefix, prefix + 8):
                    yield numbered_job(n)

            async with make_engine(tmp_path / str(prefix), gateway, max_in_flight=3) as engine:
                return [outcome.id async for outcome in engine.stream(some(), ordered=ordered)]

        assert run_virtual(main(ordered=True, prefix=0)) == [f"job-{n}" for n in range(8)]
        gateway.poll_script["image 100"] = [*[PollFailed("HTTP 500", 500)] * 4, FINISH]
        unordered = run_virtual(main(ordered=False, prefix=100))
        assert sorted(unordered) == sorted(f"job-{n}" for n in range(100, 108))
        assert unordered[0] != "job-100"

    @pytest.mark.parametrize("end", ["stop", "abort", "aclose", "detach"])
    def test_a_source_that_is_idle(self, tmp_path: Path, end: str) -> None:
        """A stream with an idle source ends with RunStopped when the engine ends, after the jobs in flight."""

        async def idle_source() -> AsyncIterator[Job]:
            for n in range(3):
                yield numbered_job(n)
            await asyncio.sleep(1e9)

        async def main() -> list[str]:
            engine, found = make_engine(tmp_path, ScriptedGateway()), list[str]()
            await engine.start()

            async def read() -> None:
                async for outcome in engine.stream(idle_source()):
                    found.append(outcome.id)

            reading = asyncio.create_task(read())
            await asyncio.sleep(100.0 if end == "aclose" else 1.0)
            if end in {"stop", "abort"}:
                getattr(engine, end)()
                with pytest.raises(RunStopped):
                    await reading
                await engine.aclose()
            else:
                await engine.aclose(detach=end == "detach")
                with pytest.raises(RunStopped):
                    await reading
            return found

        found = run_virtual(main())
        assert found == ([] if end in ("abort", "detach") else ["job-0", "job-1", "job-2"])


class TestTenants:
    @pytest.mark.parametrize("bound", [{"rate": "20/s"}, {"rate": "1000/s", "max_in_flight": 20}])
    def test_none_starves(self, tmp_path: Path, bound: dict[str, Any]) -> None:
        """Beside a tenant with 2,000 jobs, nine with ten jobs each need at most twice the time they need alone."""

        async def run_small_tenants(engine: Engine) -> float:
            loop = asyncio.get_running_loop()
            started_s = loop.time()
            await asyncio.gather(
                *(
                    engine.generate(Job(prompt=f"{tenant} {n}"), tenant=tenant)
                    for tenant in "bcdefghij"
                    for n in range(10)
                )
            )
            return loop.time() - started_s

        async def run_alone() -> float:
            async with make_engine(tmp_path / "alone", ScriptedGateway(), **bound) as engine:
                return await run_small_tenants(engine)

        async def run_beside_large_tenant() -> float:
            engine = make_engine(tmp_path / "beside", ScriptedGateway(), **bound)
            await engine.start()
            for n in range(2000):
                await engine.enqueue(Job(prompt=f"a {n}"), tenant="a")
            took_s = await run_small_tenants(engine)
            assert engine.stats().jobs_queued > 1000
            await engine.aclose(detach=True)
            return took_s

        assert run_virtual(run_beside_large_tenant()) <= 2 * run_virtual(run_alone())

    def test_fairness_survives_a_restart(self, tmp_path: Path) -> None:
        """Jobs that an earlier run left waiting take turns with new ones."""
        gateway = ScriptedGateway()

        async def detach() -> None:
            engine = make_engine(tmp_path, gateway, rate="1/s")
            await engine.start()
            for n in range(200):
                await engine.enqueue(numbered_job(n), tenant="ann")
            await engine.aclose(detach=True)

        async def resume() -> None:
            engine = make_engine(tmp_path, gateway, rate="1/s")
            await engine.start()
            await engine.generate(numbered_job("new"), tenant="bob")
            assert len(gateway.charged) < 60
            await engine.aclose(detach=True)

        run_virtual(detach())
        run_virtual(resume())


class TestSharedRateLimiter:
    @pytest.mark.parametrize("engine_makes_it", [True, False], ids=["made by an engine", "made by the caller"])
    def test_two_engines_keep_one_limit(self, tmp_path: Path, *, engine_makes_it: bool) -> None:
        """Engines that share a rate limiter keep its rate together, use all of it, and take turns."""
        one, other = ScriptedGateway(), ScriptedGateway()

        async def main() -> None:
            if engine_makes_it:
                first = make_engine(tmp_path / "a", one, rate="20/s")
            else:
                first = make_engine(tmp_path / "a", one, rate_limiter=RateLimiter("20/s"))
            second = make_engine(tmp_path / "b", other, rate_limiter=first.rate_limiter)
            async with first, second:
                await asyncio.gather(
                    first.run([numbered_job(n) for n in range(100)]),
                    second.run([numbered_job(n) for n in range(100)]),
                )

        run_virtual(main())
        times_s = sorted(one.submit_times_s + other.submit_times_s)
        assert max_in_window(times_s) <= 21
        assert 200 / (times_s[-1] - times_s[0]) >= 0.95 * 20
        half = times_s[100]
        assert abs(sum(at_s < half for at_s in one.submit_times_s) - 50) <= 5

    def test_a_429_to_one_engine_pauses_all(self, tmp_path: Path) -> None:
        """A 429 for one engine pauses the submits of the other."""
        one, other = ScriptedGateway(), ScriptedGateway()
        one.submit_script["image 0"] = [Refused(Refusal.RATE_LIMITED, 429, "slow down", 20.0), ACCEPT]

        async def main() -> None:
            limiter = RateLimiter("10/s")
            first, second = (
                make_engine(tmp_path / name, gateway, rate_limiter=limiter)
                for name, gateway in (("a", one), ("b", other))
            )
            async with first, second:
                started_s = asyncio.get_running_loop().time()
                await asyncio.gather(
                    first.generate(numbered_job(0)), second.run([numbered_job(n) for n in range(30)])
                )
                paused_submits = [at_s - started_s for at_s in other.submit_times_s if 1 < at_s - started_s < 20]
                assert paused_submits == []

        run_virtual(main())

    def test_a_rate_beside_a_rate_limiter(self, tmp_path: Path) -> None:
        """An engine accepts a rate or a rate limiter, not both."""
        with pytest.raises(SettingsError, match="rate_limiter"):
            make_engine(tmp_path, ScriptedGateway(), rate_limiter=RateLimiter("1/s"), rate="2/s")

    def test_a_rate_limiter_of_another_loop(self, tmp_path: Path) -> None:
        """A rate limiter is bound to one event loop; using it on another is a SettingsError."""
        limiter = RateLimiter("100/s")

        async def main() -> None:
            async with make_engine(tmp_path, ScriptedGateway(), rate_limiter=limiter) as engine:
                await engine.generate(Job(prompt="a cat"))

        run_virtual(main())
        with pytest.raises(SettingsError, match="loop"):
            run_virtual(main())


def test_an_ambiguous_end_is_an_end(tmp_path: Path) -> None:
    """submit returns a handle in state `ambiguous` if it is unknown whether the gateway accepted the job."""
    gateway = ScriptedGateway()
    gateway.submit_script["image 1"] = [Ambiguous("cut")]

    async def main() -> None:
        async with make_engine(tmp_path, gateway) as engine:
            handle = await engine.submit(numbered_job(1))
            assert handle.status is State.AMBIGUOUS
            assert handle.request_id is None
            assert (await handle).status is State.AMBIGUOUS

    run_virtual(main())


async def _read_events(handle: Any) -> list[Event]:
    return [event async for event in handle]
