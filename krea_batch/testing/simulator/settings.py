"""The settings of the simulator, validated.

`latency` is in simulated seconds, which `time_scale` makes shorter. All other times (limits, Retry-After,
slow_duration_s, hang_duration_s) are in real seconds: a limit of 10/s is 10 in one second of the real clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import msgspec

from krea_batch.testing.simulator.faults import check_faults
from krea_batch.testing.simulator.latency import LatencyDistribution
from krea_batch.testing.simulator.request_limits import JobsInProcess, parse_limit, parse_poll_limit

RETRY_AFTER_FORMS = ("seconds", "date", "none")


class SimulatorError(Exception):
    """The simulator cannot start, or a setting is invalid; `field` names the setting, or is empty."""

    def __init__(self, problem: str, field: str = "") -> None:
        super().__init__(problem, field)
        self.problem = problem
        self.field = field

    def __str__(self) -> str:
        return f"{self.field}: {self.problem}" if self.field else self.problem


class SimulatorSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the gateway behaves. Raises SimulatorError for an invalid value."""

    host: str = "127.0.0.1"
    """The address on which both ports listen. Chosen: loopback, because the admin URL has no password."""
    port: int = 0
    """The gateway's port; 0 means any free one."""
    cdn_port: int = 0
    """The CDN's port; 0 means any free one. It is a separate port because the real CDN is a different origin."""
    seed: int = 0
    """The random seed: the same requests with the same seed have the same latencies and faults."""
    latency: str = "lognormal:12,0.3"
    """Simulated seconds from accepted to ended, see `latency`. Chosen: around the API document's example of 15 s."""
    time_scale: float = 1.0
    """Simulated seconds per real second. It shortens latencies only: limits stay in real seconds."""
    workers: int = 0
    """Jobs processed simultaneously; others are QUEUED. 0 means unlimited (the API document names no limit)."""
    submit_limit: str = "none"
    """Limit of POSTs in real time, see `request_limits`. The API document names a 429 but no limit."""
    poll_limit: str = "none"
    """Rate limit of polls in real time."""
    shared_limit: bool = False
    """Count polls against `submit_limit`, so that both share one quota; `poll_limit` is then not used."""
    retry_after: str = "seconds"
    """The form of Retry-After in a 429: seconds, date (an HTTP-date) or none."""
    faults: dict[str, float] = {}
    """Probabilities from 0 to 1 by name, see `faults`."""
    fault_max_attempts: int = 0
    """Faults occur only in this many first attempts on a subject (a body, a job's polls, an image); 0 means all."""
    slow_duration_s: float = 1.0
    """Real seconds that a download takes with the fault cdn-slow."""
    hang_duration_s: float = 30.0
    """Real seconds before the response with the fault submit-hang or poll-hang."""
    balance: int | None = None
    """Credits: an accepted POST costs one, ERROR refunds it (API document: not charged). None means unlimited."""
    outputs: int = 1
    """Images of a completed job, 1 to 4. The API document shows an array of one."""
    tiny: bool = False
    """Make small images, in microseconds and without Pillow."""
    image_bytes: int = 0
    """The exact size of each image in bytes, filled with incompressible noise; 0 means any size. Implies `tiny`."""
    key: str = ""
    """The only API key to accept; empty means any key that is not empty."""
    revoke_after: int = 0
    """Refuse every key with 401 after this many accepted POSTs; 0 means never."""
    lenient: bool = False
    """Accept unknown fields in a body instead of answering 400."""
    allow_remote_webhooks: bool = False
    """Send webhooks to any host instead of to loopback only."""
    state_file: str = ""
    """A file that stores the accepted jobs across restarts; empty means none."""

    def __post_init__(self) -> None:
        for name, parse in _PARSERS.items():
            try:
                parse(getattr(self, name))
            except ValueError as error:
                raise SimulatorError(str(error), name) from None
        if self.shared_limit and isinstance(parse_limit(self.submit_limit), JobsInProcess):
            raise SimulatorError("polls cannot count against a limit on jobs in process", "shared_limit")
        for name, (is_valid, hint) in _VALUE_RULES.items():
            value = getattr(self, name)
            if not is_valid(value):
                raise SimulatorError(f"{hint} (got {value!r})", name)

    @property
    def draws_images(self) -> bool:
        """Return whether images are drawn, which requires Pillow."""
        return not (self.tiny or self.image_bytes)


_PARSERS: dict[str, Callable[[Any], object]] = {
    "latency": LatencyDistribution,
    "submit_limit": parse_limit,
    "poll_limit": parse_poll_limit,
    "faults": check_faults,
}


_ValueRule = tuple[Callable[[Any], bool], str]


_NOT_NEGATIVE: _ValueRule = (lambda value: math.isfinite(value) and value >= 0, "must be 0 or more")
_PORT: _ValueRule = (
    lambda value: 0 <= value <= 65535,
    "must be a port from 1 to 65535, or 0 for any free one",
)
_VALUE_RULES: dict[str, _ValueRule] = {
    "port": _PORT,
    "cdn_port": _PORT,
    "time_scale": (lambda value: math.isfinite(value) and value > 0, "must be greater than 0, for example 20"),
    "workers": _NOT_NEGATIVE,
    "retry_after": (lambda value: value in RETRY_AFTER_FORMS, f"must be one of {', '.join(RETRY_AFTER_FORMS)}"),
    "fault_max_attempts": _NOT_NEGATIVE,
    "slow_duration_s": _NOT_NEGATIVE,
    "hang_duration_s": _NOT_NEGATIVE,
    "balance": (lambda value: value is None or value >= 0, "must be 0 or more credits"),
    "outputs": (lambda value: 1 <= value <= 4, "must be 1 to 4"),
    "image_bytes": (
        lambda value: value == 0 or 4096 <= value <= 1 << 26,
        "must be 4096 to 67108864 (an image contains its prompt), or 0",
    ),
    "revoke_after": _NOT_NEGATIVE,
}
