"""Runs that are killed (SIGKILL) at random moments or at chosen system calls, and resumed until all jobs end."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from random import Random

import pytest

from krea_batch.rules.pending_limit import INITIAL_PENDING
from tests.crash.crash_scenario import SIMULATOR_OPTIONS, CrashScenario
from tests.processes import PROCESS_TIMEOUT_S, StartSimulator

pytestmark = pytest.mark.slow

MIN_KILLS = int(os.environ.get("KILLS", "10"))
CRASH_JOBS = 600
AMBIGUOUS_PER_KILL = INITIAL_PENDING  # about as many POSTs are pending at a kill, on a busy machine

SYSTEM_CALLS = {
    "sync": "fsync,fdatasync",
    "send": "sendto,sendmsg,write",
    "receive": "recvfrom,recvmsg,epoll_wait,epoll_pwait",  # not read(2): Python calls it at startup, too
    "rename": "rename,renameat,renameat2",
    "ledger": "pwrite64",
}


def test_killed_at_random_moments(simulate: StartSimulator, tmp_path: Path) -> None:
    """However often the process is killed, no job is charged twice and no charged job is lost."""
    simulator = simulate(*SIMULATOR_OPTIONS)
    random = Random(os.environ.get("KILL_SEED", "1"))
    kills = ambiguous = runs = 0
    while kills < MIN_KILLS:
        simulator.admin_request("/reset", {})
        scenario = CrashScenario(simulator, tmp_path, CRASH_JOBS, tmp_path / f"out {runs}")
        while scenario.kills < 12 and scenario.kill_after(random.uniform(0.3, 2.0)):
            pass
        scenario.finish()
        run_ambiguous = scenario.check_accounting()
        assert run_ambiguous <= AMBIGUOUS_PER_KILL * scenario.kills
        kills, ambiguous, runs = kills + scenario.kills, ambiguous + run_ambiguous, runs + 1
        shutil.rmtree(scenario.out)
    print(f"{kills} kills in {runs} runs of {CRASH_JOBS} jobs: 0 charged twice, 0 lost, {ambiguous} ambiguous")


@pytest.mark.parametrize("group", SYSTEM_CALLS)
def test_killed_at_a_system_call(simulate: StartSimulator, tmp_path: Path, group: str) -> None:
    """Killed at the Nth sync, send, receive, rename or ledger write, for many N, no job is charged twice or lost."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed (apt install strace)")
    probe = subprocess.run(["strace", "-qq", "-o", "/dev/null", "true"], capture_output=True)
    if probe.returncode:
        pytest.skip(f"strace is not permitted here: {probe.stderr.decode()[:200]}")
    simulator = simulate(*SIMULATOR_OPTIONS)
    scenario = CrashScenario(simulator, tmp_path, 60)
    for n in (1, 2, 3, 5, 9, 14, 22, 35):
        inject = f"{SYSTEM_CALLS[group]}:signal=SIGKILL:when={n}"
        strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={SYSTEM_CALLS[group]}"]
        process = scenario.start(*strace, "-e", f"inject={inject}")
        process.wait(PROCESS_TIMEOUT_S)
        scenario.kills += process.returncode not in (0, 1)
    scenario.finish()
    ambiguous = scenario.check_accounting()
    assert scenario.kills >= 4, "the process was killed too rarely"
    assert ambiguous <= AMBIGUOUS_PER_KILL * scenario.kills
