"""The generate endpoint: accepted and refused bodies, limits, faults, and what is charged."""

from __future__ import annotations

import asyncio
import re
from email.utils import parsedate_to_datetime
from typing import Any

import pytest

from krea_batch.testing.simulator import SimulatorError, SimulatorSettings
from tests.simulator.simulator_fixture import (
    CAT_BODY,
    CLOCK_START_AT,
    MODEL,
    SIMULATOR_KEY,
    SUBMIT_PATH,
    SimulatorClient,
    SimulatorResponse,
    run_with_simulator,
)

FULL_BODY: dict[str, Any] = {  # every parameter of the API document
    "prompt": "A Van Gogh-tinged Provencal farmhouse under starry nights",
    "aspect_ratio": "2.35:1",
    "creativity": "raw",
    "seed": -(2**70),
    "image_style_references": [{"image_url": "https://example.org/a.png", "strength": -1.5}] * 10,
    "styles": [{"id": "ink", "strength": 1}, {"id": "gold"}],
    "moodboards": [{"id": "019D0000-aaaa-4bbb-8ccc-0123456789ab", "strength": 0.23}],
}
UUID7 = r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"


def charged_count(client: SimulatorClient) -> tuple[int, int]:
    totals = client.totals()
    return totals["accepted"], totals["charged"]


# ---- accepted bodies ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        CAT_BODY,
        FULL_BODY,
        {"prompt": "x", "aspect_ratio": "1:1", "creativity": "medium"}
        | {"image_style_references": [], "styles": [], "moodboards": []},
        {"prompt": "猫 🐈 \u0000 \n" * 1000, "seed": 0},
    ],
)
def test_an_accepted_body(body: dict[str, Any]) -> None:
    """A valid body is answered 202 with the three fields of the API document, and charged once."""

    async def ask(client: SimulatorClient) -> None:
        response = await client.post(body)
        assert response.status == 202
        assert response.headers["content-type"].startswith("application/json")
        request_id = response.json["request_id"]
        assert re.fullmatch(f"{MODEL}_{UUID7}", request_id)
        polling_url = f"{client.gateway}/v2/requests/status/{request_id}"
        assert response.json == {"request_id": request_id, "status": "QUEUED", "polling_url": polling_url}
        (post,) = client.posts()
        assert post == {
            "order": 1,
            "at_s": 0.0,
            "status": 202,
            "body": body,
            "request_id": request_id,
            "charged": True,
            "refunded": False,
            "delivered": True,
            "job": {"status": "QUEUED", "polls": 0, "min_poll_gap_s": None, "download_requests": 0},
        }
        assert charged_count(client) == (1, 1)

    run_with_simulator(ask)


def test_the_polling_url_answers() -> None:
    """The polling_url of a response is the URL of the job's status."""

    async def ask(client: SimulatorClient) -> None:
        accepted = (await client.post()).json
        status = await client.request(
            "GET", accepted["polling_url"], headers={"Ocp-Apim-Subscription-Key": SIMULATOR_KEY}
        )
        assert (status.status, status.json["request_id"]) == (200, accepted["request_id"])

    run_with_simulator(ask)


def test_each_post_is_a_job_of_its_own() -> None:
    """POSTs are not deduplicated: the same body sent four times is four jobs and four charges."""

    async def ask(client: SimulatorClient) -> None:
        responses = await asyncio.gather(*(client.post() for _ in range(4)))
        assert len({response.json["request_id"] for response in responses}) == 4
        assert charged_count(client) == (4, 4)
        assert [post["order"] for post in client.posts()] == [1, 2, 3, 4]

    run_with_simulator(ask)


def test_a_content_type_with_a_charset_is_json() -> None:
    """application/json with a charset is accepted."""

    async def ask(client: SimulatorClient) -> None:
        response = await client.post(CAT_BODY, Content_Type="application/json; charset=utf-8")
        assert response.status == 202

    run_with_simulator(ask)


def test_a_lenient_gateway_takes_unknown_fields() -> None:
    """With `lenient` an unknown field is accepted, but an invalid value of a known field is not."""

    async def ask(client: SimulatorClient) -> None:
        assert (await client.post(CAT_BODY | {"size": 3})).status == 202
        assert (await client.post(CAT_BODY | {"size": 3, "seed": "3"})).status == 400

    run_with_simulator(ask, lenient=True)


# ---- refusals -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b'{"prompt": "a cat"} x', "not JSON"),
        (b'{"prompt": "\xff"}', "not JSON"),
        (b'{"prompt": "\\ud800"}', "not JSON"),
        (b'{"prompt": "x", "seed": NaN}', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}", "not JSON"),
        ([CAT_BODY], "JSON object"),
        ("a cat", "JSON object"),
        (None, "JSON object"),
        ({}, "prompt is required"),
        ({"prompt": ""}, "prompt is required"),
        ({"prompt": " \n\t"}, "prompt is required"),
        ({"prompt": None}, "prompt is required"),
        ({"prompt": 7}, "prompt is required"),
        (CAT_BODY | {"size": 1}, "unknown parameter 'size'"),
        (CAT_BODY | {"Seed": 1}, "unknown parameter 'Seed'"),
        (CAT_BODY | {"aspect_ratio": "16:10"}, "aspect_ratio has to be one of 1:1, 4:3"),
        (CAT_BODY | {"aspect_ratio": None}, "aspect_ratio has to be one of"),
        (CAT_BODY | {"aspect_ratio": ["1:1"]}, "aspect_ratio has to be one of"),
        (CAT_BODY | {"creativity": "wild"}, "creativity has to be one of raw, low, medium, high"),
        (CAT_BODY | {"seed": "1"}, "seed has to be an integer"),
        (CAT_BODY | {"seed": 1.0}, "seed has to be an integer"),
        (CAT_BODY | {"seed": True}, "seed has to be an integer"),
        (CAT_BODY | {"seed": None}, "seed has to be an integer"),
        (CAT_BODY | {"styles": {}}, "styles has to be an array of at most 10"),
        (CAT_BODY | {"styles": [{"id": "a"}] * 11}, "styles has to be an array of at most 10"),
        (CAT_BODY | {"styles": ["a"]}, "styles entries have id and strength"),
        (CAT_BODY | {"styles": [{"id": "a", "weight": 1}]}, "styles entries have id and strength"),
        (CAT_BODY | {"styles": [{"strength": 1}]}, "styles id has to be a style identifier"),
        (CAT_BODY | {"styles": [{"id": ""}]}, "styles id has to be a style identifier"),
        (CAT_BODY | {"styles": [{"id": "a", "strength": "1"}]}, "styles strength has to be a number"),
        (CAT_BODY | {"styles": [{"id": "a", "strength": True}]}, "styles strength has to be a number"),
        (CAT_BODY | {"image_style_references": [{"image_url": "http://a/b"}]}, "image_url has to be an HTTPS URL"),
        (CAT_BODY | {"image_style_references": [{"image_url": "https://a"}] * 11}, "array of at most 10"),
        (CAT_BODY | {"moodboards": [{"id": "blue"}]}, "moodboards id has to be a UUID"),
        (CAT_BODY | {"moodboards": FULL_BODY["moodboards"] * 2}, "moodboards has to be an array of at most 1"),
    ],
)
def test_invalid_bodies(body: object, reason: str) -> None:
    """An invalid body is refused with a 400 that names the reason, and nothing is charged."""

    async def ask(client: SimulatorClient) -> None:
        response = await client.post(body)
        assert response.status == 400
        assert response.json["error"] == "Bad Request"
        assert reason in response.json["message"]
        assert charged_count(client) == (0, 0)
        (post,) = client.posts()
        assert (post["status"], post["request_id"], post["charged"]) == (400, None, False)
        assert client.totals()["refused"] == {"400": 1}

    run_with_simulator(ask)


def test_another_content_type_is_refused() -> None:
    """A body with another content type is a 400."""

    async def ask(client: SimulatorClient) -> None:
        response = await client.post(CAT_BODY, Content_Type="text/plain")
        assert (response.status, response.json["error"]) == (400, "Bad Request")
        assert "Content-Type" in response.json["message"]

    run_with_simulator(ask)


@pytest.mark.parametrize("key", [None, "", "another key", SIMULATOR_KEY.upper()])
def test_a_wrong_key(key: str | None) -> None:
    """Without the key, or with a wrong one, a POST is a 401 even if its body is invalid, and so is a poll."""

    async def ask(client: SimulatorClient) -> None:
        request_id = await client.submit_accepted()
        for response in (await client.post(key=key), await client.post({}, key=key)):
            assert (response.status, response.json["error"]) == (401, "Unauthorized")
        assert (await client.poll(request_id, key=key)).status == 401
        assert client.totals()["refused"] == {"401": 2}
        assert charged_count(client) == (1, 1)

    run_with_simulator(ask, key=SIMULATOR_KEY)


def test_any_key_is_accepted_unless_one_is_set() -> None:
    """If no key is set any key is accepted, but there must be one."""

    async def ask(client: SimulatorClient) -> None:
        assert (await client.post(key="whatever")).status == 202
        assert (await client.post(key=None)).status == 401

    run_with_simulator(ask)


def test_a_revoked_key() -> None:
    """After `revoke_after` accepted POSTs the key is refused; refused POSTs do not count."""

    async def ask(client: SimulatorClient) -> None:
        statuses = [(await client.post(body)).status for body in (CAT_BODY, {}, CAT_BODY, CAT_BODY)]
        assert statuses == [202, 400, 202, 401]
        assert (await client.poll(client.posts()[0]["request_id"])).status == 401
        assert charged_count(client) == (2, 2)

    run_with_simulator(ask, revoke_after=2)


def test_no_balance() -> None:
    """Without credits a POST is answered with exactly the API document's 402."""

    async def ask(client: SimulatorClient) -> None:
        responses = [await client.post() for _ in range(3)]
        assert [response.status for response in responses] == [202, 202, 402]
        assert responses[-1].json == {
            "error": "Insufficient Balance",
            "message": "Your wallet does not have enough balance.",
        }
        assert charged_count(client) == (2, 2)
        assert client.totals()["balance"] == 0
        assert (await client.post({})).status == 400

    run_with_simulator(ask, balance=2)


def test_the_credit_of_an_error_is_available_again() -> None:
    """The credit of a job that ended in ERROR is available for the next POST, without a poll."""

    async def ask(client: SimulatorClient) -> None:
        assert [(await client.post()).status for _ in range(2)] == [202, 402]
        client.clock.at += 15
        assert (await client.post()).status == 202
        assert charged_count(client) == (2, 1)

    run_with_simulator(ask, balance=1, faults={"job-error": 1.0})


def test_another_model() -> None:
    """Another model is the API document's 400 with its name, and a 401 without a key."""

    async def ask(client: SimulatorClient) -> None:
        url = f"{client.gateway}/krea-3-huge/v1/krea-3-huge-request"
        response = await client.request(
            "POST", url, json=CAT_BODY, headers={"Ocp-Apim-Subscription-Key": SIMULATOR_KEY}
        )
        assert response.status == 400
        assert response.json == {
            "error": "Model not found",
            "message": "Model 'krea-3-huge' not found or is disabled",
        }
        assert (await client.request("POST", url, json=CAT_BODY)).status == 401
        assert client.posts() == []

    run_with_simulator(ask)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", SUBMIT_PATH),
        ("PUT", SUBMIT_PATH),
        ("POST", "/v2/requests/status/x"),
        ("HEAD", "/v2/requests/status/x"),
        ("GET", "/v2/requests/status"),
        ("POST", "/krea-2-large-text-to-image-request"),
        ("GET", "/_admin/nothing"),
        ("DELETE", "/_admin/ledger"),
    ],
)
def test_other_urls_of_the_gateway(method: str, path: str) -> None:
    """Any other URL or method is a 404 and is not counted."""

    async def ask(client: SimulatorClient) -> None:
        response = await client.request(
            method, client.gateway + path, headers={"Ocp-Apim-Subscription-Key": SIMULATOR_KEY}
        )
        assert response.status == 404
        assert client.posts() == []
        assert client.totals()["polls"] == 0

    run_with_simulator(ask)


def test_a_body_that_is_too_large() -> None:
    """A body of more than 4 MiB is a 413 and is not charged; a slightly smaller one is accepted."""

    async def ask(client: SimulatorClient) -> None:
        assert (await client.post({"prompt": "x" * ((4 << 20) - 100)})).status == 202
        response = await client.post({"prompt": "x" * (4 << 20)})
        assert response.status == 413
        assert response.json["error"] == "Payload Too Large"
        assert client.totals()["refused"] == {"413": 1}
        assert charged_count(client) == (1, 1)

    run_with_simulator(ask)


# ---- the rate limit -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "expected"),
    [("seconds", "6"), ("date", "Tue, 31 Mar 2026 10:00:07 GMT"), ("none", None)],
)
def test_retry_after(form: str, expected: str | None) -> None:
    """A 429 has the wait in the configured form, rounded up, and a POST after it is accepted."""

    async def ask(client: SimulatorClient) -> None:
        assert (await client.post()).status == 202
        client.clock.at += 0.75
        response = await client.post()
        assert (response.status, response.json["error"]) == (429, "Too Many Requests")
        assert response.headers.get("retry-after") == expected
        if form == "date" and expected:
            assert parsedate_to_datetime(expected).timestamp() == CLOCK_START_AT + 7
        client.clock.at = CLOCK_START_AT + 7
        assert (await client.post()).status == 202
        assert client.totals()["refused"] == {"429": 1}
        assert charged_count(client) == (2, 2)

    run_with_simulator(ask, submit_limit="token-bucket:0.15/s", retry_after=form)


def test_a_wait_of_less_than_a_second_is_reported_as_one() -> None:
    """Retry-After is in whole seconds and never 0."""

    async def ask(client: SimulatorClient) -> None:
        await client.post()
        assert (await client.post()).headers["retry-after"] == "1"

    run_with_simulator(ask, submit_limit="token-bucket:100/s,1")


def test_the_limit_comes_after_the_key_and_before_the_body() -> None:
    """A POST with a wrong key does not count against the limit; one with an invalid body does."""

    async def ask(client: SimulatorClient) -> None:
        statuses = [
            (await client.post(key=None)).status,
            (await client.post({})).status,
            (await client.post()).status,
        ]
        assert statuses == [401, 400, 429]

    run_with_simulator(ask, submit_limit="fixed-window:1/m")


def test_limits_of_submits_and_polls() -> None:
    """Polls have a separate limit, unless they share that of the POSTs."""

    async def own(client: SimulatorClient) -> None:
        request_id = await client.submit_accepted()
        polls = [(await client.poll(request_id)).status for _ in range(3)]
        assert polls == [200, 200, 429]
        assert client.totals()["polls_429"] == 1

    async def shared(client: SimulatorClient) -> None:
        request_id = await client.submit_accepted()
        polls = [(await client.poll(request_id)).status for _ in range(3)]
        assert polls == [200, 429, 429]
        assert (await client.post()).status == 429

    run_with_simulator(own, submit_limit="sliding-window:2/s", poll_limit="sliding-window:2/s")
    run_with_simulator(
        shared, submit_limit="sliding-window:2/s", poll_limit="sliding-window:100/s", shared_limit=True
    )


def test_a_limit_on_jobs_in_process() -> None:
    """Jobs are refused while so many are in process, also after a change; polls and bad bodies are no jobs."""

    async def ask(client: SimulatorClient) -> None:
        request_id = await client.submit_accepted()
        assert (await client.post({})).status == 400
        assert (await client.post()).status == 202
        refused = await client.post()
        assert (refused.status, refused.headers["retry-after"]) == (429, "15")
        assert (await client.poll(request_id)).status == 200
        await client.admin("settings", {"submit_limit": "jobs-in-process:3"})
        assert [(await client.post()).status for _ in range(2)] == [202, 429]
        client.clock.at += 15
        assert (await client.post()).status == 202
        await client.admin("reset", {})
        assert [(await client.post()).status for _ in range(4)] == [202, 202, 202, 429]

    run_with_simulator(ask, submit_limit="jobs-in-process:2", latency="fixed:15")


def test_polls_cannot_share_a_limit_on_jobs() -> None:
    """A limit on jobs in process cannot be shared with polls."""
    with pytest.raises(SimulatorError, match="polls cannot count"):
        SimulatorSettings(submit_limit="jobs-in-process:2", shared_limit=True)


def test_max_posts_in_a_second() -> None:
    """The accounting has the maximum number of POSTs in any second, including refused ones."""

    async def ask(client: SimulatorClient) -> None:
        for at in (0.0, 0.4, 0.8, 0.9, 1.3, 1.35, 5.0):
            client.clock.at = CLOCK_START_AT + at
            await client.post(CAT_BODY if at else {})
        assert client.totals()["max_posts_per_second"] == 5
        assert [post["at_s"] for post in client.posts()] == pytest.approx([0.0, 0.4, 0.8, 0.9, 1.3, 1.35, 5.0])

    run_with_simulator(ask)


# ---- faults ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "status", "expected"),
    [
        ("submit-400", 400, b"Bad Request"),
        ("submit-no-model", 400, b"Model 'krea-2-large-text-to-image' not found or is disabled"),
        ("submit-402", 402, b"Your wallet does not have enough balance."),
        ("submit-403", 403, b"Forbidden"),
        ("submit-403-quota", 403, b"Forbidden"),
        ("submit-500", 500, b"Internal Server Error"),
        ("submit-503", 503, b"Service Unavailable"),
        ("submit-502", 502, b"<html>"),
        ("submit-408", 408, b"<html>"),
        ("submit-redirect", 307, b"<html>"),
        ("submit-cut", 0, b""),
    ],
)
def test_faults_that_charge_nothing(fault: str, status: int, expected: bytes) -> None:
    """A fault before a POST is accepted gives its response, queues nothing and charges nothing."""

    async def ask(client: SimulatorClient) -> None:
        response = await client.post()
        assert response.status == status
        assert expected in response.body
        assert response.complete == (status != 0)
        assert ("html" in response.headers.get("content-type", "")) == (b"<html>" in expected)
        assert response.headers.get("retry-after") == ("1" if fault == "submit-403-quota" else None)
        assert response.headers.get("location") == (f"{client.cdn}/elsewhere" if status == 307 else None)
        (post,) = client.posts()
        assert post["body"] == CAT_BODY
        assert (post["status"], post["charged"], post["request_id"], post["job"]) == (status, False, None, None)
        totals = client.totals()
        assert (totals["accepted"], totals["charged"], totals["balance"]) == (0, 0, 5)
        assert totals["refused"] == {str(status): 1}
        assert (await client.post()).status == 202  # only the first attempt fails
        assert client.totals()["balance"] == 4

    run_with_simulator(ask, faults={fault: 1.0}, fault_max_attempts=1, balance=5)


@pytest.mark.parametrize(
    ("fault", "status", "expected", "recorded", "delivered"),
    [
        ("submit-lost", 0, b"", 0, False),
        ("submit-504", 504, b"<html>", 504, True),
        ("submit-garbled", 202, b'{"request_id": "krea-2-la', 202, True),
        ("submit-no-id", 202, b'{"status":"QUEUED"}', 202, True),
        ("submit-hang", 202, b'"QUEUED"', 202, True),
        ("submit-200", 200, b'"QUEUED"', 200, True),
    ],
)
def test_faults_that_charge(fault: str, status: int, expected: bytes, recorded: int, delivered: bool) -> None:
    """A fault after a POST is accepted damages only the response: the job exists and is charged."""

    async def ask(client: SimulatorClient) -> None:
        response = await client.post()
        assert response.status == status
        assert expected in response.body
        assert response.complete == (status != 0)
        (post,) = client.posts()
        assert (post["status"], post["charged"], post["delivered"]) == (recorded, True, delivered)
        totals = client.totals()
        assert (totals["accepted"], totals["charged"], totals["undelivered"]) == (1, 1, int(not delivered))
        assert (totals["balance"], totals["refused"]) == (4, {})
        client.clock.at += 15
        assert (await client.poll(post["request_id"])).json["status"] == "COMPLETED"

    run_with_simulator(ask, faults={fault: 1.0}, balance=5, hang_duration_s=0.0)


def test_a_response_without_a_client() -> None:
    """A client that disconnects while its POST hangs is charged, and the response is counted as undelivered."""

    async def ask(client: SimulatorClient) -> None:
        asking = asyncio.create_task(client.post())
        while not client.posts():
            await asyncio.sleep(0)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        while client.posts()[0]["delivered"]:
            await asyncio.sleep(0)
        assert charged_count(client) == (1, 1)
        assert client.totals()["undelivered"] == 1

    run_with_simulator(ask, faults={"submit-hang": 1.0}, hang_duration_s=0.5)


def test_a_job_that_is_done_immediately() -> None:
    """With submit-done the response to a POST is that of a completed job, with its image URL."""

    async def ask(client: SimulatorClient) -> None:
        response = await client.post()
        assert response.status == 202
        body = response.json
        assert body["status"] == "COMPLETED"
        assert body["output"] == {"media_url": [client.image_url(body["request_id"])], "media_type": "image/png"}
        assert body == (await client.poll(body["request_id"])).json
        assert charged_count(client) == (1, 1)

    run_with_simulator(ask, faults={"submit-done": 1.0})


def test_faults_come_after_key_limit_and_body_and_before_the_balance() -> None:
    """Key, limit and body are checked before faults, and only the balance after them."""

    async def ask(client: SimulatorClient) -> None:
        responses: list[SimulatorResponse] = [
            await client.post(key=None),
            await client.post({}),
            await client.post({"prompt": "struck"}),
            await client.post({"prompt": "struck"}),
        ]
        assert [response.status for response in responses] == [401, 400, 500, 402]

    run_with_simulator(ask, faults={"submit-500": 1.0}, fault_max_attempts=1, balance=0)


def test_faults_are_drawn_for_each_body() -> None:
    """With fault_max_attempts the first attempts of each body fail, whatever else is sent in between."""

    async def ask(client: SimulatorClient) -> None:
        statuses = [(await client.post({"prompt": prompt})).status for prompt in "abaabb"]
        assert statuses == [503, 503, 503, 202, 503, 202]

    run_with_simulator(ask, faults={"submit-503": 1.0}, fault_max_attempts=2)
