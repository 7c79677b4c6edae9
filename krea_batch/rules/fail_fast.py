"""TODO"""

from __future__ import annotations

from krea_batch.jobs import Outcome, State


class IdenticalFailureGuard:
    """Whether a run fails for every job in the same way, as it does for a wrong model, plan or proxy.

    `most` jobs may (0: any number). Only the first jobs of a run are judged by their FAILED and rejections, later
    ones may well be bad prompts in a row; and rejections only while no POST was accepted. Ambiguous ones in a row
    are judged at any time, since each may be paid.
    """

    __slots__ = ("_first", "_in_a_row", "_kind", "_most", "_none_accepted")

    def __init__(self, most: int, *, has_succeeded: bool = False) -> None:
        self._most = most
        self._first = not has_succeeded
        self._kind: str | None = None
        self._in_a_row = 0
        self._none_accepted = True

    def accepted(self) -> None:
        """A POST was accepted."""
        self._none_accepted = False

    def ended(self, outcome: Outcome) -> str | None:
        """A job ended. Returns why the run should stop, where it should."""
        kind = f"{outcome.status.value} {outcome.error.kind}" if outcome.error else ""
        alike = kind == self._kind
        self._first = self._first and (alike or self._kind is None)  # nothing else has come in this run
        self._in_a_row = self._in_a_row + 1 if alike else 1
        self._kind = kind
        if outcome.error is None or not 0 < self._most <= self._in_a_row:
            return None
        if outcome.status is State.AMBIGUOUS:
            return f"{self._in_a_row} jobs in a row are ambiguous, and may have been paid ({outcome.error.message})"
        if self._first and (self._none_accepted or outcome.status is not State.REJECTED):
            return f"the first {self._in_a_row} jobs all ended {outcome.status.value} ({outcome.error.message})"
        return None
