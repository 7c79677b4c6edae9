"""Test pipeline.downloader: charged images are stored complete, and no failure leads to another POST."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from krea_batch import Engine, Job, RunDirError, State
from krea_batch.events import Event, ImageStored, StateChanged
from krea_batch.gateway.url_policy import DownloadError
from krea_batch.ledger.sqlite import SqliteLedger
from krea_batch.rules.verdicts import Finished
from krea_batch.storage.image_file import ImageFile
from krea_batch.testing import IMAGE, ScriptedDownload, ScriptedGateway, make_png, run_until_killed, run_virtual
from tests.engine_fixtures import ledger_states, make_jobs, result_statuses, rows_by_id, run_jobs

CONNECTION_CUT = DownloadError("the connection was cut")


def image_of(prompt: str) -> bytes:
    """Return the image that ScriptedGateway serves for a prompt."""
    return make_png(text=prompt.encode())


def check_images(out: Path) -> None:
    """Check that every .png is complete and equals the image of its row, and that there are no others."""
    in_rows = {}
    for job_id, row in rows_by_id(out).items():
        for file in row["files"]:
            data = (out / file["path"]).read_bytes()
            assert hashlib.sha256(data).hexdigest() == file["sha256"]
            assert len(data) == file["bytes"]
            assert data == image_of(row["request"]["prompt"]), job_id
            in_rows[file["path"]] = job_id
    assert set(in_rows) == {f"images/{path.name}" for path in (out / "images").glob("*.png")}


def only_file(out: Path, job_id: str = "j0") -> bytes:
    (file,) = rows_by_id(out)[job_id]["files"]
    data: bytes = (out / file["path"]).read_bytes()
    return data


class TestOutputs:
    @pytest.mark.parametrize("count", [1, 2, 5])
    def test_several_outputs_are_several_files(self, tmp_path: Path, count: int) -> None:
        """Each output becomes a file with its number in the name; the row lists them in order."""

        class SeveralOutputsGateway(ScriptedGateway):
            def finished(self, request_id: str, outputs: int = 1) -> Finished:
                return super().finished(request_id, count)

            def image(self, request_id: str) -> bytes:
                return make_png(text=self.downloads[-1][0].encode())  # Each output is a different image.

        gateway = SeveralOutputsGateway()
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(1)))
        files = rows_by_id(tmp_path)["j0"]["files"]
        assert [file["path"] for file in files] == [
            "images/j0.png" if n == 1 else f"images/j0-{n}.png" for n in range(1, count + 1)
        ]
        assert len({file["sha256"] for file in files}) == count
        assert len(gateway.submitted_bodies) == 1

    def test_an_id_that_looks_like_an_output(self, tmp_path: Path) -> None:
        """Job `a` with two outputs and job `a-2`, downloaded at the same time, are both stored complete."""

        class TwoFilesGateway(ScriptedGateway):
            def finished(self, request_id: str, outputs: int = 1) -> Finished:
                return super().finished(request_id, 2 if self.charged[request_id] == "first" else 1)

        gateway = TwoFilesGateway()
        gateway.download_script["first"] = [
            IMAGE,
            [image_of("first")[:20], CONNECTION_CUT],
            (5.0, IMAGE),
        ]
        gateway.download_script["second"] = [[image_of("second")[:30], CONNECTION_CUT], (5.0, IMAGE)]
        todo = [Job(prompt="first", id="a"), Job(prompt="second", id="a-2")]
        run_virtual(run_jobs(tmp_path, gateway, todo))
        assert result_statuses(tmp_path) == {"a": "succeeded", "a-2": "succeeded"}
        assert len({file["path"] for row in rows_by_id(tmp_path).values() for file in row["files"]}) == 3
        check_images(tmp_path)

    @pytest.mark.parametrize("fails_at", [1, 2, 3])
    def test_finished_outputs_are_not_downloaded_again(self, tmp_path: Path, fails_at: int) -> None:
        """If one of three outputs fails, the others are not downloaded again."""

        class ThreeOutputsGateway(ScriptedGateway):
            def finished(self, request_id: str, outputs: int = 1) -> Finished:
                return super().finished(request_id, 3)

        gateway = ThreeOutputsGateway()
        gateway.download_script["j0"] = [IMAGE] * (fails_at - 1) + [CONNECTION_CUT, IMAGE]
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(1)))
        assert result_statuses(tmp_path) == {"j0": "succeeded"}
        assert len(gateway.downloads) == 4
        check_images(tmp_path)


class TestDownloadErrors:
    @pytest.mark.parametrize("at", [1, 8, 50, len(image_of("j0")) - 1])
    def test_a_cut_download_resumes_where_it_stopped(self, tmp_path: Path, at: int) -> None:
        """The rest is requested by Range, and the file is complete."""
        gateway = ScriptedGateway()
        gateway.download_script["j0"] = [[image_of("j0")[:at], CONNECTION_CUT], IMAGE]
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(1)))
        assert [offset for _, offset in gateway.downloads] == [0, at]
        check_images(tmp_path)

    def test_repeated_cuts(self, tmp_path: Path) -> None:
        """After five interruptions, the sixth response completes the image."""
        body = image_of("j0")
        gateway = ScriptedGateway()
        gateway.download_script["j0"] = [
            ScriptedDownload([body[at : at + 10], CONNECTION_CUT], offset=at) for at in range(0, 50, 10)
        ] + [IMAGE]  # fmt: skip
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(1)))
        assert [offset for _, offset in gateway.downloads] == [0, 10, 20, 30, 40, 50]
        check_images(tmp_path)

    def test_a_full_response_starts_over(self, tmp_path: Path) -> None:
        """A response from the first byte on replaces earlier bytes, even those of another image."""
        gateway = ScriptedGateway()
        gateway.download_script["j0"] = [[make_png(9, 9, text=b"old")[:60], CONNECTION_CUT], [image_of("j0")]]
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(1)))
        assert [offset for _, offset in gateway.downloads] == [0, 60]
        check_images(tmp_path)

    @pytest.mark.parametrize(
        "pieces",
        [
            [image_of("j0") + b"more"],
            [image_of("j0")[:-4] + b"????"],
            [b"<html>", b"try later</html>"],
            [image_of("j0")[:50]],
            [],
            [b"<html>", CONNECTION_CUT],
        ],
        ids=["trailing bytes", "wrong CRC", "HTML", "cut PNG that ends well", "nothing", "HTML, cut"],
    )
    def test_an_invalid_image_is_downloaded_again(self, tmp_path: Path, pieces: list[Any]) -> None:
        """An invalid image is downloaded again from its first byte, and leaves no trace."""
        gateway = ScriptedGateway()
        gateway.download_script["j0"] = [pieces, pieces, IMAGE]
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(1)))
        assert [offset for _, offset in gateway.downloads] == [0, 0, 0]
        assert len(gateway.submitted_bodies) == 1
        check_images(tmp_path)

    def test_no_etag_no_range(self, tmp_path: Path) -> None:
        """Without a strong ETag the rest may belong to another image, so all of it is downloaded again."""
        gateway = ScriptedGateway()
        gateway.download_script["j0"] = [
            ScriptedDownload([image_of("j0")[:50], CONNECTION_CUT], etag=None),
            IMAGE,
        ]
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(1)))
        check_images(tmp_path)

    @pytest.mark.parametrize(
        "error",
        [CONNECTION_CUT, DownloadError("HTTP 404", status=404), [b"<html>"], [image_of("j0")[:-1]]],
        ids=["cut", "404", "HTML", "short"],
    )
    def test_a_failed_download_is_left_to_the_next_run(self, tmp_path: Path, error: Any) -> None:
        """After download_patience_s the job is timed out; the next run downloads it without a charge."""
        gateway = ScriptedGateway()
        gateway.download_script["j0"] = [error]
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(2), download_patience_s=60.0))
        assert result_statuses(tmp_path) == {"j0": "timed_out", "j1": "succeeded"}
        assert rows_by_id(tmp_path)["j0"]["request_id"]
        assert rows_by_id(tmp_path)["j0"]["error"]["kind"] == "download"
        assert len([url for url, _ in gateway.downloads if "00000000" in url]) >= 3
        gateway.download_script.clear()
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(2)))
        assert result_statuses(tmp_path) == {"j0": "succeeded", "j1": "succeeded"}
        assert len(gateway.submitted_bodies) == 2
        check_images(tmp_path)

    @pytest.mark.parametrize("status", [403, 404, 410])
    def test_urls_that_have_expired(self, tmp_path: Path, status: int) -> None:
        """A job whose URLs have expired is polled for fresh ones, in this run or the next, without another POST."""

        class SignedUrlGateway(ScriptedGateway):
            def finished(self, request_id: str, outputs: int = 1) -> Finished:
                signature = len(self.poll_times_s[request_id])
                return Finished((f"https://cdn.example/{request_id}/{signature}.png",), "image/png")

        gateway = SignedUrlGateway()
        gateway.download_script["j0"] = [DownloadError(f"HTTP {status}", status=status), IMAGE]
        events: list[Event] = []
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(1), listeners=[events.append]))
        assert result_statuses(tmp_path) == {"j0": "succeeded"}
        assert len(set(gateway.downloads)) == 2
        assert len(gateway.submitted_bodies) == 1
        changes = [(event.old, event.new) for event in events if isinstance(event, StateChanged)]
        assert (State.FINISHED, State.ACCEPTED) in changes

    def test_urls_of_an_earlier_run_whose_host_is_gone(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A job that was left completed is polled for fresh URLs if the host of the old ones does not answer."""

        class MovingGateway(ScriptedGateway):
            host = "old.example"

            def finished(self, request_id: str, outputs: int = 1) -> Finished:
                return Finished((f"https://{self.host}/{request_id}/1.png",), "image/png")

            async def download(self, url: str, **more: Any) -> ScriptedDownload:
                if self.host not in url:
                    raise DownloadError("no connection")
                return await super().download(url, **more)

        def raise_disk_full(*_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        gateway = MovingGateway()
        with monkeypatch.context() as patch:
            patch.setattr(ImageFile, "commit_name", raise_disk_full)
            run_virtual(run_jobs(tmp_path, gateway, make_jobs(1)))
        assert ledger_states(tmp_path) == {"j0": "finished"}
        gateway.host = "new.example"
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(1)))
        assert result_statuses(tmp_path) == {"j0": "succeeded"}
        assert len(gateway.submitted_bodies) == 1
        check_images(tmp_path)

    def test_retry_after_pauses_the_host(self, tmp_path: Path) -> None:
        """A host that answers 429 with Retry-After gets no request of any download for that time."""
        gateway = ScriptedGateway()
        gateway.download_script["j0"] = [DownloadError("HTTP 429", status=429, retry_after_s=60.0), IMAGE]
        times_s: list[float] = []
        download = gateway.download

        async def record_time(url: str, **more: Any) -> ScriptedDownload:
            times_s.append(asyncio.get_running_loop().time())
            return await download(url, **more)

        gateway.download = record_time  # type: ignore[method-assign]
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(50), rate="5/s"))
        assert not [at_s for at_s in times_s if times_s[0] + 0.2 < at_s < times_s[0] + 60.0]
        assert set(result_statuses(tmp_path).values()) == {"succeeded"}


class TestOtherTypes:
    """Images that are not valid PNGs are paid for, too."""

    JPEG = b"\xff\xd8\xff\xe0 not a complete one, but of the announced size"

    def test_an_image_of_another_type(self, tmp_path: Path) -> None:
        """It is downloaded once, and stored under its own type with what is wrong with it."""
        gateway = ScriptedGateway()
        gateway.download_script["j0"] = [ScriptedDownload([self.JPEG], is_sized=True)]
        events: list[Event] = []
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(2), listeners=[events.append]))
        assert result_statuses(tmp_path) == {"j0": "succeeded", "j1": "succeeded"}
        (file,) = rows_by_id(tmp_path)["j0"]["files"]
        assert (file["path"], file["media_type"]) == ("images/j0.jpg", "image/jpeg")
        assert (file["width"], file["height"]) == (0, 0)
        assert file["defect"] == "image/jpeg instead of image/png; only its size was checked"
        assert only_file(tmp_path) == self.JPEG
        assert "defect" not in rows_by_id(tmp_path)["j1"]["files"][0]
        assert {event.job_id: event.defect for event in events if isinstance(event, ImageStored)} == {
            "j0": file["defect"],
            "j1": "",
        }
        assert len(gateway.downloads) == 2

    def test_a_part_completes_it(self, tmp_path: Path) -> None:
        """After a cut, the last part completes an image of another type as it does a PNG."""
        gateway = ScriptedGateway()
        gateway.download_script["j0"] = [
            ScriptedDownload([self.JPEG[:20], CONNECTION_CUT], is_sized=True),
            ScriptedDownload([self.JPEG[20:]], offset=20, is_sized=True),
        ]
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(1)))
        assert only_file(tmp_path) == self.JPEG

    def test_without_a_size(self, tmp_path: Path) -> None:
        """An image of another type whose size is unknown may be cut, so it is downloaded again."""
        gateway = ScriptedGateway()
        gateway.download_script["j0"] = [[self.JPEG[:20]], ScriptedDownload([self.JPEG], is_sized=True)]
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(1)))
        assert only_file(tmp_path) == self.JPEG
        assert len(gateway.downloads) == 2

    @pytest.mark.parametrize("is_clean_later", [True, False])
    def test_bytes_after_the_end(self, tmp_path: Path, is_clean_later: bool) -> None:
        """Bytes after the end of a PNG may be gone in the second response; if not, the image is kept with them."""
        surplus = ScriptedDownload([image_of("j0") + b"more"], is_sized=True)
        gateway = ScriptedGateway()
        gateway.download_script["j0"] = [surplus, IMAGE if is_clean_later else surplus]
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(1)))
        (file,) = rows_by_id(tmp_path)["j0"]["files"]
        assert file["path"] == "images/j0.png"
        assert only_file(tmp_path) == image_of("j0") + (b"" if is_clean_later else b"more")
        assert file.get("defect") == (None if is_clean_later else "4 bytes after the end of the PNG")
        assert len(gateway.downloads) == 2

    def test_a_lost_ledger(self, tmp_path: Path) -> None:
        """Without ledger and results, a stored image of another type shows that its job is paid for."""
        gateway = ScriptedGateway()
        gateway.download_script["j0"] = [ScriptedDownload([self.JPEG], is_sized=True)]
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(1)))
        for name in ("ledger.db", "results.jsonl"):
            (tmp_path / name).unlink()
        with pytest.raises(RunDirError, match=r"j0\.jpg"):
            run_virtual(run_jobs(tmp_path, gateway, make_jobs(1)))
        assert len(gateway.submitted_bodies) == 1


class TestDisk:
    def test_a_foreign_file_is_never_touched(self, tmp_path: Path) -> None:
        """A foreign file with the name of an image is not changed; the image gets another name."""
        (tmp_path / "images").mkdir()
        (tmp_path / "images" / "j0.png").write_bytes(b"holiday")
        run_virtual(run_jobs(tmp_path, ScriptedGateway(), make_jobs(1)))
        assert (tmp_path / "images" / "j0.png").read_bytes() == b"holiday"
        assert only_file(tmp_path) == image_of("j0")

    def test_a_file_of_a_crashed_run_is_adopted(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A crash between rename and ledger leaves one file, and so does the next run."""

        def kill(*_: object) -> None:
            raise KeyError("killed")

        gateway = ScriptedGateway()
        with monkeypatch.context() as patch:
            patch.setattr(SqliteLedger, "mark_stored_many", kill)
            with pytest.raises(KeyError):
                run_virtual(run_jobs(tmp_path, gateway, make_jobs(1)))
        assert ledger_states(tmp_path) == {"j0": "finished"}
        assert os.listdir(tmp_path / "images") == ["j0.png"]
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(1)))
        assert os.listdir(tmp_path / "images") == ["j0.png"]
        assert len(gateway.submitted_bodies) == 1
        check_images(tmp_path)

    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
    @pytest.mark.parametrize("method", ["write", "write_last", "sync", "commit_name"])
    def test_a_full_disk_stops_the_run(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, method: str
    ) -> None:
        """The run stops, the job stays finished, and the next run stores it without another POST."""

        def raise_disk_full(*_: object) -> None:
            raise OSError(code, os.strerror(code))

        gateway = ScriptedGateway()
        if method == "write":
            gateway.download_script["j0"] = [[image_of("j0")[:20], CONNECTION_CUT], IMAGE]
        with monkeypatch.context() as patch:
            patch.setattr(ImageFile, method, raise_disk_full)
            engine = run_virtual(run_jobs(tmp_path, gateway, make_jobs(1)))
        assert engine.stopped is not None
        assert os.strerror(code) in str(engine.stopped)
        assert ledger_states(tmp_path) == {"j0": "finished"}
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(1)))
        assert result_statuses(tmp_path) == {"j0": "succeeded"}
        assert len(gateway.submitted_bodies) == 1
        check_images(tmp_path)

    @pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE])
    @pytest.mark.parametrize("method", ["write", "write_last", "commit_name"])
    def test_too_many_open_files_are_waited_for(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, method: str
    ) -> None:
        """While too many files are open, the image is tried again later; the run goes on."""
        original, failures = getattr(ImageFile, method), [code] if method == "write" else [code, code]

        def fail_at_first(*args: Any) -> Any:
            if failures:
                raise OSError(failures[0], os.strerror(failures.pop()))
            return original(*args)

        gateway = ScriptedGateway()
        if method == "write":
            gateway.download_script["j0"] = [[image_of("j0")[:20], CONNECTION_CUT], IMAGE]
        monkeypatch.setattr(ImageFile, method, fail_at_first)
        engine = run_virtual(run_jobs(tmp_path, gateway, make_jobs(1)))
        assert engine.stopped is None
        assert failures == []
        assert result_statuses(tmp_path) == {"j0": "succeeded"}
        check_images(tmp_path)

    def test_a_stop_leaves_no_file_open(self, tmp_path: Path) -> None:
        """A download of many megabytes that is interrupted by abort leaks no descriptor."""
        gateway = ScriptedGateway()
        big = make_png(text=b"x" * (6 << 20))
        gateway.download_script["j0"] = [[big[: 5 << 20], 3600.0, big[5 << 20 :]]]

        async def main() -> None:
            async with Engine(tmp_path, gateway_client=gateway) as engine:
                await engine.submit(make_jobs(1)[0])
                await asyncio.sleep(100.0)
                assert [path.stat().st_size for path in (tmp_path / "images").iterdir()] == [5 << 20]
                engine.abort()

        before = len(os.listdir("/proc/self/fd"))
        run_virtual(main())
        assert len(os.listdir("/proc/self/fd")) == before
        assert ledger_states(tmp_path) == {"j0": "finished"}

    @pytest.mark.parametrize("killed_ms", range(10_000, 14_000, 250))
    def test_every_png_is_complete_after_a_kill(self, tmp_path: Path, killed_ms: int) -> None:
        """Whenever the process is killed, every .png is complete; the next run stores the rest."""
        gateway = ScriptedGateway()
        for job in make_jobs(4):
            body = image_of(job.id)
            gateway.download_script[job.id] = [[body[:20], 0.5, body[20:50], 0.5, CONNECTION_CUT], IMAGE]
        run_until_killed(
            run_jobs(tmp_path, gateway, make_jobs(4)), killed_ms / 1000, tmp_path, thread_duration_s=lambda: 0.2
        )
        found = {path.name: path.read_bytes() for path in (tmp_path / "images").glob("*.png")}
        assert all(data == image_of(name.removesuffix(".png")) for name, data in found.items())
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(4)))
        assert set(result_statuses(tmp_path).values()) == {"succeeded"}
        assert len(gateway.submitted_bodies) == 4
        check_images(tmp_path)
