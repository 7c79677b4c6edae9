"""Test pipeline.poll_scheduler: no poll is wasted, and an unreadable answer changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest

from krea_batch import Engine, GatewayError, Job, RunStopped
from krea_batch.ledger.sqlite import SqliteLedger
from krea_batch.rules.verdicts import (
    Errored,
    Failed,
    Finished,
    PollFailed,
    PollVerdict,
    PostVerdict,
    Refusal,
    Refused,
    Waiting,
)
from krea_batch.settings import Rate
from krea_batch.testing import ACCEPT, FINISH, ScriptedGateway, run_virtual
from krea_batch.testing.simulator.request_limits import parse_limit
from tests.engine_fixtures import ledger_states, make_jobs, query_ledger, result_statuses, rows_by_id, run_jobs
from tests.window_stats import max_in_window

STILL_WAITING = Waiting("PROCESSING")
POLL_ERRORS = {
    "401": PollFailed("unauthorized", 401),
    "404": PollFailed("not found", 404),
    "429": PollFailed("slow down", 429),
    "429 with Retry-After": PollFailed("slow down", 429, 120.0),
    "500": PollFailed("internal", 500),
    "503 with Retry-After": PollFailed("unavailable", 503, 90.0),
    "no answer": PollFailed("no answer in time"),
    "unreadable": PollFailed("the status response is invalid", 200),
}


def gaps_s(times_s: Iterable[float]) -> list[float]:
    return [later - earlier for earlier, later in pairwise(times_s)]


class FixedLatencyScript(ScriptedGateway):
    """A gateway whose jobs are completed after the given latencies, which are used in turn."""

    def __init__(self, latencies_s: list[float], *, has_timestamps: bool = False) -> None:
        super().__init__()
        self._latencies_s = latencies_s
        self._has_timestamps = has_timestamps  # the status says how long the job took
        self.done_s: dict[str, float] = {}
        self.accepted_s: dict[str, float] = {}

    def accept(self, prompt: str) -> Any:
        accepted = super().accept(prompt)
        now_s = asyncio.get_running_loop().time()
        self.accepted_s[accepted.request_id] = now_s
        self.done_s[accepted.request_id] = now_s + self._latencies_s[len(self.done_s) % len(self._latencies_s)]
        return accepted

    async def poll(self, request_id: str) -> Any:
        now_s = asyncio.get_running_loop().time()
        self.poll_script[self.charged[request_id]] = [FINISH if now_s >= self.done_s[request_id] else STILL_WAITING]
        return await super().poll(request_id)

    def finished(self, request_id: str, outputs: int = 1) -> Finished:
        finished = super().finished(request_id, outputs)
        took_s = self.done_s[request_id] - self.accepted_s[request_id] if self._has_timestamps else None
        return Finished(finished.media_urls, finished.media_type, took_s)


class TestInterval:
    @pytest.mark.parametrize("interval_s", [0.5, 5.0, 8.0])
    def test_two_polls_of_a_job_are_never_closer(self, tmp_path: Path, interval_s: float) -> None:
        """From the acceptance on, the interval is kept, whatever the polls return and the schedule learns."""
        random = Random(3)
        gateway = FixedLatencyScript([random.uniform(0.1, 90.0) for _ in range(100)])
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(100), rate="100/s", poll_interval_s=interval_s))
        assert set(result_statuses(tmp_path).values()) == {"succeeded"}
        for request_id, times_s in gateway.poll_times_s.items():
            assert times_s[0] - gateway.accepted_s[request_id] >= interval_s - 1e-3
            assert min(gaps_s(times_s), default=interval_s) >= interval_s - 1e-3

    @pytest.mark.parametrize("timeout_s", [7.0, 12.0, 14.9])
    def test_not_even_before_the_timeout(self, tmp_path: Path, timeout_s: float) -> None:
        """A job that is about to time out is not polled sooner than the interval."""
        gateway = ScriptedGateway()
        gateway.poll_script["j0"] = [STILL_WAITING]
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(1), job_timeout_s=timeout_s))
        assert result_statuses(tmp_path) == {"j0": "timed_out"}
        (times_s,) = gateway.poll_times_s.values()
        assert min(gaps_s(times_s), default=5.0) >= 5.0
        assert len(times_s) <= 3

    @pytest.mark.parametrize("error", POLL_ERRORS.values(), ids=POLL_ERRORS)
    def test_not_after_an_error(self, tmp_path: Path, error: PollFailed) -> None:
        """A failed poll is repeated no sooner than the interval and than Retry-After."""
        gateway = ScriptedGateway()
        gateway.poll_script["j0"] = [STILL_WAITING, error, error, STILL_WAITING, error, FINISH]
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(1)))
        (times_s,) = gateway.poll_times_s.values()
        assert min(gaps_s(times_s)) >= 5.0
        assert gaps_s(times_s)[1] >= (error.retry_after_s or 5.0)

    def test_few_polls_and_little_lag(self, tmp_path: Path) -> None:
        """With known latencies, the scheduler polls less often than every interval, and finds jobs soon."""
        random = Random(5)
        gateway = FixedLatencyScript([random.gauss(40.0, 4.0) for _ in range(600)])
        engine = run_virtual(run_jobs(tmp_path, gateway, make_jobs(600), rate="5/s", max_in_flight=600))
        lags_s = [times_s[-1] - gateway.done_s[request_id] for request_id, times_s in gateway.poll_times_s.items()]
        assert engine.stats().polls < 600 * 40 / 5 * 0.6
        assert sum(lags_s) / len(lags_s) < 6.0


class TestKinds:
    """Two kinds of jobs in turn, of 6 and 25 s."""

    @pytest.mark.parametrize("has_timestamps", [True, False])
    def test_slow_jobs_are_not_polled_when_fast_ones_end(self, tmp_path: Path, has_timestamps: bool) -> None:
        """A few jobs of each kind explore; the others are polled once, not long after they are completed."""
        gateway = FixedLatencyScript([6.0, 25.0], has_timestamps=has_timestamps)
        jobs = [Job(id=f"j{n}", prompt=f"j{n}", creativity="high" if n % 2 else "low") for n in range(600)]
        run_virtual(run_jobs(tmp_path, gateway, jobs, rate="20/s"))
        polls = {id_: len(times_s) for id_, times_s in gateway.poll_times_s.items()}
        assert sum(count > 2 for count in polls.values()) <= 60
        assert sum(polls.values()) <= 1.25 * len(jobs)
        lags_s = [times_s[-1] - gateway.done_s[request_id] for request_id, times_s in gateway.poll_times_s.items()]
        assert sum(lags_s) / len(lags_s) <= 1.0


class TestStatuses:
    def test_failed_ends_the_job(self, tmp_path: Path) -> None:
        """FAILED is final: nothing is submitted again, and its reason is in the result."""
        gateway = ScriptedGateway()
        gateway.poll_script["j0"] = [Failed("nsfw")]
        for _ in range(2):
            run_virtual(run_jobs(tmp_path, gateway, make_jobs(2)))
            assert result_statuses(tmp_path) == {"j0": "failed", "j1": "succeeded"}
            assert len(gateway.submitted_bodies) == 2
        assert rows_by_id(tmp_path)["j0"]["error"] == {"kind": "failed", "message": "nsfw"}
        assert rows_by_id(tmp_path)["j0"]["request_id"]

    def test_error_is_submitted_again(self, tmp_path: Path) -> None:
        """ERROR is not charged: the job is submitted again, and its second request_id is recorded."""
        gateway = ScriptedGateway()
        gateway.poll_script["j0"] = [Errored("gpu"), FINISH]
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(1)))
        assert result_statuses(tmp_path) == {"j0": "succeeded"}
        assert gateway.submitted_bodies[0] == gateway.submitted_bodies[1]
        assert rows_by_id(tmp_path)["j0"]["request_id"] == list(gateway.charged)[1]
        assert query_ledger(tmp_path, "SELECT result, refunded FROM submissions") == [
            ("accepted", 1),
            ("accepted", 0),
        ]

    @pytest.mark.parametrize("max_attempts", [1, 2, 3])
    def test_repeated_errors_end_the_job(self, tmp_path: Path, max_attempts: int) -> None:
        """After max_attempts ERRORs the job is errored; a run that allows more submits it again."""
        gateway = ScriptedGateway()
        gateway.poll_script["j0"] = [Errored("gpu")]
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(1), max_attempts=max_attempts))
        assert result_statuses(tmp_path) == {"j0": "errored"}
        assert len(gateway.submitted_bodies) == max_attempts
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(1), max_attempts=max_attempts))
        assert len(gateway.submitted_bodies) == max_attempts
        gateway.poll_script["j0"] = [FINISH]
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(1), max_attempts=max_attempts + 1))
        assert result_statuses(tmp_path) == {"j0": "succeeded"}
        assert len(gateway.submitted_bodies) == max_attempts + 1

    def test_error_after_the_stop_stays_for_the_next_run(self, tmp_path: Path) -> None:
        """A job in ERROR is not submitted again by a run that is stopping, but by the next one."""
        gateway = ScriptedGateway()
        gateway.poll_script["j0"] = [Errored("gpu"), FINISH]

        async def main() -> None:
            async with Engine(tmp_path, gateway_client=gateway) as engine:
                running = asyncio.create_task(engine.run(make_jobs(1)))
                await asyncio.sleep(1.0)
                engine.stop()
                await running

        run_virtual(main())
        assert ledger_states(tmp_path) == {"j0": "pending"}
        assert len(gateway.submitted_bodies) == 1
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(1)))
        assert result_statuses(tmp_path) == {"j0": "succeeded"}
        assert len(gateway.submitted_bodies) == 2

    @pytest.mark.parametrize("status", ["QUEUED", "PROCESSING", "THINKING", "CANCELLED", ""])
    def test_an_unknown_status_means_waiting(self, tmp_path: Path, status: str) -> None:
        """An unknown status means that the job is still waiting."""
        gateway = ScriptedGateway()
        gateway.poll_script["j0"] = [Waiting(status)] * 20 + [FINISH]
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(1)))
        assert result_statuses(tmp_path) == {"j0": "succeeded"}
        assert len(gateway.submitted_bodies) == 1


class TestPollErrors:
    @pytest.mark.parametrize("error", [POLL_ERRORS[name] for name in POLL_ERRORS if name != "401"])
    def test_poll_errors_change_nothing(self, tmp_path: Path, error: PollFailed) -> None:
        """While its status cannot be read, a job stays accepted; it succeeds once it can be read."""
        gateway = ScriptedGateway()
        observed: set[Any] = set()
        gateway.poll_script["j0"] = [error] * 8 + [FINISH]
        gateway.on_poll = lambda _: observed.update(query_ledger(tmp_path, "SELECT state FROM jobs"))
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(1)))
        assert observed == {("accepted",)}
        assert result_statuses(tmp_path) == {"j0": "succeeded"}
        assert len(gateway.submitted_bodies) == 1

    def test_backoff_grows_to_a_minute(self, tmp_path: Path) -> None:
        """The delays after unreadable answers double from the interval, up to a minute."""
        gateway = ScriptedGateway()
        gateway.poll_script["j0"] = [POLL_ERRORS["500"]] * 8 + [FINISH]
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(1)))
        (times_s,) = gateway.poll_times_s.values()
        expected_s = [5.0, 10.0, 20.0, 40.0, 60.0, 60.0, 60.0, 60.0]
        assert gaps_s(times_s) == pytest.approx(expected_s, abs=0.1)

    def test_a_429_pauses_polls_and_not_submits(self, tmp_path: Path) -> None:
        """After a poll's 429 no job is polled until Retry-After has passed; submits keep their rate."""
        gateway = ScriptedGateway()
        gateway.poll_script["j0"] = [PollFailed("slow down", 429, 60.0), FINISH]
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(100), rate="5/s"))
        assert max(gaps_s(gateway.submit_times_s)) < 0.3
        times_s = sorted(at_s for times_s in gateway.poll_times_s.values() for at_s in times_s)
        paused_from_s = times_s[0] + 0.1
        assert not [at_s for at_s in times_s if paused_from_s < at_s < times_s[0] + 60.0]
        assert set(result_statuses(tmp_path).values()) == {"succeeded"}

    def test_a_refused_key_leaves_the_jobs_to_the_next_run(self, tmp_path: Path) -> None:
        """Three 401s in a row stop the run; the jobs stay accepted, and the next run completes them."""
        gateway = ScriptedGateway()
        for job in make_jobs(3):
            gateway.poll_script[job.id] = [POLL_ERRORS["401"]]
        engine = run_virtual(run_jobs(tmp_path, gateway, make_jobs(3)))
        assert isinstance(engine.stopped, GatewayError)
        assert engine.stopped.status == 401
        assert set(ledger_states(tmp_path).values()) == {"accepted"}
        gateway.poll_script.clear()
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(3)))
        assert set(result_statuses(tmp_path).values()) == {"succeeded"}
        assert len(gateway.submitted_bodies) == 3

    def test_one_401_after_other_errors_is_not_a_refused_key(self, tmp_path: Path) -> None:
        """Only consecutive 401s mean a refused key; 500s before a single one do not count."""
        gateway = ScriptedGateway()
        gateway.poll_script["j0"] = [POLL_ERRORS["500"], POLL_ERRORS["500"], POLL_ERRORS["401"], FINISH]
        engine = run_virtual(run_jobs(tmp_path, gateway, make_jobs(1)))
        assert engine.stopped is None
        assert result_statuses(tmp_path) == {"j0": "succeeded"}


class TestBounds:
    @pytest.mark.parametrize("poll_rate", ["2/s", "20/s", "30/min"])
    def test_the_poll_rate_is_kept(self, tmp_path: Path, poll_rate: str) -> None:
        """All polls together stay below poll_rate, and use all of it while there are jobs to poll."""
        per_s = {"2/s": 2.0, "20/s": 20.0, "30/min": 0.5}[poll_rate]
        gateway = FixedLatencyScript([1.0])
        count = 60 if per_s < 10 else 400
        run_virtual(
            run_jobs(tmp_path, gateway, make_jobs(count), rate="500/s", poll_rate=poll_rate, poll_interval_s=0.5)
        )
        times_s = sorted(at_s for times_s in gateway.poll_times_s.values() for at_s in times_s)
        assert max_in_window(times_s) <= per_s + 1
        assert (len(times_s) - 1) / (times_s[-1] - times_s[0]) >= 0.95 * per_s

    def test_hundreds_of_jobs_on_one_heap(self, tmp_path: Path) -> None:
        """Eight hundred waiting jobs need no task each, and are found soon after they are completed."""
        random = Random(9)
        gateway = FixedLatencyScript([random.uniform(1.0, 60.0) for _ in range(800)])
        tasks: list[int] = []
        gateway.on_poll = lambda _: tasks.append(len(asyncio.all_tasks()))
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(800), rate="2000/s", max_in_flight=800))
        assert set(result_statuses(tmp_path).values()) == {"succeeded"}
        assert max(tasks) < 300  # 256 POSTs or 128 pending polls, and the stages
        lags_s = [times_s[-1] - gateway.done_s[request_id] for request_id, times_s in gateway.poll_times_s.items()]
        assert sum(lags_s) / len(lags_s) < 2 * 5.0
        assert max(lags_s) < 8 * 5.0


class SharedLimitScript(FixedLatencyScript):
    """A gateway with one limit for submits and polls."""

    def __init__(self, latencies_s: list[float], limit: str) -> None:
        super().__init__(latencies_s)
        parsed = parse_limit(limit)
        assert parsed is not None
        self._limit = parsed
        self.refused = 0

    def _wait_s(self) -> float:
        """Count a request, and return 0, or the seconds to wait if it is above the limit."""
        wait_s = self._limit.take(asyncio.get_running_loop().time())
        self.refused += wait_s > 0
        return wait_s

    async def submit(
        self, body: bytes, *, callback: str = "", on_sending: Callable[[], Awaitable[str | None]] | None = None
    ) -> PostVerdict:
        if wait_s := self._wait_s():
            return Refused(Refusal.RATE_LIMITED, 429, "slow down", wait_s)
        return await super().submit(body, callback=callback, on_sending=on_sending)

    async def poll(self, request_id: str) -> Any:
        if wait_s := self._wait_s():
            return PollFailed("slow down", 429, wait_s)
        return await super().poll(request_id)


class TestSharedQuota:
    @pytest.mark.parametrize(
        ("rate", "limit"),
        [
            ("20/s", "sliding-window:20/s"),
            ("20/s", "fixed-window:20/s"),
            ("20/s", "token-bucket:20/s"),
            ("90/min", "token-bucket:90/min,2"),
        ],
    )
    def test_submits_and_polls_share_one_limit(self, tmp_path: Path, rate: str, limit: str) -> None:
        """With the rate of the limit, none is refused, nearly all of it is used, and neither of the two starves."""
        random, per_s = Random(5), Rate.parse(rate).per_s
        gateway = SharedLimitScript([random.lognormvariate(2.5, 0.4) for _ in range(100)], limit)
        jobs = make_jobs(round(40 * per_s))
        run_virtual(run_jobs(tmp_path, gateway, jobs, rate=rate, shared_quota=True))
        assert set(result_statuses(tmp_path).values()) == {"succeeded"}
        assert gateway.refused == 0
        polls_s = sorted(at_s for times_s in gateway.poll_times_s.values() for at_s in times_s)
        from_s, to_s = polls_s[0] + 10.0, gateway.submit_times_s[-1]  # while both are sent
        submits, polls = (
            sum(from_s <= at_s < to_s for at_s in times_s) / (to_s - from_s) / per_s
            for times_s in (gateway.submit_times_s, polls_s)
        )
        assert 0.95 <= submits + polls <= 1.05
        assert min(submits, polls) >= 0.3


class TestTimeOut:
    def test_a_job_that_takes_too_long(self, tmp_path: Path) -> None:
        """A job is timed out, keeps its request_id, and is stored by the next run without a POST."""
        gateway = ScriptedGateway()
        gateway.poll_script["j0"] = [STILL_WAITING]
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(2), job_timeout_s=60.0))
        assert result_statuses(tmp_path) == {"j0": "timed_out", "j1": "succeeded"}
        first = rows_by_id(tmp_path)["j0"]
        assert first["request_id"] == next(iter(gateway.charged))
        gateway.poll_script.clear()
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(2), job_timeout_s=60.0))
        second = rows_by_id(tmp_path)["j0"]
        assert second["status"] == "succeeded"
        assert second["request_id"] == first["request_id"]
        assert second["error"] is None
        assert gateway.submitted_bodies[2:] == []

    def test_poll_errors_do_not_extend_the_timeout(self, tmp_path: Path) -> None:
        """A job whose status can never be read is also timed out, not much later."""
        gateway = ScriptedGateway()
        gateway.poll_script["j0"] = [POLL_ERRORS["500"]]

        async def main() -> float:
            loop = asyncio.get_running_loop()
            started_s = loop.time()
            await run_jobs(tmp_path, gateway, make_jobs(1), job_timeout_s=300.0)
            return loop.time() - started_s

        assert 300.0 <= run_virtual(main()) < 310.0
        assert result_statuses(tmp_path) == {"j0": "timed_out"}
        assert "internal" in rows_by_id(tmp_path)["j0"]["error"]["message"]

    def test_a_timed_out_job_in_error_is_submitted_again(self, tmp_path: Path) -> None:
        """A timed-out job that is in ERROR in the next run is submitted again."""
        gateway = ScriptedGateway()
        gateway.poll_script["j0"] = [STILL_WAITING]
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(1), job_timeout_s=10.0))
        gateway.poll_script["j0"] = [Errored("lost"), FINISH]
        gateway.submit_script["j0"] = [ACCEPT]
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(1)))
        assert result_statuses(tmp_path) == {"j0": "succeeded"}
        assert len(gateway.submitted_bodies) == 2


class TestHopelessJobs:
    """Jobs that an earlier run gave up, and whose status shows no sign of an end."""

    @pytest.mark.parametrize(
        ("verdict", "said"),
        [
            (Waiting("EXPIRED"), "its status is EXPIRED"),
            (Waiting("COMPLETED"), "its status is COMPLETED"),
            (PollFailed("no such request", 404), "no such request"),
            (PollFailed("gone", 410), "gone"),
        ],
    )
    def test_three_polls_in_each_later_run(self, tmp_path: Path, verdict: PollVerdict, said: str) -> None:
        """The first run waits for job_timeout_s, later ones for three polls; the row says what the gateway said."""
        gateway = ScriptedGateway()
        gateway.poll_script["j0"] = [verdict]
        options: dict[str, Any] = {"job_timeout_s": 300.0}
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(1), clock=lambda: 1e9, **options))
        (polls,) = gateway.poll_times_s.values()
        assert polls[-1] - polls[0] > 200
        for _ in range(2):
            before = len(polls)
            run_virtual(run_jobs(tmp_path, gateway, make_jobs(1), clock=lambda: 1e9 + 400.0, **options))
            assert len(polls) - before == 3
            error = rows_by_id(tmp_path)["j0"]["error"]
            assert error["kind"] == "timed_out"
            assert said in error["message"]
        assert len(gateway.submitted_bodies) == 1

    def test_a_job_in_progress_is_polled_on(self, tmp_path: Path) -> None:
        """A job that is still QUEUED or PROCESSING is waited for in every run."""
        gateway = ScriptedGateway()
        gateway.poll_script["j0"] = [Waiting("PROCESSING")]
        for at in (1e9, 1e9 + 400.0):
            run_virtual(run_jobs(tmp_path, gateway, make_jobs(1), job_timeout_s=300.0, clock=partial(float, at)))
            (polls,) = gateway.poll_times_s.values()
            assert polls[-1] - polls[0] > 200
            polls.clear()


class WrongLatencyScript(FixedLatencyScript):
    """A gateway whose timestamps say that each job took `took_s`."""

    def __init__(self, latencies_s: list[float], took_s: float) -> None:
        super().__init__(latencies_s)
        self._took_s = took_s

    def finished(self, request_id: str, outputs: int = 1) -> Finished:
        finished = super().finished(request_id, outputs)
        return Finished(finished.media_urls, finished.media_type, self._took_s)


def run_at(started_at: float, out: Path, gateway: ScriptedGateway, jobs: list[Job], **options: Any) -> Engine:
    """Run jobs in virtual time, with a wall clock that starts at `started_at` and advances with it."""

    async def main() -> Engine:
        loop = asyncio.get_running_loop()
        start_s = loop.time()
        return await run_jobs(out, gateway, jobs, clock=lambda: started_at + loop.time() - start_s, **options)

    return run_virtual(main())


def first_poll_delays_s(gateway: FixedLatencyScript) -> list[float]:
    return [times_s[0] - gateway.accepted_s[request_id] for request_id, times_s in gateway.poll_times_s.items()]


class TestImplausibleLatencies:
    @pytest.mark.parametrize("took_s", [28_812.0, 6.3e10, 1e300], ids=["eight hours", "year 1", "huge"])
    def test_they_are_not_believed_by_the_next_run(self, tmp_path: Path, took_s: float) -> None:
        """Latencies that the first run did not believe do not delay the polls of the second."""
        jobs = make_jobs(80)
        run_at(1e9, tmp_path, WrongLatencyScript([12.0], took_s), jobs[:40], rate="10/s")
        gateway = WrongLatencyScript([12.0], took_s)
        gateway.charged = {f"earlier {n}": "" for n in range(40)}  # so that request_ids stay unique
        run_at(2e9, tmp_path, gateway, jobs, rate="10/s")
        assert max(first_poll_delays_s(gateway)) < 30.0
        assert set(result_statuses(tmp_path).values()) == {"succeeded"}

    def test_they_are_not_believed_of_resumed_jobs(self, tmp_path: Path) -> None:
        """Latencies of resumed jobs are believed only up to the time since their acceptance."""
        gateway = WrongLatencyScript([12.0], 28_812.0)

        async def interrupted() -> None:
            async with Engine(tmp_path, gateway_client=gateway, clock=lambda: 1e9, rate="100/s") as engine:
                running = asyncio.create_task(engine.run(make_jobs(40)))
                await asyncio.sleep(4.0)
                engine.abort()
                with pytest.raises(RunStopped):
                    await running

        run_virtual(interrupted())
        assert set(ledger_states(tmp_path).values()) == {"accepted"}
        resumed = set(gateway.charged)
        gateway.done_s = dict.fromkeys(gateway.done_s, 0.0)
        run_at(1e9 + 60.0, tmp_path, gateway, make_jobs(80), rate="1/s")
        delays_s = [
            times_s[0] - gateway.accepted_s[request_id]
            for request_id, times_s in gateway.poll_times_s.items()
            if request_id not in resumed
        ]
        assert len(delays_s) == 40
        assert max(delays_s) < 30.0

    def test_a_wait_for_the_next_run_is_no_latency(self, tmp_path: Path) -> None:
        """If the gateway reports no latencies, the time between two runs is not taken for one."""
        store = SqliteLedger.open(tmp_path / "ledger.db")
        store.transaction(lambda store: store.start_run("g", "1", 900.0))
        for n in range(3):
            store.transaction(partial(intent, n))
        finished = Finished(("https://cdn.example/a.png",), "image/png")
        store.transaction(lambda store: store.mark_accepted(1, "r-1", 1000.0))
        store.transaction(lambda store: store.mark_finished(1, finished, 1012.0, 1))
        store.transaction(lambda store: store.mark_accepted(2, "r-2", 1005.0))
        store.transaction(lambda store: store.start_run("g", "1", 1500.0))
        store.transaction(lambda store: store.mark_finished(2, finished, 1501.0, 1))
        store.transaction(lambda store: store.mark_accepted(3, "r-3", 1600.0))
        store.transaction(lambda store: store.mark_finished(3, finished, 1500.0, 1))  # the clock was set back
        assert [latency_s for _, latency_s in store.latencies(10)] == [12.0]
        store.close()

    def test_no_first_poll_is_behind_the_timeout(self, tmp_path: Path) -> None:
        """If jobs took longer than the time-out of this run, each is still polled once before it times out."""
        jobs = make_jobs(80)
        run_at(1e9, tmp_path, FixedLatencyScript([300.0]), jobs[:40], rate="10/s")
        gateway = FixedLatencyScript([25.0])
        gateway.charged = {f"earlier {n}": "" for n in range(40)}
        run_at(2e9, tmp_path, gateway, jobs, rate="10/s", job_timeout_s=30.0)
        assert set(result_statuses(tmp_path).values()) == {"succeeded"}
        assert max(first_poll_delays_s(gateway)) <= 30.0 + 1e-3


def intent(n: int, store: SqliteLedger) -> None:
    store.record_intent(f"j{n}", b"{}", b"f" * 32, b"{}", 999.0, "")
