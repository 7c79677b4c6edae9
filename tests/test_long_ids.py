"""Ids of the maximum length work everywhere where a file or an object is named after the id."""

from __future__ import annotations

import asyncio
from pathlib import Path

import anyio
import pytest
from obstore.store import MemoryStore

from krea_batch import Engine, Job
from krea_batch.jobs import MAX_ID_BYTES
from krea_batch.maintenance.export.run_images import RunImages
from krea_batch.maintenance.export.writers import WRITERS, ExportOptions, export
from krea_batch.maintenance.verify import find_mismatch, repair
from krea_batch.rules.verdicts import Finished
from krea_batch.storage.sinks import Sink
from krea_batch.storage.sinks.folder import FolderSink
from krea_batch.storage.sinks.object_store import ObjectStoreSink
from krea_batch.testing import ScriptedDownload, ScriptedGateway, make_png, run_virtual
from tests.engine_fixtures import rows_by_id

IDS = ["x" * MAX_ID_BYTES, "ä" * (MAX_ID_BYTES // 2), "🦊" * (MAX_ID_BYTES // 4)]
OUTPUTS = 12


class ManyOutputs(ScriptedGateway):
    """A gateway whose jobs have twelve different images each."""

    def finished(self, request_id: str, outputs: int = OUTPUTS) -> Finished:
        return super().finished(request_id, outputs)

    async def download(self, url: str, *, offset: int = 0, etag: str | None = None) -> ScriptedDownload:
        self.download_script[self.charged[url.split("/")[-2]]] = [[make_png(text=url.encode())]]
        return await super().download(url)


async def run_long_ids(out: Path, sink: Sink | None) -> ScriptedGateway:
    gateway = ManyOutputs()
    async with Engine(out, gateway_client=gateway, sink=sink, poll_interval_s=0.01) as engine:
        await engine.run(Job(prompt=job_id[:3], id=job_id) for job_id in IDS)
    return gateway


def stored_names(out: Path) -> list[str]:
    """Return the names of all stored images, without directories. Check that every job succeeded."""
    rows = rows_by_id(out)
    assert {row["status"] for row in rows.values()} == {"succeeded"}
    return [file["path"].rpartition("/")[2] for row in rows.values() for file in row["files"]]


EXPECTED = [f"{job_id}{'' if n == 1 else f'-{n}'}.png" for job_id in IDS for n in range(1, OUTPUTS + 1)]


@pytest.mark.parametrize("kind", ["the run directory", "a folder", "an object store"])
def test_every_storage(tmp_path: Path, kind: str) -> None:
    """Jobs with ids of the maximum length and several images are stored, whatever the storage."""
    if kind == "an object store":  # It has threads of its own, which virtual time does not wait for.
        asyncio.run(run_long_ids(tmp_path / "out", ObjectStoreSink(MemoryStore(), "prefix")))
    else:
        sink = FolderSink(tmp_path / "sink") if kind == "a folder" else None
        run_virtual(run_long_ids(tmp_path / "out", sink))
    assert stored_names(tmp_path / "out") == EXPECTED


def test_a_folder_in_which_the_names_are_taken(tmp_path: Path) -> None:
    """The next free names fit, too."""
    (tmp_path / "sink").mkdir()
    for name in EXPECTED:
        (tmp_path / "sink" / name).write_text("mine")
    run_virtual(run_long_ids(tmp_path / "out", FolderSink(tmp_path / "sink")))
    assert stored_names(tmp_path / "out") == [name.replace(".png", "~2.png") for name in EXPECTED]


@pytest.mark.parametrize("format_name", WRITERS)
def test_every_export(tmp_path: Path, format_name: str) -> None:
    """All images are exported, and to an output whose own name is as long as a file system allows."""
    run_virtual(run_long_ids(tmp_path / "out", None))
    with RunImages(tmp_path / "out") as images:
        assert export(images, format_name, tmp_path / ("o" * 255), ExportOptions(embed=True)) == len(EXPECTED)


def test_repair(tmp_path: Path) -> None:
    """A damaged image is downloaded again and replaced under its long name."""
    gateway = run_virtual(run_long_ids(tmp_path / "out", None))
    with RunImages(tmp_path / "out") as run_images:
        for image in run_images.images():
            image.path.write_bytes(b"damaged")
            anyio.run(repair, image, gateway)
            assert find_mismatch(image) is None
