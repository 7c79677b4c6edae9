"""Test rules.circuit_breaker, pending_limit, delivery, fail_fast, and backoff.RetryBudget."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krea_batch.jobs import ErrorInfo, Outcome, State
from krea_batch.rules.backoff import MAX_BACKOFF_S, RETRY_BURST, RetryBudget
from krea_batch.rules.circuit_breaker import IDENTICAL_REFUSALS, OPEN_AFTER, CircuitBreaker
from krea_batch.rules.delivery import DeliveryGuard
from krea_batch.rules.fail_fast import IdenticalFailureGuard
from krea_batch.rules.pending_limit import PendingLimit
from krea_batch.rules.verdicts import Accepted, Ambiguous, NotSent, PostVerdict, Refusal, Refused, Waiting


def failed_outcome(status: State, kind: str = "") -> Outcome:
    """Return the outcome of a job with this status and error."""
    return Outcome(
        id="a", status=status, request_id=None, files=(), request={}, metadata={}, polls=0, attempts=1,
        error=ErrorInfo(kind, f"because of {kind}") if kind else None,
        submitted_at=None, accepted_at=None, finished_at=None, stored_at=None,
    )  # fmt: skip


FAILURES: list[PostVerdict] = [
    NotSent("no route"),
    Ambiguous("HTTP 502"),
    Refused(Refusal.RETRYABLE, 503, "unavailable"),
    Refused(Refusal.REJECTED, 404, "not found"),
]
ACCEPTED = Accepted("r-1", Waiting("QUEUED"))


class TestCircuitBreaker:
    @pytest.mark.parametrize("failure", FAILURES)
    def test_a_few_failures_do_not_open_it(self, failure: PostVerdict) -> None:
        """Up to OPEN_AFTER consecutive failures cause no pause, and a success resets the count."""
        breaker = CircuitBreaker()
        for _ in range(10):
            for n in range(OPEN_AFTER):
                assert breaker.record(failure, float(n), float(n), 1.0) == 0.0
            assert not breaker.is_open
            assert breaker.record(ACCEPTED, 4.0, 4.0, 1.0) == 0.0

    @pytest.mark.parametrize("failure", FAILURES)
    def test_pauses_double_up_to_a_minute(self, failure: PostVerdict) -> None:
        """Consecutive failed attempts pause submits longer each time, but never more than a minute."""
        breaker, now_s, pauses_s = CircuitBreaker(), 1.0, []
        for _ in range(OPEN_AFTER + 12):
            pause_s = breaker.record(failure, now_s, now_s + 0.1, 1.0)
            pauses_s.append(pause_s)
            now_s += pause_s + 0.2
        assert pauses_s[:OPEN_AFTER] == [0.0] * OPEN_AFTER
        assert pauses_s[OPEN_AFTER : OPEN_AFTER + 8] == [0.5, 1, 2, 4, 8, 16, 32, 60]
        assert set(pauses_s[OPEN_AFTER + 8 :]) == {MAX_BACKOFF_S}
        assert breaker.failing_since_s == 1.1

    def test_different_failures_count_together(self) -> None:
        """An outage may answer differently each time; any failure counts."""
        breaker = CircuitBreaker()
        for failure in FAILURES:
            breaker.record(failure, 1.0, 1.0, 1.0)
        assert breaker.is_open

    def test_pending_posts_are_one_failure(self) -> None:
        """Five hundred POSTs that fail together cause one pause, and do not extend the next one."""
        breaker = CircuitBreaker()
        pauses_s = [breaker.record(FAILURES[0], 0.0, 1.0, 1.0) for _ in range(500)]
        assert [pause_s for pause_s in pauses_s if pause_s] == [0.5]
        assert breaker.record(FAILURES[0], 2.0, 2.1, 1.0) == 1.0

    def test_rejected_bodies(self) -> None:
        """Bodies that are refused with different words are no outage; with the same words, more than 20 are."""
        breaker = CircuitBreaker()
        for n in range(100):
            breaker.record(Refused(Refusal.REJECTED, 400, f"bad prompt {n}"), 1.0, 1.0, 1.0)
        assert not breaker.is_open
        pauses_s = [
            breaker.record(Refused(Refusal.REJECTED, 400, "model not found"), n, n, 1.0)
            for n in range(IDENTICAL_REFUSALS + 1)
        ]
        assert pauses_s == [0.0] * IDENTICAL_REFUSALS + [0.5]

    def test_identical_refusals_after_an_earlier_failure(self) -> None:
        """Identical refusals are an outage that starts with them, not with a failure long before."""
        breaker = CircuitBreaker()
        breaker.record(FAILURES[0], 5.0, 5.0, 1.0)
        breaker.record(ACCEPTED, 6.0, 6.0, 1.0)
        for _ in range(IDENTICAL_REFUSALS + 1):
            breaker.record(Refused(Refusal.REJECTED, 400, "model not found"), 5000.0, 5000.0, 1.0)
        assert breaker.is_open
        assert breaker.failing_since_s == 5000.0

    def test_an_accepted_post_closes_it(self) -> None:
        """After an outage, the first accepted POST closes the circuit breaker."""
        breaker = CircuitBreaker()
        states = [breaker.record(failure, 1.0, 1.0, 1.0) > 0 for failure in FAILURES]
        assert states == [False, False, False, True]
        breaker.record(ACCEPTED, 50.0, 50.0, 1.0)
        assert not breaker.is_open

    @pytest.mark.parametrize("refusal", [Refusal.RATE_LIMITED, Refusal.FATAL])
    def test_decisions_about_the_key_are_no_outage(self, refusal: Refusal) -> None:
        """A 429, or a refused key, is an answer of a gateway that works."""
        breaker = CircuitBreaker()
        for _ in range(100):
            assert breaker.record(Refused(refusal, 429, "no"), 1.0, 1.0, 1.0) == 0.0
        assert not breaker.is_degraded


class TestPendingLimit:
    def test_before_the_first_answer(self) -> None:
        """Before the first answer, few POSTs may be pending, whatever the rate."""
        assert PendingLimit(256).max_pending(5000.0) == 25
        assert PendingLimit(10).max_pending(5000.0) == 10

    @given(st.floats(0.1, 2000), st.floats(0.001, 5))
    def test_enough_for_the_rate(self, rate_per_s: float, took_s: float) -> None:
        """Once answers take a constant time, the limit is what the rate needs and half of it more, and a few."""
        limit = PendingLimit(100_000)
        for _ in range(100):
            limit.record_answer(took_s)
        needed = rate_per_s * took_s
        assert needed <= limit.max_pending(rate_per_s) <= 1.6 * needed + 6

    def test_slower_answers_raise_the_limit(self) -> None:
        """If answers take ten times as long, a limit that was reached grows with them."""
        limit = PendingLimit(256)
        for _ in range(50):
            limit.record_answer(0.05)
        before = limit.max_pending(100.0)
        for _ in range(20):
            limit.record_answer(0.5)
        assert limit.max_pending(100.0) > 3 * before


class TestDeliveryGuard:
    def test_a_new_run_waits_for_its_first_image(self) -> None:
        """Until an image is stored, 100 jobs may be in flight, or ten seconds of submits."""
        guard = DeliveryGuard(proven=False)
        assert guard.may_submit(99, 10.0)
        assert not guard.may_submit(100, 10.0)
        assert guard.may_submit(999, 100.0)
        assert not guard.may_submit(1000, 100.0)
        guard.record_stored()
        assert guard.may_submit(100_000, 10.0)
        assert DeliveryGuard(proven=True).may_submit(100_000, 10.0)

    def test_many_failing_jobs_hold_submits(self) -> None:
        """Ten different jobs that fail in a row hold submits; a stored image ends the hold."""
        guard = DeliveryGuard(proven=True)
        for job_no in range(9):
            for _ in range(5):
                guard.record_failure(job_no, "HTTP 503")
        assert not guard.is_failing
        guard.record_failure(9, "HTTP 504")
        assert (guard.is_failing, guard.reason) == (True, "HTTP 504")
        assert not guard.may_submit(1, 10.0)
        assert guard.may_submit(0, 10.0)
        guard.record_stored()
        assert guard.may_submit(1000, 10.0)


class TestRetryBudget:
    def test_a_transient_error_is_retried_immediately(self) -> None:
        """The first retries are sent immediately, whatever the rate."""
        budget = RetryBudget(1.0)
        assert [budget.spend(5.0) for _ in range(RETRY_BURST)] == [0.0] * RETRY_BURST
        assert budget.spend(5.0) > 0

    @given(st.floats(0.1, 2000), st.lists(st.floats(0, 2), max_size=400))
    def test_no_more_than_its_share(self, rate_per_s: float, gaps_s: list[float]) -> None:
        """However many retries there are, they are at most a fifth of the rate, or one per second."""
        budget, now_s, allowed_s = RetryBudget(rate_per_s), 0.0, []
        for gap_s in gaps_s:
            now_s += gap_s
            wait_s = budget.spend(now_s)
            assert 0 <= wait_s <= MAX_BACKOFF_S
            allowed_s.append(now_s + wait_s)
        within = [at_s for at_s in allowed_s if at_s < now_s]
        assert len(within) <= RETRY_BURST + now_s * max(1.0, rate_per_s / 5) + 1

    def test_a_deficit_recovers(self) -> None:
        """After an outage with thousands of retries, no job waits longer than a minute for its own."""
        budget = RetryBudget(10.0)
        assert max(budget.spend(0.0) for _ in range(10_000)) == MAX_BACKOFF_S
        assert budget.spend(61.0) == pytest.approx(0.0, abs=0.5)


class TestIdenticalFailureGuard:
    @pytest.mark.parametrize("status", [State.FAILED, State.REJECTED, State.ERRORED, State.TIMED_OUT])
    def test_identical_first_failures(self, status: State) -> None:
        """The run stops at the limit and not before; the reason names the state and the error."""
        guard = IdenticalFailureGuard(5)
        assert [guard.record_ended(failed_outcome(status, "reason")) for _ in range(4)] == [None] * 4
        reason = guard.record_ended(failed_outcome(status, "reason"))
        assert reason is not None
        assert f"first 5 jobs all ended as {status}" in reason
        assert "because of reason" in reason

    def test_different_failures(self) -> None:
        """Failures with different errors do not stop the run."""
        guard = IdenticalFailureGuard(3)
        ends = [failed_outcome(State.REJECTED, kind) for kind in ["http_400", "http_422"] + ["http_400"] * 9]
        assert not any(map(guard.record_ended, ends))

    def test_once_one_has_succeeded(self) -> None:
        """After a success, in this run or an earlier one, consecutive failures do not stop the run."""
        guard, resumed = IdenticalFailureGuard(3), IdenticalFailureGuard(3, has_succeeded=True)
        guard.record_ended(failed_outcome(State.SUCCEEDED))
        for _ in range(100):
            assert guard.record_ended(failed_outcome(State.FAILED, "failed")) is None
            assert resumed.record_ended(failed_outcome(State.FAILED, "failed")) is None

    def test_ambiguous_jobs_do_not_stop_the_run(self) -> None:
        """Ambiguous jobs are the business of the circuit breaker."""
        guard = IdenticalFailureGuard(3)
        assert not any(guard.record_ended(failed_outcome(State.AMBIGUOUS, "ambiguous")) for _ in range(100))

    def test_zero_never_stops(self) -> None:
        """0 never stops a run."""
        guard = IdenticalFailureGuard(0)
        assert not any(guard.record_ended(failed_outcome(State.FAILED, "failed")) for _ in range(1000))
