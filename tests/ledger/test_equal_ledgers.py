"""The ledgers of all databases have the same content after the same transitions, and answer the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st

from krea_batch.errors import KreaBatchError
from krea_batch.jobs import ErrorInfo, State, StoredFile
from krea_batch.ledger import Ledger
from krea_batch.ledger.sql_ledger import SqlLedger
from krea_batch.ledger.writer import Operation, commit
from krea_batch.rules.verdicts import Finished
from krea_batch.storage.results_rows import ResultsMark
from tests.ledger.places import PLACES, content_of

IDS = ["a", "7", "ünï", "B"]
FAILURE = ErrorInfo("failed", "no image: 'x' %s {y} \u201c?\u201d")
BODIES = [
    b'{"prompt":"a \\u0000 cat","aspect_ratio":"1:1","creativity":"raw"}',
    b'{"prompt":"a dog","aspect_ratio":"4:3","creativity":"high"}',
]
FILE = StoredFile("images/a.png", 10, "0" * 64, 4, 3, "image/png")

ATS = st.floats(1_700_000_000.0, 1_700_000_009.0)
JOB_NOS = st.integers(1, len(IDS) + 1)
REQUEST_IDS = st.sampled_from(["r-1", "r-2", "r-3", "r-4"])
RESULTS = st.sampled_from(["refused", "server_error", "not_sent"])


def calls(method: Callable[..., Any], *arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[Operation]:
    return st.tuples(*arguments).map(lambda values: Operation(method, values, {}))


def const(value: Any) -> st.SearchStrategy[Any]:
    return st.just(value)


POLLS = st.integers(1, 9)
FINISHED = st.sampled_from([Finished(("https://c/1",), "image/png", took_s) for took_s in (None, 2.5, -1.0, 1e9)])
NEW_JOBS = [st.sampled_from(IDS), st.sampled_from(BODIES), const(b"f" * 32), const(b'{"row":7}')]
NEW = [
    calls(Ledger.record_intent, *NEW_JOBS, ATS, const("ann"), st.sampled_from(["", "cats/1"])),
    calls(Ledger.enqueue, *NEW_JOBS, const("bob")),
]
OF_NO_JOB = [
    calls(Ledger.record_late_result, const(1), JOB_NOS, RESULTS),
    calls(Ledger.record_late_result, const(1), JOB_NOS, const("accepted"), REQUEST_IDS, ATS),
    calls(Ledger.set_expected_jobs, JOB_NOS),
    calls(Ledger.set_results_size, st.sampled_from([None, 5_000_000_000])),
    calls(Ledger.save_checkpoint, st.binary(min_size=1)),
    calls(Ledger.save_found_limit, st.binary(min_size=1), ATS),
    calls(Ledger.return_charges, JOB_NOS),
    calls(Ledger.callback_secret, st.binary(min_size=1)),
    calls(Ledger.set_results_mark, st.builds(ResultsMark, st.integers(0, 2**40), st.binary(min_size=1))),
    calls(Ledger.fence, const(1), const(0)),
    calls(Ledger.fence_others),
    calls(Ledger.add_rate_events, st.binary(min_size=1)),
    st.builds(Operation, const(Ledger.reserve_charges), const((2, 3)), const({"count_server_errors": True})),
    st.builds(
        Operation,
        const(Ledger.recover),
        const(()),
        st.fixed_dictionaries({"max_attempts": st.integers(1, 3), "resubmit_ambiguous": st.booleans()}),
    ),
]
OF_A_RUN = [calls(Ledger.claim_jobs, st.lists(st.sampled_from(State), min_size=1, unique=True), JOB_NOS)]


def of_job(n: st.SearchStrategy[int], state: State) -> list[st.SearchStrategy[Operation]]:
    """Return the transitions of a job in a state."""
    time_out = calls(Ledger.mark_timed_out, n, const(state), const(FAILURE), ATS, POLLS)
    abandon = calls(Ledger.abandon, n, const(state), ATS)
    match state:
        case State.PENDING:
            return NEW
        case State.SUBMITTING:
            return [
                calls(Ledger.mark_accepted, n, REQUEST_IDS, ATS),
                calls(Ledger.revert_intent, n, RESULTS),
                calls(Ledger.mark_rejected, n, const(FAILURE), ATS, st.sampled_from(["refused", "server_error"])),
                calls(Ledger.mark_ambiguous, n, const(FAILURE), ATS, st.sampled_from([b"", b"<html>"])),
                calls(Ledger.resubmit_submitting, n, const(b"cut")),
            ]
        case State.ACCEPTED:
            return [
                calls(Ledger.mark_finished, n, FINISHED, ATS, POLLS),
                calls(Ledger.mark_failed, n, const(FAILURE), ATS, POLLS),
                calls(Ledger.mark_errored, n, const(FAILURE), ATS, POLLS),
                calls(Ledger.requeue_errored, n, POLLS),
                time_out,
            ]
        case State.FINISHED:
            return [calls(Ledger.mark_stored, n, const([FILE]), ATS), calls(Ledger.refresh_urls, n), time_out]
        case State.AMBIGUOUS:
            return [calls(Ledger.resubmit, n), calls(Ledger.adopt, n, REQUEST_IDS, ATS), abandon]
        case State.TIMED_OUT:
            return [abandon, calls(Ledger.retry, n, const(state))]
        case _:
            return [calls(Ledger.retry, n, const(state))]


ANY = st.one_of([*NEW, *OF_NO_JOB, *(each for state in State for each in of_job(JOB_NOS, state))])


def next_batch(ledger: Ledger, *, is_run: bool) -> st.SearchStrategy[list[Operation]]:
    """Return batches of transitions, most of which are possible."""
    jobs = [(number, outcome.status) for number, outcome in ledger.jobs_page(0, len(IDS))]
    possible = [each for number, state in jobs for each in of_job(const(number), state)]
    some = [st.one_of(possible)] * 4 if possible else []
    return st.lists(st.one_of([*some, *NEW, *(OF_A_RUN if is_run else []), ANY]), min_size=1, max_size=4)


def answers(ledger: Ledger) -> Iterator[Any]:
    """Yield the results of all read-only queries."""
    numbers = range(1, ledger.last_job_no() + 1)
    yield [ledger.ambiguous_job(number) for number in numbers]
    yield ledger.unsuccessful_jobs([state for state in State if state.info.unsuccessful or state is State.TIMED_OUT])
    yield ledger.ambiguous_jobs()
    yield ledger.latest_run()
    yield ledger.live_runs()
    yield (ledger.gateway(), ledger.results_bytes(), ledger.last_settled_job())
    yield (ledger.checkpoint(), ledger.found_limit(), ledger.results_mark())
    yield [ledger.open_jobs(0, limit) for limit in (1, 9)]
    yield [ledger.latencies(limit) for limit in (1, 9)]
    yield ledger.latest_media_urls(9)
    yield [ledger.request_of(number) for number in numbers]
    yield ledger.fingerprints(IDS)
    yield ledger.numbered_jobs(0, 9)
    yield [ledger.find_job(job_id) for job_id in IDS]
    yield [(ledger.outcomes(0, limit), ledger.jobs_page(1, limit)) for limit in (1, 9)]
    yield (ledger.counts(), ledger.submission_count(), ledger.top_errors(9), ledger.charges())
    yield (ledger.submissions_page(0, 9), ledger.timings_page(0, 9), ledger.has_succeeded(), ledger.has_jobs())
    yield [ledger.submission_of(f"r-{n}") for n in range(5)]
    yield (ledger.known_jobs(IDS), ledger.known_request_ids(["r-1", "r-2"]), ledger.accepted_ids(IDS))
    yield (ledger.accepted_files(["a", "cats/1"]), ledger.accepted_files_folded({"a", "b"}))
    yield (ledger.job_counts_after(1), list(ledger.unsubmitted_names()), ledger.rate_events(1))
    yield (ledger.find_jobs(IDS), ledger.has_free_jobs(1), ledger.has_free_jobs(3), ledger.has_unfinished_jobs())


def commit_described(ledger: Ledger, operations: list[Operation]) -> list[Any]:
    """Return the result, or the error, of each operation of a group commit."""
    results = commit(ledger, operations)
    return [(type(result), str(result)) if isinstance(result, KreaBatchError) else result for result in results]


@settings(max_examples=60)
@given(data=st.data(), is_run=st.booleans())
def test_equal_ledgers(data: st.DataObject, is_run: bool) -> None:
    """After any transitions, one by one or in groups, all ledgers have the same rows and give the same answers."""
    with ExitStack() as stack:
        first, *others = [stack.enter_context(closing(place.new_empty())) for place in PLACES.values()]
        for ledger in (first, *others):
            run_no = ledger.transaction(lambda ledger: ledger.start_run("https://a", "1", 1.5, 2.5, max_charges=3))
            ledger.bind_run(run_no if is_run else None)
        for _ in range(data.draw(st.integers(1, 20))):
            batch = data.draw(next_batch(first, is_run=is_run))
            expected = commit_described(first, batch)
            expected_content = first.read(lambda ledger: content_of(cast("SqlLedger", ledger)))
            expected_answers = first.read(lambda ledger: list(answers(ledger)))
            for other in others:
                assert commit_described(other, batch) == expected
                assert other.read(lambda ledger: content_of(cast("SqlLedger", ledger))) == expected_content
                assert other.read(lambda ledger: list(answers(ledger))) == expected_answers
