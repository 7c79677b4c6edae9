"""`SinkImageWriter` passes complete images only to a sink, and no error of a sink leads to another POST."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from krea_batch import Engine, Job, RunStopped
from krea_batch.gateway.url_policy import DownloadError
from krea_batch.ledger.sqlite import SqliteLedger
from krea_batch.rules.verdicts import Finished
from krea_batch.storage.sink_writer import CHECK_TIMEOUT_S, PUT_TIMEOUT_S
from krea_batch.storage.sinks import SinkPermanentError, SinkTransientError, VerifiedImage
from krea_batch.testing import IMAGE, ScriptedGateway, make_png, run_until_killed, run_virtual
from tests.engine_fixtures import ledger_states, make_jobs, result_statuses, rows_by_id, run_jobs

TRANSIENT_ERROR = SinkTransientError("the gallery answered HTTP 503")
PERMANENT_ERROR = SinkPermanentError("the gallery is full", "free some space, then run again to resume")
NO_RESPONSE = 10 * PUT_TIMEOUT_S


class ScriptedSink:
    """Stores images in memory. A script entry is an error to raise, seconds to wait, or None to store the image.

    The last entry of a script is repeated.
    """

    def __init__(self, *script: Any) -> None:
        self.script = list(script)
        self.checks: list[Any] = [None]
        self.stored: dict[str, bytes] = {}
        self.puts: Counter[str] = Counter()
        self.received: list[VerifiedImage] = []

    async def check(self) -> None:
        await self._next_entry(self.checks)

    async def put(self, image: VerifiedImage) -> str:
        self.puts[image.name] += 1
        self.received.append(image)
        data = await image.read()
        assert hashlib.sha256(data).hexdigest() == image.sha256
        await self._next_entry(self.script)
        self.stored[image.name] = data
        return f"gallery:{image.name}"

    async def _next_entry(self, script: list[Any]) -> None:
        entry = script.pop(0) if len(script) > 1 else next(iter(script), None)
        if isinstance(entry, Exception):
            raise entry
        await asyncio.sleep(entry or 0)


def check_stored(out: Path, sink: ScriptedSink) -> None:
    """Assert that every job succeeded, that the sink has exactly the images of the results, and `out` has none."""
    by_id = rows_by_id(out)
    assert {row["status"] for row in by_id.values()} == {"succeeded"}
    files = {file["path"]: (file, row) for row in by_id.values() for file in row["files"]}
    assert set(files) == {f"gallery:{name}" for name in sink.stored}
    for name, data in sink.stored.items():
        file, row = files[f"gallery:{name}"]
        assert file["sha256"] == hashlib.sha256(data).hexdigest()
        assert (file["bytes"], file["width"], file["height"], file["media_type"]) == (len(data), 4, 3, "image/png")
        assert data == make_png(text=row["request"]["prompt"].encode())
    assert os.listdir(out / "images") == []


class TestVerifiedImages:
    def test_the_sink_gets_each_image_once(self, tmp_path: Path) -> None:
        """Fifty jobs make fifty puts. Rows have the paths that the sink returned; the run directory has no image."""
        sink = ScriptedSink()
        run_virtual(run_jobs(tmp_path, ScriptedGateway(), make_jobs(50), sink=sink))
        assert set(sink.puts.values()) == {1}
        check_stored(tmp_path, sink)

    def test_what_the_sink_receives_for_two_outputs(self, tmp_path: Path) -> None:
        """Each output has the id of its job, its number from 1, and the name that its file would have."""

        class TwoOutputsGateway(ScriptedGateway):
            def finished(self, request_id: str, outputs: int = 1) -> Finished:
                return super().finished(request_id, 2)

        sink = ScriptedSink()
        run_virtual(run_jobs(tmp_path, TwoOutputsGateway(), [Job(prompt="a fox", id="fox")], sink=sink))
        assert [(image.job_id, image.output, image.name) for image in sink.received] == [
            ("fox", 1, "fox"),
            ("fox", 2, "fox-2"),
        ]
        check_stored(tmp_path, sink)

    @pytest.mark.parametrize("body", [b"<html>", make_png(text=b"j0")[:-1], make_png(text=b"j0") + b"more"])
    def test_incomplete_images_never_reach_the_sink(self, tmp_path: Path, body: bytes) -> None:
        """Data that is cut, too long or not an image is downloaded again, and not put."""
        gateway, sink = ScriptedGateway(), ScriptedSink()
        gateway.download_script["j0"] = [[body], IMAGE]
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(1), sink=sink))
        assert sink.puts == {"j0": 1}
        check_stored(tmp_path, sink)


class TestTransientErrors:
    @pytest.mark.parametrize(
        "error",
        [TRANSIENT_ERROR, TimeoutError(), ConnectionResetError("peer"), NO_RESPONSE],
        ids=["SinkTransientError", "TimeoutError", "OSError", "no response"],
    )
    def test_the_put_is_retried_without_a_second_download(self, tmp_path: Path, error: Any) -> None:
        """After a transient error, the image is put again without another download or POST."""
        gateway, sink = ScriptedGateway(), ScriptedSink(error, error, None)
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(1), sink=sink))
        assert sink.puts == {"j0": 3}
        assert len(gateway.downloads) == len(gateway.submitted_bodies) == 1
        check_stored(tmp_path, sink)

    def test_what_cannot_be_stored_is_left_to_the_next_run(self, tmp_path: Path) -> None:
        """After `download_patience_s` the job is timed out. The next run stores it under the same request_id."""
        gateway, sink = ScriptedGateway(), ScriptedSink(TRANSIENT_ERROR)
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(3), sink=sink, download_patience_s=60.0))
        assert set(result_statuses(tmp_path).values()) == {"timed_out"}
        for row in rows_by_id(tmp_path).values():
            assert row["request_id"]
            assert row["error"]["kind"] == "sink"
            assert row["error"]["message"].endswith(f" times: {TRANSIENT_ERROR.reason}")
        sink.script = []
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(3), sink=sink))
        assert len(gateway.submitted_bodies) == 3
        check_stored(tmp_path, sink)

    def test_an_error_with_one_of_two_outputs(self, tmp_path: Path) -> None:
        """Only the output that was not stored is put again."""

        class OneFailingOutputGateway(ScriptedGateway):
            def finished(self, request_id: str, outputs: int = 1) -> Finished:
                return super().finished(request_id, 2)

        gateway, sink = OneFailingOutputGateway(), ScriptedSink(None, TRANSIENT_ERROR, None)
        gateway.download_script["j0"] = [IMAGE, [make_png(text=b"j0")[:30], DownloadError("cut")], IMAGE]
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(1), sink=sink))
        assert sink.puts == {"j0": 1, "j0-2": 2}
        check_stored(tmp_path, sink)


class TestPermanentErrors:
    def test_a_permanent_error_stops_the_run(self, tmp_path: Path) -> None:
        """The run stops with the sink's message. Its jobs stay finished; the next run stores them without a POST."""
        gateway, sink = ScriptedGateway(), ScriptedSink(PERMANENT_ERROR)
        engine = run_virtual(run_jobs(tmp_path, gateway, make_jobs(100), sink=sink, rate="1/s"))
        assert str(engine.stopped) == str(PERMANENT_ERROR)
        assert len(gateway.submitted_bodies) < 100
        assert set(ledger_states(tmp_path).values()) == {"finished"}
        sink.script = []
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(100), sink=sink, rate="1/s"))
        assert len(gateway.submitted_bodies) == 100
        check_stored(tmp_path, sink)

    @pytest.mark.parametrize(
        ("check", "message"),
        [
            (PERMANENT_ERROR, "is full"),
            (TRANSIENT_ERROR, "HTTP 503"),
            (10 * CHECK_TIMEOUT_S, "did not answer"),
            (ConnectionRefusedError(111, "Connection refused"), "Connection refused"),
        ],
        ids=["permanent error", "transient error", "no response", "no server"],
    )
    def test_a_sink_that_does_not_work_costs_nothing(self, tmp_path: Path, check: Any, message: str) -> None:
        """The sink is checked before the first POST. If it fails, the run stops, and the next run can resume."""
        gateway, sink = ScriptedGateway(), ScriptedSink()
        sink.checks = [check]
        engine = run_virtual(run_jobs(tmp_path, gateway, make_jobs(3), sink=sink))
        assert message in str(engine.stopped)
        assert not gateway.submitted_bodies
        sink.checks = [None]
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(3), sink=sink))
        assert len(gateway.submitted_bodies) == 3
        check_stored(tmp_path, sink)

    def test_waiting_callers_get_the_error(self, tmp_path: Path) -> None:
        """`generate` raises the sink's error instead of waiting forever."""

        async def main() -> None:
            async with Engine(
                tmp_path, gateway_client=ScriptedGateway(), sink=ScriptedSink(PERMANENT_ERROR)
            ) as engine:
                with pytest.raises(RunStopped, match="is full"):
                    await engine.generate(Job(prompt="a fox"))

        run_virtual(main())

    def test_a_bug_of_the_sink_raises(self, tmp_path: Path) -> None:
        """An exception that the protocol does not allow ends the run unchanged. The next run loses nothing."""
        gateway = ScriptedGateway()
        with pytest.raises(ZeroDivisionError):
            run_virtual(run_jobs(tmp_path, gateway, make_jobs(1), sink=ScriptedSink(ZeroDivisionError())))
        assert ledger_states(tmp_path) == {"j0": "finished"}
        sink = ScriptedSink()
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(1), sink=sink))
        assert len(gateway.submitted_bodies) == 1
        check_stored(tmp_path, sink)


class TestAbortAndKill:
    def test_abort_does_not_wait_for_a_put(self, tmp_path: Path) -> None:
        """`abort` cancels a put that hangs, and the next run puts the image again."""
        gateway, sink = ScriptedGateway(), ScriptedSink(PUT_TIMEOUT_S - 1)

        async def main() -> float:
            async with Engine(tmp_path, gateway_client=gateway, sink=sink) as engine:
                await engine.submit(make_jobs(1)[0])
                await asyncio.sleep(100.0)
                assert sink.puts == {"j0": 1}
                engine.abort()
            return asyncio.get_running_loop().time()

        assert run_virtual(main()) < 1000.0 + PUT_TIMEOUT_S
        assert ledger_states(tmp_path) == {"j0": "finished"}
        sink.script = []
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(1), sink=sink))
        assert len(gateway.submitted_bodies) == 1
        check_stored(tmp_path, sink)

    def test_killed_between_sink_and_ledger(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """After a crash between put and ledger, the next run puts the image again under its name, without a POST."""

        def kill(*_: object) -> None:
            raise KeyError("killed")

        gateway, sink = ScriptedGateway(), ScriptedSink()
        with monkeypatch.context() as patch:
            patch.setattr(SqliteLedger, "mark_stored_many", kill)
            with pytest.raises(KeyError):
                run_virtual(run_jobs(tmp_path, gateway, make_jobs(1), sink=sink))
        assert set(sink.stored) == {"j0"}
        assert ledger_states(tmp_path) == {"j0": "finished"}
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(1), sink=sink))
        assert sink.puts == {"j0": 2}
        assert len(gateway.submitted_bodies) == 1
        check_stored(tmp_path, sink)

    @pytest.mark.parametrize("killed_ms", range(10_000, 16_000, 250))
    def test_killed_at_any_time(self, tmp_path: Path, killed_ms: int) -> None:
        """After a kill at any time, the sink has complete images only. The next run stores the rest, not charged."""
        gateway, sink = ScriptedGateway(), ScriptedSink(0.5, TRANSIENT_ERROR, 0.5, 0.5, TRANSIENT_ERROR, 0.5)
        for job in make_jobs(4):
            body = make_png(text=job.prompt.encode())
            gateway.download_script[job.id] = [[body[:20], 0.5, body[20:50], 0.5, DownloadError("cut")], IMAGE]
        run_until_killed(
            run_jobs(tmp_path, gateway, make_jobs(4), sink=sink),
            killed_ms / 1000,
            tmp_path,
            thread_duration_s=lambda: 0.2,
        )
        assert all(data == make_png(text=name.encode()) for name, data in sink.stored.items())
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(4), sink=sink))
        assert len(gateway.submitted_bodies) == 4
        check_stored(tmp_path, sink)

    def test_a_later_run_without_the_sink(self, tmp_path: Path) -> None:
        """A run that resumes without the sink stores the rest in the run directory. Recorded paths stay."""
        gateway, sink = ScriptedGateway(), ScriptedSink()
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(1), sink=sink))
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(2)))
        paths = {job_id: row["files"][0]["path"] for job_id, row in rows_by_id(tmp_path).items()}
        assert paths == {"j0": "gallery:j0", "j1": "images/j1.png"}
