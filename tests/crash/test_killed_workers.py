"""Processes that share a run directory and are killed or stopped at random moments, until all jobs have ended."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path
from random import Random

import pytest

from krea_batch.rules.lease import LEASE_S
from krea_batch.rules.pending_limit import INITIAL_PENDING
from tests.crash.crash_scenario import SIMULATOR_OPTIONS, CrashScenario
from tests.processes import PROCESS_TIMEOUT_S, StartSimulator

pytestmark = pytest.mark.slow

MIN_KILLS = int(os.environ.get("KILLS", "4"))
STOPS_PER_KILL = 0.25  # 50 stops beside 200 kills
KILLS_PER_RUN = 12
WORKERS = 3
JOBS = 900
OPTIONS = ("--shared", "--rate", "15/s", "--poll-interval", "0.3")
AMBIGUOUS_PER_FAULT = INITIAL_PENDING


class Worker:
    """One of several processes of a run, which is started again whenever it has ended too early."""

    def __init__(self, scenario: CrashScenario, random: Random) -> None:
        self._scenario = scenario
        self._random = random
        self._process = scenario.start()
        self._continue_at_s = 0.0
        self.exit_codes: list[int] = []

    @property
    def is_stopped(self) -> bool:
        return self._continue_at_s > 0

    def kill(self) -> None:
        self._process.kill()
        self._continue_at_s = 0.0
        self._restart(self._process.wait(PROCESS_TIMEOUT_S))

    def stop(self, duration_s: float) -> None:
        """Let the process stand still, as a suspended machine does."""
        self._process.send_signal(signal.SIGSTOP)
        self._continue_at_s = time.monotonic() + duration_s

    def step(self) -> bool:
        """Continue a process whose time has come. Return whether the process has ended because all jobs have."""
        if self.is_stopped:
            if time.monotonic() >= self._continue_at_s:
                self._process.send_signal(signal.SIGCONT)
                self._continue_at_s = 0.0
            return False
        code = self._process.poll()
        if code in (0, 1):
            return True
        if code is not None:
            self._restart(code)
        return False

    def end(self) -> None:
        """Kill the process for good."""
        self._process.kill()
        self._process.wait(PROCESS_TIMEOUT_S)

    def _restart(self, code: int) -> None:
        self.exit_codes.append(code)
        self._process = self._scenario.start()


def run_with_faults(scenario: CrashScenario, random: Random, kills: int, stops: int) -> tuple[int, int]:
    """Run several workers to the end, with faults every few seconds. Return how many kills and stops there were."""
    faults = ["kill"] * kills + ["stop"] * stops
    random.shuffle(faults)
    done_kills = done_stops = 0
    workers = [Worker(scenario, random) for _ in range(WORKERS)]
    try:
        next_fault_s = time.monotonic() + random.uniform(1.0, 3.0)
        while sum(worker.step() for worker in workers) < WORKERS:
            time.sleep(0.05)
            if not faults or time.monotonic() < next_fault_s:
                continue
            next_fault_s = time.monotonic() + random.uniform(0.5, 3.0)
            worker = random.choice([each for each in workers if not each.is_stopped] or workers)
            if faults.pop() == "kill":
                worker.kill()
                done_kills += 1
            else:
                worker.stop(random.uniform(0.3, 3.0) * LEASE_S)
                done_stops += 1
    finally:
        for worker in workers:
            worker.end()
    return done_kills, done_stops


def test_workers_that_are_killed_and_stopped(simulate: StartSimulator, tmp_path: Path) -> None:
    """The others take over. No job is charged twice, none is lost, and the limit of charges is met exactly."""
    simulator = simulate(*SIMULATOR_OPTIONS)
    random = Random(os.environ.get("KILL_SEED", "1"))
    kills = stops = ambiguous = runs = 0
    while kills < MIN_KILLS:
        simulator.admin_request("/reset", {})
        out = tmp_path / f"out {runs}"
        scenario = CrashScenario(simulator, tmp_path, JOBS, out, OPTIONS)
        kills_now = min(KILLS_PER_RUN, MIN_KILLS - kills)
        faults = run_with_faults(scenario, random, kills_now, round(kills_now * STOPS_PER_KILL))
        assert scenario.finish() in (0, 1)
        run_ambiguous = scenario.check_accounting()
        assert run_ambiguous <= AMBIGUOUS_PER_FAULT * sum(faults)
        kills, stops, ambiguous, runs = kills + faults[0], stops + faults[1], ambiguous + run_ambiguous, runs + 1
        shutil.rmtree(out)
    print(
        f"{kills} kills and {stops} stops in {runs} runs of {JOBS} jobs by {WORKERS} workers:"
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
