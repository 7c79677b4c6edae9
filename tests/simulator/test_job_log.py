"""Jobs that are remembered in a file: over a restart, and where the process was killed while it wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from krea_batch.testing.simulator import SimulatorError
from tests.simulator.simulator_fixture import CAT_BODY, CLOCK_START_AT, SimulatorClient, run_with_simulator


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.jsonl"


def submit_and_stop(path: Path, *bodies: object, **settings: Any) -> list[str]:
    """Submit these to a simulator that remembers, and stop it."""

    async def ask(client: SimulatorClient) -> list[str]:
        return [await client.submit_accepted(body) for body in bodies]

    return run_with_simulator(ask, state_file=str(path), **settings)


@pytest.mark.parametrize(
    ("faults", "status"), [({}, "COMPLETED"), ({"job-failed": 1.0}, "FAILED"), ({"job-error": 1.0}, "ERROR")]
)
def test_jobs_outlive_a_restart(path: Path, faults: dict[str, float], status: str) -> None:
    """Another simulator with the same file knows a job, its times, end and images, by other settings too."""
    (request_id,) = submit_and_stop(path, CAT_BODY | {"seed": 2**70}, faults=faults, outputs=2)

    async def ask(client: SimulatorClient) -> None:
        statuses = []
        for at in (0, 10, 15):
            client.clock.at = CLOCK_START_AT + at
            statuses.append((await client.poll(request_id)).json["status"])
        assert statuses == ["QUEUED", "PROCESSING", status]
        found = [
            (await client.get(client.image_url(request_id, name))).status for name in ("output.png", "output-2.png")
        ]
        assert found == ([200, 200] if status == "COMPLETED" else [404, 404])
        assert (await client.poll(request_id)).json["completed_at"] == "2026-03-31T10:00:15.000Z"

    run_with_simulator(ask, state_file=str(path), latency="fixed:99")


def test_restored_jobs_are_in_no_totals(path: Path) -> None:
    """The books of a new process begin with nothing: what was charged before is not charged again."""
    (request_id,) = submit_and_stop(path, CAT_BODY, faults={"job-error": 1.0})

    async def ask(client: SimulatorClient) -> None:
        client.clock.at += 15
        await client.poll(request_id)
        totals = client.totals()
        assert (totals["posts"], totals["accepted"], totals["charged"], totals["refunded"]) == (0, 0, 0, 0)
        assert (totals["balance"], totals["polls"]) == (3, 1)
        assert client.posts() == []

    run_with_simulator(ask, state_file=str(path), balance=3)


def test_the_image_is_the_same_after_a_restart(path: Path) -> None:
    """A remembered job gives the bytes it gave before, and the next job of its body, without a seed, others."""

    async def before(client: SimulatorClient) -> tuple[str, bytes, str]:
        request_id = await client.submit_accepted()
        answer = await client.get(client.image_url(request_id))
        return request_id, answer.body, answer.headers["etag"]

    request_id, image, etag = run_with_simulator(before, state_file=str(path), latency="fixed:0", image_bytes=4096)

    async def after(client: SimulatorClient) -> None:
        answer = await client.get(client.image_url(request_id))
        assert (answer.body, answer.headers["etag"]) == (image, etag)
        again = await client.download_image()
        assert again[-2000:] != image[-2000:]

    run_with_simulator(after, state_file=str(path), latency="fixed:0", image_bytes=4096)


def test_a_job_is_logged_before_its_response(path: Path) -> None:
    """What was accepted is in the file even where its answer was lost, and what was refused is not."""
    submit_and_stop(path, CAT_BODY, faults={"submit-lost": 1.0})

    async def refused(client: SimulatorClient) -> None:
        await client.post({})

    run_with_simulator(refused, state_file=str(path))
    assert len(path.read_bytes().splitlines()) == 1


@pytest.mark.parametrize("lost", [1, 2, 30, 100])
def test_a_torn_last_line(path: Path, lost: int) -> None:
    """A last line that was not written to its end costs that job alone, and the next is on a line of its own."""
    first, torn = submit_and_stop(path, CAT_BODY, {"prompt": "猫"})
    path.write_bytes(path.read_bytes()[:-lost])
    (third,) = submit_and_stop(path, {"prompt": "a dog"})

    async def ask(client: SimulatorClient) -> None:
        assert [(await client.poll(job)).status for job in (first, third)] == [200, 200]
        assert (await client.poll(torn)).status == (200 if lost == 1 else 404)

    run_with_simulator(ask, state_file=str(path))


@pytest.mark.parametrize(
    "line", [b"", b"{}", b"null", b"\0" * 4096, b'{"request_id": "\xff"}', b'{"body": {"a": ' + b"[" * 100_000]
)
def test_lines_that_are_no_job(path: Path, line: bytes) -> None:
    """A line that is no job, whatever stands there, is passed over."""
    (first,) = submit_and_stop(path, CAT_BODY)
    path.write_bytes(line + b"\n" + path.read_bytes() + line)
    (second,) = submit_and_stop(path, CAT_BODY)

    async def ask(client: SimulatorClient) -> None:
        assert [(await client.poll(job)).status for job in (first, second)] == [200, 200]

    run_with_simulator(ask, state_file=str(path))


def test_prompts_of_many_lines(path: Path) -> None:
    """A prompt may hold any line end that there is."""
    jobs = submit_and_stop(path, {"prompt": "one\ntwo\r\nthree\x0b\x0c\x1c\x85\u2028four"}, CAT_BODY)

    async def ask(client: SimulatorClient) -> None:
        assert [(await client.poll(job)).status for job in jobs] == [200, 200]

    run_with_simulator(ask, state_file=str(path))


@pytest.mark.parametrize("name", [".", "missing/jobs.jsonl"])
def test_a_file_that_cannot_be_opened(tmp_path: Path, name: str) -> None:
    """A place where no file can be is an error of that setting, before any port is open."""
    with pytest.raises(SimulatorError) as raised:
        submit_and_stop(tmp_path / name)
    assert raised.value.field == "state_file"
