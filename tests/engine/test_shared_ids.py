"""Test callers that use one id at the same time: they get one job, which is charged once, or JobError."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from random import Random
from typing import Any

import orjson
import pytest

from krea_batch import Engine, Event, InputError, Job, JobError, Outcome, RunStopped, State, StateChanged
from krea_batch.rules.verdicts import Ambiguous, Errored, PostVerdict, Refusal, Refused
from krea_batch.testing import ACCEPT, FINISH, ScriptedGateway, run_virtual
from tests.engine_fixtures import ledger_states

pytestmark = pytest.mark.slow

REJECTED = Refused(Refusal.REJECTED, 400, "no")
TICK_S = 3e-6  # three steps of the virtual clock, each of which is one iteration of the event loop
STEPS = 42  # more than it takes from the call to the end of a job that is rejected
MAX_STEPS_TO_TAKE_AN_ID = 10  # it may take the second call fewer steps than the first

Call = Callable[[Engine, Job], Coroutine[Any, Any, Outcome]]


async def run(engine: Engine, job: Job) -> Outcome:
    return await run_among(engine, [job], job.id)


async def run_among(engine: Engine, jobs: Iterable[Job], job_id: str) -> Outcome:
    await engine.run(jobs)
    handle = await engine.get(job_id)
    if handle is None:
        raise engine.stopped or AssertionError(f"run returned without {job_id}")
    return await handle


async def run_last(engine: Engine, job: Job) -> Outcome:
    """Run the job as the last of a batch, which waits for free slots."""
    first = [Job(prompt=f"before {job.id}", id=f"{job.id}-{n}") for n in range(3)]
    return await run_among(engine, [*first, job], job.id)


async def submit(engine: Engine, job: Job) -> Outcome:
    return await (await engine.submit(job))


async def enqueue(engine: Engine, job: Job) -> Outcome:
    return await (await engine.enqueue(job))


async def generate(engine: Engine, job: Job) -> Outcome:
    return await engine.generate(job)


async def stream(engine: Engine, job: Job) -> Outcome:
    [outcome] = [outcome async for outcome in engine.stream([job])]
    return outcome


CALLS: list[Call] = [run, run_last, submit, enqueue, generate, stream]
PAIRS = [(run, submit), (submit, run)] + [
    (first, second) for first in CALLS for second in CALLS if run_last in (first, second)
]


class QuickGateway(ScriptedGateway):
    """Answers within a few steps. It rejects the prompts that contain "bad"."""

    def __init__(self) -> None:
        super().__init__()
        self.submit_duration_s = TICK_S

    async def submit(self, body: bytes, **options: Any) -> PostVerdict:
        prompt = orjson.loads(body)["prompt"]
        if "bad" in prompt:
            self.submit_script[prompt] = [REJECTED]
        self.poll_script[prompt] = [FINISH]
        return await super().submit(body, **options)


def open_engine(out: Path, gateway: ScriptedGateway, **options: Any) -> Engine:
    return Engine(out, gateway_client=gateway, random=Random(0), max_identical_failures=0, **options)


async def steps(count: int) -> None:
    """Wait for some iterations of the event loop."""
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_the_same_request(tmp_path: Path, first: Call, second: Call) -> None:
    """Two callers of one request get the same outcome of one POST, however many steps the second is behind."""
    gateway = QuickGateway()

    async def main() -> None:
        async with open_engine(tmp_path, gateway, rate="10000/s", max_in_flight=3) as engine:
            for behind in range(STEPS):
                is_bad = behind % 3 == 0
                job = Job(prompt=f"{'bad' if is_bad else 'good'} {behind}", id=f"x{behind}")
                earlier = asyncio.create_task(first(engine, job))
                await steps(behind)
                outcome = await second(engine, job)
                assert outcome == await earlier
                assert outcome.status is (State.REJECTED if is_bad else State.SUCCEEDED)
                assert gateway.submitted_prompts.count(job.prompt) == 1

    run_virtual(main(), thread_duration_s=lambda: TICK_S)


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_different_requests(tmp_path: Path, first: Call, second: Call) -> None:
    """Of two different requests with one id, the later is a JobError and is not sent; the engine goes on."""
    gateway = QuickGateway()

    async def main() -> None:
        async with open_engine(tmp_path, gateway, rate="10000/s", max_in_flight=3) as engine:
            for behind in range(STEPS):
                prompt = f"{'bad' if behind % 3 == 0 else 'good'} {behind}"
                jobs = [Job(prompt=f"{prompt} {n}", id=f"x{behind}") for n in range(2)]
                earlier = asyncio.create_task(first(engine, jobs[0]))
                await steps(behind)
                later = asyncio.create_task(second(engine, jobs[1]))
                ends = await asyncio.gather(earlier, later, return_exceptions=True)
                [refused] = [n for n, end in enumerate(ends) if isinstance(end, JobError)]
                if behind > MAX_STEPS_TO_TAKE_AN_ID:
                    assert refused == 1
                outcome = ends[1 - refused]
                assert isinstance(outcome, Outcome)
                assert outcome.request["prompt"] == jobs[1 - refused].prompt
                assert gateway.submitted_prompts.count(jobs[refused].prompt) == 0
                assert gateway.submitted_prompts.count(jobs[1 - refused].prompt) == 1

    run_virtual(main(), thread_duration_s=lambda: TICK_S)


SCRIPTS: list[tuple[list[Any], list[Any]]] = [
    ([ACCEPT], [FINISH]),
    ([REJECTED], []),
    ([Ambiguous("cut")], []),
    ([Refused(Refusal.RETRYABLE, 500, "later"), ACCEPT], [FINISH]),
    ([ACCEPT], [Errored("oops"), FINISH]),
]
"""The answers to the POSTs of a prompt, and to its polls."""


class RandomCallers:
    """Callers of a few ids, most with the same requests, by any method and at any time; some are cancelled."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self.jobs = [Job(prompt=f"{job_id} {variant}", id=job_id) for job_id in "abc" for variant in range(2)]
        self.called: list[Job] = []
        self.ends: list[tuple[Job, Outcome | BaseException]] = []

    async def call(self, engine: Engine) -> None:
        random = self._random
        job = random.choice(self.jobs if random.random() < 0.2 else self.jobs[::2])
        await asyncio.sleep(random.choice([0.0, 0.0, random.random(), 20 * random.random()]))
        await steps(random.randrange(20))
        self.called.append(job)
        task = asyncio.create_task(random.choice(CALLS)(engine, job))
        if random.random() < 0.3:
            await asyncio.wait([task], timeout=5 * random.random() ** 2)
            task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            self.ends.append((job, task.exception() or task.result()))


@pytest.mark.parametrize("is_closed", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_random_callers(tmp_path: Path, seed: int, is_closed: bool) -> None:
    """An id is one job and is charged once, by any method, at any time, whether callers are cancelled or not.

    With `is_closed`, the engine is closed at a random time, and another one resumes.
    """
    random, gateway = Random(seed), ScriptedGateway()
    callers = RandomCallers(random)
    for job in callers.jobs:
        posts, polls = random.choice(SCRIPTS)
        gateway.submit_script[job.prompt], gateway.poll_script[job.prompt] = [*posts], [*polls]

    async def main() -> None:
        async with open_engine(tmp_path, gateway, rate="2/s", max_in_flight=2) as engine:
            calls = asyncio.gather(*(callers.call(engine) for _ in range(16)))
            if is_closed:
                await asyncio.sleep(20 * random.random() ** 2)
                await engine.aclose(detach=random.random() < 0.5)
            await calls
        async with open_engine(tmp_path, gateway):
            pass

    run_virtual(main(), thread_duration_s=lambda: random.random() * random.choice([1e-5, 0.02]))
    sent = {job.id: job.prompt for job in callers.jobs if job.prompt in gateway.submitted_prompts}
    assert set(gateway.submitted_prompts) & {job.prompt for job in callers.jobs} == set(sent.values())
    outcomes: dict[str, Outcome] = {}
    for job, end in callers.ends:
        match end:
            case Outcome():
                assert outcomes.setdefault(job.id, end) == end
                assert end.request["prompt"] == job.prompt == sent[job.id]
            case JobError():
                assert any(other.prompt != job.prompt for other in callers.called if other.id == job.id)
            case error:
                assert is_closed
                assert isinstance(error, RunStopped)
    for prompt in sent.values():
        errors = prompt in gateway.charged.values() and gateway.poll_script.remaining(prompt) == 1
        assert list(gateway.charged.values()).count(prompt) <= 1 + errors
    assert all(State(state).info.final for state in ledger_states(tmp_path).values())


def test_on_a_real_event_loop(tmp_path: Path) -> None:
    """A run and callers of all its ids, in another order, charge each job once."""
    gateway = QuickGateway()
    jobs = [Job(prompt=f"image {n}", id=f"x{n}") for n in range(60)]

    async def main() -> None:
        async with open_engine(tmp_path, gateway, rate="10000/s", max_in_flight=10, poll_interval_s=0.01) as engine:
            running = asyncio.create_task(engine.run(jobs))
            outcomes = await asyncio.gather(*map(engine.generate, [*reversed(jobs), *jobs]))
            await running
            assert all(outcome.succeeded for outcome in outcomes)

    asyncio.run(main())
    assert sorted(gateway.submitted_prompts) == sorted(job.prompt for job in jobs)


def test_a_run_that_is_cancelled(tmp_path: Path) -> None:
    """Jobs of a cancelled run for which other callers wait are completed; the others are not submitted."""
    gateway = ScriptedGateway()
    jobs = [Job(prompt=f"image {n}", id=f"x{n}") for n in range(5)]

    async def main() -> None:
        async with open_engine(tmp_path, gateway, max_in_flight=1) as engine:
            running = asyncio.create_task(engine.run(jobs))
            await asyncio.sleep(1.0)
            waiting = asyncio.create_task(engine.submit(jobs[3]))
            await asyncio.sleep(1.0)
            running.cancel()
            handle = await waiting
            assert (await handle).succeeded
            with pytest.raises(asyncio.CancelledError):
                await running
            assert await engine.get("x1") is None
            changed = Job(prompt="another", id="x2")
            assert (await engine.generate(changed)).succeeded

    run_virtual(main())
    assert gateway.submitted_prompts == ["image 0", "image 3", "another"]


@pytest.mark.parametrize("call", [run, submit, enqueue, generate, stream])
def test_calls_during_the_start(tmp_path: Path, call: Call) -> None:
    """A call while the engine starts is refused, or finds the job that is about to be resumed."""
    gateway = ScriptedGateway()
    job = Job(prompt="a", id="x")

    async def leave(out: Path) -> None:
        engine = open_engine(out, gateway, rate="1/h")
        await engine.start()
        await engine.enqueue(Job(prompt="before", id="before"))
        await engine.enqueue(job)
        await engine.aclose(detach=True)

    async def resume(out: Path, behind: int) -> bool:
        engine = open_engine(out, gateway)
        starting = asyncio.create_task(engine.start())
        await steps(behind)
        try:
            outcome = await call(engine, job)
        except InputError:
            return False
        finally:
            await starting
            await engine.aclose()
        assert outcome.succeeded
        return True

    calls = 0
    for behind in range(0, 80, 4):
        run_virtual(leave(tmp_path / str(behind)), thread_duration_s=lambda: TICK_S)
        calls += run_virtual(resume(tmp_path / str(behind), behind), thread_duration_s=lambda: TICK_S)
    assert 0 < calls < 20
    assert gateway.submitted_prompts.count("a") == 20


@pytest.mark.parametrize("call", [submit, enqueue, generate])
def test_closing_at_every_step_of_a_call(tmp_path: Path, call: Call) -> None:
    """A job whose caller came before `aclose` is completed, or the caller gets RunStopped and nothing is sent."""
    gateway = QuickGateway()
    ends = []

    async def main(behind: int) -> Outcome | BaseException:
        engine = open_engine(tmp_path / str(behind), gateway)
        await engine.start()
        calling = asyncio.create_task(call(engine, Job(prompt=f"good {behind}", id="x")))
        await steps(behind)
        await engine.aclose()
        [end] = await asyncio.gather(calling, return_exceptions=True)
        assert len(asyncio.all_tasks()) == 1
        return end

    for behind in range(STEPS):
        end = run_virtual(main(behind), thread_duration_s=lambda: TICK_S)
        assert isinstance(end, RunStopped) or (isinstance(end, Outcome) and end.succeeded)
        assert isinstance(end, Outcome) == (f"good {behind}" in gateway.submitted_prompts)
        ends.append(end)
    assert isinstance(ends[-1], Outcome)


@pytest.mark.parametrize("after_ms", range(0, 9000, 200))
def test_a_state_that_changes_during_get(tmp_path: Path, after_ms: int) -> None:
    """A handle has the state of the latest event, even if the ledger was read before that."""
    gateway = ScriptedGateway()
    gateway.submit_duration_s = 0.3
    gateway.poll_script["a"] = [FINISH]
    states: list[State] = []

    def on_event(event: Event) -> None:
        if isinstance(event, StateChanged):
            states.append(event.new)

    async def main() -> None:
        async with open_engine(tmp_path, gateway, listeners=[on_event]) as engine:
            running = asyncio.create_task(engine.run([Job(prompt="a", id="x")]))
            await asyncio.sleep(after_ms / 1000)
            handle = await engine.get("x")
            if states and handle:
                assert handle.status is states[-1]
                assert (handle.request_id is None) is (states[-1] is State.SUBMITTING)
            await running

    run_virtual(main(), thread_duration_s=lambda: 0.4)
