"""What the gateway knows of a process that sends it requests."""

from __future__ import annotations

from collections import Counter
from contextvars import ContextVar


class ClientProcess:
    """A process as the gateway sees it.

    `gives_up_early` says that it aborts, or that its ledger has failed. `proven` has the request_ids for which one of
    its polls has returned a readable status.
    """

    def __init__(self) -> None:
        self.has_crashed = False  # then no request of it reaches the gateway
        self.gives_up_early = False
        self.submit_times_s: list[float] = []
        self.polled: Counter[str] = Counter()
        self.proven: set[str] = set()


CURRENT_PROCESS: ContextVar[ClientProcess | None] = ContextVar("current_process", default=None)
"""The process that a callback of the event loop belongs to, if there are several; else None."""
