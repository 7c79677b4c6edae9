"""The status endpoint: what it says from QUEUED to the end, what ERROR gives back, and how polls are counted."""

from __future__ import annotations

import pytest

from tests.simulator.simulator_fixture import CAT_BODY, CLOCK_START_AT, MODEL, SimulatorClient, run_with_simulator


def charge_totals(client: SimulatorClient) -> tuple[int, int, int]:
    totals = client.totals()
    return totals["accepted"], totals["charged"], totals["refunded"]


async def statuses_at(client: SimulatorClient, request_id: str, *instants: float) -> list[str]:
    """The statuses so many seconds after the beginning."""
    seen = []
    for instant in instants:
        client.clock.at = CLOCK_START_AT + instant
        seen.append((await client.poll(request_id)).json["status"])
    return seen


# ---- what the document says ------------------------------------------------------------------------------


def test_a_job_from_queued_to_completed() -> None:
    """A job goes from QUEUED over PROCESSING to COMPLETED, and each answer has all the document's fields."""

    async def ask(client: SimulatorClient) -> None:
        request_id = await client.submit_accepted()
        common = {
            "request_id": request_id,
            "model_id": MODEL,
            "error": None,
            "output": None,
            "created_at": "2026-03-31T10:00:00.000Z",
            "completed_at": None,
        }
        queued = await client.poll(request_id)
        assert queued.status == 200
        assert queued.headers["content-type"].startswith("application/json")
        assert queued.json == common | {"status": "QUEUED", "updated_at": "2026-03-31T10:00:00.000Z"}
        client.clock.at += 14.999
        assert (await client.poll(request_id)).json == common | {
            "status": "PROCESSING",
            "updated_at": "2026-03-31T10:00:01.500Z",
        }
        client.clock.at += 100
        assert (await client.poll(request_id)).json == common | {
            "status": "COMPLETED",
            "output": {"media_url": [client.image_url(request_id)], "media_type": "image/png"},
            "updated_at": "2026-03-31T10:00:15.000Z",
            "completed_at": "2026-03-31T10:00:15.000Z",
        }

    run_with_simulator(ask)


@pytest.mark.parametrize(("fault", "status"), [("job-failed", "FAILED"), ("job-error", "ERROR")])
def test_a_job_that_fails(fault: str, status: str) -> None:
    """FAILED and ERROR have a reason, no output, and the fields of any other end."""

    async def ask(client: SimulatorClient) -> None:
        request_id = await client.submit_accepted()
        assert await statuses_at(client, request_id, 0, 2, 15) == ["QUEUED", "PROCESSING", status]
        body = (await client.poll(request_id)).json
        assert isinstance(body.pop("error"), str)
        assert body == {
            "request_id": request_id,
            "status": status,
            "model_id": MODEL,
            "output": None,
            "created_at": "2026-03-31T10:00:00.000Z",
            "updated_at": "2026-03-31T10:00:15.000Z",
            "completed_at": "2026-03-31T10:00:15.000Z",
        }

    run_with_simulator(ask, faults={fault: 1.0})


def test_an_end_is_for_good() -> None:
    """Once a job has ended every later poll says the same, and changed settings do not change its end."""

    async def ask(client: SimulatorClient) -> None:
        request_id = await client.submit_accepted()
        client.clock.at += 15
        first = (await client.poll(request_id)).json
        client.clock.at += 86400
        await client.admin("settings", {"latency": "fixed:1e9", "faults": {"job-failed": 1.0}})
        assert (await client.poll(request_id)).json == first

    run_with_simulator(ask)


def test_the_time_scale_shortens_latencies() -> None:
    """With a time scale of 10 a job of 15 seconds is done after one and a half."""

    async def ask(client: SimulatorClient) -> None:
        request_id = await client.submit_accepted()
        assert await statuses_at(client, request_id, 0.1, 1.4, 1.5) == ["QUEUED", "PROCESSING", "COMPLETED"]

    run_with_simulator(ask, time_scale=10.0)


def test_jobs_wait_for_a_worker() -> None:
    """With one worker the second job is QUEUED until the first is done, and then takes its own time."""

    async def ask(client: SimulatorClient) -> None:
        first, second = await client.submit_accepted(), await client.submit_accepted()
        client.clock.at = CLOCK_START_AT + 14.9
        assert [(await client.poll(job)).json["status"] for job in (first, second)] == ["PROCESSING", "QUEUED"]
        client.clock.at = CLOCK_START_AT + 15
        assert [(await client.poll(job)).json["status"] for job in (first, second)] == ["COMPLETED", "PROCESSING"]
        assert await statuses_at(client, second, 28.4, 28.5) == ["PROCESSING", "COMPLETED"]

    run_with_simulator(ask, workers=1)


def test_workers_work_side_by_side() -> None:
    """Three workers take three jobs at once and the fourth after the first of them."""

    async def ask(client: SimulatorClient) -> None:
        jobs = [await client.submit_accepted() for _ in range(4)]
        client.clock.at = CLOCK_START_AT + 10
        statuses = [(await client.poll(job)).json["status"] for job in jobs]
        assert statuses == ["PROCESSING", "PROCESSING", "PROCESSING", "QUEUED"]

    run_with_simulator(ask, workers=3)


def test_an_unknown_request() -> None:
    """A request_id that was never given is a 404, and the poll is counted."""

    async def ask(client: SimulatorClient) -> None:
        answer = await client.poll(f"{MODEL}_019d0000-0000-7000-8000-000000000000")
        assert (answer.status, answer.json["error"]) == (404, "Not Found")
        assert client.totals()["polls"] == 1
        assert client.totals()["max_polls_per_job"] == 0

    run_with_simulator(ask)


# ---- what is charged -------------------------------------------------------------------------------------


def test_error_refunds_the_charge_without_a_poll() -> None:
    """A job that comes to ERROR is given back at its end, not before, without any poll."""

    async def ask(client: SimulatorClient) -> None:
        await client.submit_accepted()
        client.clock.at += 14.9
        assert charge_totals(client) == (1, 1, 0)
        assert client.totals()["balance"] == 2
        client.clock.at += 0.2
        assert charge_totals(client) == (1, 0, 1)
        assert client.totals()["balance"] == 3
        (post,) = client.posts()
        assert (post["charged"], post["refunded"]) == (False, True)
        assert post["job"]["status"] == "ERROR"
        assert post["job"]["polls"] == 0

    run_with_simulator(ask, faults={"job-error": 1.0}, balance=3)


def test_error_refunds_the_charge_once() -> None:
    """However often a job that came to ERROR is polled, one credit is given back."""

    async def ask(client: SimulatorClient) -> None:
        request_id = await client.submit_accepted()
        await statuses_at(client, request_id, 15, 16, 17)
        assert charge_totals(client) == (1, 0, 1)
        assert client.totals()["balance"] == 3

    run_with_simulator(ask, faults={"job-error": 1.0}, balance=3)


def test_failed_is_charged() -> None:
    """A job that FAILED stays charged."""

    async def ask(client: SimulatorClient) -> None:
        request_id = await client.submit_accepted()
        assert await statuses_at(client, request_id, 15) == ["FAILED"]
        assert charge_totals(client) == (1, 1, 0)

    run_with_simulator(ask, faults={"job-failed": 1.0})


def test_only_the_first_job_of_a_body_comes_to_error() -> None:
    """With job-first-error a body that is sent again makes an image; another body has a first of its own."""

    async def ask(client: SimulatorClient) -> None:
        jobs = [await client.submit_accepted({"prompt": prompt}) for prompt in "aab"]
        client.clock.at += 15
        statuses = [(await client.poll(job)).json["status"] for job in jobs]
        assert statuses == ["ERROR", "COMPLETED", "ERROR"]
        assert charge_totals(client) == (3, 1, 2)

    run_with_simulator(ask, faults={"job-first-error": 1.0})


def test_accepted_is_charged_and_refunded_together() -> None:
    """At any instant of a mixed batch each accepted job is either charged or refunded."""

    async def ask(client: SimulatorClient) -> None:
        for n in range(40):
            await client.post({"prompt": f"image {n}"})
        for _ in range(40):
            client.clock.at += 1
            accepted, charged, refunded = charge_totals(client)
            assert accepted == charged + refunded == 40
            assert client.totals()["balance"] == 100 - charged
            ended = [post["job"]["status"] for post in client.posts()]
            assert refunded == ended.count("ERROR")
        assert 5 < ended.count("ERROR") < 35
        assert set(ended) == {"ERROR", "COMPLETED", "FAILED"}

    run_with_simulator(ask, latency="uniform:1,39", faults={"job-error": 0.5, "job-failed": 0.2}, balance=100)


# ---- faults ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "status", "shown"),
    [
        ("poll-500", 500, b"Internal Server Error"),
        ("poll-404", 404, b"Not Found"),
        ("poll-cut", 0, b""),
        ("poll-hang", 200, b'"COMPLETED"'),
        ("poll-garbled", 200, b'{"status": "COMPL'),
    ],
)
def test_faults_of_polls(fault: str, status: int, shown: bytes) -> None:
    """A fault of polls spoils answers and not jobs: after it the job is there, completed and charged once."""

    async def ask(client: SimulatorClient) -> None:
        request_id = await client.submit_accepted()
        client.clock.at += 15
        answer = await client.poll(request_id)
        assert (answer.status, answer.complete) == (status, status != 0)
        assert shown in answer.body
        assert (await client.poll(request_id)).json["status"] == "COMPLETED"
        assert client.totals()["polls"] == 2
        assert charge_totals(client) == (1, 1, 0)

    run_with_simulator(ask, faults={fault: 1.0}, fault_max_attempts=1, hang_duration_s=0.0)


def test_a_status_the_document_does_not_have() -> None:
    """With poll-unknown a job that is not done has an unknown status, and its end is told as ever."""

    async def ask(client: SimulatorClient) -> None:
        request_id = await client.submit_accepted()
        assert await statuses_at(client, request_id, 0, 10, 15) == ["UPSCALING", "UPSCALING", "COMPLETED"]

    run_with_simulator(ask, faults={"poll-unknown": 1.0})


def test_faults_are_drawn_for_each_job() -> None:
    """With fault_max_attempts the first polls of each job are struck, in whatever order jobs are polled."""

    async def ask(client: SimulatorClient) -> None:
        first, second = await client.submit_accepted(), await client.submit_accepted()
        statuses = [(await client.poll(job)).status for job in (first, second, first, first, second, second)]
        assert statuses == [500, 500, 500, 200, 500, 200]

    run_with_simulator(ask, faults={"poll-500": 1.0}, fault_max_attempts=2)


@pytest.mark.parametrize(("outputs", "text"), [(1, True), (2, False)])
def test_a_media_url_that_is_a_string(outputs: int, text: bool) -> None:
    """With media-string the address of a lone image is a string; several are an array as ever."""

    async def ask(client: SimulatorClient) -> None:
        request_id = await client.submit_accepted()
        client.clock.at += 15
        url = (await client.poll(request_id)).json["output"]["media_url"]
        assert url == (client.image_url(request_id) if text else [client.image_url(request_id), *url[1:]])
        assert text or url[1:] == [client.image_url(request_id, "output-2.png")]

    run_with_simulator(ask, faults={"media-string": 1.0}, outputs=outputs)


# ---- how polls are counted -------------------------------------------------------------------------------


def test_gaps_between_polls() -> None:
    """The books tell the least gap between two polls of one job, of each job and of all, and the most polls."""

    async def ask(client: SimulatorClient) -> None:
        first, second = await client.submit_accepted(), await client.submit_accepted()
        assert client.totals()["min_poll_gap_s"] is None
        for at, job in [(0, first), (1, second), (5, first), (8, second), (9, first), (20, second), (20, first)]:
            client.clock.at = CLOCK_START_AT + at
            await client.poll(job)
        totals = client.totals()
        assert totals["polls"] == 7
        assert totals["max_polls_per_job"] == 4
        assert totals["min_poll_gap_s"] == pytest.approx(4)
        jobs = [post["job"] for post in client.posts()]
        assert [job["polls"] for job in jobs] == [4, 3]
        assert [job["min_poll_gap_s"] for job in jobs] == pytest.approx([4, 7])

    run_with_simulator(ask)


def test_one_poll_has_no_gap() -> None:
    """A single poll of each of two jobs leaves the least gap unknown."""

    async def ask(client: SimulatorClient) -> None:
        for _ in range(2):
            await client.poll(await client.submit_accepted())
        assert client.totals()["min_poll_gap_s"] is None
        assert client.totals()["max_polls_per_job"] == 1

    run_with_simulator(ask)


def test_polls_that_were_refused_count_too() -> None:
    """A poll with a wrong key and one over the limit are on the books like any other."""

    async def ask(client: SimulatorClient) -> None:
        request_id = await client.submit_accepted(CAT_BODY)
        statuses = []
        for at, key in [(0, None), (2, "k"), (2.5, "k")]:
            client.clock.at = CLOCK_START_AT + at
            statuses.append((await client.poll(request_id, key=key)).status)
        assert statuses == [401, 200, 429]
        totals = client.totals()
        assert (totals["polls"], totals["polls_429"], totals["min_poll_gap_s"]) == (3, 1, 0.5)

    run_with_simulator(ask, poll_limit="sliding-window:1/s")
