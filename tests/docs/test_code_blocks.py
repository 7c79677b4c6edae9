"""The code blocks of the pages work: commands run, Python passes mypy, scripts and services run offline."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

import krea_batch as library
from krea_batch import Engine, State
from krea_batch.testing import Simulator, SimulatorSettings
from tests.asgi_client import request_asgi
from tests.docs.pages import ROOT, Block, code_blocks
from tests.processes import (
    PROCESS_TIMEOUT_S,
    StartSimulator,
    ThreadedSimulator,
    clean_environment,
    run_command,
    write_jobs,
)
from tests.test_readme import make_ambiguous, make_timed_out, offline_options, readme_blocks

NOT_RUN = ("make ", "pip ", "python3 -m venv ", ". ", "export ")  # these prepare a machine
OTHER_PROGRAMS = ("sqlite3 ",)  # tested in tests/cli/test_recover_command.py
COMMANDS_ON_A_RUN = ("plan", "status", "watch", "report", "resolve", "retry", "recover", "verify", "export")
SERVERS = ("view", "simulate")  # tested in tests/gallery and tests/simulator
OBJECT_STORE_OPTIONS = ("--sink", "--references")  # tested in tests/storage
NOT_EXECUTED = {
    "howto_callbacks_0": "needs a public host; tested in tests/engine/test_callbacks.py and tests/test_public_api.py",
    "howto_callbacks_1": "as above",
    "howto_callbacks_2": "as above",
    "howto_sinks_0": "needs a bucket; tested in tests/storage",
    "howto_references_0": "as above",
    "howto_workers_1": "needs Ray; tested in tests/test_ray.py",
}
SERVICES = ("howto_embed_3", "howto_embed_4")
SIMULATED_SCRIPT = """
import functools, runpy, sys
import krea_batch

options = {"gateway": sys.argv[1], "api_key": "none", "poll_interval_s": 0.1}
krea_batch.Engine = functools.partial(krea_batch.Engine, **options)
krea_batch.run = functools.partial(krea_batch.run, **options)
runpy.run_path(sys.argv[2], run_name="__main__")
"""
FIELDS: dict[str, Any] = {"seed": 7, "metadata": {"set": "train"}}  # what `--name` names
DOCS_SIMULATOR = SimulatorSettings(tiny=True, latency="fixed:0.3")

README_COMMANDS = {
    line for block in readme_blocks("sh") for line in block.splitlines()
}  # tests/test_readme runs them
PYTHON_BLOCKS = code_blocks("python")
TESTS = [block for block in PYTHON_BLOCKS if "def test_" in block.text]
SCRIPTS = [block for block in PYTHON_BLOCKS if block.name not in (*NOT_EXECUTED, *SERVICES) and block not in TESTS]


def commands(page: str) -> list[list[str]]:
    """Return the krea-batch commands of a page that the README does not have, with ports that are free anywhere."""
    lines = [line for block in code_blocks("sh") if block.page == page for line in block.text.splitlines()]
    commands_to_run = [line for line in lines if not line.startswith((*NOT_RUN, *OTHER_PROGRAMS))]
    local = [line.replace("0.0.0.0:8080", "127.0.0.1:0").replace("9100", "0") for line in commands_to_run]
    return [
        shlex.split(line)
        for line in local
        if line not in README_COMMANDS and not any(option in line for option in OBJECT_STORE_OPTIONS)
    ]


@pytest.fixture(scope="module")
def gateway() -> Iterator[str]:
    """Return the URL of a simulated gateway."""
    simulator = ThreadedSimulator("--tiny", "--latency", "fixed:0.1")
    yield simulator.gateway_url
    simulator.close()


@pytest.fixture(scope="module")
def finished_run(gateway: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a run of two jobs that has ended. Tests use copies of it."""
    folder = tmp_path_factory.mktemp("finished")
    write_jobs(folder / "jobs.jsonl", 2, **FIELDS)
    command = ["run", "jobs.jsonl", "--out", "run"]
    assert run_command(*command, *offline_options(command, gateway), cwd=folder).returncode == 0
    return folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted({block.page for block in code_blocks("sh")}))
def test_the_commands_run(tmp_path: Path, page: str, gateway: str, finished_run: Path) -> None:
    """Each command of a page succeeds, offline."""
    for n, (name, *command) in enumerate(commands(page)):
        assert name == "krea-batch", f"unexpected command {name}"
        out = tmp_path / f"{n}"
        out.mkdir()
        write_jobs(out / "jobs.jsonl", 2, **FIELDS)
        (out / "prompts.txt").write_text("a cat\na dog\n")
        (out / "captions").mkdir()
        (out / "captions" / "cat.txt").write_text("a cat\non a mat\n")
        (out / "wildcards").mkdir()
        (out / "wildcards" / "place.txt").write_text("field\nbridge\n")
        (out / "prompts.csv").write_text("Nr,prompt,Caption,Start\n7,a cat,a big cat,1\n")
        (out / "bare.csv").write_text("7,a cat,1\n8,a dog,2\n")
        (out / "photos.jsonl").write_text('{"prompt": "a cat", "params": {"seed": 7}}\n')
        (out / "batch.jsonl").write_text('{"custom_id": "img-1", "body": {"prompt": "a red kite"}}\n')
        if command[0] == "run":  # `export` writes a file of this name
            (out / "cats.csv").write_text("id,prompt,set,seed\na,a cat,train,7\nb,a big cat,test,8\n")
        if command[0] == "inspect":
            shutil.copyfile(finished_run / "images" / "00001.png", out / "cat.png")
        if command[0] in SERVERS or "--ledger" in command:  # tests/cli/test_database_ledger.py has a database
            continue
        if command[0] in COMMANDS_ON_A_RUN:
            run_dir = next((argument for argument in command if argument.startswith("runs/")), "runs/cats")
            shutil.copytree(finished_run, out / run_dir)
        if command[0] == "resolve":
            make_ambiguous(out / "runs/cats")
        if "timed_out" in command:
            make_timed_out(out / "runs/cats")
        done = run_command(*command, *offline_options(command, gateway), cwd=out)
        assert done.returncode == 0, f"{command}: {done.stderr}"


@pytest.mark.slow
def test_the_python_is_typed(tmp_path: Path) -> None:
    """Every block of Python passes mypy --strict as a module of its own."""
    for block in PYTHON_BLOCKS:
        (tmp_path / f"{block.name}.py").write_text(block.text)
    files = sorted(map(str, tmp_path.glob("*.py")))
    assert len(files) == len(PYTHON_BLOCKS) >= 10
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", *files],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PROCESS_TIMEOUT_S,
    )
    assert done.returncode == 0, done.stdout


def test_blocks_that_are_not_executed_exist() -> None:
    """The blocks that are listed as not executed, or as services, exist."""
    assert {*NOT_EXECUTED, *SERVICES} <= {block.name for block in PYTHON_BLOCKS}


@pytest.mark.slow
@pytest.mark.parametrize("block", TESTS, ids=lambda block: block.name)
def test_the_tests_pass(tmp_path: Path, block: Block) -> None:
    """The example of a test passes as it is written, with warnings as errors."""
    (tmp_path / "test_example.py").write_text(block.text)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-W",
        "error",
        "--rootdir",
        str(tmp_path),
        str(tmp_path),
    ]
    done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, timeout=PROCESS_TIMEOUT_S)
    assert done.returncode == 0, done.stdout
    assert re.search(r"\b\d+ passed in", done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda block: block.name)
def test_the_scripts_run(tmp_path: Path, simulate: StartSimulator, script: Block) -> None:
    """Each script of a page succeeds unchanged, against the simulator, without a warning."""
    (tmp_path / "simulated.py").write_text(SIMULATED_SCRIPT)
    (tmp_path / "script.py").write_text(script.text)
    gateway = simulate("--tiny", "--latency", "fixed:0.3").gateway_url
    done = subprocess.run(
        [sys.executable, "-W", "error", "simulated.py", gateway, "script.py"],
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=PROCESS_TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr
    if "Engine(" in script.text or "krea_batch.run(" in script.text:
        rows = [row for path in tmp_path.glob("runs/*/results.jsonl") for row in path.read_text().splitlines()]
        assert {json.loads(row)["status"] for row in rows} == {"succeeded"}


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Any]:
    """Return a function that loads the `app` of a service block, with an engine on the simulator."""
    monkeypatch.chdir(tmp_path)

    def load_app(name: str, gateway: str) -> Any:
        class SimulatedEngine(Engine):
            def __init__(self, out: str, **options: Any) -> None:
                super().__init__(out, gateway=gateway, api_key="none", poll_interval_s=0.1, **options)

        monkeypatch.setattr(library, "Engine", SimulatedEngine)
        module: dict[str, Any] = {"__name__": name}
        exec(next(block.text for block in PYTHON_BLOCKS if block.name == name), module)  # noqa: S102 - our own page
        return module["app"]

    return load_app


@pytest.mark.anyio
async def test_the_service_of_fastapi(service: Callable[[str, str], Any], anyio_backend: object) -> None:
    """The FastAPI service answers 202 with an id, streams events until the end, and answers 404 for other ids."""
    async with Simulator(DOCS_SIMULATOR) as simulator:
        app = service("howto_embed_3", simulator.gateway_url)
        async with app.router.lifespan_context(app):
            order = await request_asgi(app, "POST", "/images", query=b"prompt=an%20owl&user=ann")
            assert order.status == 202
            image_id = order.json["id"]
            events = await request_asgi(app, "GET", f"/images/{image_id}/events")
            assert events.status == 200
            assert events.body.decode().rpartition("event: ")[2].startswith("JobEnded\ndata: {")
            assert (await request_asgi(app, "GET", f"/images/{image_id}")).json == {"status": "succeeded"}
            assert (await request_asgi(app, "GET", "/images/unknown")).status == 404


@pytest.mark.anyio
async def test_the_service_of_aiohttp(service: Callable[[str, str], Any], anyio_backend: object) -> None:
    """The aiohttp service answers 202 with an id, finds the job by it, and answers 404 for other ids."""
    async with Simulator(DOCS_SIMULATOR) as simulator:
        app = service("howto_embed_4", simulator.gateway_url)
        async with TestClient(TestServer(app)) as client:
            async with client.post("/images", params={"prompt": "an owl"}) as answer:
                assert answer.status == 202
                image_id = (await answer.json())["id"]
            async with client.get(f"/images/{image_id}") as answer:
                assert (await answer.json())["status"] in {state.value for state in State}
            async with client.get("/images/unknown") as answer:
                assert answer.status == 404
