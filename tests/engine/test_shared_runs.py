"""Several engines work on one run directory. Each job is charged once, whichever engine submits it."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, closing, suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest

from krea_batch import Engine, Job, JobError, RunDirError, RunStopped
from krea_batch.errors import FencedError
from krea_batch.jobs import State
from krea_batch.ledger import Ledger
from krea_batch.ledger.sqlite import SqliteLedger
from krea_batch.pipeline.shared_rate_limiter import SharedRateLimiter
from krea_batch.rules.lease import LEASE_S
from krea_batch.rules.rate_log import Answered, Event, Late, RateLog, Restart, Taken, Unused
from krea_batch.rules.verdicts import Ambiguous, PollFailed, Refusal, Refused
from krea_batch.storage.run_dir import LEDGER
from krea_batch.testing import ACCEPT, ScriptedGateway, run_virtual
from tests.engine_fixtures import ledger_states, make_jobs, query_ledger, result_statuses
from tests.window_stats import max_in_window

PAUSE_S = 5.0
RATE_LIMITED = Refused(Refusal.RATE_LIMITED, 429, "slow down", PAUSE_S)
UNAVAILABLE = Refused(Refusal.RETRYABLE, 503, "unavailable")


def open_engine(out: Path, gateway: ScriptedGateway, **options: Any) -> Engine:
    return Engine(out, gateway_client=gateway, shared=True, **options)


def change_ledger(out: Path, operation: Callable[[Ledger], Any]) -> Any:
    """Change the ledger as another process would."""
    with closing(SqliteLedger.open(out / LEDGER)) as ledger:
        return ledger.transaction(operation)


def fence(out: Path, run_no: int) -> None:
    """Let another process take a run for dead."""
    assert change_ledger(
        out, lambda ledger: ledger.fence(run_no, {run.run_no: run.beat for run in ledger.live_runs()}[run_no])
    )


def limiter_of(engine: Engine) -> SharedRateLimiter:
    assert engine._run
    limiter = engine._run.context.rate_limiter
    assert isinstance(limiter, SharedRateLimiter)
    return limiter


def run_two(
    out: Path,
    gateway: ScriptedGateway,
    main: Callable[[Engine, Engine], Awaitable[None]],
    *,
    thread_duration_s: Callable[[], float] | None = None,
    **options: Any,
) -> None:
    """Run `main` with two engines that share a run directory."""

    async def run() -> None:
        async with AsyncExitStack() as stack:
            engines = [await stack.enter_async_context(open_engine(out, gateway, **options)) for _ in range(2)]
            await main(*engines)

    run_virtual(run(), thread_duration_s)


def test_two_runs_of_one_file_share_its_jobs(tmp_path: Path) -> None:
    """Both wait until all jobs have ended. Each job is charged once, and both have submitted some."""
    gateway = ScriptedGateway()

    async def run_both(one: Engine, two: Engine) -> None:
        await asyncio.gather(one.run(make_jobs(60)), two.run(make_jobs(60)))
        assert ledger_states(tmp_path) == dict.fromkeys((f"j{n}" for n in range(60)), "succeeded")

    run_two(tmp_path, gateway, run_both, rate="5/s")
    assert Counter(gateway.charged.values()) == Counter(f"j{n}" for n in range(60))
    per_run = dict(query_ledger(tmp_path, "SELECT run_no, count(*) FROM submissions GROUP BY run_no"))
    assert set(per_run) == {1, 2}
    assert min(per_run.values()) >= 20
    assert result_statuses(tmp_path) == dict.fromkeys((f"j{n}" for n in range(60)), "succeeded")


def test_two_runs_share_a_quota_for_submits_and_polls(tmp_path: Path) -> None:
    """Polls count against the shared rate as well, so no second has more requests of both runs than it allows."""
    gateway = ScriptedGateway()

    async def run_both(one: Engine, two: Engine) -> None:
        await asyncio.gather(one.run(make_jobs(60)), two.run(make_jobs(60)))

    run_two(tmp_path, gateway, run_both, rate="10/s", shared_quota=True)
    polls_s = [at_s for times_s in gateway.poll_times_s.values() for at_s in times_s]
    assert len(gateway.submit_times_s) == 60
    assert max_in_window(sorted([*gateway.submit_times_s, *polls_s])) <= 10
    assert result_statuses(tmp_path) == dict.fromkeys((f"j{n}" for n in range(60)), "succeeded")


def test_two_callers_of_one_job(tmp_path: Path) -> None:
    """If two engines are asked for the same job, one submits it, and both get its outcome."""
    gateway = ScriptedGateway()

    async def generate_twice(one: Engine, two: Engine) -> None:
        job = Job(prompt="a fox", id="fox")
        outcomes = await asyncio.gather(one.generate(job), two.generate(job))
        assert [outcome.status for outcome in outcomes] == ["succeeded", "succeeded"]
        assert outcomes[0].files == outcomes[1].files
        handle = await two.submit(job)
        assert (await handle).request_id == outcomes[0].request_id

    run_two(tmp_path, gateway, generate_twice)
    assert list(gateway.charged.values()) == ["a fox"]


def test_a_handle_on_a_job_of_another_engine_is_up_to_date(tmp_path: Path) -> None:
    """Once a job has ended, every engine says so, also one that looked at it before, without a delay."""
    gateway = ScriptedGateway()

    async def look(one: Engine, two: Engine) -> None:
        submitted = await one.submit(Job(prompt="a fox", id="fox"))
        before = await two.get("fox")
        assert before
        assert before.status is State.ACCEPTED
        await submitted
        after = await two.get("fox")
        assert after
        assert (after.status, after.outcome) == (State.SUCCEEDED, submitted.outcome)
        assert (await before).succeeded

    run_two(tmp_path, gateway, look)


def test_another_request_under_the_same_id(tmp_path: Path) -> None:
    """An id that another engine has for another request is refused, and the other request is not sent."""
    gateway = ScriptedGateway()

    async def generate_both(one: Engine, two: Engine) -> None:
        first = await one.submit(Job(prompt="a fox", id="x"))
        with pytest.raises(JobError, match="has changed"):
            await two.submit(Job(prompt="a hen", id="x"))
        await first

    run_two(tmp_path, gateway, generate_both)
    assert list(gateway.charged.values()) == ["a fox"]


def test_jobs_left_by_an_engine_are_taken_over(tmp_path: Path) -> None:
    """An engine that closes without waiting leaves its jobs to the other one, which polls and stores them."""
    gateway = ScriptedGateway()

    async def leave(one: Engine, two: Engine) -> None:
        for job in make_jobs(5):
            await one.submit(job)
        await one.aclose(detach=True)
        await asyncio.sleep(60)
        assert set(ledger_states(tmp_path).values()) == {"succeeded"}
        assert two.stats().succeeded == 5

    run_two(tmp_path, gateway, leave)
    assert len(gateway.charged) == 5


def test_the_jobs_of_a_fenced_engine_are_taken_over(tmp_path: Path) -> None:
    """Callers of an engine that was taken for dead get FencedError. The other one completes its jobs.

    The engine starts again by itself: with the same ids, its callers get the outcomes, and nothing is charged again.
    """
    gateway = ScriptedGateway()

    async def run() -> None:
        async with open_engine(tmp_path, gateway) as one, open_engine(tmp_path, gateway) as two:
            handles = [await one.submit(job) for job in make_jobs(5)]
            fence(tmp_path, 1)
            with pytest.raises(FencedError, match="start it again"):
                await handles[0]
            again = await asyncio.gather(*(one.generate(job) for job in make_jobs(6)))
            assert {outcome.status for outcome in again} == {State.SUCCEEDED}
            assert {(await two.generate(job)).status for job in make_jobs(6)} == {State.SUCCEEDED}

    run_virtual(run())
    assert len(gateway.charged) == 6
    assert query_ledger(tmp_path, "SELECT run_no, fenced FROM runs") == [(1, 1), (2, 0), (3, 0)]


async def start_with_a_job(out: Path, gateway: ScriptedGateway) -> Engine:
    engine = open_engine(out, gateway)
    await engine.start()
    await engine.submit(make_jobs(1)[0])
    return engine


def test_an_engine_that_is_fenced_after_it_was_stopped(tmp_path: Path) -> None:
    """An engine that was asked to stop does not start again, since it would then submit jobs."""
    gateway = ScriptedGateway()

    async def run() -> None:
        async with open_engine(tmp_path, gateway) as two:
            one = await start_with_a_job(tmp_path, gateway)
            one.stop()
            fence(tmp_path, 2)
            with pytest.raises(FencedError):
                await one.aclose()
            assert (await two.generate(make_jobs(1)[0])).status is State.SUCCEEDED

    run_virtual(run())
    assert query_ledger(tmp_path, "SELECT count(*) FROM runs") == [(2,)]


def test_an_engine_that_is_fenced_while_it_closes(tmp_path: Path) -> None:
    """An engine that is closing does not start again: `aclose` raises FencedError."""
    gateway = ScriptedGateway()

    async def run() -> None:
        async with open_engine(tmp_path, gateway) as two:
            one = await start_with_a_job(tmp_path, gateway)
            closing = asyncio.create_task(one.aclose())
            await asyncio.sleep(0.1)
            fence(tmp_path, 2)
            with pytest.raises(FencedError):
                await closing
            assert (await two.generate(make_jobs(1)[0])).status is State.SUCCEEDED

    run_virtual(run())
    assert len(gateway.charged) == 1


@pytest.mark.parametrize("answer", ["accepted", "refused"])
def test_the_answer_to_a_post_of_a_fenced_engine(tmp_path: Path, answer: str) -> None:
    """A POST outlives the fence. Its request_id is recorded, or its job is submitted by the other engine."""
    gateway = ScriptedGateway()
    gateway.submit_script["j0"] = [(20.0, ACCEPT if answer == "accepted" else UNAVAILABLE), ACCEPT]

    async def run() -> None:
        one, two = open_engine(tmp_path, gateway), open_engine(tmp_path, gateway)
        await one.start()
        await two.start()
        await one.enqueue(make_jobs(1)[0])
        await asyncio.sleep(1.0)
        fence(tmp_path, 1)
        await asyncio.sleep(3.0)
        assert ledger_states(tmp_path) == {"j0": "ambiguous"}
        await asyncio.sleep(80.0)
        assert ledger_states(tmp_path) == {"j0": "succeeded"}
        await one.aclose()
        await two.aclose()

    run_virtual(run())
    assert list(gateway.charged.values()) == ["j0"]
    assert len(gateway.submitted_prompts) == (1 if answer == "accepted" else 2)


def test_an_answer_to_a_fenced_engine_that_names_another_jobs_request(tmp_path: Path) -> None:
    """If the proven request_id is one of another job, the job stays ambiguous, and its error names all candidates."""
    gateway = ScriptedGateway()
    names_two = Ambiguous("two ids", b"{", ("krea-2-large-text-to-image_00000000", "krea_own"))
    gateway.submit_script["j0"] = [(20.0, names_two)]

    async def run() -> None:
        one, two = open_engine(tmp_path, gateway), open_engine(tmp_path, gateway)
        await one.start()
        await two.start()
        assert (await two.generate(Job(prompt="a fox", id="fox"))).succeeded
        gateway.charged["krea_own"] = "j0"
        gateway.poll_script["j0"] = [PollFailed("not found", 404)]
        await one.enqueue(make_jobs(1)[0])
        await asyncio.sleep(1.0)
        run_no = query_ledger(tmp_path, "SELECT run_no FROM jobs WHERE job_id = 'j0'")[0][0]
        fence(tmp_path, run_no)
        await asyncio.sleep(80.0)
        await one.aclose()
        await two.aclose()

    run_virtual(run())
    assert ledger_states(tmp_path) == {"fox": "succeeded", "j0": "ambiguous"}
    ((message,),) = query_ledger(tmp_path, "SELECT error_message FROM jobs WHERE job_id = 'j0'")
    assert "its request_id may be krea-2-large-text-to-image_00000000 or krea_own" in message


def test_a_limit_of_charges_for_both(tmp_path: Path) -> None:
    """Both engines together use the limit exactly, although some POSTs are refused, which is not charged."""
    gateway = ScriptedGateway()
    for n in range(0, 60, 7):
        gateway.submit_script[f"j{n}"] = [UNAVAILABLE, ACCEPT]

    async def run_both(one: Engine, two: Engine) -> None:
        await asyncio.gather(one.run(make_jobs(60)), two.run(make_jobs(60)))
        assert isinstance(one.stopped, RunStopped) and isinstance(two.stopped, RunStopped)

    run_two(tmp_path, gateway, run_both, max_charges=25)
    assert len(gateway.charged) == 25


def test_an_engine_that_does_not_share(tmp_path: Path) -> None:
    """A directory that is shared is in use for an engine that does not share, and the other way round."""
    gateway = ScriptedGateway()

    async def start_alone_beside_shared() -> None:
        async with open_engine(tmp_path, gateway):
            with pytest.raises(RunDirError, match="another"):
                await Engine(tmp_path, gateway_client=gateway).start()

    async def share_beside_alone() -> None:
        async with Engine(tmp_path, gateway_client=gateway):
            with pytest.raises(RunDirError, match="another"):
                await open_engine(tmp_path, gateway).start()

    run_virtual(start_alone_beside_shared())
    run_virtual(share_beside_alone())


def test_nothing_is_sent_on_a_lease_that_has_lapsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that stalled between its intent and its POST does not send the POST."""
    gateway = ScriptedGateway()

    async def run() -> None:
        async with open_engine(tmp_path, gateway) as engine:
            limiter = SharedRateLimiter
            confirm = limiter.confirm

            async def stand_still(self: SharedRateLimiter) -> float | None:
                sent_s = await confirm(self)
                asyncio.get_running_loop()._clock_selector.now_s += LEASE_S  # type: ignore[attr-defined]
                monkeypatch.setattr(limiter, "confirm", confirm)
                return sent_s

            monkeypatch.setattr(limiter, "confirm", stand_still)
            outcome = await engine.generate(Job(prompt="a fox"))
            assert outcome.status is State.SUCCEEDED

    run_virtual(run())
    assert gateway.submitted_prompts == ["a fox"]
    assert query_ledger(tmp_path, "SELECT result FROM submissions") == [("not_sent",), ("accepted",)]


@pytest.mark.parametrize("commit_s", [0.0, 0.004])
def test_slots_are_exchanged_some_twenty_times_a_second(tmp_path: Path, commit_s: float) -> None:
    """Each exchange is a transaction that the other runs wait for, so a run takes many slots in one."""

    async def run() -> None:
        async with open_engine(tmp_path, ScriptedGateway(), rate="100/s", max_in_flight=2000) as engine:
            await engine.run(make_jobs(1000))

    run_virtual(run(), lambda: commit_s)
    ((exchanges,),) = query_ledger(tmp_path, "SELECT max(event_no) FROM rate_events")
    submitting_s = 1000 / 100
    assert 10 < exchanges / submitting_s < 26


@pytest.mark.parametrize("record_s", [0.1, 0.5, 1.0])
def test_a_slow_ledger(tmp_path: Path, record_s: float) -> None:
    """On a slow disk, jobs are submitted later, but nearly all of them at the first attempt."""
    gateway = ScriptedGateway()

    async def run() -> None:
        async with open_engine(tmp_path, gateway, rate="2/s") as engine:
            await engine.run(make_jobs(50))

    run_virtual(run(), lambda: record_s)
    assert len(gateway.charged) == 50
    (attempts,) = query_ledger(tmp_path, "SELECT count(*) FROM submissions")
    assert attempts[0] <= 60


@pytest.mark.parametrize("seed", range(5))
def test_a_refusal_during_an_exchange(tmp_path: Path, seed: int) -> None:
    """A run that is refused sends nothing until the pause is over, although an exchange with others is under way."""
    gateway = ScriptedGateway()
    gateway.submit_script["j9"] = [RATE_LIMITED, ACCEPT]
    random = Random(seed)

    async def run() -> None:
        async with open_engine(tmp_path, gateway, rate="20/s") as engine:
            await engine.run(make_jobs(30))

    run_virtual(run(), lambda: 0.5 * random.random())
    refused_s = gateway.submit_times_s[gateway.submitted_prompts.index("j9")] + gateway.submit_duration_s
    assert [sent_s - refused_s for sent_s in gateway.submit_times_s if 0 < sent_s - refused_s < PAUSE_S] == []
    assert len(gateway.charged) == 30


def test_slots_on_a_clock_of_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs tell each other about a slot names it as it was taken, however the comparisons of clocks vary."""
    gateway = ScriptedGateway()
    random = Random(1)
    slots_s: dict[type[Event], set[float]] = defaultdict(set)
    add = RateLog.add

    def clock_s(_: SqliteLedger) -> float:
        return asyncio.get_running_loop().time() + 1e9 + random.uniform(-0.001, 0.001)

    def watched_add(log: RateLog, event: Event) -> None:
        slots_s[type(event)].add(getattr(event, "slot_s", 0.0))
        add(log, event)

    monkeypatch.setattr(SqliteLedger, "clock_s", clock_s)
    monkeypatch.setattr(RateLog, "add", watched_add)

    async def run_both(one: Engine, two: Engine) -> None:
        await asyncio.gather(one.run(make_jobs(60)), two.run(make_jobs(60)))

    run_two(tmp_path, gateway, run_both, rate="20/s", thread_duration_s=lambda: 0.2 * random.random())
    assert len(gateway.charged) == 60
    for kind in (Answered, Late, Unused):
        assert slots_s[kind]
        assert slots_s[kind] <= slots_s[Taken]


def test_all_runs_apply_the_same_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All runs know the same about the rate, although transactions are repeated, as after a lost connection."""
    gateway = ScriptedGateway()
    random = Random(1)
    applied: dict[RateLog, list[Event]] = {}
    apply, transaction = RateLog._apply, SqliteLedger.transaction

    def watched_apply(log: RateLog, event: Event) -> None:
        applied.setdefault(log, []).append(event)
        if isinstance(event, Restart):
            applied[log] = [event]
        apply(log, event)

    def repeated_transaction(ledger: SqliteLedger, operation: Callable[[SqliteLedger], Any]) -> Any:
        def roll_back(ledger: SqliteLedger) -> None:
            operation(ledger)
            raise LookupError

        if random.random() < 0.2 and len(gateway.charged) < 60:
            with suppress(LookupError):
                transaction(ledger, roll_back)
        return transaction(ledger, operation)

    monkeypatch.setattr(RateLog, "_apply", watched_apply)
    monkeypatch.setattr(SqliteLedger, "transaction", repeated_transaction)

    async def run_both(one: Engine, two: Engine) -> None:
        await asyncio.gather(one.run(make_jobs(60)), two.run(make_jobs(60)))
        limiters = limiter_of(one), limiter_of(two)
        for limiter in (*limiters, *limiters):
            limiter._needs_exchange.set()
            await asyncio.sleep(1)
        first, second = (applied[limiter._log.rate] for limiter in limiters if limiter._log)
        assert first[: len(second)] == second[: len(first)]
        assert len(first) > 10

    run_two(tmp_path, gateway, run_both, rate="20/s")
    assert len(gateway.charged) == 60


def test_jobs_in_process_when_all_runs_start_again(tmp_path: Path) -> None:
    """If the runs start to agree on the rate again, the jobs that are in process still count."""
    gateway = ScriptedGateway()
    gateway.job_durations_s = {f"j{n}": 60.0 for n in range(5)}

    async def run() -> None:
        async with open_engine(tmp_path, gateway) as engine:
            for job in make_jobs(5):
                await engine.submit(job)
            limiter = limiter_of(engine)
            for _ in range(2):
                await asyncio.sleep(1)
                assert limiter._view.jobs_in_process == 5
                limiter.restart()

    run_virtual(run())
