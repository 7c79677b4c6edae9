"""Run jobs from a script or a notebook, without asyncio.

    outcomes = krea_batch.run(["a cat", "a dog"], out="runs/cats")

The engine runs on an event loop of its own, in a thread: a notebook has a running loop in the main thread. The main
thread only waits, so it receives Ctrl-C.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, wait
from typing import Concatenate, ParamSpec, TypeVar

import msgspec
from anyio.from_thread import BlockingPortal

from krea_batch.engine.engine import Engine
from krea_batch.engine.event_loop import loop_in_thread
from krea_batch.engine.signal_receiver import INTERRUPT_REASON
from krea_batch.errors import InputError, JobError
from krea_batch.gateway import wire
from krea_batch.jobs import Job, Outcome, validate_job

P = ParamSpec("P")
T = TypeVar("T")
Jobs = Iterable[Job | str]

ID_DIGITS = 16  # chosen: 64 bits; two requests are very unlikely to get equal ids, which would be an error


def _with_parameters_of(
    create: Callable[P, Engine],
) -> Callable[[Callable[..., T]], Callable[Concatenate[Jobs, P], T]]:
    """Give a function the parameters of `Engine` after `jobs`, for type checkers, `help` and tab completion."""

    def decorate(function: Callable[..., T]) -> Callable[Concatenate[Jobs, P], T]:
        own, engine = inspect.signature(function), inspect.signature(create)
        parameters = [own.parameters["jobs"], *engine.parameters.values()]
        function.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        return function

    return decorate


@_with_parameters_of(Engine)
def run(jobs: Jobs, *args: object, **settings: object) -> list[Outcome]:
    """Generate the images of all jobs, and return their outcomes in the order of `jobs`.

    A job is a `Job` or a prompt. All other parameters are those of `Engine`; `out` is the run directory. Every job is
    checked before anything is charged. A job without an id gets one that depends on its request only, so the same
    call does not pay again: it resumes what was stopped, and returns the outcomes of what has ended. Equal jobs of
    one call get an image each.

    The engine runs in a thread of its own, so this also works where an event loop is running, as in notebooks. After
    Ctrl-C (KeyboardInterrupt), nothing more is submitted, the jobs in flight are completed, and KeyboardInterrupt is
    raised. A second Ctrl-C stops immediately. In both cases, the same call resumes.

    Raises what `Engine` and its `stream` raise: InputError and its subclasses JobError, SettingsError and
    RunDirError, RunStopped, LedgerError. A failed job raises nothing: check `Outcome.succeeded`.
    """
    checked = list_jobs(jobs)
    engine = Engine(*args, **settings)  # type: ignore[arg-type]  # checked by _with_parameters_of
    with loop_in_thread() as portal:
        return _wait(portal, engine, portal.start_task_soon(_outcomes, engine, checked))


async def _outcomes(engine: Engine, jobs: list[Job]) -> list[Outcome]:
    async with engine:
        return [outcome async for outcome in engine.stream(jobs, ordered=True)]


def _wait(portal: BlockingPortal, engine: Engine, future: Future[list[Outcome]]) -> list[Outcome]:
    """Wait for the outcomes. Ctrl-C stops the run, and is raised when it has ended."""
    interrupts = handled = 0
    while True:
        try:
            while handled < interrupts:
                handled += 1
                portal.start_task_soon(_stop, engine, handled > 1)
            wait([future])
            break
        except KeyboardInterrupt:  # also while an earlier one is handled
            interrupts += 1
    if interrupts:
        raise KeyboardInterrupt from future.exception()
    return future.result()


def _stop(engine: Engine, immediately: bool) -> None:
    try:
        engine.abort(INTERRUPT_REASON) if immediately else engine.stop(INTERRUPT_REASON)
    except InputError:  # It has not started yet.
        engine.abort(INTERRUPT_REASON)


def list_jobs(jobs: Jobs) -> list[Job]:
    """Return the jobs as they are submitted, each with an id. Raises JobError for one that is not valid.

    A job without an id gets the beginning of its request's fingerprint; equal ones that follow get "-2", "-3" ….
    Raises InputError for a single text, which would be one job per character.
    """
    if isinstance(jobs, (str, bytes, Mapping)):
        raise InputError(
            f"jobs is a {type(jobs).__name__}, not a list of jobs", 'pass a list: run(["a red kite"], …)'
        )
    fingerprints: dict[str, bytes] = {}
    repeats = Counter[bytes]()
    listed = []
    for position, given in enumerate(jobs):
        job = _validate(position, given)
        fingerprint = wire.fingerprint(job)
        if not job.id:
            repeats[fingerprint] += 1
            repeat = f"-{repeats[fingerprint]}" if repeats[fingerprint] > 1 else ""
            job = msgspec.structs.replace(job, id=fingerprint.hex()[:ID_DIGITS] + repeat)
        if fingerprints.setdefault(job.id, fingerprint) != fingerprint:
            problem = f"jobs[{position}]: an earlier job of the list has this id, and another request"
            raise JobError(problem, "give each job an id of its own", job_id=job.id)
        listed.append(job)
    return listed


def _validate(position: int, given: Job | str) -> Job:
    """Return a valid job, which may have no id."""
    try:
        return validate_job(given if isinstance(given, Job) else Job(prompt=given))
    except JobError as error:
        raise JobError(f"jobs[{position}]: {error.problem}", error.hint, job_id=error.job_id) from None
    except (TypeError, ValueError) as error:
        raise JobError(f"jobs[{position}]: {error}", "a job is a Job or the text of a prompt") from None
