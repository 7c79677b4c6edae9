"""Operations on a ledger with few jobs, and the values that they record."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from krea_batch.jobs import ErrorInfo, State, StoredFile
from krea_batch.ledger import Ledger
from krea_batch.rules.verdicts import Finished

REQUEST_BODY = b'{"prompt":"a cat"}'
FINGERPRINT = b"f" * 32
METADATA = b'{"row":7}'
STORE_ERROR = ErrorInfo("kind", "a message")
ABANDONED_ERROR = ErrorInfo("abandoned", "ambiguous, and the user decided not to submit it again")
FINISHED_TWO_OUTPUTS = Finished(("https://cdn.example/a.png", "https://cdn.example/b.png"), "image/png", 12.5)
STORED_FILE = StoredFile("images/a.png", 10, "0" * 64, 4, 3, "image/png")

LedgerOperation = Callable[[Ledger], Any]


def apply_all(ledger: Ledger, *operations: LedgerOperation) -> Any:
    """Apply the operations in one transaction, and return the result of the last one."""
    return ledger.transaction(lambda ledger: [operation(ledger) for operation in operations])[-1]


def intent(job_id: str = "a", at: float = 1.0) -> LedgerOperation:
    return lambda ledger: ledger.record_intent(job_id, REQUEST_BODY, FINGERPRINT, METADATA, at, "")


def accept(n: int = 1, request_id: str = "r-1") -> LedgerOperation:
    return lambda ledger: ledger.mark_accepted(n, request_id, 2.0)


def finish(n: int = 1) -> LedgerOperation:
    return lambda ledger: ledger.mark_finished(n, FINISHED_TWO_OUTPUTS, 3.0, 2)


def requeue_errored(n: int = 1) -> LedgerOperation:
    return lambda ledger: ledger.requeue_errored(n, 4)


def revert(n: int = 1, result: str = "refused") -> LedgerOperation:
    return lambda ledger: ledger.revert_intent(n, result)


def state_of(ledger: Ledger) -> State:
    (state,) = ledger.counts()
    return state
