"""Proves by polls that the gateway knows a request_id of unknown origin."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from krea_batch.rules.lifecycle import GONE_STATUSES
from krea_batch.rules.verdicts import PollFailed, PollVerdict

MAX_PROOF_POLLS = 3  # chosen: one failed poll proves nothing, three prove little


async def prove(poll: Callable[[str], Awaitable[PollVerdict]], request_id: str, *, interval_s: float) -> PollVerdict:
    """Poll a request_id until an answer names it, at most MAX_PROOF_POLLS times.

    Any verdict but a PollFailed shows that the gateway knows the request_id. A PollFailed with one of GONE_STATUSES
    shows that it does not, because all polls had this answer; a single one might be an error, right after a POST.
    """
    failed: PollFailed | None = None
    for n in range(MAX_PROOF_POLLS):
        if n:
            await asyncio.sleep(interval_s)
        verdict = await poll(request_id)
        if not isinstance(verdict, PollFailed):
            return verdict
        if failed is None or verdict.status not in GONE_STATUSES:
            failed = verdict
    assert failed  # noqa: S101 - there was a poll
    return failed
