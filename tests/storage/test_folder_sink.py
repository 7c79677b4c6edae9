"""`FolderSink` stores complete images in a directory and overwrites no foreign file."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import pytest

from krea_batch import Engine
from krea_batch.storage.sinks import SinkPermanentError, VerifiedImage
from krea_batch.storage.sinks.folder import FolderSink
from krea_batch.testing import ScriptedGateway, make_png, run_virtual
from tests.engine_fixtures import make_jobs, rows_by_id, run_jobs


def staged_image(folder: Path, data: bytes, name: str = "fox") -> VerifiedImage:
    digest = hashlib.sha256(data).hexdigest()
    path = folder / digest
    path.write_bytes(data)
    return VerifiedImage(name, 1, name, path, len(data), digest, 4, 3, "image/png")


def test_a_run_into_a_folder(tmp_path: Path) -> None:
    """Every image is at the path in the results, byte for byte. The run directory has none."""
    gateway, sink_dir = ScriptedGateway(), tmp_path / "nas/cats"
    engine = Engine(tmp_path / "out", gateway_client=gateway, sink=FolderSink(sink_dir))

    async def main() -> None:
        async with engine:
            await engine.run(make_jobs(5))

    run_virtual(main())
    rows = rows_by_id(tmp_path / "out")
    assert len(rows) == 5
    for row in rows.values():
        (file,) = row["files"]
        assert Path(file["path"]).read_bytes() == make_png(text=row["request"]["prompt"].encode())
    assert {Path(row["files"][0]["path"]) for row in rows.values()} == set(sink_dir.iterdir())
    assert list((tmp_path / "out/images").iterdir()) == []
    run_virtual(run_jobs(tmp_path / "out", gateway, make_jobs(5)))
    assert len(gateway.charged) == 5


def test_a_second_put_is_idempotent_and_foreign_files_stay(tmp_path: Path) -> None:
    """Storing an image twice creates one file. Foreign files and links keep their names."""
    sink_dir = tmp_path / "sink"
    sink, one, other = FolderSink(sink_dir), make_png(text=b"one"), make_png(text=b"two")

    async def main() -> list[str]:
        await sink.check()
        (sink_dir / "owl.png").symlink_to(tmp_path / "target")
        images = [staged_image(tmp_path, one), staged_image(tmp_path, one), staged_image(tmp_path, other)]
        return [await sink.put(image) for image in [*images, staged_image(tmp_path, one, "owl")]]

    names = [Path(path).name for path in asyncio.run(main())]
    assert names == ["fox.png", "fox.png", "fox~2.png", "owl~2.png"]
    assert (sink_dir / "fox.png").read_bytes() == one
    assert (sink_dir / "fox~2.png").read_bytes() == other
    assert not (tmp_path / "target").exists()
    assert {path.name for path in sink_dir.iterdir()} == {"fox.png", "fox~2.png", "owl.png", "owl~2.png"}


def test_a_path_that_cannot_be_a_folder(tmp_path: Path) -> None:
    """`check` raises SinkPermanentError with the path and the next step, before anything is charged."""
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SinkPermanentError, match=r"file/cats .*run again to resume"):
        asyncio.run(FolderSink(tmp_path / "file/cats").check())
