"""A hundred seeds pass, and each of four deliberate bugs is found.

`make simtest` runs 10,000 seeds on all cores; SEEDS=N runs another number.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from krea_batch.jobs import StoredFile
from krea_batch.ledger import LedgerStore
from krea_batch.pipeline.executor import TransitionExecutor
from krea_batch.pipeline.in_flight_job import InFlightJob
from krea_batch.rules import lifecycle
from krea_batch.rules.lifecycle import Action, Transition
from krea_batch.rules.verdicts import Ambiguous, NotSent
from krea_batch.storage import image_file
from krea_batch.storage.image_file import ImageFile
from tests.simulation.__main__ import run_seed
from tests.simulation.scenario import InvariantViolation, Scenario

pytestmark = pytest.mark.slow

SEED_COUNT = 100  # chosen: about a minute of processor time
SEEDS_PER_TEST = 25


@pytest.mark.parametrize("first", range(0, SEED_COUNT, SEEDS_PER_TEST))
def test_seeds(first: int) -> None:
    """With random faults and crashes no job is charged twice, no charged job is lost, and all images are complete."""
    results = [run_seed(seed) for seed in range(first, first + SEEDS_PER_TEST)]
    assert [failure for *_, failure in results if failure] == []
    assert sum(crashes for _, crashes, _ in results) > 0


def test_a_seed_is_reproducible(tmp_path: Path) -> None:
    """Two runs of one seed take the same steps and have the same charges."""
    histories = []
    for name in ("one", "two"):
        scenario = Scenario(11, tmp_path / name / "out")
        scenario.run()
        histories.append((scenario.crashes, scenario.gateway.charged, scenario.gateway.attempts))
    assert histories[0] == histories[1]


def finds_violation(tmp_path: Path, message: str, first: int = 0, max_seeds: int = 300) -> bool:
    """Return whether one of the seeds finds a violation with this message. `first` is chosen to find it soon."""
    for seed in range(first, first + max_seeds):
        try:
            Scenario(seed, tmp_path / str(seed) / "out").run()
        except InvariantViolation as violation:
            if message in str(violation):
                return True
    return False


def test_retrying_a_cut_post_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug that retries a cut POST as if it had not been sent is found: a job is charged twice."""
    after_post = lifecycle.after_post

    def requeue_cut_post(verdict: Any, **known: Any) -> Transition:
        return after_post(NotSent(verdict.reason) if isinstance(verdict, Ambiguous) else verdict, **known)

    monkeypatch.setattr(lifecycle, "after_post", requeue_cut_post)
    assert finds_violation(tmp_path, "was charged 2 times", first=25)


def test_recording_the_request_id_after_the_poll_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug that polls before the request_id is recorded is found."""
    apply = TransitionExecutor.apply

    async def poll_before_recording(self: TransitionExecutor, job: InFlightJob, transition: Transition) -> bool:
        if transition.action is Action.ACCEPT:
            await self._run.gateway.poll(transition.request_id)
        return await apply(self, job, transition)

    monkeypatch.setattr(TransitionExecutor, "apply", poll_before_recording)
    assert finds_violation(tmp_path, "which is not recorded")


def test_renaming_before_the_sync_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug that renames an image before it is synced is found: a power loss leaves an incomplete one."""
    commit_name, stored_by_image = ImageFile.commit_name, dict[ImageFile, StoredFile]()

    def name_before_sync(self: ImageFile) -> None:
        stored_by_image[self] = commit_name(self)

    def sync_after_name(self: ImageFile) -> StoredFile:
        disk = vars(image_file)["os"]
        fd = disk.open(Path(self.images_dir).parent / stored_by_image[self].path, disk.O_WRONLY)
        disk.fsync(fd)
        disk.close(fd)
        return stored_by_image.pop(self)

    monkeypatch.setattr(ImageFile, "sync", name_before_sync)
    monkeypatch.setattr(ImageFile, "commit_name", sync_after_name)
    assert finds_violation(tmp_path, "PngError", first=50)


def test_forgetting_an_acceptance_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug that records an accepted POST as refused is found: a charge is not recorded."""

    def forget_acceptance(self: LedgerStore, n: int, request_id: str, at: float) -> bool:
        self.revert_intent(n, "refused")
        return False

    monkeypatch.setattr(LedgerStore, "mark_accepted", forget_acceptance)
    assert finds_violation(tmp_path, "is not recorded")


def test_the_requested_number_of_seeds_runs(capfd: pytest.CaptureFixture[str]) -> None:
    """`python -m tests.simulation --seeds N` runs N seeds and prints their number."""
    from tests.simulation.__main__ import run_seeds

    assert run_seeds(range(4)) == 0
    assert "4 seeds, 28 runs" in capfd.readouterr().out
