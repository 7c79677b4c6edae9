"""Test pipeline.submitter: the result of a POST decides about money."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest

from krea_batch import Engine, GatewayError, Job, RunStopped, Webhook
from krea_batch.events import Event, SubmitsPaused
from krea_batch.gateway.url_policy import DownloadError
from krea_batch.jobs import Outcome
from krea_batch.pipeline.producer import BATCH_JOBS
from krea_batch.pipeline.submitter import MAX_QUEUED
from krea_batch.rules.lifecycle import MAX_AMBIGUOUS_POSTS
from krea_batch.rules.verdicts import (
    Accepted,
    Ambiguous,
    Errored,
    Failed,
    NotSent,
    PollFailed,
    Refusal,
    Refused,
    Waiting,
)
from krea_batch.testing import ACCEPT, FINISH, ScriptedGateway, run_virtual
from tests.asgi_client import call_asgi
from tests.engine_fixtures import ledger_states, make_jobs, query_ledger, result_statuses, rows_by_id, run_jobs
from tests.window_stats import max_in_window

RATE_LIMITED_2_S = Refused(Refusal.RATE_LIMITED, 429, "too many requests", 2.0)
QUOTA_EXCEEDED = Refused(Refusal.RATE_LIMITED, 403, "quota", 2.0)
RETRYABLE = Refused(Refusal.RETRYABLE, 500, "internal error")
UNAVAILABLE = Refused(Refusal.RETRYABLE, 503, "unavailable", 7.0)
NOT_SENT = NotSent("no connection")
NO_ENDPOINT = PollFailed("no such endpoint", 404)
AMBIGUOUS_RESULT = Ambiguous("the connection was cut")
PAYMENT_REQUIRED = {status: Refused(Refusal.FATAL, status, "no") for status in (401, 402, 403)}
REJECTED = {status: Refused(Refusal.REJECTED, status, "bad") for status in (400, 404, 405, 413, 415, 422)}


def resubmit_delays_s(gateway: ScriptedGateway) -> list[float]:
    times_s = gateway.submit_times_s
    return [later - earlier for earlier, later in itertools.pairwise(times_s)]


class TestSubmitResults:
    def test_accepted_is_stored(self, tmp_path: Path) -> None:
        """The image of an accepted POST is stored, and there is only one POST."""
        gateway = ScriptedGateway()
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(3)))
        assert result_statuses(tmp_path) == {"j0": "succeeded", "j1": "succeeded", "j2": "succeeded"}
        assert gateway.submitted_prompts == ["j0", "j1", "j2"]

    @pytest.mark.parametrize("status", REJECTED)
    def test_rejected_ends_the_job(self, tmp_path: Path, status: int) -> None:
        """A 4xx answer ends its job without a charge, for good, and does not affect other jobs."""
        gateway = ScriptedGateway()
        gateway.submit_script["j0"] = [REJECTED[status]]
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(2)))
        assert result_statuses(tmp_path) == {"j0": "rejected", "j1": "succeeded"}
        assert rows_by_id(tmp_path)["j0"]["error"] == {"kind": f"http_{status}", "message": "bad"}
        assert gateway.submitted_prompts == ["j0", "j1"]
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(2)))
        assert gateway.submitted_prompts == ["j0", "j1"]

    @pytest.mark.parametrize("status", PAYMENT_REQUIRED)
    def test_a_refused_key_or_no_balance_stops_the_run(self, tmp_path: Path, status: int) -> None:
        """401, 402 and 403 stop the run; the jobs stay pending, and the next run submits them."""
        gateway = ScriptedGateway()
        for job in make_jobs(4)[1:]:
            gateway.submit_script[job.id] = [PAYMENT_REQUIRED[status], ACCEPT]
        engine = run_virtual(run_jobs(tmp_path, gateway, make_jobs(4), rate="1/s"))
        assert isinstance(engine.stopped, GatewayError)
        assert engine.stopped.status == status
        assert gateway.submitted_prompts == ["j0", "j1"]
        assert ledger_states(tmp_path) == {"j0": "succeeded", "j1": "pending"}
        assert result_statuses(tmp_path) == {"j0": "succeeded"}
        gateway.submit_script.clear()
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(4)))
        assert set(result_statuses(tmp_path).values()) == {"succeeded"}
        assert len(gateway.charged) == 4

    @pytest.mark.parametrize("refusal", [RATE_LIMITED_2_S, QUOTA_EXCEEDED], ids=["429", "403 with Retry-After"])
    def test_a_quota_pauses_and_resumes(self, tmp_path: Path, refusal: Refused) -> None:
        """429, and 403 with Retry-After, pause all submits for as long as the response asks."""
        gateway = ScriptedGateway()
        gateway.submit_script["j0"] = [refusal, ACCEPT]
        engine = run_virtual(run_jobs(tmp_path, gateway, make_jobs(5), rate="5/s"))
        assert set(result_statuses(tmp_path).values()) == {"succeeded"}
        assert engine.stopped is None
        answered_s = gateway.submit_times_s[0] + gateway.submit_duration_s
        assert all(not answered_s + 0.001 < at_s < answered_s + 2.0 for at_s in gateway.submit_times_s)
        assert len(gateway.submitted_bodies) == 6
        assert query_ledger(tmp_path, "SELECT result FROM submissions ORDER BY submission_no")[0] == ("refused",)

    @pytest.mark.parametrize("refusal", [RETRYABLE, UNAVAILABLE, NOT_SENT], ids=["500", "503", "not sent"])
    def test_a_post_that_was_not_queued_is_retried(self, tmp_path: Path, refusal: Any) -> None:
        """A POST answered 500 or 503 with an error body, or not sent at all, is retried until accepted."""
        gateway = ScriptedGateway()
        gateway.submit_script["j0"] = [refusal] * 3 + [ACCEPT]
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(1), random=Random(1)))
        assert result_statuses(tmp_path) == {"j0": "succeeded"}
        assert len(gateway.submitted_bodies) == 4
        assert len(gateway.charged) == 1
        assert rows_by_id(tmp_path)["j0"]["attempts"] == 4
        results = [
            result for (result,) in query_ledger(tmp_path, "SELECT result FROM submissions ORDER BY submission_no")
        ]
        assert results == ["not_sent" if refusal is NOT_SENT else "server_error"] * 3 + ["accepted"]

    def test_retry_after_of_a_503_is_followed(self, tmp_path: Path) -> None:
        """The Retry-After of a 503 is the minimum delay of its job."""
        gateway = ScriptedGateway()
        gateway.submit_script["j0"] = [UNAVAILABLE, ACCEPT]
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(1)))
        assert min(resubmit_delays_s(gateway)) >= 7.0

    def test_backoff_grows(self, tmp_path: Path) -> None:
        """With maximum jitter, the delays double."""

        class MaxRandom(Random):
            def random(self) -> float:
                return 1.0

        gateway = ScriptedGateway()
        gateway.submit_script["j0"] = [RETRYABLE] * 4 + [ACCEPT]
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(1), random=MaxRandom()))
        pauses_s = [gap_s - gateway.submit_duration_s for gap_s in resubmit_delays_s(gateway)]
        assert pauses_s[:3] == pytest.approx([0.5, 1.0, 2.0], abs=0.01)

    def test_one_failing_job_among_good_ones_is_rejected(self, tmp_path: Path) -> None:
        """A job that is always answered 500, alone, ends rejected and delays no other job; each 500 is recorded."""
        gateway = ScriptedGateway()
        gateway.submit_script["j0"] = [RETRYABLE]
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(600), rate="5/s", max_in_flight=20))
        found = result_statuses(tmp_path)
        assert found.pop("j0") == "rejected"
        assert set(found.values()) == {"succeeded"}
        posts = gateway.submitted_prompts.count("j0")
        assert 8 <= posts < 16
        results = query_ledger(
            tmp_path, "SELECT result FROM submissions JOIN jobs USING (job_no) WHERE job_id = 'j0'"
        )
        assert results == [("server_error",)] * posts

    @pytest.mark.parametrize("error", [RETRYABLE, UNAVAILABLE, NOT_SENT], ids=["500", "503", "not sent"])
    def test_an_endless_outage_stops_the_run(self, tmp_path: Path, error: Any) -> None:
        """If no POST is accepted for job_timeout_s, the run stops; the jobs stay for the next one."""
        gateway = ScriptedGateway()
        gateway.submit_script["j0"] = gateway.submit_script["j1"] = [RETRYABLE, error]
        engine = run_virtual(run_jobs(tmp_path, gateway, make_jobs(2), job_timeout_s=600.0))
        assert engine.stopped is not None
        assert "accepted no request for 600 s" in str(engine.stopped)
        assert set(ledger_states(tmp_path).values()) == {"pending"}
        gateway.submit_script.clear()
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(2)))
        assert set(result_statuses(tmp_path).values()) == {"succeeded"}

    def test_a_gateway_that_was_never_reached_stops_the_run_soon(self, tmp_path: Path) -> None:
        """A wrong address or a missing network is no outage: the run stops within a minute, and nothing was sent."""
        gateway = ScriptedGateway()
        gateway.submit_script["j0"] = gateway.submit_script["j1"] = [NOT_SENT]

        async def main() -> tuple[Engine, float]:
            started_s = asyncio.get_running_loop().time()
            engine = await run_jobs(tmp_path, gateway, make_jobs(2))
            return engine, asyncio.get_running_loop().time() - started_s

        engine, seconds = run_virtual(main())
        assert seconds < 60.0
        assert isinstance(engine.stopped, RunStopped)
        assert "no request has reached the gateway (no connection)" in str(engine.stopped)
        assert "krea-batch doctor" in str(engine.stopped)
        assert engine.stats().submits == 0
        assert set(ledger_states(tmp_path).values()) == {"pending"}

    @pytest.mark.parametrize("refusal", [RETRYABLE, NOT_SENT], ids=["500", "not sent"])
    def test_an_outage_does_not_count_against_jobs(self, tmp_path: Path, refusal: Any) -> None:
        """An outage of ten minutes costs few POSTs, no money and no job."""
        gateway = OutageGateway(refusal, 0.01, 600.0)
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(20), rate="50/s"))
        assert set(result_statuses(tmp_path).values()) == {"succeeded"}
        assert len(gateway.charged) == 20
        assert 0 < len(gateway.failed_s) < 19 * 20

    def test_ambiguous_is_never_resubmitted_by_default(self, tmp_path: Path) -> None:
        """An ambiguous POST is not repeated, in this run or the next."""
        gateway = ScriptedGateway()
        gateway.submit_script["j0"] = [AMBIGUOUS_RESULT, ACCEPT]
        for _ in range(2):
            run_virtual(run_jobs(tmp_path, gateway, make_jobs(2)))
            assert result_statuses(tmp_path) == {"j0": "ambiguous", "j1": "succeeded"}
            assert gateway.submitted_prompts == ["j0", "j1"]
        assert rows_by_id(tmp_path)["j0"]["error"] == {"kind": "ambiguous", "message": AMBIGUOUS_RESULT.reason}

    def test_ambiguous_is_resubmitted_when_configured(self, tmp_path: Path) -> None:
        """With ambiguous=resubmit an ambiguous job is resubmitted, a limited number of times."""
        gateway = ScriptedGateway()
        gateway.submit_script["j0"] = [AMBIGUOUS_RESULT, ACCEPT]
        gateway.submit_script["j1"] = [AMBIGUOUS_RESULT]
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(2), ambiguous="resubmit"))
        assert result_statuses(tmp_path) == {"j0": "succeeded", "j1": "ambiguous"}
        assert gateway.submitted_prompts.count("j0") == 2
        assert gateway.submitted_prompts.count("j1") == MAX_AMBIGUOUS_POSTS
        assert rows_by_id(tmp_path)["j0"]["error"] is None

    def test_ambiguous_jobs_are_resubmitted_by_a_later_run(self, tmp_path: Path) -> None:
        """A run with ambiguous=resubmit resubmits the ambiguous jobs of an earlier run."""
        gateway = ScriptedGateway()
        gateway.submit_script["j0"] = [AMBIGUOUS_RESULT, ACCEPT]
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(1)))
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(1), ambiguous="resubmit"))
        assert result_statuses(tmp_path) == {"j0": "succeeded"}
        assert len(gateway.submitted_bodies) == 2

    def test_an_ambiguous_answer_that_names_its_request_id(self, tmp_path: Path) -> None:
        """A poll proves the request_id that a damaged answer names; the job succeeds with one POST."""
        gateway = ScriptedGateway()
        for n, job in enumerate(make_jobs(4)):
            request_id = f"krea-2-large-text-to-image_{n}"
            gateway.charged[request_id] = job.id
            gateway.submit_script[job.id] = [Ambiguous("the answer is cut", b"{", (request_id,))]
        gateway.poll_script["j3"] = [PollFailed("not found", 404)]
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(4)))
        assert result_statuses(tmp_path) == dict.fromkeys(["j0", "j1", "j2"], "succeeded") | {"j3": "ambiguous"}
        assert "may be krea-2-large-text-to-image_3" in rows_by_id(tmp_path)["j3"]["error"]["message"]
        assert len(gateway.submitted_bodies) == 4

    @pytest.mark.parametrize(
        ("polls", "status"),
        [
            ([PollFailed("not found", 404)] * 3, "succeeded"),
            ([PollFailed("not found", 404), FINISH], "ambiguous"),
            ([PollFailed("no answer"), PollFailed("not found", 404), PollFailed("not found", 404)], "ambiguous"),
            ([PollFailed("not found", 404), PollFailed("error", 500), PollFailed("not found", 404)], "ambiguous"),
            ([PollFailed("no answer")] * 3, "ambiguous"),
            ([FINISH], "ambiguous"),
        ],
        ids=["denied", "known late", "once unknown", "unknown between", "unknown", "known"],
    )
    def test_an_answer_that_names_two_request_ids(self, tmp_path: Path, polls: list[Any], status: str) -> None:
        """The job is accepted only if the gateway knows one and always denies the other, which may be another job."""
        gateway = ScriptedGateway()
        gateway.charged = {"krea_own": "j0", "krea_other": "j1"}
        gateway.submit_script["j0"] = [Ambiguous("two ids", b"{", ("krea_other", "krea_own"))]
        gateway.poll_script["j1"] = polls
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(1)))
        row = rows_by_id(tmp_path)["j0"]
        assert row["status"] == status
        assert row["request_id"] == ("krea_own" if status == "succeeded" else None)
        if status == "ambiguous":
            assert "its request_id may be krea_other or krea_own" in row["error"]["message"]
        assert len(gateway.submitted_bodies) == 1

    def test_two_request_ids_and_an_outage_that_denies_all(self, tmp_path: Path) -> None:
        """If an outage has begun that answers every poll with 404, a denial proves nothing about the other one."""
        gateway = ScriptedGateway()
        gateway.charged = {"krea_own": "j0", "krea_other": "j1"}
        gateway.submit_script["j0"] = [Ambiguous("two ids", b"{", ("krea_other", "krea_own"))]
        gateway.poll_script.update({"j1": [FINISH, NO_ENDPOINT], "j0": [NO_ENDPOINT]})
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(1)))
        row = rows_by_id(tmp_path)["j0"]
        assert (row["status"], row["request_id"]) == ("ambiguous", None)
        assert "its request_id may be krea_other or krea_own" in row["error"]["message"]

    def test_a_callback_names_another_request_than_the_answer(self, tmp_path: Path) -> None:
        """If a damaged answer and a callback name different request_ids, that of the answer is tried first."""
        gateway = ScriptedGateway()
        gateway.charged = {"krea_own": "j0", "krea_other": "j1"}
        gateway.submit_script["j1"] = [Accepted("krea_other", Waiting("QUEUED"))]
        gateway.submit_script["j0"] = [(5.0, Ambiguous("the answer is cut", b"{", ("krea_own",)))]
        urls: list[str] = []

        async def main() -> None:
            webhook = Webhook("https://my.host/krea")
            async with Engine(tmp_path, gateway_client=gateway, webhook=webhook) as engine:
                app, submit = engine.callbacks_app(), gateway.submit

                async def submit_and_call(body: bytes, *, callback: str = "", **options: Any) -> Any:
                    if b'"j0"' in body:
                        urls.append(callback)
                    return await submit(body, callback=callback, **options)

                gateway.submit = submit_and_call  # type: ignore[method-assign]
                running = asyncio.create_task(engine.run(reversed(make_jobs(2))))
                await asyncio.sleep(2.0)
                assert await call_asgi(app, urls[0], b'{"request_id": "krea_other", "status": "COMPLETED"}') == 204
                await running

        run_virtual(main())
        found = rows_by_id(tmp_path)
        assert {job_id: row["request_id"] for job_id, row in found.items()} == {"j0": "krea_own", "j1": "krea_other"}

    def test_a_candidate_that_is_another_jobs(self, tmp_path: Path) -> None:
        """If another job has the request_id that a poll has proven, the error says what was in doubt before."""
        gateway = ScriptedGateway()
        gateway.charged["krea_j0"] = "j0"
        gateway.submit_script["j0"] = [Accepted("krea_j0", Waiting("QUEUED"))]
        gateway.submit_script["j1"] = [(1.0, Ambiguous("the answer is cut (krea_a)", b"{", ("krea_j0",)))]
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(2)))
        assert result_statuses(tmp_path) == {"j0": "succeeded", "j1": "ambiguous"}
        message = rows_by_id(tmp_path)["j1"]["error"]["message"]
        assert message.startswith("the answer is cut (krea_a); its request_id may be krea_j0; ")
        assert message.endswith("the request_id of another job, krea_j0")

    def test_a_stop_while_a_request_id_is_proven(self, tmp_path: Path) -> None:
        """If the run is aborted before polls have proven a request_id, the error of the job names it."""
        gateway = ScriptedGateway()
        gateway.charged["krea_maybe"] = "j0"
        gateway.submit_script["j0"] = [Ambiguous("the answer is cut", b"{", ("krea_maybe",))]
        gateway.poll_script["j0"] = [PollFailed("no answer in time")]

        async def main() -> None:
            async with Engine(tmp_path, gateway_client=gateway, poll_interval_s=60.0) as engine:
                running = asyncio.create_task(engine.run(make_jobs(1)))
                await asyncio.sleep(10.0)
                engine.abort()
                await asyncio.wait([running])

        run_virtual(main())
        error = rows_by_id(tmp_path)["j0"]["error"]
        assert error["message"] == "the answer is cut; its request_id may be krea_maybe"

    def test_a_stop_before_anything_is_sent(self, tmp_path: Path) -> None:
        """POSTs that are still connecting when the grace ends were not sent: their jobs stay pending."""

        class ConnectingGateway(ScriptedGateway):
            async def submit(
                self,
                body: bytes,
                *,
                callback: str = "",
                on_sending: Callable[[], Awaitable[str | None]] | None = None,
            ) -> Any:
                await asyncio.sleep(3600.0)

        async def main() -> None:
            async with Engine(tmp_path, gateway_client=ConnectingGateway(), rate="100/s") as engine:
                running = asyncio.create_task(engine.run(make_jobs(20)))
                await asyncio.sleep(2.0)
                engine.abort()
                await asyncio.wait([running])

        run_virtual(main())
        assert set(ledger_states(tmp_path).values()) == {"pending"}

    def test_one_request_id_for_two_jobs(self, tmp_path: Path) -> None:
        """A second job with the same request_id is ambiguous; the first keeps the id and its image."""
        gateway = ScriptedGateway()
        same = Accepted("krea_same", Waiting("QUEUED"))
        gateway.submit_script["j0"] = [same]
        gateway.submit_script["j1"] = [(1.0, same)]
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(2)))
        assert result_statuses(tmp_path) == {"j0": "succeeded", "j1": "ambiguous"}
        found = rows_by_id(tmp_path)
        assert found["j0"]["request_id"] == "krea_same"
        assert found["j1"]["request_id"] is None
        assert len(gateway.submitted_bodies) == 2

    def test_the_response_may_contain_the_image(self, tmp_path: Path) -> None:
        """A job that the response to its POST reports as completed does not wait for a poll interval."""
        gateway = ScriptedGateway()
        request_id = "krea_quick"
        done = gateway.finished(request_id)
        gateway.submit_script["j0"] = [Accepted(request_id, done)]
        gateway.poll_script["j0"] = [FINISH]
        engine = run_virtual(run_jobs(tmp_path, gateway, make_jobs(1), poll_interval_s=600.0))
        assert result_statuses(tmp_path) == {"j0": "succeeded"}
        assert engine.stats().polls <= 1
        assert len(gateway.submitted_bodies) == 1


class TestOrder:
    def test_the_intent_is_durable_before_the_post_is_sent(self, tmp_path: Path) -> None:
        """When a POST is sent, the ledger has its job as submitting, with a pending submission."""
        gateway = ScriptedGateway()
        observed: list[Any] = []
        gateway.submit_script["j1"] = [RETRYABLE, ACCEPT]
        gateway.submit_script["j2"] = [RATE_LIMITED_2_S, NOT_SENT, ACCEPT]
        gateway.on_submit = lambda prompt: observed.extend(
            query_ledger(
                tmp_path,
                "SELECT job_id, state, count(*) FROM jobs JOIN submissions USING (job_no)"
                " WHERE job_id = ? AND result IS NULL GROUP BY job_no",
                prompt,
            )
        )
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(4)), thread_duration_s=lambda: 0.3)
        assert observed == [(prompt, "submitting", 1) for prompt in gateway.submitted_prompts]
        assert len(observed) == 7

    def test_the_request_id_is_durable_before_the_first_poll(self, tmp_path: Path) -> None:
        """A request_id is durable before it is polled, and before `submit` returns."""
        gateway = ScriptedGateway()
        observed: list[Any] = []
        sql = "SELECT request_id, state FROM jobs WHERE request_id = ?"
        gateway.on_poll = lambda request_id: observed.append((request_id, query_ledger(tmp_path, sql, request_id)))

        async def main() -> None:
            async with Engine(tmp_path, gateway_client=gateway) as engine:
                handle = await engine.submit(make_jobs(1)[0])
                assert query_ledger(tmp_path, sql, handle.request_id) == [(handle.request_id, "accepted")]
                await handle

        run_virtual(main(), thread_duration_s=lambda: 0.3)
        assert observed
        assert all(found == [(request_id, "accepted")] for request_id, found in observed)


class TestRateLimiting:
    @pytest.mark.parametrize(("per_s", "count"), [(5, 60), (50, 250), (500, 3500)])
    def test_the_rate_is_used_to_the_full_and_never_passed(self, tmp_path: Path, per_s: int, count: int) -> None:
        """No window of one second holds more than the rate and one, and 98 % of the rate is used."""
        gateway = ScriptedGateway()
        for job in make_jobs(count):
            gateway.submit_script[job.id] = [Refused(Refusal.REJECTED, 400, f"bad prompt {job.id}")]
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(count), rate=f"{per_s}/s"))
        times_s = gateway.submit_times_s
        assert max_in_window(times_s) <= per_s + 1
        assert (count - 1) / (times_s[-1] - times_s[0]) >= 0.98 * per_s

    @pytest.mark.parametrize(("per_s", "count"), [(5, 40), (50, 250), (500, 1200)])
    def test_a_slow_disk_causes_no_burst(self, tmp_path: Path, per_s: int, count: int) -> None:
        """Commits that sometimes take long do not make POSTs leave together, above the rate."""
        gateway = ScriptedGateway()
        for job in make_jobs(count):
            gateway.submit_script[job.id] = [Refused(Refusal.REJECTED, 400, f"bad prompt {job.id}")]
        random = Random(7)

        def disk_s() -> float:
            return 0.6 if random.random() < 0.02 else random.uniform(0.001, 0.02)

        run_virtual(run_jobs(tmp_path, gateway, make_jobs(count), rate=f"{per_s}/s"), thread_duration_s=disk_s)
        assert max_in_window(gateway.submit_times_s) <= per_s + 1

    def test_a_rate_per_minute(self, tmp_path: Path) -> None:
        """A rate below one request per second is kept, too."""
        gateway = ScriptedGateway()
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(5), rate="6/min"))
        assert min(resubmit_delays_s(gateway)) >= 9.99

    @pytest.mark.parametrize("limit_per_s", [3, 20])
    def test_it_discovers_an_unconfigured_limit(self, tmp_path: Path, limit_per_s: int) -> None:
        """If the gateway accepts less than --rate, few POSTs are refused and most of its limit is used."""
        gateway = ScriptedGateway()
        gateway.submit_duration_s = 0.05
        accepted_times_s: list[float] = []
        accept = gateway.submit

        async def submit(body: bytes, *, callback: str = "", **_: object) -> Any:
            now_s = asyncio.get_running_loop().time()
            if len([at_s for at_s in accepted_times_s if at_s > now_s - 1.0]) >= limit_per_s:
                gateway.submit_times_s.append(now_s)
                await asyncio.sleep(0.05)
                return Refused(Refusal.RATE_LIMITED, 429, "slow down", 1.0)
            accepted_times_s.append(now_s)
            return await accept(body)

        gateway.submit = submit  # type: ignore[method-assign]
        count = 40 * limit_per_s
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(count), rate=f"{limit_per_s * 3}/s"))
        assert set(result_statuses(tmp_path).values()) == {"succeeded"}
        assert len(gateway.charged) == count
        assert len(gateway.submit_times_s) - count < 0.25 * count
        assert count / (accepted_times_s[-1] - accepted_times_s[0]) >= 0.5 * limit_per_s

    def test_many_simultaneous_429s(self, tmp_path: Path) -> None:
        """A hundred simultaneous 429s cause one pause, not a hundred; every job is submitted in the end."""
        gateway = ScriptedGateway()
        gateway.submit_duration_s = 2.0
        for job in make_jobs(100):
            gateway.submit_script[job.id] = [RATE_LIMITED_2_S, ACCEPT]
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(100), rate="100/s"))
        assert set(result_statuses(tmp_path).values()) == {"succeeded"}
        assert len(gateway.submitted_bodies) == 200
        assert gateway.submit_times_s[-1] - gateway.submit_times_s[0] < 30.0


class TestBounds:
    @pytest.mark.parametrize("limit", [1, 7, 40])
    def test_max_in_flight(self, tmp_path: Path, limit: int) -> None:
        """At most max_in_flight jobs are in flight at any time, from POST to image."""
        gateway = ScriptedGateway()
        gateway.submit_duration_s = 3.0
        in_flight: list[int] = []
        sql = "SELECT count(*) FROM jobs WHERE state NOT IN ('succeeded', 'rejected')"
        gateway.on_submit = lambda _: in_flight.append(query_ledger(tmp_path, sql)[0][0])
        for job in make_jobs(100)[::3]:
            gateway.submit_script[job.id] = [REJECTED[400]]
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(100), rate="200/s", max_in_flight=limit))
        assert gateway.peak_pending_submits <= limit
        assert max(in_flight) <= limit
        assert len(rows_by_id(tmp_path)) == 100

    def test_the_source_is_read_no_faster_than_submits_go(self, tmp_path: Path) -> None:
        """Jobs that cannot be submitted yet stay in the source, whatever max_in_flight is."""
        read = 0

        def source() -> Iterator[Job]:
            nonlocal read
            for job in make_jobs(5000):
                read += 1
                yield job

        async def main() -> None:
            async with Engine(
                tmp_path, gateway_client=ScriptedGateway(), rate="10/s", max_in_flight=100_000
            ) as engine:
                running = asyncio.create_task(engine.run(source()))
                await asyncio.sleep(3)
                assert engine.stats().submits == pytest.approx(30, abs=3)
                assert read <= MAX_QUEUED + 2 * BATCH_JOBS
                engine.abort()
                await asyncio.wait([running])
                running.exception()

        with suppress(RunStopped):
            run_virtual(main())
        assert 0 < read < 5000

    @pytest.mark.parametrize("post_s", [0.01, 30.0], ids=["quick answers", "slow answers"])
    def test_max_charges(self, tmp_path: Path, post_s: float) -> None:
        """Accepted and ambiguous POSTs never exceed max_charges, however many POSTs are pending."""
        gateway = ScriptedGateway()
        gateway.submit_duration_s = post_s
        for n in range(0, 50, 5):
            gateway.submit_script[f"j{n}"] = [AMBIGUOUS_RESULT]
        engine = run_virtual(run_jobs(tmp_path, gateway, make_jobs(50), rate="100/s", max_charges=10))
        results = [result for (result,) in query_ledger(tmp_path, "SELECT result FROM submissions")]
        assert results.count("accepted") + results.count("ambiguous") == len(results) == 10
        assert engine.stopped is not None
        assert "max_charges is reached (10)" in str(engine.stopped)
        resumed = run_virtual(run_jobs(tmp_path, gateway, make_jobs(50), rate="100/s", max_charges=12))
        assert resumed.stopped is not None
        assert len(query_ledger(tmp_path, "SELECT 1 FROM submissions")) == 12

    @pytest.mark.parametrize(
        "verdict",
        [REJECTED[400], RETRYABLE, NOT_SENT, RATE_LIMITED_2_S],
        ids=["rejected", "500", "not sent", "429"],
    )
    def test_refunded_jobs_do_not_use_up_max_charges(self, tmp_path: Path, verdict: Any) -> None:
        """Pending POSTs that turn out not to be charged make room for others; the budget is used in full."""
        gateway = ScriptedGateway()
        gateway.submit_duration_s = 1.0
        for n in range(12):
            gateway.submit_script[f"j{n}"] = [verdict, ACCEPT]
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(40), rate="100/s", max_charges=10))
        assert len(gateway.charged) == 10
        assert list(result_statuses(tmp_path).values()).count("succeeded") == 10

    @pytest.mark.parametrize("post_s", [0.01, 5.0], ids=["quick answers", "slow answers"])
    def test_server_errors_use_up_max_charges_if_asked(self, tmp_path: Path, post_s: float) -> None:
        """With count_server_errors, each 500 and 503 counts like an accepted POST, in this run and the next."""
        gateway = ScriptedGateway()
        gateway.submit_duration_s = post_s
        for n in range(0, 50, 5):
            gateway.submit_script[f"j{n}"] = [RETRYABLE, UNAVAILABLE, ACCEPT]
        strict = {"rate": "100/s", "count_server_errors": True}

        def counted() -> int:
            (count,) = query_ledger(
                tmp_path, "SELECT count(*) FROM submissions WHERE result IN ('accepted', 'server_error')"
            )[0]
            return int(count)

        for limit in (10, 14):
            engine = run_virtual(run_jobs(tmp_path, gateway, make_jobs(50), max_charges=limit, **strict))
            assert engine.stopped is not None
            assert f"max_charges is reached ({limit})" in str(engine.stopped)
            assert counted() == len(gateway.submitted_bodies) == limit
        assert len(gateway.charged) < 14

    def test_errors_do_not_use_up_max_charges(self, tmp_path: Path) -> None:
        """A job that ends errored was not charged, and makes room for another."""
        gateway = ScriptedGateway()
        gateway.poll_script["j0"] = [Errored("system")]
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(4), rate="1/min", max_charges=2, max_attempts=1))
        assert list(result_statuses(tmp_path).values()) == ["errored", "succeeded", "succeeded"]

    def test_a_budget_that_is_just_enough_stops_nothing(self, tmp_path: Path) -> None:
        """With max_charges equal to the number of jobs, all jobs are done and the run does not stop."""
        gateway = ScriptedGateway()
        engine = run_virtual(run_jobs(tmp_path, gateway, make_jobs(5), max_charges=5))
        assert engine.stopped is None
        assert set(result_statuses(tmp_path).values()) == {"succeeded"}

    def test_a_budget_of_zero(self, tmp_path: Path) -> None:
        """max_charges=0 submits nothing."""
        gateway = ScriptedGateway()
        engine = run_virtual(run_jobs(tmp_path, gateway, make_jobs(5), max_charges=0))
        assert engine.stopped is not None
        assert gateway.submitted_bodies == []


class TestCancelling:
    @pytest.mark.parametrize("after_ms", range(0, 1700, 100))
    @pytest.mark.parametrize("what", ["caller", "stop", "abort", "leave"])
    def test_no_post_is_ever_unrecorded(self, tmp_path: Path, what: str, after_ms: int) -> None:
        """Whatever is cancelled, and when: every POST that was sent is recorded with its result."""
        gateway = ScriptedGateway()
        gateway.submit_duration_s = 1.0

        async def main() -> None:
            engine = Engine(tmp_path, gateway_client=gateway)
            try:
                async with engine:
                    waits = [asyncio.create_task(engine.generate(job)) for job in make_jobs(3)]
                    await asyncio.sleep(after_ms / 1000)
                    if what == "leave":
                        raise LookupError
                    if what == "caller":
                        for wait in waits:
                            wait.cancel()
                    else:
                        getattr(engine, what)()
            except LookupError:
                pass
            await asyncio.gather(*waits, return_exceptions=True)

        run_virtual(main(), thread_duration_s=lambda: 0.1)
        recorded = dict(
            query_ledger(
                tmp_path,
                "SELECT job_id, s.request_id FROM submissions s JOIN jobs USING (job_no) WHERE result = 'accepted'",
            )
        )
        assert {request_id: prompt for prompt, request_id in recorded.items()} == gateway.charged
        assert len(gateway.submitted_bodies) == len(gateway.charged)  # all of them were answered in time
        assert not query_ledger(tmp_path, "SELECT 1 FROM submissions WHERE result IS NULL")

    def test_abort_waits_briefly_for_pending_posts(self, tmp_path: Path) -> None:
        """abort gives pending POSTs a few seconds; then their jobs are ambiguous and the engine closes."""
        gateway = ScriptedGateway()
        gateway.submit_script["j0"] = [(50.0, ACCEPT)]
        gateway.submit_script["j1"] = [(3.0, ACCEPT)]

        async def main() -> float:
            loop = asyncio.get_running_loop()
            async with Engine(tmp_path, gateway_client=gateway) as engine:
                waits = [asyncio.create_task(engine.generate(job)) for job in make_jobs(2)]
                await asyncio.sleep(1.0)
                engine.abort()
                started_s = loop.time()
            ends: list[Outcome | BaseException] = await asyncio.gather(*waits, return_exceptions=True)
            assert isinstance(ends[0], Outcome)
            assert isinstance(ends[1], RunStopped)
            return loop.time() - started_s

        assert run_virtual(main()) <= 6.0
        assert ledger_states(tmp_path) == {"j0": "ambiguous", "j1": "accepted"}

    @pytest.mark.parametrize("after_ms", range(0, 500, 50))
    def test_after_a_stop_no_post_is_sent(self, tmp_path: Path, after_ms: int) -> None:
        """After a stop no POST is sent, even if its intent was just being recorded."""
        gateway = ScriptedGateway()

        async def main() -> float:
            async with Engine(tmp_path, gateway_client=gateway, rate="100/s") as engine:
                running = asyncio.create_task(engine.run(make_jobs(100)))
                await asyncio.sleep(after_ms / 1000)
                engine.stop()
                stopped_s = asyncio.get_running_loop().time()
                await running
            return stopped_s

        stopped_s = run_virtual(main(), thread_duration_s=lambda: 0.1)
        assert all(at_s <= stopped_s for at_s in gateway.submit_times_s)
        assert set(ledger_states(tmp_path).values()) <= {"succeeded", "pending"}


def test_the_body_of_a_post(tmp_path: Path) -> None:
    """The body of a POST has the fields of the API document and no others."""
    gateway = ScriptedGateway()
    run_virtual(run_jobs(tmp_path, gateway, [Job(prompt="a cat", id="cat", metadata={"mine": 1}, seed=3)]))
    assert gateway.submitted_bodies == [
        {
            "prompt": "a cat",
            "aspect_ratio": "1:1",
            "creativity": "medium",
            "seed": 3,
            "image_style_references": [],
            "styles": [],
            "moodboards": [],
        }
    ]


class TestIdenticalFailures:
    def test_the_run_stops_and_the_next_resumes(self, tmp_path: Path) -> None:
        """A run whose first jobs are all refused alike stops; the next run submits the rest."""
        gateway = ScriptedGateway()
        for job in make_jobs(30):
            gateway.submit_script[job.id] = [REJECTED[400]]
        engine = run_virtual(run_jobs(tmp_path, gateway, make_jobs(100), rate="2/s", max_identical_failures=5))
        assert engine.stopped is not None
        assert "first 5 jobs" in engine.stopped.reason
        assert 5 <= len(gateway.submitted_bodies) <= 7
        gateway.submit_script.clear()
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(100), rate="50/s", max_identical_failures=5))
        assert len(rows_by_id(tmp_path)) == 100
        assert len(gateway.submitted_bodies) == 100

    def test_jobs_that_fail_at_the_model(self, tmp_path: Path) -> None:
        """FAILED is charged: if the first jobs all fail, no more are submitted."""
        gateway = ScriptedGateway()
        for job in make_jobs(100):
            gateway.poll_script[job.id] = [Failed("no GPU")]
        engine = run_virtual(run_jobs(tmp_path, gateway, make_jobs(100), rate="2/s", max_identical_failures=3))
        assert engine.stopped is not None
        assert "first 3 jobs all ended as failed (no GPU)" in engine.stopped.reason
        assert len(gateway.charged) < 30
        assert set(result_statuses(tmp_path).values()) == {"failed"}

    def test_failures_among_successes_do_not_stop_the_run(self, tmp_path: Path) -> None:
        """Rejected jobs among successful ones do not stop the run."""
        gateway = ScriptedGateway()
        for job in make_jobs(100)[10:60]:
            gateway.submit_script[job.id] = [Refused(Refusal.REJECTED, 400, f"bad prompt {job.id}")]
        engine = run_virtual(run_jobs(tmp_path, gateway, make_jobs(100), rate="2/s", max_identical_failures=5))
        assert engine.stopped is None
        assert len(rows_by_id(tmp_path)) == 100


class OutageGateway(ScriptedGateway):
    """Answers POSTs with `error` from `starts_s` to `ends_s`, each after `answers_after_s`; otherwise all is well."""

    def __init__(self, error: Any, starts_s: float, ends_s: float, answers_after_s: float = 0.05) -> None:
        super().__init__()
        self.error = error
        self.outage_s = (starts_s, ends_s)
        self.answers_after_s = answers_after_s
        self.failed_s: list[float] = []

    async def submit(
        self, body: bytes, *, callback: str = "", on_sending: Callable[[], Awaitable[str | None]] | None = None
    ) -> Any:
        now_s = asyncio.get_running_loop().time() - VIRTUAL_START_S
        if not self.outage_s[0] <= now_s < self.outage_s[1]:
            return await super().submit(body, callback=callback, on_sending=on_sending)
        self.failed_s.append(now_s)
        await asyncio.sleep(self.answers_after_s)
        return self.error


VIRTUAL_START_S = 1000.0  # the clock of virtual time starts here


class TestOutages:
    """In an outage few jobs are in doubt; then one POST at a time is sent, until the gateway is back."""

    @pytest.mark.parametrize(
        ("error", "answers_after_s"),
        [
            (Ambiguous("HTTP 502 does not say whether the job was queued"), 0.05),
            (Ambiguous("the connection was cut"), 0.3),
            (Ambiguous("no answer in 60 s"), 60.0),
            (REJECTED[404], 0.05),
            (REJECTED[405], 0.05),
            (REJECTED[415], 0.05),
            (REJECTED[400], 0.05),
            (RETRYABLE, 0.05),
            (NOT_SENT, 0.05),
        ],
        ids=["502", "cut", "hang", "404", "405", "415", "400 for all", "500", "not sent"],
    )
    def test_few_jobs_are_in_doubt(self, tmp_path: Path, error: Any, answers_after_s: float) -> None:
        """With older jobs still ending, at most 25 jobs are ambiguous or rejected before submits are held."""
        gateway = OutageGateway(error, 2.0, 302.0, answers_after_s)
        engine = run_virtual(run_jobs(tmp_path, gateway, make_jobs(400), rate="100/s", max_in_flight=1000))
        assert engine.stopped is None
        statuses = Counter(result_statuses(tmp_path).values())
        first_s = min(gateway.failed_s)
        probes_s = [at_s for at_s in gateway.failed_s if at_s > first_s + answers_after_s + 1.0]
        in_doubt = statuses["ambiguous"] + statuses["rejected"]
        assert in_doubt <= 25 + len(probes_s)
        assert 2 <= len(probes_s) <= 25
        assert all(later - earlier >= answers_after_s for earlier, later in itertools.pairwise(probes_s))
        assert statuses["succeeded"] == 400 - in_doubt
        assert len(gateway.charged) == statuses["succeeded"]

    def test_resubmitting_ambiguous_jobs_waits_for_the_gateway(self, tmp_path: Path) -> None:
        """With ambiguous=resubmit, an outage costs few POSTs, and every job succeeds."""
        gateway = OutageGateway(Ambiguous("HTTP 502"), 1.0, 31.0)
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(200), rate="100/s", ambiguous="resubmit"))
        assert set(result_statuses(tmp_path).values()) == {"succeeded"}
        assert len(gateway.failed_s) <= 40

    def test_many_bad_prompts_in_a_row_end_rejected(self, tmp_path: Path) -> None:
        """A long row of prompts that are refused with the same words delays the run, and does not end it."""
        gateway = ScriptedGateway()
        for job in make_jobs(200)[50:90]:
            gateway.submit_script[job.id] = [REJECTED[400]]
        engine = run_virtual(run_jobs(tmp_path, gateway, make_jobs(200), rate="10/s"))
        assert engine.stopped is None
        assert Counter(result_statuses(tmp_path).values()) == {"succeeded": 160, "rejected": 40}


class TestDelivery:
    """If images cannot be stored, few more are paid for."""

    def test_images_that_can_never_be_stored(self, tmp_path: Path) -> None:
        """Until the first image is stored, at most 100 jobs are paid for; listeners are told why."""
        gateway = ScriptedGateway()
        events: list[Event] = []

        async def download(*_: Any, **__: Any) -> Any:
            raise DownloadError("refused to fetch: not a public address")

        async def main() -> None:
            async with Engine(
                tmp_path, gateway_client=gateway, max_in_flight=2000, listeners=[events.append]
            ) as engine:
                running = asyncio.create_task(engine.run(make_jobs(2000)))
                await asyncio.sleep(200.0)
                engine.abort()
                await asyncio.wait([running])

        gateway.download = download  # type: ignore[method-assign]
        run_virtual(main())
        assert len(gateway.charged) <= 101
        pauses = [event for event in events if isinstance(event, SubmitsPaused)]
        assert any("no image can be stored: refused to fetch" in pause.reason for pause in pauses)

    def test_images_that_can_no_longer_be_stored(self, tmp_path: Path) -> None:
        """In the middle of a run, submits are held once ten jobs in a row have failed to store an image."""
        gateway = ScriptedGateway()
        charged: list[int] = []
        download = gateway.download

        async def failing_download(url: str, *, offset: int = 0, etag: str | None = None) -> Any:
            if 20.0 <= asyncio.get_running_loop().time() - VIRTUAL_START_S < 120.0:
                charged.append(len(gateway.charged))
                raise DownloadError("HTTP 503", status=503)
            return await download(url, offset=offset, etag=etag)

        gateway.download = failing_download  # type: ignore[method-assign]
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(500), rate="10/s"))
        assert charged[-1] - charged[0] <= 60
        assert set(result_statuses(tmp_path).values()) == {"succeeded"}
        assert len(gateway.charged) == 500


class TestPartialOutage:
    def test_half_of_all_posts_fail(self, tmp_path: Path) -> None:
        """Every job succeeds in the end, and retries never exceed their share of the rate."""
        gateway = ScriptedGateway()
        random = Random(3)
        failed_s: list[float] = []
        accept = gateway.submit

        async def submit(body: bytes, *, callback: str = "", **_: object) -> Any:
            if random.random() < 0.5:
                now_s = asyncio.get_running_loop().time()
                gateway.submit_times_s.append(now_s)
                failed_s.append(now_s)
                return RETRYABLE
            return await accept(body)

        gateway.submit = submit  # type: ignore[method-assign]
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(400), rate="50/s"))
        assert set(result_statuses(tmp_path).values()) == {"succeeded"}
        assert len(gateway.charged) == 400
        started_s = gateway.submit_times_s[0]
        for n, at_s in enumerate(gateway.submit_times_s):
            retries_so_far = n + 1 - 400
            assert retries_so_far <= 50 + 10 * (at_s - started_s) + 1
