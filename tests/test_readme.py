"""The README's commands and library example run, and its table is complete."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from krea_batch import Engine, Job
from krea_batch.cli.app import COMMANDS
from krea_batch.jobs import ASPECT_RATIOS, CREATIVITIES, FIELDS, ErrorInfo, State
from krea_batch.ledger.sqlite import SqliteLedger
from krea_batch.testing import Simulator, SimulatorSettings
from tests.processes import PROCESS_TIMEOUT_S, StartSimulator, run_command, write_jobs

ROOT = Path(__file__).parent.parent
README_TEXT = (ROOT / "README.md").read_text("utf-8")


def readme_blocks(language: str) -> list[str]:
    """Return the code blocks of one language."""
    return re.findall(rf"```{language}\n(.*?)```", README_TEXT, re.DOTALL)


def make_ambiguous(out: Path) -> None:
    """Make the job `fox` of a run ambiguous, whatever its state."""
    (out / "images").mkdir(parents=True, exist_ok=True)
    store = SqliteLedger.open(out / "ledger.db")
    store._sql.execute("DELETE FROM submissions WHERE job_no IN (SELECT job_no FROM jobs WHERE job_id = 'fox')")
    store._sql.execute("DELETE FROM jobs WHERE job_id = 'fox'")
    job_no = store.record_intent("fox", b'{"prompt":"a fox"}', bytes(32), b"{}", 1.0, "")
    store.mark_ambiguous(job_no, ErrorInfo("ambiguous", "the connection was cut"), 2.0)
    store.close()


def make_timed_out(out: Path) -> None:
    """Make the job `fox` of a run timed out, whatever its state."""
    make_ambiguous(out)
    store = SqliteLedger.open(out / "ledger.db")
    found = store.find_numbered_job("fox")
    assert found
    store.adopt(found[0], "krea-2-large-text-to-image_fox", 3.0)
    store.mark_timed_out(found[0], State.ACCEPTED, ErrorInfo("timed_out", "not finished"), 4.0, 1)
    store.close()


def offline_options(command: list[str], gateway: str) -> list[str]:
    """Return options with which a command of the documentation charges nothing and ends soon.

    A simulated gateway answers it, unless the command starts its own one.
    """
    match command[0]:
        case "run" | "retry" | "worker":
            simulated = ["--time-scale=100"] if "--simulate" in command else [f"--gateway={gateway}"]
            return [*simulated, "--poll-interval=0.1"]
        case "bench":
            jobs = [] if "--jobs" in command else ["--jobs=4"]
            return [*jobs, "--latency=fixed:0.1", "--poll-interval=0.1"]
        case "doctor":
            return [f"--gateway={gateway}"]
        case "resolve" if "--adopt" in command:
            return [f"--gateway={gateway}"]
        case _:
            return []


@pytest.mark.slow
def test_the_commands_of_the_command_line_run(simulate: StartSimulator, tmp_path: Path) -> None:
    """Each krea-batch command of the README succeeds, offline."""
    gateway = simulate("--tiny", "--latency", "fixed:0.1").gateway_url
    simulated = tmp_path / "simulated"
    simulated.mkdir()
    for folder in (tmp_path, simulated):
        write_jobs(folder / "jobs.jsonl", 2)
    (tmp_path / "prompts.txt").write_text("a cat\n")
    (tmp_path / "prompts.csv").write_text("prompt\na cat\n")
    lines = [line.split("#")[0].strip() for block in readme_blocks("sh") for line in block.splitlines()]
    lines = [
        line.replace("0.0.0.0:8080", "127.0.0.1:0").replace("9100", "0") for line in lines
    ]  # ports that are free on any machine
    commands = [line.replace("…", "0").split()[1:] for line in lines if line.startswith("krea-batch ")]
    assert {command[0] for command in commands} == {*COMMANDS}
    for command in commands:
        if command[0] in ("simulate", "view") or (command[0] == "bench" and "--gateway" in command):
            continue  # servers: tests/simulator, tests/gallery; real charges: tests/cli/test_bench
        if command[0] == "resolve":
            make_ambiguous(tmp_path / "runs/cats")
        # A run directory belongs to one gateway.
        folder = simulated if "--simulate" in command else tmp_path
        done = run_command(*command, *offline_options(command, gateway), cwd=folder)
        if "--adopt" in command:  # the simulator is asked, and does not know the request_id of the example
            assert (done.returncode, "the gateway does not know" in done.stderr) == (2, True)
            continue
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"


@pytest.mark.slow
def test_the_example_of_the_library_runs(tmp_path: Path) -> None:
    """The README's Python block runs unchanged, against the simulator."""
    example, _ = readme_blocks("python")
    simulated = example.replace('rate="10/s"', 'rate="100/s", gateway=simulator.gateway_url, api_key="k"').replace(
        "    async with Engine",
        "    async with Simulator(SimulatorSettings(tiny=True, time_scale=100)) as simulator, Engine",
    )
    assert simulated != example
    simulated = "from krea_batch.testing.simulator import Simulator, SimulatorSettings\n" + simulated
    done = subprocess.run(
        [sys.executable, "-c", simulated], cwd=tmp_path, capture_output=True, text=True, timeout=PROCESS_TIMEOUT_S
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 101
    assert len(list((tmp_path / "runs/cats/images").glob("*.png"))) == 102


def test_the_example_of_a_service_runs(tmp_path: Path) -> None:
    """The README's lines for a web service run unchanged, with an engine on the simulator."""
    _, example = readme_blocks("python")
    body = textwrap.indent(example.replace("job_id", "handle.id"), "    ")
    names: dict[str, Any] = {"Job": Job}
    exec(f"async def serve(engine):\n{body}    return handle", names)  # noqa: S102 - our own README

    async def main() -> None:
        async with (
            Simulator(SimulatorSettings(tiny=True, time_scale=100)) as simulator,
            Engine(tmp_path, gateway=simulator.gateway_url, api_key="k", poll_interval_s=0.1) as engine,
        ):
            handle = await names["serve"](engine)
            assert (await handle).succeeded

    asyncio.run(main())


def test_the_table_of_fields_is_the_job() -> None:
    """The README's table lists every field of a job line, and every value of the two choices."""
    named = re.findall(r"^\| `(\w+)` \|", README_TEXT, re.MULTILINE)
    assert set(named) == set(FIELDS)
    for choices, field in ((ASPECT_RATIOS, "aspect_ratio"), (CREATIVITIES, "creativity")):
        (row,) = re.findall(rf"^\| `{field}` \| (.*?) \|", README_TEXT, re.MULTILINE)
        assert row.replace("`", "").split() == list(choices)


def test_the_example_jobs_are_jobs(tmp_path: Path) -> None:
    """The README's job lines pass `krea-batch validate`."""
    (example,) = readme_blocks("json")
    assert all(json.loads(line) for line in example.splitlines())
    (tmp_path / "jobs.jsonl").write_text(example)
    assert run_command("validate", "jobs.jsonl", cwd=tmp_path).returncode == 0


def test_make_targets_of_the_readme() -> None:
    """`make demo` and `make test` of the README are targets of the Makefile."""
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make (\w+)", README_TEXT, re.MULTILINE))
    assert {"demo", "test", "check"} <= named <= targets
