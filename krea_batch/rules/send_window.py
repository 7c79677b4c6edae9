"""Keep a configured rate: no window of one second has more requests than the rate, plus one.

A limiter of the gateway counts requests when they arrive. Requests that are sent slightly more than a second apart
may arrive closer together, so a window is a little longer than a second. `now_s` and `sent_s` are monotonic.
"""

from __future__ import annotations

import math
from bisect import insort
from collections import deque
from typing import NamedTuple

WINDOW_S = 1.0
BURST_S = 0.02  # measured: catching up on 20 ms uses 99 % of rates of 50-5000/s; without it, 96 % or less
MARGIN_S = 0.008  # measured: requests sent this much more than a window apart also arrive a window apart
MAX_MARGIN_S = 0.04  # chosen: the margin is doubled up to this if the network or a busy event loop requires more
COLD_MARGIN_S = 0.04  # chosen: the first requests wait for DNS, connections and TLS, later ones do not
WARM_UP_S = 0.5  # chosen: how long requests count as the first ones


class _Request(NamedTuple):
    counted_s: float  # later than `sent_s` if it was delayed
    sent_s: float


class SendWindow:
    """The send times of the latest requests that still count. A window is a second and `margin_s`."""

    def __init__(self, per_s: float, margin_s: float = MARGIN_S) -> None:
        self._per_s = per_s
        self._count = max(1, math.ceil(per_s * WINDOW_S - 1e-9))
        self._requests: deque[_Request] = deque(maxlen=self._count)
        self._first_sent_s: float | None = None
        self._margin_s = margin_s

    def free_s(self) -> float:
        """Return when the next request may be sent."""
        if len(self._requests) < self._count or self._first_sent_s is None:
            return -math.inf
        oldest_s = self._requests[0].counted_s
        is_cold = oldest_s - self._first_sent_s < WARM_UP_S
        margin_s = max(COLD_MARGIN_S, self._margin_s) if is_cold else self._margin_s
        return oldest_s + self._count / self._per_s + margin_s

    def add(self, now_s: float) -> None:
        """Count a request that is sent now."""
        if self._first_sent_s is None:
            self._first_sent_s = now_s
        self._requests.append(_Request(now_s, now_s))

    def delay(self, sent_s: float, late_s: float) -> None:
        """Count a request as sent later, because it was delayed on its way. It may be delayed more than once.

        Delayed requests arrive together, in one window of the gateway with requests that were sent a second later.
        """
        # A window may have many requests, but few of them were sent after a late one.
        later: deque[_Request] = deque()
        while self._requests and self._requests[-1].counted_s >= sent_s:
            request = self._requests.pop()
            if request.sent_s == sent_s:
                insort(later, request._replace(counted_s=request.counted_s + late_s))
                break
            later.appendleft(request)
        self._requests.extend(later)

    def widen(self) -> bool:
        """Make the windows longer, up to a maximum, since requests arrive closer together than they were sent."""
        if self._margin_s >= MAX_MARGIN_S:
            return False
        self._margin_s *= 2
        return True
