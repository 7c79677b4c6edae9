"""Some seeds pass, and each planted fault is found.

`make simtest` runs 10,000 seeds on all cores; SEEDS=N runs another number.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.simulation.__main__ import run_seed, run_seeds
from tests.simulation.planted_faults import PLANTED_FAULTS, PlantedFault
from tests.simulation.scenario import InvariantViolation, Scenario

pytestmark = pytest.mark.slow

SEED_COUNT = 80  # chosen: about twenty seconds of processor time
SEEDS_PER_TEST = 20
MAX_SEEDS = 150  # chosen: each planted fault is found within half of them


@pytest.fixture(autouse=True)
def raising_listeners(listener_failures: list[BaseException]) -> Iterator[None]:
    """Let the listeners of the simulation raise, which fails every other test."""
    yield
    listener_failures.clear()


@pytest.mark.parametrize("first", range(0, SEED_COUNT, SEEDS_PER_TEST))
def test_seeds(first: int) -> None:
    """With random faults and crashes no job is charged twice, no charged job is lost, and all images are complete."""
    results = [run_seed(seed) for seed in range(first, first + SEEDS_PER_TEST)]
    assert [result.failure for result in results if result.failure] == []
    assert sum(result.crashes for result in results) > 0


@pytest.mark.parametrize("seed", [1358, 2070, 9272, 90033])
def test_seeds_that_failed_before(seed: int) -> None:
    """Seeds that have found rare bugs pass."""
    assert run_seed(seed).failure == ""


def test_a_seed_is_reproducible(tmp_path: Path) -> None:
    """Two runs of one seed take the same steps and have the same charges."""
    histories = []
    for name in ("one", "two"):
        scenario = Scenario(11, tmp_path / name / "out")
        scenario.run()
        histories.append((scenario.crashes, scenario.gateway.charged, scenario.gateway.attempts))
    assert histories[0] == histories[1]


@pytest.mark.parametrize("fault", PLANTED_FAULTS, ids=lambda fault: fault.plant.__name__)
def test_a_planted_fault_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: PlantedFault) -> None:
    """With a deliberate bug, one of the seeds violates the invariant that the bug breaks."""
    fault.plant(monkeypatch)
    for seed in range(fault.first, fault.first + MAX_SEEDS):
        try:
            Scenario(seed, tmp_path / str(seed) / "out").run()
        except InvariantViolation as violation:
            if fault.message in str(violation):
                return
    pytest.fail(f"not found by {MAX_SEEDS} seeds")


def test_the_requested_number_of_seeds_runs(capfd: pytest.CaptureFixture[str]) -> None:
    """`python -m tests.simulation --seeds N` runs N seeds and prints their number."""
    assert run_seeds(range(4)) == 0
    assert "4 seeds, 28 runs" in capfd.readouterr().out
