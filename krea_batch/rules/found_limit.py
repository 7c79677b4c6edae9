"""A limit of the gateway that a run has found, in words and for the next run.

A run directory remembers it for a while: a run that is resumed does not have to search the limit again. It starts
slightly below it, since the limit may have changed.
"""

from __future__ import annotations

from msgspec import Struct, json

MAX_AGE_S = 900.0  # chosen: within 15 minutes of a crash or a Ctrl-C the limit is likely the same
RESUMED_SHARE = 0.95  # chosen: slightly below the limit, nothing is refused while it is confirmed
WINDOWS = {1.0: "s", 10.0: "10 s", 60.0: "minute", 300.0: "5 minutes"}  # chosen: the windows that gateways document
WINDOW_TOLERANCE = 1.1  # chosen: a window is measured from the first submit to an acceptance after its end


class FoundLimit(Struct, frozen=True):
    """A rate, the time over which it is counted, and the jobs that may be in process; None if any number may.

    `is_spaced`: the limiter has no burst, so it requires a time between two submits.
    """

    per_s: float
    memory_s: float = 0.0
    max_jobs: int | None = None
    is_spaced: bool = False

    def __str__(self) -> str:
        if self.max_jobs is not None:
            return f"{self.max_jobs} jobs in process"
        windows_s = (window_s for window_s in WINDOWS if self.memory_s <= window_s * WINDOW_TOLERANCE)
        window_s = next(windows_s, max(WINDOWS))
        count = self.per_s * window_s
        number = f"{count:.0f}" if count >= 10 else f"{count:.2g}"  # it is an estimate
        return f"{number}/s" if window_s == 1.0 else f"{number} per {WINDOWS[window_s]}"


def recent_limit(recorded: tuple[bytes, float] | None, now: float) -> FoundLimit | None:
    """Return a limit as `Ledger.found_limit` returns it, unless it was found long ago. Instants are since 1970."""
    if recorded is None or not 0 <= now - recorded[1] <= MAX_AGE_S:
        return None
    return json.decode(recorded[0], type=FoundLimit)
