"""Thumbnails are kept in the run directory, made during a run, and never needed: losing them costs time only."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
from PIL import Image

from krea_batch.events import JobEnded
from krea_batch.gallery import thumbnail_files
from krea_batch.gallery.thumbnail_files import LocalImage, ThumbnailFiles, is_complete_webp
from krea_batch.gallery.thumbnail_maker import ThumbnailMaker
from krea_batch.gallery.thumbnails import RunThumbnails, thumbnail
from krea_batch.jobs import Outcome, State, StoredFile
from krea_batch.storage.run_dir import THUMBNAILS
from tests.gallery.gallery_fixtures import SeedJob, make_run
from tests.processes import StartSimulator, run_command, start_command, wait_until, write_jobs


def make_image(out: Path, colour: str = "red") -> LocalImage:
    """Write an image into a directory."""
    path = out / f"{colour}.png"
    Image.new("RGB", (300, 200), colour).save(path)
    return LocalImage(path, sha256(path.read_bytes()).hexdigest())


def kept_names(out: Path) -> list[str]:
    """Return the names of the files in thumbnails/."""
    return sorted(path.name for path in (out / THUMBNAILS).iterdir()) if (out / THUMBNAILS).is_dir() else []


class TestKeptThumbnails:
    def test_each_is_made_once(self, tmp_path: Path) -> None:
        """A thumbnail that is kept is read, not made again: its image may even be gone."""
        image = make_image(tmp_path)
        made = RunThumbnails(tmp_path).get(image)
        assert kept_names(tmp_path) == [f"{image.sha256}.webp"]
        image.path.unlink()
        assert made is not None
        assert RunThumbnails(tmp_path).get(image) == made

    def test_other_widths_are_not_kept(self, tmp_path: Path) -> None:
        """A thumbnail of another width is neither kept nor read from the kept ones."""
        image = make_image(tmp_path)
        RunThumbnails(tmp_path).get(image)
        assert RunThumbnails(tmp_path, 64).get(image) == thumbnail(image.path, 64)
        assert kept_names(tmp_path) == [f"{image.sha256}.webp"]

    @pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:-1], lambda data: bytes(len(data))])
    def test_an_incomplete_file(self, damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
        """A file that a power failure has cut or emptied is made again."""
        image = make_image(tmp_path)
        made = RunThumbnails(tmp_path).get(image)
        assert made is not None
        kept = tmp_path / THUMBNAILS / f"{image.sha256}.webp"
        kept.write_bytes(damage(made))
        assert RunThumbnails(tmp_path).get(image) == made
        assert kept.read_bytes() == made

    def test_what_is_no_webp(self) -> None:
        """Only the length and the marks of the header count."""
        assert is_complete_webp(b"RIFF\x04\0\0\0WEBP")
        assert not is_complete_webp(b"RIFF\x05\0\0\0WEBP")
        assert not is_complete_webp(b"RIFF\x04\0\0\0WAVE")

    def test_a_directory_that_cannot_be_written(self, tmp_path: Path) -> None:
        """Where nothing can be kept, the thumbnail is made each time."""
        image = make_image(tmp_path)
        (tmp_path / THUMBNAILS).write_text("not a directory")
        assert RunThumbnails(tmp_path).get(image) == thumbnail(image.path)
        assert (tmp_path / THUMBNAILS).read_text() == "not a directory"

    def test_a_disk_that_is_nearly_full(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The rest of a disk is left to images."""
        monkeypatch.setattr(thumbnail_files, "MIN_FREE_BYTES", 1 << 62)
        image = make_image(tmp_path)
        assert RunThumbnails(tmp_path).get(image) == thumbnail(image.path)
        assert kept_names(tmp_path) == []

    def test_a_link_is_no_directory(self, tmp_path: Path) -> None:
        """A symbolic link, as in someone else's run, is not followed to write."""
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / THUMBNAILS).symlink_to(tmp_path / "elsewhere")
        assert RunThumbnails(tmp_path).get(make_image(tmp_path)) is not None
        assert list((tmp_path / "elsewhere").iterdir()) == []

    @pytest.mark.parametrize("name", ["../../evil", "", "A" * 64, f"{'a' * 64}/x"])
    def test_a_ledger_with_a_hostile_hash(self, name: str, tmp_path: Path) -> None:
        """What is no SHA-256 is neither written nor read as a name."""
        ThumbnailFiles(tmp_path).write(name, b"RIFF\x04\0\0\0WEBP")
        assert kept_names(tmp_path) == []
        assert ThumbnailFiles(tmp_path).read(name) is None


def ended_job(path: str, sha256: str) -> JobEnded:
    """Return the event of a job with one image."""
    files = (StoredFile(path, 1, sha256, 300, 200, "image/png"),)
    return JobEnded(
        Outcome(
            id="one", status=State.SUCCEEDED, request_id=None, files=files, error=None, request={}, metadata={},
            polls=1, attempts=1, submitted_at=None, accepted_at=None, finished_at=None, stored_at=None,
        )
    )  # fmt: skip


def ended_job_in(out: Path) -> JobEnded:
    """Return the event of a job whose image is in this directory."""
    image = make_image(out)
    return ended_job(image.path.name, image.sha256)


def start_child(maker: ThumbnailMaker, event: JobEnded) -> int:
    """Let a maker queue an image, and return the id of its child process."""
    maker.on_event(event)
    assert maker.pid is not None
    return maker.pid


class TestThumbnailMaker:
    def test_it_has_no_key(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The process that decodes bytes of other servers has the lowest priority, and not the API key."""
        monkeypatch.setenv("PIXAZO_API_KEY", "secret-key")
        with ThumbnailMaker(tmp_path) as maker:
            child = start_child(maker, ended_job_in(tmp_path))
            wait_until(lambda: bool(kept_names(tmp_path)))
            assert b"secret-key" not in Path(f"/proc/{child}/environ").read_bytes()
            assert os.getpriority(os.PRIO_PROCESS, child) == 19

    def test_a_stopped_process_delays_nothing(self, tmp_path: Path) -> None:
        """If the process does not read, events are dropped, and it is killed at the end."""
        with ThumbnailMaker(tmp_path) as maker:
            event = ended_job_in(tmp_path)
            child = start_child(maker, event)
            os.kill(child, signal.SIGSTOP)
            for _ in range(5000):
                maker.on_event(event)
        assert not Path(f"/proc/{child}").exists()

    def test_a_killed_process(self, tmp_path: Path) -> None:
        """If the process is killed, as for its memory, no further event is sent, and none raises."""
        with ThumbnailMaker(tmp_path) as maker:
            event = ended_job_in(tmp_path)
            child = start_child(maker, event)
            os.kill(child, signal.SIGKILL)
            wait_until(lambda: Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z")
            for _ in range(10):
                maker.on_event(event)
            assert maker.pid == child

    def test_images_elsewhere(self, tmp_path: Path) -> None:
        """For an image in an object store, no process is started."""
        with ThumbnailMaker(tmp_path) as maker:
            maker.on_event(ended_job("s3://bucket/one.png", "0" * 64))
            assert maker.pid is None


@pytest.mark.slow
class TestThumbnailCommands:
    def test_they_are_made_as_images_arrive(self, simulate: StartSimulator, tmp_path: Path) -> None:
        """While other jobs are still in flight, the first images have their thumbnails."""
        gateway = simulate("--latency=bimodal:0.1,300,0.5", "--tiny", "--seed=1")
        write_jobs(tmp_path / "jobs.jsonl", 20)
        options = ("--poll-interval=0.1", "--rate=50/s", "-q", "--gateway", gateway.gateway_url)
        process = start_command("run", "jobs.jsonl", "--out", "run", *options, cwd=tmp_path)
        wait_until(lambda: bool(kept_names(tmp_path / "run")))
        assert process.poll() is None
        process.kill()
        process.communicate()

    def test_without_them(self, simulate: StartSimulator, tmp_path: Path) -> None:
        """With --no-thumbnails, a run makes none."""
        gateway = simulate("--latency=fixed:0.1", "--tiny")
        write_jobs(tmp_path / "jobs.jsonl", 2)
        options = ("--poll-interval=0.1", "-q", "--no-thumbnails", "--gateway", gateway.gateway_url)
        assert run_command("run", "jobs.jsonl", "--out", "run", *options, cwd=tmp_path).returncode == 0
        assert not (tmp_path / "run" / THUMBNAILS).exists()

    def test_a_second_report(self, tmp_path: Path) -> None:
        """A report keeps its thumbnails, and the next one is the same file without decoding an image."""
        out = make_run(tmp_path / "run", SeedJob(id="one"), SeedJob(id="two"))
        assert run_command("report", out, cwd=tmp_path).returncode == 0
        first = (out / "report.html").read_bytes()
        assert len(kept_names(out)) == 2
        for image in (out / "images").iterdir():
            image.write_bytes(b"")
        assert run_command("report", out, cwd=tmp_path).returncode == 0
        assert (out / "report.html").read_bytes() == first

    def test_other_commands(self, tmp_path: Path) -> None:
        """Thumbnails are no images of the run: `verify` and `export` do not see them, and no output replaces them."""
        out = make_run(tmp_path / "run", SeedJob(id="one"))
        assert run_command("report", out, cwd=tmp_path).returncode == 0
        assert run_command("verify", out, cwd=tmp_path).returncode == 0
        export = ("export", out, "--format", "csv", "--output")
        done = run_command(*export, "images.csv", cwd=tmp_path)
        assert "1 image in" in done.stdout
        done = run_command(*export, out / THUMBNAILS / "images.csv", cwd=tmp_path)
        assert (done.returncode, "is a part of the run" in done.stderr) == (2, True)
