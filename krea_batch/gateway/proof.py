"""Proves by polls that a request_id of unknown origin is one of the gateway."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from krea_batch.rules.verdicts import PollFailed, PollVerdict

MAX_PROOF_POLLS = 3  # chosen: one failed poll proves nothing, three prove little


async def prove(poll: Callable[[str], Awaitable[PollVerdict]], request_id: str, *, interval_s: float) -> PollVerdict:
    """Poll a request_id until an answer names it, at most MAX_PROOF_POLLS times. Return the last verdict.

    A PollFailed proves nothing; any other verdict shows that the gateway knows the request_id.
    """
    verdict = await poll(request_id)
    for _ in range(MAX_PROOF_POLLS - 1):
        if not isinstance(verdict, PollFailed):
            break
        await asyncio.sleep(interval_s)
        verdict = await poll(request_id)
    return verdict
