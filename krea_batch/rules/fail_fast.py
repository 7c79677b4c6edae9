"""TODO"""

from __future__ import annotations

from krea_batch.jobs import Outcome, State


class IdenticalFailureGuard:
    """Whether a run fails for every job in the same way, as it does for a wrong model, plan or proxy.

    `most` jobs may (0: any number). Only the first jobs of a run are judged by their FAILED and rejections, later
    ones may well be bad prompts in a row; and rejections only while no POST was accepted. Ambiguous ones in a row
    are judged at any time, since each may be paid.
    """

    __slots__ = ("_all_identical", "_consecutive", "_last_kind", "_max_identical", "_none_accepted")

    def __init__(self, max_failures: int, *, has_succeeded: bool = False) -> None:
        self._max_identical = max_failures
        self._all_identical = not has_succeeded
        self._last_kind: str | None = None
        self._consecutive = 0
        self._none_accepted = True

    def record_accepted(self) -> None:
        """A POST was accepted."""
        self._none_accepted = False

    def record_ended(self, outcome: Outcome) -> str | None:
        """A job ended. Returns why the run should stop, where it should."""
        kind = f"{outcome.status.value} {outcome.error.kind}" if outcome.error else ""
        alike = kind == self._last_kind
        self._all_identical = self._all_identical and (
            alike or self._last_kind is None
        )  # nothing else has come in this run
        self._consecutive = self._consecutive + 1 if alike else 1
        self._last_kind = kind
        if outcome.error is None or not 0 < self._max_identical <= self._consecutive:
            return None
        if outcome.status is State.AMBIGUOUS:
            return (
                f"{self._consecutive} jobs in a row are ambiguous, and may have been paid ({outcome.error.message})"
            )
        if self._all_identical and (self._none_accepted or outcome.status is not State.REJECTED):
            return f"the first {self._consecutive} jobs all ended {outcome.status.value} ({outcome.error.message})"
        return None
