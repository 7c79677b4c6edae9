"""Several runs share a ledger: each has its own jobs, and the jobs of a run that stalls go to another one."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from krea_batch.errors import FencedError, InternalError
from krea_batch.jobs import ErrorInfo, State
from krea_batch.ledger import Charges, Ledger, live_runs
from krea_batch.rules.lease import LOOK_INTERVAL_S
from tests.ledger.operations import (
    FINGERPRINT,
    METADATA,
    REQUEST_BODY,
    STORE_ERROR,
    LedgerOperation,
    accept,
    apply_all,
    finish,
    intent,
    requeue_errored,
    revert,
)
from tests.ledger.places import LedgerPlace, each_empty_ledger

PENDING, ACCEPTED, FINISHED = [State.PENDING], [State.ACCEPTED], [State.FINISHED]
UNCHARGED = ["refused", "server_error", "not_sent"]


def start_worker(ledger: Ledger) -> int:
    """Let a ledger object work for a new run, and return its number."""
    run_no = ledger.transaction(lambda ledger: ledger.start_run("https://a", "1", 1.0, worker="host"))
    ledger.bind_run(run_no)
    return run_no


def enqueue(*job_ids: str) -> LedgerOperation:
    """Record free jobs."""
    return lambda ledger: [
        ledger.enqueue(job_id, REQUEST_BODY, FINGERPRINT, METADATA, "", free=True) for job_id in job_ids
    ]


def claim(states: list[State], limit: int = 10) -> LedgerOperation:
    return lambda ledger: [job.job_id for job in ledger.claim_jobs(states, limit)]


def reserve(count: int, max_charges: int) -> LedgerOperation:
    return lambda ledger: ledger.reserve_charges(count, max_charges, count_server_errors=False)


def beat_of(ledger: Ledger, run_no: int) -> int:
    return next(run.beat for run in ledger.live_runs() if run.run_no == run_no)


def fence(ledger: Ledger, run_no: int) -> bool:
    """Fence a run that has written nothing since its beat was read."""
    beat = beat_of(ledger, run_no)
    return ledger.transaction(lambda ledger: ledger.fence(run_no, beat))


@pytest.fixture
def other(place: LedgerPlace, ledger: Ledger) -> Iterator[Ledger]:
    """The ledger, opened by a second worker."""
    opened = place.open()
    yield opened
    opened.close()


def test_each_transaction_is_a_sign_of_life(ledger: Ledger) -> None:
    """The beat of a run grows with each of its transactions, also with an empty one."""
    run_no = start_worker(ledger)
    before = beat_of(ledger, run_no)
    apply_all(ledger, intent())
    apply_all(ledger, lambda ledger: None)
    assert beat_of(ledger, run_no) == before + 2
    assert [(run.run_no, run.worker, run.started_at) for run in ledger.live_runs()] == [(run_no, "host", 1.0)]


def test_the_lock_of_a_run_is_recorded_with_its_start(ledger: Ledger, other: Ledger) -> None:
    """Another process finds the name of the lock as soon as it finds the run; a run may have none."""
    for name in ("5f1e", ""):
        ledger.transaction(
            lambda ledger, name=name: ledger.start_run("https://a", "1", 1.0, worker="host", process_lock=name)  # type: ignore[misc]
        )
    assert [run.process_lock for run in other.live_runs()] == ["5f1e", ""]


def test_a_fenced_run_writes_nothing_more(ledger: Ledger, other: Ledger, place: LedgerPlace) -> None:
    """Every later transaction of a fenced run raises FencedError, and leaves the ledger as it was."""
    run_no, _ = start_worker(ledger), start_worker(other)
    apply_all(ledger, intent("a"), accept(), enqueue("b"))
    assert fence(other, run_no)
    before = place.dump()
    for operation in (intent("b"), intent("c"), finish(), revert(2), lambda ledger: None):
        with pytest.raises(FencedError, match="another process has taken over its jobs"):
            apply_all(ledger, operation)
    assert place.dump() == before


def test_a_run_that_has_written_meanwhile_is_not_fenced(ledger: Ledger, other: Ledger) -> None:
    """A beat that has changed since it was read protects the run."""
    run_no, _ = start_worker(ledger), start_worker(other)
    apply_all(ledger, intent())
    old_beat = beat_of(other, run_no)
    apply_all(ledger, lambda ledger: None)
    assert not other.transaction(lambda ledger: ledger.fence(run_no, old_beat))
    apply_all(ledger, accept())
    assert ledger.counts() == {State.ACCEPTED: 1}


def test_old_rate_events_are_deleted(ledger: Ledger) -> None:
    """Only the last thousand or so are kept, and the last one always."""
    start_worker(ledger)
    for _ in range(13):
        apply_all(ledger, *(lambda ledger: ledger.add_rate_events(b"[]") for _ in range(100)))
    event_nos = [event_no for event_no, _ in ledger.rate_events(0)]
    assert event_nos == list(range(301, 1301))


def test_a_live_run_is_waited_for(ledger: Ledger, other: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that needs to know whether a run is alive looks again until the run has written something."""
    start_worker(ledger)
    looks: list[float] = []

    def sleep(duration_s: float) -> None:
        looks.append(duration_s)
        if len(looks) == 3:
            apply_all(ledger, lambda ledger: None)

    monkeypatch.setattr("krea_batch.ledger.live_runs.time.sleep", sleep)
    assert live_runs.fence_dead_runs(other)
    assert looks == [LOOK_INTERVAL_S] * 3
    assert len(other.live_runs()) == 1


def test_a_run_whose_process_has_just_ended_is_fenced_once_it_is_known_what_it_wrote(
    ledger: Ledger, other: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a run writes while its process ends, it is fenced at the next look, with its last beat."""
    start_worker(ledger)
    looks: list[str] = []

    def is_released(name: str) -> bool:
        looks.append(name)
        if len(looks) == 1:
            apply_all(ledger, lambda ledger: None)
        return True

    monkeypatch.setattr(live_runs, "is_released", is_released)
    assert not live_runs.fence_dead_runs(other)
    assert len(looks) == 2
    assert other.live_runs() == []


def test_a_run_that_has_ended_is_not_fenced(ledger: Ledger, other: Ledger) -> None:
    """A run that has ended normally is neither live nor fenced."""
    run_no = start_worker(ledger)
    beat = beat_of(ledger, run_no)
    apply_all(ledger, lambda ledger: ledger.end_run(run_no, 2.0))
    assert ledger.live_runs() == []
    assert not other.transaction(lambda ledger: ledger.fence(run_no, beat))


def test_the_jobs_of_a_fenced_run_are_taken_over(ledger: Ledger, other: Ledger) -> None:
    """Only a pending POST becomes ambiguous. No other run can claim jobs before the run is fenced."""
    run_no, _ = start_worker(ledger), start_worker(other)
    apply_all(ledger, enqueue("a", "b", "c", "d"), claim(PENDING), intent("b"), intent("c"), intent("d"))
    apply_all(ledger, accept(3, "r-3"), accept(4, "r-4"), finish(4))
    assert apply_all(other, claim([*PENDING, *ACCEPTED, *FINISHED])) == []
    assert fence(other, run_no)
    assert apply_all(other, claim(ACCEPTED)) == ["c"]
    assert apply_all(other, claim([*PENDING, *FINISHED])) == ["a", "d"]
    assert other.counts() == {State.PENDING: 1, State.AMBIGUOUS: 1, State.ACCEPTED: 1, State.FINISHED: 1}
    assert other.charges() == Charges(charged=2, unknown=1)


def test_an_adopted_job_belongs_to_the_run_that_adopts_it(ledger: Ledger, other: Ledger) -> None:
    """A callback may tell any run the request_id of an ambiguous job. No other run claims the job then."""
    run_no, _ = start_worker(ledger), start_worker(other)
    apply_all(ledger, intent())
    assert fence(other, run_no)
    assert apply_all(other, lambda ledger: ledger.adopt(1, "r-1", 5.0))
    assert other.counts() == {State.ACCEPTED: 1}
    assert apply_all(other, claim(ACCEPTED)) == []


def test_claims_are_in_order_and_limited(ledger: Ledger, other: Ledger) -> None:
    """Two workers never claim the same job, and get the oldest ones first."""
    start_worker(ledger)
    start_worker(other)
    apply_all(ledger, enqueue(*(f"job-{n}" for n in range(5))))
    assert apply_all(ledger, claim(PENDING, 2)) == ["job-0", "job-1"]
    assert apply_all(other, claim(PENDING, 2)) == ["job-2", "job-3"]
    assert apply_all(ledger, claim(PENDING, 2)) == ["job-4"]
    assert apply_all(other, claim(PENDING, 2)) == []


def test_jobs_of_a_run_of_its_own(ledger: Ledger, other: Ledger) -> None:
    """A job that a run has recorded for itself is not free, and is recorded once."""
    start_worker(ledger)
    start_worker(other)
    record = ("a", REQUEST_BODY, FINGERPRINT, METADATA, "")
    assert apply_all(ledger, lambda ledger: ledger.enqueue(*record))
    assert not apply_all(other, lambda ledger: ledger.enqueue(*record, free=True))
    assert apply_all(other, claim(PENDING)) == []
    assert apply_all(ledger, claim(PENDING)) == []
    apply_all(ledger, intent("b"), accept(2))
    assert apply_all(other, claim(ACCEPTED)) == []


def test_the_jobs_of_an_ended_run_are_free(ledger: Ledger, other: Ledger) -> None:
    """What a run leaves behind at its end is claimed by another one."""
    run_no, _ = start_worker(ledger), start_worker(other)
    apply_all(ledger, enqueue("a"), claim(PENDING))
    apply_all(ledger, lambda ledger: ledger.end_run(run_no, 2.0))
    assert apply_all(other, claim(PENDING)) == ["a"]


def test_recovery_leaves_the_jobs_of_live_runs_alone(ledger: Ledger, other: Ledger) -> None:
    """A worker that starts while another one is submitting must not make its POSTs ambiguous."""
    start_worker(ledger)
    start_worker(other)
    apply_all(ledger, enqueue("a"), claim(PENDING), intent("a"))
    apply_all(other, lambda ledger: ledger.recover(max_attempts=3, resubmit_ambiguous=True))
    assert other.counts() == {State.SUBMITTING: 1}


# ---- late results ----------------------------------------------------------------------------------------


def send_and_fence(ledger: Ledger, other: Ledger) -> int:
    """Let a run submit job 1, fence it, and return its number."""
    run_no, _ = start_worker(ledger), start_worker(other)
    apply_all(ledger, intent())
    assert fence(other, run_no)
    ledger.bind_run(None)
    return run_no


def test_a_late_acceptance_is_kept(ledger: Ledger, other: Ledger) -> None:
    """The request_id that a fenced run got is recorded, and another run polls the job."""
    run_no = send_and_fence(ledger, other)
    assert ledger.transaction(lambda ledger: ledger.record_late_result(run_no, 1, "accepted", "r-9", 5.0))
    assert other.charges() == Charges(charged=1)
    assert apply_all(other, claim(ACCEPTED)) == ["a"]
    assert other.outcome(1).request_id == "r-9"
    assert not ledger.transaction(lambda ledger: ledger.record_late_result(run_no, 1, "accepted", "r-8", 5.0))


@pytest.mark.parametrize("result", UNCHARGED)
def test_a_late_refusal_makes_the_job_pending(ledger: Ledger, other: Ledger, result: str) -> None:
    """A POST of a fenced run that was not accepted is not charged, and its job is submitted again."""
    run_no = send_and_fence(ledger, other)
    assert ledger.transaction(lambda ledger: ledger.record_late_result(run_no, 1, result))
    assert other.charges() == Charges(server_errors=int(result == "server_error"))
    assert apply_all(other, claim(PENDING)) == ["a"]
    assert apply_all(other, reserve(5, 5)).granted == 5


@pytest.mark.parametrize("result", ["accepted", *UNCHARGED])
def test_a_late_result_of_a_job_that_was_submitted_again(ledger: Ledger, other: Ledger, result: str) -> None:
    """If the user has had the job submitted again, the late result counts, and the job stays as it is."""
    run_no = send_and_fence(ledger, other)
    apply_all(other, lambda ledger: ledger.resubmit(1), intent(), accept(1, "r-2"))
    request_id = "r-1" if result == "accepted" else ""
    assert ledger.transaction(lambda ledger: ledger.record_late_result(run_no, 1, result, request_id))
    assert other.charges().charged == 1 + (result == "accepted")
    assert other.charges().unknown == 0
    assert other.outcome(1).request_id == "r-2"


def test_a_late_result_of_an_earlier_post_leaves_the_doubt_about_the_last(ledger: Ledger, other: Ledger) -> None:
    """A job that is ambiguous because of a later POST stays ambiguous."""
    run_no = send_and_fence(ledger, other)
    apply_all(other, lambda ledger: ledger.resubmit(1), intent())
    apply_all(other, lambda ledger: ledger.mark_ambiguous(1, STORE_ERROR, 5.0))
    assert ledger.transaction(lambda ledger: ledger.record_late_result(run_no, 1, "not_sent"))
    assert other.counts() == {State.AMBIGUOUS: 1}
    assert other.charges() == Charges(unknown=1)


def test_a_late_request_id_of_another_job_is_refused(ledger: Ledger, other: Ledger) -> None:
    """A request_id that the ledger has for another job is not recorded twice; the job stays ambiguous."""
    run_no = send_and_fence(ledger, other)
    apply_all(other, intent("b"), accept(2, "r-9"))
    assert not ledger.transaction(lambda ledger: ledger.record_late_result(run_no, 1, "accepted", "r-9"))
    assert other.counts() == {State.AMBIGUOUS: 1, State.ACCEPTED: 1}


def test_a_late_reason_is_kept(ledger: Ledger, other: Ledger) -> None:
    """Why the result stays unknown is recorded, since it may name a request_id, unless the job was resubmitted."""
    run_no = send_and_fence(ledger, other)
    error = ErrorInfo("ambiguous", "its request_id may be r-9")
    ledger.transaction(lambda ledger: ledger.record_late_doubt(run_no, 1, error, b"{"))
    (job,) = other.ambiguous_jobs()
    assert (job.reason, job.answer) == ("its request_id may be r-9", b"{")
    assert other.charges() == Charges(unknown=1)
    apply_all(other, lambda ledger: ledger.resubmit(1))
    ledger.transaction(lambda ledger: ledger.record_late_doubt(run_no, 1, error, b"{"))
    assert other.counts() == {State.PENDING: 1}


# ---- the limit of charges --------------------------------------------------------------------------------


def test_all_runs_together_keep_to_the_limit(ledger: Ledger, other: Ledger) -> None:
    """What one run has reserved or spent, no other can."""
    start_worker(ledger)
    start_worker(other)
    assert apply_all(ledger, reserve(6, 10)).granted == 6
    assert apply_all(other, reserve(6, 10)).granted == 4
    apply_all(ledger, intent("a"), intent("b"))
    assert apply_all(other, reserve(1, 10)).granted == 0
    apply_all(ledger, lambda ledger: ledger.return_charges(3))
    assert apply_all(other, reserve(9, 10)).granted == 3
    assert apply_all(ledger, reserve(9, 10)).granted == 0


def test_charges_that_are_given_back(ledger: Ledger, other: Ledger) -> None:
    """A refusal and an ERROR are not charged, so that another POST may be."""
    start_worker(ledger)
    start_worker(other)
    apply_all(ledger, reserve(3, 3), intent("a"), intent("b"), intent("c"))
    apply_all(ledger, revert(1), accept(2, "r-2"), requeue_errored(2), accept(3, "r-3"))
    assert apply_all(other, reserve(5, 3)).granted == 2


def test_a_refund_in_the_transaction_of_the_first_reservation(ledger: Ledger) -> None:
    """A commit has the operations of many jobs. Charges that it refunds first are counted once, now and later."""
    start_worker(ledger)
    apply_all(ledger, intent("a"), accept(1, "r-1"), intent("b"), accept(2, "r-2"))

    def refund_and_reserve(ledger: Ledger) -> int:
        ledger.requeue_errored(1, 4)
        return ledger.reserve_charges(2, 10, count_server_errors=False).granted

    assert apply_all(ledger, refund_and_reserve) == 2
    assert apply_all(ledger, reserve(20, 10)).granted == 7


def test_an_intent_in_the_transaction_of_the_first_reservation(ledger: Ledger) -> None:
    """An intent that the same commit records first is counted once, now and later."""
    start_worker(ledger)

    def submit_and_reserve(ledger: Ledger) -> int:
        intent("a")(ledger)
        return ledger.reserve_charges(2, 10, count_server_errors=False).granted

    assert apply_all(ledger, submit_and_reserve) == 2
    assert apply_all(ledger, reserve(20, 10)).granted == 7


def test_a_fenced_run_gives_back_what_it_had_reserved(ledger: Ledger, other: Ledger) -> None:
    """What it had spent stays spent, also where the result is unknown."""
    run_no, _ = start_worker(ledger), start_worker(other)
    apply_all(ledger, reserve(8, 10), intent("a"))
    assert fence(other, run_no)
    assert apply_all(other, reserve(20, 10)).granted == 9


def test_the_limit_is_exhausted_only_when_no_result_is_pending(ledger: Ledger) -> None:
    """A POST that is pending may turn out not to be charged."""
    start_worker(ledger)
    apply_all(ledger, reserve(2, 2), intent("a"), intent("b"))
    assert not apply_all(ledger, reserve(1, 2)).exhausted
    apply_all(ledger, accept(1, "r-1"))
    assert not apply_all(ledger, reserve(1, 2)).exhausted
    apply_all(ledger, accept(2, "r-2"))
    assert apply_all(ledger, reserve(1, 2)).exhausted


def test_submissions_without_a_run_count(ledger: Ledger) -> None:
    """Submissions that `krea-batch recover` rebuilt belong to no run, and are charged all the same."""
    apply_all(ledger, intent("a"), accept(), intent("b"), revert(2, "server_error"))
    start_worker(ledger)
    assert apply_all(ledger, reserve(9, 5)).granted == 4
    apply_all(ledger, lambda ledger: ledger.return_charges(4))
    assert apply_all(ledger, lambda ledger: ledger.reserve_charges(9, 5, count_server_errors=True)).granted == 3


STEPS: dict[str, LedgerOperation] = {
    "intent": intent("a"),
    "revert": revert(1),
    "server_error": revert(1, "server_error"),
    "reject": lambda ledger: ledger.mark_rejected(1, STORE_ERROR, 2.0),
    "accept": lambda ledger: ledger.mark_accepted(1, f"r-{ledger.submission_count()}", 2.0),
    "ambiguous": lambda ledger: ledger.mark_ambiguous(1, STORE_ERROR, 2.0),
    "resubmit_submitting": lambda ledger: ledger.resubmit_submitting(1),
    "resubmit": lambda ledger: ledger.resubmit(1),
    "adopt": lambda ledger: ledger.adopt(1, f"r-{ledger.submission_count()}", 2.0),
    "errored": lambda ledger: ledger.mark_errored(1, STORE_ERROR, 2.0, 1),
    "requeue": requeue_errored(1),
    "retry": lambda ledger: ledger.retry(1, State.ERRORED),
}


@each_empty_ledger
@given(steps=st.lists(st.sampled_from(sorted(STEPS)), max_size=25))
@settings(max_examples=200, deadline=None)
def test_the_counters_of_runs_match_the_submissions(new_ledger: Callable[[], Ledger], steps: list[str]) -> None:
    """What the runs have counted is what the submissions say, whatever has happened."""
    ledger = new_ledger()
    start_worker(ledger)
    assert apply_all(ledger, reserve(0, 1000)).granted == 0  # counts what there is now, which is nothing
    for step in steps:
        try:
            apply_all(ledger, STEPS[step])
        except InternalError:
            continue
        charges = ledger.charges()
        free = apply_all(ledger, lambda ledger: ledger.reserve_charges(1000, 1000, count_server_errors=True)).granted
        apply_all(ledger, lambda ledger, free=free: ledger.return_charges(free))  # type: ignore[misc]
        assert 1000 - free == charges.limited(count_server_errors=True)
    ledger.close()
