"""The public API, used as a service uses it, on both event loops. mypy checks the types that callers see."""

from __future__ import annotations

import ast
import asyncio
import logging
import signal
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, assert_type

import aiohttp
import anyio
import pytest
from aiohttp import web

import krea_batch
from krea_batch import (
    Engine,
    ErrorInfo,
    Event,
    EventsDropped,
    Handle,
    ImageStyleReference,
    Job,
    JobEnded,
    JobError,
    KreaBatchError,
    Listener,
    Moodboard,
    Outcome,
    Rate,
    RateLimiter,
    RetryScheduled,
    RunStats,
    RunStopped,
    RunStopping,
    Settings,
    State,
    StateChanged,
    StoredFile,
    Style,
    SubmitsPaused,
    Webhook,
)
from krea_batch.testing import Simulator, SimulatorSettings
from tests.processes import free_port

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize(
        "anyio_backend",
        [
            pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
            pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
        ],
    ),
]


async def test_the_whole_public_api(tmp_path: Path) -> None:
    """Every public method works against the simulator and returns the type that it declares."""
    events: list[Event] = []
    listener: Listener = events.append
    async with Simulator(SimulatorSettings(latency="uniform:0.2,0.5", tiny=True)) as simulator:
        limiter = RateLimiter("200/s")
        engine = Engine(
            tmp_path / "out",
            api_key="simulated",
            gateway=simulator.gateway_url,
            rate_limiter=limiter,
            poll_interval_s=0.2,
            webhook=Webhook(listen="127.0.0.1:0"),
            listeners=[listener],
        )
        async with engine as entered:
            assert_type(entered, Engine)
            counting = asyncio.create_task(count_events(engine))
            await use_engine(engine)
            assert_type(engine.settings, Settings)
            assert_type(engine.settings.rate, Rate)
            assert_type(engine.rate_limiter, RateLimiter)
            assert engine.rate_limiter is limiter
            app: Callable[..., Awaitable[None]] = engine.callbacks_app()
            assert callable(app)
            assert callable(engine.callbacks_handler())
            await use_shared_limiter(engine, simulator.gateway_url, tmp_path / "other")
        assert (await counting)["JobEnded"] >= 12
        assert engine.stats().callbacks > 0
    assert {type(event) for event in events} >= {StateChanged, JobEnded}


async def use_engine(engine: Engine) -> None:
    style = ImageStyleReference("https://example.com/style.png", 0.5)
    moodboard = Moodboard("7f1b5b2e-2a4e-4a52-9f0e-0c9f9b6a4d11")
    job = Job(prompt="a cat", image_style_references=(style,), styles=(Style("lora", 0.8),), moodboards=(moodboard,))
    outcome = assert_type(await engine.generate(job, tenant="ann"), Outcome)
    assert_type(outcome.status, State)
    assert_type(outcome.files, tuple[StoredFile, ...])
    assert_type(outcome.error, ErrorInfo | None)
    assert outcome.succeeded
    handle = assert_type(await engine.submit(Job(prompt="a dog", id="dog")), Handle)
    assert_type(handle.request_id, str | None)
    assert_type(handle.status, State)
    assert_type(handle.outcome, Outcome | None)
    assert handle.request_id
    async for event in handle:
        assert_type(event, Event)
        match event:
            case StateChanged(job_id, _, new):
                assert_type(new, State)
                assert job_id == "dog"
            case JobEnded(ended):
                assert_type(ended, Outcome)
            case _:
                assert not isinstance(event, (RetryScheduled, SubmitsPaused, RunStopping, EventsDropped))
    assert assert_type(await handle, Outcome).succeeded
    queued = assert_type(await engine.enqueue(Job(prompt="an owl", id="owl"), tenant="bob"), Handle)
    assert (await queued).id == "owl"
    known_handle = assert_type(await engine.get("owl"), Handle | None)
    assert known_handle
    assert await engine.get("unknown") is None
    names = [outcome.id async for outcome in engine.stream(make_some_jobs(5), ordered=True, tenant="ann")]
    assert names == [f"some-{n}" for n in range(5)]
    listed = [Job(prompt=f"{n}") for n in range(5)]
    assert len([assert_type(outcome, Outcome) async for outcome in engine.stream(listed)]) == 5
    with pytest.raises(JobError):
        await engine.submit(Job(prompt="a cat", creativity="wild"))  # type: ignore[arg-type]
    assert issubclass(RunStopped, KreaBatchError)
    with pytest.raises(TypeError):
        Engine("out", no_such_setting=1)  # type: ignore[call-arg]
    assert assert_type(engine.stats(), RunStats).succeeded == 13
    assert assert_type(engine.stopped, RunStopped | None) is None
    assert (await engine.charges()).charged == 13
    assert (await engine.counts())[State.SUCCEEDED] == 13


async def use_shared_limiter(engine: Engine, gateway: str, out: Path) -> None:
    """Run a second engine on another run directory with the rate limiter of the first."""
    other = Engine(out, api_key="simulated", gateway=gateway, rate_limiter=engine.rate_limiter, poll_interval_s=0.2)
    await other.start()
    handle = await other.enqueue(Job(prompt="left behind", id="left"))
    await other.aclose(detach=True)
    with pytest.raises(RunStopped):
        await handle
    async with Engine(
        out, api_key="simulated", gateway=gateway, rate_limiter=engine.rate_limiter, poll_interval_s=0.2
    ) as resumed:
        known_handle = await resumed.get("left")
        assert known_handle
        assert (await known_handle).succeeded


async def count_events(engine: Engine) -> dict[str, int]:
    """Count the emitted events by class name."""
    counts: dict[str, int] = {}
    async for event in engine.events():
        counts[type(event).__name__] = counts.get(type(event).__name__, 0) + 1
    return counts


async def make_some_jobs(count: int) -> AsyncIterator[Job]:
    for n in range(count):
        yield Job(prompt=f"some {n}", id=f"some-{n}")


async def test_an_engine_has_no_global_side_effects(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """An engine prints nothing, handles no signals, sets up no logs, changes no globals, and leaves no thread."""
    signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    handlers, threads = list(logging.getLogger().handlers), set(threading.enumerate())
    hooks = (sys.excepthook, asyncio.get_running_loop().get_exception_handler())
    async with Simulator(SimulatorSettings(latency="fixed:0.1", tiny=True)) as simulator:
        options: dict[str, Any] = {"gateway": simulator.gateway_url, "poll_interval_s": 0.1, "api_key": "simulated"}
        async with Engine(tmp_path, **options) as engine:
            assert (await engine.generate(Job(prompt="a cat"))).succeeded
    assert {number: signal.getsignal(number) for number in signals} == signals
    assert logging.getLogger().handlers == handlers
    assert (sys.excepthook, asyncio.get_running_loop().get_exception_handler()) == hooks
    assert {thread for thread in set(threading.enumerate()) - threads if thread.name.startswith("krea")} == set()
    assert capfd.readouterr() == ("", "")


async def test_every_public_name_is_there(anyio_backend: object) -> None:
    """Every name in `__all__` can be imported and has a docstring."""
    for name in krea_batch.__all__:
        value = getattr(krea_batch, name)
        assert name in {"__version__", "Event", "Listener"} or value.__doc__


async def test_completion_offers_every_public_name(anyio_backend: object) -> None:
    """`dir` has the public names before any of them was used, and no others but dunder names."""
    script = "import krea_batch; print(*dir(krea_batch))"
    process = await anyio.run_process([sys.executable, "-c", script])
    listed = process.stdout.decode().split()
    assert {name for name in listed if not name.startswith("__")} == set(krea_batch.__all__) - {"__version__"}


async def test_type_checkers_see_every_public_name(anyio_backend: object) -> None:
    """The imports for type checkers name the same objects, from the same modules, as the lazy imports."""
    tree = ast.parse(Path(krea_batch.__file__).read_text("utf-8"))
    imported = {
        f"{node.module}.{alias.asname}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("krea_batch.")
        for alias in node.names
    }
    assert imported == {f"krea_batch.{module}.{name}" for name, module in krea_batch._MODULES.items()}


async def test_an_unknown_name_is_an_attribute_error(anyio_backend: object) -> None:
    """A name that is not public is not found, even if a module of the package has it."""
    with pytest.raises(AttributeError, match="has no attribute 'check_id'"):
        krea_batch.check_id  # noqa: B018


async def test_callbacks_through_the_callers_server(tmp_path: Path) -> None:
    """Mounted in the caller's aiohttp server, the handler accepts callbacks and rejects other calls."""
    app = web.Application()
    runner = web.AppRunner(app)
    async with Simulator(SimulatorSettings(latency="uniform:0.3,0.6", tiny=True)) as simulator:
        port = free_port()
        engine = Engine(
            tmp_path,
            api_key="simulated",
            gateway=simulator.gateway_url,
            webhook=Webhook(f"http://127.0.0.1:{port}/krea"),
            rate="100/s",
        )
        app.router.add_post("/krea/{path:.*}", engine.callbacks_handler())
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        async with engine, aiohttp.ClientSession() as client:
            outcomes = await asyncio.gather(*(engine.generate(Job(prompt=f"cat {n}")) for n in range(20)))
            async with client.post(f"http://127.0.0.1:{port}/krea/a/1/b", data=b"x") as answer:
                assert answer.status == 404
            async with client.post(f"http://127.0.0.1:{port}/krea/a/1/b", data=b"x" * 70_000) as answer:
                assert answer.status == 413
        assert all(outcome.succeeded for outcome in outcomes)
        assert engine.stats().callbacks == engine.stats().polls == 20
    await runner.cleanup()
