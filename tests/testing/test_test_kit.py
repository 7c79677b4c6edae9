"""The public test kit, used as an application's own tests would use it: the kit and the public API, nothing else."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import socket
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from textwrap import dedent
from typing import Any

import anyio.to_thread
import pytest

import krea_batch.testing as kit
from krea_batch import Engine, InternalError, Job, Outcome, RunStopped
from krea_batch.testing import (
    ACCEPT,
    ACCEPT_AND_CUT,
    CUT,
    FINISH,
    IMAGE,
    PROCESSING,
    QUEUED,
    Errored,
    ErrorResponse,
    Failed,
    ScriptedDownload,
    ScriptedGateway,
    SimulatorSettings,
    SimulatorThread,
    VirtualTimeLoop,
    make_png,
    run_until_killed,
    run_virtual,
)
from tests.processes import PROCESS_TIMEOUT_S

MODULES = ("scripted_gateway", "virtual_time", "kill", "simulator_thread")
MODULES_WITH_NAMES = (*MODULES, "script_entries", "fixtures")


async def make_posters(out: Path, gateway: ScriptedGateway, titles: Iterable[str]) -> dict[str, str]:
    """The application under test: one image for each title. Returns a status by title."""
    async with Engine(out, gateway_client=gateway, rate="10/s") as engine:
        outcomes: list[Outcome] = [
            outcome async for outcome in engine.stream(Job(prompt=title, id=title) for title in titles)
        ]
    return {outcome.id: outcome.status.value for outcome in outcomes}


def test_jobs_succeed_without_a_script(tmp_path: Path) -> None:
    """Every job is charged once, and its image is the gateway's. An empty script is none."""
    gateway = ScriptedGateway()
    gateway.poll_script["a fox"] = []
    titles = ["a fox", "an owl"]
    assert run_virtual(make_posters(tmp_path / "out", gateway, titles)) == dict.fromkeys(titles, "succeeded")
    assert sorted(gateway.charged.values()) == sorted(gateway.submitted_prompts) == titles
    images = {path.read_bytes() for path in (tmp_path / "out" / "images").iterdir()}
    assert images == {make_png(text=title.encode()) for title in titles}


def test_errors_of_every_stage(tmp_path: Path) -> None:
    """A job that meets an error in each of its stages succeeds, is charged once, and no time really passes."""
    gateway = ScriptedGateway()
    gateway.submit_script["a fox"] = [ErrorResponse(500), ErrorResponse(429, retry_after_s=60), ACCEPT]
    gateway.poll_script["a fox"] = [QUEUED, ErrorResponse(502), CUT, (5.0, PROCESSING), FINISH]
    image = make_png(text=b"a fox")
    gateway.download_script["a fox"] = [ErrorResponse(503), CUT, [image[:30], 2.0, CUT], IMAGE]

    assert run_virtual(make_posters(tmp_path / "out", gateway, ["a fox"])) == {"a fox": "succeeded"}
    assert gateway.submit_times_s[-1] - gateway.submit_times_s[0] >= 60.0
    assert list(gateway.charged.values()) == ["a fox"]
    assert len(gateway.submitted_bodies) == 3
    assert [offset for _, offset in gateway.downloads] == [0, 0, 0, 30]
    assert (tmp_path / "out" / "images" / "a fox.png").read_bytes() == image


@pytest.mark.parametrize(
    ("entry", "status", "charges"),
    [
        pytest.param(ErrorResponse(400), "rejected", 0, id="400"),
        pytest.param(ErrorResponse(502), "ambiguous", 0, id="502"),
        pytest.param(ErrorResponse(500, body=b"<html>"), "ambiguous", 0, id="a page instead of an error"),
        pytest.param(CUT, "ambiguous", 0, id="cut"),
        pytest.param(ACCEPT_AND_CUT, "ambiguous", 1, id="accepted and cut"),
        pytest.param((5.0, ACCEPT), "succeeded", 1, id="slow"),
    ],
)
def test_one_response_to_a_submit(tmp_path: Path, entry: Any, status: str, charges: int) -> None:
    """The engine reads each response as that of the real gateway, and submits no job twice that may be charged."""
    gateway = ScriptedGateway()
    gateway.submit_script["a fox"] = [entry]
    assert run_virtual(make_posters(tmp_path / "out", gateway, ["a fox"])) == {"a fox": status}
    assert gateway.submitted_prompts == ["a fox"]
    assert len(gateway.charged) == charges


@pytest.mark.parametrize(
    ("entries", "status", "submits"),
    [([Failed("refused")], "failed", 1), ([Errored("a worker died"), FINISH], "succeeded", 2)],
    ids=["failed", "errored"],
)
def test_a_job_that_fails(tmp_path: Path, entries: list[Any], status: str, submits: int) -> None:
    """A failed job stays failed. One that the gateway itself failed, and did not charge, is submitted again."""
    gateway = ScriptedGateway()
    gateway.poll_script["a fox"] = entries
    assert run_virtual(make_posters(tmp_path / "out", gateway, ["a fox"])) == {"a fox": status}
    assert len(gateway.submitted_bodies) == submits


def test_a_job_that_takes_long(tmp_path: Path) -> None:
    """A job takes as long as the gateway says, and a caller's time-out of a minute passes without a loss."""
    gateway = ScriptedGateway()
    gateway.job_durations_s["a fox"] = 1200.0

    async def main() -> tuple[Outcome, float]:
        loop = asyncio.get_running_loop()
        async with Engine(tmp_path / "out", gateway_client=gateway) as engine:
            job = Job(prompt="a fox", id="fox")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(engine.generate(job), 60.0)
            return await engine.generate(job), loop.time()

    outcome, ended_s = run_virtual(main())
    assert outcome.succeeded
    assert 1200.0 < ended_s - gateway.submit_times_s[0] < 1400.0
    assert list(gateway.charged.values()) == ["a fox"]


def test_no_balance(tmp_path: Path) -> None:
    """402 stops the engine with the reason."""
    gateway = ScriptedGateway()
    gateway.submit_script["a fox"] = [ErrorResponse(402)]
    with pytest.raises(RunStopped, match="402"):
        run_virtual(make_posters(tmp_path / "out", gateway, ["a fox"]))


@pytest.mark.parametrize("entry", [make_png(7, 7), ScriptedDownload([make_png(7, 7)])], ids=["bytes", "pieces"])
def test_an_image_of_these_bytes(tmp_path: Path, entry: Any) -> None:
    """Bytes in a download script are the image."""
    gateway = ScriptedGateway()
    gateway.download_script["a fox"] = [entry]
    run_virtual(make_posters(tmp_path / "out", gateway, ["a fox"]))
    assert (tmp_path / "out" / "images" / "a fox.png").read_bytes() == make_png(7, 7)


@pytest.mark.parametrize(
    ("script", "entry"), [("submit_script", FINISH), ("poll_script", ACCEPT), ("download_script", FINISH)]
)
def test_an_entry_in_the_wrong_script(tmp_path: Path, script: str, entry: Any) -> None:
    """An entry that has no meaning in a script is an error that names both, instead of a wrong test."""
    gateway = ScriptedGateway()
    getattr(gateway, script)["a fox"] = [entry]
    with pytest.raises(TypeError, match=f"has no meaning in {script}"):
        run_virtual(make_posters(tmp_path / "out", gateway, ["a fox"]))


def test_another_gateway_on_the_run_directory(tmp_path: Path) -> None:
    """A gateway that did not accept the job of the run directory says so."""
    gateway = ScriptedGateway()
    run_until_killed(make_posters(tmp_path / "out", gateway, ["a fox"]), 3.0, tmp_path / "out")
    with pytest.raises(LookupError, match="this gateway has not accepted krea-2"):
        run_virtual(make_posters(tmp_path / "out", ScriptedGateway(), ["a fox"]))


@pytest.mark.parametrize("kill_after_s", [0.0, 0.05, 0.5, 5.0, 60.0])
def test_a_kill_and_a_resume(tmp_path: Path, kill_after_s: float) -> None:
    """At whatever moment the process is killed, the job is charged at most once, and its image is not lost.

    A POST is charged when it arrives. If the process is killed before the response, the job is ambiguous.
    """
    out, gateway = tmp_path / "out", ScriptedGateway()
    killed = run_until_killed(make_posters(out, gateway, ["a fox"]), kill_after_s, out)
    resumed = run_virtual(make_posters(out, gateway, ["a fox"]))
    assert len(gateway.charged) == 1
    if kill_after_s == 60.0:
        assert killed == resumed == {"a fox": "succeeded"}
    else:
        assert killed is None
        assert resumed == {"a fox": "ambiguous" if kill_after_s == 0.05 else "succeeded"}


def test_slow_threads_take_virtual_time(tmp_path: Path) -> None:
    """With a duration for calls in executors a run takes that much virtual time longer."""

    async def main() -> float:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        await make_posters(tmp_path / "out", ScriptedGateway(), ["a fox"])
        return float(loop.time())

    assert run_virtual(main(), lambda: 100.0) > 1400.0


def test_the_clock_waits_for_threads_of_anyio() -> None:
    """A function that anyio runs in a thread, as web frameworks do, takes no virtual time, however long it takes."""

    async def main() -> float:
        loop = asyncio.get_running_loop()
        timer = asyncio.ensure_future(asyncio.sleep(3600.0))
        started_s = loop.time()
        await anyio.to_thread.run_sync(lambda: sum(range(1_000_000)))
        seconds = loop.time() - started_s
        timer.cancel()
        return seconds

    assert run_virtual(main()) < 1.0


def test_a_thread_may_be_all_that_is_waited_for() -> None:
    """A thread is waited for if there is no timer, too."""

    async def main() -> int:
        return await anyio.to_thread.run_sync(lambda: sum(range(1_000_000)))

    assert run_virtual(main()) == 499_999_500_000


class TestAsyncTests:
    """With anyio's plugin for pytest, whole tests run in virtual time."""

    @pytest.fixture
    def anyio_backend(self) -> tuple[str, dict[str, Any]]:
        return "asyncio", {"loop_factory": VirtualTimeLoop}

    @pytest.mark.anyio
    async def test_a_run_in_an_async_test(self, tmp_path: Path) -> None:
        """A minute of waiting takes no time in an async test."""
        gateway = ScriptedGateway()
        gateway.submit_script["a fox"] = [ErrorResponse(429, retry_after_s=60), ACCEPT]
        started_s = asyncio.get_running_loop().time()
        assert await make_posters(tmp_path / "out", gateway, ["a fox"]) == {"a fox": "succeeded"}
        assert asyncio.get_running_loop().time() - started_s >= 60.0


class TestSimulatorThread:
    def test_the_counts_after_the_end(self) -> None:
        """The counts can be read during and after the run of the simulator, which may be closed twice."""
        with SimulatorThread(SimulatorSettings(tiny=True)) as simulator:
            assert simulator.ledger()["totals"]["accepted"] == 0
            assert simulator.gateway_url.startswith("http://127.0.0.1:")
        simulator.close()
        assert simulator.charged == {}


FIXTURE_TEST = """
import pytest

from krea_batch import Engine, Job
from krea_batch.testing import SimulatorSettings, SimulatorThread

pytest_plugins = ["krea_batch.testing.fixtures"]

async def generate(tmp_path, simulator, prompt):
    async with Engine(tmp_path, gateway=simulator.gateway_url, api_key="any", poll_interval_s=0.1) as engine:
        return await engine.generate(Job(prompt=prompt))

@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_simulator(tmp_path, krea_simulator):
    assert (await generate(tmp_path, krea_simulator, "a fox")).succeeded
    assert list(krea_simulator.charged.values()) == ["a fox"]

class TestWithFailures:
    @pytest.fixture
    def krea_simulator_settings(self):
        return SimulatorSettings(tiny=True, latency="fixed:0.1", faults={"job-failed": 1.0})

    @pytest.mark.anyio
    @pytest.mark.parametrize("anyio_backend", ["asyncio"])
    async def test_other_settings(self, tmp_path, krea_simulator):
        assert (await generate(tmp_path, krea_simulator, "a fox")).status == "failed"
"""


@pytest.mark.slow
def test_the_fixtures(tmp_path: Path) -> None:
    """`krea_simulator` is a running simulator, and its settings can be overridden, as for a user of the plugin."""
    (tmp_path / "test_app.py").write_text(FIXTURE_TEST)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={tmp_path}", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PROCESS_TIMEOUT_S)
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout


@pytest.mark.parametrize("name", MODULES)
def test_the_example_in_the_docstring_works(name: str, tmp_path: Path) -> None:
    """The code in a module's docstring runs as it is written, and its test passes."""
    module = importlib.import_module(f"krea_batch.testing.{name}")
    blocks = [block for block in (module.__doc__ or "").split("\n\n") if block.startswith("    ")]
    names: dict[str, object] = {}
    exec(dedent("\n\n".join(blocks)), names)  # noqa: S102 - our own docstring
    (test,) = (value for key, value in names.items() if key.startswith("test_"))
    assert callable(test)
    test(**({"tmp_path": tmp_path} if "tmp_path" in inspect.signature(test).parameters else {}))


@pytest.mark.parametrize("name", MODULES_WITH_NAMES)
def test_public_names_exist(name: str) -> None:
    """Every name in `__all__` exists."""
    module = importlib.import_module(f"krea_batch.testing.{name}")
    assert set(module.__all__) <= set(vars(module))


def test_every_name_is_imported_from_the_package() -> None:
    """The package has each public name of its modules, and no other; an unknown one is an AttributeError."""
    names: list[str] = kit.__all__
    assert all(getattr(kit, name) for name in names)
    with pytest.raises(AttributeError, match="has no attribute 'ScriptedGatway'"):
        _ = kit.ScriptedGatway


def test_the_simulator_starts_without_the_engine() -> None:
    """Importing the simulator imports neither the engine nor pytest, and importing the kit imports nothing."""
    script = "import sys, krea_batch.testing.simulator; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=PROCESS_TIMEOUT_S)
    modules = set(done.stdout.split())
    assert "krea_batch.testing.simulator.server" in modules
    assert not {"krea_batch.engine", "krea_batch.testing.scripted_gateway", "pytest"} & modules


def test_no_name_server_is_asked_in_virtual_time() -> None:
    """Name look-ups fail as on a machine without network, and no time really passes."""

    async def look_up() -> None:
        await asyncio.get_running_loop().getaddrinfo("gateway.pixazo.ai", 443)

    with pytest.raises(socket.gaierror, match="no network in virtual time"):
        run_virtual(look_up())


def test_a_real_gateway_in_virtual_time(tmp_path: Path) -> None:
    """An engine that would use the network stops with the reason, and charges nothing."""

    async def main(url: str) -> None:
        async with Engine(tmp_path, gateway=url, api_key="any") as engine:
            await engine.generate(Job(prompt="a fox"))

    with (
        SimulatorThread(SimulatorSettings(tiny=True)) as simulator,
        pytest.raises(RunStopped, match="no network in virtual time; use a ScriptedGateway"),
    ):
        run_virtual(main(simulator.gateway_url))
    assert simulator.charged == {}


def test_a_deadlock() -> None:
    """If every task waits and there is no timer, the test fails instead of hanging."""

    async def main() -> None:
        await asyncio.Event().wait()

    with pytest.raises(InternalError, match="every task is waiting, and there is no timer"):
        run_virtual(main())
