"""Tests of pipeline.sink writer: a caller's sink gets whole images alone, and its trouble leads to no POST."""

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
from krea_batch.ledger import LedgerStore
from krea_batch.rules.verdicts import Finished
from krea_batch.storage.sink_writer import CHECK_TIMEOUT_S, PUT_TIMEOUT_S
from krea_batch.storage.sinks import SinkPermanentError, SinkTransientError, VerifiedImage
from krea_batch.testing.scripted_gateway import ScriptedGateway, make_png
from tests.engine_fixtures import ledger_states, make_jobs, result_statuses, rows_by_id, run_jobs
from tests.virtual_time_runs import run_until_killed, run_virtual

TRANSIENT_ERROR = SinkTransientError("the gallery answered HTTP 503")
PERMANENT_ERROR = SinkPermanentError("the gallery has no room", "make room, then run the same command again")
NO_RESPONSE = 10 * PUT_TIMEOUT_S


class ScriptedSink:
    """Keeps images in memory. A script entry is an error to raise, seconds to wait, or None to keep it.

    The last entry of a script is repeated.
    """

    def __init__(self, *script: Any) -> None:
        self.script = list(script)
        self.checks: list[Any] = [None]
        self.kept: dict[str, bytes] = {}
        self.puts: Counter[str] = Counter()
        self.seen: list[VerifiedImage] = []

    async def check(self) -> None:
        await self._next_entry(self.checks)

    async def put(self, image: VerifiedImage) -> str:
        self.puts[image.name] += 1
        self.seen.append(image)
        data = await image.read()
        assert hashlib.sha256(data).hexdigest() == image.sha256
        await self._next_entry(self.script)
        self.kept[image.name] = data
        return f"gallery:{image.name}"

    async def _next_entry(self, script: list[Any]) -> None:
        entry = script.pop(0) if len(script) > 1 else next(iter(script), None)
        if isinstance(entry, Exception):
            raise entry
        await asyncio.sleep(entry or 0)


def check_stored(out: Path, sink: ScriptedSink) -> None:
    """Every job succeeded, the sink has each image of the results and no other, and none is left in the folder."""
    by_id = rows_by_id(out)
    assert {row["status"] for row in by_id.values()} == {"succeeded"}
    files = {file["path"]: (file, row) for row in by_id.values() for file in row["files"]}
    assert set(files) == {f"gallery:{name}" for name in sink.kept}
    for name, data in sink.kept.items():
        file, row = files[f"gallery:{name}"]
        assert file["sha256"] == hashlib.sha256(data).hexdigest()
        assert (file["bytes"], file["width"], file["height"], file["media_type"]) == (len(data), 4, 3, "image/png")
        assert data == make_png(text=row["request"]["prompt"].encode())
    assert os.listdir(out / "images") == []


class TestVerifiedImages:
    def test_the_sink_gets_each_image_once(self, tmp_path: Path) -> None:
        """Fifty jobs are fifty puts; rows name what the sink returned, and the folder keeps no image."""
        sink = ScriptedSink()
        run_virtual(run_jobs(tmp_path, ScriptedGateway(), make_jobs(50), sink=sink))
        assert set(sink.puts.values()) == {1}
        check_stored(tmp_path, sink)

    def test_what_the_sink_receives_for_two_outputs(self, tmp_path: Path) -> None:
        """Each output comes with the job's id, its number from 1 and the name that it would have as a file."""

        class TwoOutputsGateway(ScriptedGateway):
            def finished(self, request_id: str, outputs: int = 1) -> Finished:
                return super().finished(request_id, 2)

        sink = ScriptedSink()
        run_virtual(run_jobs(tmp_path, TwoOutputsGateway(), [Job(prompt="a fox", id="fox")], sink=sink))
        assert [(seen.job_id, seen.output, seen.name) for seen in sink.seen] == [
            ("fox", 1, "fox"),
            ("fox", 2, "fox-2"),
        ]
        check_stored(tmp_path, sink)

    @pytest.mark.parametrize("body", [b"<html>", make_png(text=b"j0")[:-1], make_png(text=b"j0") + b"more"])
    def test_what_is_not_whole_never_reaches_it(self, tmp_path: Path, body: bytes) -> None:
        """An image that is cut, longer than it should be or none at all is fetched again, and not put."""
        gateway, sink = ScriptedGateway(), ScriptedSink()
        gateway.download_script["j0"] = [[body], None]
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(1), sink=sink))
        assert sink.puts == {"j0": 1}
        check_stored(tmp_path, sink)


class TestTransientErrors:
    @pytest.mark.parametrize(
        "trouble",
        [TRANSIENT_ERROR, TimeoutError(), ConnectionResetError("peer"), NO_RESPONSE],
        ids=["SinkError", "TimeoutError", "OSError", "silence"],
    )
    def test_the_put_is_retried_without_a_second_download(self, tmp_path: Path, trouble: Any) -> None:
        """The second put of an image costs neither a download nor a POST."""
        gateway, sink = ScriptedGateway(), ScriptedSink(trouble, trouble, None)
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(1), sink=sink))
        assert sink.puts == {"j0": 3}
        assert len(gateway.downloads) == len(gateway.submitted_bodies) == 1
        check_stored(tmp_path, sink)

    def test_what_cannot_be_stored_is_left_to_the_next_run(self, tmp_path: Path) -> None:
        """After download_attempts the job is timed out with its request_id; the next run keeps it, unpaid."""
        gateway, sink = ScriptedGateway(), ScriptedSink(TRANSIENT_ERROR)
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(3), sink=sink, download_attempts=3))
        assert set(result_statuses(tmp_path).values()) == {"timed_out"}
        for row in rows_by_id(tmp_path).values():
            assert row["request_id"]
            assert row["error"] == {"kind": "sink", "message": f"tried 3 times: {TRANSIENT_ERROR.reason}"}
        sink.script = []
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(3), sink=sink))
        assert len(gateway.submitted_bodies) == 3
        check_stored(tmp_path, sink)

    def test_an_error_with_one_of_two_outputs(self, tmp_path: Path) -> None:
        """Only the output that was not kept is put again."""

        class OneFailingOutputGateway(ScriptedGateway):
            def finished(self, request_id: str, outputs: int = 1) -> Finished:
                return super().finished(request_id, 2)

        gateway, sink = OneFailingOutputGateway(), ScriptedSink(None, TRANSIENT_ERROR, None)
        gateway.download_script["j0"] = [None, [make_png(text=b"j0")[:30], DownloadError("cut")], None]
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(1), sink=sink))
        assert sink.puts == {"j0": 1, "j0-2": 2}
        check_stored(tmp_path, sink)


class TestPermanentErrors:
    def test_a_refusal_stops_the_run(self, tmp_path: Path) -> None:
        """The run stops with the sink's own words, jobs stay finished, and the next run keeps them, unpaid."""
        gateway, sink = ScriptedGateway(), ScriptedSink(PERMANENT_ERROR)
        engine = run_virtual(run_jobs(tmp_path, gateway, make_jobs(100), sink=sink, rate="1/s"))
        assert str(engine.stopped) == str(PERMANENT_ERROR)
        paid = len(gateway.submitted_bodies)
        assert paid < 100
        assert set(ledger_states(tmp_path).values()) == {"finished"}
        sink.script = []
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(100), sink=sink, rate="1/s"))
        assert len(gateway.submitted_bodies) == 100
        check_stored(tmp_path, sink)

    @pytest.mark.parametrize(
        ("answer", "said"),
        [
            (PERMANENT_ERROR, "has no room"),
            (TRANSIENT_ERROR, "HTTP 503"),
            (10 * CHECK_TIMEOUT_S, "did not answer"),
            (ConnectionRefusedError(111, "Connection refused"), "Connection refused"),
        ],
        ids=["refusal", "trouble", "silence", "nobody there"],
    )
    def test_a_sink_that_keeps_nothing_costs_nothing(self, tmp_path: Path, answer: Any, said: str) -> None:
        """It is asked before the first POST; the run stops there, and goes on once the sink does."""
        gateway, sink = ScriptedGateway(), ScriptedSink()
        sink.checks = [answer]
        engine = run_virtual(run_jobs(tmp_path, gateway, make_jobs(3), sink=sink))
        assert said in str(engine.stopped)
        assert not gateway.submitted_bodies
        sink.checks = [None]
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(3), sink=sink))
        assert len(gateway.submitted_bodies) == 3
        check_stored(tmp_path, sink)

    def test_waiting_callers_get_the_error(self, tmp_path: Path) -> None:
        """`generate` raises the refusal instead of waiting for ever."""

        async def main() -> None:
            async with Engine(
                tmp_path, gateway_client=ScriptedGateway(), sink=ScriptedSink(PERMANENT_ERROR)
            ) as engine:
                with pytest.raises(RunStopped, match="has no room"):
                    await engine.generate(Job(prompt="a fox"))

        run_virtual(main())

    def test_a_bug_of_the_sink_raises(self, tmp_path: Path) -> None:
        """An exception that the protocol does not know ends the run as itself; the next run loses nothing."""
        gateway = ScriptedGateway()
        with pytest.raises(ZeroDivisionError):
            run_virtual(run_jobs(tmp_path, gateway, make_jobs(1), sink=ScriptedSink(ZeroDivisionError())))
        assert ledger_states(tmp_path) == {"j0": "finished"}
        sink = ScriptedSink()
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(1), sink=sink))
        assert len(gateway.submitted_bodies) == 1
        check_stored(tmp_path, sink)


class TestEnds:
    def test_stop_now_does_not_wait_for_a_put(self, tmp_path: Path) -> None:
        """A put that hangs is dropped by stop_now, and done again by the next run."""
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
        """A run that dies once the sink has the image puts it again under the same name, unpaid."""

        def kill(*_: object) -> None:
            raise KeyError("dead")

        gateway, sink = ScriptedGateway(), ScriptedSink()
        with monkeypatch.context() as patch:
            patch.setattr(LedgerStore, "mark_stored", kill)
            with pytest.raises(KeyError):
                run_virtual(run_jobs(tmp_path, gateway, make_jobs(1), sink=sink))
        assert set(sink.kept) == {"j0"}
        assert ledger_states(tmp_path) == {"j0": "finished"}
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(1), sink=sink))
        assert sink.puts == {"j0": 2}
        assert len(gateway.submitted_bodies) == 1
        check_stored(tmp_path, sink)

    @pytest.mark.parametrize("killed_ms", range(10_000, 16_000, 250))
    def test_killed_at_any_time(self, tmp_path: Path, killed_ms: int) -> None:
        """Whenever the process dies, the sink has whole images alone, and the next run brings the rest, unpaid."""
        gateway, sink = ScriptedGateway(), ScriptedSink(0.5, TRANSIENT_ERROR, 0.5, 0.5, TRANSIENT_ERROR, 0.5)
        for job in make_jobs(4):
            body = make_png(text=job.prompt.encode())
            gateway.download_script[job.id] = [[body[:20], 0.5, body[20:50], 0.5, DownloadError("cut")], None]
        run_until_killed(
            run_jobs(tmp_path, gateway, make_jobs(4), sink=sink),
            killed_ms / 1000,
            tmp_path,
            thread_duration_s=lambda: 0.2,
        )
        assert all(data == make_png(text=name.encode()) for name, data in sink.kept.items())
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(4), sink=sink))
        assert len(gateway.submitted_bodies) == 4
        check_stored(tmp_path, sink)

    def test_the_folder_serves_again(self, tmp_path: Path) -> None:
        """A run that goes on without its sink keeps the rest in its folder; what the sink has stays there."""
        gateway, sink = ScriptedGateway(), ScriptedSink()
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(1), sink=sink))
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(2)))
        paths = {job_id: row["files"][0]["path"] for job_id, row in rows_by_id(tmp_path).items()}
        assert paths == {"j0": "gallery:j0", "j1": "images/j1.png"}
