"""Some seeds with several workers pass, and each planted fault of workers is found.

`make simtest` runs 10,000 seeds on all cores; SEEDS=N runs another number.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.simulation.__main__ import run_seed
from tests.simulation.planted_faults import PlantedFault
from tests.simulation.planted_worker_faults import PLANTED_WORKER_FAULTS
from tests.simulation.scenario import InvariantViolation
from tests.simulation.workers_scenario import WorkersScenario

pytestmark = pytest.mark.slow

SEED_COUNT = 40  # chosen: about twenty seconds of processor time
SEEDS_PER_TEST = 10
MAX_SEEDS = 40  # chosen: each planted fault is found within half of them


@pytest.mark.parametrize("first", range(0, SEED_COUNT, SEEDS_PER_TEST))
def test_seeds_of_workers(first: int) -> None:
    """With workers that crash, stall or lose their ledger, no job is charged twice, and none is lost."""
    results = [run_seed(seed, workers=True) for seed in range(first, first + SEEDS_PER_TEST)]
    assert [result.failure for result in results if result.failure] == []
    assert sum(result.crashes for result in results) > 0


def test_a_closed_run_may_be_fenced_before_its_worker_ends() -> None:
    """In this seed, a worker stalls after it has released its lock, and another one fences its run."""
    assert run_seed(8939, workers=True).failure == ""


def test_a_refund_in_the_transaction_of_a_reservation_is_counted_once() -> None:
    """In this seed, the first reservation of a run and the refund of a job that ended in ERROR share a commit."""
    assert run_seed(18113, workers=True).failure == ""


def test_a_seed_of_workers_is_reproducible(tmp_path: Path) -> None:
    """Two runs of one seed take the same steps and have the same charges."""
    histories = []
    for name in ("one", "two"):
        scenario = WorkersScenario(11, tmp_path / name / "out")
        scenario.run()
        steps = [worker.steps for worker in scenario.workers]
        histories.append((scenario.log, steps, scenario.gateway.charged, scenario.gateway.attempts))
    assert histories[0] == histories[1]


@pytest.mark.parametrize("fault", PLANTED_WORKER_FAULTS, ids=lambda fault: fault.plant.__name__)
def test_a_planted_fault_of_workers_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: PlantedFault
) -> None:
    """With a deliberate bug, one of the seeds violates the invariant that the bug breaks."""
    fault.plant(monkeypatch)
    for seed in range(fault.first, fault.first + MAX_SEEDS):
        try:
            WorkersScenario(seed, tmp_path / str(seed) / "out").run()
        except InvariantViolation as violation:
            if fault.message in str(violation):
                return
    pytest.fail(f"not found by {MAX_SEEDS} seeds")
