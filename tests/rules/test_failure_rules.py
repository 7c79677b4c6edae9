"""Test rules.circuit_breaker, rules.backoff.RetryBudget and rules.fail_fast."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krea_batch.jobs import ErrorInfo, Outcome, State
from krea_batch.rules.backoff import MAX_BACKOFF_S, RETRY_BURST, RetryBudget
from krea_batch.rules.circuit_breaker import OPEN_AFTER, CircuitBreaker
from krea_batch.rules.fail_fast import IdenticalFailureGuard


def failed_outcome(status: State, kind: str = "") -> Outcome:
    """Return the outcome of a job with this status and error."""
    return Outcome(
        id="a", status=status, request_id=None, files=(), request={}, metadata={}, polls=0, attempts=1,
        error=ErrorInfo(kind, f"because of {kind}") if kind else None,
        submitted_at=None, accepted_at=None, finished_at=None, stored_at=None,
    )  # fmt: skip


class TestCircuitBreaker:
    def test_a_few_failures_do_not_open_it(self) -> None:
        """Up to OPEN_AFTER consecutive failures cause no pause, and a success resets the count."""
        breaker = CircuitBreaker()
        for _ in range(10):
            for n in range(OPEN_AFTER):
                assert breaker.record_failure(float(n), float(n), 1.0) == 0.0
            assert not breaker.is_open
            breaker.record_success()

    def test_pauses_double_up_to_a_minute(self) -> None:
        """Consecutive failed attempts pause submits longer each time, but never more than a minute."""
        breaker, now_s, pauses_s = CircuitBreaker(), 0.0, []
        for _ in range(OPEN_AFTER + 12):
            pause_s = breaker.record_failure(now_s, now_s + 0.1, 1.0)
            pauses_s.append(pause_s)
            now_s += pause_s + 0.2
        assert pauses_s[:OPEN_AFTER] == [0.0] * OPEN_AFTER
        assert pauses_s[OPEN_AFTER : OPEN_AFTER + 8] == [0.5, 1, 2, 4, 8, 16, 32, 60]
        assert set(pauses_s[OPEN_AFTER + 8 :]) == {MAX_BACKOFF_S}
        assert breaker.failing_since_s == 0.1

    def test_pending_posts_are_one_failure(self) -> None:
        """Five hundred POSTs that fail together cause one pause, and do not extend the next one."""
        breaker = CircuitBreaker()
        pauses_s = [breaker.record_failure(0.0, 1.0, 1.0) for _ in range(500)]
        assert [pause_s for pause_s in pauses_s if pause_s] == [0.5]
        assert breaker.record_failure(2.0, 2.1, 1.0) == 1.0


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

    def test_consecutive_ambiguous_jobs(self) -> None:
        """Consecutive ambiguous jobs, which may have been charged, always stop the run."""
        guard = IdenticalFailureGuard(3, has_succeeded=True)
        for _ in range(10):
            assert guard.record_ended(failed_outcome(State.AMBIGUOUS, "ambiguous")) is None
            assert guard.record_ended(failed_outcome(State.AMBIGUOUS, "ambiguous")) is None
            assert guard.record_ended(failed_outcome(State.SUCCEEDED)) is None
        ends = [guard.record_ended(failed_outcome(State.AMBIGUOUS, "ambiguous")) for _ in range(3)]
        assert ends[:2] == [None, None]
        assert "3 consecutive jobs are ambiguous" in str(ends[2])

    def test_zero_never_stops(self) -> None:
        """0 never stops a run."""
        guard = IdenticalFailureGuard(0)
        assert not any(guard.record_ended(failed_outcome(State.FAILED, "failed")) for _ in range(1000))
