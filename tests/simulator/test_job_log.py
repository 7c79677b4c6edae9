"""The state file: jobs after a restart, and after the process was killed while writing."""

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
    """Submit these bodies to a simulator with a state file, and stop it. Returns the request ids."""

    async def ask(client: SimulatorClient) -> list[str]:
        return [await client.submit_accepted(body) for body in bodies]

    return run_with_simulator(ask, state_file=str(path), **settings)


@pytest.mark.parametrize(
    ("faults", "status"), [({}, "COMPLETED"), ({"job-failed": 1.0}, "FAILED"), ({"job-error": 1.0}, "ERROR")]
)
def test_jobs_outlive_a_restart(path: Path, faults: dict[str, float], status: str) -> None:
    """Another simulator with the same file knows a job, its times, status and images, even with other settings."""
    (request_id,) = submit_and_stop(path, CAT_BODY | {"seed": 2**70}, faults=faults, outputs=2)

    async def ask(client: SimulatorClient) -> None:
        statuses = []
        for at in (0, 10, 15):
            client.clock.at = CLOCK_START_AT + at
            statuses.append((await client.poll(request_id)).json["status"])
        assert statuses == ["QUEUED", "PROCESSING", status]
        responses = [
            (await client.get(client.image_url(request_id, name))).status for name in ("output.png", "output-2.png")
        ]
        assert responses == ([200, 200] if status == "COMPLETED" else [404, 404])
        assert (await client.poll(request_id)).json["completed_at"] == "2026-03-31T10:00:15.000Z"

    run_with_simulator(ask, state_file=str(path), latency="fixed:99")


def test_restored_jobs_are_in_no_totals(path: Path) -> None:
    """The totals of a new process start at zero: earlier jobs are not charged again."""
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
    """A restored job has the same image as before, and the next job with its body and no seed a different one."""

    async def before(client: SimulatorClient) -> tuple[str, bytes, str]:
        request_id = await client.submit_accepted()
        response = await client.get(client.image_url(request_id))
        return request_id, response.body, response.headers["etag"]

    request_id, image, etag = run_with_simulator(before, state_file=str(path), latency="fixed:0", image_bytes=4096)

    async def after(client: SimulatorClient) -> None:
        response = await client.get(client.image_url(request_id))
        assert (response.body, response.headers["etag"]) == (image, etag)
        next_image = await client.download_image()
        assert next_image[-2000:] != image[-2000:]

    run_with_simulator(after, state_file=str(path), latency="fixed:0", image_bytes=4096)


def test_a_job_is_logged_before_its_response(path: Path) -> None:
    """An accepted job is in the file even if its response was lost, and a refused one is not."""
    submit_and_stop(path, CAT_BODY, faults={"submit-lost": 1.0})

    async def refused(client: SimulatorClient) -> None:
        await client.post({})

    run_with_simulator(refused, state_file=str(path))
    assert len(path.read_bytes().splitlines()) == 1


@pytest.mark.parametrize("lost_bytes", [1, 2, 30, 100])
def test_a_torn_last_line(path: Path, lost_bytes: int) -> None:
    """An incomplete last line loses only its own job, and the next job is written on a new line."""
    first, torn = submit_and_stop(path, CAT_BODY, {"prompt": "猫"})
    path.write_bytes(path.read_bytes()[:-lost_bytes])
    (third,) = submit_and_stop(path, {"prompt": "a dog"})

    async def ask(client: SimulatorClient) -> None:
        assert [(await client.poll(job)).status for job in (first, third)] == [200, 200]
        assert (await client.poll(torn)).status == (200 if lost_bytes == 1 else 404)

    run_with_simulator(ask, state_file=str(path))


@pytest.mark.parametrize(
    "line", [b"", b"{}", b"null", b"\0" * 4096, b'{"request_id": "\xff"}', b'{"body": {"a": ' + b"[" * 100_000]
)
def test_lines_that_are_not_jobs(path: Path, line: bytes) -> None:
    """A line that is not a job is skipped, whatever it contains."""
    (first,) = submit_and_stop(path, CAT_BODY)
    path.write_bytes(line + b"\n" + path.read_bytes() + line)
    (second,) = submit_and_stop(path, CAT_BODY)

    async def ask(client: SimulatorClient) -> None:
        assert [(await client.poll(job)).status for job in (first, second)] == [200, 200]

    run_with_simulator(ask, state_file=str(path))


def test_prompts_with_line_breaks(path: Path) -> None:
    """A prompt may contain any kind of line break."""
    jobs = submit_and_stop(path, {"prompt": "one\ntwo\r\nthree\x0b\x0c\x1c\x85\u2028four"}, CAT_BODY)

    async def ask(client: SimulatorClient) -> None:
        assert [(await client.poll(job)).status for job in jobs] == [200, 200]

    run_with_simulator(ask, state_file=str(path))


@pytest.mark.parametrize("name", [".", "missing/jobs.jsonl"])
def test_a_file_that_cannot_be_opened(tmp_path: Path, name: str) -> None:
    """A path that cannot be opened is an error that names the setting."""
    with pytest.raises(SimulatorError) as raised:
        submit_and_stop(tmp_path / name)
    assert raised.value.field == "state_file"
