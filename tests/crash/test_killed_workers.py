"""Processes that share a run directory and are killed or stopped at random moments, until all jobs have ended."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from krea_batch.rules.pending_limit import INITIAL_PENDING
from tests.crash.crash_scenario import SIMULATOR_OPTIONS, CrashScenario
from tests.crash.faulty_workers import Worker, kill, run_with_faults, stop
from tests.processes import PROCESS_TIMEOUT_S, StartSimulator

pytestmark = pytest.mark.slow

MIN_KILLS = int(os.environ.get("KILLS", "4"))
STOPS_PER_KILL = 0.25  # 50 stops beside 200 kills
KILLS_PER_RUN = 12
WORKERS = 3
JOBS = 900
OPTIONS = ("--shared", "--rate", "15/s", "--poll-interval", "0.3")
AMBIGUOUS_PER_FAULT = INITIAL_PENDING


def test_workers_that_are_killed_and_stopped(simulate: StartSimulator, tmp_path: Path) -> None:
    """The others take over. No job is charged twice, none is lost, and the limit of charges is met exactly."""
    simulator = simulate(*SIMULATOR_OPTIONS)
    random = Random(os.environ.get("KILL_SEED", "1"))
    ambiguous = runs = 0
    done = Counter[str]()
    while done["kill"] < MIN_KILLS:
        simulator.admin_request("/reset", {})
        out = tmp_path / f"out {runs}"
        scenario = CrashScenario(simulator, tmp_path, JOBS, out, OPTIONS)
        kills = min(KILLS_PER_RUN, MIN_KILLS - done["kill"])
        faults = {"kill": kills, "stop": round(kills * STOPS_PER_KILL)}
        workers = [Worker(scenario) for _ in range(WORKERS)]
        run_faults = run_with_faults(workers, random, {"kill": kill, "stop": stop}, faults)
        assert scenario.finish() in (0, 1)
        run_ambiguous = scenario.check_accounting()
        assert run_ambiguous <= AMBIGUOUS_PER_FAULT * run_faults.total()
        done, ambiguous, runs = done + run_faults, ambiguous + run_ambiguous, runs + 1
        shutil.rmtree(out)
    print(
        f"{done['kill']} kills and {done['stop']} stops in {runs} runs of {JOBS} jobs by {WORKERS} workers:"
        f" 0 charged twice, 0 lost, {ambiguous} ambiguous"
    )


def test_a_worker_that_is_killed_is_replaced_soon(simulate: StartSimulator, tmp_path: Path) -> None:
    """The jobs of a killed process are completed by the other one, while that has nothing else to do."""
    simulator = simulate(*SIMULATOR_OPTIONS)
    scenario = CrashScenario(simulator, tmp_path, 200, options=OPTIONS)
    first, second = scenario.start(), scenario.start()
    scenario.wait_for_accepted(60, first)
    first.kill()
    first.wait(PROCESS_TIMEOUT_S)
    assert second.wait(PROCESS_TIMEOUT_S) in (0, 1)
    assert scenario.check_accounting() <= AMBIGUOUS_PER_FAULT
