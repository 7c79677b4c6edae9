"""Hundreds of seeds pass; and three faults, planted one at a time, are each caught."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from krea_batch.jobs import StoredFile
from krea_batch.ledger import LedgerStore
from krea_batch.pipeline.in_flight_job import InFlightJob
from krea_batch.pipeline.submitter import Submitter
from krea_batch.rules import lifecycle
from krea_batch.rules.lifecycle import AfterPost, Requeue
from krea_batch.rules.verdicts import Accepted, Ambiguous
from krea_batch.storage import image_file
from krea_batch.storage.image_file import ImageFile
from tests.simulation.__main__ import play
from tests.simulation.scenario import BrokenLaw, Play

pytestmark = pytest.mark.slow

SEEDS = 200
AT_ONCE = 25


@pytest.mark.parametrize("first", range(0, SEEDS, AT_ONCE))
def test_seeds(first: int) -> None:
    """Whatever goes wrong, no job is paid twice, no paid one is lost, and what succeeded is whole."""
    played = [play(seed) for seed in range(first, first + AT_ONCE)]
    assert [failed for *_, failed in played if failed] == []
    assert sum(deaths for _, deaths, _ in played) > 0


def test_a_seed_goes_the_same_way_again(tmp_path: Path) -> None:
    """Two plays of one seed take the same steps and leave the same books."""
    stories = []
    for name in ("one", "two"):
        current = Play(11, tmp_path / name / "out")
        current.play()
        stories.append((current.deaths, current.world.charged, current.world.tries))
    assert stories[0] == stories[1]


def caught(tmp_path: Path, broken: str, first: int = 0, most: int = 300) -> bool:
    """Whether the simulation, playing seeds from one that finds it soon, says this of the engine as it is now."""
    for seed in range(first, first + most):
        try:
            Play(seed, tmp_path / str(seed) / "out").play()
        except BrokenLaw as law:
            if broken in str(law):
                return True
    return False


def test_retrying_a_cut_post_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that takes a cut POST for one that was not sent pays twice, and is found out."""
    after_post = lifecycle.after_post

    def hopeful(verdict: Any, **known: Any) -> AfterPost:
        return Requeue(0.0, verdict.reason) if isinstance(verdict, Ambiguous) else after_post(verdict, **known)

    monkeypatch.setattr(lifecycle, "after_post", hopeful)
    assert caught(tmp_path, "was paid 2 times", first=25)


def test_recording_the_request_id_after_the_poll_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that goes on with an answer before it is on record is found out at its first poll."""
    go = Submitter._on_accepted

    async def hasty(self: Submitter, flight: InFlightJob, accepted: Accepted) -> None:
        await self._run.gateway.poll(accepted.request_id)
        await go(self, flight, accepted)

    monkeypatch.setattr(Submitter, "_go", hasty)
    assert caught(tmp_path, "which is not on record")


def test_renaming_before_the_sync_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that names a picture before it is synced leaves a torn one behind when the power goes."""

    name, named = ImageFile.commit_name, dict[ImageFile, StoredFile]()

    def hasty(self: ImageFile) -> None:
        named[self] = name(self)

    def late(self: ImageFile) -> StoredFile:
        disk = vars(image_file)["os"]
        fd = disk.open(Path(self.folder).parent / named[self].path, disk.O_WRONLY)
        disk.fsync(fd)
        disk.close(fd)
        return named.pop(self)

    monkeypatch.setattr(ImageFile, "sync", hasty)
    monkeypatch.setattr(ImageFile, "name", late)
    assert caught(tmp_path, "PngError", first=50)


def test_forgetting_an_acceptance_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ledger that takes an accepted POST for a refused one loses what was paid, and is found out."""

    def forgetful(self: LedgerStore, n: int, request_id: str, at: float) -> bool:
        self.revert_intent(n, "refused")
        return False

    monkeypatch.setattr(LedgerStore, "accept", forgetful)
    assert caught(tmp_path, "is not on record")


def test_the_seeds_are_as_many_as_are_asked_for(capfd: pytest.CaptureFixture[str]) -> None:
    """`python -m tests.simulation --seeds N` plays N seeds and says so."""
    from tests.simulation.__main__ import play_all

    assert play_all(range(4)) == 0
    assert "4 seeds, 28 runs" in capfd.readouterr().out
