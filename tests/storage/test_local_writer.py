"""`LocalImageWriter` commits images in groups; an error of one does not affect the others."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from krea_batch.jobs import StoredFile
from krea_batch.storage import local_writer
from krea_batch.storage.image_file import ImageError, ImageFile
from krea_batch.storage.local_writer import GROUP_INTERVAL_S, MAX_GROUP_IMAGES, MAX_GROUPS, LocalImageWriter
from krea_batch.testing import make_png, run_virtual


class SlowDisk:
    """Replaces `DiskThreads`: each group takes `sync_s`, and the sizes of groups are recorded."""

    def __init__(self, sync_s: float = 0.1) -> None:
        self.sync_s = sync_s
        self.groups: list[int] = []
        self.concurrent = 0
        self.max_concurrent = 0

    def run(self, work: Any, group: list[Any]) -> asyncio.Future[Any]:
        return asyncio.ensure_future(self._run(work, group))

    async def _run(self, work: Any, group: list[Any]) -> Any:
        self.groups.append(len(group))
        self.concurrent += 1
        self.max_concurrent = max(self.max_concurrent, self.concurrent)
        await asyncio.sleep(self.sync_s)
        self.concurrent -= 1
        return work(group)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    return tmp_path


def finish_all(disk: SlowDisk, out: Path, bodies: list[bytes]) -> list[StoredFile | BaseException]:
    """Finish an image of each body, all simultaneously."""

    async def main() -> list[StoredFile | BaseException]:
        writer = LocalImageWriter(cast("Any", disk), 1000)  # `run` is all that it uses
        writes = (writer.finish(ImageFile(out, f"p{n}", n), [body]) for n, body in enumerate(bodies))
        return await asyncio.gather(*writes, return_exceptions=True)

    return run_virtual(main())


def test_a_single_image_is_not_delayed(out: Path) -> None:
    """If the disk is idle, an image is written immediately; those that arrive meanwhile are written together."""
    disk = SlowDisk()
    results = finish_all(disk, out, [make_png(text=b"%d" % n) for n in range(10)])
    assert disk.groups == [1, 9]
    assert [result.path for result in results if isinstance(result, StoredFile)] == [
        f"images/p{n}.png" for n in range(10)
    ]


@pytest.mark.parametrize(("downloads", "duration_s"), [(1000, GROUP_INTERVAL_S), (2, 0.0)])
def test_images_that_follow_soon_share_a_group(out: Path, downloads: int, duration_s: float) -> None:
    """On a fast disk, images wait for others, unless every download already waits for an image to be stored."""
    disk = SlowDisk(0.0)

    async def main() -> float:
        loop = asyncio.get_running_loop()
        writer = LocalImageWriter(cast("Any", disk), downloads)
        await writer.finish(ImageFile(out, "first", 0), [make_png()])
        started_s = loop.time()
        await asyncio.gather(*(writer.finish(ImageFile(out, f"p{n}", n), [make_png()]) for n in (1, 2)))
        return loop.time() - started_s

    assert run_virtual(main()) == pytest.approx(duration_s, abs=0.002)
    assert disk.groups == [1, 2]


def test_many_images_make_several_groups(out: Path) -> None:
    """If more images wait than a group takes, several groups are written in parallel, up to the limit."""
    disk = SlowDisk()
    count = MAX_GROUP_IMAGES * (MAX_GROUPS + 3)
    results = finish_all(disk, out, [make_png(text=b"%d" % n) for n in range(count)])
    assert all(isinstance(result, StoredFile) for result in results)
    assert sum(disk.groups) == count
    assert max(disk.groups) == MAX_GROUP_IMAGES
    assert disk.max_concurrent == MAX_GROUPS


def test_large_images_do_not_wait_for_a_full_group(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A group is also full when it reaches the maximum number of bytes."""
    monkeypatch.setattr(local_writer, "MAX_GROUP_BYTES", 150)
    disk = SlowDisk()
    finish_all(disk, out, [make_png(text=b"%d" % n) for n in range(4)])
    assert disk.max_concurrent > 1


def test_one_that_fails_fails_alone(out: Path) -> None:
    """An incomplete image, or one that cannot be written, gets its error. The others of its group are stored."""
    (out / "images" / "p2.2.png.part").mkdir()  # prevents its creation as a file
    bodies = [make_png(text=b"0"), b"<html>", make_png(text=b"2"), make_png(text=b"3")]
    first, html, blocked, last = finish_all(SlowDisk(), out, bodies)
    assert isinstance(first, StoredFile)
    assert isinstance(html, ImageError)
    assert isinstance(blocked, OSError)
    assert isinstance(last, StoredFile)


def test_a_folder_that_cannot_be_synced_fails_all(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the directory cannot be synced, no image of the group is stored, since a power cut could remove its name."""

    def fail_sync(_: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("krea_batch.storage.image_file.fsync_path", fail_sync)
    results = finish_all(SlowDisk(), out, [make_png(text=b"%d" % n) for n in range(3)])
    assert all(isinstance(result, OSError) for result in results)
