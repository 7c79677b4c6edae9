"""The status endpoint: statuses, refunds of ERROR, and counts of polls."""

from __future__ import annotations

import pytest

from tests.simulator.simulator_fixture import CAT_BODY, CLOCK_START_AT, MODEL, SimulatorClient, run_with_simulator


def charge_totals(client: SimulatorClient) -> tuple[int, int, int]:
    totals = client.totals()
    return totals["accepted"], totals["charged"], totals["refunded"]


async def statuses_at(client: SimulatorClient, request_id: str, *seconds: float) -> list[str]:
    """Return the statuses at these seconds after the start."""
    statuses = []
    for second in seconds:
        client.clock.at = CLOCK_START_AT + second
        statuses.append((await client.poll(request_id)).json["status"])
    return statuses


# ---- statuses -------------------------------------------------------------------------------------------


def test_a_job_from_queued_to_completed() -> None:
    """A job goes from QUEUED through PROCESSING to COMPLETED, and each response has all documented fields."""

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
    """FAILED and ERROR have a reason, no output, and the fields of any final status."""

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


def test_a_final_status_does_not_change() -> None:
    """A job that has ended keeps its status, even if settings change."""

    async def ask(client: SimulatorClient) -> None:
        request_id = await client.submit_accepted()
        client.clock.at += 15
        first = (await client.poll(request_id)).json
        client.clock.at += 86400
        await client.admin("settings", {"latency": "fixed:1e9", "faults": {"job-failed": 1.0}})
        assert (await client.poll(request_id)).json == first

    run_with_simulator(ask)


def test_the_time_scale_shortens_latencies() -> None:
    """With a time scale of 10 a job of 15 seconds completes after 1.5 seconds."""

    async def ask(client: SimulatorClient) -> None:
        request_id = await client.submit_accepted()
        assert await statuses_at(client, request_id, 0.1, 1.4, 1.5) == ["QUEUED", "PROCESSING", "COMPLETED"]

    run_with_simulator(ask, time_scale=10.0)


def test_jobs_wait_for_a_worker() -> None:
    """With one worker the second job is QUEUED until the first has ended, and then takes its own time."""

    async def ask(client: SimulatorClient) -> None:
        first, second = await client.submit_accepted(), await client.submit_accepted()
        client.clock.at = CLOCK_START_AT + 14.9
        assert [(await client.poll(job)).json["status"] for job in (first, second)] == ["PROCESSING", "QUEUED"]
        client.clock.at = CLOCK_START_AT + 15
        assert [(await client.poll(job)).json["status"] for job in (first, second)] == ["COMPLETED", "PROCESSING"]
        assert await statuses_at(client, second, 28.4, 28.5) == ["PROCESSING", "COMPLETED"]

    run_with_simulator(ask, workers=1)


def test_workers_run_simultaneously() -> None:
    """Three workers process three jobs simultaneously; the fourth waits for the first of them."""

    async def ask(client: SimulatorClient) -> None:
        jobs = [await client.submit_accepted() for _ in range(4)]
        client.clock.at = CLOCK_START_AT + 10
        statuses = [(await client.poll(job)).json["status"] for job in jobs]
        assert statuses == ["PROCESSING", "PROCESSING", "PROCESSING", "QUEUED"]

    run_with_simulator(ask, workers=3)


def test_an_unknown_request() -> None:
    """An unknown request_id is a 404, and the poll is counted."""

    async def ask(client: SimulatorClient) -> None:
        response = await client.poll(f"{MODEL}_019d0000-0000-7000-8000-000000000000")
        assert (response.status, response.json["error"]) == (404, "Not Found")
        assert client.totals()["polls"] == 1
        assert client.totals()["max_polls_per_job"] == 0

    run_with_simulator(ask)


# ---- charges --------------------------------------------------------------------------------------------


def test_error_refunds_the_charge_without_a_poll() -> None:
    """A job that ends in ERROR is refunded at its end, not before, and without a poll."""

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
    """A job that ended in ERROR is refunded once, however often it is polled."""

    async def ask(client: SimulatorClient) -> None:
        request_id = await client.submit_accepted()
        await statuses_at(client, request_id, 15, 16, 17)
        assert charge_totals(client) == (1, 0, 1)
        assert client.totals()["balance"] == 3

    run_with_simulator(ask, faults={"job-error": 1.0}, balance=3)


def test_failed_is_charged() -> None:
    """A job that ended FAILED stays charged."""

    async def ask(client: SimulatorClient) -> None:
        request_id = await client.submit_accepted()
        assert await statuses_at(client, request_id, 15) == ["FAILED"]
        assert charge_totals(client) == (1, 1, 0)

    run_with_simulator(ask, faults={"job-failed": 1.0})


def test_only_the_first_job_of_a_body_ends_in_error() -> None:
    """With job-first-error the first job of each body ends in ERROR, and the next one completes."""

    async def ask(client: SimulatorClient) -> None:
        jobs = [await client.submit_accepted({"prompt": prompt}) for prompt in "aab"]
        client.clock.at += 15
        statuses = [(await client.poll(job)).json["status"] for job in jobs]
        assert statuses == ["ERROR", "COMPLETED", "ERROR"]
        assert charge_totals(client) == (3, 1, 2)

    run_with_simulator(ask, faults={"job-first-error": 1.0})


def test_accepted_is_charged_plus_refunded() -> None:
    """At any time each accepted job is either charged or refunded."""

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


# ---- faults ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "status", "expected"),
    [
        ("poll-500", 500, b"Internal Server Error"),
        ("poll-404", 404, b"Not Found"),
        ("poll-cut", 0, b""),
        ("poll-hang", 200, b'"COMPLETED"'),
        ("poll-garbled", 200, b'{"status": "COMPL'),
    ],
)
def test_faults_of_polls(fault: str, status: int, expected: bytes) -> None:
    """A fault of polls damages a response, not the job: the job completes and is charged once."""

    async def ask(client: SimulatorClient) -> None:
        request_id = await client.submit_accepted()
        client.clock.at += 15
        response = await client.poll(request_id)
        assert (response.status, response.complete) == (status, status != 0)
        assert expected in response.body
        assert (await client.poll(request_id)).json["status"] == "COMPLETED"
        assert client.totals()["polls"] == 2
        assert charge_totals(client) == (1, 1, 0)

    run_with_simulator(ask, faults={fault: 1.0}, fault_max_attempts=1, hang_duration_s=0.0)


def test_an_undocumented_status() -> None:
    """With poll-unknown a job has an unknown status until it ends, and then its final status."""

    async def ask(client: SimulatorClient) -> None:
        request_id = await client.submit_accepted()
        assert await statuses_at(client, request_id, 0, 10, 15) == ["UPSCALING", "UPSCALING", "COMPLETED"]

    run_with_simulator(ask, faults={"poll-unknown": 1.0})


def test_faults_are_drawn_for_each_job() -> None:
    """With fault_max_attempts the first polls of each job fail, in whatever order jobs are polled."""

    async def ask(client: SimulatorClient) -> None:
        first, second = await client.submit_accepted(), await client.submit_accepted()
        statuses = [(await client.poll(job)).status for job in (first, second, first, first, second, second)]
        assert statuses == [500, 500, 500, 200, 500, 200]

    run_with_simulator(ask, faults={"poll-500": 1.0}, fault_max_attempts=2)


@pytest.mark.parametrize(("outputs", "text"), [(1, True), (2, False)])
def test_a_media_url_that_is_a_string(outputs: int, text: bool) -> None:
    """With media-string the URL of a single image is a string; several URLs are an array."""

    async def ask(client: SimulatorClient) -> None:
        request_id = await client.submit_accepted()
        client.clock.at += 15
        url = (await client.poll(request_id)).json["output"]["media_url"]
        assert url == (client.image_url(request_id) if text else [client.image_url(request_id), *url[1:]])
        assert text or url[1:] == [client.image_url(request_id, "output-2.png")]

    run_with_simulator(ask, faults={"media-string": 1.0}, outputs=outputs)


# ---- counts of polls ------------------------------------------------------------------------------------


def test_gaps_between_polls() -> None:
    """The accounting has the minimum gap between polls of one job, per job and overall, and the maximum polls."""

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
    """One poll each of two jobs gives no minimum gap."""

    async def ask(client: SimulatorClient) -> None:
        for _ in range(2):
            await client.poll(await client.submit_accepted())
        assert client.totals()["min_poll_gap_s"] is None
        assert client.totals()["max_polls_per_job"] == 1

    run_with_simulator(ask)


def test_refused_polls_are_counted() -> None:
    """Polls with a wrong key or over the limit are counted like any other."""

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
