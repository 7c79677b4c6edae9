"""SIGKILL at random moments, and at chosen system calls, again and again until every job has ended."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from random import Random

import pytest

from tests.crash.crash_scenario import FAST, Scene
from tests.processes import PATIENCE_S, Simulate

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("KILLS", "10"))
JOBS = 600
IN_THE_AIR = 8  # at 200/s, an intent is on record for some 10 ms before its answer is; twice and four times that

GROUPS = {
    "sync": "fsync,fdatasync",
    "send": "sendto,sendmsg,write",
    "receive": "recvfrom,recvmsg,epoll_wait,epoll_pwait",  # uvloop's read(2) is Python's at its start, too
    "rename": "rename,renameat,renameat2",
    "ledger": "pwrite64",
}


def test_killed_at_random_moments(simulate: Simulate, tmp_path: Path) -> None:
    """However often the process is killed, nothing is paid twice, and nothing paid is lost."""
    simulator = simulate(*FAST)
    chance = Random(os.environ.get("KILL_SEED", "1"))
    kills = ambiguous = runs = 0
    while kills < KILLS:
        simulator.ask("/reset", {})
        scene = Scene(simulator, tmp_path, JOBS, tmp_path / f"out {runs}")
        while scene.kills < 12 and scene.kill_after(chance.uniform(0.3, 2.0)):
            pass
        scene.finish()
        doubtful = scene.assert_books_agree()
        assert doubtful <= IN_THE_AIR * scene.kills
        kills, ambiguous, runs = kills + scene.kills, ambiguous + doubtful, runs + 1
        shutil.rmtree(scene.out)
    print(f"{kills} kills in {runs} runs of {JOBS} jobs: 0 paid twice, 0 lost, {ambiguous} ambiguous")


@pytest.mark.parametrize("group", GROUPS)
def test_killed_at_a_system_call(simulate: Simulate, tmp_path: Path, group: str) -> None:
    """The process dies at the Nth sync, send, receive, rename or write of the ledger, for many N."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed: system calls cannot be chosen (apt install strace)")
    works = subprocess.run(["strace", "-qq", "-o", "/dev/null", "true"], capture_output=True)
    if works.returncode:
        pytest.skip(f"strace may not trace here: {works.stderr.decode()[:200]}")
    simulator = simulate(*FAST)
    scene = Scene(simulator, tmp_path, 60)
    for n in (1, 2, 3, 5, 9, 14, 22, 35):
        inject = f"{GROUPS[group]}:signal=SIGKILL:when={n}"
        strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={GROUPS[group]}"]
        process = scene.begin(*strace, "-e", f"inject={inject}")
        process.wait(PATIENCE_S)
        scene.kills += process.returncode not in (0, 1)
    scene.finish()
    doubtful = scene.assert_books_agree()
    assert scene.kills >= 4, "it was hardly ever killed"
    assert doubtful <= IN_THE_AIR * scene.kills
