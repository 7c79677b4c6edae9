"""Jobs name their images, also in folders, and everything that walks the images of a run finds them."""

from __future__ import annotations

import asyncio
import errno
import hashlib
from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore.store import MemoryStore

from krea_batch import Engine, Job
from krea_batch.errors import RunDirError
from krea_batch.gallery.report import write_report
from krea_batch.jobs import State, StoredFile
from krea_batch.maintenance.export import RunImages
from krea_batch.maintenance.recover import recover_run
from krea_batch.maintenance.verify import check_images
from krea_batch.rules.verdicts import Failed
from krea_batch.storage import atomic
from krea_batch.storage.image_file import ImageFile, commit_many
from krea_batch.storage.sinks import VerifiedImage
from krea_batch.storage.sinks.folder import FolderSink
from krea_batch.storage.sinks.object_store import ObjectStoreSink
from krea_batch.testing import ScriptedGateway, make_png, run_until_killed, run_virtual
from tests.engine_fixtures import query_ledger, rows_by_id, run_jobs

JOBS = [
    Job(prompt="a cat", id="1", image_name="cats/old/a.png"),
    Job(prompt="a dog", id="2", image_name="dogs/a"),
    Job(prompt="a fox", id="3"),
    Job(prompt="a second cat", id="4", image_name="cats/old/a"),
]
PATHS = {"1": "images/cats/old/a.png", "2": "images/dogs/a.png", "3": "images/3.png", "4": "images/cats/old/a~2.png"}


def run(out: Path, gateway: ScriptedGateway, jobs: list[Job] | None = None, **options: Any) -> None:
    run_virtual(run_jobs(out, gateway, JOBS if jobs is None else jobs, rate="1/s", **options))


def paths(out: Path) -> dict[str, str]:
    """Return the path of the only image of each job, after comparing its bytes with its prompt."""
    found = {}
    for job_id, row in rows_by_id(out).items():
        (file,) = row["files"]
        assert (out / file["path"]).read_bytes() == make_png(text=row["request"]["prompt"].encode())
        found[job_id] = file["path"]
    return found


@pytest.mark.parametrize("name", [
    "/etc/x", "../x", "a/../b", "a//b", "a/", "a/.", "a\\b", "a\n", "x" * 201, "/".join(["x" * 199] * 5),
    "cats.png/1", "a.part/1", "\ud800", "cats/.png",
])  # fmt: skip
def test_names_that_are_no_paths(name: str) -> None:
    """A name that leads elsewhere, is too long, or may collide with a file is refused."""
    with pytest.raises(ValueError, match="image_name"):
        Job(prompt="a", image_name=name)


def test_a_name_of_another_type() -> None:
    """A name that is not text is refused as a prompt that is not."""
    with pytest.raises(TypeError, match="image_name is list, not str"):
        Job(prompt="a", id="a", image_name=["x"])  # type: ignore[arg-type]


def test_images_get_their_names(tmp_path: Path) -> None:
    """Rows have the paths, an extension in a name is not doubled, and no image replaces another of the same name."""
    run(tmp_path, ScriptedGateway())
    assert paths(tmp_path) == PATHS
    with RunImages(tmp_path) as images:
        assert [(image.outcome.id, problem) for image, problem in check_images(images)] == [(n, None) for n in PATHS]


def test_further_images_of_a_job(tmp_path: Path) -> None:
    """The second image of a job has its name with -2."""
    gateway = ScriptedGateway()
    gateway.poll_script["a cat"] = [gateway.finished("krea-2-large-text-to-image_00000000", 2)]

    async def main() -> None:
        async with Engine(tmp_path, gateway_client=gateway) as engine:
            outcome = await engine.generate(JOBS[0])
            assert [file.path for file in outcome.files] == ["images/cats/old/a.png", "images/cats/old/a-2.png"]

    run_virtual(main())


@pytest.mark.parametrize("killed_after_s", [2.0, 10.0, 15.0, 16.5, 17.5, 18.5])
def test_a_killed_run_keeps_the_names(tmp_path: Path, killed_after_s: float) -> None:
    """Jobs of a killed run get the names with which they were submitted, whatever those of the next run are."""
    gateway = ScriptedGateway()
    run_until_killed(run_jobs(tmp_path, gateway, JOBS, rate="1/s"), killed_after_s, tmp_path)
    submitted = {job_id for (job_id,) in query_ledger(tmp_path, "SELECT job_id FROM jobs")}
    renamed = [Job(prompt=job.prompt, id=job.id, image_name=f"new/{job.id}") for job in JOBS]
    run(tmp_path, gateway, renamed)
    expected = {job_id: path if job_id in submitted else f"images/new/{job_id}.png" for job_id, path in PATHS.items()}
    assert paths(tmp_path) == expected
    assert sorted(gateway.charged.values()) == sorted(job.prompt for job in JOBS)
    assert not list((tmp_path / "images").rglob("*.part"))


def test_a_retried_job_keeps_its_name(tmp_path: Path) -> None:
    """A job that is pending again is stored under its name."""
    gateway = ScriptedGateway()

    async def enqueue() -> None:
        engine = Engine(tmp_path, gateway_client=gateway)
        await engine.start()
        await engine.enqueue(JOBS[0])
        await engine.aclose(detach=True)

    run_virtual(enqueue())
    run(tmp_path, gateway, [])
    assert paths(tmp_path) == {"1": PATHS["1"]}


class TestLostLedger:
    def test_an_image_in_a_folder_says_that_a_job_is_paid(self, tmp_path: Path) -> None:
        """Without the ledger and the results, the image of a job's name stops the run before anything is charged."""
        run(tmp_path, ScriptedGateway(), JOBS[:1])
        for name in ("ledger.db", "results.jsonl"):
            (tmp_path / name).unlink()
        gateway = ScriptedGateway()
        with pytest.raises(RunDirError, match=r"would submit for the first time \(cats/old/a\.png\)"):
            run(tmp_path, gateway, JOBS[:1])
        assert gateway.charged == {}

    def test_a_name_that_an_accepted_job_has(self, tmp_path: Path) -> None:
        """A new job may have the name of a stored image, since its owner is known."""
        gateway = ScriptedGateway()
        run(tmp_path, gateway, JOBS[:1])
        run(tmp_path, gateway, JOBS)
        assert paths(tmp_path) == PATHS

    def test_an_id_is_no_name(self, tmp_path: Path) -> None:
        """An image named by the id of a job that has another name is not taken for that job's."""
        gateway = ScriptedGateway()
        run(tmp_path, gateway, JOBS[:1])
        (tmp_path / "images/1.png").write_bytes(make_png())
        with pytest.raises(RunDirError, match=r"\(1\.png\)"):
            run(tmp_path, gateway, [*JOBS[:1], Job(prompt="new", id="n", image_name="1")])
        assert list(gateway.charged.values()) == ["a cat"]

    def test_recover(self, tmp_path: Path) -> None:
        """The rebuilt ledger knows the images of its jobs in every folder, and reports other images by their path."""
        run(tmp_path, ScriptedGateway())
        (tmp_path / "images/dogs/b.png").write_bytes(make_png(text=b"b"))
        (tmp_path / "images/x.9.png.part").write_bytes(b"half")
        (tmp_path / "ledger.db").unlink()
        report = recover_run(tmp_path)
        assert report.added == {State.SUCCEEDED: len(JOBS)}
        assert report.unknown_images == ["dogs/b.png"]
        assert report.unfinished_downloads == ["x.9.png.part"]
        assert report.missing_images == 0
        names = query_ledger(tmp_path, "SELECT job_id, image_name FROM jobs ORDER BY job_id")
        assert names == [("1", "cats/old/a"), ("2", "dogs/a"), ("3", None), ("4", "cats/old/a")]

    def test_a_part_of_a_named_job(self, tmp_path: Path) -> None:
        """The unfinished download of a job with a name belongs to that job."""
        gateway = ScriptedGateway()
        gateway.poll_script["a dog"] = [Failed("bad luck")]
        run(tmp_path, gateway)
        for name in ("1.1.png.part", "2.2.png.part", "1-2.1.png.part", "new.5.png.part"):
            (tmp_path / "images" / name).write_bytes(b"half")
        assert recover_run(tmp_path).unfinished_downloads == ["new.5.png.part"]


class TestDurableFolders:
    def test_every_folder_is_synced_after_the_renames(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """All directories from images/ down to an image are synced, also those that exist: a killed run may have
        created them an instant before."""
        synced: list[str] = []

        def record(fd: int) -> None:
            synced.append(Path(f"/proc/self/fd/{fd}").readlink().relative_to(tmp_path).as_posix())

        monkeypatch.setattr(atomic, "sync_fd", record)
        (tmp_path / "images/a").mkdir(parents=True)
        images = [
            ImageFile(tmp_path, name, n, job_id=f"j{n}") for n, name in enumerate(["a/b/1", "a/b/2", "c/3", "4"])
        ]
        stored = commit_many([(image, [make_png(text=image.stem.encode())]) for image in images])
        assert all(isinstance(file, StoredFile) for file in stored)
        assert sorted(synced[-4:]) == ["images", "images/a", "images/a/b", "images/c"]

    def test_a_folder_that_cannot_be_made(self, tmp_path: Path) -> None:
        """If a file has the name of a folder, both the file and the `.part` file stay, and others are stored."""
        (tmp_path / "images").mkdir()
        (tmp_path / "images/a").write_bytes(b"mine")
        first, second = commit_many(
            [(ImageFile(tmp_path, name, n, job_id=f"j{n}"), [make_png()]) for n, name in enumerate(["a/1", "b/2"])]
        )
        assert isinstance(first, OSError)
        assert first.errno in (errno.EEXIST, errno.ENOTDIR)
        assert isinstance(second, StoredFile)
        assert (tmp_path / "images/a").read_bytes() == b"mine"
        assert (tmp_path / "images/j0.0.png.part").read_bytes() == make_png()

    def test_a_link_is_no_folder(self, tmp_path: Path) -> None:
        """A symbolic link in place of a folder is not followed: it would lead out of the run directory."""
        (tmp_path / "images").mkdir()
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "images/a").symlink_to(tmp_path / "elsewhere")
        (result,) = commit_many([(ImageFile(tmp_path, "a/b/1", 1, job_id="j"), [make_png()])])
        assert isinstance(result, OSError)
        assert result.errno == errno.ELOOP
        assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_folder_sink_has_folders(tmp_path: Path) -> None:
    """Another directory gets the same paths as images/ would."""
    run(tmp_path / "out", ScriptedGateway(), sink=FolderSink(tmp_path / "nas"))
    found = {job_id: row["files"][0]["path"] for job_id, row in rows_by_id(tmp_path / "out").items()}
    assert found == {job_id: f"{tmp_path}/nas/{path.removeprefix('images/')}" for job_id, path in PATHS.items()}
    assert all(Path(path).is_file() for path in found.values())


def test_an_object_store_has_folders(tmp_path: Path) -> None:
    """The key of an object has the folders of the name."""
    data = make_png()
    (tmp_path / "part").write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    image = VerifiedImage("1", 1, "cats/old/a", tmp_path / "part", len(data), digest, 4, 3, "image/png")
    store = MemoryStore()
    path = asyncio.run(ObjectStoreSink(store, prefix="run").put(image))
    assert path.endswith("/run/cats/old/a.png")
    assert bytes(obstore.get(store, "run/cats/old/a.png").bytes()) == data


def test_the_report_shows_images_in_folders(tmp_path: Path) -> None:
    """A report links the images in folders as the others."""
    run(tmp_path / "out", ScriptedGateway())
    write_report(tmp_path / "out", tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert all(f"out/{path}" in text for path in PATHS.values())


def test_a_sink_gets_the_name_with_folders(tmp_path: Path) -> None:
    """A caller's own sink gets the name of the image, and the id of the job."""
    received: list[tuple[str, str]] = []

    class RecordingSink:
        async def check(self) -> None:
            await asyncio.sleep(0)

        async def put(self, image: VerifiedImage) -> str:
            received.append((image.job_id, image.name))
            return f"memory://{image.name}"

    run(tmp_path, ScriptedGateway(), JOBS[:1], sink=RecordingSink())
    assert received == [("1", "cats/old/a")]
