"""Transitions applied in batches have the same results as applied one by one."""

from __future__ import annotations

from functools import partial
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from krea_batch.errors import InternalError
from krea_batch.jobs import ErrorInfo, Outcome, State, StoredFile
from krea_batch.ledger import Ledger
from krea_batch.ledger.writer import Operation, apply_all, commit
from krea_batch.rules.verdicts import Finished
from tests.ledger.places import PLACES, LedgerPlace

SOME_INSTANT_AT = 1_774_951_200.123456
BATCHING_ERROR = ErrorInfo("kind", "a message")


def operation(transition: Any, *args: Any) -> Operation:
    return Operation(transition, args, {})


def intent(job_id: str, body: bytes = b'{"prompt":"a \xc3\xa9"}', fingerprint: bytes = bytes(range(32))) -> Operation:
    return operation(Ledger.record_intent, job_id, body, fingerprint, b"{}", SOME_INSTANT_AT, "ann", "")


def accept(n: int, request_id: str = "") -> Operation:
    return operation(Ledger.mark_accepted, n, request_id or f"r-{n}", SOME_INSTANT_AT)


def finish(n: int) -> Operation:
    return operation(
        Ledger.mark_finished,
        n,
        Finished((f"https://cdn.example/{n}.png",), "image/png", 12.5),
        SOME_INSTANT_AT,
        n % 5,
    )


def store(n: int) -> Operation:
    return operation(
        Ledger.mark_stored, n, [StoredFile(f"images/{n}.png", n, "0" * 64, 4, 3, "image/png")], SOME_INSTANT_AT
    )


def apply_batch(ledger: Ledger, *operations: Operation) -> list[Any]:
    return ledger.transaction(partial(apply_all, operations))


# ---- the same results ------------------------------------------------------------------------------------


def next_operations(n: int, stage: int, random: Random) -> list[Operation]:
    """Return operations that are allowed for job number `n` in this stage."""
    match stage:
        case 0:
            return [accept(n)] if random.random() < 0.8 else [operation(Ledger.revert_intent, n, "refused")]
        case 1 if random.random() < 0.5:
            return [finish(n), store(n)]
        case 1:
            return (
                [finish(n)]
                if random.random() < 0.7
                else [operation(Ledger.mark_failed, n, BATCHING_ERROR, SOME_INSTANT_AT, 3)]
            )
        case 2:
            return (
                [store(n)]
                if random.random() < 0.7
                else [operation(Ledger.mark_timed_out, n, State.FINISHED, BATCHING_ERROR, SOME_INSTANT_AT, 3)]
            )
        case _:
            return []


@pytest.mark.parametrize("make_place", PLACES.values(), ids=PLACES)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), count=st.integers(1, 150))
def test_a_batch_equals_its_operations_one_by_one(
    make_place: type[LedgerPlace], tmp_path_factory: pytest.TempPathFactory, seed: int, count: int
) -> None:
    """Rows and results are the same, whether operations are applied in a batch or one by one."""
    places = [make_place(tmp_path_factory.mktemp(name)) for name in ("single", "batched")]
    random = Random(seed)
    single, batched = (place.open() for place in places)
    stages: dict[int, int] = {}
    for _ in range(8):
        by_job = []
        for n, stage in stages.items():
            if stage < 3 and random.random() < 0.6:
                operations = next_operations(n, stage, random)
                last = operations[-1].transition
                stages[n] = {Ledger.mark_accepted: 1, Ledger.mark_finished: 2}.get(last, 3)
                by_job.append(operations)
        new = random.randint(0, count - len(stages)) if len(stages) < count else 0
        by_job += [[intent(f"job-{len(stages) + index}")] for index in range(new)]
        random.shuffle(by_job)
        stages |= dict.fromkeys(range(len(stages) + 1, len(stages) + new + 1), 0)
        batch = [operation for operations in by_job for operation in operations]
        if batch:
            results = [single.transaction(operation.apply) for operation in batch]
            assert apply_batch(batched, *batch) == results
            assert places[0].dump() == places[1].dump()
    single.close()
    batched.close()


@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 200])
def test_batches_of_any_size(ledger: Ledger, count: int) -> None:
    """In a batch of any size, each job has its own number, result and row."""
    ids = [f"job-{index}" for index in range(count)]
    numbers = apply_batch(ledger, *map(intent, ids))
    assert numbers == list(range(1, count + 1))
    assert apply_batch(ledger, *map(accept, numbers)) == [True] * count
    assert apply_batch(ledger, *map(finish, numbers)) == [None] * count
    outcomes: list[Outcome] = apply_batch(ledger, *map(store, reversed(numbers)))
    assert [outcome.id for outcome in outcomes] == ids[::-1]
    assert [outcome.files[0].path for outcome in outcomes] == [f"images/{n}.png" for n in reversed(numbers)]
    assert ledger.counts() == {State.SUCCEEDED: count}
    assert ledger.charges().charged == count


def test_deferred_records_come_before_the_next_step(ledger: Ledger) -> None:
    """One batch may finish and store a job, or finish it and mark it timed out, among operations of other jobs."""
    apply_batch(ledger, *map(intent, "abcd"))
    apply_batch(ledger, *map(accept, (1, 2, 3, 4)))
    apply_batch(ledger, finish(2))
    results = apply_batch(
        ledger,
        store(2),
        finish(1),
        store(1),
        finish(3),
        operation(Ledger.mark_timed_out, 3, State.FINISHED, BATCHING_ERROR, SOME_INSTANT_AT, 1),
        intent("e"),
    )
    outcomes = [results[0], results[2], results[4]]
    assert [outcome.status for outcome in outcomes] == [State.SUCCEEDED, State.SUCCEEDED, State.TIMED_OUT]
    assert results[5] == 5


def test_bytes_are_stored_unchanged(ledger: Ledger) -> None:
    """Body and fingerprint are read back byte for byte."""
    body, fingerprint = b'{"prompt":"\xf0\x9f\xa6\x8a \\u0000 {rows}"}', bytes(range(224, 256))
    (n,) = apply_batch(ledger, intent("a", body, fingerprint))
    assert ledger.request_of(n) == (body, fingerprint, b"{}")


# ---- refused operations ----------------------------------------------------------------------------------


def test_two_intents_of_one_job_are_refused(ledger: Ledger, place: LedgerPlace) -> None:
    """A batch with two intents of one job raises InternalError, since a second POST could be charged."""
    before = place.dump()
    with pytest.raises(InternalError, match="'a'"):
        apply_batch(ledger, intent("a"), intent("b"), intent("a"))
    assert place.dump() == before
    apply_batch(ledger, intent("c"))
    apply_batch(ledger, operation(Ledger.revert_intent, 1, "refused"))
    with pytest.raises(InternalError, match="'c'"):
        apply_batch(ledger, intent("c"), intent("c"))
    assert ledger.counts() == {State.PENDING: 1}


def test_a_refused_operation_is_refused_alone(ledger: Ledger) -> None:
    """If an operation of a batch is refused, `commit` applies all others."""
    apply_batch(ledger, *map(intent, "abc"))
    results = commit(ledger, [accept(1), accept(2), accept(2), accept(9), accept(3)])
    assert results[:2] == [True, True]
    assert isinstance(results[2], InternalError)
    assert isinstance(results[3], InternalError)
    assert results[4] is True
    assert ledger.counts() == {State.ACCEPTED: 3}


def test_a_job_in_another_state(ledger: Ledger, place: LedgerPlace) -> None:
    """A batch with a job in another state than expected raises InternalError and changes no job."""
    apply_batch(ledger, *map(intent, "ab"))
    apply_batch(ledger, accept(1))
    before = place.dump()
    with pytest.raises(InternalError, match="1, 2"):
        apply_batch(ledger, finish(1), finish(2))
    assert place.dump() == before


@pytest.mark.parametrize("earlier", [True, False], ids=["of an earlier batch", "of the same batch"])
def test_a_duplicate_request_id(ledger: Ledger, earlier: bool) -> None:
    """Two jobs never share a request_id: the first one keeps it, and the result of the other one is False."""
    apply_batch(ledger, *map(intent, "abcd"))
    first = [accept(1, "same")]
    if earlier:
        apply_batch(ledger, *first)
    batch = [accept(2, "two"), accept(3, "same"), accept(4, "four")]
    results = apply_batch(ledger, *(batch if earlier else first + batch))
    assert results[-3:] == [True, False, True]
    assert ledger.counts() == {State.ACCEPTED: 3, State.SUBMITTING: 1}
    assert ledger.charges().charged == 3
