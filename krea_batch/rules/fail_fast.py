"""Stop a run whose jobs all fail with the same error: the next thousand would fail, too."""

from __future__ import annotations

from krea_batch.jobs import Outcome, State


class IdenticalFailureGuard:
    """Decides whether every job of a run fails in the same way, as with a wrong model, plan or proxy.

    `max_failures` identical failures stop the run; 0 means never. Failures count only at the start of a run: once a
    job has ended differently, or succeeded in an earlier run, further failures may be due to bad prompts. Rejected
    jobs count only until a POST is accepted. Ambiguous jobs do not count, because the circuit breaker holds submits
    for them.
    """

    __slots__ = ("_all_identical", "_consecutive", "_last_kind", "_max_identical", "_none_accepted")

    def __init__(self, max_failures: int, *, has_succeeded: bool = False) -> None:
        self._max_identical = max_failures
        self._all_identical = not has_succeeded  # so far, every job of this run directory ended in the same way
        self._last_kind: str | None = None
        self._consecutive = 0
        self._none_accepted = True

    def record_accepted(self) -> None:
        """Record that a POST was accepted."""
        self._none_accepted = False

    def record_ended(self, outcome: Outcome) -> str | None:
        """Record the end of a job. Return the reason to stop the run, or None."""
        kind = f"{outcome.status.value} {outcome.error.kind}" if outcome.error else ""
        identical = kind == self._last_kind
        self._all_identical = self._all_identical and (identical or self._last_kind is None)
        self._consecutive = self._consecutive + 1 if identical else 1
        self._last_kind = kind
        if outcome.error is None or not 0 < self._max_identical <= self._consecutive:
            return None
        message = outcome.error.message
        is_rejected, is_ambiguous = outcome.status is State.REJECTED, outcome.status is State.AMBIGUOUS
        if self._all_identical and not is_ambiguous and (self._none_accepted or not is_rejected):
            return f"the first {self._consecutive} jobs all ended as {outcome.status.value} ({message})"
        return None
