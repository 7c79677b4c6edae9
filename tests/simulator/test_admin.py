"""The admin endpoints: totals, ledger, changed settings, the balance, reset."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from krea_batch.testing.simulator import Simulator, SimulatorError, SimulatorSettings
from tests.simulator.simulator_fixture import CAT_BODY, CLOCK_START_AT, SimulatorClient, run_with_simulator

ZERO_TOTALS = [
    "posts",
    "accepted",
    "charged",
    "refunded",
    "undelivered",
    "polls",
    "polls_429",
    "cdn_requests",
    "cdn_with_key",
    "downloads",
    "bytes",
    "webhooks",
    "webhooks_failed",
    "webhooks_refused",
    "max_polls_per_job",
    "max_posts_per_second",
]
EMPTY_TOTALS: dict[str, Any] = dict.fromkeys(ZERO_TOTALS, 0) | {
    "refused": {},
    "min_poll_gap_s": None,
    "balance": None,
}


def test_initial_totals() -> None:
    """Before the first request every count is present and zero."""

    async def ask(client: SimulatorClient) -> None:
        response = await client.admin("totals")
        assert response.status == 200
        assert response.json == EMPTY_TOTALS == client.totals()

    run_with_simulator(ask)


def test_totals_and_ledger() -> None:
    """Totals and ledger are the same over HTTP as in the process, and the ledger has every POST in order."""

    async def ask(client: SimulatorClient) -> None:
        done = await client.submit_accepted(CAT_BODY | {"seed": 2**70})
        await client.post({})
        await client.post(b"{")
        client.clock.at += 20
        queued = await client.submit_accepted({"prompt": "a dog"})
        await client.poll(done)
        await client.get(client.image_url(done))
        ledger = (await client.admin("ledger")).json
        assert ledger == client.simulator.ledger()
        assert ledger["totals"] == client.totals() == (await client.admin("totals")).json
        assert [post["order"] for post in ledger["posts"]] == [1, 2, 3, 4]
        assert [post["at_s"] for post in ledger["posts"]] == [0, 0, 0, 20]
        assert [post["body"] for post in ledger["posts"]] == [
            CAT_BODY | {"seed": 2**70},
            {},
            None,
            {"prompt": "a dog"},
        ]
        assert [post["request_id"] for post in ledger["posts"]] == [done, None, None, queued]
        assert [post["job"] and post["job"]["status"] for post in ledger["posts"]] == [
            "COMPLETED",
            None,
            None,
            "QUEUED",
        ]
        assert (ledger["totals"]["posts"], ledger["totals"]["refused"]) == (4, {"400": 2})
        assert (ledger["totals"]["polls"], ledger["totals"]["downloads"]) == (1, 1)

    run_with_simulator(ask)


def test_the_ledger_can_be_read_after_the_end() -> None:
    """The counts can be read after the ports are closed."""

    async def ask(client: SimulatorClient) -> Simulator:
        await client.post()
        return client.simulator

    assert run_with_simulator(ask).totals()["accepted"] == 1


def test_settings_are_returned_and_can_be_sent_back() -> None:
    """All settings are returned, and sending them back changes nothing."""

    async def ask(client: SimulatorClient) -> None:
        current = (await client.admin("settings")).json
        assert set(current) == set(SimulatorSettings.__struct_fields__)
        assert (current["latency"], current["faults"], current["balance"]) == ("fixed:15", {"cdn-404": 0.5}, None)
        changeable = {name: value for name, value in current.items() if not name.endswith("port")}
        del changeable["host"], changeable["state_file"]
        assert (await client.admin("settings", changeable)).json == current
        assert (await client.admin("settings", {})).json == current

    run_with_simulator(ask, faults={"cdn-404": 0.5})


def test_changed_settings_apply_from_now_on() -> None:
    """Named settings change from now on, others stay, and accepted jobs keep their times."""

    async def ask(client: SimulatorClient) -> None:
        before = await client.submit_accepted()
        changed = await client.admin("settings", {"latency": "fixed:2", "faults": {"job-failed": 1}})
        assert changed.json["latency"] == "fixed:2"
        assert changed.json["tiny"] is True
        after = await client.submit_accepted()
        client.clock.at += 2
        assert [(await client.poll(job)).json["status"] for job in (before, after)] == ["PROCESSING", "FAILED"]
        client.clock.at += 13
        assert (await client.poll(before)).json["status"] == "COMPLETED"
        await client.admin("settings", {"faults": {}, "key": "new", "image_bytes": 4096})
        assert (await client.post(key="old")).status == 401
        assert (await client.post(key="new")).status == 202
        assert len((await client.get(client.image_url(before))).body) == 4096

    run_with_simulator(ask)


def test_an_unchanged_limit_keeps_its_count() -> None:
    """A limit keeps its count when other settings change, and starts from zero when it changes itself."""

    async def ask(client: SimulatorClient) -> None:
        assert [(await client.post()).status for _ in range(2)] == [202, 429]
        await client.admin("settings", {"retry_after": "none", "submit_limit": "fixed-window:1/h"})
        response = await client.post()
        assert (response.status, "retry-after" in response.headers) == (429, False)
        await client.admin("settings", {"submit_limit": "fixed-window:2/h"})
        assert [(await client.post()).status for _ in range(3)] == [202, 202, 429]
        await client.admin("settings", {"submit_limit": "none"})
        assert (await client.post()).status == 202

    run_with_simulator(ask, submit_limit="fixed-window:1/h")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", ""),
        (b"{", ""),
        (b"[]", "object"),
        (b"null", "object"),
        (b'{"key": "\xff"}', ""),
        (b'{"faults": ' + b"[" * 100_000, ""),
        ({"speed": 1}, "speed"),
        ({"latency": "slow"}, "latency"),
        ({"latency": 15}, "latency"),
        ({"time_scale": 0}, "time_scale"),
        ({"time_scale": -1}, "time_scale"),
        ({"time_scale": "2"}, "time_scale"),
        (b'{"time_scale": 1e999}', ""),
        ({"workers": -1}, "workers"),
        ({"workers": 1.5}, "workers"),
        ({"submit_limit": "10/s"}, "submit_limit"),
        ({"poll_limit": ""}, "poll_limit"),
        ({"retry_after": "minutes"}, "retry_after"),
        ({"faults": {"poll-501": 1}}, "poll-501"),
        ({"faults": {"poll-500": 1.5}}, "poll-500=1.5"),
        ({"faults": {"poll-500": -0.1}}, "poll-500=-0.1"),
        ({"faults": ["poll-500"]}, "faults"),
        ({"fault_max_attempts": -1}, "fault_max_attempts"),
        ({"hang_duration_s": -1}, "hang_duration_s"),
        ({"slow_duration_s": None}, "slow_duration_s"),
        ({"balance": -1}, "balance"),
        ({"outputs": 0}, "outputs"),
        ({"outputs": 5}, "outputs"),
        ({"image_bytes": 4095}, "image_bytes"),
        ({"image_bytes": (1 << 26) + 1}, "image_bytes"),
        ({"revoke_after": -1}, "revoke_after"),
        ({"host": "127.0.0.1"}, "host"),
        ({"port": 0}, "port"),
        ({"cdn_port": 0}, "cdn_port"),
        ({"state_file": ""}, "state_file"),
    ],
)
def test_invalid_settings(body: object, expected: str) -> None:
    """An invalid setting is a 400 that names it, and changes nothing, not even the valid settings beside it."""

    async def ask(client: SimulatorClient) -> None:
        before = (await client.admin("settings")).json
        response = await client.admin("settings", {"seed": 9} | body if isinstance(body, dict) else body)
        assert response.status == 400
        assert expected in response.json["message"]
        assert (await client.admin("settings")).json == before

    run_with_simulator(ask)


def test_the_balance() -> None:
    """The balance can be topped up, set, and made unlimited; the response contains the totals."""

    async def ask(client: SimulatorClient) -> None:
        assert (await client.post()).status == 402
        assert (await client.admin("balance", {"add": 2})).json["balance"] == 2
        assert [(await client.post()).status for _ in range(3)] == [202, 202, 402]
        assert (await client.admin("balance", {"set": 1})).json["balance"] == 1
        assert (await client.admin("balance", {"set": 1, "add": 2})).json["balance"] == 3
        assert (await client.admin("balance", {"add": -1})).json["balance"] == 2
        assert (await client.admin("balance", {"set": None})).json["balance"] is None
        assert (await client.admin("balance", {"add": 5})).json["balance"] is None
        assert (await client.post()).status == 202
        assert (await client.admin("settings", {"balance": 7})).json["balance"] == 7
        assert client.totals()["balance"] == 7

    run_with_simulator(ask, balance=0)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"5",
        b"[]",
        b"[" * 100_000,
        {"add": "5"},
        {"add": 1.5},
        {"add": None},
        {"plus": 1},
        {"set": -1},
        {"set": "x"},
    ],
)
def test_invalid_balances(body: object) -> None:
    """An invalid balance is a 400 and does not change the balance."""

    async def ask(client: SimulatorClient) -> None:
        response = await client.admin("balance", body)
        assert (response.status, response.json["error"]) == (400, "Bad Request")
        assert client.totals()["balance"] == 3

    run_with_simulator(ask, balance=3)


def test_a_reset() -> None:
    """A reset forgets all jobs and counts, restores the balance of the settings, and keeps the settings."""

    async def ask(client: SimulatorClient) -> None:
        request_id = await client.submit_accepted()
        await client.poll(request_id)
        await client.post({})
        await client.admin("settings", {"seed": 4})
        client.clock.at += 15
        response = await client.admin("reset", {})
        assert response.json == EMPTY_TOTALS | {"balance": 2}
        assert (await client.poll(request_id)).status == 404
        assert (await client.get(client.image_url(request_id))).status == 404
        assert (await client.admin("settings")).json["seed"] == 4
        assert (await client.post()).status == 202
        (post,) = client.posts()
        assert (post["order"], post["at_s"]) == (1, 0.0)
        assert client.totals()["balance"] == 1

    run_with_simulator(ask, balance=2)


def test_a_reset_restores_revoked_keys() -> None:
    """A reset also resets the count of accepted POSTs, so a revoked key is valid again."""

    async def ask(client: SimulatorClient) -> None:
        assert [(await client.post()).status for _ in range(2)] == [202, 401]
        await client.admin("reset", {})
        assert (await client.post()).status == 202

    run_with_simulator(ask, revoke_after=1)


def test_after_a_reset_the_same_requests_have_the_same_outcomes() -> None:
    """After a reset the same POSTs have the same faults, latencies and images."""

    async def one_run(client: SimulatorClient) -> list[object]:
        client.clock.at = CLOCK_START_AT
        results: list[object] = []
        for n in range(30):
            results.append((await client.post({"prompt": f"image {n % 10}"})).status)
        client.clock.at += 1000
        for post in client.posts():
            if post["request_id"]:
                status = (await client.poll(post["request_id"])).json
                results += [status["status"], status["completed_at"]]
        return results

    async def ask(client: SimulatorClient) -> tuple[list[object], list[object]]:
        first = await one_run(client)
        await client.admin("reset", {})
        return first, await one_run(client)

    faults = {"submit-500": 0.3, "job-failed": 0.3}
    first, second = run_with_simulator(ask, latency="uniform:5,30", faults=faults)
    assert first == second
    assert {202, 500, "FAILED", "COMPLETED"} <= set(first)
    assert run_with_simulator(ask, latency="uniform:5,30", faults=faults)[0] == first
    assert run_with_simulator(ask, latency="uniform:5,30", faults=faults, seed=1)[0] != first


def test_a_port_in_use() -> None:
    """A simulator that cannot listen names the port setting, and leaves no port open."""

    async def ask(client: SimulatorClient) -> None:
        used_port = int(client.gateway.rpartition(":")[2])
        for name in ("port", "cdn_port"):
            ports: dict[str, Any] = {name: used_port}
            settings = SimulatorSettings(tiny=True, **ports)
            with pytest.raises(SimulatorError, match="cannot listen on") as raised:
                await Simulator(settings).start()
            assert raised.value.field == name

    run_with_simulator(ask)


def test_start_and_close() -> None:
    """`start` and `close` work without the context manager, closing twice has no effect, and all URLs are set."""

    async def main() -> None:
        simulator = Simulator(SimulatorSettings(tiny=True, host="0.0.0.0"))
        await simulator.start()
        assert simulator.gateway_url.startswith("http://127.0.0.1:")
        assert simulator.admin_url == simulator.gateway_url + "/_admin"
        assert simulator.cdn_url not in ("", simulator.gateway_url)
        await simulator.close()
        await simulator.close()

    asyncio.run(main())
