"""Transitions applied in groups have the same result as applied one by one."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from krea_batch.errors import InternalError
from krea_batch.jobs import ErrorInfo, Outcome, State, StoredFile
from krea_batch.ledger import LedgerStore
from krea_batch.ledger.writer import Operation, apply_all, commit
from krea_batch.rules.verdicts import Finished

SOME_INSTANT_AT = 1_774_951_200.123456
BATCHING_ERROR = ErrorInfo("kind", "a sentence")


def operation(transition: Any, *args: Any) -> Operation:
    return Operation(transition, args, {})


def intent(job_id: str, body: bytes = b'{"prompt":"a \xc3\xa9"}', fingerprint: bytes = bytes(range(32))) -> Operation:
    return operation(LedgerStore.record_intent, job_id, body, fingerprint, b"{}", SOME_INSTANT_AT, "ann")


def accept(n: int, request_id: str = "") -> Operation:
    return operation(LedgerStore.mark_accepted, n, request_id or f"r-{n}", SOME_INSTANT_AT)


def finish(n: int) -> Operation:
    return operation(
        LedgerStore.mark_finished,
        n,
        Finished((f"https://cdn.example/{n}.png",), "image/png", 12.5),
        SOME_INSTANT_AT,
        n % 5,
    )


def store(n: int) -> Operation:
    return operation(
        LedgerStore.mark_stored, n, [StoredFile(f"images/{n}.png", n, "0" * 64, 4, 3, "image/png")], SOME_INSTANT_AT
    )


def apply_batch(ledger: LedgerStore, *operations: Operation) -> list[Any]:
    return ledger.transaction([partial(apply_all, operations)])[0]


def all_rows_of(ledger: LedgerStore) -> list[Any]:
    """All that is in the ledger of jobs and of POSTs."""
    rows = ledger._sql.execute("SELECT * FROM jobs ORDER BY job_no").fetchall()
    return [*rows, *ledger._sql.execute("SELECT * FROM submissions ORDER BY submission_no").fetchall()]


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[LedgerStore]:
    opened = LedgerStore.open(tmp_path / "ledger.db")
    yield opened
    opened.close()


# ---- as one by one ---------------------------------------------------------------------------------------


def steps(n: int, stage: int, random: Random) -> list[Operation]:
    """What may come next of job number `n`, which has come so far."""
    match stage:
        case 0:
            return [accept(n)] if random.random() < 0.8 else [operation(LedgerStore.revert_intent, n, "refused")]
        case 1 if random.random() < 0.5:
            return [finish(n), store(n)]
        case 1:
            return (
                [finish(n)]
                if random.random() < 0.7
                else [operation(LedgerStore.mark_failed, n, BATCHING_ERROR, SOME_INSTANT_AT, 3)]
            )
        case 2:
            return (
                [store(n)]
                if random.random() < 0.7
                else [operation(LedgerStore.mark_timed_out, n, BATCHING_ERROR, SOME_INSTANT_AT, 3)]
            )
        case _:
            return []


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), count=st.integers(1, 150))
def test_a_batch_equals_its_operations_one_by_one(
    tmp_path_factory: pytest.TempPathFactory, seed: int, count: int
) -> None:
    """Rows and answers are the same, whether a group is carried out together or each step alone."""
    folder = tmp_path_factory.mktemp("ledgers")
    random = Random(seed)
    one, other = LedgerStore.open(folder / "one.db"), LedgerStore.open(folder / "other.db")
    stages: dict[int, int] = {}
    for _ in range(8):
        calls = []
        for n, stage in stages.items():
            if stage < 3 and random.random() < 0.6:
                coming = steps(n, stage, random)
                stages[n] = {LedgerStore.mark_accepted: 1, LedgerStore.mark_finished: 2}.get(coming[-1].transition, 3)
                calls.append(coming)
        new = random.randint(0, count - len(stages)) if len(stages) < count else 0
        calls += [[intent(f"job-{len(stages) + place}")] for place in range(new)]
        random.shuffle(calls)
        begun = len(stages)
        stages |= dict.fromkeys(range(begun + 1, begun + new + 1), 0)
        group = [step for coming in calls for step in coming]
        if group:
            alone = [one.transaction([step.apply])[0] for step in group]
            assert apply_batch(other, *group) == alone
            assert all_rows_of(one) == all_rows_of(other)
    one.close()
    other.close()


@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 200])
def test_all_sizes(ledger: LedgerStore, count: int) -> None:
    """However many there are, each has its own number, its own answer and its own row."""
    ids = [f"job-{place}" for place in range(count)]
    numbers = apply_batch(ledger, *map(intent, ids))
    assert numbers == list(range(1, count + 1))
    assert apply_batch(ledger, *map(accept, numbers)) == [True] * count
    assert apply_batch(ledger, *map(finish, numbers)) == [None] * count
    outcomes: list[Outcome] = apply_batch(ledger, *map(store, reversed(numbers)))
    assert [outcome.id for outcome in outcomes] == ids[::-1]
    assert [outcome.files[0].path for outcome in outcomes] == [f"images/{n}.png" for n in reversed(numbers)]
    assert ledger.counts() == {State.SUCCEEDED: count}
    assert ledger.charges().charged == count


def test_deferred_records_come_before_the_next_step(ledger: LedgerStore) -> None:
    """A job may be finished and stored, or given up, in one group, in whatever company."""
    apply_batch(ledger, *map(intent, "abcd"))
    apply_batch(ledger, *map(accept, (1, 2, 3, 4)))
    apply_batch(ledger, finish(2))
    done = apply_batch(
        ledger,
        store(2),
        finish(1),
        store(1),
        finish(3),
        operation(LedgerStore.mark_timed_out, 3, BATCHING_ERROR, SOME_INSTANT_AT, 1),
        intent("e"),
    )
    assert [done[0].status, done[2].status, done[4].status] == [State.SUCCEEDED, State.SUCCEEDED, State.TIMED_OUT]
    assert done[5] == 5


def test_bytes_stay_what_they_are(ledger: LedgerStore) -> None:
    """Body and fingerprint come back as they were given, whatever is in them."""
    body, fingerprint = b'{"prompt":"\xf0\x9f\xa6\x8a \\u0000 {rows}"}', bytes(range(224, 256))
    (n,) = apply_batch(ledger, intent("a", body, fingerprint))
    assert ledger.request_of(n) == (body, fingerprint, b"{}")


# ---- what is refused -------------------------------------------------------------------------------------


def test_a_job_is_intended_once(ledger: LedgerStore) -> None:
    """A job that two want to submit in one group is nobody's, for one POST more would be paid."""
    with pytest.raises(InternalError, match="'a'"):
        apply_batch(ledger, intent("a"), intent("b"), intent("a"))
    assert all_rows_of(ledger) == []
    apply_batch(ledger, intent("c"))
    apply_batch(ledger, operation(LedgerStore.revert_intent, 1, "refused"))
    with pytest.raises(InternalError, match="'c'"):
        apply_batch(ledger, intent("c"), intent("c"))
    assert ledger.counts() == {State.PENDING: 1}


def test_the_others_of_a_refused_group_go_on(ledger: LedgerStore) -> None:
    """Where one of a group is a bug, it alone is refused."""
    apply_batch(ledger, *map(intent, "abc"))
    answers = commit(ledger, [accept(1), accept(2), accept(2), accept(9), accept(3)])
    assert answers[:2] == [True, True]
    assert isinstance(answers[2], InternalError)
    assert isinstance(answers[3], InternalError)
    assert answers[4] is True
    assert ledger.counts() == {State.ACCEPTED: 3}


def test_a_state_that_is_another(ledger: LedgerStore) -> None:
    """No job is moved from a state in which it is not, though all others of its group are."""
    apply_batch(ledger, *map(intent, "ab"))
    apply_batch(ledger, accept(1))
    before = all_rows_of(ledger)
    with pytest.raises(InternalError, match="1, 2"):
        apply_batch(ledger, finish(1), finish(2))
    assert all_rows_of(ledger) == before


@pytest.mark.parametrize("before", [True, False], ids=["of an earlier group", "of the same group"])
def test_a_request_id_is_given_twice(ledger: LedgerStore, before: bool) -> None:
    """Two jobs never share a request_id: the first keeps it, and the other is told so."""
    apply_batch(ledger, *map(intent, "abcd"))
    first = [accept(1, "same")]
    if before:
        apply_batch(ledger, *first)
    group = [accept(2, "two"), accept(3, "same"), accept(4, "four")]
    answers = apply_batch(ledger, *(group if before else first + group))
    assert answers[-3:] == [True, False, True]
    assert ledger.counts() == {State.ACCEPTED: 3, State.SUBMITTING: 1}
    assert ledger.charges().charged == 3
